"""Every set's mapper, over files of its published schema with rows and pictures of our own."""

import base64
import io
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from vrrl_jax.data import loading, mappers, records

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STR, INT, TEXTS = pa.string(), pa.int64(), pa.list_(pa.string())


def drawing(colour="red", mode="RGB", size=(12, 8)) -> bytes:
    """A PNG: a disc on white, also with alpha or a palette."""
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((2, 1, 9, 6), fill=colour)
    stream = io.BytesIO()
    picture.convert(mode).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE, ALPHA, PALETTE = drawing(), drawing("blue"), drawing("green", "RGBA"), drawing(mode="P")


def image(data, path=None):
    return {"bytes": data, "path": path}


def write_parquet(file: pathlib.Path, rows, schema, labels=None) -> pathlib.Path:
    """A shard as Hugging Face writes it: its features stand in the schema's metadata."""
    features = {
        name: {"_type": "Image"} if kind == IMAGE else {"dtype": str(kind), "_type": "Value"}
        for name, kind in schema.items()
    }
    for name, names in (labels or {}).items():
        features[name] = {"names": names, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(rows, pa.schema(list(schema.items()), metadata))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def write_json(file: pathlib.Path, rows, lines=False) -> pathlib.Path:
    text = "\n".join(json.dumps(row) for row in rows) + "\n" if lines else json.dumps(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def write_pictures(folder: pathlib.Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(RED)


def of(loaded: loading.Loaded) -> list[records.Record]:
    assert loaded.skipped == []
    return list(loaded.records)


def brief(record: records.Record) -> tuple:
    return record.question, record.answer, record.kind, record.options, record.category


# --- training sets -----------------------------------------------------------------------------


def test_virl39k(tmp_path):
    schema = {"question": STR, "answer": STR, "PassRate_32BTrained": pa.float64()}
    schema |= {"PassRate_7BBase": pa.float64(), "category": STR, "source": STR, "qid": STR}
    schema["image"] = TEXTS
    rates = {"PassRate_32BTrained": 1.0, "PassRate_7BBase": -1.0, "source": "ours"}
    rows = [
        ("<image>How wide is the disc?", r"\boxed{\frac{\sqrt{3}}{2}}", ["images/a-0.jpg"]),
        (
            "Which is larger? <image> or <image>\nA. left\nB. right",
            r"\boxed{B}",
            ["images/a-0.jpg"] * 2,
        ),
        ("<|vision_start|><|image_pad|><|vision_end|>What is it?", "a disc", ["images/b.jpg"]),
        ("What is 1 + 1?", r"\boxed{1} no, \boxed{2}", []),
    ]
    rows = [
        rates | {"question": q, "answer": a, "image": i, "category": "Spatial Reasoning", "qid": q}
        for q, a, i in rows
    ]
    write_parquet(tmp_path / "39Krelease.parquet", rows, schema)
    write_pictures(tmp_path, "images/a-0.jpg", "images/images/b.jpg")
    made = of(loading.load(tmp_path, "virl39k"))
    assert [brief(r)[:3] for r in made] == [
        ("<image>How wide is the disc?", r"\frac{\sqrt{3}}{2}", "math"),
        ("Which is larger? <image> or <image>\nA. left\nB. right", "B", "choice"),
        ("<image>What is it?", "a disc", "math"),
        ("What is 1 + 1?", "2", "math"),
    ]
    first = tmp_path.resolve() / "images/a-0.jpg"
    assert [r.pictures for r in made[:2]] == [(first,), (first, first)]
    assert made[2].pictures == (tmp_path.resolve() / "images/images/b.jpg",)
    assert made[3].pictures == () and made[0].category == "Spatial Reasoning"
    assert made[0].extra == rates | {"PassRate_7BBase": None, "qid": rows[0]["question"]}
    assert made[3].id == ("virl39k", 3, 0) and str(made[3].id) == "virl39k/3"


def test_mmk12(tmp_path):
    schema = {"id": STR, "question": STR, "answer": STR, "subject": STR, "image": IMAGE}
    rows = [
        {"question": "<image>Find x.", "answer": "$2\\sqrt{3}$", "image": image(ALPHA)},
        {"question": "Which?\nA. red\nB. blue", "answer": "A", "image": image(RED, "a.png")},
        {"question": "Name the point.", "answer": "A", "image": image(PALETTE)},
    ]
    rows = [row | {"id": str(i), "subject": "math"} for i, row in enumerate(rows)]
    file = write_parquet(tmp_path / "data/test-00000-of-00001.parquet", rows, schema)
    made = of(loading.load(file, "mmk12"))
    assert [brief(r) for r in made] == [
        ("<image>Find x.", "$2\\sqrt{3}$", "math", (), "math"),
        ("<image>Which?\nA. red\nB. blue", "A", "choice", (), "math"),
        ("<image>Name the point.", "A", "math", (), "math"),
    ]
    assert [r.pictures for r in made] == [(ALPHA,), (RED,), (PALETTE,)]
    assert made[1].extra == {"id": "1"}


@pytest.mark.parametrize("revision", ["older", "newer"])
def test_geometry3k(tmp_path, revision):
    schema = {"images": pa.list_(IMAGE), "problem": STR, "answer": STR}
    row = {"images": [image(RED)], "problem": "<image>Find x.", "answer": "2 \\sqrt { 3 }"}
    more = {"id": 7, "choices": ["1", "2", "3", "4"], "ground_truth": "B"}
    if revision == "newer":
        schema |= {"id": INT, "choices": TEXTS, "ground_truth": STR}
        row |= more
    for split in ("train", "test"):
        write_parquet(tmp_path / f"data/{split}-00000-of-00001-0ab1.parquet", [row], schema)
    (made,) = of(loading.load(tmp_path, "geometry3k", split="test"))
    assert brief(made) == ("<image>Find x.", "2 \\sqrt { 3 }", "math", (), "")
    assert made.pictures == (RED,) and made.extra == (more if revision == "newer" else {})


def test_clevr(tmp_path):
    schema = {"image": IMAGE, "problem": STR, "solution": STR}
    answers = ["<answer> 3 </answer>", "<answer> Yes </answer>", "<answer>metal</answer>"]
    rows = [
        {"image": image(ALPHA), "problem": "How many items are there?", "solution": answer}
        for answer in answers
    ]
    made = of(loading.load(write_parquet(tmp_path / "a.parquet", rows, schema), "clevr"))
    assert [(r.answer, r.kind) for r in made] == [
        ("3", "number"),
        ("yes", "yesno"),
        ("metal", "text"),
    ]


def test_llava_cot(tmp_path):
    reply = "<SUMMARY> s </SUMMARY> <CAPTION> c </CAPTION> <REASONING> r </REASONING> "
    reply += "<CONCLUSION> Red. </CONCLUSION>"
    turns = [("human", "What colour?\n<image>"), ("gpt", reply), ("human", "Sure?"), ("gpt", reply)]
    conversation = [{"from": who, "value": what} for who, what in turns]
    row = {"id": "1", "image": "sqa/train/1/image.png", "conversations": conversation}
    write_json(tmp_path / "train.jsonl", [row, row], lines=True)
    write_pictures(tmp_path, "sqa/train/1/image.png")
    made = of(loading.load(tmp_path / "train.jsonl", "llava_cot"))[1]
    assert brief(made) == ("What colour?\n<image>", "Red.", "text", (), "")
    assert made.extra == {"id": "1", "conversations": conversation}
    assert made.pictures == (tmp_path.resolve() / "sqa/train/1/image.png",)


# --- charts and tables -------------------------------------------------------------------------


def test_chartqa_layouts(tmp_path):
    ask = "How many bars?"
    one = {"type": "human_test", "question": ask, "answer": "3", "image": image(RED)}
    two = {"image": image(RED), "query": ask, "label": ["3", "three"], "human_or_machine": 1}
    three = {"imgname": "7.png", "query": ask, "label": "3", "type": "human", "image": RED}
    schemas = [
        {"type": STR, "question": STR, "answer": STR, "image": IMAGE},
        {"image": IMAGE, "query": STR, "label": TEXTS, "human_or_machine": INT},
        {"imgname": STR, "query": STR, "label": STR, "type": STR, "image": pa.binary()},
    ]
    made = []
    for i, (row, schema) in enumerate(zip([one, two, three], schemas, strict=True)):
        file = write_parquet(tmp_path / f"{i}/test-00000-of-00001.parquet", [row], schema)
        made += of(loading.load(file, "chartqa"))
    assert [brief(r) for r in made] == [
        ("<image>" + ask, "3", "number", (), category)
        for category in ("human_test", "machine", "human")
    ]
    assert [r.accepted for r in made] == [(), ("three",), ()]
    assert {r.pictures for r in made} == {(RED,)}
    # The original archive: JSON lists, pictures in a folder beside them.
    row = {"imgname": "7.png", "query": ask, "label": "Yes"}
    write_pictures(tmp_path, "test/png/7.png")
    (made,) = of(loading.load(write_json(tmp_path / "test/test_human.json", [row]), "chartqa"))
    assert made.kind == "text" and made.pictures == (tmp_path.resolve() / "test/png/7.png",)


def test_tablevqa(tmp_path):
    schema = {"qa_id": STR, "image": IMAGE, "question": STR, "text_markdown_table": STR}
    schema |= {"text_html_table": STR, "gt": STR}
    row = {"qa_id": "1", "image": image(RED), "question": "Which?", "text_markdown_table": "|a|"}
    row["text_html_table"] = "<table></table>"
    answers = {"vwtq": "1||2", "vwtq_syn": "1", "vtabfact": "0", "fintabnetqa": "$3 million"}
    for split, answer in answers.items():
        file = tmp_path / f"data/{split}-00000-of-00001.parquet"
        write_parquet(file, [row | {"gt": answer}], schema)
    made = [of(loading.load(tmp_path, "tablevqa", split=split))[0] for split in answers]
    assert [(r.answer, r.kind) for r in made] == [
        ("1||2", "text"),
        ("1", "number"),
        ("no", "yesno"),
        ("$3 million", "text"),
    ]
    assert [r.category for r in made] == list(answers)


def test_chartmuseum_refchartqa_refocus(tmp_path):
    names = ("image", "question", "answer", "reasoning_type", "source", "hash")
    row = dict(zip(names, ("images/a.png", "Which?", "Red", "visual", "web", "0"), strict=True))
    file = write_parquet(tmp_path / "dev-00000-of-00001.parquet", [row], dict.fromkeys(names, STR))
    write_pictures(tmp_path, "images/a.png")
    (made,) = of(loading.load(file, "chartmuseum"))
    assert brief(made) == ("<image>Which?", "Red", "text", (), "visual")
    assert made.extra == {"source": "web", "hash": "0"}

    box = pa.struct([(name, pa.float32()) for name in "xywh"])
    schema = {"id": STR, "image": IMAGE, "query": STR, "response": STR, "label": STR}
    schema |= {"grounding_bboxes": pa.list_(box), "type": STR}
    row = {"id": "1", "image": image(RED), "query": "How high?", "response": "So.", "label": "2.5%"}
    row |= {"grounding_bboxes": [{"x": 1, "y": 2, "w": 3, "h": 4.5}], "type": "human"}
    (made,) = of(loading.load(write_parquet(tmp_path / "ref.parquet", [row], schema), "refchartqa"))
    assert brief(made) == ("<image>How high?", "2.5%", "number", (), "human")
    assert made.boxes == ((1.0, 2.0, 4.0, 6.5),) and made.extra == {"id": "1", "response": "So."}

    box = pa.struct([(name, pa.int32()) for name in ("x1", "y1", "x2", "y2")])
    schema = {"id": STR, "question": STR, "answer": STR, "image": IMAGE, "thoughts": TEXTS}
    schema |= {"edited_image": IMAGE, "focus_areas_bbox": pa.list_(box), "source": STR}
    row = {"id": "1", "question": "Which?", "answer": "Red", "image": image(RED), "thoughts": ["a"]}
    row |= {"edited_image": image(BLUE), "source": "chartqa_h_bar"}
    row["focus_areas_bbox"] = [{"x1": 0, "y1": 1, "x2": 2, "y2": 3}]
    (made,) = of(loading.load(write_parquet(tmp_path / "foc.parquet", [row], schema), "refocus"))
    assert made.boxes == ((0.0, 1.0, 2.0, 3.0),) and made.category == "chartqa_h_bar"
    assert made.extra == {"id": "1", "thoughts": ["a"], "edited_image": BLUE}


# --- exams -------------------------------------------------------------------------------------

METADATA = pa.struct([("task", STR), ("img_height", INT), ("skills", TEXTS), ("subject", STR)])


def test_mathvista(tmp_path):
    names = ("pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query")
    schema = dict.fromkeys(names, STR)
    schema |= {"decoded_image": IMAGE, "choices": TEXTS, "precision": pa.float64()}
    schema["metadata"] = METADATA
    metadata = {"task": "figure question answering", "img_height": 8, "skills": ["s"]}
    row = {"pid": "1", "question": "How wide?", "image": "images/1.jpg", "query": "Hint"}
    row |= {"decoded_image": image(RED), "metadata": metadata, "question_type": "free_form"}
    rows = [
        row | {"answer": "1.2", "answer_type": "float", "precision": 1.0, "unit": "cm"},
        row | {"answer": "[1, 2]", "answer_type": "list"},
        row
        | {"answer": "blue", "answer_type": "text", "choices": ["dark blue", "blue"]}
        | {"question_type": "multi_choice"},
        row | {"answer": "", "answer_type": "integer"},
    ]
    file = write_parquet(tmp_path / "testmini-00000-of-00001.parquet", rows[:3], schema)
    made = of(loading.load(file, "mathvista"))
    assert [(r.answer, r.kind, r.options) for r in made] == [
        ("1.2", "number", ()),
        ("[1, 2]", "text", ()),
        ("B", "choice", ("dark blue", "blue")),
    ]
    assert made[0].category == "figure question answering" and made[0].pictures == (RED,)
    assert made[0].extra["unit"] == "cm" and made[0].extra["precision"] == 1.0
    # Only the split without answers may lack one.
    assert (
        of(
            loading.load(
                write_parquet(tmp_path / "test-00000-of-00001.parquet", rows[3:], schema),
                "mathvista",
            )
        )[0].answer
        == ""
    )
    file = write_parquet(tmp_path / "testmini-00000-of-00001.parquet", rows, schema)
    assert loading.load(file, "mathvista").skipped == [f"{file}, row 3: the answer is empty"]


def test_mathverse(tmp_path):
    names = ("sample_index", "problem_index", "problem_version", "question", "answer")
    schema = dict.fromkeys((*names, "question_type", "query_wo", "query_cot"), STR)
    schema |= {"image": IMAGE, "metadata": METADATA}
    row = {"sample_index": "1", "problem_index": "1", "image": image(RED), "query_wo": "Q"}
    row |= {
        "question": "Find x.\nChoices:\nA:2\nB:3",
        "answer": "B",
        "question_type": "multi-choice",
    }
    rows = [
        row | {"problem_version": "Text Dominant"},
        row | {"problem_version": "Vision Only", "question": ""},
        row | {"problem_version": "Text Only", "image": None, "question_type": "free-form"},
        row | {"problem_version": "Text Lite", "image": image(None)},
        row | {"problem_version": "Text Lite", "question": ""},
    ]
    file = write_parquet(tmp_path / "testmini.parquet", rows, schema)
    loaded = loading.load(file, "mathverse")
    assert [(r.question, r.answer, r.kind, len(r.pictures)) for r in loaded.records] == [
        ("<image>" + row["question"], "B", "choice", 1),
        ("<image>", "B", "choice", 1),
        (row["question"], "B", "math", 0),
    ]
    assert loaded.skipped == [
        f"{file}, row 3: a picture is missing",
        f"{file}, row 4: the question is empty",
    ]


def test_mathvision(tmp_path):
    schema = {"id": STR, "question": STR, "options": TEXTS, "image": STR, "decoded_image": IMAGE}
    schema |= {"answer": STR, "solution": STR, "level": INT, "subject": STR}
    row = {"id": "1", "image": "images/1.jpg", "decoded_image": image(RED), "level": 2}
    row["subject"] = "solid geometry"
    rows = [
        row | {"question": "Which?\n<image1>", "options": list("ABCDE"), "answer": "E"},
        row | {"question": "Find x in <image1>.", "options": [], "answer": r"\frac{1}{2}"},
    ]
    made = of(loading.load(write_parquet(tmp_path / "t.parquet", rows, schema), "mathvision"))
    assert [brief(r) for r in made] == [
        ("Which?\n<image>", "E", "choice", tuple("ABCDE"), "solid geometry"),
        ("Find x in <image>.", r"\frac{1}{2}", "math", (), "solid geometry"),
    ]
    assert made[0].extra == {"id": "1", "solution": None, "level": 2}


NUMBERED = [f"image_{i}" for i in range(1, 8)]


def test_mmmu(tmp_path):
    names = ("id", "question", "options", "explanation", "img_type", "answer", "question_type")
    schema = dict.fromkeys((*names, "topic_difficulty", "subfield"), STR)
    schema |= dict.fromkeys(NUMBERED, IMAGE)
    row = {"id": "validation_Art_Theory_1", "image_1": image(RED), "image_2": image(BLUE)}
    row |= {"question_type": "multiple-choice", "explanation": "As <image 2> shows."}
    rows = [
        row | {"question": "See <image 1>.", "options": "['$5', \"it's\"]", "answer": "B"},
        row
        | {"question": "Match <image 2>:", "answer": "A"}
        | {"options": "['<image 1>', '<image 2>', '<image 1> too']"},
        row
        | {"question": "Say <image 2>, <image 1>.", "question_type": "open", "options": "[]"}
        | {"answer": "['24', '24.0']"},
    ]
    file = write_parquet(tmp_path / "Art_Theory/validation-00000-of-00001.parquet", rows, schema)
    made = of(loading.load(file.parent, "mmmu"))
    assert [brief(r) for r in made] == [
        ("See <image>.", "B", "choice", ("$5", "it's"), "Art_Theory"),
        ("Match <image>:", "A", "choice", ("<image>", "<image>", "<image> too"), "Art_Theory"),
        ("Say <image>, <image>.", "24", "number", (), "Art_Theory"),
    ]
    # Question and options show, mark by mark, the picture of their number.
    assert [r.pictures for r in made] == [(RED,), (BLUE, RED, BLUE, RED), (BLUE, RED)]
    assert made[2].accepted == ("24.0",)
    # All subjects at once.
    assert len(loading.load(str(tmp_path / "*/validation-*.parquet"), "mmmu").records) == 3


def test_mmmu_pro(tmp_path):
    letters = [str(i) for i in range(10)]
    row = {"id": "test_Math_1", "options": str(letters), "answer": "J", "subject": "Math"}
    schema = dict.fromkeys(("id", "question", "options", "explanation", "answer", "subject"), STR)
    standard = row | {"question": "What is <image 1>?", "image_1": image(RED)}
    folder = tmp_path / "standard (10 options)"
    schema |= dict.fromkeys(NUMBERED, IMAGE)
    write_parquet(folder / "test-00000-of-00001.parquet", [standard], schema)
    (made,) = of(loading.load(folder, "mmmu_pro"))
    assert brief(made) == ("What is <image>?", "J", "choice", tuple(letters), "Math")
    schema = dict.fromkeys(("id", "options", "answer", "subject"), STR) | {"image": IMAGE}
    file = tmp_path / "vision/test-00000-of-00001.parquet"
    write_parquet(file, [row | {"image": image(BLUE)}], schema)
    (made,) = of(loading.load(file, "mmmu_pro"))
    assert brief(made) == ("<image>", "J", "choice", tuple(letters), "Math")
    assert made.pictures == (BLUE,) and made.extra == {"id": "test_Math_1"}


def test_emma(tmp_path):
    names = (
        "pid",
        "question",
        "answer",
        "subject",
        "task",
        "category",
        "source",
        "type",
        "context",
    )
    schema = dict.fromkeys(names, STR) | {"options": TEXTS} | dict.fromkeys(NUMBERED[:5], IMAGE)
    row = {"pid": "m1", "subject": "Math", "image_1": image(RED), "image_2": image(BLUE)}
    rows = [
        row
        | {"context": "See <image_2>.", "question": "Which?", "options": ["<image_1>", "none"]}
        | {"answer": "A", "type": "Multiple Choice"},
        row | {"question": "Add <image_1> <image_2>", "answer": "2", "type": "Open-ended"},
    ]
    made = of(loading.load(write_parquet(tmp_path / "t.parquet", rows, schema), "emma"))
    assert [brief(r) for r in made] == [
        ("See <image>.\nWhich?", "A", "choice", ("<image>", "none"), "Math"),
        ("Add <image> <image>", "2", "math", (), "Math"),
    ]
    assert [r.pictures for r in made] == [(BLUE, RED), (RED, BLUE)]


# --- places ------------------------------------------------------------------------------------


def test_refcoco(tmp_path):
    floats = pa.list_(pa.float32())
    schema = {"question_id": STR, "image": IMAGE, "question": STR, "answer": TEXTS}
    schema |= {"segmentation": floats, "bbox": floats, "iscrowd": pa.int8(), "file_name": STR}
    row = {"question_id": "1", "image": image(RED), "question": "Provide a caption.", "iscrowd": 0}
    row |= {"answer": ["left disc", "red one"], "bbox": [1, 2, 3.5, 4], "file_name": "a.jpg"}
    file = write_parquet(tmp_path / "testA-00000-of-00001.parquet", [row, row], schema)
    made = of(loading.load(file, "refcoco"))
    expected = ("[1.0, 2.0, 4.5, 6.0]", "box", (), "testA")
    assert [brief(r) for r in made[2:]] == [
        ("<image>left disc", *expected),
        ("<image>red one", *expected),
    ]
    assert [str(r.id) for r in made] == ["refcoco/0", "refcoco/0.1", "refcoco/1", "refcoco/1.1"]
    assert made[0].boxes == ((1.0, 2.0, 4.5, 6.0),)
    assert len(loading.load(file, "refcoco", limit=3).records) == 3


def test_vsr_and_spatialeval(tmp_path):
    row = {"image": "1.jpg", "image_link": "http://x/1.jpg", "relation": "under"}
    rows = [row | {"caption": "The cat is under the disc.", "label": label} for label in (0, 1)]
    write_pictures(tmp_path, "images/val2017/1.jpg")
    made = of(loading.load(write_json(tmp_path / "test.jsonl", rows, lines=True), "vsr"))
    ask = '<image>Is the following statement about the image true? "The cat is under the disc."'
    assert [brief(r) for r in made] == [
        (ask, answer, "yesno", (), "under") for answer in ("no", "yes")
    ]
    names = ("id", "text", "oracle_answer", "oracle_option", "oracle_full_answer")
    schema = dict.fromkeys(names, STR) | {"image": IMAGE}
    row = {"text": "Turns?\nA. 4\nB. 8", "oracle_answer": "8", "oracle_option": "B"}
    rows = [row | {"id": "mazenav.tqa.1.0"}, row | {"id": "mazenav.vqa.1.0", "image": image(RED)}]
    rows.append(row | {"id": "mazenav.vtqa.1.0"})
    file = write_parquet(tmp_path / "vqa.parquet", rows, schema)
    loaded = loading.load(file, "spatialeval")
    assert [brief(r) for r in loaded.records] == [
        (row["text"], "B", "choice", (), "mazenav"),
        ("<image>" + row["text"], "B", "choice", (), "mazenav"),
    ]
    assert loaded.skipped == [f"{file}, row 2: a picture is missing"]


def test_space(tmp_path):
    rows = [
        {"question": ["Here:", "IMAGE:a.png", "How far?"], "answer": 3},
        {"question": "Which?", "answer": "left"},
        {"question": ["VIDEO:walk.mp4", "Where?"], "answer": 1},
    ]
    file = write_json(tmp_path / "MRT_vision/qas.json", rows)
    write_pictures(file.parent, "a.png")
    loaded = loading.load(file, "space", max_bad=0)
    assert [brief(r) for r in loaded.records] == [
        ("Here:\n<image>\nHow far?", "3", "number", (), "MRT_vision"),
        ("Which?", "left", "text", (), "MRT_vision"),
    ]
    # A video is no defect of the row: named, and not held against the file.
    assert loaded.skipped == [f"{file}, row 2: the question shows a video"] and loaded.bad == 0


# --- general -----------------------------------------------------------------------------------


def test_mega_bench(tmp_path):
    names = ("id", "task_name", "task_description", "global_media", "example_text", "example_media")
    names += ("query_text", "query_media", "answer", "metric_info", "eval_context")
    row = dict.fromkeys(names, "") | {"task_name": "count", "task_description": "Count the discs."}
    row |= {"example_text": "<image> has 1.", "example_media": "['a.png']", "answer": "{'n': '2'}"}
    row |= {"query_text": "<image> and <image>?", "query_media": "['b.png', 'a.png']"}
    row |= {"metric_info": "{'field_score_function': {'n': 'exact_str_match'}}"}
    rows = [row, row | {"query_media": "['b.png', 'c.mp4']"}, row | {"query_media": "b.png"}]
    rows.append(row | {"answer": "{'n': 1, 'm': [2]}"})
    file = write_parquet(tmp_path / "core.parquet", rows, dict.fromkeys(names, STR))
    write_pictures(tmp_path, "a.png", "b.png")
    loaded = loading.load(file, "mega_bench")
    first, second = loaded.records
    text = "Count the discs.\n<image> has 1.\n<image> and <image>?"
    assert brief(first) == (text, "2", "text", (), "count")
    assert [path.name for path in first.pictures] == ["a.png", "b.png", "a.png"]
    assert first.extra["fields"] == {"n": "2"}
    assert first.extra["metric_info"] == {"field_score_function": {"n": "exact_str_match"}}
    assert json.loads(second.answer) == {"n": 1, "m": [2]} and second.id.row == 3
    assert loaded.skipped == [
        f"{file}, row 2: 2 pictures, but 3 <image> marks",
        f"{file}, row 1: the question shows a video",
    ]


def test_vlmevalkit(tmp_path):
    red, blue = (base64.b64encode(data).decode() for data in (RED, BLUE))
    rows = [
        ["index", "image", "question", "A", "B", "C", "answer", "category"],
        ["0", red, 'Which "disc"?\nSay.', "red", "blue", "", "A", "colour"],
        ["7", "0", "Which?", "red", "blue", "", "blue", "colour"],
        ["8", json.dumps([blue, red]), "Equal?", "", "", "", "No", "colour"],
    ]
    quoted = ["\t".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    file = tmp_path / "ours.tsv"
    file.write_text("\n".join(quoted) + "\n", encoding="utf-8")
    made = of(loading.load(file, "vlmevalkit"))
    assert [brief(r)[:4] for r in made] == [
        ('<image>Which "disc"?\nSay.', "A", "choice", ("red", "blue")),
        ("<image>Which?", "B", "choice", ("red", "blue")),
        ("<image><image>Equal?", "no", "yesno", ()),
    ]
    assert [r.pictures for r in made] == [(RED,), (RED,), (BLUE, RED)]


def test_users_own_fields(tmp_path):
    rows = [
        {"q": "Which?", "pics": ["a.png", "a.png"], "a": "red", "o": ["blue", "red"], "n": 1},
        {"q": "What is 2?", "pics": [], "a": ["2", "two"], "o": None},
        {"q": "And?", "pics": "a.png", "a": 5},
        {"q": "No picture field", "a": "5"},
    ]
    write_pictures(tmp_path, "a.png")
    file = write_json(tmp_path / "own.jsonl", rows, lines=True)
    fields = mappers.FieldMap(question="q", image="pics", answer="a", options="o")
    loaded = loading.load(file, fields, source="mine")
    assert [brief(r)[:4] for r in loaded.records] == [
        ("<image><image>Which?", "B", "choice", ("blue", "red")),
        ("What is 2?", "2", "number", ()),
        ("<image>And?", "5", "number", ()),
    ]
    assert loaded.records[0].extra == {"n": 1} and loaded.records[1].accepted == ("two",)
    assert loaded.records[0].id.source == "mine"
    assert loaded.skipped == [f"{file}, row 3: no field 'pics'"]
    with pytest.raises(ValueError, match="unknown kind 'box'"):
        mappers.FieldMap(kind="box")


def test_classification_answers_with_the_title(tmp_path):
    schema = {"image": IMAGE, "label": INT}
    rows = [{"image": image(RED), "label": label} for label in (1, 0, 2)]
    names = ["great_grey_owl", "disc"]
    file = write_parquet(tmp_path / "t.parquet", rows, schema, {"label": names})
    loaded = loading.load(file, "classification")
    assert [(r.answer, r.extra["title"], r.pictures) for r in loaded.records] == [
        ("disc", "disc", (RED,)),
        ("great grey owl", "great grey owl", (RED,)),
    ]
    assert loaded.records[0].question == "<image>What is the title of this picture?"
    assert loaded.skipped == [f"{file}, row 2: label 2 has no name; there are 2"]
    named = mappers.Classification(names=("a", "b", "c"))
    assert [r.answer for r in loading.load(file, named).records] == ["b", "a", "c"]


def test_an_unknown_mapper_is_named():
    with pytest.raises(ValueError, match=r"unknown mapper 'chart': .*chartqa"):
        mappers.get("chart")
