"""The figures of the ablation tables: pairs, intervals, documents, and what is scored."""

import dataclasses
import math
import statistics
import types

import ablation
import ablation_render
import ablation_results as results_of
import ablation_runs as runs_of
import ablation_score as scoring
import pytest
import yaml
from ablating import (
    EXAMPLES,
    GRPO,
    VRRL,
    finish,
    freeze_by_hand,
    known,
    mark,
)
from ablation_tables import ALL, NAVIGATION, QUESTIONS


@pytest.fixture
def places(tmp_path) -> ablation.Places:
    return ablation.Places(tmp_path / "runs", tmp_path / "docs", tmp_path / "configs")


def test_cells_without_runs_say_so(places):
    text = ablation_render.render(
        NAVIGATION, known(places), places.docs, places.configs
    ).read_text()
    line = next(line for line in text.splitlines() if line.startswith("| GRPO |"))
    assert line == "| GRPO | - | - | - | not run | not run | not run |"
    assert "| VRRL − GRPO | - |" + " not run |" * 6 in text


def test_differences_are_paired_by_seed_and_by_example(places):
    freeze_by_hand(places, GRPO, VRRL)
    # Of four maps a size: solved by GRPO and by VRRL, seed by seed.
    solved = {10: (1, 3), 11: (2, 3), 12: (1, 2)}
    for seed, counts in solved.items():
        for row, count in zip((GRPO, VRRL), counts, strict=True):
            cell = runs_of.Cell(NAVIGATION, row, "final", seed, "1e-4")
            finish(cell, places)
            mark(cell, places, count)
    found = known(places)
    apart = [(b - a) / EXAMPLES for a, b in solved.values()]
    pair = found["pairs"]["vrrl|grpo|test"]
    assert pair["seeds"] == [10, 11, 12]
    assert pair["OOD 6x6"]["greedy"]["success"]["by_seed"] == apart
    # By example, over seeds: the first map is solved by both always, and so on.
    examples = [0, 2 / 3, 2 / 3, 0]
    error = statistics.stdev(examples) / math.sqrt(EXAMPLES)
    got = pair["OOD 6x6"]["greedy"]["success"]["example_error"]
    assert got == pytest.approx(error, abs=1e-5)
    # t of two degrees of freedom: 4.303.
    half = 100 * 4.303 * statistics.stdev(apart) / math.sqrt(3)
    text = ablation_render.differences(NAVIGATION, found, places.configs)
    line = next(line for line in text.splitlines() if line.startswith("| VRRL − GRPO | 3 |"))
    assert f"+33.3 ± {half:.1f} [±{196 * error:.1f}]" in line
    # In-domain there are three sizes: as many more examples, and a smaller error.
    inside = pair["in-domain"]["greedy"]["success"]["example_error"]
    assert inside == pytest.approx(statistics.stdev(examples * 3) / math.sqrt(12), abs=1e-5)


def test_the_table_shows_means_and_gains_over_the_base(places):
    freeze_by_hand(places, GRPO)
    mark(results_of.base_cell(NAVIGATION), places, 1)
    for seed, right in ((10, 2), (11, 3)):
        cell = runs_of.Cell(NAVIGATION, GRPO, "final", seed, "1e-4")
        finish(cell, places)
        mark(cell, places, right)
    found = known(places)
    text = ablation_render.markdown(NAVIGATION, found, places.configs)
    # 50 and 75: the deviation is 17.68, t of one degree of freedom 12.71.
    assert "| GRPO | 2 | 1e-4 | 3.5 | 62.5 ± 158.9 (+37.5) |" in text
    assert "| Multi-SFT (the base) | 1 | - | - | 25.0 | 25.0 | 25.0 |" in text
    assert "Each of the 2 runs of reinforcement learning so far generated 7,680 episodes" in text
    # The same from the committed figures alone.
    elsewhere = places.runs.with_name("nothing")
    again = results_of.refresh(NAVIGATION, elsewhere, places.docs, places.configs)
    assert ablation_render.markdown(NAVIGATION, again, places.configs) == text


def test_unequal_episodes_are_an_error(places, capsys):
    freeze_by_hand(places, GRPO)
    for seed, episodes in ((10, 7680), (11, 7552)):
        cell = runs_of.Cell(NAVIGATION, GRPO, "final", seed, "1e-4")
        finish(cell, places, episodes=episodes)
        mark(cell, places, 1)
    every = {name: known(places, table) for name, table in ALL.items()}
    assert ablation.report({}, every, places) == 1
    assert "unequally many episodes" in capsys.readouterr().out
    text = ablation_render.markdown(NAVIGATION, every["navigation"], places.configs)
    assert "**Runs generated unequally many episodes: [7552, 7680].**" in text


def test_curves_of_training_are_means_over_seeds(places):
    row = QUESTIONS.row("grpo")
    fit = runs_of.choice_fingerprint(QUESTIONS, row)
    places.configs.mkdir()
    (places.configs / "questions.yaml").write_text(
        yaml.safe_dump({"rows": {"grpo": {"learning_rate": "1e-4", "fingerprint": fit}}})
    )
    for seed in (10, 11):
        finish(runs_of.Cell(QUESTIONS, row, "final", seed, "1e-4"), places)
    found = ablation_render.curves(QUESTIONS, known(places, QUESTIONS), places.configs)
    assert found == {"effective_queries": {"GRPO": [(2, 0.75)]}}


# --- scoring -------------------------------------------------------------------------------------


def test_validation_and_test_share_no_maps_with_each_other_or_with_training():
    from vrrl_jax import tasks

    config = scoring.scoring_config(NAVIGATION, GRPO)
    assert config.rollout.max_new_tokens == 32
    data = dataclasses.replace(config.data, count=300)
    config = dataclasses.replace(config, data=data)
    shown = {map.key for map in tasks.make(config, None).training()}
    keys = {}
    for part in ("validation", "test"):
        drawn = scoring.draw(config, None, ("3x3", "4x4"), 61, part)
        assert {label: len(maps) for label, maps in drawn.items()} == {"3x3": 31, "4x4": 31}
        assert all(f"{m.size}x{m.size}" == label for label, maps in drawn.items() for m in maps)
        keys[part] = {map.key for maps in drawn.values() for map in maps}
        assert len(keys[part]) == 62 and not keys[part] & shown
    assert not keys["validation"] & keys["test"]


@pytest.mark.parametrize("name", ["tables", "questions"])
def test_other_validation_and_test_examples_share_no_contents(name):
    table = ALL[name]
    config = scoring.scoring_config(table, table.row("grpo"))
    processor = types.SimpleNamespace(images=None)
    keys = {}
    for part in ("validation", "test"):
        drawn = scoring.draw(config, processor, ("OOD",), 30, part)
        assert list(drawn) == ["OOD"] and len(drawn["OOD"]) == 30
        keys[part] = {scoring.content(example) for example in drawn["OOD"]}
    assert not keys["validation"] & keys["test"]


def test_rows_are_tested_on_the_table_not_on_what_they_train_on():
    full, part = (QUESTIONS.row(name) for name in ("ssr", "ssr-no-text-science"))
    assert scoring.exam(QUESTIONS, full, "test") == scoring.exam(QUESTIONS, part, "test")
    assert scoring.exam(QUESTIONS, full, "test") != scoring.exam(QUESTIONS, full, "validation")
