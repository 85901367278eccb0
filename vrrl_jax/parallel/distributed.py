"""Several processes in one run, such as one a host.

All of them run the same host program on the same data: they draw the same questions, read the same
replies, take the same decisions, and meet in the programs that run on the devices of all. So what
is decided on a host has to come out alike everywhere, which `agree` checks, and the first process
alone writes and speaks. Without other processes every function here does nothing and costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np

from vrrl_jax.parallel.place import Place, find, number

# Exit codes that a launcher answers by starting the run again with --resume.
PREEMPTED = 75  # stopped by SIGTERM with a checkpoint saved; EX_TEMPFAIL of sysexits.h
LOST = 76  # another process is gone, or the devices are

TEXT = 4096  # bytes of a text that goes round

_stop = threading.Event()
_word: subprocess.Popen | None = None


class Preempted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


class Disagreement(RuntimeError):
    """Processes of a run decided differently."""


class Apart(TimeoutError):
    """The processes of a run didn't come together."""


# --- start and end -----------------------------------------------------------------------------


def start(mode: str = "auto", environ: Mapping[str, str] = os.environ) -> Place | None:
    """Joins the other processes, if there are any; call it before anything asks jax for a device.

    VRRL_START_SECONDS (300) is how long to wait for the others, VRRL_HEARTBEAT_SECONDS (100) how
    long one may be silent before all end.

    Raises:
      ValueError: as `find`.
      Apart: not all processes came, or they can't reach process 0.
    """
    global _word
    place = find(mode, environ)
    if place is None:
        return None
    seconds = number("VRRL_START_SECONDS", environ.get("VRRL_START_SECONDS") or "300")
    silence = number("VRRL_HEARTBEAT_SECONDS", environ.get("VRRL_HEARTBEAT_SECONDS") or "100")
    own = {} if place.coordinator is None else {
        "coordinator_address": place.coordinator,
        "num_processes": place.processes,
        "process_id": place.process,
        "local_device_ids": None if place.devices is None else list(place.devices),
        "cluster_detection_method": "deactivate",
    }  # fmt: skip
    who = "this process"
    if place.process is not None:
        who = f"process {place.process} of {place.processes}"
    apart = (
        f"the processes (known from: {place.found}) didn't come together at "
        f"{place.coordinator or 'the first worker'} within {seconds} seconds. Start all of them "
        "with the same command; the first one's port must be free there and open to the others; "
        "VRRL_START_SECONDS waits longer"
    )
    word = last_word(
        f"vrrl: {who}: {apart}",
        f"vrrl: {who} ended without a word, killed or by jax because another one was lost. The "
        "run's last checkpoint is whole: start all processes again with --resume",
    )
    # On CPU two programs under way may talk at the same time, in another order on each process, and
    # take each other's messages. Accelerators run them one after another anyway.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            **own,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=seconds,
        )
    except RuntimeError as error:
        close(word)
        raise Apart(f"{who}: {apart} ({_first_line(error)})") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax would only take note of it
    word.stdin.write(b"joined\n")
    word.stdin.flush()
    _word = word
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one process speaks, to the end
    return place


def last_word(apart: str, lost: str) -> subprocess.Popen:
    """A small process that speaks on stderr should this one be killed: `apart` until it is told
    "joined", `lost` until it is told "end".

    jax ends a process that finds no others, or loses them, by abort, which nothing in Python sees.
    """
    script = (
        'trap "" TERM INT HUP; text=$0; read -r line; '
        'if [ "$line" = joined ]; then text=$1; read -r line; fi; '
        '[ "$line" = end ] || echo "$text" >&2'
    )
    return subprocess.Popen(["sh", "-c", script, apart, lost], stdin=subprocess.PIPE)


def close(word: subprocess.Popen) -> None:
    """Ends it without a word."""
    with contextlib.suppress(OSError):
        word.stdin.write(b"end\n")
        word.stdin.close()
    word.wait()


def end(code: int) -> int:
    """Leaves the other processes; on failure the process ends here, for they may be waiting."""
    if _word is None:
        return code
    orderly = code in (0, PREEMPTED)
    if orderly:
        jax.distributed.shutdown()  # waits for the others: they get as far
    close(_word)
    if not orderly:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # An orderly exit would wait for the others, who may be waiting for this one.
        os._exit(code)
    return code


def joined() -> bool:
    """Whether `start` found other processes."""
    return _word is not None


def failed(error: Exception, say: Callable[[str], None]) -> int:
    """The exit code of a run that ends by an error of jax, or of anybody's code; says what to do.

    What fails on a device is mostly that another process is gone.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return 1
    say(
        f"a program on the devices failed: {_first_line(error)}. If that is the connection, "
        "another process was lost, and its own output says why. The run's last checkpoint is "
        "whole: start all processes again with --resume"
    )
    return LOST


def several() -> bool:
    """Whether the run has several processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def stream() -> TextIO | None:
    """Where progress goes: None, which is stderr, from the first process, nowhere from others."""
    return None if first() else open(os.devnull, "w")


def me() -> str:
    """This process, for people."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- together ----------------------------------------------------------------------------------


def broadcast(text: str) -> str:
    """The first process's text, on every one.

    Raises:
      ValueError: it is longer than `TEXT` bytes.
    """
    if not several():
        return text
    from jax.experimental import multihost_utils

    data = text.encode()
    if len(data) > TEXT:
        raise ValueError(f"{len(data)} bytes of text, {TEXT} go round: {text[:80]}...")
    padded = np.frombuffer(data.ljust(TEXT, b"\0"), np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b"\0").decode()


def of_first(tree: Any) -> Any:
    """The first process's arrays, on every one: for what a machine may round in its own way.

    Args:
      tree: of numpy arrays, alike in shape and dtype everywhere.
    """
    if not several():
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def gathered(numbers: np.ndarray) -> np.ndarray:
    """Small arrays of all processes: [processes, ...]; each is to have the same shape."""
    if not several():
        return numbers[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(numbers)


def agree(where: str, **decisions: Any) -> None:
    """Checks that every process decided alike; all of them must call it.

    Args:
      where: what is being done, such as "step 3", for the message.
      decisions: numbers, texts, numpy arrays, dataclasses, and sequences and dicts of these.

    Raises:
      Disagreement: on all processes; names the decisions and the processes that differ from the
        first one.
    """
    if not several():
        return
    found = gathered(np.array([digest(value) for value in decisions.values()], np.uint32))
    strange = (found != found[:1]).any(2)  # [processes, decisions]
    if not strange.any():
        return
    names = [name for name, odd in zip(decisions, strange.any(0), strict=True) if odd]
    who = np.flatnonzero(strange.any(1)).tolist()
    raise Disagreement(
        f"{where}: {', '.join(names)} of process {', '.join(map(str, who))} differ from those of "
        f"process 0 ({me()} speaking). Every process must see the same files, versions and "
        "settings; rewards and environments may not depend on time, on unseeded randomness or on "
        "the order of a set (PYTHONHASHSEED). Go on from the last checkpoint with --resume"
    )


def agree_on_error(error: Exception | None) -> None:
    """What failed on the first process fails on all; what failed here alone fails here alone.

    Raises:
      OSError: with the first process's message.
    """
    said = broadcast("" if error is None else str(error)[:500])
    if first() and error is not None:
        raise error
    if said:
        raise OSError(said)


def digest(value: Any) -> tuple[int, int]:
    """64 bits of a value's content, as two uint32."""
    found = hashlib.sha256()
    _feed(found, value, {})
    whole = found.digest()
    return int.from_bytes(whole[:4], "little"), int.from_bytes(whole[4:8], "little")


def _feed(found: Any, value: Any, known: dict[int, tuple[Any, int]]) -> None:
    """Adds a value's content to a hash; large arrays by a checksum, one that comes again once."""
    if isinstance(value, np.ndarray):
        if id(value) not in known:
            known[id(value)] = (
                value,
                zlib.crc32(np.ascontiguousarray(value).data.cast("B") if value.size else b""),
            )
        found.update(f"{value.dtype}{value.shape}{known[id(value)][1]};".encode())
    elif isinstance(value, Mapping):
        _feed(found, [(key, value[key]) for key in sorted(value)], known)
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}".encode())
        for item in value:
            _feed(found, item, known)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _feed(found, getattr(value, field.name), known)
    elif value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        plain = value.item() if isinstance(value, np.generic) else value
        found.update(f"{plain!r};".encode())
    else:
        raise TypeError(f"can't compare a {type(value).__name__} over processes")


# --- being asked to stop -----------------------------------------------------------------------


@contextlib.contextmanager
def stops_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends nothing by itself: a run asks `stopping` after every step."""
    _stop.clear()
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    except ValueError:  # not in the main thread: nobody's business but the caller's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stopping() -> bool:
    """Whether any process was asked to stop; all of them must ask."""
    return bool(gathered(np.array([_stop.is_set()])).any())
