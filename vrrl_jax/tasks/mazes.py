"""Navigation in generated mazes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Sequence

from vrrl_jax.config import MazeData, MazeEval
from vrrl_jax.data import mazes
from vrrl_jax.data.mazes import Example, Maze
from vrrl_jax.envs import mazes as envs
from vrrl_jax.render.mazes import STYLES
from vrrl_jax.tasks.base import Examples, Generated, sampled
from vrrl_jax.tasks.navigation import Navigation

# What an evaluation holds out of an example, the label of its split: each alone, and all at once.
SPLITS = ("in-domain", "size", "algorithm", "style", "size+algorithm+style")


@dataclasses.dataclass(frozen=True)
class Mazes(Navigation):
    """The task as a recipe configures it; see `tasks.base.Task`."""

    data: MazeData = dataclasses.field(default_factory=MazeData)
    eval: MazeEval = dataclasses.field(default_factory=MazeEval)

    noun = "mazes"
    settings = envs.Settings

    @functools.cached_property
    def drawn(self) -> mazes.Settings:
        """What is generated.

        Raises:
          ValueError: sizes or styles that are, or aren't, held out where they shouldn't be.
        """
        data, held_out = self.data, self.eval
        seen, unseen = data.styles, held_out.held_out_styles
        wrong = [s.name for s in STYLES if s.held_out and s.name in (seen or ())]
        wrong += [s.name for s in STYLES if not s.held_out and s.name in (unseen or ())]
        if wrong:
            raise ValueError(
                f"styles {wrong}: data.styles takes those that aren't held out, "
                f"eval.held_out_styles those that are: {[s.name for s in STYLES if s.held_out]}"
            )
        return mazes.Settings(
            sizes=data.sizes,
            held_out_sizes=held_out.held_out_sizes,
            min_steps=data.min_steps,
            styles=_names(seen, False) + _names(unseen, True),
        )

    def training(self) -> Generated:
        return Generated(mazes.example, self.data.seed, "train", self.drawn, self.data.count)

    def evaluation(self, training: Sequence[Example] = ()) -> Examples:
        """Unseen mazes: as many with nothing held out as with each thing, and with all at once."""
        each = -(-self.eval.count // len(SPLITS))
        found: dict[str, list[Example]] = {label: [] for label in SPLITS}
        draw = functools.partial(mazes.example, self.eval.seed, settings=self.drawn)
        found["in-domain"] = [draw("test_id", i) for i in range(each)]
        for i in itertools.count():
            if all(len(examples) == each for examples in found.values()):
                break
            example = draw("test_ood", i)
            label = "+".join(mazes.shifts(*example))
            if len(found[label]) < each:
                found[label].append(example)
        examples = [example for label in SPLITS for example in found[label]]
        labels = tuple(label for label in SPLITS for _ in range(each))
        return Examples(examples, labels, frozenset({"in-domain"}))

    def probes(self, examples: Sequence[Example]) -> list[tuple[Example, str]]:
        sample = (examples[i] for i in sampled(examples))
        return [(max(sample, key=lambda example: example.maze.size), envs.PROBE)]

    def walked(self, example: Example) -> Maze:
        return example.maze

    def fresh(self, rng: random.Random, count: int) -> Generated:
        return Generated(mazes.example, rng.getrandbits(40), "train", self.drawn, count)


def _names(given: Sequence[str] | None, held_out: bool) -> tuple[str, ...]:
    """Names of styles: those given, or all of that kind."""
    if given is not None:
        return tuple(given)
    return tuple(style.name for style in STYLES if style.held_out == held_out)
