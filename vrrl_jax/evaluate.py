"""Scores a policy by level, in-domain and out of distribution, with confidence intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vrrl_jax.checkpoint import hf
from vrrl_jax.config import (
    EnvConfig,
    EvalConfig,
    RewardConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
    load,
)
from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.log import write_atomically
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.parallel.mesh import row_parts
from vrrl_jax.processing.processor import Processor, load_processor
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Episode

EVALUATION_STEP = 2**30  # keys of evaluations never meet those of training steps
BATCH = 128  # maps a rollout

# Means of an episode's figures, in a table's order. `success` asks for an exact match in a
# well-formed episode; it is turn1_em + wrong_to_right - right_to_wrong - lost_to_format.
METRICS = (
    "success",
    "final_em",
    "turn1_em",
    "wrong_to_right",
    "right_to_wrong",
    "lost_to_format",
    "strict_success",
    "lenient_success",
    "clean_commit",
    "format_error",
    "budget_exhausted",
    "turns",
    "total",
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation measured.

    Attributes:
      maps: the maps.
      in_domain: levels that count as in-domain.
      figures: temperature -> metric -> float64 [maps, samples].
    """

    maps: list[Map]
    in_domain: tuple[int, ...]
    figures: dict[float, dict[str, np.ndarray]]

    def splits(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and members of the table's rows: each level, in-domain, OOD, all."""
        levels = np.array([map.size for map in self.maps])
        inside = np.isin(levels, self.in_domain)
        for level in sorted(set(levels.tolist())):
            yield f"{level}x{level}", levels == level
        for name, which in (("in-domain", inside), ("OOD", ~inside), ("all", levels > 0)):
            if which.any():
                yield name, which


def environment(config: EnvConfig) -> env.Environment:
    """FrozenLake as configured; texts that are None are its own."""
    given = {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    return env.Environment(env.Settings(**given))


def scorer(config: RewardConfig, decision_bonus: float = 0.0) -> Callable[..., dict[str, float]]:
    """(texts, map, group) -> named rewards, with the configured options."""
    options = dataclasses.asdict(config)

    def score(texts, map, group):
        return rewards.score(
            texts,
            map,
            prefix_turns=len(group.prefix),
            prefix_right=group.prefix_right,
            decision_bonus=decision_bonus,
            **options,
        )

    return score


def evaluation_maps(config: EvalConfig, exclude: frozenset[str] = frozenset()) -> list[Map]:
    """The published maps, or generated ones that meet no key of `exclude`.

    Generated: `count` in all, the same number at every level. Published: what was skipped is
    printed.
    """
    if config.path is not None:
        loaded = frozenlake.load(config.path)
        for line in loaded.skipped:
            print(f"skipped: {line}")
        return loaded.maps
    each = -(-config.count // len(config.levels))
    maps = []
    for level in config.levels:
        maps += frozenlake.generate(config.seed + level, each, (level,), exclude=exclude)
    return maps


def play(
    policy: Policy,
    params: Params,
    processor: Processor,
    maps: list[Map],
    settings: episodes.Settings,
    env_config: EnvConfig,
    reward: RewardConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Plays `settings.samples` episodes on every map, in the maps' order.

    The last batch is filled up by repeating its maps, so that one program serves all.
    """
    view, key = engine.make_view(policy, params), jax.random.key(seed)
    board, score = environment(env_config), scorer(reward)
    parts = row_parts(policy.mesh)
    batch = -(-min(BATCH, len(maps)) // parts) * parts
    largest = max(maps, key=lambda map: map.size)
    shapes = episodes.plan_shapes(policy, processor, board, [largest], settings)
    played: list[Episode] = []
    for start in range(0, len(maps), batch):
        real = list(range(start, min(start + batch, len(maps))))
        groups = [
            episodes.Group(question=i, example=maps[i]) for i in [*real, *real * batch][:batch]
        ]
        out, _ = episodes.rollout(
            policy,
            view,
            processor,
            board,
            groups,
            settings,
            shapes,
            key,
            EVALUATION_STEP,
            score,
        )
        played += out[: len(real) * settings.samples]
        if progress is not None:
            progress(start + len(real), len(maps))
    return played


def measure(
    policy: Policy,
    params: Params,
    processor: Processor,
    maps: list[Map],
    config: EvalConfig,
    env_config: EnvConfig,
    rollout: RolloutConfig,
    reward: RewardConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Evaluates at every configured temperature; greedy episodes are played once a map."""
    figures = {}
    for temperature in config.temperatures:
        samples = 1 if temperature == 0 else config.samples
        settings = episodes.Settings(
            samples=samples,
            max_turns=env_config.max_turns,
            max_new_tokens=rollout.max_new_tokens,
            sampling=Sampling(temperature, rollout.top_k, rollout.top_p),
        )
        name = _temperature(temperature)
        played = play(
            policy,
            params,
            processor,
            maps,
            settings,
            env_config,
            reward,
            progress=progress and (lambda done, of, name=name: progress(name, done, of)),
        )
        figures[temperature] = {
            metric: np.array([e.rewards[metric] for e in played]).reshape(len(maps), samples)
            for metric in METRICS
        }
    return Scores(maps, tuple(config.in_domain), figures)


def _temperature(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T={temperature:g}"


def half_interval(values: np.ndarray) -> float:
    """Half-width of the 95% interval of the mean of [maps, samples].

    Samples of a map aren't independent: maps are the unit. Wilson's where a map has one 0/1
    value, the normal one elsewhere; NaN for a single map.
    """
    n, z = len(values), 1.96
    if n < 2:
        return math.nan
    if values.shape[1] == 1 and np.isin(values, (0, 1)).all():
        p = float(values.mean())
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(z * values.mean(1).std(ddof=1) / math.sqrt(n))


def tables(scores: Scores) -> list[dict]:
    """One table a temperature: {"name", "rows"}, a row a split, figures in 0 .. 1."""
    out = []
    for temperature, figures in scores.figures.items():
        rows = []
        for name, which in scores.splits():
            row = {"split": name, "maps": int(which.sum())}
            row |= {metric: round(float(v[which].mean()), 4) for metric, v in figures.items()}
            row["+-95%"] = round(half_interval(figures["final_em"][which]), 4)
            rows.append(row)
        out.append({"name": _temperature(temperature), "rows": rows})
    return out


def comparison(before: Scores, after: Scores) -> dict:
    """What training changed on the same maps, in points of success, and where the gain lies.

    gain = turn 1 + revision + format: turn-1 exact matches; wrong-to-right minus right-to-wrong;
    and right answers no longer lost to broken form or a missing commit. The interval is that of
    the paired difference over maps.
    """
    rows = []
    for temperature, old in before.figures.items():
        new = after.figures[temperature]
        for name, which in before.splits():
            was, now = ({m: 100 * f[m].mean(1)[which] for m in METRICS} for f in (old, new))
            change = {m: now[m] - was[m] for m in METRICS}
            n = int(which.sum())
            spread = 1.96 * change["success"].std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
            row = {
                "turn-1 before": was["turn1_em"].mean(),
                "turn-1 after": now["turn1_em"].mean(),
                "before": was["success"].mean(),
                "after": now["success"].mean(),
                "gain": change["success"].mean(),
                "+-95%": spread,
                "of turn 1": change["turn1_em"].mean(),
                "of revision": (change["wrong_to_right"] - change["right_to_wrong"]).mean(),
                "of format": -change["lost_to_format"].mean(),
            }
            labels = {"split": name, "sampling": _temperature(temperature), "maps": n}
            rows.append(labels | {k: round(float(v), 1) + 0.0 for k, v in row.items()})
    return {"name": "success before and after, in percent of maps", "rows": rows}


def save(path: pathlib.Path, tables: list[dict]) -> None:
    """Writes tables as JSON; figures that aren't finite become null, as JSON has no NaN."""
    finite = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v
    tables = [
        t | {"rows": [{k: finite(v) for k, v in r.items()} for r in t["rows"]]} for t in tables
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(tables, indent=1, allow_nan=False) + "\n")


def show(table: dict) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=table["name"], title_justify="left")
    rows = table["rows"]
    for column in rows[0]:
        numeric = not isinstance(rows[0][column], str)
        shown.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        cells = row.values()
        shown.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    # Wide enough for every column, also where output goes to a file.
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(shown)


def main(
    checkpoint: str, recipe: str | None, overrides: list[str], output: str | None
) -> list[dict]:
    """`vrrl eval`: scores a checkpoint, prints its tables and writes them as JSON.

    Args:
      checkpoint: a Hugging Face directory, a run directory (its export), or "nano".
      recipe: a recipe for the sections env, rollout, reward and eval. Without it a run's own
        configuration, or the one that stands beside the checkpoint, as nano's does.
      overrides: dotted, as elsewhere.
      output: default evaluation.json in the checkpoint's directory, or here for a shipped one.
    """
    path = pathlib.Path(checkpoint)
    run = (path / "config.yaml").is_file() and (path / "hf").is_dir()
    model = str(path / "hf") if run else checkpoint
    if recipe is None:
        recipe = str(path / "config.yaml" if run else hf.resolve(model) / hf.RECIPE)
    if not pathlib.Path(recipe).is_file():
        raise FileNotFoundError(
            f"{recipe}: not there. How are episodes shown to {checkpoint}? Give --config, a recipe "
            "with the sections env and rollout"
        )
    config = load_recipe(pathlib.Path(recipe), overrides)
    reward = config.reward if isinstance(config, TrainConfig) else RewardConfig()
    policy, params = hf.load_pretrained(model)
    maps = evaluation_maps(config.eval)
    print(f"{len(maps)} maps from {config.eval.path or 'the generator'}")
    scores = measure(
        policy,
        params,
        load_processor(policy.directory),
        maps,
        config.eval,
        config.env,
        config.rollout,
        reward,
        progress=lambda name, done, of: print(f"{name}: {done} of {of} maps", flush=True),
    )
    result = tables(scores)
    show(brief(scores, f"{checkpoint}, in percent of maps"))
    target = pathlib.Path(output or ("." if checkpoint in hf.SHIPPED else path))
    target = target / "evaluation.json" if target.is_dir() else target
    save(target, result)
    print(target)
    return result


def load_recipe(path: pathlib.Path, overrides: list[str]) -> TrainConfig | SftConfig:
    """A recipe of either kind; of a supervised one the reward is the released."""
    kind = SftConfig if "demonstrations:" in path.read_text() else TrainConfig
    return load(path, overrides, kind)


def brief(scores: Scores, name: str) -> dict:
    """All temperatures in one table, the columns that fit a terminal, in percent."""
    columns = ("turn1_em", "final_em", "+-95%", "success", "wrong_to_right", "right_to_wrong")
    columns += ("clean_commit", "format_error")
    rows = [
        {"split": row["split"], "sampling": table["name"], "maps": row["maps"]}
        | {c.replace("_", " "): round(100 * row[c], 1) for c in columns}
        | {"turns": round(row["turns"], 2)}
        for table in tables(scores)
        for row in table["rows"]
    ]
    return {"name": name, "rows": rows}
