"""Prompts word by word, and what is read out of replies in each mode."""

import pytest

from vrrl_jax.benchmarks import prompting, prompts, registry
from vrrl_jax.data.records import Id, Record


def record(question, kind="text", options=(), category="", pictures=1, **extra):
    return Record(
        Id("x", 0), question, (b"",) * pictures, "A", kind, options, (), (), category, extra
    )


CHOICE = record("<image>Which?", "choice", ("red", "blue"))
STEPS = "Please solve the problem step by step"
SOLVE = f'{STEPS} and put your answer in one "\\boxed{{}}".'
MARK = "<image>"


@pytest.mark.parametrize(
    ("name", "prompt", "given", "expected"),
    [
        (
            "chartqa",
            "lmms-eval",
            record("<image>How?"),
            "How?\nAnswer the question with a single word.",
        ),
        (
            "chartqa",
            "vlmevalkit",
            record("<image>How?"),
            "How?\nAnswer the question using a single word or phrase.",
        ),
        (
            "chartqa",
            "qwen",
            record("<image>How?"),
            "How?\nPlease try to answer the question with short words or phrases if possible.",
        ),
        (
            "mathvista",
            "mathvista",
            record("<image>How wide?", answer_type="float", precision=2.0, unit="cm"),
            "Question: How wide? (Unit: cm)\nHint: Please answer the question requiring a "
            "floating-point number with two decimal places and provide the final value, e.g., "
            "1.23, 1.34, 1.45, at the end.",
        ),
        (
            "mathvista",
            "mathvista",
            CHOICE,
            "Question: Which?\nChoices:\n(A) red\n(B) blue\nHint: Please answer the question and "
            "provide the correct option letter, e.g., A, B, C, D, at the end.",
        ),
        (
            "mathvista",
            "mathvista",
            record("<image>How many?", answer_type="integer"),
            "Question: How many?\nHint: Please answer the question requiring an integer answer and "
            "provide the final value, e.g., 1, 2, 3, at the end.",
        ),
        (
            "mathvista",
            "mathvista",
            record("<image>Which?", answer_type="list"),
            "Question: Which?\nHint: Please answer the question requiring a Python list as an "
            "answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
        ),
        ("mathverse", "query_wo", record("<image>Find x.", query_wo="Say x."), "Say x."),
        ("mathverse", "query_cot", record("<image>Find x.", query_cot="Think."), "Think."),
        (
            "mathvision",
            "lmms-eval",
            CHOICE,
            f"{SOLVE}Which?\nChoices: A. red\nB. blue\nAnswer the question with the option's "
            "letter from the given choices directly.",
        ),
        ("mathvision", "lmms-eval", record("<image>Find x.", "math"), f"{SOLVE}Find x."),
        (
            "mmmu",
            "lmms-eval",
            CHOICE,
            "Which?\nA. red\nB. blue\n\nAnswer with the option's letter from the given choices "
            "directly.",
        ),
        (
            "mmmu",
            "lmms-eval",
            record("<image>Say."),
            "Say.\n\nAnswer the question using a single word or phrase.",
        ),
        (
            "mmmu",
            "qwen",
            CHOICE,
            "Question: Which?\nOptions:\nA. red\nB. blue\nPlease select the correct answer from "
            "the options above.",
        ),
        (
            "mmmu_pro",
            "direct",
            CHOICE,
            "Which?\nA. red\nB. blue\nAnswer with the option letter from the given choices "
            "directly.",
        ),
        (
            "mmmu_pro",
            "cot",
            record("<image>", "choice", ("red", "blue")),
            "Write out the multiple-choice question in the image and then solve it. The last line "
            "of your response should be of the following format: 'Answer: $LETTER' (without "
            "quotes) where LETTER is one of options. Think step by step before answering.",
        ),
        (
            "emma",
            "cot",
            CHOICE,
            "Which?\nA: red\nB: blue\nAnswer with the option's letter from the given choices and "
            f'put the letter in one "\\boxed{{}}". {STEPS}.',
        ),
        (
            "emma",
            "plain",
            record("<image>Add.", "math"),
            "Add.\nAnswer the question using a single word or phrase and put the answer in one "
            '"\\boxed{}". ',
        ),
        (
            "refcoco",
            "lmms-eval",
            record("<image>left disc", "box"),
            "Bounding box coordinates are specified in the format (top-left x, top-left y, "
            "bottom-right x, bottom-right y). All values are floating point numbers bounded "
            "between 0 and 1. Please provide the bounding box coordinate of the region this "
            "sentence describes: left disc",
        ),
        (
            "refcoco",
            "json",
            record("<image>left disc", "box"),
            'Locate every object that matches the description "left disc" in the image. Report '
            "bbox coordinates in JSON format.",
        ),
        (
            "spatialeval",
            "spatialeval",
            record("<image>Turns?", "choice"),
            "Turns? First, provide a concise answer in one sentence. Then, elaborate on the "
            "reasoning behind your answer in a detailed, step-by-step explanation.",
        ),
        (
            "vsr",
            "ours",
            record('<image>Is the following statement about the image true? "A."', "yesno"),
            'Is the following statement about the image true? "A." Answer yes or no.',
        ),
        (
            "clevr",
            "r1-v",
            record("<image>How many?"),
            "How many?  Output the thinking process in <think> </think> and final answer (number) "
            "in <answer> </answer> tags.",
        ),
        (
            "chartmuseum",
            "chartmuseum",
            record("<image>How much?"),
            "Please answer the question using the chart image.\n\nQuestion: How much?\n\nPlease "
            "first generate your reasoning process and then provide the user with the answer. Use "
            "the following format:\n\n<think> \n... your thinking process here ... \n</think> \n"
            "<answer> \n... your final answer (entity(s) or number) ...\n</answer>",
        ),
        (
            "mmk12",
            "vl-rethinker",
            record("<image>Find x."),
            "Find x.\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        ),
    ],
)
def test_published_prompts(name, prompt, given, expected):
    text = prompting.opening(registry.get(name), given, "direct", prompt)
    assert text == MARK + expected


def test_pictures_stay_where_questions_mark_them():
    """Marks that open a question come before the prompt's own words, all others stay."""
    given = record("<image>\nSee <image>.", "choice", ("<image>", "none"), pictures=3)
    text = prompting.opening(registry.get("mathvista"), given, "direct")
    assert text.startswith("<image>Question: See <image>.\nChoices:\n(A) <image>\n(B) none")
    parts = prompting.messages("<image>a<image><image>b", "sys")
    assert parts[0] == {"role": "system", "content": "sys"}
    picture = {"type": "image"}
    text = [{"type": "text", "text": t} for t in "ab"]
    assert parts[1]["content"] == [picture, text[0], picture, picture, text[1]]


def test_a_row_without_its_prompt_is_refused():
    with pytest.raises(ValueError, match="x/0: the row has no 'query_wo'"):
        prompting.opening(registry.get("mathverse"), record("<image>Find x."), "direct")
    with pytest.raises(ValueError, match="1 pictures, but 0 marks"):
        prompting.question(registry.get("vsr"), record("No mark"), "direct")


def test_modes_with_their_own_words():
    chart = registry.get("chartqa")
    boxed = prompting.opening(chart, record("<image>How?"), "boxed")
    assert boxed == MARK + "How?" + prompts.BOXED
    cot = prompting.opening(chart, record("<image>How?"), "cot")
    tags = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
    assert cot.startswith(MARK + "How?\n\n") and all(f"<{t}> " in cot for t in tags)
    assert cot.endswith("The final answer is a word, a number or a short phrase.")
    vision = prompting.opening(
        registry.get("mmmu_pro"), record("<image>", "choice", ("red", "blue")), "boxed"
    )
    assert vision.startswith(MARK + "Answer the question that the picture shows.\n\n")
    statement = record("<image>He won.", "yesno", category="vtabfact")
    asked = prompting.opening(registry.get("tablevqa"), statement, "cot")
    assert "Is this statement about the table true? He won." in asked
    assert asked.endswith("The final answer is True or False.")
    assert prompting.prompt_id(chart, "direct", None) == "lmms-eval"
    assert prompting.prompt_id(chart, "reflect", "qwen") == "qwen+vrrl-1"


@pytest.mark.parametrize(
    ("mode", "replies", "read"),
    [
        ("direct", ("<CONCLUSION>3</CONCLUSION>",), "<CONCLUSION>3</CONCLUSION>"),
        ("cot", ("<REASONING>5</REASONING><CONCLUSION> 3 </CONCLUSION>",), "3"),
        ("cot", ("<CONCLUSION>4</CONCLUSION> no: <conclusion>3</conclusion>",), "3"),
        ("cot", ("<CONCLUSION> 3",), "3"),
        ("cot", ("It is 3",), "It is 3"),
        ("chain", ("<CONCLUSION>5</CONCLUSION>", "a", "b", "<CONCLUSION>3</CONCLUSION>"), "3"),
        ("reflect", ("5", "3"), "3"),
    ],
)
def test_what_is_read(mode, replies, read):
    assert prompting.final(mode, replies) == read


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Let me double-check my answer...", True),
        ("On second thought, I made a mistake", True),
        ("Wait, let me reconsider this problem", True),
        ("I re-examine the axis", True),
        ("Let's verify: 2 + 2", True),
        ("The waiter brings 3 plates", False),
        ("It awaits a second tram of thought", False),
        ("The answer is 3.", False),
    ],
)
def test_rethinking(text, found):
    assert prompting.rethinks("direct", (text,)) is found
    # Asked to check, a model that does so isn't spontaneous.
    assert prompting.rethinks("reflect", ("3", text)) is False


def test_every_registered_benchmark_is_complete():
    from vrrl_jax.data import mappers

    for name, benchmark in registry.BENCHMARKS.items():
        assert not benchmark.mapper or benchmark.mapper in mappers.MAPPERS, name
        assert benchmark.prompts and set(benchmark.native) <= set(benchmark.prompts), name
        names = [part.name for part in benchmark.parts]
        assert len(set(names)) == len(names) and (len(names) == 1 or all(names)), name
    with pytest.raises(ValueError, match="unknown benchmark 'chart'"):
        registry.get("chart")
