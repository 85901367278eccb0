"""Navigation on frozen lakes: maps that are generated, or the published ones."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence

from vrrl_jax.config import FrozenLakeData, NavigationEval
from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.envs import frozenlake as envs
from vrrl_jax.tasks.base import Examples, tell
from vrrl_jax.tasks.navigation import Navigation


@dataclasses.dataclass(frozen=True)
class FrozenLake(Navigation):
    """The task as a recipe configures it; see `tasks.base.Task`."""

    data: FrozenLakeData = dataclasses.field(default_factory=FrozenLakeData)
    eval: NavigationEval = dataclasses.field(default_factory=NavigationEval)

    noun = "maps"

    @functools.cached_property
    def excluded(self) -> frozenset[str]:
        """Keys of the maps that neither training nor demonstrations may show."""
        return frozenset(m.key for path in self.data.exclude for m in frozenlake.load(path).maps)

    def training(self) -> list[Map]:
        """Published or generated maps, none of the excluded; what was skipped is printed.

        Raises:
          ValueError: none is left.
        """
        data, exclude = self.data, self.excluded
        if data.path is None:
            return frozenlake.generate(
                data.seed,
                data.count,
                data.levels,
                data.weights,
                tuple(data.hole_probability),
                exclude,
            )
        loaded = _read(data.path, data.limit)
        maps = [map for map in loaded if map.key not in exclude]
        if not maps:
            raise ValueError(f"data.exclude leaves none of the {len(loaded)} maps of {data.path}")
        return maps

    def evaluation(self, training: Sequence[Map] = ()) -> Examples:
        """The published maps, or generated ones that aren't trained on: as many of every level."""
        config = self.eval
        if config.path is not None:
            maps, source = _read(config.path), config.path
        else:
            maps, source = [], "the generator"
            exclude = self.excluded | frozenset(map.key for map in training)
            each = -(-config.count // len(config.levels))
            for level in config.levels:
                maps += frozenlake.generate(config.seed + level, each, (level,), exclude=exclude)
        labels = tuple(f"{map.size}x{map.size}" for map in maps)
        inside = frozenset(f"{level}x{level}" for level in config.in_domain)
        return Examples(maps, labels, inside, source)

    def probes(self, examples: Sequence[Map]) -> list[tuple[Map, str]]:
        return [(max(examples, key=lambda map: map.size), envs.PROBE)]

    def fresh(self, rng: random.Random, count: int) -> list[Map]:
        data = self.data
        return frozenlake.generate(
            rng.getrandbits(31),
            count,
            data.levels,
            weights=data.weights,
            hole_probability=tuple(data.hole_probability),
            exclude=self.excluded,
        )


def _read(path: str, limit: int | None = None) -> list[Map]:
    loaded = frozenlake.load(path, limit)
    tell(loaded.skipped)
    return loaded.maps
