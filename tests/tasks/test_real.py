"""The tables and charts tasks on real data."""

import csv
import random

import pytest

from vrrl_jax.config import EvalConfig, GroundingData, SftConfig, of_task
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.strict_yaml import ConfigError, load
from vrrl_jax.tasks.grounding import Charts, Tables


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, first in (("a.csv", 0), ("b.csv", 500)):
        with open(folder / name, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["town", "people", "area", "rain"])
            for i in range(first, first + 200):
                out.writerow([f"T{i}", 1000 + 37 * i, i / 4 + 1, 300 + i % 90])
    (folder / "broken.csv").write_text("a,b\n")
    return str(folder)


def names(example):
    shown = example[0]
    found = [row[0] for row in shown.rows] if hasattr(shown, "rows") else shown.categories
    return {int(name[1:]) for name in found if name.startswith("T")}


def test_training_evaluation_and_fresh_examples_come_from_the_files(path, capsys):
    for made in (Tables, Charts):
        data = GroundingData(real=path, count=20, held_out=("b.csv",))
        task = made(data=data, eval=EvalConfig(count=12))
        training, tested = task.training(), task.evaluation()
        assert "skipped: broken.csv: no rows" in capsys.readouterr().out
        assert len(training) == 20 and training[3] == task.training()[3]
        assert training[3] != task.fresh(random.Random(0), 5)[3]
        assert tested.labels == ("in-domain",) * 6 + ("OOD",) * 6 and tested.source == path
        seen = set().union(*map(names, [*training, *task.fresh(random.Random(0), 5)]))
        assert seen and max(seen) < 500
        for example, label in zip(tested.examples, tested.labels, strict=True):
            assert not names(example) & seen
            assert all((name >= 500) == (label == "OOD") for name in names(example))
        assert capsys.readouterr().out == "", "files are read once"


@pytest.mark.parametrize("made", [Tables, Charts])
def test_a_demonstration_is_right_and_a_transcript_names_the_marks(path, made):
    task = made(data=GroundingData(real=path, count=8))
    for i, example in enumerate(task.training()):
        replies = task.demonstrate(example, random.Random(i), True)
        texts = tuple("".join(piece.text for piece in reply.pieces) for reply in replies)
        figures = task.score(texts, example, Group(i, example))
        assert figures["final_em"] == 1.0, texts
        prompt, reply = task.transcribe(example)
        text = "".join(piece.text for piece in reply.pieces)
        assert len(prompt.pictures) == 1
        assert all(f"T{name} " in text for name in names(example))


def test_kinds_of_questions_are_the_recipe_s(path):
    task = Tables(data=GroundingData(real=path, count=10, kinds=("count",)))
    assert {example.table.kind for example in task.training()} == {"count"}


def test_what_does_not_go_together_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="real doesn't go with preset nano"):
        GroundingData(real="vega", preset="nano")
    with pytest.raises(ConfigError, match=r"held_out needs data\.real"):
        GroundingData(held_out=("a.csv",))
    with pytest.raises(ConfigError, match="real is empty"):
        GroundingData(real="")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: tables\ndata:\n  real: vega\n  preset: nano\n")
    with pytest.raises(ConfigError, match=r"r.yaml:3: data.real doesn't go with"):
        load(recipe, [], of_task(SftConfig, "tables"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Tables(data=GroundingData(real=str(tmp_path / "gone"))).training()[0]
