"""Files of every benchmark's published schema, with rows and pictures of our own."""

import io
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STR, INT, TEXTS = pa.string(), pa.int64(), pa.list_(pa.string())


def drawing(colour="red", size=(56, 28)) -> bytes:
    """A PNG: a disc on white."""
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((4, 4, 20, 20), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def image(colour="red"):
    return {"bytes": drawing(colour), "path": None}


def write(file: pathlib.Path, rows, schema) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(schema.items()))), file)


def shard(split: str) -> str:
    return f"{split}-00000-of-00001.parquet"


def charts(root: pathlib.Path) -> None:
    schema = {"type": STR, "question": STR, "answer": STR, "image": IMAGE}
    rows = [
        {"type": "human_test", "question": "How many bars?", "answer": "3"},
        {"type": "human_test", "question": "How high is the red bar?", "answer": "100"},
        {"type": "augmented_test", "question": "Which is highest?", "answer": "Red"},
        {"type": "augmented_test", "question": "When did it fall?", "answer": "2019"},
    ]
    write(root / "ChartQA/data" / shard("test"), [r | {"image": image()} for r in rows], schema)
    names = ("qa_id", "question", "text_markdown_table", "text_html_table", "gt")
    schema = dict.fromkeys(names, STR) | {"image": IMAGE}
    golds = {"vwtq": ["1||2", "Oslo"], "vwtq_syn": ["7"], "vtabfact": ["1", "0"]}
    for split, answers in (golds | {"fintabnetqa": ["$3 million"]}).items():
        rows = [
            dict.fromkeys(names, "") | {"question": f"Which of {split}?", "gt": gold}
            for gold in answers
        ]
        rows = [row | {"image": image()} for row in rows]
        write(root / "TableVQA-Bench/data" / shard(split), rows, schema)
    names = ("image", "question", "answer", "reasoning_type", "source", "hash")
    row = dict.fromkeys(names, "") | {"image": "images/a.png", "answer": "$80 million"}
    row |= {"question": "How much?", "reasoning_type": "visual"}
    folder = root / "ChartMuseum"
    write(folder / "data" / shard("test"), [row], dict.fromkeys(names, STR))
    (folder / "images").mkdir()
    (folder / "images/a.png").write_bytes(drawing())


def mathematics(root: pathlib.Path) -> None:
    names = ("pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query")
    metadata = pa.struct([("task", STR), ("skills", TEXTS)])
    schema = dict.fromkeys(names, STR) | {"decoded_image": IMAGE, "choices": TEXTS}
    schema |= {"precision": pa.float64(), "metadata": metadata}
    row = {"pid": "1", "question": "How wide?", "image": "1.jpg", "query": "Hint: say it.\nHow?"}
    row |= {"decoded_image": image(), "metadata": {"task": "geometry", "skills": []}}
    row |= {"question_type": "free_form", "unit": None, "precision": None, "choices": None}
    rows = [
        row | {"answer": "1.2", "answer_type": "float", "precision": 1.0, "unit": "cm"},
        row
        | {"answer": "blue", "answer_type": "text", "choices": ["dark blue", "blue"]}
        | {"question_type": "multi_choice"},
        row | {"answer": "4", "answer_type": "integer"},
    ]
    write(root / "MathVista/data" / shard("testmini"), rows, schema)
    names = ("sample_index", "problem_index", "problem_version", "question", "answer")
    schema = dict.fromkeys((*names, "question_type", "query_wo", "query_cot"), STR)
    schema |= {"image": IMAGE, "metadata": pa.struct([("subject", STR)])}
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    rows = []
    for problem, (answer, kind) in enumerate((("B", "multi-choice"), ("5", "free-form"))):
        for version in versions:
            question = "" if version == "Vision Only" else f"Find x of {problem}."
            row = {"sample_index": str(len(rows)), "problem_index": str(problem)}
            row |= {"problem_version": version, "question": question, "answer": answer}
            row |= {"question_type": kind, "query_wo": f"Say x.\n{question}", "image": image()}
            rows.append(row | {"query_cot": f"Think.\n{question}", "metadata": {"subject": "s"}})
    write(root / "MathVerse/testmini.parquet", rows, schema)
    schema = {"id": STR, "question": STR, "options": TEXTS, "image": STR, "decoded_image": IMAGE}
    schema |= {"answer": STR, "solution": STR, "level": INT, "subject": STR}
    row = {"id": "1", "image": "1.jpg", "decoded_image": image(), "level": 2, "subject": "algebra"}
    rows = [
        row | {"question": "Which?\n<image1>", "options": ["red", "blue"], "answer": "B"},
        row | {"question": "Find x in <image1>.", "options": [], "answer": "3.14"},
    ]
    write(root / "MathVision/data" / shard("test"), rows, schema)
    schema = {"images": pa.list_(IMAGE), "problem": STR, "answer": STR}
    row = {"images": [image()], "problem": "<image>Find x.", "answer": "2 \\sqrt { 3 }"}
    write(root / "geometry3k/data" / shard("test"), [row], schema)
    schema = {"id": STR, "question": STR, "answer": STR, "subject": STR, "image": IMAGE}
    row = {"id": "1", "question": "Which?\nA. red\nB. blue", "answer": "A", "subject": "math"}
    write(root / "MMK12/data" / shard("test"), [row | {"image": image()}], schema)
    row = {"image": image(), "problem": "How many?", "solution": "<answer> 3 </answer>"}
    schema = {"image": IMAGE, "problem": STR, "solution": STR}
    write(root / "Clevr_CoGenT_ValB/data" / shard("train"), [row], schema)


def exams(root: pathlib.Path) -> None:
    numbered = dict.fromkeys([f"image_{i}" for i in range(1, 8)], IMAGE)
    names = ("id", "question", "options", "explanation", "img_type", "answer", "question_type")
    schema = dict.fromkeys((*names, "topic_difficulty", "subfield"), STR) | numbered
    row = {"id": "validation_Art_1", "image_1": image(), "image_2": image("blue")}
    row |= {"question_type": "multiple-choice", "explanation": ""}
    rows = [
        row | {"question": "See <image 1>, <image 2>.", "options": "['5', 'six']", "answer": "B"},
        row
        | {"question": "Say <image 1>, <image 2>.", "question_type": "open", "options": "[]"}
        | {"answer": "['24', '24.0']"},
    ]
    write(root / "MMMU/Art" / shard("validation"), rows, schema)
    row = row | {"id": "validation_Math_1", "question": "<image 1> <image 2>?"}
    rows = [row | {"options": "['a', 'b']", "answer": "A"}]
    write(root / "MMMU/Math" / shard("validation"), rows, schema)
    letters = [str(i) for i in range(10)]
    row = {"id": "test_Math_1", "options": str(letters), "answer": "J", "subject": "Math"}
    schema = dict.fromkeys(("id", "question", "options", "explanation", "answer", "subject"), STR)
    standard = row | {"question": "What is <image 1>?", "image_1": image()}
    file = root / "MMMU_Pro/standard (10 options)" / shard("test")
    write(file, [standard, standard | {"answer": "A"}], schema | numbered)
    schema = dict.fromkeys(("id", "options", "answer", "subject"), STR) | {"image": IMAGE}
    write(root / "MMMU_Pro/vision" / shard("test"), [row | {"image": image()}], schema)
    names = ("pid", "question", "answer", "subject", "task", "category", "source", "type")
    schema = dict.fromkeys((*names, "context"), STR) | {"options": TEXTS} | numbered
    row = {"pid": "m1", "image_1": image(), "image_2": image("blue")}
    choice = {"context": "See <image_2>.", "question": "Which?", "options": ["<image_1>", "none"]}
    choice |= {"answer": "A", "type": "Multiple Choice", "subject": "Math"}
    write(root / "EMMA/Math" / shard("test"), [row | choice], schema)
    free = {"question": "Add <image_1> <image_2>", "answer": "21", "type": "Open-ended"}
    write(root / "EMMA/Physics" / shard("test"), [row | free | {"subject": "Physics"}], schema)


def mega(root: pathlib.Path) -> None:
    names = ("id", "task_name", "task_description", "global_media", "example_text", "example_media")
    names += ("query_text", "query_media", "answer", "metric_info", "eval_context")
    row = dict.fromkeys(names, "") | {"task_name": "count", "task_description": "Count the discs."}
    row |= {"query_text": "<image>?", "query_media": "['data/a.png']", "answer": "{'n': '2'}"}
    info = {"field_score_function": {"n": "exact_str_match"}, "response_parse_function": "json"}
    info["aggregation"] = {"function": "mean", "field_weights": {"n": 1}}
    other = info | {"response_parse_function": "answer_string"}
    judged = info | {"field_score_function": {"n": "gpt_4o_as_judge"}}
    rows = [
        row | {"metric_info": str(info)},
        row | {"metric_info": str(info), "answer": "{'n': '3'}"},
        row | {"task_name": "name", "metric_info": str(other), "answer": "{'n': 'a disc'}"},
        row | {"task_name": "write", "metric_info": str(judged)},
    ]
    folder = root / "MEGA-Bench"
    write(folder / "core" / shard("test"), rows, dict.fromkeys(names, STR))
    (folder / "data").mkdir()
    (folder / "data/a.png").write_bytes(drawing())


def places(root: pathlib.Path) -> None:
    floats = pa.list_(pa.float32())
    schema = {"question_id": STR, "image": IMAGE, "question": STR, "answer": TEXTS}
    schema |= {"segmentation": floats, "bbox": floats, "iscrowd": pa.int8(), "file_name": STR}
    row = {"question_id": "1", "image": image(), "question": "Caption it.", "iscrowd": 0}
    row |= {"answer": ["left disc", "red one"], "bbox": [4, 4, 16, 16], "file_name": "a.jpg"}
    for split in ("val", "testA", "testB"):
        write(root / "RefCOCO/data" / shard(split), [row], schema)
    folder = root / "VSR"
    folder.mkdir()
    row = {"image": "1.jpg", "relation": "under"}
    rows = [row | {"caption": "The cat is under the disc.", "label": label} for label in (0, 1)]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    (folder / "test.jsonl").write_text(lines)
    (folder / "train.jsonl").write_text(lines)
    (folder / "images").mkdir()
    (folder / "images/1.jpg").write_bytes(drawing())
    names = ("id", "text", "oracle_answer", "oracle_option", "oracle_full_answer")
    row = {"text": "Turns?\nA. 1\nB. 8", "oracle_answer": "1", "oracle_option": "A"}
    rows = [row | {"id": f"mazenav.vqa.{i // 2}.{i % 2}", "image": image()} for i in range(3)]
    rows.append(row | {"id": "spatialmap.vqa.1.0", "image": image()})
    schema = dict.fromkeys(names, STR) | {"image": IMAGE}
    write(root / "SpatialEval/vqa" / shard("test"), rows, schema)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> pathlib.Path:
    """A data folder with a few rows of every benchmark."""
    root = tmp_path_factory.mktemp("DATA")
    for make in (charts, mathematics, exams, mega, places):
        make(root)
    return root
