"""Scores a policy on a table's examples and keeps every example's figures.

    python scripts/ablation_score.py navigation grpo runs/.../hf --part test --output scores.npz

Validation and test never share contents: which of them an example may be in follows from a hash of
what it shows. Neither holds a map that is trained on; other tasks have a split of their own for
that. Each label (a size of maps) is played apart, so that small maps aren't padded to large ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ablation_runs import resolve, told
from ablation_tables import ALL, CONFIGS, ROOT, Row, Table

from vrrl_jax.config import ConfigError, TrainConfig

SEEDS = {"validation": 2_000_003, "test": 3_000_017}
# Name of a sampling -> its temperature, and the share of the examples that it is measured on.
SAMPLINGS = {"greedy": (0.0, 1.0), "T=1": (1.0, 0.25)}
VALIDATION_SHARE = 1 / 3  # of all contents


def main() -> None:
    args = parser().parse_args()
    table = ALL[args.table]
    score(table, table.row(args.row), args.checkpoint, args.part, args.output, args)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    found.add_argument("table", choices=list(ALL))
    found.add_argument("row")
    found.add_argument("checkpoint", help="a Hugging Face directory, or a policy that ships")
    found.add_argument("--part", choices=[*SEEDS, "published"], required=True)
    found.add_argument("--output", type=pathlib.Path, required=True)
    found.add_argument("--count", type=int, help="examples of a split, in place of the table's")
    found.add_argument("--published", help="folder of the published maps")
    return found


# --- what is scored on --------------------------------------------------------------------------


def scoring_config(table: Table, row: Row, published: str | None = None) -> TrainConfig:
    """The table's recipe with what belongs to scoring: the same test for all rows."""
    overrides = [*table.scored, *row.scored]
    overrides += [f"eval.path={published}"] if published else []
    config = resolve(str(CONFIGS / f"{table.base}_base.yaml"), tuple(overrides))
    if isinstance(config, str):
        raise ConfigError(config)
    return config


def exam(table: Table, row: Row, part: str, count: int | None = None) -> str:
    """Tells tests apart: what is played, and how a reply is scored."""
    sections = ("task", "data", "env", "rollout", "reward", "scorer", "options")
    config = {k: v for k, v in told(scoring_config(table, row)).items() if _of(k, sections)}
    count = count or (table.validation if part == "validation" else table.test)
    drawn = None if part == "published" else [SEEDS[part], VALIDATION_SHARE, count, table.splits]
    text = json.dumps([config, drawn, SAMPLINGS], sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def _of(key: str, sections: Sequence[str]) -> bool:
    return key.split(".")[0] in sections


def content(example: Any) -> str:
    """What tells an example's contents from others'."""
    return example.key if hasattr(example, "key") else example[0].key


def part_of(key: str) -> str:
    """Whether contents belong to the validation or to the test examples."""
    share = int(hashlib.sha1(f"ablation {key}".encode()).hexdigest()[:8], 16) / 16**8
    return "validation" if share < VALIDATION_SHARE else "test"


def draw(
    config: TrainConfig, processor: Any, labels: Sequence[str], count: int, part: str
) -> dict[str, list[Any]]:
    """Generated examples of a split by label, as many of each, none twice as training shows it.

    Args:
      config: its data are left out of what is drawn.
      labels: of the split; those of navigation are sizes, "3x3".
      count: of the split, rounded up to a multiple of the labels.
      part: "validation" or "test".
    """
    from vrrl_jax import tasks

    training = tasks.make(config, processor).training()
    each = -(-count // len(labels))
    share = VALIDATION_SHARE if part == "validation" else 1 - VALIDATION_SHARE
    wanted = int(each / share * 1.25) + 24
    while True:
        changed: dict[str, Any] = {"seed": SEEDS[part], "count": wanted * max(2, len(labels))}
        if hasattr(config.eval, "levels"):
            levels = tuple(int(label.split("x")[0]) for label in labels)
            changed |= {"levels": levels, "count": wanted * len(levels)}
        section = dataclasses.replace(config.eval, **changed)
        found = tasks.make(dataclasses.replace(config, eval=section), processor).evaluation(
            training
        )
        by_label: dict[str, list[Any]] = {label: [] for label in labels}
        for example, label in zip(found.examples, found.labels, strict=True):
            if label in by_label and part_of(content(example)) == part:
                by_label[label].append(example)
        if min(map(len, by_label.values())) >= each:
            return {label: examples[:each] for label, examples in by_label.items()}
        wanted = wanted * 3 // 2


def published_maps(config: TrainConfig, processor: Any) -> tuple[dict[str, list[Any]], int]:
    """The published maps by label without those that are trained on, and how many these are."""
    from vrrl_jax import tasks

    task = tasks.make(config, processor)
    shown = {content(example) for example in task.training()}
    found = task.evaluation()
    by_label: dict[str, list[Any]] = {}
    for example, label in zip(found.examples, found.labels, strict=True):
        if content(example) not in shown:
            by_label.setdefault(label, []).append(example)
    return by_label, len(found.examples) - sum(map(len, by_label.values()))


# --- scoring ------------------------------------------------------------------------------------


def score(table: Table, row: Row, checkpoint: str, part: str, output: pathlib.Path, args) -> None:
    """Plays the examples greedily and, some of them, at temperature 1, and writes the figures."""
    from vrrl_jax import evaluate, tasks
    from vrrl_jax.checkpoint import hf
    from vrrl_jax.processing.processor import load_processor

    began = time.time()
    config = scoring_config(table, row, args.published if part == "published" else None)
    policy, params = hf.load_pretrained(checkpoint)
    processor = load_processor(policy.directory)
    task = tasks.make(config, processor)
    left_out = 0
    if part == "published":
        examples, left_out = published_maps(config, processor)
    else:
        count = args.count or (table.validation if part == "validation" else table.test)
        # Learning rates are chosen in-domain: what is out of distribution stays unseen.
        splits = [table.chosen_by] if part == "validation" else list(table.splits)
        examples = {}
        for split in splits:
            examples |= draw(config, processor, table.splits[split], count, part)
    arrays: dict[str, np.ndarray] = {}
    for label, shown in examples.items():
        arrays[f"{label}|contents"] = np.array([content(example)[:16] for example in shown])
        for sampling, (temperature, share) in SAMPLINGS.items():
            some = shown[: math.ceil(share * len(shown))]
            measured = evaluate.measure(
                policy,
                params,
                processor,
                task,
                tasks.Examples(some, (label,) * len(some), frozenset()),
                dataclasses.replace(config.eval, temperatures=(temperature,), samples=1),
                config.rollout,
                config.env.max_turns,
                tasks.score_of(config, task),
                progress=lambda name, done, of, label=label: print(
                    f"{label} {name}: {done} of {of}", flush=True
                ),
            )
            for metric, values in measured.figures[temperature].items():
                arrays[f"{label}|{sampling}|{metric}"] = values.mean(1).astype(np.float32)
    meta = {
        "checkpoint": checkpoint,
        "part": part,
        "seed": SEEDS.get(part),
        "left_out": left_out,
        "test": exam(table, row, part, args.count),
        "version": version(),
        "minutes": round((time.time() - began) / 60, 2),
    }
    write(output, arrays, meta)
    print(f"{output}: {meta['minutes']} minutes")


def version() -> str:
    """The commit of the code that scores, "+" where files have changed since."""
    told = lambda *words: subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return told("rev-parse", "--short", "HEAD") + ("+" if told("status", "--porcelain") else "")


def write(output: pathlib.Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """The figures of every example, [examples] for "<label>|<sampling>|<metric>"."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)
    os.replace(partial, output)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
        return arrays, json.loads(str(file["meta"]))


if __name__ == "__main__":
    main()
