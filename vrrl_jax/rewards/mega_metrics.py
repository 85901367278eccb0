"""MEGA-Bench's rules for a field: (what was read, the right answer, mode) -> 0 .. 1, or -1.

-1 leaves the field out. Reimplemented from the published behaviour; arithmetic is evaluated by a
small parser of our own where the reference runs `eval`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrrl_jax.rewards.boxes import iou
from vrrl_jax.rewards.equivalence import equivalent
from vrrl_jax.rewards.extraction import boxed, leading_letter

Metric = Callable[[Any, Any, str], float]
LONGEST = 20_000  # characters of a field that are looked at
_CLOSE = 1_500  # of a text whose edit distance is taken
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- texts ----------------------------------------------------------------------------------------


def exact(read: Any, gold: Any, mode: str) -> float:
    """Equal as text; for a one-letter answer the letter that the text opens with."""
    read, gold = str(read), str(gold)
    if len(gold) == 1 and gold.isalpha() and len(read) > 1:
        if mode == "official":
            match = re.match(r"\(?([A-Za-z])", read)
            read = match.group(1) if match else read
        else:
            read = leading_letter(read, _LETTERS) or read
    return float(read == gold)


def exact_any_case(read: Any, gold: Any, mode: str) -> float:
    return exact(str(read).lower(), str(gold).lower(), mode)


def simple(read: Any, gold: Any, mode: str) -> float:
    """Without spaces, hyphens, full stops and case."""
    drop = str.maketrans("", "", " -\n\t.")
    return exact(str(read).translate(drop).lower(), str(gold).translate(drop).lower(), mode)


def near(read: Any, gold: Any, mode: str) -> float:
    """1 - Damerau-Levenshtein distance / length, where that is 0.9 at least; else 0."""
    if not isinstance(read, str) or not isinstance(gold, str):
        return 0.0
    a, b = _approximate(read), _approximate(gold)
    longest = max(len(a), len(b))
    if longest > _CLOSE or abs(len(a) - len(b)) > 0.1 * longest:
        return 0.0
    share = 1 - damerau(a, b) / longest if longest else 1.0
    return share if share >= 0.9 else 0.0


def _approximate(text: str) -> str:
    text = re.sub(r"\b(?:the|an|a)\s+", "", text[:LONGEST], flags=re.IGNORECASE)
    text = unicodedata.normalize("NFKD", text)
    return "".join(c for c in text if unicodedata.category(c) != "Mn").lower()


def damerau(a: str, b: str) -> int:
    """Damerau-Levenshtein distance, unrestricted: insert, delete, substitute, swap neighbours.

    Source: Lowrance and Wagner, "An Extension of the String-to-String Correction Problem", 1975.
    """
    far = len(a) + len(b)
    table = [[far] * (len(b) + 2) for _ in range(len(a) + 2)]
    for i in range(len(a) + 1):
        table[i + 1][1] = i
    for j in range(len(b) + 1):
        table[1][j + 1] = j
    last_row: dict[str, int] = {}
    for i, x in enumerate(a, 1):
        last_column = 0
        for j, y in enumerate(b, 1):
            row, column = last_row.get(y, 0), last_column
            if x == y:
                last_column = j
            table[i + 1][j + 1] = min(
                table[i][j] + (x != y),
                table[i + 1][j] + 1,
                table[i][j + 1] + 1,
                table[row][column] + (i - row - 1) + 1 + (j - column - 1),
            )
        last_row[x] = i
    return table[-1][-1]


def any_phrase(read: Any, gold: Any, mode: str) -> float:
    """`simple` with any of a list of answers."""
    golds = items(str(gold).replace("，", ","))
    return float(any(simple(read, str(one), mode) for one in golds))


# --- numbers --------------------------------------------------------------------------------------

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def number(text: Any) -> float | list[float] | None:
    """A number, a list of them, or arithmetic of both in digits or LaTeX; None for other texts."""
    if isinstance(text, bool) or (isinstance(text, str) and len(text) > 300):
        return None
    if isinstance(text, int | float):
        return float(text)
    text = str(text).replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    match = re.search(r"(?:=|≈|\\approx)\s*(.+)", text)
    text = match.group(1).strip() if match else text
    text = text.replace("\\pi", "π")
    text = re.sub(r"(?<=[\d})])\s*π", "*3.14", text).replace("π", "3.14")
    for old, new in (("%", "/100"), ("$", ""), ("¥", ""), ("°C", ""), (" C", ""), ("°", "")):
        text = text.replace(old, new)
    text = re.sub(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"((\1)**0.5)", text)
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("^", "**").strip()
    try:
        value = _evaluate(ast.parse(text.replace("{", "(").replace("}", ")"), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError, ArithmeticError, TypeError):
        return None
    return value


def _evaluate(node: ast.AST) -> float | list[float]:
    if isinstance(node, ast.List):
        return [float(_evaluate(item)) for item in node.elts]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = float(node.value)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_evaluate(node.operand))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        value = math.pow(_evaluate(node.left), _evaluate(node.right))
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    else:
        raise ValueError("no arithmetic")
    if not math.isfinite(value):
        raise ValueError("no finite number")
    return value


def numerical(read: Any, gold: Any, mode: str) -> float:
    """Within 1%; pi is 3.14, % divides by 100. Lists in any order. Else `simple`."""
    p, g = number(read), number(gold)
    if p is None or g is None:
        return simple(read, gold, mode)
    if isinstance(p, list) != isinstance(g, list):
        return 0.0
    pairs = [(p, g)] if not isinstance(p, list) else list(zip(sorted(p), sorted(g), strict=False))
    if isinstance(p, list) and len(p) != len(g):
        return 0.0
    return float(all(abs(a - b) <= 0.01 * abs(b) for a, b in pairs))


def boxed_numerical(read: Any, gold: Any, mode: str) -> float:
    inside = [boxed(str(text)) for text in (read, gold)]
    texts = (str(t) if i is None else i for t, i in zip((read, gold), inside, strict=True))
    return numerical(*texts, mode)


def relative(read: Any, gold: Any, mode: str) -> float:
    """1 - |difference| / |gold|, not below 0."""
    p, g = _value(read), _value(gold)
    if not all(type(v) in (int, float) for v in (p, g)) or not g:
        return 0.0
    return max(0.0, 1 - abs((p - g) / g))


def positive_integer(read: Any, gold: Any, mode: str) -> float:
    """Equal integers; -1 where neither is above 0."""
    p, g = _value(read), _value(gold)
    if type(p) is not int or type(g) is not int:
        return 0.0
    return float(p == g) if p > 0 or g > 0 else -1.0


def latex(read: Any, gold: Any, mode: str) -> float:
    """math-verify finds both the same, where the reference simplifies with sympy."""
    return float(equivalent(str(read), str(gold)) == "equal")


# --- lists and sets -------------------------------------------------------------------------------


def _value(text: Any) -> Any:
    """A Python literal's value; None for other texts."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text.strip()) if len(text) <= LONGEST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def items(text: Any) -> list[Any]:
    """The members of a list, of its literal, or of a text with commas."""
    if isinstance(text, list | tuple | set | frozenset):
        return list(text)
    if not isinstance(text, str) or not text.strip(" "):
        return []
    text = text.strip(" ")[:LONGEST]
    pair = {"(": ")", "{": "}", "[": "]"}.get(text[0])
    if pair is not None and not text.endswith(pair):
        return []
    value = _value(text)
    if isinstance(value, list | tuple | set | dict):
        return list(value)
    if isinstance(value, int | float):
        return [value]
    inside = text[1:-1] if pair is not None else text
    return [item.strip() for item in inside.split(",")]


def frozen(value: Any) -> Any:
    """Lists as tuples, mappings as sets of pairs: what can be a set's member."""
    if isinstance(value, Mapping):
        return frozenset((key, frozen(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(inner) for inner in value)
    return frozenset(map(frozen, value)) if isinstance(value, set) else value


def _set(value: Any, lower: bool = False) -> set[Any]:
    members = {frozen(item) for item in items(value)}
    return {m.lower() if lower and isinstance(m, str) else m for m in members}


def set_equality(read: Any, gold: Any, mode: str) -> float:
    return float(_set(read) == _set(gold))


def set_equality_any_case(read: Any, gold: Any, mode: str) -> float:
    """Only sets of texts can be equal."""
    a, b = _set(read), _set(gold)
    if not all(isinstance(member, str) for member in a | b):
        return 0.0
    return float({m.upper() for m in a} == {m.upper() for m in b})


def set_of_lower(read: Any, gold: Any, mode: str) -> float:
    return float(_set(read, True) == _set(gold, True))


def set_of_lines(read: Any, gold: Any, mode: str) -> float:
    sides = (str(text).replace("\\n", "\n").lower().split("\n") for text in (read, gold))
    return float(len({frozenset(side) for side in sides}) == 1)


def jaccard(read: Any, gold: Any, mode: str, lower: bool = False) -> float:
    """Shared members over all."""
    a, b = _set(read, lower), _set(gold, lower)
    return len(a & b) / len(a | b) if a | b else 0.0


def jaccard_any_case(read: Any, gold: Any, mode: str) -> float:
    return jaccard(read, gold, mode, lower=True)


def precision(read: Any, gold: Any, mode: str) -> float:
    """Right members over those that were read."""
    a, b = _set(read), _set(gold)
    return len(a & b) / len(a) if a else 0.0


def sequence(read: Any, gold: Any, mode: str) -> float:
    return float(items(read) == items(gold))


def sequence_any_case(read: Any, gold: Any, mode: str) -> float:
    a, b = ([str(item).lower() for item in items(side)] for side in (read, gold))
    return float(a == b)


def sequence_accuracy(read: Any, gold: Any, mode: str) -> float:
    """Right places over all; 0 where the lengths differ."""
    a, b = items(read), items(gold)
    if len(a) != len(b) or not b:
        return 0.0
    fold = lambda item: item.lower() if isinstance(item, str) else item
    return sum(fold(x) == fold(y) for x, y in zip(a, b, strict=True)) / len(b)


def common_prefix(read: Any, gold: Any, mode: str) -> float:
    """Length of the common start over the right list's."""
    a, b = items(read), items(gold)
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return same / len(b) if b else 0.0


# --- boxes, 0 .. 1 --------------------------------------------------------------------------------


def boxes_of(value: Any) -> list[Sequence[float]]:
    """The boxes of a list or its literal; one box alone counts, what is none is left out."""
    value = _value(value)
    value = value if isinstance(value, list | tuple) else []
    if len(value) == 4 and all(type(v) in (int, float) for v in value):
        value = [value]
    return [
        box
        for box in value
        if isinstance(box, list | tuple)
        and len(box) == 4
        and all(type(v) in (int, float) and math.isfinite(v) for v in box)
    ]


def box_set(read: Any, gold: Any, mode: str) -> float:
    """Mean over the boxes read of the best IoU with any right one."""
    a, b = boxes_of(read), boxes_of(gold)
    return sum(max(iou(x, y) for y in b) for x in a) / len(a) if a and b else 0.0


def box_single(read: Any, gold: Any, mode: str) -> float:
    a, b = boxes_of(read), boxes_of(gold)
    return iou(a[0], b[0]) if len(a) == len(b) == 1 else 0.0


def box_sequence(read: Any, gold: Any, mode: str) -> float:
    """Mean IoU box by box; 0 where their numbers differ."""
    a, b = boxes_of(read), boxes_of(gold)
    if len(a) != len(b) or not b:
        return 0.0
    return sum(iou(x, y) for x, y in zip(a, b, strict=True)) / len(b)


# --- mappings -------------------------------------------------------------------------------------


def over_keys(metric: Metric, union: bool) -> Metric:
    """A metric's mean over the right mapping's keys, or over both mappings' (`union`)."""

    def score(read: Any, gold: Any, mode: str) -> float:
        a, b = _value(read), _value(gold)
        if not isinstance(a, Mapping) or not isinstance(b, Mapping) or not b:
            return 0.0
        if not union:
            return sum(metric(a[key], b[key], mode) for key in b if key in a) / len(b)
        keys = {*a, *b}
        return sum(metric(a.get(key, []), b.get(key, []), mode) for key in keys) / len(keys)

    return score


METRICS: dict[str, Metric] = {
    "exact_str_match": exact,
    "exact_str_match_case_insensitive": exact_any_case,
    "simple_str_match": simple,
    "near_str_match": near,
    "multi_ref_phrase": any_phrase,
    "general_single_numerical_match": numerical,
    "boxed_single_numerical_match": boxed_numerical,
    "number_rel_diff_ratio": relative,
    "positive_int_match": positive_integer,
    "latex_expr_equality": latex,
    "set_equality": set_equality,
    "set_equality_case_insensitive": set_equality_any_case,
    "str_set_equality_comma": set_of_lower,
    "str_set_equality_line_break": set_of_lines,
    "jaccard_index": jaccard,
    "jaccard_index_case_insensitive": jaccard_any_case,
    "set_precision": precision,
    "sequence_equality": sequence,
    "sequence_equality_case_insensitive": sequence_any_case,
    "sequence_accuracy_case_insensitive": sequence_accuracy,
    "longest_common_list_prefix_ratio": common_prefix,
    "nbbox_iou_tuple": box_set,
    "nbbox_iou_single": box_single,
    "nbbox_iou_sequence": box_sequence,
    "dict_exact_str_match_agg_recall": over_keys(exact, union=False),
    "dict_set_equality_agg_jaccard": over_keys(set_equality, union=True),
    "dict_jaccard_agg_jaccard": over_keys(jaccard, union=True),
    "dict_nbbox_iou_tuple_agg_jaccard": over_keys(box_set, union=True),
}
