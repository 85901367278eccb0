"""The order in which training meets its examples: a mixture of sources without end.

What stands at a position follows from the seed and the position alone, so a run goes on from a
number.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

# A cycle's longest: weights whose ratio needs more positions are rounded to it.
MAX_CYCLE = 2**16


class Place(NamedTuple):
    """Where an example comes from.

    Attributes:
      source: index into the mixture's sources.
      row: index into that source.
      epoch: how often the source was gone through before, from 0.
    """

    source: int
    row: int
    epoch: int


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """An endless stream of examples, at any position without those before it.

    Positions come in cycles in each of which every source has its share exactly, spread evenly.
    Each source is gone through in a new order every epoch.

    Attributes:
      sources: (name, examples), at least one; names differ and none is empty.
      weights: of the sources, above zero; empty: their lengths. Ratios are kept exactly where a
        cycle of `MAX_CYCLE` positions allows it.
      seed: of all orders, at least 0.
      host, hosts: this stream holds the positions host, host + hosts, ... of the whole one.

    Raises:
      ValueError: any of this isn't so.
    """

    sources: tuple[tuple[str, Sequence], ...]
    weights: tuple[float, ...] = ()
    seed: int = 0
    host: int = 0
    hosts: int = 1

    def __post_init__(self):
        names = [name for name, _ in self.sources]
        empty = [name for name, items in self.sources if not len(items)]
        if not names or empty or len(set(names)) < len(names):
            raise ValueError(
                f"sources need examples and names of their own: {names}, empty {empty}"
            )
        if self.weights and len(self.weights) != len(names):
            raise ValueError(f"{len(self.weights)} weights for {len(names)} sources")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be above zero, got {self.weights}")
        if self.seed < 0 or not 0 <= self.host < self.hosts:
            raise ValueError(f"no seed {self.seed}, or no host {self.host} of {self.hosts}")
        lengths = [len(items) for _, items in self.sources]
        object.__setattr__(self, "shares", shares(self.weights or lengths))
        object.__setattr__(self, "firsts", (0, *itertools.accumulate(lengths)))
        object.__setattr__(self, "_orders", {})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_orders": {}}

    def at(self, position: int) -> Place:
        """What stands at a position of this host's stream, from 0.

        Raises:
          IndexError: a negative position.
        """
        if position < 0:
            raise IndexError(f"position {position} is before the stream")
        cycle, k = divmod(position * self.hosts + self.host, sum(self.shares))
        sources, before = _cycle(self.seed, cycle, self.shares)
        source = int(sources[k])
        taken = cycle * self.shares[source] + int(before[k])
        epoch, k = divmod(taken, len(self.sources[source][1]))
        return Place(source, int(self._order(source, epoch)[k]), epoch)

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """A source's order in an epoch; two epochs of each are kept, for readers at a boundary."""
        kept = self._orders.get((source, epoch % 2))
        if kept is None or kept[0] != epoch:
            order = permutation(len(self.sources[source][1]), self.seed, 0, source, epoch)
            self._orders[source, epoch % 2] = kept = (epoch, order)
        return kept[1]

    def __getitem__(self, position: int) -> Any:
        """The example at a position."""
        source, row, _ = self.at(position)
        return self.sources[source][1][row]

    def shard(self, host: int, hosts: int) -> Mixture:
        """A host's part: no position is in two, and all have equally many.

        `hosts` batches of equal number, one of each host, hold a stretch of the whole stream.
        """
        if self.hosts != 1:
            raise ValueError(f"this is part {self.host} of {self.hosts} already")
        return dataclasses.replace(self, host=host, hosts=hosts)

    def number(self, source: int, row: int) -> int:
        """One number for an example: rows are counted on from source to source."""
        if not 0 <= row < self.firsts[source + 1] - self.firsts[source]:
            raise IndexError(f"row {row} of source {self.sources[source][0]!r}")
        return self.firsts[source] + row

    def locate(self, number: int) -> tuple[int, int]:
        """(source, row) of an example's number."""
        if not 0 <= number < self.firsts[-1]:
            raise IndexError(f"example {number} of {self.firsts[-1]}")
        source = bisect.bisect_right(self.firsts, number) - 1
        return source, number - self.firsts[source]

    def example(self, number: int) -> Any:
        """The example of a number."""
        source, row = self.locate(number)
        return self.sources[source][1][row]


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered(Sequence):
    """A mixture's examples by their numbers, as a sequence that knows its own order."""

    mixture: Mixture

    def __len__(self) -> int:
        return self.mixture.firsts[-1]

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self.mixture.example(range(len(self))[number])

    def order(self, position: int) -> int:
        """The number of the example at a position of the stream."""
        place = self.mixture.at(position)
        return self.mixture.number(place.source, place.row)


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of each source in a cycle: the smallest whole numbers in the weights' ratio.

    Where their sum would exceed `MAX_CYCLE`, rounded to that, at least 1 each. A weight is what
    its decimals say: (0.7, 0.3) is 7 to 3.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    whole = [int(part * math.lcm(*(part.denominator for part in exact))) for part in exact]
    whole = [part // math.gcd(*whole) for part in whole]
    if sum(whole) <= MAX_CYCLE:
        return tuple(whole)
    total = sum(exact)
    return tuple(max(1, round(part / total * MAX_CYCLE)) for part in exact)


def _bits(count: int, *entropy: int) -> np.ndarray:
    """uint64 [count]. Of numpy's generators only the bare bits stay the same in all versions."""
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(count)


def permutation(count: int, *entropy: int) -> np.ndarray:
    """int [count], an order of 0 .. count - 1 that follows from the numbers in `entropy`."""
    order = np.argsort(_bits(count, *entropy), kind="stable")
    return order.astype(np.int32) if count < 2**31 else order


@functools.lru_cache(maxsize=16)
def _cycle(seed: int, cycle: int, parts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(source at each position of a cycle, how often it came before in this cycle).

    The k-th of a source's n stands at a random place in the k-th n-th of the cycle: no stretch
    has much more of a source than its share.
    """
    draws = (_bits(sum(parts), seed, 1, cycle) >> np.uint64(11)) * 2.0**-53
    before = np.concatenate([np.arange(n) for n in parts])
    order = np.argsort((before + draws) / np.repeat(parts, parts), kind="stable")
    return np.repeat(np.arange(len(parts)), parts)[order], before[order]


def buckets(sizes: Sequence[int], batch: int, *entropy: int) -> list[list[int]]:
    """Groups of like size.

    Args:
      sizes: of the examples, in their order.
      batch: examples of a group; the last may hold fewer.
      entropy: numbers that the order of the groups follows from.

    Returns:
      Indices into `sizes`, each once: groups in random order (or training would see the short ones
      first), each in the examples' own order.
    """
    by_size = np.argsort(np.asarray(sizes), kind="stable")
    groups = [sorted(by_size[i : i + batch].tolist()) for i in range(0, len(sizes), batch)]
    return [groups[i] for i in permutation(len(groups), *entropy)]
