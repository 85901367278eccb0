"""Episodes as HTML: every turn's picture beside the reply to it."""

from __future__ import annotations

import base64
import html
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vrrl_jax.progress import format_number


def spread(episodes: Sequence[tuple[int, Any]], limit: int) -> list[tuple[int, Any]]:
    """At most `limit` episodes from steps spread evenly from the first to the last."""
    if len(episodes) <= limit:
        return list(episodes)
    by_step: dict[int, list[Any]] = {}
    for step, episode in episodes:
        by_step.setdefault(step, []).append(episode)
    steps = sorted(by_step)
    wanted = max(1, min(len(steps), limit * len(steps) // len(episodes)))
    last = len(steps) - 1
    picked = [steps[round(i * last / max(1, wanted - 1))] for i in range(wanted)]
    return [(step, e) for step in picked for e in by_step[step]][:limit]


def gallery(folder: pathlib.Path, episodes: Sequence[tuple[int, Any]], limit: int) -> str:
    """A section of the report; "" without episodes.

    Args:
      folder: that the records' pictures are relative to.
      episodes: (step, record) as `log.save_episodes` writes them.
      limit: of the number shown.
    """
    chosen = spread(episodes, limit)
    if not chosen:
        return ""
    of = f", {len(chosen)} of {len(episodes)} saved" if len(chosen) < len(episodes) else ""
    parts, step_before = [f"<h2>Episodes<small>{of}</small></h2>"], None
    for step, episode in chosen:
        if step != step_before:
            parts.append(f"<h3>Step {step:,}</h3>")
        step_before = step
        parts.append(_episode(folder, episode))
    return "\n".join(parts)


def _episode(folder: pathlib.Path, episode: Mapping[str, Any]) -> str:
    rewards = {k: v for k, v in episode.get("rewards", {}).items() if v is not None}
    right = rewards.get("final_em", rewards.get("em"))
    badges = [f'<span class="badge">{html.escape(str(episode.get("mode", "normal")))}</span>']
    if "total" in rewards:
        badges.append(f'<span class="badge">reward {format_number(rewards["total"])}</span>')
    if right is not None:
        kind, word = ("good", "right") if right > 0.5 else ("bad", "wrong")
        badges.append(f'<span class="badge {kind}">{word}</span>')
    if episode.get("truncated"):
        badges.append('<span class="badge bad">truncated</span>')
    prefix = episode.get("prefix_turns", 0)
    if prefix:
        kind = "right" if episode.get("prefix_right") else "wrong"
        turns = "1 turn" if prefix == 1 else f"{prefix} turns"
        badges.append(f'<span class="badge">rolled in: {turns}, {kind}</span>')
    question = html.escape(str(episode.get("question", "")))
    badges.append(f'<span class="soft">question {question}</span>')
    turns = "".join(
        _turn(folder, u, turn, u < prefix) for u, turn in enumerate(episode.get("turns", ()))
    )
    chips = "".join(
        f"<span>{html.escape(str(k))} <b>{format_number(v)}</b></span>" for k, v in rewards.items()
    )
    return (
        f'<article class="episode"><header>{"".join(badges)}</header>'
        f'<div class="turns">{turns}</div><div class="chips">{chips}</div></article>'
    )


def _turn(folder: pathlib.Path, index: int, turn: Mapping[str, Any], rolled: bool) -> str:
    """A turn's pictures and its prompt with the reply to it below."""
    label = f"turn {index + 1}" + (", rolled in" if rolled else "")
    shown = "".join(_picture(folder, str(name), label) for name in turn.get("pictures", ()))
    shown = shown or '<div class="missing">no picture</div>'
    asked = turn.get("prompt")
    prompt = f'<p class="prompt">{html.escape(asked)}</p>' if asked else ""
    text = turn.get("text")
    reply = f"<pre>{mark_tags(text)}</pre>" if text is not None else ""
    kind = "turn rolled" if rolled else "turn"
    return f'<div class="{kind}"><h4>{label}</h4>{shown}{prompt}{reply}</div>'


def _picture(folder: pathlib.Path, name: str, label: str) -> str:
    path = folder / name
    if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        return f'<img alt="{label}" src="data:image/png;base64,{data}">'
    return '<div class="missing">picture missing</div>'


def mark_tags(text: str) -> str:
    """A reply, escaped, its tags in colour."""
    escaped = html.escape(text)
    return re.sub(r"&lt;/?[A-Za-z_]+&gt;", r'<span class="tag">\g<0></span>', escaped)
