"""What loading and saving hold in memory beside the parameters, measured in processes of their own.

On a CPU the devices' memory is the host's too: the bounds hold for both together.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROBE = pathlib.Path(__file__).with_name("memory_probe.py")
SLACK = 40 * 2**20  # compiled programs among others
# What is freed goes back at once: else glibc keeps some for later, more with every thread.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")


@pytest.mark.parametrize(
    ("devices", "vocabulary", "layers", "dtype"),
    [
        (8, 8192, 4, "bfloat16"),
        pytest.param(1, 32768, 8, "bfloat16", marks=pytest.mark.slow),
        pytest.param(1, 32768, 8, "float32", marks=pytest.mark.slow),
        pytest.param(8, 32768, 8, "float32", marks=pytest.mark.slow),
    ],
)
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, devices, vocabulary, layers, dtype):
    arguments = [str(a) for a in (tmp_path / "source", devices, vocabulary, layers, dtype)]
    command = [sys.executable, str(PROBE), *arguments]
    env = os.environ | MALLOC | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["same"] and found["shards"] > 3
    bound = 2 * found["largest"] + SLACK
    # Else a loader that holds the whole model would pass.
    assert bound < 0.8 * found["params"]
    assert found["load"]["peak"] - found["params"] <= bound
    assert found["load"]["kept"] - found["params"] <= SLACK
    assert found["save"]["peak"] <= bound
    assert found["save"]["kept"] <= SLACK / 2  # no copies stay with the parameters
