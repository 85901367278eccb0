"""Figures of the ablation tables: of every run, of pairs of runs, and the choices made by them.

docs/results/ablation/<table>.json holds what the tables are made of again on any machine; figures
of single examples stay beside the runs.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from typing import Any

import numpy as np
import yaml
from ablation_runs import (
    Cell,
    base_cell,
    choice_fingerprint,
    chosen_rate,
    config_of,
    finals,
    fingerprint,
    frozen,
    frozen_path,
    outdated,
    searches,
    state,
)
from ablation_score import SAMPLINGS, exam, read
from ablation_tables import CONFIGS, ROOT, Row, Table
from seeds import interval

from vrrl_jax.log import write_atomically

PARTS = ("validation", "test", "published")
PAIRED = ("success", "final_em", "turn1_em")  # metrics whose differences are told
Results = dict[str, Any]


# --- one run ------------------------------------------------------------------------------------


def scores_file(cell: Cell, runs: pathlib.Path, part: str) -> pathlib.Path:
    return cell.directory(runs) / f"scores-{part}.npz"


def split_values(arrays: dict[str, np.ndarray], labels, sampling: str, metric: str) -> np.ndarray:
    """A metric's values of the examples of a split, label by label; empty where there are none."""
    names = [f"{label}|{sampling}|{metric}" for label in labels]
    return np.concatenate([arrays[n] for n in names if n in arrays] or [np.zeros(0)])


def aggregate(table: Table, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> dict:
    """Means by split, sampling and metric, with counts."""
    metrics = sorted({name.split("|")[2] for name in arrays if name.count("|") == 2})
    splits = {}
    for split, labels in table.splits.items():
        values = {
            sampling: {m: split_values(arrays, labels, sampling, m) for m in metrics}
            for sampling in SAMPLINGS
        }
        count = len(values["greedy"]["success"])
        if count:
            means = {
                sampling: {m: round(float(v.mean()), 5) for m, v in found.items()}
                for sampling, found in values.items()
            }
            splits[split] = {"examples": count, **means}
    kept = {k: meta[k] for k in ("test", "minutes", "left_out", "version") if k in meta}
    return {**kept, "splits": splits}


def read_run(cell: Cell, runs: pathlib.Path) -> dict[str, Any] | None:
    """What a finished run in its place tells; None where there is none."""
    if state(cell, runs)[0] != "trained":
        return None
    directory = cell.directory(runs)
    entry: dict[str, Any] = {"row": cell.row.name, "stage": cell.stage, "seed": cell.seed}
    entry |= {"rate": cell.rate, "fingerprint": fingerprint(config_of(cell))}
    if cell.stage != "base":
        entry["minutes"] = float((directory / "minutes.txt").read_text())
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        entry["episodes"] = int(steps[-1].get("episodes_generated", 0)) if steps else 0
        if cell.stage == "final":
            entry["curves"] = {
                name: [[s["step"], round(s[name], 4)] for s in steps if s.get(name) is not None]
                for name in cell.table.curves
            }
    entry["scores"] = {}
    for part in PARTS:
        if scores_file(cell, runs, part).is_file():
            arrays, meta = read(scores_file(cell, runs, part))
            entry["scores"][part] = aggregate(cell.table, arrays, meta)
    return entry


# --- a table ------------------------------------------------------------------------------------


def cells(table: Table, configs: pathlib.Path = ROOT / CONFIGS) -> list[Cell]:
    """All cells of a table: policies as they are, search runs, fresh seeds."""
    found = [base_cell(table)]
    found += [Cell(table, r, "base") for r in table.rows if r.kind == "base"]
    for row in table.rows:
        found += searches(table, row)
        if row.kind != "base":
            found += finals(table, row, chosen_rate(table, row, configs))
    return list({cell.name: cell for cell in found}.values())


def results_path(table: Table, docs: pathlib.Path) -> pathlib.Path:
    return docs / "ablation" / f"{table.name}.json"


def load_results(table: Table, docs: pathlib.Path) -> Results:
    path = results_path(table, docs)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"table": table.name, "runs": {}, "pairs": {}} | found


def refresh(
    table: Table,
    runs: pathlib.Path,
    docs: pathlib.Path,
    configs: pathlib.Path = ROOT / CONFIGS,
    write: bool = True,
) -> Results:
    """The table's results with what lies in `runs`; written where something changed."""
    results = load_results(table, docs)
    before = json.dumps(results, sort_keys=True)
    for cell in cells(table, configs):
        entry = read_run(cell, runs)
        if entry is not None and (entry["scores"] or cell.stage != "base"):
            earlier = results["runs"].get(cell.name, {})
            if earlier.get("fingerprint") == entry["fingerprint"]:
                # Scored on another machine, or its files are gone.
                entry["scores"] = earlier.get("scores", {}) | entry["scores"]
            results["runs"][cell.name] = entry
    for row, other in pairs(table):
        for part in ("test", "published"):
            found = paired(table, row, other, part, runs, configs)
            if found:
                results["pairs"][f"{row.name}|{other.name}|{part}"] = found
    if write and json.dumps(results, sort_keys=True) != before:
        path = results_path(table, docs)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(results, indent=1, sort_keys=True) + "\n")
    return results


def entry_of(results: Results, cell: Cell) -> dict[str, Any] | None:
    """What is known of a cell; None for nothing, or for a run of another configuration."""
    entry, config = results["runs"].get(cell.name), config_of(cell)
    if entry is None or isinstance(config, str) or (cell.rate is None and cell.stage == "final"):
        return None
    return entry if entry["fingerprint"] == fingerprint(config) else None


def scores_of(results: Results, cell: Cell, part: str) -> dict[str, Any] | None:
    """A cell's means by split; None where they aren't known, or are those of another test."""
    entry = entry_of(results, cell)
    found = entry and entry["scores"].get(part)
    if not found or found["test"] != exam(cell.table, cell.row, part):
        return None
    return found["splits"]


def generated(results: Results, table: Table, configs: pathlib.Path) -> dict[str, int]:
    """Episodes that the fresh runs of reinforcement learning generated, filtered ones included."""
    return {
        cell.name: entry["episodes"]
        for cell in cells(table, configs)
        if cell.stage == "final" and cell.row.kind == "train"
        if (entry := entry_of(results, cell)) is not None
    }


# --- choosing a learning rate -------------------------------------------------------------------


def choice_score(table: Table, splits: dict[str, Any]) -> float:
    """What learning rates are chosen by: in-domain success, greedy and at T=1, averaged."""
    found = splits[table.chosen_by]
    return statistics.mean(found[sampling]["success"] for sampling in SAMPLINGS)


def search_scores(results: Results, table: Table, row: Row) -> dict[str, list[float]]:
    """Learning rate -> the scores of its seeds that are known."""
    found: dict[str, list[float]] = {}
    for cell in searches(table, row):
        splits = scores_of(results, cell, "validation")
        if splits is not None:
            found.setdefault(cell.rate, []).append(choice_score(table, splits))
    return found


def freeze(
    results: Results, table: Table, row: Row, configs: pathlib.Path = ROOT / CONFIGS
) -> str | None:
    """Chooses a row's learning rate once all its search runs are scored; None before.

    What is chosen stays: a choice is made once and written down with its reasons.
    """
    rows = frozen(table, configs)
    if row.name in rows or row.kind == "base":
        return None
    scores = search_scores(results, table, row)
    if sum(map(len, scores.values())) < len(searches(table, row)):
        return None
    means = {rate: statistics.mean(values) for rate, values in scores.items()}
    best = max(sorted(means, key=float), key=means.get)  # the smallest of equals
    final = finals(table, row, best)[0]
    rows[row.name] = {
        "recipe": table.recipe(row),
        "overrides": [*row.overrides],
        "learning_rate": best,
        "chosen_by": f"{table.chosen_by} success in validation, mean of greedy and T=1",
        "validation": {
            rate: {"mean": round(means[rate], 5), "by_seed": [round(v, 5) for v in scores[rate]]}
            for rate in sorted(means, key=float)
        },
        "fingerprint": choice_fingerprint(table, row),
        "command": f"vrrl {'sft' if row.kind == 'sft' else 'train'} {table.recipe(row)} "
        + " ".join(f"'{o}'" if " " in o else o for o in final.overrides()[:-2])
        + f" seed=N optimizer.learning_rate={best}",
    }
    head = (
        f"# The frozen choices of the ablation `{table.name}`, written by scripts/ablation.py\n"
        "# before any fresh seed is run, and never made again: take an entry out to redo it.\n"
    )
    configs.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"rows": rows}, sort_keys=False, width=100)
    write_atomically(frozen_path(table, configs), head + text)
    return best


def problems(table: Table, configs: pathlib.Path = ROOT / CONFIGS) -> list[str]:
    """Frozen choices that fit their rows no more."""
    return [p for row in table.rows if row.kind != "base" and (p := outdated(table, row, configs))]


# --- differences --------------------------------------------------------------------------------


def pairs(table: Table) -> list[tuple[Row, Row]]:
    """Rows and what they are compared with."""
    return [
        (row, table.row(row.against or table.baseline))
        for row in table.rows
        if row.name != (row.against or table.baseline)
    ]


def row_cells(table: Table, row: Row, configs: pathlib.Path = ROOT / CONFIGS) -> list[Cell]:
    """The cells that a row of the table is made of."""
    if row.kind == "base":
        return [Cell(table, row, "base")]
    return finals(table, row, chosen_rate(table, row, configs))


def paired(
    table: Table,
    row: Row,
    other: Row,
    part: str,
    runs: pathlib.Path,
    configs: pathlib.Path = ROOT / CONFIGS,
) -> dict[str, Any] | None:
    """Differences on the same examples, of the seeds that both rows have files for.

    Returns:
      {"seeds", split: {sampling: {metric: {"by_seed", "example_error"}}}}: `example_error` is the
      standard error over examples of their differences, each averaged over the seeds.
    """
    ours = {c.seed: c for c in row_cells(table, row, configs)}
    theirs = {c.seed: c for c in row_cells(table, other, configs)}
    once = [rows for rows in (ours, theirs) if 0 in rows]  # a policy as it is has one
    seeds = sorted(set(ours) | set(theirs)) if once else sorted(set(ours) & set(theirs))
    seeds = [seed for seed in seeds if seed or len(once) == 2]
    loaded = []
    for seed in seeds:
        both = [cells_.get(seed, cells_.get(0)) for cells_ in (ours, theirs)]
        files = [scores_file(cell, runs, part) for cell in both]
        there = all(file.is_file() for file in files)
        if there and all(state(cell, runs)[0] == "trained" for cell in both):
            (a, one), (b, two) = map(read, files)
            wanted = [exam(table, cell.row, part) for cell in both]
            if [one["test"], two["test"]] == wanted and same_examples(a, b):
                loaded.append((seed, a, b))
    if not loaded:
        return None
    found: dict[str, Any] = {"seeds": [seed for seed, _, _ in loaded]}
    for split, labels in table.splits.items():
        found[split] = {s: {} for s in SAMPLINGS}
        for sampling in SAMPLINGS:
            for metric in PAIRED:
                apart = [
                    split_values(a, labels, sampling, metric)
                    - split_values(b, labels, sampling, metric)
                    for _, a, b in loaded
                ]
                if apart[0].size:
                    found[split][sampling][metric] = {
                        "by_seed": [round(float(d.mean()), 5) for d in apart],
                        "example_error": round(standard_error(np.mean(apart, 0)), 5),
                    }
    return found


def same_examples(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    names = {name for name in (*one, *other) if name.endswith("|contents")}
    return all(
        name in one and name in other and np.array_equal(one[name], other[name]) for name in names
    )


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; NaN for one alone."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half its 95% t interval, NaN for a single one."""
    return statistics.mean(values), interval(values)
