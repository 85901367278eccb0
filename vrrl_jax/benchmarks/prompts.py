"""How each benchmark asks: its published prompts, and its questions without any instruction.

A prompt is a record's text with `<image>` marks. Those that no publication words are called "ours".
"""

from __future__ import annotations

import re

from vrrl_jax.data.records import LETTERS, MARK, Record

_LEAD = re.compile(rf"(?:{re.escape(MARK)}\s*)+")
BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


def lead(record: Record) -> tuple[str, str]:
    """(marks that open the question, the rest): a prompt's own words come between the two."""
    match = _LEAD.match(record.question)
    if match is None:
        return "", record.question
    return match.group().rstrip(), record.question[match.end() :]


def lettered(record: Record, form: str = "{}. {}") -> str:
    """The options, a line each, without a final line end."""
    return "\n".join(form.format(a, b) for a, b in zip(LETTERS, record.options, strict=False))


def bare(record: Record) -> str:
    """The question with its options and nothing else; a picture that asks is pointed at."""
    marks, text = lead(record)
    text = text if text.strip() else "Answer the question that the picture shows."
    shown = "" if _in_picture(record) else lettered(record)
    return marks + text + (f"\n{shown}" if shown else "")


def _in_picture(record: Record) -> bool:
    """Whether the options, too, stand in the picture (MMMU-Pro's "vision")."""
    return not record.question.replace(MARK, "").strip()


# --- how an answer must look: for the modes that bring their own instructions ---------------------

FORMS = {
    "choice": "The final answer is the letter of one option.",
    "number": "The final answer is a number.",
    "math": "The final answer is a value or an expression, as short as possible.",
    "text": "The final answer is a word, a number or a short phrase.",
    "yesno": "The final answer is yes or no.",
    "box": (
        "The final answer is a box [x1, y1, x2, y2]: left, top, right, bottom, floating point "
        "numbers between 0 and 1."
    ),
}


def form(record: Record) -> str:
    """A sentence on how the answer of a record's kind must look."""
    return FORMS[record.kind]


def table_form(record: Record) -> str:
    """Of TableVQA-Bench: statements are true or false, and some answers are lists."""
    if record.kind == "yesno":
        return "The final answer is True or False."
    several = " Put || between several answers." if record.category.startswith("vwtq") else ""
    return "The final answer is a word, a number with its unit, or a short phrase." + several


def mega_form(record: Record) -> str:
    """Of MEGA-Bench: the task says so itself."""
    return "Give the final answer in the form that the task asks for."


# --- ChartQA, tables ------------------------------------------------------------------------------


def _ending(words: str):
    return lambda record: record.question + words


chartqa_single_word = _ending("\nAnswer the question with a single word.")
chartqa_phrase = _ending("\nAnswer the question using a single word or phrase.")
chartqa_short = _ending(
    "\nPlease try to answer the question with short words or phrases if possible."
)


def tablevqa(record: Record) -> str:
    """After TableVQA-Bench's own, which also shows two examples."""
    marks, text = lead(record)
    if record.category.startswith("vtabfact"):
        return (
            f"{marks}You are asked to answer whether the statement is True or False based on given "
            f"image\nYou should only answer True or False.\nStatement: {text}\nAnswer:"
        )
    if record.category.startswith("fintabnet"):
        how = "You should answer the question within a single word or few words.\n"
        how += "If units can be known, the answer should include units such as $, %, million and "
        how += "etc.\n"
    else:
        how = "You should answer the question with a single word.\nIf you have multiple answers, "
        how += "please separate them with || marks.\n"
    what = "You are asked to answer questions asked on an image.\n"
    return f"{marks}{what}{how}Question: {text}\nAnswer:"


def table_question(record: Record) -> str:
    marks, text = lead(record)
    if record.category.startswith("vtabfact"):
        return f"{marks}Is this statement about the table true? {text}"
    return record.question


def chartmuseum(record: Record) -> str:
    marks, text = lead(record)
    return (
        f"{marks}Please answer the question using the chart image.\n\nQuestion: {text}\n\n"
        "Please first generate your reasoning process and then provide the user with the answer. "
        "Use the following format:\n\n<think> \n... your thinking process here ... \n</think> \n"
        "<answer> \n... your final answer (entity(s) or number) ...\n</answer>"
    )


# --- mathematics and exams ------------------------------------------------------------------------

_EXAMPLES = {
    "integer": ("an integer answer", "value, e.g., 1, 2, 3"),
    1: ("a floating-point number with one decimal place", "value, e.g., 1.2, 1.3, 1.4"),
    2: ("a floating-point number with two decimal places", "value, e.g., 1.23, 1.34, 1.45"),
    "list": ("a Python list as an answer", "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]"),
}


def mathvista_hint(record: Record) -> str:
    """How MathVista wants the answer, by its type."""
    if record.options:
        return (
            "Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
            "at the end."
        )
    kind = record.extra.get("answer_type")
    kind = int(record.extra.get("precision") or 1) if kind == "float" else kind
    if kind not in _EXAMPLES:
        return "Please answer the question and provide the final answer at the end."
    what, example = _EXAMPLES[kind]
    ask = "Please answer the question requiring"
    return f"{ask} {what} and provide the final {example}, at the end."


def mathvista_question(record: Record) -> str:
    marks, text = lead(record)
    unit = record.extra.get("unit")
    text = f"{marks}Question: {text}" + (f" (Unit: {unit})" if unit else "")
    return text + (f"\nChoices:\n{lettered(record, '({}) {}')}" if record.options else "")


def mathvista(record: Record) -> str:
    return f"{mathvista_question(record)}\nHint: {mathvista_hint(record)}"


def mathvista_query(record: Record) -> str:
    """The prompt that the row brings along."""
    return lead(record)[0] + _brought(record, "query")


def _brought(record: Record, name: str) -> str:
    text = record.extra.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{record.id}: the row has no {name!r}, which this prompt is")
    return text


def mathverse(record: Record) -> str:
    """`query_wo`: the answer at once."""
    return lead(record)[0] + _brought(record, "query_wo")


def mathverse_cot(record: Record) -> str:
    """`query_cot`: step by step."""
    return lead(record)[0] + _brought(record, "query_cot")


def mathvision(record: Record) -> str:
    marks, text = lead(record)
    ask = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
    text = f"{marks}{ask}{text}"
    if not record.options:
        return text
    return (
        f"{text}\nChoices: {lettered(record)}\n"
        "Answer the question with the option's letter from the given choices directly."
    )


def mmmu(record: Record) -> str:
    if not record.options:
        return f"{record.question}\n\nAnswer the question using a single word or phrase."
    ask = "Answer with the option's letter from the given choices directly."
    return f"{record.question}\n{lettered(record)}\n\n{ask}"


def mmmu_qwen(record: Record) -> str:
    """Qwen's harness: pictures first. Marks in the text stay, as theirs would name pictures."""
    marks, text = lead(record)
    if not record.options:
        return mmmu(record)
    ask = "Please select the correct answer from the options above."
    return f"{marks}Question: {text}\nOptions:\n{lettered(record)}\n{ask}"


def _mmmu_pro(record: Record, standard: str, vision: str) -> str:
    if _in_picture(record):
        return lead(record)[0] + vision
    return f"{record.question}\n{lettered(record)}\n{standard}"


_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without "
    "quotes) where LETTER is one of options. Think step by step before answering."
)
_LETTER = "Answer with the option letter from the given choices directly."


def mmmu_pro(record: Record) -> str:
    return _mmmu_pro(record, _LETTER, _LETTER)


def mmmu_pro_cot(record: Record) -> str:
    standard = f"Answer the preceding multiple choice question. {_LAST_LINE}"
    vision = f"Write out the multiple-choice question in the image and then solve it. {_LAST_LINE}"
    return _mmmu_pro(record, standard, vision)


def emma_question(record: Record) -> str:
    options = f"\n{lettered(record, '{}: {}')}" if record.options else ""
    return record.question + options


def emma(record: Record) -> str:
    if record.options:
        ask = "Answer with the option's letter from the given choices and put the letter in one"
    else:
        ask = "Answer the question using a single word or phrase and put the answer in one"
    return f'{emma_question(record)}\n{ask} "\\boxed{{}}". '


def emma_cot(record: Record) -> str:
    return emma(record) + "Please solve the problem step by step."


def question(record: Record) -> str:
    """The record's own text: MEGA-Bench says in it how to answer."""
    return record.question


# --- places ---------------------------------------------------------------------------------------


def refcoco(record: Record) -> str:
    """lmms-eval's, for shares of the picture."""
    marks, expression = lead(record)
    return (
        f"{marks}Bounding box coordinates are specified in the format (top-left x, top-left y, "
        "bottom-right x, bottom-right y). All values are floating point numbers bounded between 0 "
        "and 1. Please provide the bounding box coordinate of the region this sentence describes: "
        f"{expression}"
    )


def refcoco_json(record: Record) -> str:
    """Grounding in the model's own form and coordinates."""
    marks, expression = lead(record)
    return (
        f'{marks}Locate every object that matches the description "{expression}" in the image. '
        "Report bbox coordinates in JSON format."
    )


def refcoco_question(record: Record) -> str:
    marks, expression = lead(record)
    return f"{marks}Where is the region that this sentence describes: {expression}"


vsr = _ending(" Answer yes or no.")
spatialeval = _ending(
    " First, provide a concise answer in one sentence. Then, elaborate on the reasoning behind "
    "your answer in a detailed, step-by-step explanation."
)

# --- sets that are trained on, too ----------------------------------------------------------------

geometry3k = _ending(
    " You FIRST think about the reasoning process as an internal monologue and then provide the "
    "final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final "
    "answer MUST BE put in \\boxed{}."
)
clevr = _ending(
    "  Output the thinking process in <think> </think> and final answer (number) in <answer> "
    "</answer> tags."
)


def boxed(record: Record) -> str:
    """VL-Rethinker's suffix after the question."""
    return bare(record) + BOXED
