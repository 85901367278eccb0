"""Rows that no published set holds: a mapper gives a sound record or says what is wrong."""

import copy

import pytest

from vrrl_jax.data import mappers, records

RED = b"an encoded picture; nothing here decodes it"

SOUND = {
    "records": {"source": "s", "row": 0, "part": 0, "question": "<image>Q", "pictures": [RED]}
    | {"answer": "a", "kind": "text", "options": [], "accepted": [], "boxes": [], "category": ""}
    | {"extra": "{}"},
    "fields": {"question": "Q", "image": RED, "answer": "1"},
    "classification": {"image": RED, "label": "disc"},
    "vlmevalkit": {
        "question": "Q",
        "image": "",
        "image_path": "",
        "A": "a",
        "B": "b",
        "answer": "A",
    },
    "virl39k": {"question": "Q", "answer": r"\boxed{1}", "image": [], "PassRate_7BBase": 1.0},
    "mmk12": {"question": "Q", "answer": "1", "subject": "math", "image": RED},
    "geometry3k": {"problem": "<image>Q", "answer": "1", "images": [RED]},
    "clevr": {"problem": "Q", "solution": "<answer> 1 </answer>", "image": RED},
    "llava_cot": {
        "conversations": [
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "<CONCLUSION> a </CONCLUSION>"},
        ],
        "image": RED,
    },
    "chartqa": {"query": "Q", "label": ["1"], "human_or_machine": 0, "image": RED},
    "tablevqa": {"question": "Q", "gt": "1", "split": "vtabfact", "image": RED},
    "chartmuseum": {"question": "Q", "answer": "1", "reasoning_type": "text", "image": RED},
    "refchartqa": {"query": "Q", "label": "1", "image": RED}
    | {"grounding_bboxes": [{"x": 0, "y": 0, "w": 1, "h": 1}]},
    "refocus": {"question": "Q", "answer": "1", "image": RED, "edited_image": RED}
    | {"focus_areas_bbox": [{"x1": 0, "y1": 0, "x2": 1, "y2": 1}]},
    "refcoco": {"answer": ["disc"], "bbox": [0.0, 0.0, 1.0, 1.0], "image": RED},
    "vsr": {"caption": "C", "label": 1, "relation": "in", "image": RED},
    "space": {"question": ["Q"], "answer": 1},
    "spatialeval": {"id": "a.vqa.1.0", "text": "Q", "oracle_option": "A", "image": RED},
    "mathvista": {"question": "Q", "answer": "1", "answer_type": "integer", "choices": None}
    | {"decoded_image": RED, "metadata": {"task": "t"}, "question_type": "free_form"},
    "mathverse": {"question": "Q", "answer": "1", "problem_version": "Text Lite", "image": RED},
    "mathvision": {"question": "<image1>", "options": ["a"], "answer": "A", "decoded_image": RED}
    | {"subject": "s", "question": "Q"},
    "mmmu": {"id": "v_Math_1", "question": "<image 1>Q", "options": "['a']", "answer": "A"}
    | {"image_1": RED, "explanation": "", "question_type": "multiple-choice"},
    "mmmu_pro": {"question": "<image 1>Q", "options": "['a']", "answer": "A", "image_1": RED},
    "emma": {"question": "<image_1>Q", "options": ["a"], "answer": "A", "image_1": RED}
    | {"type": "Multiple Choice", "context": ""},
    "mega_bench": {"task_name": "t", "task_description": "D", "query_text": "Q", "answer": "'1'"}
    | {"global_media": "[]", "metric_info": "{}", "eval_context": "{}"},
}
ODD = (None, "", " ", 5, -1.5, float("nan"), float("inf"), True, [], [None], [[]], ["x", 3], {})
ODD += ({"bytes": None, "path": None}, {"bytes": 3, "path": []}, "../x", "/etc/passwd", b"", [b""])
ODD += ("<image>", "<image 9999>", "<image>" * 500, "[" * 5000, "-" * 5000 + "1", "{'a': " * 99)
ODD += (r"\boxed{" * 50, "\ud800", "\0", "['a'" + ", 'a'" * 10_000 + "]", ["a"] * 10_000, "<video>")


def test_every_mapper_has_a_sound_row():
    assert SOUND.keys() == mappers.MAPPERS.keys()


@pytest.mark.parametrize("name", SOUND)
def test_odd_cells_give_a_record_or_an_error(tmp_path, name):
    """Any cell may be missing or hold anything: the answer is a sound record or a ValueError."""
    mapper, at = mappers.get(name), records.At("s", 0, tmp_path.resolve())
    mapper(at, copy.deepcopy(SOUND[name]))
    refused = 0
    for field in SOUND[name]:
        without = {key: cell for key, cell in SOUND[name].items() if key != field}
        for row in (without, *(without | {field: odd} for odd in ODD)):
            try:
                made = mapper(at, copy.deepcopy(row))
            except ValueError:
                refused += 1
                continue
            for record in [made] if isinstance(made, records.Record) else made:
                texts = (record.question, *record.options)
                assert sum(text.count("<image>") for text in texts) == len(record.pictures)
                assert all(isinstance(picture, bytes) for picture in record.pictures)
                # What is stored may have had its answer withheld.
                assert record.answer.strip() or (name == "records" and record.answer == "")
                assert record.kind in records.KINDS
    assert refused > 5
