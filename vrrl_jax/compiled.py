"""What `vrrl plan --topology` says: a recipe's programs, compiled for a slice of TPU chips that
needn't be there. Memory, work and communication are the compiler's; nothing is run or timed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from vrrl_jax import plan, roofline, topology
from vrrl_jax.hlo_cost import COLLECTIVES, Collective, Cost, costs
from vrrl_jax.roofline import Chip
from vrrl_jax.topology import Program, Result

NOTHING = Cost()
LARGEST = 4  # exchanges that are named one by one


@dataclasses.dataclass(frozen=True)
class Figures:
    """A compiled program, a device's part.

    Attributes:
      program: what was compiled.
      refused: what the compiler said where it found no room; all figures are 0 then.
      arguments, outputs, reused, temporaries, code: bytes; outputs count where they reuse
        arguments too.
      live: the most bytes that are alive at a time, as the compiler reckons; 0 if it doesn't say.
      held: bytes of the run that are no argument.
      cost: of a call.
      open_loop: whether it holds a loop whose length nobody knows, of which nothing is counted.
    """

    program: Program
    refused: str = ""
    arguments: int = 0
    outputs: int = 0
    reused: int = 0
    temporaries: int = 0
    code: int = 0
    live: int = 0
    held: int = 0
    cost: Cost = NOTHING
    open_loop: bool = False

    @property
    def peak(self) -> int:
        """Bytes of a device while it runs, what the run holds beside it included."""
        own = self.arguments + self.outputs - self.reused + self.temporaries + self.code
        return own + self.held

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Seconds that a call can't be faster than, one bound each for products, memory, links."""
        return {
            "products": self.cost.flops / chip.flops,
            "memory": self.cost.bytes / chip.bandwidth,
            "links": roofline.exchange_bound(self.cost.received, chip),
        }


class Bound(NamedTuple):
    """The largest of the bounds of a call, and which one that is."""

    seconds: float
    by: str


def bound(figures: Figures, chip: Chip) -> Bound:
    by, seconds = max(figures.bounds(chip).items(), key=lambda item: item[1])
    return Bound(seconds, by)


def figures_of(result: Result, held: plan.Memory) -> Figures:
    """Asks the compiled program; `held` are the run's own arrays."""
    program, beside = result.program, _held(held, result.program.beside)
    if result.compiled is None:
        return Figures(program, result.refused, held=beside)
    memory = result.compiled.memory_analysis()
    once, round_ = costs(result.compiled.as_text())
    sizes = {
        field: getattr(memory, f"{theirs}_size_in_bytes")
        for field, theirs in (
            ("arguments", "argument"),
            ("outputs", "output"),
            ("reused", "alias"),
            ("temporaries", "temp"),
            ("code", "generated_code"),
        )
    }
    live = getattr(memory, "peak_memory_in_bytes", 0)
    cost = once + round_.times(program.rounds)
    left = round_ != NOTHING and not program.rounds
    return Figures(program, held=beside, live=live, cost=cost, open_loop=left, **sizes)


def _held(memory: plan.Memory, names: tuple[str, ...]) -> int:
    trained = memory.gradients // 2  # those accumulated and those of a microbatch
    sizes = dataclasses.asdict(memory)
    sizes |= {"trained": trained, "frozen": memory.parameters - trained}
    return sum(sizes[name] for name in names)


def measure(
    make: Callable[[topology.Compile], Iterable[Program]],
    held: plan.Memory,
    say: Callable[[str], None] | None = None,
) -> list[Figures]:
    """Compiles one program after the other, each once, with a line to stderr for each.

    Args:
      make: gives the programs, given what compiles those that others depend on.
      held: what a run holds beside their arguments.
      say: takes a line; None writes to stderr.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    done: dict[str, Result] = {}

    def compile(program: Program) -> Result:
        if program.name not in done:
            say(f"compiling {program.name} ...")
            began = time.perf_counter()
            result = done[program.name] = topology.compile_program(program)
            verdict = f"no room: {result.refused}" if result.refused else "done"
            say(f"compiling {program.name}: {verdict}, {time.perf_counter() - began:.1f} s")
        return done[program.name]

    return [figures_of(compile(program), held) for program in make(compile)]


# --- text ----------------------------------------------------------------------------------------


def report(found: list[Figures], name: str, complete: bool, suggestion: str = "") -> list[str]:
    """The tables.

    Args:
      found: a program each.
      name: of the topology.
      complete: whether all programs of a step are there.
      suggestion: a mesh for a step that doesn't fit, as a line; "" for none.
    """
    chip = roofline.CHIPS[topology.chip_of(name)]
    usable = plan.USABLE * chip.memory
    fits = all(not f.refused and f.peak <= usable for f in found)
    lines = [
        f"Compiled for {name} by libtpu {_version('libtpu')} and jax {jax.__version__}. "
        "Compiled, not run.",
        "",
        *memory_table(found, usable),
        "",
        *work_table(found, chip),
        "",
        *exchange_table(found),
        "",
        *largest(found),
        "",
        *total(found, chip, usable, complete),
    ]
    if not fits and suggestion:
        lines += [suggestion]
    return lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"


def memory_table(found: list[Figures], usable: float) -> list[str]:
    """Gigabytes a device by kind."""
    kinds = ("arguments", "outputs", "reused", "temporaries", "code", "live", "held", "peak")
    lines = [f"{'GB a device':<12}" + "".join(f"{k:>12}" for k in kinds) + "  fits"]
    for f in found:
        if f.refused:
            lines.append(f"{f.program.name:<12}  no room: {f.refused}")
            continue
        cells = "".join(f"{getattr(f, kind) / 1e9:>12.3f}" for kind in kinds)
        lines.append(f"{f.program.name:<12}{cells}  {'yes' if f.peak <= usable else 'NO'}")
    return lines


def work_table(found: list[Figures], chip: Chip) -> list[str]:
    """Work of a device and call, and what it takes at the published figures."""
    heads = ("calls", "TFLOP", "GB moved", "GB received", "products ms", "memory ms", "links ms")
    lines = [f"{'a call':<12}" + "".join(f"{h:>12}" for h in heads) + "  bound by"]
    for f in found:
        if f.refused:
            continue
        times = [1e3 * t for t in f.bounds(chip).values()]
        work = (f.cost.flops / 1e12, f.cost.bytes / 1e9, f.cost.received / 1e9)
        cells = "".join(f"{x:>12.4g}" for x in (*work, *times))
        note = f", without {f.cost.kernels} kernel calls" if f.cost.kernels else ""
        note += ", without a loop of unknown length" if f.open_loop else ""
        by = bound(f, chip).by
        lines.append(f"{f.program.name:<12}{f.program.calls:>12}{cells}  {by}{note}")
    return lines


def exchange_table(found: list[Figures]) -> list[str]:
    """Collectives of a device and call: how many, and bytes of their results."""
    lines = [f"{'collectives':<12}" + "".join(f"{kind:>24}" for kind in COLLECTIVES)]
    for f in found:
        if f.refused:
            continue
        kinds = f.cost.by_kind()
        cells = "".join(
            f"{f'{c.count} x, {amount(c.bytes)}':>24}" if c else f"{'-':>24}"
            for c in map(kinds.get, COLLECTIVES)
        )
        lines.append(f"{f.program.name:<12}{cells}")
    return lines


def largest(found: list[Figures]) -> list[str]:
    """Where most of what is received comes from."""
    everywhere = [(f.program, c) for f in found for c in merged(f.cost.collectives)]
    everywhere.sort(key=lambda pair: -pair[0].calls * pair[1].received)
    return ["largest exchanges a step, received by a device"] + [
        f"  {p.name:<12}{amount(p.calls * c.received):>10}  {c.kind}, {c.count} a call: {c.source}"
        for p, c in everywhere[:LARGEST]
    ]


def merged(collectives: tuple[Collective, ...]) -> list[Collective]:
    """One entry for each kind and source."""
    found: dict[tuple[str, str], Collective] = {}
    for c in collectives:
        old = found.get((c.kind, c.source), Collective(c.kind, 0, 0, 0, c.source))
        found[c.kind, c.source] = dataclasses.replace(
            c,
            count=old.count + c.count,
            bytes=old.bytes + c.bytes,
            received=old.received + c.received,
        )
    return list(found.values())


def total(found: list[Figures], chip: Chip, usable: float, complete: bool) -> list[str]:
    """A step's sums."""
    compiled = [f for f in found if not f.refused]
    what = "step" if complete and len(compiled) == len(found) else "these programs"
    seconds = sum(f.program.calls * bound(f, chip).seconds for f in compiled)
    flops = sum(f.program.calls * f.cost.flops for f in compiled)
    received = sum(f.program.calls * f.cost.received for f in compiled)
    peak = max((f.peak for f in compiled), default=0)
    fits = peak <= usable and len(compiled) == len(found)
    return [
        f"{what}: at least {seconds:.3g} s at the published figures (a bound, not a time), "
        f"{flops / 1e12:,.4g} TFLOP and {amount(received)} received a device",
        f"memory: {peak / 1e9:.2f} GB of {usable / 1e9:.1f} usable: "
        + ("fits" if fits else "DOESN'T FIT"),
    ]


def amount(size: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
