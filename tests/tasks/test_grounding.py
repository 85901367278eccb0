"""The tasks of visual grounding: examples, options passed on, plans that hold every example."""

import io
import json
import random

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.config import (
    BoxesData,
    BoxesEval,
    DemonstrationConfig,
    EvalConfig,
    GroundingData,
    GroundingEnv,
    GroundingReward,
)
from vrrl_jax.coordinates import centre
from vrrl_jax.data.scenes import Scene
from vrrl_jax.envs.scenes import scene
from vrrl_jax.processing import encode
from vrrl_jax.rewards import grounding as rewards
from vrrl_jax.rollout import episodes
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.base import SAMPLED, Generated, sampled
from vrrl_jax.tasks.grounding import Boxes, Charts, Tables

KINDS = {"tables": Tables, "charts": Charts}
NANO = GroundingData(count=20, preset="nano")


# --- examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values())
def test_examples_are_made_when_they_are_asked_for(kind):
    task = kind(GroundingData(seed=4, count=5, preset="nano"))
    examples = task.training()
    assert len(examples) == 5 and isinstance(examples, Generated)
    assert examples[3] == examples[3] == examples[-2] == examples[1:4][2] == list(examples)[3]
    with pytest.raises(IndexError):
        examples[5]
    # The sequence of a seed goes on, whatever the count.
    assert kind(GroundingData(seed=4, count=9, preset="nano")).training()[:5] == examples[:]
    assert kind(GroundingData(seed=5, count=5, preset="nano")).training()[:] != examples[:]
    draw = lambda seed: task.fresh(random.Random(seed), 3)[:]
    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize("kind", KINDS.values())
def test_evaluation_is_half_in_domain_and_half_not(kind):
    found = kind(NANO, eval=EvalConfig(count=5)).evaluation()
    assert found.labels == ("in-domain",) * 3 + ("OOD",) * 3 and found.in_domain == {"in-domain"}
    assert [e.style.theme.held_out for e in found.examples] == [False] * 3 + [True] * 3


def test_only_the_kinds_that_are_named_are_asked():
    data = GroundingData(count=12, preset="nano", kinds=("which_lowest",))
    assert {e.table.kind for e in Tables(data).training()} == {"which_lowest"}


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, height % 256, 9)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def boxes(tmp_path):
    """Six pictures with a box each, as a file of stored records."""
    from vrrl_jax.data.records import Id, Record
    from vrrl_jax.data.stored import to_row

    path = tmp_path / "boxes.jsonl"
    lines = []
    for i, size in enumerate([(60, 40), (90, 40), (40, 90), (30, 30), (60, 60), (20, 80)]):
        record = Record(
            id=Id("pictures", i),
            question="<image>" + "the long one, " * i + "please",
            pictures=(png(*size),),
            answer="[0, 0, 10, 10]",
            kind="box",
            boxes=((0.0, 0.0, 10.0, 10.0),),
        )
        row = to_row(record)
        row["pictures"] = [{"path": f"{i}.png"}]
        (tmp_path / f"{i}.png").write_bytes(png(*size))
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def test_boxes_are_read_from_files(boxes):
    data = BoxesData(path=str(boxes), mapper="records", limit=5)
    task = Boxes(data, eval=BoxesEval(path=str(boxes), count=2))
    records = task.training()
    assert len(records) == 5 and scene(records[1]).size == (90, 40)
    found = task.evaluation()
    assert len(found.examples) == 2 and found.labels == ("all",) * 2 and found.source == str(boxes)
    assert all(len(record.boxes) == 1 for record in task.fresh(random.Random(0), 4))
    with pytest.raises(ValueError, match=r"data\.path is empty"):
        Boxes(BoxesData()).training()
    with pytest.raises(ValueError, match=r"eval\.path is missing"):
        Boxes(data).evaluation()


# --- options -------------------------------------------------------------------------------------


def test_the_scorer_passes_on_every_option():
    example = Tables(NANO).training()[0]
    about = scene(example)
    texts = ("<ANSWER>1 1</ANSWER>", "<THINK>far</THINK><ANSWER>60 60</ANSWER>")
    x, y = centre(about.targets[0])
    texts += (f"<FINAL>{x:.0f} {y:.0f}</FINAL>",)
    wrong = Group(0, example, "roll_in", (np.zeros(1, np.int32),))
    plain = Tables(NANO).score(texts, example, wrong)
    assert plain == rewards.score(texts, about, prefix_turns=1)
    reward = GroundingReward(style="distance", placement="turn", reach=0.8, radius=9.0)
    env = GroundingEnv(coordinates="thousand")
    options = {"resized": lambda size: (size[0] // 2, size[1] // 2)}
    found = Tables(NANO, env, reward, decision_bonus=0.5, **options).score(texts, example, wrong)
    assert found == rewards.score(
        texts,
        about,
        coordinates="thousand",
        resized=(about.size[0] // 2, about.size[1] // 2),
        style="distance",
        placement="turn",
        reach=0.8,
        radius=9.0,
        prefix_turns=1,
        decision_bonus=0.5,
    )
    assert sum(found["turn_rewards"]) == pytest.approx(found["total"])
    assert set(Tables.metrics) <= set(found)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("form", ["point", "box"])
@pytest.mark.parametrize("coordinates", ["pixel", "thousand"])
def test_what_is_demonstrated_succeeds(kind, form, coordinates):
    """In whatever system and form: demonstrations, environment and reward read alike."""
    data = GroundingData(count=6, preset="nano", written="json")
    env = GroundingEnv(form=form, coordinates=coordinates, max_turns=4)
    task = kind(data, env, demonstrations=DemonstrationConfig(wrong_first=0.8, max_turns=4))
    rng = random.Random(0)
    for example in task.training():
        texts = [reply.text for reply in task.demonstrate(example, rng, False)]
        assert task.score(tuple(texts), example, Group(0, example))["success"] == 1, texts
        shown = [task.environment.step(example, text, i) for i, text in enumerate(texts)]
        assert [outcome.done for outcome in shown] == [False] * (len(texts) - 1) + [True]
        assert len(task.demonstrate(example, rng, True)) == 1


def test_environment_texts_default_to_its_own():
    example = Tables(NANO).training()[0]
    long = Tables(NANO).environment.reset(example).text
    assert scene(example).question in long and "<ANSWER>" in long
    own = Tables(NANO, GroundingEnv(question="{question}", verify="Verify", max_turns=2))
    assert own.environment.reset(example).text == scene(example).question
    assert own.environment.step(example, "<ANSWER>1 1</ANSWER>", 0).prompt.text == "Verify"


# --- plans ---------------------------------------------------------------------------------------


def planned(tiny, processor, task, examples, feedback_turns=2):
    settings = episodes.Settings(2, feedback_turns, 8)
    probes = task.probes(examples)
    return probes, episodes.plan_shapes(tiny[0], processor, task.environment, probes, settings)


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_plan_holds_every_example(tiny, tiny_processor, kind):
    """Pictures of all sizes under questions of all lengths, not a sample's alone."""
    from vrrl_jax.processing import images

    task = kind(
        GroundingData(count=150),
        GroundingEnv(max_turns=2, question="{question}", verify="Verify", feedback="crop"),
        resized=lambda size: images.resized(size, tiny_processor.images),
    )
    examples = task.training()
    probes, shapes = planned(tiny, tiny_processor, task, examples)
    assert len(probes) < len(examples)
    sizes = set()
    for example in examples:
        prompt = task.environment.reset(example)
        first = encode.first_chunk(tiny_processor, prompt)
        sizes.add(first.tokens.size)
        assert first.tokens.size <= shapes.prompt
        assert np.prod(first.pictures[0].grid) <= shapes.patches
    assert len(sizes) > 10


def test_a_plan_for_boxes_takes_the_outermost_sizes_and_longest_questions(boxes):
    task = Boxes(BoxesData(path=str(boxes), mapper="records"))
    probes = task.probes(task.training())
    assert {probe.size for probe, _ in probes} == {(90, 40), (40, 90), (60, 60)}
    assert len(probes) == 3 * 6
    assert all(isinstance(probe, Scene) for probe, _ in probes)


def test_many_examples_are_sampled_evenly():
    assert list(sampled(range(5))) == [0, 1, 2, 3, 4]
    assert len(sampled(range(SAMPLED))) == SAMPLED
    for count in (SAMPLED + 1, 10 * SAMPLED - 3):
        places = sampled(range(count))
        assert SAMPLED // 2 <= len(places) <= SAMPLED
        assert places[0] == 0 and count - places.step <= places[-1] < count


@pytest.mark.parametrize("style", ["released", "distance", "summary"])
@pytest.mark.parametrize("placement", ["end", "turn"])
def test_a_lone_place_is_the_answer_of_a_single_turn(style, placement):
    task = Tables(
        NANO,
        GroundingEnv(max_turns=1),
        GroundingReward(style=style, placement=placement, require_format=True),
    )
    example = task.training()[0]
    x, y = centre(scene(example).targets[0])
    (shown,) = task.demonstrate(example, random.Random(0), False)
    for text in (f"<ANSWER>{x} {y}</ANSWER>", shown.text):
        found = task.score((text,), example, Group(0, example))
        assert found["success"] == 1 and found["total"] >= 1.0
        assert found.get("turn_rewards", (found["total"],)) == pytest.approx((found["total"],))
    assert task.score(("nowhere",), example, Group(0, example))["total"] == 0
    # Over several turns it isn't well-formed, and pays nothing where form is asked for.
    multi = Tables(NANO, GroundingEnv(max_turns=2), task.reward)
    assert multi.score((text,), example, Group(0, example))["total"] == 0
