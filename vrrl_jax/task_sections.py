"""Sections that belong to a task: its data, its environment, its reward, its evaluation."""

from __future__ import annotations

from typing import Literal

from vrrl_jax.sections import EvalConfig, at_least, positive, require, section, share


def _levels(config: object) -> None:
    levels = config.levels
    require(
        len(levels) > 0 and all(2 <= level <= 16 for level in levels),
        "levels",
        f"must list sides of the grid from 2 to 16, as in [3, 4, 5], got {list(levels)}",
    )


@section
class FrozenLakeData:
    """Maps, read or generated.

    Attributes:
      path: published maps (maps.json, eval_data.json or their folder); None generates.
      seed: of generation.
      count: maps generated.
      levels: sides of the grid.
      weights: share of each level; None takes the generator's own.
      hole_probability: range from which each map's density of holes is drawn.
      limit: read at most so many maps.
      exclude: files or folders of maps to keep out: what evaluation uses.
    """

    path: str | None = None
    seed: int = 0
    count: int = 3000
    levels: tuple[int, ...] = (3, 4, 5)
    weights: tuple[float, ...] | None = None
    hole_probability: tuple[float, float] = (0.05, 0.45)
    limit: int | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        at_least(self, 1, "count", "limit")
        _levels(self)
        low, high = self.hole_probability
        require(
            0 <= low <= high < 1, "hole_probability", f"must be 0 <= low <= high < 1: {low}, {high}"
        )
        if self.weights is not None:
            fits = len(self.weights) == len(self.levels) and min(self.weights) >= 0
            require(
                fits and sum(self.weights) > 0,
                "weights",
                f"must give a share of at least 0 for each of levels {list(self.levels)}",
            )


@section
class Empty:
    """A section without settings."""


@section
class TurnsEnv:
    """What every environment has: `max_turns`, replies an episode.

    With 1 a proposal is an answer: rewards ask for no commit.
    """

    max_turns: int = 8

    def __post_init__(self):
        at_least(self, 1, "max_turns")


@section
class NavigationEnv(TurnsEnv):
    """Navigation. `cell` is in pixels; texts of None are the environment's own."""

    cell: int = 64
    question: str | None = None
    verify: str | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 4, "cell")


@section
class ReflectionReward:
    """The options of VRRL's released reward; `rewards/reflection.py` explains each."""

    correct_value: float = 1.0
    format_value: float = 0.1
    lambda_deg: float = 0.5
    reflect_weight: float = 0.9
    reflect_lower_clip: float = 0.0
    em_reflect_bonus_weight: float = 0.1
    em_reflect_step_discount: float = 1.0
    step_cost: float = 0.01
    min_turns: int = 1
    graded: bool = False
    outcome_weight: float = 0.0

    def __post_init__(self):
        positive(self, "correct_value")
        at_least(self, 0, "format_value", "lambda_deg", "reflect_weight", "step_cost")
        at_least(self, 0, "em_reflect_bonus_weight", "outcome_weight")
        at_least(self, 1, "min_turns")
        share(self, "em_reflect_step_discount")
        require(-1 <= self.reflect_lower_clip <= 1, "reflect_lower_clip", "must lie in -1 .. 1")
        if self.graded:
            positive(self, "outcome_weight")


@section
class NavigationReward(ReflectionReward):
    """Rewards of navigation; `rewards/frozenlake.py` explains what is its own."""

    overshoot_zero: bool = True


@section
class NavigationEval(EvalConfig):
    """Evaluation on maps.

    Attributes:
      path: published maps; None generates `count` of them, disjoint from the training maps.
      levels: of generated maps.
      in_domain: levels that count as in-domain; the others are out of distribution.
    """

    path: str | None = None
    levels: tuple[int, ...] = (3, 4, 5, 6)
    in_domain: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self):
        super().__post_init__()
        _levels(self)


@section
class MazeData:
    """Generated mazes, in the sizes, algorithms and styles that aren't held out.

    Attributes:
      seed: of generation.
      count: mazes to train on.
      sizes: cells a side, 2 to 5; larger mazes are likelier, in proportion to their cells.
      min_steps: least length of a shortest path.
      styles: names of looks; null for all.
    """

    seed: int = 0
    count: int = 3000
    sizes: tuple[int, ...] = (3, 4, 5)
    min_steps: int = 2
    styles: tuple[str, ...] | None = None

    def __post_init__(self):
        at_least(self, 1, "count", "min_steps")
        sizes = self.sizes
        require(bool(sizes) and min(sizes) >= 2, "sizes", f"must be at least 2, got {list(sizes)}")
        require(self.styles is None or bool(self.styles), "styles", "is empty: null for all")


@section
class MazeEval(EvalConfig):
    """Evaluation on unseen mazes: nothing held out; a size, an algorithm, a style; all at once.

    Attributes:
      held_out_sizes: cells a side, from 6.
      held_out_styles: names of looks; null for all that are held out.
    """

    held_out_sizes: tuple[int, ...] = (6, 7)
    held_out_styles: tuple[str, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        for key in ("held_out_sizes", "held_out_styles"):
            require(getattr(self, key) != (), key, "is empty: null for all looks, or name some")


# --- grounding: tables, charts, boxes ------------------------------------------------------------


@section
class GroundingData:
    """Pictures in which something is asked for: generated tables or charts, or real ones.

    Attributes:
      seed: of generation.
      count: examples to train on.
      real: real data instead: a CSV or TSV file, a folder of them, or "vega" (vega_datasets).
      held_out: names of files in it that only the out-of-distribution split shows.
      preset: "nano": small pictures of one size, for policies of a million parameters.
      kinds: of questions; None for all of the preset's.
      rows, columns: least and most of a table's; None for the preset's.
      written: how demonstrations write a place: "34, 58", " 34 58", or {"point_2d": [34, 58]}.
      step: coordinates in demonstrations are multiples of it.
    """

    seed: int = 0
    count: int = 3000
    real: str | None = None
    held_out: tuple[str, ...] = ()
    preset: Literal["full", "nano"] = "full"
    kinds: tuple[str, ...] | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    written: Literal["plain", "spaced", "json"] = "plain"
    step: float = 1.0

    def __post_init__(self):
        at_least(self, 1, "count")
        positive(self, "step")
        require(self.kinds is None or bool(self.kinds), "kinds", "is empty: null for all of them")
        for key in ("rows", "columns"):
            low, high = getattr(self, key) or (1, 1)
            require(1 <= low <= high, key, f"must be 1 <= least <= most: {low}, {high}")
        require(self.real != "", "real", "is empty: name a file, a folder or vega; null generates")
        require(not self.held_out or self.real is not None, "held_out", "needs data.real")
        few = self.real is not None and self.preset == "nano"
        require(not few, "real", "doesn't go with preset nano, whose words are few: preset=full")


@section
class BoxesData:
    """Pictures with boxes, read from files.

    Attributes:
      path: of the data set; what `data.loading.load` reads.
      mapper: its layout, a name of `data.mappers.MAPPERS`, such as refcoco.
      split: of it, where there are several.
      limit: read at most so many.
      written, step: as for generated pictures.
    """

    path: str = ""
    mapper: str = "refcoco"
    split: str | None = None
    limit: int | None = None
    written: Literal["plain", "spaced", "json"] = "json"
    step: float = 1.0

    def __post_init__(self):
        at_least(self, 1, "limit")
        positive(self, "step")


@section
class GroundingEnv(TurnsEnv):
    """Visual grounding; `envs/grounding.py` explains each. Texts of None are the environment's."""

    form: Literal["point", "box"] = "point"
    coordinates: Literal["pixel", "original", "thousand", "unit"] = "pixel"
    feedback: Literal["marked", "crop", "overlay"] = "marked"
    crop_size: int = 200
    question: str | None = None
    verify: str | None = None
    bare: Literal["invalid", "proposal", "commit"] = "invalid"

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "crop_size")


@section
class GroundingReward(ReflectionReward):
    """Rewards of visual grounding; `rewards/grounding.py` explains what is its own."""

    style: Literal["released", "summary", "distance"] = "released"
    placement: Literal["end", "turn"] = "end"
    per_turn: Literal["gain", "level"] = "gain"
    radius: float = 0.0
    threshold: float = 0.5
    reach: float = 0.5
    alpha: float = 0.5
    require_format: bool = False

    def __post_init__(self):
        super().__post_init__()
        positive(self, "reach")
        at_least(self, 0, "radius", "alpha")
        share(self, "threshold")


@section
class BoxesEval(EvalConfig):
    """Evaluation on pictures with boxes: `path` and `split` as in the data section."""

    path: str | None = None
    split: str | None = None
