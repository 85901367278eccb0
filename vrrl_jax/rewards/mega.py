"""MEGA-Bench (arXiv 2410.10563): how a reply is read, and a query's score out of its fields'.

Only rules that need no judge and no heavy dependency are here, see `mega_metrics.METRICS`. A query
with any other is not covered: `uncovered` names what is missing, and nothing scores it 0. Figures
over the covered part aren't comparable with MEGA core.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from vrrl_jax.rewards.extraction import (
    ANSWER_LIMIT,
    TEXT_LIMIT,
    TOO_LONG,
    Verdict,
    boxed,
    tagged,
)
from vrrl_jax.rewards.mega_metrics import METRICS

Mode = Literal["official", "strict"]
PARSERS = ("answer_string", "json", "dummy")
_FENCE = re.compile(r"\s*```[\w+-]{0,20}\n?(.*?)```\s*", re.DOTALL)
_ANSWER = re.compile(r"[*_]{0,3}answer\s{0,3}[*_]{0,3}:[*_]{0,3}", re.IGNORECASE)


def uncovered(fields: Any, info: Any) -> str:
    """What keeps a query from being scored here: a metric's or a parser's name; "" where nothing.

    Args:
      fields: the right answer by field.
      info: the row's `metric_info`.
    """
    if not isinstance(info, Mapping) or not isinstance(fields, Mapping) or not fields:
        return "no metric_info"
    parser = str(info.get("response_parse_function", ""))
    if parser not in PARSERS:
        return parser or "no response_parse_function"
    if info.get("global_aux_metrics"):
        return "global_aux_metrics"
    metrics = info.get("field_score_function") or {}
    names = [str(metrics.get(field, "no metric")) for field in _answered(fields)]
    if str((info.get("aggregation") or {}).get("function", "mean")) not in ("mean", "min"):
        return "aggregation"
    if parser == "answer_string" and len(names) != 1:
        return "answer_string of several fields"
    return next((name for name in names if name not in METRICS), "")


def score(
    reply: str, fields: Mapping[str, Any], info: Mapping[str, Any], *, mode: Mode = "official"
) -> Verdict:
    """A query's score, 0 .. 1, as the verdict's value; right where it is 1.

    The weighted mean of the fields' scores, or their minimum; a field of score -1 doesn't count.

    Args:
      reply: the model's text.
      fields: the right answer by field.
      info: the row's `metric_info`.
      mode: "official" reads nothing in `**Answer:** 5`, and takes any word's first letter for an
        option's. "strict" reads it, as well as answer tags and boxes, and takes a letter only
        where it stands apart.

    Raises:
      ValueError: the query is not covered.
    """
    missing = uncovered(fields, info)
    if missing:
        raise ValueError(f"not covered: {missing}")
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    read, failed = parse(reply, fields, str(info["response_parse_function"]), mode=mode)
    metrics, aggregation = info["field_score_function"], info.get("aggregation") or {}
    weights = aggregation.get("field_weights") or {}
    scores, total = [], 0.0
    for field in _answered(fields):
        answer = read.get(field)
        value = METRICS[metrics[field]]("" if answer is None else answer, fields[field], mode)
        weight = float(weights.get(field, 1))
        if value >= 0 and weight > 0:
            scores.append((value, weight))
            total += weight
    if not scores:
        return Verdict(False, None, failed, "unreadable", value=0.0)
    value = min(v for v, _ in scores)
    if aggregation.get("function", "mean") == "mean":
        value = sum(v * w for v, w in scores) / total
    shown = json.dumps({f: read.get(f) for f in _answered(fields)}, default=str, ensure_ascii=False)
    empty = not any(str(read.get(field) or "") for field in _answered(fields))
    return Verdict(
        value >= 1 - 1e-9,
        None if empty else shown[:ANSWER_LIMIT],
        failed,
        "unreadable" if empty else "",
        value=float(value),
    )


def _answered(fields: Mapping[str, Any]) -> list[str]:
    """The fields that are scored: names that open with ## hold remarks."""
    return [field for field in fields if not field.startswith("##")]


def parse(
    reply: str, fields: Mapping[str, Any], parser: str, *, mode: Mode = "official"
) -> tuple[dict[str, Any], bool]:
    """(what was read for each field, whether JSON was asked for and there is none).

    Then the whole reply stands for every field, as in the reference.
    """
    names = _answered(fields)
    if parser == "json":
        value = last_json(reply)
        if isinstance(value, dict) and value:
            return value, False
        return dict.fromkeys(names, reply), True
    if parser == "dummy":
        return dict.fromkeys(names, reply), False
    single = "\n" not in str(fields[names[0]])
    return {names[0]: answer_string(reply, mode=mode, single_line=single)}, False


def answer_string(reply: str, *, mode: Mode = "official", single_line: bool = True) -> str:
    """What follows the last `Answer:`, out of a code fence, and of a paragraph, unquoted.

    Without that mark, all of the reply ("strict": answer tags, else the last box, before that).
    """
    if mode == "official":
        before, mark, text = reply.rpartition("Answer:")
        if mark and before.endswith("*") and "*" in text:
            # A bold mark's second half ends the answer: `**Answer:** 5` leaves nothing.
            text = text.split("*", 1)[0]
    else:
        marks = list(_ANSWER.finditer(reply))
        inside = tagged(reply)
        inside = boxed(reply) if inside is None else inside
        text = reply if inside is None else inside
        text = reply[marks[-1].end() :] if marks and inside is None else text
    text = text.strip()
    fence = _FENCE.fullmatch(text)
    if fence is not None:
        text = fence.group(1).strip()
    elif single_line and text[:1].replace("-", "_").replace("_", "a").isalnum():
        text = text.split("\n\n", 1)[0].strip()
    if mode == "strict" and single_line:
        text = text.strip("*").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1]
    return text


def last_json(text: str) -> Any:
    """The last outermost `{...}` or `[...]` that is JSON or a Python literal; None without one."""
    found = None
    for piece in _balanced(text):
        for read in (json.loads, _requoted, _literal):
            try:
                found = read(piece)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
    return found


def _balanced(text: str) -> list[str]:
    """Outermost bracketed pieces, in order; at most 50, of a length that is an answer's."""
    pieces, at = [], 0
    while at < len(text) and len(pieces) < 50:
        if text[at] not in "{[":
            at += 1
            continue
        opening = text[at]
        closing, depth = {"{": "}", "[": "]"}[opening], 0
        end = None
        for i in range(at, min(len(text), at + ANSWER_LIMIT)):
            depth += (text[i] == opening) - (text[i] == closing)
            if not depth:
                end = i + 1
                break
        if end is None:
            at += 1
            # What never closes is passed over once: a row of opening brackets stays linear.
            if closing not in text[at:]:
                break
            continue
        pieces.append(text[at:end])
        at = end
    return pieces


def _requoted(piece: str) -> Any:
    """JSON with single quotes in place of double ones."""
    return json.loads(re.sub(r"(?<!\w)'|'(?!\w)", '"', piece))


def _literal(piece: str) -> Any:
    return ast.literal_eval(piece)
