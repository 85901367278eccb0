"""A compiled program's text (XLA's HLO) as computations of instructions, and sizes of shapes."""

from __future__ import annotations

import dataclasses
import math
import re

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAMED = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line: its name, the text of its result's shape, its operation and operands, the rest."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    text: str
    rest: str
    root: bool

    def called(self, attribute: str) -> str | None:
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found and found[1]


# --- shapes --------------------------------------------------------------------------------------


def elements(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, dimensions, layout) of every array in a shape."""
    return [
        (dtype, tuple(map(int, filter(None, sizes.split(",")))), layout)
        for dtype, sizes, layout in ARRAY.findall(shape)
    ]


def width(dtype: str) -> float:
    """Bytes of a number."""
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0


def size(shape: str, *, memory_only: bool = False) -> float:
    """Bytes of all arrays in a shape; or of those that don't lie on the chip itself."""
    return sum(
        math.prod(sizes) * width(dtype)
        for dtype, sizes, layout in elements(shape)
        if not (memory_only and re.search(r"S\([1-9]", layout))
    )


def balanced(text: str, start: int) -> int:
    """Index past the bracket that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def parts(shape: str) -> list[str]:
    """The entries of a tuple's shape; of an array, itself."""
    if not shape.startswith("("):
        return [shape]
    found, depth, last = [], 0, 1
    for i, c in enumerate(shape):
        depth += (c in "([{") - (c in ")]}")
        if (c == "," and depth == 1) or (c == ")" and depth == 0):
            found.append(shape[last:i].strip())
            last = i + 1
    return found


# --- the text ------------------------------------------------------------------------------------


def instruction(line: str) -> Instruction | None:
    """A line of a computation; None for anything else."""
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    at = head.end()
    end = balanced(line, at) if line[at] == "(" else line.find(" ", at)
    shape, rest = line[at:end], line[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = balanced(rest, opening)
    inner = rest[opening + 1 : closing - 1]
    operands = tuple(NAMED.findall(inner))
    return Instruction(
        head[2], shape, rest[:opening], operands, inner, rest[closing:], bool(head[1])
    )


Computation = dict[str, Instruction]


def computations(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name)."""
    found: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (read := instruction(line)):
            current[read.name] = read
    return found, entry


def constant(lines: dict[str, Instruction], name: str | Instruction | None) -> int | None:
    """The integer that a name stands for, copies of it included; None if it isn't constant."""
    line = lines.get(name) if isinstance(name, str) else name
    while line is not None and line.op in ("copy", "bitcast", "convert") and line.operands:
        line = lines.get(line.operands[0])
    if line is None or line.op != "constant" or not re.fullmatch(r"-?\d+", line.text):
        return None
    return int(line.text)
