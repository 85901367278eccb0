"""Ablation tables as Markdown and plots, from their results alone."""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Callable

from ablation_results import (
    Results,
    base_cell,
    entry_of,
    generated,
    mean_and_interval,
    pairs,
    problems,
    row_cells,
    scores_of,
    search_scores,
)
from ablation_runs import config_of, frozen
from ablation_score import SAMPLINGS
from ablation_tables import CONFIGS, FRESH_SEEDS, ROOT, SEARCH_SEEDS, Row, Table

from vrrl_jax.log import write_atomically

NOT_RUN = "not run"


def render(
    table: Table,
    results: Results,
    docs: pathlib.Path,
    configs: pathlib.Path = ROOT / CONFIGS,
) -> pathlib.Path:
    """Writes a table's document, and its plots where there is something to plot."""
    path = docs / f"ablation_{table.name}.md"
    plots = plot(table, results, docs, configs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, markdown(table, results, configs, plots))
    return path


# --- text ---------------------------------------------------------------------------------------


def markdown(
    table: Table, results: Results, configs: pathlib.Path, plots: tuple[str, ...] = ()
) -> str:
    """The document of a table."""
    splits = list(table.splits)
    parts = [f"# Ablation: {table.title}", protocol(table, results, configs)]
    parts += [f"![{table.title}]({name})" for name in plots]
    for sampling, (_, share) in SAMPLINGS.items():
        parts.append(f"## Success, {'greedy' if sampling == 'greedy' else 'sampled at T=1'}")
        parts.append(
            f"Percent of {round(share * table.test):,} generated test examples a split, mean over "
            "seeds ± half the 95% t interval over seeds; in brackets the gain over the base."
        )
        parts.append(grid(table, results, configs, "test", sampling, splits))
    first = [m for m in ("turn1_em",) if _has(table, results, configs, m)]
    if first:
        parts.append("## First proposals, greedy")
        parts.append("Percent right before anything was looked at again, and of final answers.")
        parts.append(turns(table, results, configs))
    parts.append("## Differences")
    parts.append(
        "Success in points, paired by seed and by example: mean over seeds ± half the 95% t "
        "interval over seeds, their number, and in brackets ± 1.96 standard errors over examples."
    )
    parts.append(differences(table, results, configs))
    if table.published:
        parts.append("## Published maps, greedy")
        parts.append(
            "Scored once, at the end, without the maps that are trained on"
            f"{left_out(table, results)}."
        )
        parts.append(grid(table, results, configs, "published", "greedy", splits))
    parts.append("## The search")
    parts.append(
        f"{table.chosen_by.capitalize()} success in percent of the validation examples, mean of "
        f"greedy and T=1, over seeds {_listed(SEARCH_SEEDS)}. In bold what is frozen in "
        f"`configs/ablation/{table.name}.yaml`; ° is at the edge of the grid, so that the best may "
        "lie beyond."
    )
    parts.append(search(table, results, configs))
    notes = [*problems(table, configs), *invalid(table)]
    if notes:
        parts += ["## Not possible now", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def left_out(table: Table, results: Results) -> str:
    """How many published maps are trained on, in words."""
    entry = entry_of(results, base_cell(table)) or {"scores": {}}
    found = entry["scores"].get("published")
    return f", {found['left_out']} of them" if found else ""


def protocol(table: Table, results: Results, configs: pathlib.Path) -> str:
    """How the figures came about."""
    episodes = generated(results, table, configs)
    if not episodes:
        equal = "No fresh seed has been run yet."
    elif len(set(episodes.values())) == 1:
        each = next(iter(episodes.values()))
        equal = (
            f"Each of the {len(episodes)} runs of reinforcement learning so far generated "
            f"{each:,} episodes, filtered ones counted."
        )
    else:
        equal = f"**Runs generated unequally many episodes: {sorted(set(episodes.values()))}.**"
    return (
        f"Small scale, one CPU: `{config_of(base_cell(table)).policy.path}` trained by "
        f"`configs/ablation/{table.base}_base.yaml` and each row's overrides. Every method has the "
        f"same search: three learning rates by seeds {_listed(SEARCH_SEEDS)}, {table.search_steps} "
        f"of {config_of(base_cell(table)).steps} steps, scored on {table.validation:,} generated "
        f"{table.chosen_by} validation examples, which share no contents with the test. The choice "
        f"is frozen before any fresh seed ({FRESH_SEEDS[0]} to {FRESH_SEEDS[-1]}, or the first "
        f"three of them) is run at full length. {equal} Made by `python scripts/ablation.py "
        f"--table {table.name}`; the figures are in `ablation/{table.name}.json`."
    )


def grid(
    table: Table,
    results: Results,
    configs: pathlib.Path,
    part: str,
    sampling: str,
    splits: list[str],
) -> str:
    """One row a method, one column a split."""
    base = scores_of(results, base_cell(table), part)
    lines = []
    for row in table.rows:
        found = values(table, results, configs, row, part)
        entry = frozen(table, configs).get(row.name, {})
        cells = [row.title, str(len(found)) if found else "-", str(entry.get("learning_rate", "-"))]
        cells.append(minutes(table, results, configs, row))
        for split in splits:
            got = [100 * f[split][sampling]["success"] for f in found if split in f]
            text = spread(got)
            if got and base and split in base and row.kind != "base":
                text += f" ({statistics.mean(got) - 100 * base[split][sampling]['success']:+.1f})"
            # A published set may lack a split, or a policy as it is have no seeds.
            cells.append(text if got or not found else "-")
        lines.append(cells)
    return lay_out(["row", "seeds", "rate", "minutes", *splits], lines)


def minutes(table: Table, results: Results, configs: pathlib.Path, row: Row) -> str:
    """Of training, mean over fresh seeds."""
    entries = [entry_of(results, cell) for cell in row_cells(table, row, configs)]
    known = [entry["minutes"] for entry in entries if entry and "minutes" in entry]
    return f"{statistics.mean(known):.1f}" if known else "-"


def turns(table: Table, results: Results, configs: pathlib.Path) -> str:
    lines = []
    for row in table.rows:
        found = values(table, results, configs, row, "test")
        cells = [row.title]
        for split in table.splits:
            pair = [
                [100 * f[split]["greedy"][metric] for f in found]
                for metric in ("turn1_em", "final_em")
            ]
            means = [f"{statistics.mean(v):.1f}" for v in pair if v]
            cells.append(" → ".join(means) or NOT_RUN)
        lines.append(cells)
    return lay_out(["row", *table.splits], lines)


def differences(table: Table, results: Results, configs: pathlib.Path) -> str:
    """One row a comparison, one column a split and sampling."""
    columns = [(split, sampling) for split in table.splits for sampling in SAMPLINGS]
    lines = []
    for row, other in pairs(table):
        by_seed = matched(table, results, configs, row, other)
        stored = results["pairs"].get(f"{row.name}|{other.name}|test", {})
        cells = [f"{row.title} − {other.title}", str(len(by_seed)) if by_seed else "-"]
        for split, sampling in columns:
            apart = [
                100 * (a[split][sampling]["success"] - b[split][sampling]["success"])
                for a, b in by_seed.values()
            ]
            text = spread(apart, signed=True)
            if apart and stored.get("seeds") == sorted(by_seed):
                error = stored[split][sampling]["success"]["example_error"]
                text += f" [±{196 * error:.1f}]"
            cells.append(text)
        lines.append(cells)
    return lay_out(["comparison", "seeds", *(f"{a}, {b}" for a, b in columns)], lines)


def search(table: Table, results: Results, configs: pathlib.Path) -> str:
    choices, lines = frozen(table, configs), []
    for row in table.rows:
        if row.kind == "base":
            continue
        found = search_scores(results, table, row)
        cells = [row.title]
        for rate in sorted(row.rates, key=float):
            known = [100 * value for value in found.get(rate, [])]
            some = (
                f" ({len(known)} of {len(SEARCH_SEEDS)})" if len(known) < len(SEARCH_SEEDS) else ""
            )
            text = f"{rate}: {statistics.mean(known):.1f}{some}" if known else f"{rate}: {NOT_RUN}"
            chosen = str(choices.get(row.name, {}).get("learning_rate")) == rate
            edge = "" if rate == sorted(row.rates, key=float)[1] else " °"
            cells.append(f"**{text}**{edge}" if chosen else text)
        lines.append(cells)
    return lay_out(["row", "low rate", "middle", "high"], lines)


def invalid(table: Table) -> list[str]:
    """Rows whose recipes don't validate, and why."""
    found = []
    for row in table.rows:
        config = config_of(row_cells(table, row, pathlib.Path("nowhere"))[0])
        if isinstance(config, str):
            found.append(f"{row.title}: {config}")
    return found


# --- figures ------------------------------------------------------------------------------------


def values(
    table: Table, results: Results, configs: pathlib.Path, row: Row, part: str
) -> list[dict]:
    """The scores by split of a row's cells that are done."""
    found = (scores_of(results, cell, part) for cell in row_cells(table, row, configs))
    return [scores for scores in found if scores is not None]


def matched(
    table: Table, results: Results, configs: pathlib.Path, row: Row, other: Row
) -> dict[int, tuple[dict, dict]]:
    """Seed -> both rows' scores; a policy as it is goes with every seed."""
    ours, theirs = (
        {
            cell.seed: scores
            for cell in row_cells(table, which, configs)
            if (scores := scores_of(results, cell, "test")) is not None
        }
        for which in (row, other)
    )
    if row.kind == "base" and ours:
        ours = dict.fromkeys(theirs, ours[0])
    elif other.kind == "base" and theirs:
        theirs = dict.fromkeys(ours, theirs[0])
    return {seed: (ours[seed], theirs[seed]) for seed in sorted(ours) if seed in theirs}


def spread(found: list[float], *, signed: bool = False) -> str:
    """Mean ± half the interval; without interval for one, "not run" for none."""
    if not found:
        return NOT_RUN
    mean, half = mean_and_interval(found)
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if math.isnan(half) else f"{text} ± {half:.1f}"


def lay_out(head: list[str], lines: list[list[str]]) -> str:
    marks = "|---|" + "--:|" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(c) + " |" for c in [head]] + [marks]) + "".join(
        "\n| " + " | ".join(cells) + " |" for cells in lines
    )


def _has(table: Table, results: Results, configs: pathlib.Path, metric: str) -> bool:
    return any(
        metric in split["greedy"]
        for row in table.rows
        for scores in values(table, results, configs, row, "test")
        for split in scores.values()
    )


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds[:-1])) + f" and {seeds[-1]}"


# --- plots --------------------------------------------------------------------------------------


def plot(
    table: Table, results: Results, docs: pathlib.Path, configs: pathlib.Path
) -> tuple[str, ...]:
    """Draws success by row and split, and curves of training; the files' names.

    Without matplotlib nothing is drawn, and plots that are there stay in use.
    """
    drawings: list[tuple[str, Callable]] = []
    if any(values(table, results, configs, r, "test") for r in table.rows if r.kind != "base"):
        drawings.append((f"ablation_{table.name}.svg", _draw_success))
    if table.curves and curves(table, results, configs):
        drawings.append((f"ablation_{table.name}_curves.svg", _draw_curves))
    try:
        import matplotlib
    except ImportError:
        return tuple(name for name, _ in drawings if (docs / name).is_file())
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = table.name  # the same figures, the same file
    docs.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings:
        figure = draw(table, results, configs)
        figure.savefig(docs / name, metadata={"Date": None}, bbox_inches="tight")
    return tuple(name for name, _ in drawings)


def curves(
    table: Table, results: Results, configs: pathlib.Path
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Metric -> row -> (step, mean over seeds), where anything was logged."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric in table.curves:
        for row in table.rows:
            at: dict[int, list[float]] = {}
            for cell in row_cells(table, row, configs):
                entry = entry_of(results, cell) or {}
                for step, value in entry.get("curves", {}).get(metric, []):
                    at.setdefault(step, []).append(value)
            if at:
                line = [(step, statistics.mean(v)) for step, v in sorted(at.items())]
                found.setdefault(metric, {})[row.title] = line
    return found


def _draw_success(table: Table, results: Results, configs: pathlib.Path):
    from matplotlib.figure import Figure

    found = [(row, values(table, results, configs, row, "test")) for row in table.rows]
    found = [(row, scores) for row, scores in found if scores]
    size = (1.5 + 2.6 * len(table.splits), 0.8 + 0.32 * len(found))
    figure = Figure(figsize=size)
    axes = figure.subplots(1, len(table.splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, table.splits, strict=True):
        for sampling, mark, shift in zip(SAMPLINGS, "os", (-0.12, 0.12), strict=True):
            for place, (_, scores) in enumerate(found):
                mean, half = mean_and_interval(
                    [100 * s[split][sampling]["success"] for s in scores]
                )
                axis.errorbar(
                    mean,
                    place + shift,
                    xerr=None if math.isnan(half) else half,
                    fmt=mark,
                    color="C0" if sampling == "greedy" else "C1",
                    markersize=4,
                    capsize=2,
                    label=sampling if place == 0 else None,
                )
        axis.set_title(split, fontsize=9)
        axis.set_xlabel("success, %", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(found)), [row.title for row, _ in found], fontsize=8)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7)
    return figure


def _draw_curves(table: Table, results: Results, configs: pathlib.Path):
    from matplotlib.figure import Figure

    found = curves(table, results, configs)
    figure = Figure(figsize=(4 * len(found), 3))
    for axis, (metric, lines) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for title, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=title, linewidth=1)
        axis.set_title(metric.replace("_", " "), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=7)
    return figure
