"""Rows of the sets of exam questions: MathVista, MathVerse, MathVision, MMMU, MMMU-Pro, EMMA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.mappers.cells import letter_of, literal_texts
from vrrl_jax.data.records import At, Record, build, is_empty, open_kind, rest, text, texts

_MATHVERSE_VERSIONS = (
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)


def _either(row: Mapping[str, Any]) -> Any:
    """The picture itself where a row holds it beside its path, else the path."""
    return row.get("image") if is_empty(row.get("decoded_image")) else row["decoded_image"]


def _subject(row: Mapping[str, Any], name: str) -> str:
    metadata = row.get("metadata")
    return text(metadata, name, default="") if isinstance(metadata, Mapping) else ""


def _numbered_pictures(row: Mapping[str, Any], count: int) -> dict[int, Any]:
    """Columns image_1 .. image_count that hold a picture, by their numbers."""
    cells = {number: row.get(f"image_{number}") for number in range(1, count + 1)}
    return {number: cell for number, cell in cells.items() if not is_empty(cell)}


def mathvista(at: At, row: Mapping[str, Any]) -> Record:
    """MathVista: a multiple choice is answered by the choice's text; "test" withholds answers."""
    choices = texts(row, "choices")
    answer = text(row, "answer", default="").strip()
    kind = "number" if row.get("answer_type") in ("integer", "float") else "text"
    if row.get("question_type") == "multi_choice":
        kind = "choice"
        if not choices:
            raise ValueError("a multiple choice without choices")
        answer = letter_of(answer, choices) if answer else ""
    if not answer and at.split != "test":
        raise ValueError("the answer is empty")
    return build(
        at,
        question=text(row, "question"),
        pictures=[_either(row)],
        answer=answer or None,
        kind=kind,
        options=choices,
        category=_subject(row, "task"),
        extra=rest(row, "question", "image", "decoded_image", "choices", "answer"),
    )


def mathverse(at: At, row: Mapping[str, Any]) -> Record:
    """MathVerse: choices stand in the question, which may be in the picture alone."""
    version = text(row, "problem_version", default="")
    text_only = is_empty(row.get("image")) and version not in _MATHVERSE_VERSIONS
    return build(
        at,
        question=text(row, "question", default=""),
        pictures=[] if text_only else [row.get("image")],
        answer=text(row, "answer").strip(),
        kind="choice" if row.get("question_type") == "multi-choice" else "math",
        category=version,
        extra=rest(row, "question", "image", "answer"),
        blank=version == "Vision Only",
    )


def mathvision(at: At, row: Mapping[str, Any]) -> Record:
    """MathVision: `<image1>` marks; a letter where there are options."""
    options = texts(row, "options")
    return build(
        at,
        question=text(row, "question"),
        pictures=[_either(row)],
        answer=text(row, "answer").strip(),
        kind="choice" if options else "math",
        options=options,
        category=text(row, "subject", default=""),
        extra=rest(row, "question", "image", "decoded_image", "options", "answer", "subject"),
    )


def mmmu(at: At, row: Mapping[str, Any]) -> Record:
    """MMMU: up to seven pictures, `<image 1>` marks in question and options, options as a literal.

    Open questions may have several answers, as a literal too. The subject stands in the id.
    """
    answer, accepted, kind = text(row, "answer").strip(), (), "choice"
    options = literal_texts(row.get("options"), "options")
    if row.get("question_type") == "open":
        options = ()
        if answer.startswith("["):
            answer, *accepted = literal_texts(answer, "answer") or ("",)
        kind = open_kind(answer)
    elif not options:
        raise ValueError("a multiple choice without options")
    used = ("question", "options", "answer", *(f"image_{number}" for number in range(1, 8)))
    return build(
        at,
        question=text(row, "question"),
        pictures=_numbered_pictures(row, 7),
        answer=answer,
        kind=kind,
        options=options,
        accepted=accepted,
        category="_".join(text(row, "id").split("_")[1:-1]),
        extra=rest(row, *used),
        shown_elsewhere=text(row, "explanation", default=""),
    )


def mmmu_pro(at: At, row: Mapping[str, Any]) -> Record:
    """MMMU-Pro: "standard" as MMMU; in "vision" the one picture shows the question too."""
    vision = "question" not in row
    options = literal_texts(row.get("options"), "options")
    if not options:
        raise ValueError("a multiple choice without options")
    used = ("question", "options", "answer", "subject", "image")
    return build(
        at,
        question="" if vision else text(row, "question"),
        pictures=[row.get("image")] if vision else _numbered_pictures(row, 7),
        answer=text(row, "answer").strip(),
        kind="choice",
        options=options,
        category=text(row, "subject", default=""),
        extra=rest(row, *used, *(f"image_{number}" for number in range(1, 8))),
        shown_elsewhere=text(row, "explanation", default=""),
        blank=vision,
    )


def emma(at: At, row: Mapping[str, Any]) -> Record:
    """EMMA: a context before the question, `<image_1>` marks in both and in the options."""
    context = text(row, "context", default="").strip()
    question = text(row, "question")
    choice = row.get("type") == "Multiple Choice"
    options = texts(row, "options") if choice else ()
    if choice and not options:
        raise ValueError("a multiple choice without options")
    used = ("context", "question", "options", "answer", "subject")
    return build(
        at,
        question=f"{context}\n{question}" if context else question,
        pictures=_numbered_pictures(row, 5),
        answer=text(row, "answer").strip(),
        kind="choice" if choice else "math",
        options=options,
        category=text(row, "subject", default=""),
        extra=rest(row, *used, *(f"image_{number}" for number in range(1, 6))),
        shown_elsewhere=text(row, "solution", default=""),
    )
