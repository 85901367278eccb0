"""Files of predictions: a reply a line, the suite's own or another model's."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vrrl_jax.benchmarks import prompting

THEIRS = "theirs"  # the prompt of predictions that don't name one


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A line of a file of predictions.

    Attributes:
      model, mode, prompt: what gave the reply, and how it was asked.
      id: of the question.
      sample: which of the question's replies.
      replies: of every turn, the last one last; empty where the question failed.
      fields: the whole line.
    """

    model: str
    mode: str
    prompt: str
    id: str
    sample: int
    replies: tuple[str, ...]
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Read:
    """What files of predictions hold.

    Attributes:
      groups: (model, benchmark's label, mode, prompt) -> question's id -> its predictions.
      broken: a line each: lines that are no prediction, or one of no question that was asked.
    """

    groups: dict[tuple[str, str, str, str], dict[str, list[Prediction]]]
    broken: list[str]


def read_predictions(files: Sequence[str], labels: Mapping[str, str]) -> Read:
    """Reads files of predictions, each FILE or NAME=FILE.

    A line is {"id": ..., "reply": ...}; it may bring "benchmark", "model", "mode", "prompt",
    "sample", "turns", "finish", "error", "coordinates" and "shown". NAME wins over the line's
    model; without both, the file's name is it.

    Args:
      files: of JSON lines.
      labels: question's id -> the label of its benchmark.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file without a single sound line.
    """
    groups: dict[tuple[str, str, str, str], dict[str, list[Prediction]]] = {}
    broken, seen = [], set()
    for given in files:
        name, path = _named(given)
        good = 0
        for line, raw in enumerate(path.read_bytes().split(b"\n"), 1):
            if not raw.strip():
                continue
            try:
                made = _prediction(raw, name, path)
                label = _label(made, labels)
                key = (made.model, label, made.mode, made.prompt)
                if (*key, made.id, made.sample) in seen:
                    raise ValueError(f"a second reply to {made.id}, sample {made.sample}")
            except (ValueError, RecursionError) as error:
                broken.append(f"{path}, line {line}: {error}")
                continue
            seen.add((*key, made.id, made.sample))
            groups.setdefault(key, {}).setdefault(made.id, []).append(made)
            good += 1
        if not good:
            first = next((text for text in broken if text.startswith(f"{path}, ")), "it is empty")
            raise ValueError(f"{path} holds no prediction for these benchmarks: {first}")
    return Read(groups, broken)


def _named(given: str) -> tuple[str | None, pathlib.Path]:
    """(name, path) of FILE or NAME=FILE; a file whose name holds = is found too."""
    name, equals, rest = given.partition("=")
    whole = pathlib.Path(given)
    if not equals or whole.is_file():
        name, rest = None, given
    path = pathlib.Path(rest).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no predictions at {path}")
    return name, path


def _prediction(raw: bytes, name: str | None, path: pathlib.Path) -> Prediction:
    fields = json.loads(raw.decode("utf-8-sig"))
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, not {type(fields).__name__}")
    if not isinstance(fields.get("id"), str):
        raise ValueError('a prediction needs an "id", a text')
    reply, turns = fields.get("reply"), fields.get("turns")
    if reply is None and fields.get("error") is None:
        raise ValueError('a prediction needs a "reply" or an "error"')
    if reply is not None and not isinstance(reply, str):
        raise ValueError(f'"reply" should be a text, it is {type(reply).__name__}')
    sample = fields.get("sample", 0)
    if type(sample) is not int or sample < 0:
        raise ValueError(f'"sample" should be a number from 0, it is {sample!r}')
    texts = isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)
    mode = fields.get("mode", "direct")
    if mode not in prompting.TURNS:
        raise ValueError(f'"mode" is {mode!r}, expected one of {", ".join(prompting.TURNS)}')
    return Prediction(
        model=name or str(fields.get("model") or path.stem),
        mode=mode,
        prompt=str(fields.get("prompt") or THEIRS),
        id=fields["id"],
        sample=sample,
        replies=() if reply is None else tuple(turns) if texts else (reply,),
        fields=fields,
    )


def _label(made: Prediction, labels: Mapping[str, str]) -> str:
    label = labels.get(made.id)
    if label is None:
        raise ValueError(f"no question {made.id[:80]!r} was asked")
    named = made.fields.get("benchmark", label)
    if named != label:
        raise ValueError(f"{made.id} is a question of {label}, not of {str(named)[:40]!r}")
    return label
