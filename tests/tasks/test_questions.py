"""The task of single questions: drawn ones, mixtures of sources, and their plans."""

import dataclasses
import io
import json
import pathlib
import random

import numpy as np
import pytest
from PIL import Image

from vrrl_jax import tasks
from vrrl_jax.config import ConfigError, DemonstrationConfig, TrainConfig, load
from vrrl_jax.data.mixture import Numbered
from vrrl_jax.data.records import Record
from vrrl_jax.data.shapes import Question
from vrrl_jax.processing import encode, images
from vrrl_jax.question_sections import (
    QuestionsData,
    QuestionsEnv,
    QuestionsEval,
    QuestionsReward,
    SourceConfig,
)
from vrrl_jax.rollout import episodes
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.questions import Questions

NANO = QuestionsData(count=40, preset="nano", text_share=0.5)


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, width % 256, 9)).save(file, "png")
    return file.getvalue()


def write(folder, rows):
    """Rows of (question, answer, sizes of pictures, category) as a folder of one file."""
    folder.mkdir()
    lines = []
    for i, (question, answer, sizes, category) in enumerate(rows):
        names = [f"{i}_{k}.png" for k in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            (folder / name).write_bytes(png(*size))
        lines.append({"question": question, "image": names, "answer": answer, "topic": category})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def sources(tmp_path):
    """Three questions about pictures, four about none; both read by the same mapper."""
    shown = [("How wide?", "56", [(56, 28)], "a"), ("How tall?", "84", [(28, 84)], "b")]
    shown += [("Which <image> or <image>?", "both", [(28, 28), (56, 56)], "a")]
    told = [(f"What is {i} + {i}?", str(2 * i), [], "sum") for i in range(4)]
    return write(tmp_path / "shown", shown), write(tmp_path / "told", told)


def source(path, **given):
    return SourceConfig(path=str(path), mapper="fields", **given)


# --- drawn questions -----------------------------------------------------------------------------


def test_drawn_questions_have_the_share_of_text_that_is_asked_for():
    share = lambda text_share: np.mean(
        [
            e.scene is None
            for e in Questions(
                QuestionsData(count=60, preset="nano", text_share=text_share)
            ).training()
        ]
    )
    assert share(0.0) == 0 and share(1.0) == 1 and 0.3 < share(0.5) < 0.7
    only = QuestionsData(count=30, preset="nano", questions=("count",), text_share=0.0)
    assert {e.name for e in Questions(only).training()} == {"count"}


def test_drawn_evaluation_is_half_in_domain_and_half_not():
    found = Questions(NANO, eval=QuestionsEval(count=7)).evaluation()
    assert found.labels == ("in-domain",) * 4 + ("OOD",) * 4
    assert [e.split for e in found.examples] == ["test_id"] * 4 + ["test_ood"] * 4


@pytest.mark.parametrize("style", ["r1", "boxed"])
def test_what_is_demonstrated_is_right_and_well_formed(style):
    task = Questions(
        NANO,
        QuestionsEnv(style=style, suffix="", joint=" "),
        QuestionsReward(style="r1" if style == "r1" else "rethinker"),
        demonstrations=DemonstrationConfig(wrong_first=0.5, confirm=0.3),
    )
    rng, waited = random.Random(0), 0
    for example in task.training():
        (reply,) = task.demonstrate(example, rng, False)
        found = task.score((reply.text,), example, Group(0, example))
        assert found["success"] == found["format"] == 1, reply.text
        assert set(task.metrics) <= set(found)
        waited += found["rethought"]
        # What is cut before its end isn't well-formed to "rethinker".
        cut = task.score((reply.text,), example, Group(0, example, ended=False))
        assert cut["truncated"] == 1 and (style == "r1" or cut["format"] == 0)
        assert task.environment.step(example, reply.text, 0).done
        (plain,) = task.demonstrate(example, rng, True)
        assert task.score((plain.text,), example, Group(0, example))["rethought"] == 0
    assert waited


# --- sources -------------------------------------------------------------------------------------


def test_sources_are_mixed_by_weight_and_numbered_through(sources):
    shown, told = sources
    data = QuestionsData(sources=(source(shown, weight=1), source(told, weight=3)))
    examples = Questions(data).training()
    assert isinstance(examples, Numbered) and len(examples) == 7
    assert [len(e.pictures) for e in examples] == [1, 1, 2, 0, 0, 0, 0]
    order = [examples.order(i) for i in range(16)]
    assert [sum(n < 3 for n in order[i : i + 4]) for i in range(0, 16, 4)] == [1] * 4
    # Two sets in one layout keep names of their own.
    names = [name for name, _ in examples.mixture.sources]
    assert names == [f"fields of {shown}", f"fields of {told}"]
    assert {e.id.source for e in examples} == set(names)
    assert all(isinstance(e, Record) for e in Questions(data).fresh(random.Random(0), 5))


def test_sources_of_an_evaluation_are_splits_of_its_table(sources, capsys):
    shown, told = sources
    read = (source(shown), source(told, limit=3))
    found = Questions(
        NANO, eval=QuestionsEval(count=2, sources=read, in_domain=(f"fields of {told}",))
    ).evaluation()
    assert [len(e.pictures) for e in found.examples] == [1, 1, 0, 0]
    assert found.labels == (f"fields of {shown}",) * 2 + (f"fields of {told}",) * 2
    assert found.in_domain == {f"fields of {told}"}
    (alone,) = {*Questions(NANO, eval=QuestionsEval(sources=(source(told),))).evaluation().labels}
    assert alone == "fields"


def test_questions_that_are_not_wanted_are_left_out(tmp_path, sources, capsys):
    shown, _ = sources
    examples = Questions(QuestionsData(sources=(source(shown),), max_pictures=1)).training()
    assert [e.answer for e in examples] == ["56", "84"]
    assert "2 of 3 questions taken" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no question is left, of 3"):
        Questions(QuestionsData(sources=(source(shown, categories=("z",)),))).training()
    with pytest.raises(FileNotFoundError):
        Questions(QuestionsData(sources=(source(tmp_path / "nothing"),))).training()


def test_a_recipe_names_its_sources(tmp_path, sources, tiny_processor):
    path = tmp_path / "recipe.yaml"
    shown, told = sources
    path.write_text(
        f"task: questions\ndata:\n  sources:\n  - {{path: {shown}, mapper: fields}}\n"
        f"  - {{path: {told}, mapper: fields}}\n"
    )
    config = load(path, [], TrainConfig)
    task = tasks.make(config, tiny_processor)
    assert config.data.sources == (source(shown), source(told))
    picture = task.environment.reset(task.training()[0]).pictures[0]
    assert picture.shape == (28, 56, 3) and picture.dtype == np.uint8


# --- plans ---------------------------------------------------------------------------------------


def test_a_plan_holds_every_question(tiny, tiny_processor, tmp_path):
    """The longest text, the largest picture and the most pictures are three rows of many."""
    rows = [("Short?", "1", [(28, 28)], "a")] * 300
    rows[77] = ("Long " * 60 + "?", "1", [], "a")
    rows[133] = ("Large?", "1", [(224, 224)], "a")
    rows[201] = ("Many?", "1", [(28, 28)] * 6, "a")
    examples_at = write(tmp_path / "rows", rows)
    task = Questions(
        QuestionsData(sources=(source(examples_at),)),
        QuestionsEnv(suffix=""),
        open_image=images.open_image,
        resized=lambda size: images.resized(size, tiny_processor.images),
    )
    examples = task.training()
    probes = task.probes(examples)
    assert len(probes) < 40
    settings = episodes.Settings(2, 1, 8)
    shapes = episodes.plan_shapes(tiny[0], tiny_processor, task.environment, probes, settings)
    assert shapes.pictures == 6 and shapes.patches >= 256
    for i in (0, 77, 133, 201):
        chunk = encode.first_chunk(tiny_processor, task.environment.reset(examples[i]))
        assert chunk.tokens.size <= shapes.prompt


def test_questions_without_any_picture_have_a_plan(tiny, tiny_processor):
    task = Questions(QuestionsData(count=9, preset="nano", text_share=1.0))
    examples = task.training()
    assert all(isinstance(e, Question) and e.scene is None for e in examples)
    settings = episodes.Settings(2, 1, 8)
    probes = task.probes(examples)
    shapes = episodes.plan_shapes(tiny[0], tiny_processor, task.environment, probes, settings)
    assert (shapes.pictures, shapes.patches) == (1, tiny[0].config.layout.block)
    assert shapes.features == tiny_processor.images.features


# --- openings and kinds of questions -------------------------------------------------------------


def test_an_opening_is_read_with_the_reply_and_not_demonstrated():
    opening = "<think></think><answer>\\boxed{"
    task = Questions(
        NANO,
        QuestionsEnv(style="r1", suffix="", joint=" ", opening=opening),
        QuestionsReward(style="r1"),
        demonstrations=DemonstrationConfig(reasoning=0.0),
    )
    for example in task.training()[:5]:
        assert task.environment.reset(example).opening == opening
        rest = f"{example.answer}}}</answer>"
        found = task.score((rest,), example, Group(0, example))
        assert found["success"] == found["format"] == 1
        (reply,) = task.demonstrate(example, random.Random(0), False)
        assert reply.text == rest
        assert task.score((), example, Group(0, example))["success"] == 0
    wordy = dataclasses.replace(task, demonstrations=DemonstrationConfig(wrong_first=0.0))
    with pytest.raises(ValueError, match="made to open with"):
        wordy.demonstrate(example, random.Random(0), False)


# ViRL39K's layout: pictures below images/images, answers in boxes, eight categories.
VIRL = [
    ("(GradeSchool) Geometric", 1),
    ("(GradeSchool) Non-Geo Math", 0),
    ("(GradeSchool) Science", 1),
    ("(GradeSchool) Science", 0),
    ("Broader STEM Topics", 1),
    ("Social Science", 1),
    ("Spatial Reasoning", 2),
    ("Tables/Diagrams/Charts", 1),
]
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def virl39k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ViRL39K")
    (folder / "images" / "images").mkdir(parents=True)
    lines = []
    for i, (category, count) in enumerate(VIRL):
        names = [f"images/{i}-{k}.jpg" for k in range(count)]
        for name in names:
            (folder / "images" / name).write_bytes(png(56, 28))
        question = "<image>" * count + f" Which is number {i}? A. one B. two"
        lines.append({"question": question, "image": names, "category": category})
        lines[-1] |= {"answer": "\\boxed{B}", "PassRate_32BTrained": 0.5, "qid": f"q-{i}"}
    (folder / "39Krelease.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize(
    ("recipe", "left"),
    [
        ("vl_rethinker_virl39k_all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("vl_rethinker_virl39k_no_text", [0, 2, 4, 5, 6, 7]),
        ("vl_rethinker_virl39k_no_text_no_science", [0, 5, 6, 7]),
    ],
)
def test_the_mixtures_of_vl_rethinker(virl39k, recipe, left, capsys):
    config = load(CONFIGS / f"{recipe}.yaml", [f"data.sources[0].path={virl39k}"], TrainConfig)
    examples = Questions(config.data, config.env, config.reward).training()
    assert [e.extra["qid"] for e in examples] == [f"q-{i}" for i in left]
    told = f"{len(left)} of 8 questions taken" in capsys.readouterr().out
    assert told == (len(left) < 8)


def test_text_alone_and_categories(virl39k):
    def qids(**given):
        sources = (SourceConfig(path=str(virl39k), mapper="virl39k", **given),)
        return [e.extra["qid"] for e in Questions(QuestionsData(sources=sources)).training()]

    assert qids(pictures="without") == ["q-1", "q-3"]
    science = ("(GradeSchool) Science",)
    assert qids(categories=science, pictures="with") == ["q-2"]
    assert qids(leave_out=science, pictures="without") == ["q-1"]
    with pytest.raises(ValueError, match=r"category \['science'\].*Spatial Reasoning"):
        qids(leave_out=("science",))
    assert len(qids(leave_out=("science",), limit=4)) == 4  # it may come later
    with pytest.raises(ConfigError, match="categories is empty"):
        qids(categories=())
