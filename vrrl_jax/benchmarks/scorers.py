"""Which rule scores a record of each benchmark: (record, reply, prediction's fields) -> verdict."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from vrrl_jax.data.records import LETTERS, PictureSource, Record
from vrrl_jax.rewards import answers, benchmarks, boxes, charts, mathematics, mega, spatial
from vrrl_jax.rewards.extraction import (
    TEXT_LIMIT,
    TOO_LONG,
    Verdict,
    choice,
    extract,
    plain,
    yes_no,
)

Scorer = Callable[[Record, str, Mapping[str, Any]], Verdict]


def settled(reply: str) -> str:
    """The answer that a reply marks: tags, else the last box, else all of it."""
    return plain(extract(reply).text) if len(reply) <= TEXT_LIMIT else reply


def chartqa(mode: benchmarks.Mode) -> Scorer:
    def score(record, reply, fields):
        return benchmarks.chartqa(reply, (record.answer, *record.accepted), mode=mode)

    return score


def tablevqa(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    """The rule of the record's split; amounts count with or without their unit ("relieved")."""
    if record.kind == "yesno":
        return benchmarks.tablevqa_fact(reply, {"yes": "1", "no": "0"}[record.answer])
    if record.category.startswith("fintabnet"):
        return benchmarks.tablevqa_finance(reply, record.answer)
    return benchmarks.tablevqa_questions(reply, record.answer)


def tablevqa_strict(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    """The same rules on the answer that the reply marks."""
    answer = settled(reply)
    if record.kind == "yesno":
        word = yes_no(answer)
        return Verdict(word == record.answer, word, reason="" if word else "unreadable")
    return tablevqa(record, answer, fields)


def chartmuseum(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    return charts.chartmuseum(reply, record.answer)


def mathvista(mode: benchmarks.Mode) -> Scorer:
    def score(record, reply, fields):
        gold = record.answer
        if record.options:
            gold = record.options[LETTERS.index(gold)]
        return benchmarks.mathvista(
            reply,
            gold,
            answer_type=record.extra.get("answer_type") or "text",
            choices=record.options,
            precision=record.extra.get("precision"),
            mode=mode,
        )

    return score


def mathverse(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    kind = "multi-choice" if record.kind == "choice" else "free-form"
    return benchmarks.mathverse(reply, record.answer, kind)


def mathvision(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    return benchmarks.mathvision(reply, record.answer, record.options)


def strict_answer(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    """The letter that the reply settles on, or the equality of its marked answer."""
    if record.kind != "choice":
        return benchmarks.rethinker(reply, record.answer, mode="strict")
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    letter, fallback = choice(reply, record.options)
    return Verdict(letter == record.answer, letter, fallback, "" if letter else "unreadable")


def mmmu(mode: benchmarks.Mode) -> Scorer:
    def score(record, reply, fields):
        if record.options:
            return benchmarks.mmmu(reply, record.answer, record.options, mode=mode)
        text = settled(reply) if mode == "strict" else reply
        return benchmarks.mmmu_open(text, (record.answer, *record.accepted))

    return score


def mmmu_pro(mode: benchmarks.Mode) -> Scorer:
    def score(record, reply, fields):
        return benchmarks.mmmu_pro(reply, record.answer, record.options, mode=mode)

    return score


def emma(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    return mathematics.emma(reply, record.answer, record.options)


def mega_bench(mode: benchmarks.Mode) -> Scorer:
    def score(record, reply, fields):
        return mega.score(reply, record.extra["fields"], record.extra["metric_info"], mode=mode)

    return score


def refcoco(mode: str) -> Scorer:
    """ "official" reads shares of the picture; "strict" takes the system from the prediction."""

    def score(record, reply, fields):
        x1, y1, x2, y2 = record.boxes[0]
        system = fields.get("coordinates") or "unit"
        size = picture_size(record.pictures[0])
        shown = fields.get("shown") if system == "pixel" else None
        across, down = (1.0, 1.0) if not shown else (shown[0][0] / size[0], shown[0][1] / size[1])
        box = (x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down)
        return boxes.refcoco(
            settled(reply) if mode == "strict" else reply,
            box,
            (size[0] * across, size[1] * down),
            mode=mode,
            coordinates="pixel" if system == "original" else system,
        )

    return score


def picture_size(source: PictureSource) -> tuple[int, int]:
    """(width, height) of a picture as it is stored; its pixels aren't decoded."""
    from PIL import Image

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.size


def vsr_official(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    """VLMEvalKit's yes or no: one of the two words in the reply, and not the other."""
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    words = re.sub(r"[^\w\s]", "", reply.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    if len(found) != 1:
        return Verdict(False, None, reason="ambiguous" if found else "unreadable")
    return Verdict(found[0] == record.answer, found[0])


def vsr(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    return benchmarks.vsr(reply, int(record.answer == "yes"))


def spatialeval_official(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    answer, row = str(record.extra.get("oracle_answer") or ""), str(record.extra.get("id") or "")
    question = int(row.rsplit(".", 1)[-1]) if row.rsplit(".", 1)[-1].isdecimal() else 0
    return spatial.spatialeval_official(reply, answer, record.answer, question)


def spatialeval(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    return benchmarks.spatialeval(reply, record.answer)


def by_kind(record: Record, reply: str, fields: Mapping[str, Any]) -> Verdict:
    """The library's own rule for the record's kind."""
    return answers.judge(reply, record.answer, record.kind, options=record.options)
