"""One HTML file about a run: tables, curves, counters, and episodes turn by turn.

The file needs nothing beside it: curves are inline SVG, pictures are inlined, there is no script.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vrrl_jax.charts import COLOURS, Points, line_chart, sparkline
from vrrl_jax.gallery import gallery
from vrrl_jax.log import read_metrics, write_atomically
from vrrl_jax.progress import format_number, format_seconds

# Which metrics share a figure: title, pattern of names, whether they have one scale. A metric
# goes to the first that matches; what matches none is shown under "Other figures".
FIGURES: tuple[tuple[str, str, bool], ...] = (
    ("Reward", r"^(reward|total|reward/total)$", True),
    ("Success", r"success|(^|[/_])em$", True),
    ("Revision", r"wrong_to_right|right_to_wrong", True),
    ("Share with a signal", r"^effective_", True),
    ("Explained variance", r"explained_variance", False),
    ("Share of episodes", r"commit|format|exhausted|truncated", True),
    ("Reward, standard deviation", r"^reward_std$", True),
    ("Reward parts", r"^reward", True),
    ("KL to the reference", r"kl", True),
    ("Entropy", r"entropy", True),
    ("Loss", r"(^|_)loss$|^nll$", False),
    ("Gradient norm", r"grad_norm", True),
    ("Learning rate", r"learning_rate", True),
    ("Ratio", r"ratio|clip_", False),
    ("Throughput", r"per_second", False),
    ("Time", r"seconds", True),
)
# What an interval column belongs to, the first that a row has.
HEADLINES = ("gain", "final_em")
INTERVALS = ("interval", "+-95%")
SHOWN_EPISODES = 24


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's directory holds.

    Attributes:
      directory: where.
      config: the resolved configuration as text, "" without one.
      commands: how it was started, in order.
      metrics: lines of metrics.jsonl.
      evaluations: (file, table), a table being {"name", "rows"}.
      episodes: (step, record), in order.
      problems: files that could not be read, in words.
    """

    directory: pathlib.Path
    config: str
    commands: list[str]
    metrics: list[dict[str, Any]]
    evaluations: list[tuple[str, dict[str, Any]]]
    episodes: list[tuple[int, dict[str, Any]]]
    problems: list[str]


def write_report(
    run_dir: str | pathlib.Path, *, max_episodes: int = SHOWN_EPISODES
) -> pathlib.Path:
    """Writes report.html into a run's directory; returns its path.

    Args:
      run_dir: of `vrrl train` or `vrrl sft`. Whatever part of it is missing or broken is left
        out of the report, which says so.
      max_episodes: shown, spread over the run.

    Raises:
      FileNotFoundError: no such directory.
    """
    run = read_run(run_dir)
    css = resources.files("vrrl_jax").joinpath("assets/report.css").read_text(encoding="utf-8")
    name = html.escape(run.directory.resolve().name)
    body = "\n".join(
        (
            _header(run, name),
            _evaluations(run.evaluations),
            _figures(run.metrics),
            _counters(run.metrics),
            gallery(run.directory / "episodes", run.episodes, max_episodes),
            _configuration(run),
        )
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{css}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    path = run.directory / "report.html"
    write_atomically(path, page)
    return path


# --- reading -----------------------------------------------------------------------------------


def read_run(run_dir: str | pathlib.Path) -> Run:
    """Reads what there is; see `Run`."""
    directory = pathlib.Path(run_dir)
    if not directory.is_dir():
        raise FileNotFoundError(f"no run at {directory}: give a directory under runs/")
    problems: list[str] = []
    metrics: list[dict[str, Any]] = []
    try:
        metrics = read_metrics(directory / "metrics.jsonl")
    except ValueError as error:
        problems.append(str(error))
    evaluations, episodes = [], []
    for path in sorted(directory.glob("evaluation*.json")):
        for table in _tables(_read_json(path, problems)):
            evaluations.append((path.stem, table))
    for path in sorted((directory / "episodes").glob("step_*.json")):
        record = _read_json(path, problems)
        if isinstance(record, dict):
            step = int(record.get("step", 0))
            episodes += [(step, e) for e in record.get("episodes", ()) if isinstance(e, dict)]
    return Run(
        directory,
        _read_text(directory / "config.yaml"),
        _read_text(directory / "command.txt").splitlines(),
        metrics,
        evaluations,
        episodes,
        problems,
    )


def _read_text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: pathlib.Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return None


def _tables(record: Any) -> list[dict[str, Any]]:
    """Tables of an evaluation file: a list of them, one alone, or {"tables": [...]}."""
    if isinstance(record, dict):
        record = record.get("tables", [record])
    tables = record if isinstance(record, list) else []
    return [t for t in tables if isinstance(t, dict) and isinstance(t.get("rows"), list)]


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every metric as (step, value), in the order in which they first appear."""
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name in ("step", "time") or not (value is None or isinstance(value, int | float)):
                continue
            finite = value is not None and math.isfinite(value)
            found.setdefault(name, []).append((line["step"], float(value) if finite else None))
    return found


# --- sections ----------------------------------------------------------------------------------


def _header(run: Run, name: str) -> str:
    command = html.escape(run.commands[-1]) if run.commands else ""
    starts = f"started {len(run.commands)} times; the last: " if len(run.commands) > 1 else ""
    parts = [f"<h1>{name}</h1>"]
    if command:
        parts.append(f'<pre><span class="soft">{starts}$</span> {command}</pre>')
    parts += [f'<p class="problem">{html.escape(problem)}</p>' for problem in run.problems]
    tiles = _tiles(run)
    if tiles:
        cells = (f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        parts.append(f'<div class="tiles">{"".join(cells)}</div>')
    return "\n".join(parts)


def _tiles(run: Run) -> list[tuple[str, str]]:
    """The figures that matter first: (number, what it is)."""
    if not run.metrics:
        return []
    found = curves(run.metrics)
    tiles = [(f"{run.metrics[-1]['step']:,}", "steps")]
    for label, names in (
        ("reward", ("reward", "reward/total", "total")),
        ("success", ("success", "reward/final_em", "final_em")),
        ("loss", ("loss",)),
    ):
        if label == "loss" and len(tiles) > 1:
            continue  # Where there is a reward, the loss says nothing.
        name = next((n for n in names if n in found), None)
        values = [v for _, v in found.get(name, ()) if v is not None]
        if values:
            window = max(1, min(10, len(values) // 2))
            before, after = (sum(v) / len(v) for v in (values[:window], values[-window:]))
            ends = f"mean of the first and last {window} steps" if window > 1 else "first and last"
            what = f"{label}, {ends}"
            tiles.append((f"{format_number(before)} → {format_number(after)}", what))
    rates = [v for _, v in found.get("tokens_per_second", ()) if v is not None]
    if rates:
        tiles.append((format_number(sorted(rates)[len(rates) // 2]), "tokens a second, median"))
    times = [line["time"] for line in run.metrics if isinstance(line.get("time"), int | float)]
    if len(times) > 1:
        tiles.append((format_seconds(times[-1] - times[0]), "from the first step to the last"))
    return tiles


def _evaluations(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Tables: the final ones first, those of single steps folded away."""
    if not evaluations:
        return ""
    during = [(f, t) for f, t in evaluations if re.search(r"step_?\d", f)]
    ends = [e for e in evaluations if e not in during]
    if not ends:
        ends, during = during[-1:], during[:-1]
    ends.sort(key=lambda e: "final" not in e[0])
    parts = ["<h2>Evaluation</h2>", *(_table(file, table) for file, table in ends)]
    if during:
        tables = "".join(_table(file, table) for file, table in during)
        parts.append(
            f"<details><summary>During the run ({len(during)})</summary>{tables}</details>"
        )
    return "\n".join(parts)


def _table(file: str, table: Mapping[str, Any]) -> str:
    rows = [_flat(row) for row in table["rows"] if isinstance(row, dict)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    name, note = str(table.get("name", file)), table.get("note")
    head = "".join(f"<th>{html.escape(c.replace('_', ' '))}</th>" for c in columns)
    lines = [
        "<tr>" + "".join(_cell(row.get(column)) for column in columns) + "</tr>" for row in rows
    ]
    below = f'<p class="soft">{html.escape(str(note))}</p>' if note else ""
    return (
        f"<h3>{html.escape(name)} <small>{html.escape(file)}</small></h3>"
        f'<div class="wrap"><table><tr>{head}</tr>{"".join(lines)}</table></div>{below}'
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Nested figures as columns, an interval beside its headline; {"value", ...} is one cell."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "value" not in value:
            flat |= {str(k): v for k, v in value.items()}
        else:
            flat[str(key)] = value
    headline = next((name for name in HEADLINES if name in flat), None)
    interval = next((name for name in INTERVALS if name in flat), None)
    if headline and interval:
        flat[headline] = {"value": flat[headline], "half": flat.pop(interval)}
    return flat


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        low, high = value.get("low"), value.get("high")
        bounds = f" <small>{_number(low)} – {_number(high)}</small>" if low is not None else ""
        if value.get("half") is not None:
            bounds = f" <small>± {_number(value['half'])}</small>"
        return f"<td>{_number(value['value'])}{bounds}</td>"
    if isinstance(value, str):
        return f'<td class="text">{html.escape(value)}</td>'
    return f"<td>{_number(value)}</td>"


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return html.escape(str(value))
    return f"{value:,}" if isinstance(value, int) else format_number(value)


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    found = {n: c for n, c in curves(metrics).items() if not n.startswith("count/")}
    if not found:
        return '<h2>Curves</h2><p class="soft">No metrics were written.</p>'
    main, left = [], dict(found)
    for title, pattern, together in FIGURES:
        names = [n for n in left if re.search(pattern, n)]
        chosen = {n: left.pop(n) for n in names}
        if not together:
            main += [
                line_chart(n.replace("_", " ").capitalize(), {n: c}) for n, c in chosen.items()
            ]
            continue
        for i in range(0, len(names), COLOURS):
            main.append(line_chart(title, {n: chosen[n] for n in names[i : i + COLOURS]}))
    other = [line_chart(n, {n: curve}) for n, curve in left.items()]
    parts = ["<h2>Curves</h2>", f'<div class="charts">{"".join(main)}</div>']
    if any(other):
        parts.append(
            f"<details><summary>Other figures ({len(left)})</summary>"
            f'<div class="charts">{"".join(other)}</div></details>'
        )
    return "\n".join(parts)


def _counters(metrics: Sequence[Mapping[str, Any]]) -> str:
    """How often each mechanism fired."""
    found = {n: c for n, c in curves(metrics).items() if n.startswith("count/")}
    if not found:
        return ""
    rows = []
    for name, points in found.items():
        values = [v for _, v in points if v is not None]
        label = html.escape(name.removeprefix("count/").replace("_", " "))
        cells = (
            _number(sum(values)),
            f"{sum(v != 0 for v in values):,} of {len(points):,}",
            _number(values[-1] if values else None),
            sparkline(points),
        )
        rows.append(f"<tr><td>{label}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    head = (
        "<tr><th>mechanism</th><th>sum</th><th>steps with any</th><th>last step</th><th></th></tr>"
    )
    return f'<h2>Counters</h2><div class="wrap"><table>{head}{"".join(rows)}</table></div>'


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    return (
        "<h2>Configuration</h2><details><summary>config.yaml, resolved</summary>"
        f"<pre>{html.escape(run.config)}</pre></details>"
    )
