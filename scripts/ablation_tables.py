"""What the ablation tables hold: rows, each a recipe and overrides, and the splits they score.

Recipes lie in configs/ablation: `<base>_base.yaml` is what the rows of a table share, and
`<base>_sft.yaml` what the supervised ones do. scripts/ablation.py says how they are run.
"""

from __future__ import annotations

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = pathlib.Path("configs/ablation")  # under ROOT
BASE = "base"  # directory of the base policy's scores

# One grid for every method. As text: they name directories. The order is that of running.
RATES = ("1e-4", "2e-4", "5e-5")
SFT_RATES = ("1e-3", "2e-3", "5e-4")  # of Muon
SEARCH_SEEDS = (0, 1, 2)
FRESH_SEEDS = (10, 11, 12, 13, 14)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
      name: of its directory.
      title: in tables.
      overrides: of the recipe, dotted.
      kind: "train" (reinforcement learning), "sft", or "base": a policy as it is.
      against: the row that its difference is told from; None: the table's.
      scored: overrides for scoring alone. What the policy is trained on is not what it is tested
        on: tests are drawn from the table's own recipe and these.
      seeds: fresh seeds.
      recipe: in CONFIGS; None: the table's for this kind.
      policy: what it starts from; None: the recipe's.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    kind: str = "train"
    against: str | None = None
    scored: tuple[str, ...] = ()
    seeds: int = 3
    recipe: str | None = None
    policy: str | None = None

    @property
    def rates(self) -> tuple[str, ...]:
        return {"train": RATES, "sft": SFT_RATES, "base": ()}[self.kind]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: of its directory, of its files in docs/results and in configs/ablation.
      title: heading.
      base: prefix of its recipes.
      rows: in the order shown.
      splits: column -> the labels of the task's examples that it holds, the in-domain one first.
      search_steps, search_sft_steps: of a search run.
      baseline: the row that others are compared with.
      scored: overrides for scoring, of all rows: the reply's budget is that of the longest answer.
      curves: metrics of training that are drawn over steps.
      validation, test: examples of a split.
      published: whether there are published examples to score.
    """

    name: str
    title: str
    base: str
    rows: tuple[Row, ...]
    splits: dict[str, tuple[str, ...]]
    search_steps: int
    search_sft_steps: int = 75
    baseline: str = "grpo"
    scored: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    validation: int = 1200
    test: int = 2000
    published: bool = False

    @property
    def chosen_by(self) -> str:
        """The split that learning rates are chosen on."""
        return next(iter(self.splits))

    def row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{self.name} has no row {name}: {', '.join(r.name for r in self.rows)}")

    def recipe(self, row: Row) -> str:
        """Path of a row's recipe under ROOT."""
        kind = "sft" if row.kind == "sft" else "base"
        return str(CONFIGS / (row.recipe or f"{self.base}_{kind}.yaml"))


# --- the methods of multi-turn tasks ------------------------------------------------------------

PPO = (
    "algorithm.name=ppo",
    "policy.value_head=true",
    "algorithm.clip_high=0.2",
    "algorithm.dual_clip=null",
    "algorithm.lambda_=0.95",
    "algorithm.epochs=2",
    "algorithm.minibatches=2",
    "filter.enabled=false",
)
PREFIX_MASK = ("prefix_mask.probability=0.3",)
REPLAY = ("replay.method=mix",)
ROLL_IN = (
    "roll_in.max_prefix_turns=2",
    "roll_in.capacity=1024",
    "roll_in.max_per_question=3",
    "roll_in.min_size=32",
)
VRRL = ("modes.normal=0.0", "modes.rtm=0.6", "modes.roll_in=0.4", *ROLL_IN)
NO_REFLECTION = ("reward.reflect_weight=0", "reward.em_reflect_bonus_weight=0")


def _turns(seeds: int) -> tuple[Row, ...]:
    """The rows of navigation, tables and charts; `seeds` of GRPO, VRRL and PPO."""
    single = ("env.max_turns=1",)
    return (
        Row("multi-sft", "Multi-SFT (the base)", kind="base"),
        Row(
            "single-sft",
            "single-turn SFT",
            (*single, "demonstrations.single_turn_fraction=1.0"),
            "sft",
            scored=single,
        ),
        Row("single-rl", "single-turn RL", single, scored=single),
        Row("reflection-sft", "reflection-SFT", ("demonstrations.wrong_first=1.0",), "sft"),
        Row("grpo", "GRPO", seeds=seeds),
        Row("grpo-rtm", "GRPO + RTM", ("modes.normal=0.0", "modes.rtm=1.0")),
        Row("grpo-roll-in", "GRPO + roll-in", ("modes.normal=0.6", "modes.roll_in=0.4", *ROLL_IN)),
        Row("vrrl", "VRRL", VRRL, seeds=seeds),
        Row("vrrl-no-reflection", "VRRL without the reflection reward", (*VRRL, *NO_REFLECTION)),
        Row("ppo", "PPO", PPO, seeds=seeds),
        Row("ppo-prefix-mask", "PPO + prefix mask", (*PPO, *PREFIX_MASK), against="ppo"),
        Row("ppo-replay", "PPO + replay", (*PPO, *REPLAY), against="ppo"),
        Row("ppo-both", "PPO + both", (*PPO, *PREFIX_MASK, *REPLAY), against="ppo"),
    )


NAVIGATION = Table(
    "navigation",
    "Navigation",
    "navigation",
    _turns(5),
    {"in-domain": ("3x3", "4x4", "5x5"), "OOD 6x6": ("6x6",), "OOD 7x7": ("7x7",)},
    search_steps=30,
    scored=("rollout.max_new_tokens=32",),
    published=True,
)
IN_AND_OUT = {"in-domain": ("in-domain",), "OOD": ("OOD",)}
TABLES = Table("tables", "Tables", "tables", _turns(3), IN_AND_OUT, search_steps=12)
CHARTS = Table("charts", "Charts", "charts", _turns(3), IN_AND_OUT, search_steps=15)

# --- single questions ---------------------------------------------------------------------------

SSR = ("replay.method=ssr",)
# Triggers in words that the small policy knows; the first stage goes without.
RETHINKING = (
    "rethinking.preset=paper",
    "rethinking.start=5",
    "rethinking.verification=['wait, let me check again.']",
    "rethinking.correction=['wait, that is wrong.']",
    "rethinking.questioning=['wait, is that right?']",
)
NO_TEXT = ("data.text_share=0.0",)
# Counting kinds stand in for science, as in configs/r1_shapes_nano.yaml.
NO_SCIENCE = ("data.questions=[title, colour, colour_choice, shape, yesno, position]",)
EFFECTIVE = ("effective_queries", "effective_batch")
QUESTIONS = Table(
    "questions",
    "Single questions",
    "questions",
    (
        Row("base", "nano-questions (the base)", kind="base"),
        Row("grpo", "GRPO", seeds=5),
        Row("filter", "filter", ("replay.method=filter",)),
        Row("ssr", "SSR, all data", SSR, seeds=5),
        Row("ssr-rethinking", "SSR + forced rethinking", (*SSR, *RETHINKING), against="ssr"),
        Row("ssr-no-text", "SSR without text", (*SSR, *NO_TEXT), against="ssr"),
        Row(
            "ssr-no-text-science",
            "SSR without text and science",
            (*SSR, *NO_TEXT, *NO_SCIENCE),
            against="ssr",
        ),
    ),
    IN_AND_OUT,
    search_steps=30,
    scored=("rollout.max_new_tokens=64",),
    curves=EFFECTIVE,
)
CHAIN = Table(
    "chain_of_thought",
    "Chain of thought",
    "questions",
    (
        Row("base", "nano-questions (the base)", kind="base"),
        Row(
            "direct",
            "direct prompting",
            kind="base",
            scored=(
                "env.opening='<think></think><answer>\\boxed{'",
                "rollout.max_new_tokens=16",
            ),
        ),
        Row("cot-prompting", "CoT prompting", kind="base", scored=("env.opening='<think>'",)),
        Row(
            "cot-sft",
            "CoT-SFT",
            kind="sft",
            scored=("env.style=cot", "reward.style=cot", "rollout.max_new_tokens=80"),
        ),
        Row(
            "r1",
            "R1-style RL",
            ("filter.enabled=true", "filter.low=0.01", "filter.high=1.19", "filter.max_tries=1"),
        ),
    ),
    IN_AND_OUT,
    search_steps=30,
    search_sft_steps=120,
    baseline="cot-prompting",
    scored=("rollout.max_new_tokens=64",),
)
ALL = {table.name: table for table in (NAVIGATION, TABLES, CHARTS, QUESTIONS, CHAIN)}

# What is run first: rows of one entry take turns, seed by seed. Then all others, table by table.
FIRST: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("navigation", ("multi-sft", "grpo", "vrrl")),
    ("questions", ("base", "grpo", "ssr")),
    ("navigation", ("ppo",)),
)


def in_order() -> list[tuple[Table, tuple[Row, ...]]]:
    """Tables with the rows that take turns, the most important first; every row once."""
    order = [(ALL[name], tuple(ALL[name].row(row) for row in rows)) for name, rows in FIRST]
    taken = {(table.name, row.name) for table, rows in order for row in rows}
    for table in ALL.values():
        # Policies as they are cost no training: before the others of their table.
        rest = [row for row in table.rows if (table.name, row.name) not in taken]
        order += [(table, (row,)) for row in sorted(rest, key=lambda row: row.kind != "base")]
    return order
