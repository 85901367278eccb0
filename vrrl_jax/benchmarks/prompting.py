"""Ways to put a question, and which part of the replies is its answer.

    direct   the benchmark's own prompt
    cot      one prompt for four steps, in LLaVA-CoT's tags (arXiv 2411.10440)
    chain    four calls, a step each, that see those before
    reflect  the benchmark's own prompt; then to check the answer against the picture, and answer
             again: both answers are scored
    boxed    the question with VL-Rethinker's suffix (arXiv 2504.08837)

The words of cot, chain and reflect are this library's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vrrl_jax.answer import Question
from vrrl_jax.benchmarks.benchmark import Benchmark
from vrrl_jax.benchmarks.prompts import BOXED
from vrrl_jax.data.records import MARK, Record
from vrrl_jax.processing.images import open_image

WORDING = "vrrl-1"  # changes with any word below
TURNS = {"direct": 1, "cot": 1, "chain": 4, "reflect": 2, "boxed": 1}
STEPS = {
    "SUMMARY": "what is asked, and how you will go about it",
    "CAPTION": "what the picture shows that matters for the question",
    "REASONING": "the way to the answer, step by step",
    "CONCLUSION": "the final answer alone",
}
_COT = (
    "\n\nAnswer in four steps, each inside its own tags:\n"
    + "\n".join(f"<{tag}> {what} </{tag}>" for tag, what in STEPS.items())
    + "\n{form}"
)
_CHAIN_OPENS = "\n\nFour steps lead to the answer; take only the one that you are asked for. "
_CHECK = (
    "Look at the picture again and check your answer against it. If it holds, repeat it; if it "
    "doesn't, correct it. Then give your final answer in the form that was asked for."
)
# Signs that a reply goes back on itself: self-verification, self-correction, self-questioning.
_RETHINKING = re.compile(
    r"\bwait\b|\bdouble[- ]check|\bon second thought|\bre-?examin|\bre-?consider|\bre-?check"
    r"|\bre-?evaluat|\bre-?verif|\blet(?:'s| me| us) (?:verify|check|look again|think again)"
    r"|\bcheck(?:ing)? (?:my|the) answer|\bi (?:have )?made a mistake|\blook(?:ing)? again\b",
    re.IGNORECASE,
)


def prompt_id(benchmark: Benchmark, mode: str, prompt: str | None) -> str:
    """What the table calls the wording of a mode."""
    own = prompt or next(iter(benchmark.prompts))
    return {"direct": own, "reflect": f"{own}+{WORDING}", "boxed": "vl-rethinker"}.get(
        mode, WORDING
    )


def opening(benchmark: Benchmark, record: Record, mode: str, prompt: str | None = None) -> str:
    """The first user turn, with `<image>` marks.

    Raises:
      ValueError: the row lacks what the prompt is made of.
    """
    if mode in ("direct", "reflect"):
        return benchmark.prompts[prompt or next(iter(benchmark.prompts))](record)
    question = benchmark.ask(record)
    if mode == "boxed":
        return question + BOXED
    if mode == "cot":
        return question + _COT.format(form=benchmark.form(record))
    return question + _CHAIN_OPENS + _step(benchmark, record, 0)


def follow(benchmark: Benchmark, record: Record, mode: str, turn: int) -> str:
    """The user turn before reply `turn`, which counts from 0; 1 at least."""
    return _CHECK if mode == "reflect" else _step(benchmark, record, turn)


def _step(benchmark: Benchmark, record: Record, turn: int) -> str:
    tag = list(STEPS)[turn]
    last = f" {benchmark.form(record)}" if tag == "CONCLUSION" else ""
    return f"Step {turn + 1}: {STEPS[tag]}. Write only <{tag}> ... </{tag}>.{last}"


def messages(text: str, system: str | None = None) -> list[dict[str, Any]]:
    """A chat of one user turn, its marks as image parts, in Hugging Face form."""
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(text.split(MARK)):
        if i:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    user = {"role": "user", "content": parts}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def question(
    benchmark: Benchmark,
    record: Record,
    mode: str,
    prompt: str | None = None,
    system: str | None = None,
) -> Question:
    """The chat that opens a question, its pictures read.

    Raises:
      OSError, ValueError: a picture can't be read, or the prompt doesn't place each of them once.
    """
    text = opening(benchmark, record, mode, prompt)
    marks = text.count(MARK)
    if marks != len(record.pictures):
        raise ValueError(f"{len(record.pictures)} pictures, but {marks} marks in the prompt")
    images: list[np.ndarray] = [open_image(source) for source in record.pictures]
    return Question(messages(text, system), images)


def go_on(chat: Question, reply: str, text: str) -> Question:
    """A chat after a reply and the next user turn."""
    turns = [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    return Question([*chat.messages, *turns], chat.images)


def final(mode: str, replies: Sequence[str]) -> str:
    """What the scoring rules read: of cot and chain the conclusion, where it is marked."""
    reply = replies[-1]
    if mode not in ("cot", "chain"):
        return reply
    start = reply.upper().rfind("<CONCLUSION>")
    if start < 0:
        return reply
    inside = reply[start + len("<CONCLUSION>") :]
    end = inside.upper().find("</CONCLUSION>")
    return (inside if end < 0 else inside[:end]).strip()


def rethinks(mode: str, replies: Sequence[str]) -> bool:
    """Whether a reply goes back on itself unasked: in reflect, only the first can."""
    texts = replies[:1] if mode == "reflect" else replies
    return any(_RETHINKING.search(text) for text in texts)
