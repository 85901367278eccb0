"""Several processes in one run: what joins them, and runs of two against the same run of one."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from running import (
    DEMONSTRATIONS,
    INCIDENTAL,
    NAVIGATION,
    assert_same,
    lines,
    saved_arrays,
    write_maps,
)

from vrrl_jax.parallel import distributed
from vrrl_jax.parallel import mesh as meshes
from vrrl_jax.types import Picture

ROOT = pathlib.Path(__file__).parents[2]
PATHS = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
KILLED = (137, distributed.LOST, 134)  # the process itself, or the other one, which lost it
LAUNCH = ROOT / "scripts" / "launch_local.sh"
PROCESS = pathlib.Path(__file__).with_name("process.py")
MESH = ("mesh.data=2", "mesh.fsdp=2")


# --- alone ---------------------------------------------------------------------------------------


def test_alone_nothing_happens():
    assert distributed.start("auto", {}) is None and not distributed.joined()
    assert not distributed.several() and distributed.first()
    tree = {"a": np.arange(3)}
    assert distributed.of_first(tree) is tree and distributed.broadcast("x") == "x"
    distributed.agree("here", anything=object())  # isn't even looked at
    assert distributed.end(2) == 2 and distributed.stream() is None


def test_fetch_is_device_get():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    host = np.arange(16, dtype=np.float32).reshape(8, 2)
    tree = (meshes.put_rows(mesh, host), meshes.put(host, None), 3, host)
    for found, want in zip(meshes.fetch(tree), jax.device_get(tree), strict=True):
        assert type(found) is type(want)
        np.testing.assert_array_equal(found, want)


def test_a_mesh_of_several_processes_holds_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"fsdp=1 tensor=1 leaves 7 of 8 devices idle: with 2"):
        meshes.make_mesh()
    assert meshes.make_mesh(data=2, fsdp=-1).size == 8


def test_digests_tell_what_differs():
    one = {"a": [1, 2.5, None, True], "b": (np.arange(4), "x")}
    same = {"b": (np.arange(4), "x"), "a": [1, 2.5, None, True]}
    assert distributed.digest(one) == distributed.digest(same)
    picture = Picture(np.zeros((4, 12), np.uint8), (1, 2, 2))
    other = Picture(np.eye(4, 12, dtype=np.uint8), (1, 2, 2))
    values = [
        one,
        one | {"a": [1, 2.5, None, False]},
        [1, 23],
        [12, 3],
        [[1], 23],
        np.arange(4),
        np.arange(4, dtype=np.float32),
        np.arange(4).reshape(2, 2),
        picture,
        other,
        [picture, picture, other],
        [picture, other, other],
        float("nan"),
        np.float32(1.5),
    ]
    found = [distributed.digest(value) for value in values]
    assert len(set(found)) == len(values)
    assert distributed.digest(np.float32(1.5)) == distributed.digest(1.5)
    with pytest.raises(TypeError, match="compare a set"):
        distributed.digest({1, 2})  # which has no order


def test_a_disagreement_is_named(monkeypatch):
    """Four processes, of which number 2 has other rewards; this one is number 0."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)

    def gathered(mine):
        table = np.stack([mine] * 4)
        table[2, 1, 0] += 1
        return table

    monkeypatch.setattr(distributed, "gathered", gathered)
    with pytest.raises(distributed.Disagreement, match=r"step 3: rewards of process 2 differ"):
        distributed.agree("step 3", questions=[1, 2], rewards=[0.5, 1.0])
    monkeypatch.setattr(distributed, "gathered", lambda mine: np.stack([mine] * 4))
    distributed.agree("step 3", questions=[1, 2], rewards=[0.5, 1.0])


def test_sigterm_waits_for_the_end_of_a_step():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.stops_on_sigterm():
        assert not distributed.stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert distributed.stopping()
    assert signal.getsignal(signal.SIGTERM) is before
    with distributed.stops_on_sigterm():
        assert not distributed.stopping()


@pytest.mark.parametrize(
    "told, said",
    [(b"", "apart\n"), (b"joined\n", "lost\n"), (b"joined\nend\n", ""), (b"end\n", "")],
)
def test_the_last_word_of_a_process_that_is_killed(capfd, told, said):
    word = distributed.last_word("apart", "lost")
    word.stdin.write(told)
    word.stdin.close()
    assert word.wait(timeout=20) == 0
    assert capfd.readouterr().err == said


# --- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_checkpoint):
    """A folder with recipes for `vrrl train` and `vrrl sft`."""
    folder = tmp_path_factory.mktemp("several")
    maps = write_maps(folder / "maps.json")
    longer = DEMONSTRATIONS.replace("steps: 2", "steps: 3")
    for name, text in (("train", NAVIGATION), ("sft", longer)):
        text = text.replace("CHECKPOINT", str(tiny_checkpoint)).replace("MAPS", str(maps))
        (folder / f"{name}.yaml").write_text(text)
    return folder


def launch(place, arguments, *, processes=2, **variables):
    """Runs processes with four devices in all; (exit code, what they said)."""
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": PATHS,
        "VRRL": f"{sys.executable} {PROCESS}",
        "PROCESSES": str(processes),
        "DEVICES": str(4 // processes),
        "VRRL_HEARTBEAT_SECONDS": "20",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        **variables,
    }
    done = subprocess.run(
        ["bash", str(LAUNCH), *arguments],
        cwd=place,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    return done.returncode, done.stdout


def train(place, run, *overrides, **options):
    # A small eps would make much of what rounding leaves of gradients that are zero.
    overrides = "optimizer.eps=1.0e-3", *overrides
    return launch(place, ["train", "train.yaml", *MESH, f"run_dir={run}", *overrides], **options)


def assert_close(one, two, run=lines):
    """Metrics of two runs, step by step."""
    ours, theirs = run(two, INCIDENTAL), run(one, INCIDENTAL)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, want in b.items():
            assert a[name] == pytest.approx(want, rel=2e-3, abs=2e-5), (b["step"], name)


def assert_arrays_close(one, two, bound=1e-5):
    """Checkpoints of two runs: parameters, moments and buffers."""
    (step, theirs), (same, ours) = saved_arrays(one), saved_arrays(two)
    assert step == same
    flat, other = (jax.tree_util.tree_leaves_with_path(tree) for tree in (ours, theirs))
    assert [path for path, _ in flat] == [path for path, _ in other]
    for (path, a), (_, b) in zip(flat, other, strict=True):
        np.testing.assert_allclose(
            np.float64(a), np.float64(b), rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_joins_processes(place):
    code, said = launch(place, ["checks", "run_dir=none"])
    assert code == 0, said
    assert re.findall(r"\[(\d)\] all seen", said) == ["0"]  # the other one is silent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_finds_no_others(place):
    """One of two: it ends in time, and says why."""
    environ = {"VRRL_COORDINATOR": "127.0.0.1:9", "VRRL_PROCESSES": "2", "VRRL_PROCESS_ID": "1"}
    done = subprocess.run(
        [sys.executable, PROCESS, "steps"],
        env=os.environ | environ | {"VRRL_START_SECONDS": "3", "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "vrrl: process 1 of 2: the processes (known from: VRRL_COORDINATOR)" in done.stderr
    assert "at 127.0.0.1:9 within 3 seconds" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault, ends, told",
    [
        # Whoever is killed, each process says what to do; the code is that of the first to end.
        ("kill:1:3", KILLED, ["[1] vrrl: process 1 of 2 ended without a word", "[0] vrrl"]),
        ("kill:0:3", KILLED, ["[0] vrrl: process 0 of 2 ended without a word", "[1] vrrl"]),
        ("raise:1:3", 1, ["[1] RuntimeError: a fault of this process alone", "[0] vrrl"]),
        (
            "differ:1:3",
            2,
            [f"process {i} of 2: step 4: odd of process 1 differ from those of" for i in (0, 1)],
        ),
        ("term:1:3", 75, [f"[{i}] vrrl steps: process {i} of 2: stopped after" for i in (0, 1)]),
    ],
)
def test_what_befalls_one_process_ends_both(place, fault, ends, told):
    started = time.monotonic()
    code, said = launch(place, ["steps", "run_dir=none"], FAULT=fault)
    assert code in (ends if ends is KILLED else (ends,)), said
    for text in told:
        assert text in said
    assert said.count("--resume") >= 2 or ends == 1
    assert "step 3: " in said and "step 9: " not in said
    assert time.monotonic() - started < 300


@pytest.fixture(scope="module")
def two(place):
    """Four steps with roll-in, turn masking, a filter and a reference, on two processes."""
    code, said = train(place, "two")
    assert code == 0, said
    return place / "two", said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_as_one(place, two):
    code, said = train(place, "one", processes=1)
    assert code == 0, said
    run, said = two
    assert_close(place / "one", run)
    assert_arrays_close(place / "one", run)
    assert sum(line["count/roll_in_groups"] for line in lines(run, INCIDENTAL)) > 0
    # One process wrote and spoke.
    assert len((run / "command.txt").read_text().splitlines()) == 1
    assert "[0] trained policy" in said and "[1] trained policy" not in said
    assert len(re.findall(r"\[\d\] step 4/4", said)) == 1
    assert (run / "report.html").is_file() and list((run / "episodes").glob("*.json"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_process_ends_the_run_which_goes_on(place, two):
    """In its last step, with those before it saved."""
    run, fault = place / "killed", {"FAULT": "kill:1:3", "FAULT_ONCE": str(place / "fault")}
    code, said = train(place, run.name, "checkpoint.every=1", RESTARTS="1", **fault)
    assert code == 0, said
    assert "vrrl: process 1 of 2 ended without a word" in said
    assert "starting again (1 of 1)" in said
    assert len(re.findall(r"\[0\] step 1/4", said)) == 1  # it went on, and didn't begin anew
    whole, again = lines(two[0], INCIDENTAL), lines(run, INCIDENTAL)
    assert whole == again
    assert_same(saved_arrays(two[0])[1], saved_arrays(run)[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_saves_and_ends_with_a_code_of_its_own(place, two):
    run = place / "stopped"
    code, said = train(place, run.name, FAULT="term:1:2")
    assert code == distributed.PREEMPTED == 75, said
    assert re.findall(r"\[(\d)\] vrrl train: process \1 of 2: stopped after step 3", said)
    assert saved_arrays(run)[0] == 3 and len(lines(run, INCIDENTAL)) == 3
    code, said = train(place, run.name)  # the launcher resumes what is there
    assert code == 0, said
    assert_same(saved_arrays(two[0])[1], saved_arrays(run)[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_replay_and_a_critic_train_the_same(place, tiny_checkpoint):
    """A ring split over both processes, its samples played again on each."""
    overrides = (
        "steps=3",
        "algorithm={name: ppo, dual_clip: null, kl_coefficient: 0.1, lambda_: 0.9, minibatches: 2}",
        f"policy={{path: {tiny_checkpoint}, value_head: true, critic: separate}}",
        "modes={normal: 1.0, rtm: 0, roll_in: 0}",
        "filter.enabled=false",
        "prefix_mask={probability: 0.5, pictures: true}",
        "replay={method: mix, labels: recomputed, importance: truncated}",
    )
    for run, processes in (("ring1", 1), ("ring2", 2)):
        code, said = train(place, run, *overrides, processes=processes)
        assert code == 0, said
    assert_close(place / "ring1", place / "ring2")
    assert_arrays_close(place / "ring1", place / "ring2", 1e-4)
    assert sum(line["count/replayed"] for line in lines(place / "ring2", INCIDENTAL)) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_supervised_training_is_the_same(place):
    for run, processes in (("sft1", 1), ("sft2", 2)):
        arguments = ["sft", "sft.yaml", *MESH, f"run_dir={run}"]
        code, said = launch(place, arguments, processes=processes)
        assert code == 0, said
    assert_close(place / "sft1", place / "sft2")
    assert_arrays_close(place / "sft1", place / "sft2")
    for name in ("model.safetensors", "config.json"):
        assert (place / "sft2" / "hf" / name).is_file()
