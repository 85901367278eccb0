"""The driver of the ablation tables, on runs that nobody trained."""

import argparse
import dataclasses
import os
import pathlib
import sys
import threading

import ablation
import ablation_render
import ablation_results as results_of
import ablation_runs as runs_of
import ablation_score as scoring
import pytest
import yaml
from ablating import (
    GRPO,
    VRRL,
    finish,
    jobs,
    known,
    mark,
    search_all,
)
from ablation_tables import ALL, NAVIGATION, RATES, in_order


@pytest.fixture
def places(tmp_path) -> ablation.Places:
    return ablation.Places(tmp_path / "runs", tmp_path / "docs", tmp_path / "configs")


# --- recipes -------------------------------------------------------------------------------------


def test_the_baseline_of_navigation_is_the_agreed_recipe():
    cell = runs_of.Cell(NAVIGATION, GRPO, "search", 2, "5e-5")
    config = runs_of.config_of(cell)
    assert (config.steps, config.rollout.questions, config.rollout.samples) == (30, 16, 8)
    assert (config.seed, config.optimizer.learning_rate) == (2, 5e-5)
    assert cell.name == "grpo/search-lr5e-5-seed2"
    full = runs_of.config_of(runs_of.Cell(NAVIGATION, VRRL, "final", 10, "1e-4"))
    assert (full.steps, full.modes.rtm, full.modes.roll_in) == (60, 0.6, 0.4)
    assert full.filter.max_tries == 1 and not full.eval.enabled


@pytest.mark.parametrize("table", ALL.values(), ids=list(ALL))
def test_every_row_is_resolved_as_its_command_would_be(table):
    for row in table.rows:
        cell = results_of.row_cells(table, row, pathlib.Path("nowhere"))[0]
        cell = dataclasses.replace(cell, rate=row.rates[0] if row.rates else None)
        config = runs_of.config_of(cell)
        assert config == runs_of.resolve(table.recipe(row), tuple(cell.overrides())) or (
            isinstance(config, str) and "unknown key" in config
        )


def test_a_recipe_that_does_not_validate_is_told_and_skipped(places, monkeypatch):
    broken = dataclasses.replace(GRPO, overrides=("no_such_section.x=1",))
    table = dataclasses.replace(NAVIGATION, rows=(NAVIGATION.rows[0], broken))
    now, why = runs_of.state(runs_of.Cell(table, broken, "search", 0, "1e-4"), places.runs)
    assert now == "invalid" and "no_such_section" in why
    monkeypatch.setattr(ablation, "in_order", lambda: [(table, table.rows)])
    found = list(ablation.ready(ablation.Wanted(), {"navigation": known(places, table)}, places))
    assert [job.name for job in found] == ["score test navigation/base"]
    text = ablation_render.markdown(table, known(places, table), places.configs)
    assert "no_such_section" in text.split("## Not possible now")[1]


# --- planning ------------------------------------------------------------------------------------


def test_every_row_has_one_place_in_the_order():
    rows = [(table.name, row.name) for table, rows in in_order() for row in rows]
    assert len(rows) == len(set(rows)) == sum(len(table.rows) for table in ALL.values())


def test_what_matters_most_comes_first(places):
    found = jobs(places)
    assert found[:4] == [
        "score test navigation/base",
        "train navigation/grpo/search-lr1e-4-seed0",
        "train navigation/vrrl/search-lr1e-4-seed0",
        "train navigation/grpo/search-lr1e-4-seed1",
    ]
    first = [found.index(f"train {n}/search-lr1e-4-seed0") for n in
             ("navigation/vrrl", "questions/grpo", "navigation/ppo", "navigation/grpo-rtm",
              "tables/grpo")]  # fmt: skip
    assert first == sorted(first)
    # Fresh seeds wait for a frozen learning rate.
    assert not any("/seed" in name for name in found)


def test_finished_runs_are_kept_and_cut_ones_go_on(places):
    done, unscored, cut, other, busy = results_of.searches(NAVIGATION, GRPO)[:5]
    finish(done, places)
    mark(done, places, 2)
    finish(unscored, places)
    finish(cut, places)
    (cut.directory(places.runs) / "minutes.txt").unlink()
    old = cut.directory(places.runs) / "metrics.jsonl"
    finish(other, places, overrides={"steps": 31})
    finish(busy, places)
    (busy.directory(places.runs) / "minutes.txt").unlink()
    assert runs_of.state(busy, places.runs)[0] == "running"  # it has just been written
    now = old.stat().st_mtime + 1000
    assert not runs_of.in_use(cut.directory(places.runs), now)
    pid = cut.directory(places.runs).with_name("search-lr1e-4-seed2.pid")
    pid.write_text("0")  # of a driver that is no more
    assert runs_of.state(cut, places.runs)[0] == "cut"
    found = jobs(places, tables=["navigation"], rows=["grpo"], stage="search")
    assert found[:2] == [
        f"score validation navigation/{unscored.name}",
        f"train navigation/{cut.name}",
    ]
    assert not any(cell.name in name for name in found for cell in (done, other, busy))
    now, why = runs_of.state(other, places.runs)
    assert now == "differs" and why == "steps: 31 there, 30 now"
    assert other.name not in known(places)["runs"]
    assert "--resume" in runs_of.training_command(cut, places.runs, resume=True)


def test_what_another_machine_ran_is_not_run_again(places):
    cell = results_of.searches(NAVIGATION, GRPO)[0]
    finish(cell, places)
    mark(cell, places, 2)
    known(places)
    elsewhere = dataclasses.replace(places, runs=places.runs.with_name("nothing"))
    found = jobs(elsewhere, tables=["navigation"], rows=["grpo"], stage="search")
    assert len(found) == 8 and f"train navigation/{cell.name}" not in found


def test_housekeeping_and_new_defaults_leave_a_run_valid(places):
    cell = results_of.searches(NAVIGATION, GRPO)[0]
    finish(cell, places)
    path = cell.directory(places.runs) / "config.yaml"
    told = yaml.safe_load(path.read_text())
    told["checkpoint"]["every"] = 7
    del told["guard"], told["algorithm"]["whiten"]  # as written before they were there
    path.write_text(yaml.safe_dump(told))
    assert runs_of.differences(path.parent, runs_of.config_of(cell)) == ""
    told["algorithm"]["kl_coefficient"] = 0.5
    path.write_text(yaml.safe_dump(told))
    assert "algorithm.kl_coefficient" in runs_of.state(cell, places.runs)[1]


def test_scores_of_another_test_do_not_count(places):
    cell = results_of.searches(NAVIGATION, GRPO)[0]
    finish(cell, places)
    mark(cell, places, 2)
    file = results_of.scores_file(cell, places.runs, "validation")
    arrays, meta = scoring.read(file)
    scoring.write(file, arrays, meta | {"test": "another"})
    assert results_of.scores_of(known(places), cell, "validation") is None


def test_a_training_that_was_cut_adds_up_its_minutes(places, monkeypatch):
    cell = results_of.searches(NAVIGATION, GRPO)[0]
    directory, commands, codes = cell.directory(places.runs), [], [1, 0]

    def call(command, log, jobs, nice, stop=None):
        commands.append(command)
        (directory / "hf").mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text("")
        return codes.pop(0)

    monkeypatch.setattr(runs_of, "call", call)
    assert "exit code 1" in runs_of.train(cell, places.runs, 1, 0)
    assert not runs_of.trained(directory)
    (directory / "minutes_so_far.txt").write_text("2.50")
    assert runs_of.train(cell, places.runs, 1, 0) == ""
    assert runs_of.trained(directory)
    assert (directory / "minutes.txt").read_text() == "2.50"
    assert [command[-1] == "--resume" for command in commands] == [False, True]
    assert commands[0][2:5] == ["vrrl_jax.cli", "train", "configs/ablation/navigation_base.yaml"]
    assert {"steps=30", "optimizer.learning_rate=1e-4", "eval.enabled=false"} <= set(commands[0])


def test_what_is_trained_is_scored_by_a_command_of_its_own(places, monkeypatch):
    cell, commands = results_of.searches(NAVIGATION, GRPO)[0], []
    monkeypatch.setattr(ablation, "call", lambda command, *_: commands.append(command) or 0)
    options = argparse.Namespace(jobs=2, nice=5)
    wanted = ablation.Wanted(published="/maps")
    for job in (
        ablation.Job(cell, "validation"),
        ablation.Job(results_of.base_cell(NAVIGATION), "published"),
    ):
        assert ablation.do(job, places, wanted, options, threading.Event()) == ""
    search, base = (scoring.parser().parse_args(command[2:]) for command in commands)
    assert (search.table, search.row, search.part) == ("navigation", "grpo", "validation")
    assert search.checkpoint == str(cell.directory(places.runs) / "hf")
    assert search.output == results_of.scores_file(cell, places.runs, "validation")
    assert (base.checkpoint, base.published) == ("nano-early", "/maps")


def test_a_process_is_on_record_while_it_runs_and_ends_when_told(tmp_path):
    log = tmp_path / "seed10.log"
    say = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert runs_of.call(say, log, 2, 5) == 0
    assert log.read_text() == "1\n" and not log.with_suffix(".pid").exists()
    stop = threading.Event()
    stop.set()
    wait = [sys.executable, "-c", "import time; time.sleep(60)  # seed10"]
    assert runs_of.call(wait, log, 1, 0, stop) != 0
    # A number of a process that has nothing to do with the run.
    log.with_suffix(".pid").write_text(str(os.getpid()))
    assert not runs_of.in_use(tmp_path / "seed10")


# --- choices -------------------------------------------------------------------------------------


def test_the_best_learning_rate_is_frozen_once(places):
    search_all(GRPO, places)
    last = results_of.searches(NAVIGATION, GRPO)[-1]
    file = results_of.scores_file(last, places.runs, "validation")
    kept = file.read_bytes()
    file.unlink()
    assert results_of.freeze(known(places), NAVIGATION, GRPO, places.configs) is None
    file.write_bytes(kept)
    assert results_of.freeze(known(places), NAVIGATION, GRPO, places.configs) == "2e-4"
    entry = results_of.frozen(NAVIGATION, places.configs)["grpo"]
    assert entry["learning_rate"] == "2e-4" and set(entry["validation"]) == set(RATES)
    assert entry["validation"]["2e-4"] == {"mean": 0.75, "by_seed": [0.75] * 3}
    # Better figures later change nothing.
    mark(last, places, 4)
    assert results_of.freeze(known(places), NAVIGATION, GRPO, places.configs) is None
    assert runs_of.chosen_rate(NAVIGATION, GRPO, places.configs) == "2e-4"
    found = jobs(places, tables=["navigation"], rows=["grpo"], stage="final")
    assert found[1:] == [f"train navigation/grpo/seed{n}" for n in (10, 11, 12, 13, 14)]


def test_a_choice_for_another_recipe_is_told(places):
    search_all(GRPO, places)
    results_of.freeze(known(places), NAVIGATION, GRPO, places.configs)
    changed = dataclasses.replace(GRPO, overrides=("algorithm.clip_high=0.25",))
    assert runs_of.chosen_rate(NAVIGATION, changed, places.configs) is None
    assert "another recipe" in runs_of.outdated(NAVIGATION, changed, places.configs)


# --- the whole of it -----------------------------------------------------------------------------


def test_the_driver_searches_freezes_and_runs_fresh_seeds(places, monkeypatch, capsys):
    ran = []

    def do(job, places, wanted, options, stop):
        ran.append(job.name)
        if job.name == "train navigation/grpo/seed12":
            return "exit code 1"
        if not job.part:
            finish(job.cell, places)
        else:
            mark(job.cell, places, 3 if job.cell.rate == "5e-5" else 2, job.part)
        return ""

    monkeypatch.setattr(ablation, "do", do)
    monkeypatch.setattr(ablation, "ALL", {"navigation": NAVIGATION})
    wanted = ablation.Wanted(["navigation"], ["grpo"])
    options = argparse.Namespace(jobs=1, budget=None, nice=0)
    results, failed = ablation.drive(wanted, places, options)
    assert runs_of.chosen_rate(NAVIGATION, GRPO, places.configs) == "5e-5"
    # The base; nine searches and four of five fresh seeds, trained and scored; one that failed.
    assert len(ran) == 1 + 2 * 9 + 2 * 4 + 1
    assert ran[1:3] == [f"{what} navigation/grpo/search-lr1e-4-seed0" for what in
                        ("train", "score validation")]  # fmt: skip
    assert failed == {"train navigation/grpo/seed12": "exit code 1"}
    assert "| GRPO | 4 | 5e-5 |" in (places.docs / "ablation_navigation.md").read_text()
    # Nothing that is there is done again, and nothing is begun that takes too long.
    ran.clear()
    options.budget = 0.1
    ablation.drive(wanted, places, options)
    assert ran == []
    capsys.readouterr()
    ablation.show(wanted, results, places)
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "done" in told["navigation/grpo/seed10"]
    assert "not run" in told["navigation/grpo/seed12"]
