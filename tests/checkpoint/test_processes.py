"""Two processes load a checkpoint over a mesh of both and write it again."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "models" / "goldens"
WORKER = """
import sys
import jax
port, process, source, target = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
from vrrl_jax.checkpoint import hf, weights
from vrrl_jax.parallel.mesh import make_mesh
weights.SLACK = 2048  # some leaves this way, some that
policy, params = hf.load_pretrained(source, mesh=make_mesh(fsdp=2, tensor=2))
assert not params["layers"]["q_proj"]["kernel"].is_fully_addressable
hf.save_pretrained(target, policy, params, max_shard_size=50_000)
assert hf.load_pretrained(target, mesh=policy.mesh)[0].mesh == policy.mesh
jax.distributed.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl_tiny", "qwen3_vl_tiny"])
def test_two_processes_write_what_they_read(tmp_path, family):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    out = tmp_path / "out"
    arguments = [str(GOLDENS / family), str(out)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(port), str(i), *arguments],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    wanted = load_file(GOLDENS / family / "model.safetensors")
    shards = list(out.glob("model-*.safetensors"))
    found = {name: value for file in shards for name, value in load_file(file).items()}
    assert len(shards) > 3
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert not list(out.glob("*.part"))
