"""Scores a policy by level, in-domain and out of distribution, with confidence intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vrrl_jax import playing, tasks
from vrrl_jax import start as starting
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import RolloutConfig, SftConfig, TrainConfig, load
from vrrl_jax.log import write_atomically
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import row_parts
from vrrl_jax.processing.processor import Processor, load_processor
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.continuous import Continuous
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.sections import EvalConfig
from vrrl_jax.strict_yaml import top_keys
from vrrl_jax.tasks import Examples, Score, Task
from vrrl_jax.types import Episode

EVALUATION_STEP = 2**30  # keys of evaluations never meet those of training steps
BATCH = 128  # examples a rollout
MOST = 1024  # likewise, where episodes begin as others end

# The parts of a change in success, and the figures that make them: turn-1 exact matches;
# wrong-to-right minus right-to-wrong; right answers no longer lost to broken form.
PARTS = {
    "of turn 1": {"turn1_em": 1},
    "of revision": {"wrong_to_right": 1, "right_to_wrong": -1},
    "of format": {"lost_to_format": -1},
}
# The columns of a brief table, of those that a task has.
BRIEF = ("turn1_em", "final_em", "+-95%", "success", "wrong_to_right", "right_to_wrong")
BRIEF += ("clean_commit", "format_error", "format")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation measured.

    Attributes:
      examples: the examples.
      noun: what they are, in the plural.
      figures: temperature -> metric -> float64 [examples, samples].
    """

    examples: Examples
    noun: str
    figures: dict[float, dict[str, np.ndarray]]

    def splits(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and members of the table's rows: each split, in-domain, OOD, all."""
        labels = np.array(self.examples.labels)
        inside = np.isin(labels, sorted(self.examples.in_domain))
        names = sorted(set(labels.tolist()))
        for name in names:
            yield name, labels == name
        both = {"in-domain": inside, "OOD": ~inside}
        for name, which in both.items():
            if which.any() and name not in names:
                yield name, which
        yield "all", np.ones(len(labels), bool)


def play(
    policy: Policy,
    params: Params,
    processor: Processor,
    task: Task,
    examples: Sequence[Any],
    settings: episodes.Settings,
    score: Score,
    *,
    seed: int = 0,
    in_flight: Continuous | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Plays `settings.samples` episodes on every example, in the examples' order.

    The last batch is filled up by repeating its examples, so that one program serves all. With
    `in_flight` nothing needs filling up: episodes begin as others end.

    Raises:
      Disagreement: processes of a run don't play the same, or don't score it alike.
    """
    view, key = engine.make_view(policy, params), jax.random.key(seed)
    parts = row_parts(policy.mesh)
    if in_flight is None:
        batch = -(-min(BATCH, len(examples)) // parts) * parts
    else:
        batch = MOST
    probes = task.probes(examples)
    shapes = episodes.plan_shapes(policy, processor, task.environment, probes, settings)
    played: list[Episode] = []
    for start in range(0, len(examples), batch):
        real = list(range(start, min(start + batch, len(examples))))
        filled = real if in_flight else [*real, *real * batch][:batch]
        groups = [episodes.Group(question=i, example=examples[i]) for i in filled]
        out, _ = episodes.rollout(
            policy,
            view,
            processor,
            task.environment,
            groups,
            settings,
            shapes,
            key,
            EVALUATION_STEP,
            score,
            in_flight=in_flight,
        )
        played += out[: len(real) * settings.samples]
        if progress is not None:
            progress(start + len(real), len(examples))
    distributed.agree("evaluation", episodes=played)
    return played


def measure(
    policy: Policy,
    params: Params,
    processor: Processor,
    task: Task,
    examples: Examples,
    config: EvalConfig,
    rollout: RolloutConfig,
    max_turns: int,
    score: Score | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Evaluates at every configured temperature; greedy episodes are played once an example.

    Args:
      max_turns: replies an episode.
      score: in place of the task's own.
    """
    figures = {}
    for temperature in config.temperatures:
        samples = 1 if temperature == 0 else config.samples
        settings = episodes.Settings(
            samples=samples,
            max_turns=max_turns,
            max_new_tokens=rollout.max_new_tokens,
            sampling=Sampling(temperature, rollout.top_k, rollout.top_p),
        )
        name = _temperature(temperature)
        played = play(
            policy,
            params,
            processor,
            task,
            examples.examples,
            settings,
            score or task.score,
            in_flight=playing.in_flight_of(rollout, policy.mesh),
            progress=progress and (lambda done, of, name=name: progress(name, done, of)),
        )
        figures[temperature] = {
            metric: np.array([e.rewards[metric] for e in played]).reshape(-1, samples)
            for metric in task.metrics
        }
    return Scores(examples, task.noun, figures)


def _temperature(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T={temperature:g}"


def half_interval(values: np.ndarray) -> float:
    """Half-width of the 95% interval of the mean of [examples, samples].

    Samples of an example aren't independent: examples are the unit. Wilson's where an example has
    one 0/1 value, the normal one elsewhere; NaN for a single example.
    """
    n, z = len(values), 1.96
    if n < 2:
        return math.nan
    if values.shape[1] == 1 and np.isin(values, (0, 1)).all():
        p = float(values.mean())
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(z * values.mean(1).std(ddof=1) / math.sqrt(n))


def tables(scores: Scores) -> list[dict]:
    """One table a temperature: {"name", "rows"}, a row a split, figures in 0 .. 1.

    The interval is that of the final answer being right, whatever its form; of success where a task
    tells no such figure.
    """
    out = []
    for temperature, figures in scores.figures.items():
        rows = []
        for name, which in scores.splits():
            row = {"split": name, scores.noun: int(which.sum())}
            row |= {metric: round(float(v[which].mean()), 4) for metric, v in figures.items()}
            headline = figures.get("final_em", figures["success"])
            row["+-95%"] = round(half_interval(headline[which]), 4)
            rows.append(row)
        out.append({"name": _temperature(temperature), "rows": rows})
    return out


def comparison(before: Scores, after: Scores) -> dict:
    """What training changed on the same examples, in points of success, and where the gain lies.

    gain = turn 1 + revision + format, for tasks that have these figures; see `PARTS`. The interval
    is that of the paired difference over examples.
    """
    rows = []
    for temperature, old in before.figures.items():
        new = after.figures[temperature]
        for name, which in before.splits():
            was, now = ({m: 100 * v.mean(1)[which] for m, v in f.items()} for f in (old, new))
            change = {m: now[m] - was[m] for m in was}
            n = int(which.sum())
            spread = 1.96 * change["success"].std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
            row = {}
            if "turn1_em" in was:
                row |= {"turn-1 before": was["turn1_em"].mean()}
                row |= {"turn-1 after": now["turn1_em"].mean()}
            row |= {
                "before": was["success"].mean(),
                "after": now["success"].mean(),
                "gain": change["success"].mean(),
                "+-95%": spread,
            }
            for part, signs in PARTS.items():
                if all(m in change for m in signs):
                    row[part] = sum(sign * change[m].mean() for m, sign in signs.items())
            labels = {"split": name, "sampling": _temperature(temperature), before.noun: n}
            rows.append(labels | {k: round(float(v), 1) + 0.0 for k, v in row.items()})
    return {"name": f"success before and after, in percent of {before.noun}", "rows": rows}


def save(path: pathlib.Path, tables: list[dict]) -> None:
    """Writes tables as JSON; figures that aren't finite become null, as JSON has no NaN.

    Of several processes the first one writes.
    """
    if not distributed.first():
        return
    finite = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v
    tables = [
        t | {"rows": [{k: finite(v) for k, v in r.items()} for r in t["rows"]]} for t in tables
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(tables, indent=1, allow_nan=False) + "\n")


def show(table: dict) -> None:
    """Prints a table, from the first process."""
    if not distributed.first():
        return
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
    # A run's mesh is that of the machine that trained it; alone one device does.
    mesh = starting.open_mesh(config) if distributed.several() else None
    policy, params = hf.load_pretrained(model, mesh=mesh)
    processor = load_processor(policy.directory)
    task = tasks.make(config, processor)
    examples = task.evaluation()
    print(f"{len(examples.examples)} {task.noun} from {examples.source}")
    scores = measure(
        policy,
        params,
        processor,
        task,
        examples,
        config.eval,
        config.rollout,
        config.env.max_turns,
        tasks.score_of(config, task),
        progress=lambda name, done, of: print(f"{name}: {done} of {of} {task.noun}", flush=True),
    )
    result = tables(scores)
    show(brief(scores, f"{checkpoint}, in percent of {task.noun}"))
    target = pathlib.Path(output or ("." if checkpoint in hf.SHIPPED else path))
    target = target / "evaluation.json" if target.is_dir() else target
    save(target, result)
    print(target)
    return result


def load_recipe(path: pathlib.Path, overrides: list[str]) -> TrainConfig | SftConfig:
    """A recipe of either kind."""
    kind = SftConfig if "demonstrations" in top_keys(path) else TrainConfig
    return load(path, overrides, kind)


def brief(scores: Scores, name: str) -> dict:
    """All temperatures in one table, the columns that fit a terminal, in percent."""
    rows = []
    for table in tables(scores):
        for row in table["rows"]:
            labels = {"split": row["split"], "sampling": table["name"]}
            figures = {c.replace("_", " "): round(100 * row[c], 1) for c in BRIEF if c in row}
            counts = {"turns": round(row["turns"], 2)} if "turns" in row else {}
            rows.append(labels | {scores.noun: row[scores.noun]} | figures | counts)
    return {"name": name, "rows": rows}
