"""The results of a suite as files: results.json, results.md, and a verdict for every reply."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vrrl_jax.answer_file import to_line
from vrrl_jax.benchmarks.config import SuiteConfig
from vrrl_jax.benchmarks.scoring import Judged, Scored
from vrrl_jax.log import write_atomically

_COLUMNS = (
    "model",
    "benchmark",
    "split",
    "mode",
    "prompt",
    "n",
    "official",
    "strict",
    "±95%",
    "unparsed",
    "fallback",
    "failed",
    "rethinking",
)
_HEAD = """\
Shares are in percent. "official" is the published rule, "-" where it asks a language model;
"strict" judges the answer that a reply settles on, by the same metric. ±95% is half the bootstrap
interval of strict over questions. "failed" counts replies that are missing or could not be had;
they are wrong. "fallback" is the share of replies that only a rule of last resort could read.
Figures of different prompts, lengths and picture sizes are not comparable with each other.
"""


def write(output: pathlib.Path, config: SuiteConfig, scored: Scored) -> pathlib.Path:
    """Writes results.json, results.md and verdicts/; prints the table.

    Returns:
      The path of results.json.
    """
    folder = output / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    for row, judged in zip(scored.rows, scored.verdicts, strict=True):
        name = "-".join(str(row[key]) for key in ("model", "benchmark", "mode", "prompt"))
        path = folder / (re.sub(r"[^\w.+-]+", "_", name)[-150:] + ".jsonl")
        path.write_bytes(b"".join(to_line(_verdict(one)) for one in judged))
    text = markdown(scored)
    write_atomically(output / "results.md", text)
    found = {
        "rows": scored.rows,
        "broken predictions": {"count": len(scored.broken), "first": scored.broken[:20]},
        "skipped rows": {k: {"count": len(v), "first": v[:20]} for k, v in scored.skipped.items()},
        "resamples": config.resamples,
    }
    path = output / "results.json"
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(table(scored.rows))
    print(path)
    return path


def _verdict(one: Judged) -> dict[str, Any]:
    told = {"id": one.id, "sample": one.sample, "category": one.category, "state": one.state}
    for name in ("official", "strict", "first"):
        verdict = getattr(one, name)
        told[name] = None if verdict is None else dataclasses.asdict(verdict)
    return told | {"rethinks": one.rethinks, "cut": one.cut}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers to one decimal, None as "-"."""
    body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *body]) + "\n"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The one table: a row a model, benchmark and mode."""
    made = []
    for row in rows:
        spread = row["strict interval"]
        half = None if spread is None else (spread[1] - spread[0]) / 2
        shown = row | {
            "benchmark": row["title"],
            "±95%": half,
            "failed": row["missing"] + row["failed"],
        }
        made.append([shown[column] for column in _COLUMNS])
    return lines(_COLUMNS, made)


def markdown(scored: Scored) -> str:
    """results.md: the table, then reflection, categories, what isn't covered, and notes."""
    rows = scored.rows
    parts = ["# Benchmarks\n", table(rows), _HEAD]
    reflected = [row for row in rows if "first" in row]
    if reflected:
        columns = ("first", "final", "wrong to right", "right to wrong")
        body = [[row["model"], row["title"], *(row[c] for c in columns)] for row in reflected]
        parts += ["## Reflection, strict\n", lines(("model", "benchmark", *columns), body)]
    rethought = [row for row in rows if row["strict with rethinking"] is not None]
    if rethought:
        columns = ("rethinking", "strict with rethinking", "strict without")
        keys = ("model", "title", "mode", *columns)
        body = [[row[key] for key in keys] for row in rethought]
        parts += ["## Rethinking unasked\n", lines(("model", "benchmark", "mode", *columns), body)]
    body = [
        [row["model"], row["title"], row["mode"], name, c["n"], c["official"], c["strict"]]
        for row in rows
        for name, c in row["categories"].items()
    ]
    if body:
        columns = ("model", "benchmark", "mode", "category", "n", "official", "strict")
        parts += ["## By category\n", lines(columns, body)]
    parts += ["## Notes\n", _notes(scored)]
    return "\n".join(parts)


def _notes(scored: Scored) -> str:
    told = []
    seen = set()
    for row in scored.rows:
        if row["benchmark"] in seen:
            continue
        seen.add(row["benchmark"])
        told += [f"{row['title']}: {note}" for note in row["notes"]]
        if row["categories missing"]:
            told.append(f"{row['title']}: not in the mean: {', '.join(row['categories missing'])}")
        left = row["not covered"]
        if left:
            parts = ", ".join(f"{name} {count}" for name, count in left.items())
            whole = row["n"] + sum(left.values())
            told.append(
                f"{row['title']}: {row['n']} of {whole} questions, {len(row['categories'])} tasks "
                f"covered; not covered: {parts}"
            )
    for row in scored.rows:
        if row["missing"]:
            place = f"{row['model']}, {row['title']}, {row['mode']}"
            told.append(f"{place}: {row['missing']} of {row['replies']} replies are missing")
    for label, skipped in scored.skipped.items():
        many = f"{len(skipped)} rows of the data were skipped"
        told.append(f"{label}: {many}, the first: {skipped[0]}")
    if scored.broken:
        first = scored.broken[0]
        told.append(f"{len(scored.broken)} lines of predictions were not used, the first: {first}")
    return "".join(f"- {text}\n" for text in dict.fromkeys(told))
