"""What the benchmarks share: interleaved timing, bandwidth and peak of the device, tables, JSON.

A figure is the median of a few repetitions with the lowest and the highest beside it. Contenders
take turns, so that other programs' load falls on all of them. On a CPU the clock is the process's
own CPU time: on a busy machine wall time tells how busy the others were. Both are reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NOT_MEASURED = "not measured"
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def settle(device: str, threads: int) -> None:
    """Chooses the device and the number of threads, before any program runs.

    Args:
      device: "cpu" or "gpu".
      threads: of both sides on a CPU; 0 leaves them alone.

    Raises:
      SystemExit: there is no such device; nothing is measured, and nothing is estimated.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Two libraries share the device's memory: neither may take it all at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        if threads:
            os.environ["NPROC"] = str(threads)  # how many threads XLA's CPU client starts
            os.environ["OMP_NUM_THREADS"] = str(threads)
        if threads == 1:
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        return
    try:
        jax.devices("gpu")
    except RuntimeError as error:
        raise SystemExit(f"--device gpu: {NOT_MEASURED}, JAX sees no GPU ({error})") from None


# --- timing --------------------------------------------------------------------------------------


class Span(NamedTuple):
    """Seconds by the clock on the wall and by the process's own."""

    wall: float
    cpu: float

    def __add__(self, other):
        return Span(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other):
        return Span(self.wall - other.wall, self.cpu - other.cpu)


ZERO = Span(0.0, 0.0)
Stages = dict[str, Span]


def now() -> Span:
    return Span(time.perf_counter(), time.process_time())


def timed(what: Callable[[], Any]) -> tuple[Span, Any]:
    """(seconds, result), the result's arrays ready."""
    began = now()
    result = jax.block_until_ready(what())
    return now() - began, result


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a few figures."""

    median: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """The range as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def interleaved(
    contenders: dict[str, Callable[[], Stages]], repetitions: int, warm: int = 1
) -> dict[str, list[Stages]]:
    """Each contender's stages in every repetition; a round each, the first one moving on.

    Args:
      contenders: name -> one run, which returns its seconds by stage.
      warm: rounds before, which compile and aren't counted.
    """
    names = list(contenders)
    for _ in range(warm):
        for name in names:
            contenders[name]()
    found: dict[str, list[Stages]] = {name: [] for name in names}
    for i in range(repetitions):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found


def by_stage(runs: Sequence[Stages], clock: str) -> dict[str, Spread]:
    """Spread of each stage, 0 in runs without it, and of their sum, "total"."""
    pick = lambda span: getattr(span, clock)
    names = dict.fromkeys(name for run in runs for name in run)
    out = {name: spread(pick(run.get(name, ZERO)) for run in runs) for name in names}
    return out | {"total": spread(sum(pick(s) for s in run.values()) for run in runs)}


def report(runs: Sequence[Stages]) -> dict[str, Any]:
    """Seconds of stages by both clocks, for JSON."""
    as_dict = lambda found: {k: dataclasses.asdict(v) for k, v in found.items()}
    return {clock: as_dict(by_stage(runs, clock)) for clock in ("cpu", "wall")}


class Watch:
    """Seconds spent in named functions while modules' attributes are replaced by timed ones.

    A function's seconds exclude those of timed functions that it calls. Results are waited for:
    otherwise a program's time would be that of whoever reads its result.
    """

    def __init__(self):
        self.stages: Stages = {}
        self.calls: dict[str, int] = {}
        self._inner: list[Span] = []

    def wrap(self, stage: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self._inner.append(ZERO)
            span, result = timed(lambda: function(*args, **kwargs))
            own = span - self._inner.pop()
            self.stages[stage] = self.stages.get(stage, ZERO) + own
            self.calls[stage] = self.calls.get(stage, 0) + 1
            if self._inner:
                self._inner[-1] = self._inner[-1] + span
            return result

        return call

    @contextlib.contextmanager
    def watching(self, targets: Sequence[tuple[Any, str, str]]):
        """Within it, (module, attribute, stage) are timed."""
        kept = [(module, name, getattr(module, name)) for module, name, _ in targets]
        for module, name, stage in targets:
            setattr(module, name, self.wrap(stage, getattr(module, name)))
        try:
            yield self
        finally:
            for module, name, function in reversed(kept):
                setattr(module, name, function)


# --- the device ----------------------------------------------------------------------------------


def bandwidth(clock: str, megabytes: int = 128, repetitions: int = 5) -> dict[str, float]:
    """Bytes/s of a copy, a triad (a + 3 b) and a sum, the fastest of a few: what a program that
    does nothing else gets out of memory. "best" is the highest of them."""
    n = megabytes * 2**20 // 4
    a, b = (jnp.full(n, value, jnp.float32) for value in (1.0, 2.0))
    # Without an operation XLA gives back its argument, and nothing is copied.
    programs = {
        "copy": (jax.jit(lambda a, b: -a), 2),
        "triad": (jax.jit(lambda a, b: a + 3.0 * b), 3),
        "read": (jax.jit(lambda a, b: jnp.dot(a, b)), 2),
    }
    found = {}
    for name, (program, passes) in programs.items():
        seconds = _fastest(lambda program=program: program(a, b), clock, repetitions)
        found[name] = passes * 4 * n / seconds
    if jax.default_backend() == "cpu":
        source, target = np.ones(n, np.float32), np.empty(n, np.float32)
        seconds = _fastest(lambda: np.copyto(target, source), clock, repetitions)
        found["numpy copy"] = 8 * n / seconds
    return found | {"best": max(found.values())}


def peak_flops(
    dtype: str, clock: str, torch: Any = None, size: int = 1024, repetitions: int = 5
) -> dict[str, float]:
    """FLOP/s of a large square product, the fastest of a few, by each library that is at hand."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    found = {"jax": 2 * size**3 / _fastest(lambda: product(a, a), clock, repetitions)}
    if torch is not None:
        on = "cuda" if jax.default_backend() == "gpu" else "cpu"
        b = torch.ones((size, size), dtype=getattr(torch, dtype), device=on)

        def multiply():
            torch.matmul(b, b)
            if on == "cuda":
                torch.cuda.synchronize()

        found["torch"] = 2 * size**3 / _fastest(multiply, clock, repetitions)
    return found | {"best": max(found.values())}


def _fastest(what: Callable[[], Any], clock: str, repetitions: int) -> float:
    timed(what)
    return max(1e-9, min(getattr(timed(what)[0], clock) for _ in range(repetitions)))


def peak_memory() -> int | None:
    """Most bytes in use so far by JAX's allocator; None where the backend doesn't tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def available_memory() -> int:
    """Bytes that a program may still take."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemAvailable"] * 1024


def machine(threads: int) -> dict[str, Any]:
    """What a figure was measured on."""
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or "all",
        "load": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# --- output --------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers to three digits, None as a dash."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(shown(cell) for cell in row)} |" for row in lines)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Spread):
        return f"{number(value.median)} ({number(value.low)} .. {number(value.high)})"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Three digits, without an exponent where that is readable."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def emit(found: dict[str, Any], path: str | None, tables: Sequence[str]) -> None:
    """Tables, then one line of JSON; or the JSON into a file."""
    for text in tables:
        print(text, end="\n\n", flush=True)
    line = json.dumps(found, default=_plain)
    if path is None:
        print(line)
    else:
        pathlib.Path(path).write_text(line + "\n", encoding="utf-8")


def reason(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in JSON")


def add_options(parser: Any, repetitions: int = 5) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeat", type=int, default=repetitions, help="timed repetitions")
    parser.add_argument("--threads", type=int, default=1, help="of both on a CPU; 0: all cores")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="of tables; default by device")
    parser.add_argument("--json", metavar="FILE", help="where the JSON goes; default: last line")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, in seconds")


def clock_of(options: Any) -> str:
    """CPU time on a CPU: a device that works beside the process has none."""
    return options.clock or ("cpu" if options.device == "cpu" else "wall")
