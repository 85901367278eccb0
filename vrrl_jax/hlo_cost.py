"""What a compiled program does on one device, read from its text: collectives, the work of matrix
products, memory traffic, and how often loops run.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs; here a body counts
as often as the text says. Two counts are kept: what a call does once, and what it does a round of
a loop whose length the text doesn't tell (drawing tokens until every row has stopped).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from vrrl_jax import hlo
from vrrl_jax.hlo import NAMED, Instruction, constant, elements, parts, size

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing by itself: names, views, and what is counted where it is called or started.
FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
        *("conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"),
        *("copy-done", "async-done", "async-update", "iota", "broadcast"),
    )
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind between devices.

    Attributes:
      kind: of `COLLECTIVES`.
      count: a call.
      bytes: of the results on a device, all of them together.
      received: bytes that a device must get from others for them, at the least.
      source: where the program asks for it, as far as the text says.
      channel: its number in the text. One that runs beside several products is written down beside
        each of them.
    """

    kind: str
    count: int
    bytes: float
    received: float
    source: str = ""
    channel: str = dataclasses.field(default="", compare=False)

    def times(self, n: int) -> Collective:
        return dataclasses.replace(
            self, count=n * self.count, bytes=n * self.bytes, received=n * self.received
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does.

    Attributes:
      flops: of matrix products, 2 a multiply-add, and what custom kernels say of themselves.
      bytes: read from and written to its memory; what stays on the chip isn't counted.
      collectives: one entry a place in the text.
      kernels: calls of custom kernels that don't say what work they do.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    kernels: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.collectives + other.collectives,
            self.kernels + other.kernels,
        )

    def times(self, n: int) -> Cost:
        if n == 0:
            return Cost()
        several = tuple(c.times(n) for c in self.collectives)
        return Cost(n * self.flops, n * self.bytes, several, n * self.kernels)

    @property
    def received(self) -> float:
        return sum(c.received for c in self.collectives)

    def by_kind(self) -> dict[str, Collective]:
        """One entry a kind, in the order of `COLLECTIVES`."""
        found: dict[str, Collective] = {}
        for kind in COLLECTIVES:
            mine = [c for c in self.collectives if c.kind == kind]
            if mine:
                sums = (sum(getattr(c, f) for c in mine) for f in ("count", "bytes", "received"))
                found[kind] = Collective(kind, *sums)
        return found


def costs(text: str) -> tuple[Cost, Cost]:
    """(what a call does once, what it does a round of loops of unknown length).

    Of a branch, the one with the least work is counted.
    """
    return Reader(text).total()


class Reader:
    """The computations of a program, by name, and what each of them costs."""

    def __init__(self, text: str):
        self.computations, self.entry = hlo.computations(text)
        self.cost = functools.cache(self._cost)

    def total(self) -> tuple[Cost, Cost]:
        return self.cost(self.entry)

    def _cost(self, name: str) -> tuple[Cost, Cost]:
        once, inside, seen = Cost(), Cost(), set()
        for line in self.computations.get(name, {}).values():
            if line.op == "while":
                body, deeper = self.cost(line.called("body"))
                rounds = self.rounds(name, line)
                if rounds is None:
                    inside += body + deeper
                else:
                    once, inside = once + body.times(rounds), inside + deeper.times(rounds)
            elif line.op == "conditional":
                names = NAMED.findall(re.sub(r"metadata=.*", "", line.rest))
                branches = [self.cost(b) for b in names if b in self.computations]
                if branches:
                    least = min(branches, key=lambda b: (b[0].flops, b[0].bytes))
                    once, inside = once + least[0], inside + least[1]
            elif line.op in ("call", "async-start"):
                more = self.cost(line.called("to_apply") or line.called("calls") or "")
                once, inside = once + more[0], inside + more[1]
            else:
                more = self.one(name, line)
                new = tuple(c for c in more.collectives if not c.channel or c.channel not in seen)
                seen |= {c.channel for c in new}
                once += dataclasses.replace(more, collectives=new)
        return once, inside

    def one(self, where: str, line: Instruction) -> Cost:
        """An instruction that calls nothing but what is fused into it."""
        inner = line.called("calls") if line.op == "fusion" else None
        found = self.exchanged(inner, line) if inner else self.exchange(where, line)
        kernel = line.op == "custom-call" and "tpu_custom_call" in line.rest
        said = re.search(r'"cost_estimate":\{"flops":"?(\d+)', line.rest) if kernel else None
        flops = self.products(inner) if inner else self.product(where, line)
        return Cost(
            flops=flops + (int(said[1]) if said else 0),
            bytes=self.traffic(where, line),
            collectives=found,
            kernels=int(kernel and said is None),
        )

    # --- communication ---

    def exchange(self, where: str, line: Instruction) -> tuple[Collective, ...]:
        kind = line.op.removesuffix("-start")
        if kind not in COLLECTIVES:
            return ()
        shape = line.shape
        if line.op.endswith("-start") and len(parts(shape)) > 1 and kind != "all-reduce":
            shape = parts(shape)[1]  # what goes in stands before what comes out
        return (collective(kind, size(shape), line),)

    def exchanged(self, inner: str, outer: Instruction) -> tuple[Collective, ...]:
        """Those fused with something else; a sum of which a slice is kept is a reduce-scatter."""
        lines = self.computations.get(inner, {})
        found: list[Collective] = []
        for line in lines.values():
            if line.op == "fusion":
                found += self.exchanged(line.called("calls"), line)
            mine = self.exchange(inner, line)
            sliced = any(
                user.op == "dynamic-slice" and line.name in user.operands for user in lines.values()
            )
            if mine and line.op == "all-reduce" and sliced:
                mine = (collective("reduce-scatter", size(outer.shape), line),)
            found += mine
        return tuple(found)

    # --- work ---

    def products(self, name: str | None) -> float:
        """FLOPs of what is fused."""
        total = 0.0
        for line in self.computations.get(name or "", {}).values():
            total += self.product(name, line)
            if line.op == "fusion":
                total += self.products(line.called("calls"))
        return total

    def product(self, where: str, line: Instruction) -> float:
        if line.op not in ("dot", "convolution"):
            return 0.0
        shape = lambda i: self.shape(where, line.operands[i])
        ((_, out, _),) = elements(line.shape)[:1]
        left, right = (elements(shape(i))[0][1] for i in (0, 1))
        if line.op == "dot":
            dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
            contracted = [left[int(d)] for d in dims[1].split(",") if d] if dims else []
            return 2.0 * math.prod(out) * math.prod(contracted)
        return convolution(left, right, out, line.rest)

    def shape(self, where: str, name: str) -> str:
        line = self.computations[where].get(name)
        return line.shape if line else ""

    # --- memory ---

    def traffic(self, where: str, line: Instruction) -> float:
        """Bytes that an instruction moves to and from memory: results and operands, of which only
        the slices that are taken or replaced."""
        if line.op in FREE or line.op.endswith("-done"):
            return 0.0
        if line.op.removesuffix("-start") in COLLECTIVES or line.op == "copy-start":
            whole = parts(line.shape)[0 if line.shape.startswith("(") else -1]
            return 2 * size(whole, memory_only=True)
        lines, given = self.computations[where], list(line.operands)
        inner = self.computations.get(line.called("calls") or "", {}) if line.op == "fusion" else {}
        written = size(line.shape, memory_only=True)
        root = next((i for i in inner.values() if i.root), line)
        if root.op == "dynamic-update-slice" and len(root.operands) > 1:
            held = inner or lines
            update = held.get(root.operands[1])
            written = min(written, size(update.shape) if update else written)
        read = 0.0
        for i, name in enumerate(given):
            if name not in lines:
                continue
            amount = size(lines[name].shape, memory_only=True)
            read += min(amount, self.taken(inner, i) if inner else self.direct(line, i))
        return read + written

    def taken(self, inner: dict[str, Instruction], index: int) -> float:
        """What a fusion reads of its operand number `index`: all of it, or slices."""
        mine = next(
            (p for p in inner.values() if p.op == "parameter" and p.text == str(index)), None
        )
        if mine is None:
            return math.inf
        names, total = {mine.name}, 0.0
        for line in inner.values():  # in order: users stand below
            if not names & set(line.operands):
                continue
            if line.op in ("bitcast", "reshape") and not line.root:
                names.add(line.name)
            else:
                total += self.direct(line, line.operands.index((names & set(line.operands)).pop()))
        return total

    def direct(self, line: Instruction, index: int) -> float:
        if line.op in ("dynamic-slice", "slice", "gather") and index == 0:
            return size(line.shape)
        if line.op == "dynamic-update-slice" and index == 0:
            return 0.0
        return math.inf

    # --- loops ---

    def rounds(self, where: str, line: Instruction) -> int | None:
        """How often a loop runs: as the text says, or from a counter that is compared with a
        constant; None where neither tells."""
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.rest)
        if said:
            return int(said[1])
        condition = self.computations.get(line.called("condition") or "", {})
        body = self.computations.get(line.called("body") or "", {})
        root = next((i for i in condition.values() if i.root), None)
        if root is None or "direction=LT" not in root.rest or len(root.operands) != 2:
            return None
        counter, bound = (condition.get(name) for name in root.operands)
        if counter is None or counter.op != "get-tuple-element":
            return None
        number = re.search(r"index=(\d+)", counter.rest)
        limit = constant(condition, bound)
        index = int(number[1]) if number else -1
        after = next((i for i in body.values() if i.root), None)
        before = self.computations[where].get(line.operands[0]) if line.operands else None
        if limit is None or after is None or before is None or before.op != "tuple":
            return None
        step = body.get(after.operands[index]) if index < len(after.operands) else None
        start = constant(self.computations[where], before.operands[index])
        more = next(
            (c for n in (step.operands if step else ()) if (c := constant(body, n)) is not None),
            None,
        )
        if step is None or step.op != "add" or start is None or not more or more < 1:
            return None
        return max(0, -(-(limit - start) // more))


# --- single instructions -------------------------------------------------------------------------


def collective(kind: str, result: float, line: Instruction) -> Collective:
    """An exchange whose result takes so many bytes on a device.

    Of n devices, one gets (n - 1) / n of a gathered or exchanged result from others, n - 1 parts
    of the size of a scattered sum, and both for a sum that all of them get.
    """
    n = group(line.rest)
    away = (n - 1) / n
    received = {
        "all-gather": result * away,
        "all-to-all": result * away,
        "all-reduce": 2 * result * away,
        "reduce-scatter": result * (n - 1),
        "collective-permute": result,
    }[kind]
    source = re.search(r'op_name="([^"]*)"', line.rest)
    channel = re.search(r"channel_id=(\d+)", line.rest)
    names = (found[1] if found else "" for found in (source, channel))
    return Collective(kind, 1, result, received, *names)


def group(rest: str) -> int:
    """How many devices exchange with one another; 2, the fewest, where the text doesn't tell."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    folded = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    if folded:
        return int(folded[1])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest)
    if meshed:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
        return math.prod(int(sizes.get(a, 1)) for a in re.findall(r"'([^']+)'", meshed[2])) or 2
    return 2


def convolution(left: tuple, right: tuple, out: tuple, rest: str) -> float:
    """FLOPs of a convolution, as which TPUs write products: 2 for each pair of numbers that meet,
    without those in padding and between dilated entries."""
    dims = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if dims is None:
        return 0.0
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", rest) or "")[1]
                  if "window={" in rest else ""))  # fmt: skip
    inputs, kernel, output = dims.groups()
    total = 2.0 * right[kernel.index("i")] * out[output.index("b")] * out[output.index("f")]
    for axis in sorted(c for c in output if c.isdigit()):
        i = int(axis)
        get = lambda name, default, i=i: (
            window[name].split("x")[i] if name in window else str(default)
        )
        low = int(get("pad", "0_0").split("_")[0])
        total *= meetings(
            left[inputs.index(axis)],
            right[kernel.index(axis)],
            out[output.index(axis)],
            (int(get("stride", 1)), low, int(get("lhs_dilate", 1)), int(get("rhs_dilate", 1))),
        )
    return total


@functools.cache
def meetings(length: int, window: int, out: int, steps: tuple[int, int, int, int]) -> int:
    """Pairs (position of the result, entry of the window) that meet an entry of the input."""
    stride, low, spread, gap = steps
    total = 0
    for entry in range(window):
        at = np.arange(out) * stride + entry * gap - low
        total += int(((at >= 0) & (at <= (length - 1) * spread) & (at % spread == 0)).sum())
    return total
