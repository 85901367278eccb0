"""Which process this is, from what its surroundings say."""

import pytest

from vrrl_jax.parallel.place import Place, find, first_node

STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[007-009,012]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "99",  # of the job; the step is smaller
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
TOLD = {"VRRL_COORDINATOR": "host:1234", "VRRL_PROCESSES": "2", "VRRL_PROCESS_ID": "1"}


def alone(environ):
    del environ
    return 1


def test_nobody_else():
    assert find("auto", {}, alone) is None
    assert find("off", TOLD | STEP, lambda _: 8) is None
    assert find("auto", TOLD | {"VRRL_PROCESSES": "1", "VRRL_PROCESS_ID": "0"} | STEP) is None


def test_variables_come_before_what_the_machine_says():
    told = Place("VRRL_COORDINATOR", "host:1234", 2, 1)
    assert find("auto", TOLD | STEP, lambda _: 8) == told


@pytest.mark.parametrize(
    "change, message",
    [
        ({"VRRL_PROCESSES": ""}, "VRRL_PROCESSES missing"),
        ({"VRRL_PROCESS_ID": "2"}, "VRRL_PROCESS_ID=2 of VRRL_PROCESSES=2"),
        ({"VRRL_PROCESS_ID": "-1"}, "VRRL_PROCESS_ID=-1: not a number"),
        ({"VRRL_PROCESSES": "two"}, "VRRL_PROCESSES=two: not a number"),
        ({"VRRL_COORDINATOR": "host"}, "give host:port"),
    ],
)
def test_variables_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        find("auto", TOLD | change, alone)


def test_a_step_of_slurm():
    # The port depends on the job: two jobs on a node don't meet.
    assert find("auto", STEP, alone) == Place("Slurm", "gpu007:24567", 4, 2)
    assert find("slurm", STEP | {"VRRL_PORT": "7000"}, alone).coordinator == "gpu007:7000"
    assert find("auto", STEP | {"SLURM_STEP_NUM_TASKS": "1"}, alone) is None
    # A batch script, before it calls srun, is no step.
    batch = {k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}
    assert find("auto", batch, alone) is None
    with pytest.raises(ValueError, match="start with srun"):
        find("slurm", batch, alone)


@pytest.mark.parametrize(
    "tasks, visible, devices",
    [
        ("1(x4)", "0,1,2,3", None),
        ("1", "0,1", None),
        ("8(x2)", "0,1,2,3,4,5,6,7", (3,)),
        ("8(x2)", "3", None),  # Slurm has bound one to each already
        ("4,3", "0,1,2,3", (3,)),
        ("1,2", "0,1,2,3", (3,)),
        ("11", "0,1", (3,)),
    ],
)
def test_gpus_of_a_task(tasks, visible, devices):
    environ = STEP | {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": visible}
    assert find("auto", environ | {"SLURM_LOCALID": "3"}, alone).devices == devices


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node1", "node1"),
        ("node001,other2", "node001"),
        ("node[001-015],host2", "node001"),
        ("n[007,009-011]-ib", "n007-ib"),
        ("tux[7]", "tux7"),
    ],
)
def test_the_first_node(nodes, first):
    assert first_node(nodes) == first


def test_a_tpu_slice():
    assert find("auto", {}, lambda _: 4) == Place("TPU slice", None, 4, None)
    assert find("tpu", {}, alone) == Place("TPU slice", None, 1, None)
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b,c"}
    assert find("auto", hosts).processes == 3
    assert find("auto", hosts | {"MEGASCALE_NUM_SLICES": "2"}).processes == 6
    assert find("auto", {"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    # Tests and tools run on the processor of such a machine too.
    assert find("auto", hosts | {"JAX_PLATFORMS": "cpu"}) is None


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="'mpi': one of auto, off, slurm, tpu"):
        find("mpi", {})
