"""Whole runs through `train.main`: every mechanism fires, and a resumed run is the same run."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from running import INCIDENTAL, NAVIGATION, assert_same, lines, saved_arrays, say, write_maps

import vrrl_jax as vr
from vrrl_jax import label, train
from vrrl_jax import log as logs
from vrrl_jax.config import ConfigError, TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.rollout import transcript

STEPS = 4
# What a step reports that a clock or the process's history decides.


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> pathlib.Path:
    return write_maps(tmp_path_factory.mktemp("maps") / "maps.json")


@pytest.fixture(scope="module")
def configure(tiny_checkpoint, maps, tmp_path_factory):
    """configure(run_dir, *overrides): the recipe above as a configuration."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        NAVIGATION.replace("CHECKPOINT", str(tiny_checkpoint)).replace("MAPS", str(maps))
    )

    def configure(run_dir, *overrides) -> TrainConfig:
        return load(path, [f"run_dir={run_dir}", *overrides], TrainConfig)

    return configure


@pytest.fixture(scope="module")
def speaking():
    """What a random policy samples is read as sensible replies; the tokens are its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcript, "decode_text", say)
        yield


@pytest.fixture(scope="module")
def run(configure, speaking, tmp_path_factory) -> pathlib.Path:
    """A run with turn masking, roll-in, filter and KL, never interrupted."""
    return train.main(configure(tmp_path_factory.mktemp("run") / "whole"))


# --- mechanisms ----------------------------------------------------------------------------------


def test_every_mechanism_counts_itself(run):
    metrics = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    total = lambda name: sum(line[name] for line in metrics)
    for name in (
        "count/rtm_masked_tokens",
        "count/rtm_groups",
        "count/roll_in_groups",
        "count/groups_filtered",
        "count/prefixes_offered",
    ):
        assert total(name) > 0, name
    assert total("count/updates") == STEPS and total("count/skipped_updates") == 0
    assert total("count/rollouts") > STEPS  # the filter asked for more
    # A buffer that holds nothing yet: the first step falls back to turn masking.
    assert metrics[0]["count/roll_in_groups"] <= 4 * (metrics[0]["count/rollouts"] - 1)
    assert metrics[-1]["episodes_generated"] == 16 * total("count/rollouts")


def test_what_the_figures_say_holds_together(run):
    metrics = read_metrics(run / "metrics.jsonl")
    for line in metrics:
        assert abs(line["ratio_deviation_first"]) < 1e-4
        assert line["learning_rate"] == pytest.approx(0.01)
        assert line["grad_norm"] > 0 and line["effective_batch"] > 0
        assert 0 <= line["success"] <= line["lenient_success"] <= 1
        assert 0 < line["update_occupancy"] <= 1
        gain = line["turn1_em"] + line["wrong_to_right"] - line["right_to_wrong"]
        assert line["success"] == pytest.approx(gain - line["lost_to_format"])
    # The reference is the starting policy.
    assert metrics[0]["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert all(line["kl_reference"] > 1e-6 for line in metrics[1:])
    assert metrics[-1]["compilations"] == 0


def test_a_run_leaves_all_its_files(run, configure, tiny):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "command.txt", "metrics.jsonl", "checkpoints", "episodes"} <= names
    assert {"hf", "report.html"} <= names
    assert load(run / "config.yaml", [], TrainConfig) == configure(run)
    assert "<html" in (run / "report.html").read_text()
    shown = json.loads((run / "episodes" / "step_000001.json").read_text())["episodes"]
    assert len(shown) == 2 and (run / "episodes" / "step_000003.json").is_file()
    for episode in shown:
        for turn in episode["turns"]:
            (picture,) = turn["pictures"]
            assert (run / "episodes" / picture).is_file()
            assert turn["text"] in (say(None, [0]), say(None, [1]), "<THINK>" + say(None, [0]))
    policy, params = vr.load_pretrained(run / "hf")
    assert policy.config == tiny[0].config
    step, arrays = saved_arrays(run)
    assert step == STEPS
    assert_same(arrays["state"]["params"], params)
    changed = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), params, tiny[1])
    assert all(jax.tree.leaves(changed))


def test_the_prefixes_are_replies_of_the_run(run, tiny_processor):
    _, arrays = saved_arrays(run)
    buffer = arrays["buffer"]
    valid = np.asarray(buffer["valid"])
    assert valid.any() and buffer["used"].any()
    end = tiny_processor.ids.im_end
    for i in np.flatnonzero(valid):
        assert 0 <= buffer["question"][i] < 6 and 1 <= buffer["turns"][i] <= 2
        # "right" solves the even maps.
        assert buffer["right"][i] == (buffer["question"][i] % 2 == 0)
        for turn in range(2):
            n = buffer["payload"]["counts"][i, turn]
            tokens = buffer["payload"]["tokens"][i, turn]
            assert (n > 0) == (turn < buffer["turns"][i])
            assert n == 0 or tokens[n - 1] == end or tokens[n - 1] in (322,)
            assert not tokens[n:].any()


# --- resume --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_after(patch, step):
    """The process dies right after `step` was logged: nothing later runs."""
    write = logs.Writer.step

    def die(self, number, metrics):
        write(self, number, metrics)
        if number == step:
            raise Killed

    patch.setattr(logs.Writer, "step", die)


def killed_and_resumed(main, config, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            main(config)
    assert read_metrics(pathlib.Path(config.run_dir) / "metrics.jsonl")[-1]["step"] == 3
    return main(config, resume=True)


def test_a_killed_and_resumed_run_is_the_same_run(run, configure, tmp_path, monkeypatch):
    """Killed between checkpoints: step 3 is done again, from the state after step 2."""
    resumed = killed_and_resumed(train.main, configure(tmp_path / "killed"), monkeypatch)
    assert_same(saved_arrays(resumed)[1], saved_arrays(run)[1])
    assert lines(resumed, INCIDENTAL) == lines(run, INCIDENTAL)
    assert len((resumed / "command.txt").read_text().splitlines()) == 2


def test_a_longer_run_goes_on_where_a_shorter_one_ended(run, configure, tmp_path):
    """Two steps, then two more, with a schedule that doesn't depend on the length."""
    train.main(configure(tmp_path / "short", "steps=2"))
    resumed = train.main(configure(tmp_path / "short"), resume=True)
    assert_same(saved_arrays(resumed)[1], saved_arrays(run)[1])
    assert lines(resumed, INCIDENTAL) == lines(run, INCIDENTAL)
    assert (resumed / "config.0.yaml").is_file()


def test_resuming_what_is_over_changes_nothing(run, configure):
    before = lines(run, INCIDENTAL), saved_arrays(run)
    assert train.main(configure(run), resume=True) == run
    assert lines(run, INCIDENTAL) == before[0]
    assert_same(saved_arrays(run)[1], before[1][1])


DRIVER = """
import sys
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
from vrrl_jax import train
from vrrl_jax.config import TrainConfig, load
from vrrl_jax.rollout import transcript
transcript.decode_text = lambda _, ids: SAY[sum(map(int, ids)) % 2]
config = load(sys.argv[1], ["run_dir=" + sys.argv[2], "checkpoint.every=1"], TrainConfig)
train.main(config, resume=sys.argv[3] == "resume")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_process_killed_again_and_again_ends_with_the_same_bits(run, configure, tmp_path, seed):
    """SIGKILL at random moments, checkpoints half written included."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.replace("SAY", repr((say(None, [0]), say(None, [1])))))
    recipe, killed, rng = run / "config.yaml", tmp_path / "killed", random.Random(seed)

    def start(how):
        cache = str(jax.config.jax_compilation_cache_dir)
        argv = [sys.executable, str(driver), str(recipe), str(killed), how, cache]
        root = str(pathlib.Path(train.__file__).parents[1])
        return subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": root})

    for wanted in (1, 2, 3):
        how = "resume" if (killed / "config.yaml").is_file() else "fresh"
        process = start(how)
        while process.poll() is None and len(read_metrics(killed / "metrics.jsonl")) < wanted:
            time.sleep(0.01)
        time.sleep(0.3 * rng.random())
        process.kill()
        process.wait()
    assert start("resume").wait() == 0
    whole, found = saved_arrays(run)[1], saved_arrays(killed)[1]
    assert_same(found, whole)
    assert lines(killed, INCIDENTAL) == lines(run, INCIDENTAL)


# --- variants ------------------------------------------------------------------------------------


def test_ppo_with_minibatches_epochs_and_evaluation(configure, speaking, tmp_path):
    config = configure(
        tmp_path / "ppo",
        "steps=2",
        "policy.value_head=true",
        "algorithm.name=ppo",
        "algorithm.epochs=2",
        "algorithm.minibatches=2",
        "algorithm.kl_coefficient=0",
        "algorithm.entropy_coefficient=0.01",
        "algorithm.importance=recomputed",
        "filter.enabled=false",
        "modes={normal: 1.0}",
        "eval={count: 4, levels: [3], in_domain: [3], every: 1}",
    )
    run_dir = train.main(config)
    first, second = read_metrics(run_dir / "metrics.jsonl")
    assert first["count/updates"] == second["count/updates"] == 4
    assert "kl_reference" not in first
    assert first["value_loss"] > 0 and second["value_loss"] > 0
    # A critic that starts at zero explains nothing; after four updates it says something.
    assert first["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert second["explained_variance"] != 0
    assert first["ratio_deviation_first"] < 1e-5 < first["ratio_deviation"]
    assert first["count/rtm_groups"] == first["count/roll_in_groups"] == 0
    assert first["count/rtm_masked_tokens"] == 0
    _, params = vr.load_pretrained(run_dir / "hf", value_head=True)
    assert np.asarray(params["value_head"]["kernel"]).any()
    for name in ("base", "step000001", "final"):
        tables = json.loads((run_dir / f"evaluation_{name}.json").read_text())
        assert {row["maps"] for row in tables[-1]["rows"]} == {4}
    assert "evaluation_final" in (run_dir / "report.html").read_text()


def test_fixed_length_weights_leave_ratios_means(configure, speaking, tmp_path):
    """Two optimizer steps a rollout, a linear schedule: its rates fall update by update."""
    config = configure(
        tmp_path / "fixed",
        "steps=2",
        "algorithm={normalization: fixed_length, advantage: dr_grpo, minibatches: 2}",
        "modes={rtm: 1.0, normal: 0}",
        "rtm.kind=closed_form",
        "filter.enabled=false",
        "optimizer.schedule=linear",
    )
    first, second = read_metrics(train.main(config) / "metrics.jsonl")
    for line in (first, second):
        assert line["ratio_mean"] == pytest.approx(1, abs=0.2)
        assert line["ratio_deviation_first"] < 1e-4
        assert 3 < line["entropy"] < np.log(384)
        assert line["count/rtm_groups"] == 4 and line["count/rtm_masked_tokens"] > 0
    # The rate of the last of a step's updates: 3/4, 1/4 of the peak were the second ones'.
    assert first["learning_rate"] == pytest.approx(0.0075)
    assert second["learning_rate"] == pytest.approx(0.0025)


def test_a_filter_that_nothing_passes_skips_the_update(configure, speaking, tmp_path):
    config = configure(tmp_path / "none", "steps=1", "filter.low=5", "filter.high=6")
    run_dir = train.main(config)
    (line,) = read_metrics(run_dir / "metrics.jsonl")
    assert line["count/groups_filtered"] == 12 and line["count/rollouts"] == 3
    assert "loss" not in line
    _, params = vr.load_pretrained(run_dir / "hf")
    assert_same(params, vr.load_pretrained(config.policy.path)[1])


def test_gradients_that_stay_not_finite_end_the_run(configure, speaking, tmp_path, monkeypatch):
    advantages = label.episode_advantages
    poisoned = lambda *args: advantages(*args) * np.nan
    monkeypatch.setattr(label, "episode_advantages", poisoned)
    config = configure(tmp_path / "nan", "guard.max_bad_steps=1", "checkpoint.every=50")
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        train.main(config)
    step, arrays = saved_arrays(tmp_path / "nan")
    assert step == 2 and arrays["state"]["bad_steps"] == 2
    _, start = vr.load_pretrained(config.policy.path)
    assert_same(arrays["state"]["params"], start)
    assert not any(np.any(a) for a in jax.tree.leaves(arrays["state"]["opt_state"]))
    (line,) = read_metrics(tmp_path / "nan" / "metrics.jsonl")
    assert line["count/skipped_updates"] == 1 and line["loss"] is None
    # What the message advises works: the cause is gone, the run goes on.
    monkeypatch.setattr(label, "episode_advantages", advantages)
    train.main(config, resume=True)
    assert read_metrics(tmp_path / "nan" / "metrics.jsonl")[-1]["step"] == STEPS


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["policy.path=/no/such/policy"], FileNotFoundError, "config.json"),
        (["data.path=/no/such/maps"], FileNotFoundError, "maps.json"),
        (["data.exclude=[/no/such/maps]"], FileNotFoundError, "maps.json"),
        (["eval.enabled=true", "eval.path=/no/such/maps"], FileNotFoundError, "maps.json"),
        (["eval.references=[/no/such/policy]"], FileNotFoundError, "config.json"),
        (["data.exclude=[MAPS]"], ValueError, "none of the 6 maps"),
        (["mesh.data=1000"], (ConfigError, ValueError), "mesh"),
    ],
)
def test_what_cannot_run_fails_before_anything_is_written(
    configure, maps, tmp_path, overrides, error, words
):
    overrides = [override.replace("MAPS", str(maps)) for override in overrides]
    with pytest.raises(error, match=words):
        train.main(configure(tmp_path / "bad", *overrides))
    assert not (tmp_path / "bad").exists()


def test_a_run_is_not_overwritten_and_nothing_is_not_resumed(run, configure, tmp_path):
    before = lines(run, INCIDENTAL)
    with pytest.raises(FileExistsError, match="--resume"):
        train.main(configure(run))
    assert lines(run, INCIDENTAL) == before
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train.main(configure(tmp_path / "new"), resume=True)


def test_a_checkpoint_of_another_configuration_is_refused(run, configure, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    with pytest.raises(ValueError, match="configuration"):
        train.main(configure(copied, "roll_in.capacity=8"), resume=True)
