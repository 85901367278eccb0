"""Tables, intervals and comparisons, and the play that they are made of."""

import json
import math

import numpy as np
import pytest

from vrrl_jax import evaluate, testing
from vrrl_jax.config import (
    NavigationEval,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from vrrl_jax.data import frozenlake
from vrrl_jax.evaluate import Scores
from vrrl_jax.question_sections import QuestionsData, QuestionsEval, QuestionsReward
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.continuous import Continuous
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.tasks import Examples
from vrrl_jax.tasks.navigation import METRICS
from vrrl_jax.tasks.questions import Questions

TASK = testing.tiny_task(3)


@pytest.fixture(scope="module")
def maps():
    """Five maps of side 3, three of side 4, two of side 5."""
    return [
        map
        for level, n in ((3, 5), (4, 3), (5, 2))
        for map in frozenlake.generate(level, n, levels=(level,))
    ]


def scores(maps, seed, samples=3, temperatures=(0.0, 1.0)) -> Scores:
    """What the reward says about random episodes: figures that hang together as real ones do."""
    rng = np.random.default_rng(seed)

    def reply(map, tag, wrong):
        path, cell = [], map.start
        while cell != map.target:
            path.append(map.optimal_actions(cell)[0])
            cell, _ = map.move(cell, path[-1])
        path = path + ["up"] * wrong
        return f"<{tag}>{' '.join(path)}</{tag}>"

    def episode(map):
        wrong = rng.integers(0, 2, 2)
        kind = rng.integers(0, 4)
        if kind == 0:
            return ["nothing to read"]
        if kind == 1:  # never commits
            return [reply(map, "ANSWER", wrong[0])]
        if kind == 2:
            return [reply(map, "ANSWER", wrong[0]), reply(map, "FINAL", wrong[0])]
        revised = "<THINK>no</THINK>" + reply(map, "ANSWER", wrong[1])
        return [reply(map, "ANSWER", wrong[0]), revised, reply(map, "FINAL", wrong[1])]

    figures = {}
    for temperature in temperatures:
        played = [
            [rewards.score(episode(map), map) for _ in range(samples if temperature else 1)]
            for map in maps
        ]
        figures[temperature] = {
            metric: np.array([[e[metric] for e in row] for row in played]) for metric in METRICS
        }
    labels = tuple(f"{map.size}x{map.size}" for map in maps)
    return Scores(Examples(maps, labels, frozenset({"3x3", "4x4"})), "maps", figures)


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (250, 500)])
def test_one_value_a_map_gives_wilson_s_interval(right, n):
    """Half the distance between the roots of (p - x)^2 = z^2 x (1 - x) / n."""
    values = (np.arange(n) < right).astype(float)[:, None]
    z, p = 1.96, right / n
    low, high = sorted(np.roots([1 + z * z / n, -2 * p - z * z / n, p * p]).real)
    assert evaluate.half_interval(values) == pytest.approx((high - low) / 2, rel=1e-6)


def test_several_samples_of_a_map_count_as_one_unit():
    rng = np.random.default_rng(0)
    per_map = rng.random(40)
    values = (rng.random((40, 8)) < per_map[:, None]).astype(float)
    means = [sum(row) / 8 for row in values.tolist()]
    center = sum(means) / 40
    deviation = math.sqrt(sum((m - center) ** 2 for m in means) / 39)
    assert evaluate.half_interval(values) == pytest.approx(1.96 * deviation / math.sqrt(40))
    # Repeating a map's samples tells nothing new.
    repeated = np.repeat(values, 5, 1)
    assert evaluate.half_interval(repeated) == pytest.approx(evaluate.half_interval(values))


def test_a_single_map_has_no_interval():
    assert math.isnan(evaluate.half_interval(np.ones((1, 4))))


# --- tables --------------------------------------------------------------------------------------


def test_a_table_holds_the_means_of_every_split(maps):
    found = scores(maps, 0)
    tables = evaluate.tables(found)
    assert [t["name"] for t in tables] == ["greedy", "T=1"]
    members = {
        "3x3": range(5),
        "4x4": range(5, 8),
        "5x5": range(8, 10),
        "in-domain": range(8),
        "OOD": range(8, 10),
        "all": range(10),
    }
    for table, figures in zip(tables, found.figures.values(), strict=True):
        assert [row["split"] for row in table["rows"]] == list(members)
        for row in table["rows"]:
            which = list(members[row["split"]])
            assert row["maps"] == len(which)
            for metric in METRICS:
                wanted = np.mean([figures[metric][i].mean() for i in which])
                assert row[metric] == pytest.approx(wanted, abs=1e-4)
            half = evaluate.half_interval(figures["final_em"][which])
            assert row["+-95%"] == pytest.approx(half, abs=1e-4)


def test_the_gain_is_turn_one_plus_revision_plus_format(maps):
    before, after = scores(maps, 1), scores(maps, 2)
    table = evaluate.comparison(before, after)
    assert len(table["rows"]) == 12
    parts = {"of turn 1": 0.0, "of revision": 0.0, "of format": 0.0}
    for row in table["rows"]:
        assert row["gain"] == pytest.approx(row["after"] - row["before"], abs=0.11)
        assert row["gain"] == pytest.approx(sum(row[part] for part in parts), abs=0.21)
        change = row["turn-1 after"] - row["turn-1 before"]
        assert row["of turn 1"] == pytest.approx(change, abs=0.11)
        parts = {part: max(value, abs(row[part])) for part, value in parts.items()}
    assert min(parts.values()) > 1  # every part did something
    # The interval is that of the paired difference.
    change = after.figures[1.0]["success"].mean(1) - before.figures[1.0]["success"].mean(1)
    row = next(r for r in table["rows"] if (r["split"], r["sampling"]) == ("all", "T=1"))
    half = 100 * 1.96 * np.std(change, ddof=1) / math.sqrt(10)
    assert row["+-95%"] == pytest.approx(half, abs=0.06)
    same = evaluate.comparison(before, before)["rows"]
    assert all(row["gain"] == row["+-95%"] == 0 for row in same)


QUESTIONS = Questions(
    QuestionsData(preset="nano"),
    reward=QuestionsReward(style="r1"),
    eval=QuestionsEval(count=16),
)


def answered(seed) -> Scores:
    """What the reward of single questions says about right, wrong and formless replies."""
    rng = np.random.default_rng(seed)
    examples = QUESTIONS.evaluation()
    figures = {0.0: [], 1.0: []}
    for example in examples.examples:
        right = f"<think>so</think> <answer>{example.answer}</answer>"
        replies = [right, "<think>so</think> <answer>none</answer>", example.answer]
        for temperature, samples in ((0.0, 1), (1.0, 3)):
            said = [replies[rng.integers(3)] for _ in range(samples)]
            figures[temperature].append(
                [QUESTIONS.score((text,), example, Group(0, example)) for text in said]
            )
    figures = {
        temperature: {
            metric: np.array([[e[metric] for e in row] for row in rows])
            for metric in QUESTIONS.metrics
        }
        for temperature, rows in figures.items()
    }
    return Scores(examples, "questions", figures)


def test_a_task_without_turns_has_tables_of_its_own_figures(capsys):
    before, after = answered(0), answered(1)
    greedy, sampled = evaluate.tables(after)
    for table, figures in ((greedy, after.figures[0.0]), (sampled, after.figures[1.0])):
        assert [row["split"] for row in table["rows"]] == ["OOD", "in-domain", "all"]
        row = table["rows"][-1]
        assert row["questions"] == len(after.examples.examples)
        assert row["success"] == pytest.approx(figures["success"].mean(), abs=1e-4)
        # The interval is that of success: there is no other final answer.
        half = evaluate.half_interval(figures["success"])
        assert row["+-95%"] == pytest.approx(half, abs=1e-4)
        assert "turn1_em" not in row and {"format", "read", "waits"} <= set(row)
    for row in evaluate.comparison(before, after)["rows"]:
        assert not {"turn-1 before", "of turn 1", "of revision"} & set(row)
        assert row["gain"] == pytest.approx(row["after"] - row["before"], abs=0.11)
    same = evaluate.comparison(after, after)["rows"]
    assert all(row["gain"] == row["+-95%"] == row["of format"] == 0 for row in same)
    evaluate.show(evaluate.brief(after, "a policy"))
    shown = capsys.readouterr().out
    assert "success" in shown and "format" in shown and "turn1" not in shown


def test_saved_tables_are_json_without_nan(maps, tmp_path):
    found = scores(maps[:1], 0)
    path = tmp_path / "new" / "tables.json"
    evaluate.save(path, [evaluate.comparison(found, found), *evaluate.tables(found)])
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    tables = json.loads(path.read_text(), parse_constant=refuse)
    assert tables[1]["rows"][0]["+-95%"] is None
    assert tables[1]["rows"][0]["split"] == "3x3"


def test_a_table_is_shown_whole_without_a_terminal(maps, capsys):
    found = scores(maps, 0)
    evaluate.show(evaluate.brief(found, "a policy"))
    evaluate.show(evaluate.comparison(found, found))
    shown = capsys.readouterr().out
    assert "…" not in shown and "a policy" in shown
    for word in ("in-domain", "OOD", "clean commit", "of revision", "T=1"):
        assert word in shown


# --- play ----------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How large the batches of groups were that `play` rolled out."""
    sizes, rollout = [], episodes.rollout

    def spy(policy, view, processor, board, groups, *rest, **options):
        sizes.append(len(groups))
        return rollout(policy, view, processor, board, groups, *rest, **options)

    monkeypatch.setattr(episodes, "rollout", spy)
    return sizes


def test_maps_come_back_in_order_whatever_the_batch(tiny, tiny_processor, monkeypatch, counted):
    maps = testing.tiny_maps(5)
    settings = episodes.Settings(2, 3, 4, Sampling(1.0))
    done = []

    def play(batch):
        monkeypatch.setattr(evaluate, "BATCH", batch)
        return evaluate.play(
            *tiny,
            tiny_processor,
            TASK,
            maps,
            settings,
            TASK.score,
            progress=lambda *a: done.append(a),
        )

    small, whole = play(4), play(128)
    assert done == [(4, 5), (5, 5), (5, 5)]
    assert [(e.question, e.sample) for e in small] == [(q, s) for q in range(5) for s in range(2)]
    # The last batch was filled up with copies: they neither come back nor change the rest.
    for a, b in zip(small, whole, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
    assert counted == [4, 4, 5]
    few = evaluate.play(
        *tiny, tiny_processor, TASK, maps, settings, TASK.score, in_flight=Continuous(3, 2, 2)
    )
    for a, b in zip(few, whole, strict=True):
        assert (a.question, a.sample) == (b.question, b.sample)
        assert a.tokens.tolist() == b.tokens.tolist()
    with_seed = evaluate.play(*tiny, tiny_processor, TASK, maps, settings, TASK.score, seed=1)
    assert any(
        a.tokens.tolist() != b.tokens.tolist() for a, b in zip(whole, with_seed, strict=True)
    )


def test_measuring_plays_greedy_once_and_sampled_often(tiny, tiny_processor):
    examples = Examples(testing.tiny_maps(5), ("3x3",) * 5, frozenset({"3x3"}))
    config = NavigationEval(temperatures=(0.0, 1.0), samples=2)
    told = []
    found = evaluate.measure(
        *tiny,
        tiny_processor,
        TASK,
        examples,
        config,
        RolloutConfig(max_new_tokens=4),
        3,
        progress=lambda *a: told.append(a),
    )
    assert told == [("greedy", 5, 5), ("T=1", 5, 5)]
    for temperature, samples in ((0.0, 1), (1.0, 2)):
        assert set(found.figures[temperature]) == set(METRICS)
        for values in found.figures[temperature].values():
            assert values.shape == (5, samples)
    # A random policy says nothing that can be read.
    assert found.figures[1.0]["format_error"].all() and (found.figures[0.0]["turns"] == 1).all()
    view = engine.make_view(*tiny)
    assert len(view.layers) == 2  # measuring left the parameters usable


def test_a_recipe_of_either_kind_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("env: {cell: 28}\n")
    config = evaluate.load_recipe(path, ["eval.count=3"])
    assert isinstance(config, TrainConfig) and config.eval.count == 3
    path.write_text("env: {cell: 28}\ndemonstrations: {max_turns: 2}\n")
    assert isinstance(evaluate.load_recipe(path, []), SftConfig)
