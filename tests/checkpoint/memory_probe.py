"""How much memory loading and saving take beside the parameters; test_memory.py runs it.

    python memory_probe.py DIRECTORY DEVICES VOCABULARY LAYERS DTYPE

writes a random bfloat16 checkpoint in shards of 20 MB, loads it as DTYPE (over fsdp=4, tensor=2
where DEVICES is 8), saves it again, and prints peaks in bytes as JSON. Pages of mapped files count.
"""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import sys
import threading
import time

DIRECTORY, DEVICES = pathlib.Path(sys.argv[1]), int(sys.argv[2])
VOCABULARY, LAYERS, DTYPE = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vrrl_jax import testing  # noqa: E402
from vrrl_jax.checkpoint import hf, names, weights  # noqa: E402
from vrrl_jax.models.policy import abstract_params  # noqa: E402
from vrrl_jax.parallel.mesh import make_mesh  # noqa: E402

SHARD = 20 * 10**6
WIDTH = 1024


def write_checkpoint() -> list[names.Tensor]:
    """Random weights, a shard at a time; returns what was written."""
    raw = testing.tiny_config()
    raw |= {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    raw |= {"num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 2816}
    raw |= {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    raw["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
    raw["vision_config"] |= {"out_hidden_size": WIDTH}
    DIRECTORY.mkdir()
    (DIRECTORY / "config.json").write_text(json.dumps(raw))
    policy = hf.load_policy(DIRECTORY)
    tensors = list(names.tensors(policy.config, dict(hf._flatten(abstract_params(policy)))))
    rng, weight_map = np.random.default_rng(0), {}
    for i, shard in enumerate(weights.plan_shards(tensors, 2, SHARD)):
        name = f"model-{i}.safetensors"
        random = {
            t.name: rng.integers(0, 0x7F00, t.shape, np.uint16).view(ml_dtypes.bfloat16)
            for t in shard
        }
        save_file(random, DIRECTORY / name)
        weight_map |= dict.fromkeys(random, name)
    (DIRECTORY / weights.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def memory(fields=("RssAnon", "RssFile", "RssShmem")) -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return sum(int(lines[field].split()[0]) for field in fields) * 1024


def settle() -> int:
    """Gives back what was freed, and says what is left."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory()


@contextlib.contextmanager
def watched(out: dict, name: str):
    """Puts into `out` what memory grew by at its highest and in the end, and the seconds."""
    stop = threading.Event()
    before = peak = settle()

    def watch():
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, memory())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    stop.set()
    thread.join()
    out[name] = {"peak": peak - before, "kept": settle() - before, "seconds": round(seconds, 2)}


def main() -> None:
    weights.SLACK = 4 * 2**20  # larger leaves go the way of large ones
    tensors = write_checkpoint()
    mesh = make_mesh(fsdp=4, tensor=2) if DEVICES == 8 else None
    policy = hf.load_policy(DIRECTORY, mesh=mesh)
    out = {}
    with watched(out, "load"):
        params = hf.load_params(DIRECTORY, policy, DTYPE)
        jax.block_until_ready(params)
    shards = [s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards]
    size = np.dtype(ml_dtypes.bfloat16 if DTYPE == "bfloat16" else DTYPE).itemsize
    out["params"] = sum(shards)
    out["largest"] = max(int(np.prod(t.shape)) for t in tensors) * size
    with watched(out, "save"):
        again = hf.save_pretrained(
            DIRECTORY / "again", policy, params, max_shard_size=SHARD, dtype="bfloat16"
        )
    shards = sorted(again.glob("model-*.safetensors"))
    out["shards"] = len(shards)
    written = {name: value for file in shards for name, value in load_file(file).items()}
    out["same"] = written.keys() == {tensor.name for tensor in tensors} and all(
        weights.mapped(stored).tobytes() == written[stored.name].tobytes()
        for stored in weights.open_all(DIRECTORY)
    )
    print(json.dumps(out))


main()
