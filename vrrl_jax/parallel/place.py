"""Which process of a run this is: from variables, from Slurm, or from a TPU slice."""

from __future__ import annotations

import glob
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import NamedTuple

MODES = ("auto", "off", "slurm", "tpu")


class Place(NamedTuple):
    """Which process this is.

    Attributes:
      found: where that is known from, for people.
      coordinator: "host:port" of process 0; None where jax finds the rest by itself.
      processes: how many there are.
      process: this one's number, from 0; None as above.
      devices: the host's accelerators that are this process's; None for all of them.
    """

    found: str
    coordinator: str | None
    processes: int
    process: int | None
    devices: tuple[int, ...] | None = None


def find(
    mode: str = "auto",
    environ: Mapping[str, str] = os.environ,
    tpu_hosts: Callable[[Mapping[str, str]], int] | None = None,
) -> Place | None:
    """Where this process stands among others, None where it is alone.

    auto looks at VRRL_COORDINATOR, VRRL_PROCESSES and VRRL_PROCESS_ID, then for a step of Slurm
    with several tasks, then for a TPU slice of several hosts. The other modes of `MODES` ask for
    one of them.

    Args:
      tpu_hosts: environment -> hosts of the slice; None asks the machine.

    Raises:
      ValueError: an unknown mode, incomplete or impossible variables, or nothing found of what
        was asked for.
    """
    if mode not in MODES:
        raise ValueError(f"distributed mode {mode!r}: one of {', '.join(MODES)}")
    if mode == "off":
        return None
    if mode == "auto" and (place := _told(environ)) is not None:
        return place if place.processes > 1 else None
    if mode in ("auto", "slurm"):
        place = _slurm(environ)
        if place is None and mode == "slurm":
            raise ValueError("not in a step of Slurm (no SLURM_STEP_NODELIST): start with srun")
        if place is not None:
            return place if place.processes > 1 else None
    cpu = environ.get("JAX_PLATFORMS", "").startswith("cpu")
    hosts = 1 if mode == "auto" and cpu else (tpu_hosts or _tpu_hosts)(environ)
    if hosts > 1 or mode == "tpu":
        return Place("TPU slice", None, hosts, None)
    return None


def _told(environ: Mapping[str, str]) -> Place | None:
    names = ("VRRL_COORDINATOR", "VRRL_PROCESSES", "VRRL_PROCESS_ID")
    values = [environ.get(name, "") for name in names]
    if not any(values):
        return None
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing: the variables {', '.join(names)} go together"
        )
    coordinator, *numbers = values
    processes, process = (number(name, text) for name, text in zip(names[1:], numbers, strict=True))
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise ValueError(f"VRRL_COORDINATOR={coordinator}: give host:port of process 0")
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f"VRRL_PROCESS_ID={process} of VRRL_PROCESSES={processes}: processes count from 0"
        )
    return Place("VRRL_COORDINATOR", coordinator, processes, process)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """A task of a Slurm step. One task a node has all GPUs of the node, several have one each."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
    if any(name not in environ for name in names):
        return None
    job, nodes, process = (environ[name] for name in names)
    # Of the step, which is what srun started: a job may have room for more tasks.
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1")
    # Jobs that share a node need ports of their own, below those that systems hand out.
    port = environ.get("VRRL_PORT") or 20_000 + int(job) % 10_000
    crowded = re.search(r"(?<![\dx(])(?!1\b)\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    seen = [d for d in environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",") if d]
    own = (number("SLURM_LOCALID", environ.get("SLURM_LOCALID", "0")),)
    return Place(
        "Slurm",
        f"{first_node(nodes)}:{port}",
        number("SLURM_STEP_NUM_TASKS", tasks),
        number("SLURM_PROCID", process),
        own if crowded and len(seen) > 1 else None,
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm list such as "node[007-009,012],other3"."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r}: no host in it")
    name, number, rest = match.groups()
    return name + (number or "") + rest


def _tpu_hosts(environ: Mapping[str, str]) -> int:
    """Hosts of the TPU slice that this machine belongs to; 1 where it belongs to none."""
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if names:
        return len(names.split(",")) * slices
    if "TPU_SKIP_MDS_QUERY" in environ or not (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
    ):
        return slices
    # What a TPU VM of Google's knows of itself. Elsewhere the name doesn't resolve.
    host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    try:
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return len(answer.read().decode().split(",")) * slices
    except OSError:
        return slices


def number(name: str, text: str) -> int:
    """A variable's value, 0 or above; ValueError where it is none."""
    if not text.isdecimal():
        raise ValueError(f"{name}={text}: not a number")
    return int(text)
