"""Runs recipes over several seeds and tabulates what they gained, with 95% intervals over seeds.

    python scripts/seeds.py docs/results/quickstart.md configs/quickstart.yaml --seeds 0 1 2 3 4
    python scripts/seeds.py docs/results/navigation.md configs/grpo_frozenlake_nano.yaml \\
        configs/vrrl_frozenlake_nano.yaml --seeds 0 1 2 data.path=... eval.path=...

Finished runs (runs/seeds/<recipe>-<hash of the overrides>-seed<n>) are kept and not run again; a
run that was cut goes on from its last checkpoint. `--jobs N` runs N side by side, each on one
thread: on a CPU that takes less time in all than one after another.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

# Two-sided 95% quantiles of Student's t, by degrees of freedom.
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLUMNS = ("before", "after", "gain", "of turn 1", "of revision", "of format")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=pathlib.Path, help="the Markdown file to write")
    parser.add_argument("arguments", nargs="+", metavar="recipe.yaml|key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, on a CPU")
    args = parser.parse_intermixed_args()
    recipes = [a for a in args.arguments if "=" not in a]
    overrides = [a for a in args.arguments if "=" in a]
    environment = dict(os.environ)
    if args.jobs > 1:
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        environment |= {"XLA_FLAGS": flags.strip(), "OMP_NUM_THREADS": "1"}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        started = {
            recipe: [pool.submit(run, recipe, seed, overrides, environment) for seed in args.seeds]
            for recipe in recipes
        }
    parts, after = [], {}
    for recipe in recipes:
        runs = [future.result() for future in started[recipe]]
        tables = [json.loads((r / "evaluation_final.json").read_text())[0] for r in runs]
        minutes = [float((r / "minutes.txt").read_text()) for r in runs]
        generated = [last_metric(r, "episodes_generated") for r in runs]
        text = markdown(recipe, overrides, args.seeds, tables, minutes, generated, args.jobs)
        parts.append(text)
        after[recipe] = tables
        if recipe != recipes[0]:
            parts.append(difference(recipes[0], recipe, after[recipes[0]], tables))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(parts))
    print(args.output.read_text())


def run(recipe: str, seed: int, overrides: list[str], environment: dict) -> pathlib.Path:
    """One run, unless it is there already."""
    tag = hashlib.sha1("\n".join(overrides).encode()).hexdigest()[:6] if overrides else "plain"
    directory = pathlib.Path("runs/seeds") / f"{pathlib.Path(recipe).stem}-{tag}-seed{seed}"
    if (directory / "minutes.txt").is_file():
        return directory
    command = [sys.executable, "-m", "vrrl_jax.cli", "train", recipe, *overrides]
    command += [f"seed={seed}", f"run_dir={directory}"]
    command += ["--resume"] if (directory / "config.yaml").is_file() else []
    started = time.time()
    print(f"== {' '.join(command[3:])}", flush=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f"{directory.name}.log").open("a") as output:
        subprocess.run(command, check=True, stdout=output, stderr=output, env=environment)
    (directory / "minutes.txt").write_text(f"{(time.time() - started) / 60:.2f}")
    return directory


def last_metric(directory: pathlib.Path, name: str) -> float:
    """The last value that a run logged."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])[name]


def interval(values: list[float]) -> float:
    """Half-width of the 95% t interval of the mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def markdown(recipe, overrides, seeds, tables, minutes, generated, jobs) -> str:
    """A section with one row a split and sampling, means over seeds."""
    together = f" ({jobs} runs at a time)" if jobs > 1 else ""
    noun = list(tables[0]["rows"][0])[2]
    columns = [c for c in COLUMNS if c in tables[0]["rows"][0]]
    lines = [
        f"## {recipe}",
        "",
        f"`vrrl train {' '.join([recipe, *overrides])} seed=N`, seeds {seeds}: "
        f"{statistics.mean(minutes):.1f} minutes{together} and {statistics.mean(generated):,.0f} "
        f"generated episodes a run. Success in percent of {noun}, mean over seeds; 95% intervals "
        "over seeds.",
        "",
        f"| split | sampling | {noun} | " + " | ".join(columns) + " | gain by seed |",
        "|---|---|--:|" + "--:|" * (len(columns) + 1),
    ]
    for rows in zip(*(table["rows"] for table in tables), strict=True):
        cells = []
        for column in columns:
            values = [row[column] for row in rows]
            spread = f" ± {interval(values):.1f}" if column in ("after", "gain") else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        by_seed = ", ".join(f"{row['gain']:+.1f}" for row in rows)
        first = rows[0]
        lines.append(
            f"| {first['split']} | {first['sampling']} | {first[noun]} | "
            + " | ".join(cells)
            + f" | {by_seed} |"
        )
    return "\n".join([*lines, ""])


def difference(one: str, other: str, ours: list[dict], theirs: list[dict]) -> str:
    """How success after training differs between two recipes, paired by seed."""
    lines = [
        f"### {pathlib.Path(other).stem} minus {pathlib.Path(one).stem}",
        "",
        "Success after training, points, paired by seed; 95% intervals over seeds.",
        "",
        "| split | sampling | difference | by seed |",
        "|---|---|--:|--:|",
    ]
    pairs = zip(
        zip(*(table["rows"] for table in ours), strict=True),
        zip(*(table["rows"] for table in theirs), strict=True),
        strict=True,
    )
    for a, b in pairs:
        apart = [y["after"] - x["after"] for x, y in zip(a, b, strict=True)]
        by_seed = ", ".join(f"{value:+.1f}" for value in apart)
        mean = f"{statistics.mean(apart):+.1f} ± {interval(apart):.1f}"
        lines.append(f"| {a[0]['split']} | {a[0]['sampling']} | {mean} | {by_seed} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
