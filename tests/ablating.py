"""Runs of the ablation tables that nobody trained, for tests."""

import dataclasses
import json

import ablation
import ablation_results as results_of
import ablation_runs as runs_of
import ablation_score as scoring
import numpy as np
import yaml
from ablation_tables import ALL, NAVIGATION

from vrrl_jax.config import to_yaml

GRPO, VRRL, PPO = (NAVIGATION.row(name) for name in ("grpo", "vrrl", "ppo"))
EXAMPLES = 4  # of a label


def finish(cell, places, *, episodes=7680, overrides=None):
    """Lays down what a training leaves behind."""
    directory = cell.directory(places.runs)
    (directory / "hf").mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(runs_of.config_of(cell), run_dir="elsewhere", **(overrides or {}))
    (directory / "config.yaml").write_text(to_yaml(config))
    (directory / "minutes.txt").write_text("3.5")
    steps = [{"step": 1, "episodes_generated": 128}]
    steps += [{"step": 2, "episodes_generated": episodes, "effective_queries": 0.75}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))


def mark(cell, places, right, part=None):
    """Lays down scores: of every label's examples the first `right` are solved, greedily."""
    part = part or cell.part
    arrays = {}
    splits = list(cell.table.splits)[: 1 if part == "validation" else None]
    for split in splits:
        for label in cell.table.splits[split]:
            arrays[f"{label}|contents"] = np.array([f"{label}{i}" for i in range(EXAMPLES)])
            solved = (np.arange(EXAMPLES) < right).astype(np.float32)
            for sampling in scoring.SAMPLINGS:
                for metric in ("success", "turn1_em", "final_em"):
                    arrays[f"{label}|{sampling}|{metric}"] = solved
    meta = {"test": scoring.exam(cell.table, cell.row, part), "minutes": 1.0, "left_out": 0}
    scoring.write(results_of.scores_file(cell, places.runs, part), arrays, meta)


def known(places, table=NAVIGATION):
    return results_of.refresh(table, places.runs, places.docs, places.configs)


def search_all(row, places, best="2e-4"):
    for cell in results_of.searches(NAVIGATION, row):
        finish(cell, places)
        mark(cell, places, 3 if cell.rate == best else 2)


def jobs(places, **wanted):
    known_ = {name: known(places, table) for name, table in ALL.items()}
    return [job.name for job in ablation.ready(ablation.Wanted(**wanted), known_, places)]


def freeze_by_hand(places, *rows):
    choices = {
        row.name: {
            "learning_rate": "1e-4",
            "fingerprint": runs_of.choice_fingerprint(NAVIGATION, row),
        }
        for row in rows
    }
    places.configs.mkdir(exist_ok=True)
    (places.configs / "navigation.yaml").write_text(yaml.safe_dump({"rows": choices}))
