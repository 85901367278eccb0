"""Every mechanism through the trainer: it fires, counts itself, and changes what it should."""

import pathlib
import sys
import types

import jax
import numpy as np
import pytest
from running import INCIDENTAL, NAVIGATION, assert_same, lines, saved_arrays, say, write_maps

import vrrl_jax as vr
from vrrl_jax import learn, train, trajectories
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.models.critic import is_critic
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.rollout import transcript

QUESTIONS = """
task: questions
steps: 3
policy: {path: CHECKPOINT}
data: {preset: nano, count: 16, text_share: 0.5}
env: {style: r1, suffix: "", joint: " "}
reward: {style: r1}
scorer: own_scorer:divides
algorithm: {kl_coefficient: 0, advantage: dr_grpo}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
optimizer: {learning_rate: 0.01, weight_decay: 0.0}
update: {rows_per_microbatch: 8}
checkpoint: {every: 1, keep: 5}
eval: {enabled: false}
log: {episodes_every: 2, episodes: 2, tensorboard: false}
"""
PPO = ["algorithm.name=ppo", "policy.value_head=true", "modes={normal: 1.0, rtm: 0, roll_in: 0}"]
PPO += ["filter.enabled=false", "algorithm.dual_clip=null", "steps=3"]


@pytest.fixture(scope="module")
def configure(tiny_checkpoint, tmp_path_factory):
    """configure(recipe, run_dir, *overrides)."""
    folder = tmp_path_factory.mktemp("recipe")
    maps = write_maps(folder / "maps.json")

    def configure(recipe, run_dir, *overrides) -> TrainConfig:
        path = folder / "tiny.yaml"
        path.write_text(
            recipe.replace("CHECKPOINT", str(tiny_checkpoint)).replace("MAPS", str(maps))
        )
        return load(path, [f"run_dir={run_dir}", *overrides], TrainConfig)

    return configure


@pytest.fixture
def speaking(monkeypatch):
    """Random replies are read as sensible ones, in a rollout and when they are replayed."""

    def spoken(processor, ids):
        ends = (processor.ids.im_end, processor.ids.endoftext)
        return say(processor, [i for i in ids if i not in ends])

    for module in (transcript, trajectories):
        monkeypatch.setattr(module, "decode_text", spoken)


@pytest.fixture(autouse=True)
def own_scorer(monkeypatch):
    """A reward that a random policy earns now and then: a number of letters that divides by 6."""

    def divides(texts, example):
        right = float(len(texts[-1]) % 6 == 0)
        return {"total": right, "success": right}

    monkeypatch.setitem(sys.modules, "own_scorer", types.SimpleNamespace(divides=divides))


@pytest.fixture
def weighed(monkeypatch):
    """(samples, copies, fresh) of every optimizer step."""
    seen, weights = [], learn.weights

    def spy(config, samples, copies, fresh, warming):
        seen.append((samples, np.asarray(copies), fresh))
        return weights(config, samples, copies, fresh, warming)

    monkeypatch.setattr(learn, "weights", spy)
    return seen


def played(config) -> list[dict]:
    return read_metrics(train.main(config) / "metrics.jsonl")


def total(metrics: list[dict], name: str) -> float:
    return sum(line.get(name, 0) for line in metrics)


def params_of(directory: pathlib.Path):
    return vr.load_pretrained(directory / "hf")[1]


# --- which samples are trained on ----------------------------------------------------------------


def test_selective_sample_replay_draws_by_advantage(configure, weighed, tmp_path):
    """Paper: each optimizer step draws its share of a rollout, of this rollout's samples alone."""
    config = configure(
        QUESTIONS, tmp_path / "ssr", "replay={method: ssr}", "algorithm.minibatches=2"
    )
    metrics = played(config)
    for line in metrics:
        assert 0 < line["effective_queries"] < 1 and line["effective_batch"] == 1
        assert line["count/remembered"] == line["replay_size"] < 16
        assert line["count/updates"] == 2 and line["count/replayed"] == 0
    assert len(weighed) == 6
    for samples, copies, fresh in weighed:
        assert copies.sum() == 8 and fresh == len(copies) == 16
        assert not copies[samples.advantage == 0].any()
    assert any((copies > 1).any() for _, copies, _ in weighed)


def test_samples_of_earlier_rollouts_are_seen_as_they_were(configure, weighed, tmp_path):
    """Code: what fresh samples lack comes from the ring, its pictures drawn again."""
    config = configure(
        QUESTIONS, tmp_path / "code", "replay={method: ssr, preset: code}", "steps=6"
    )
    metrics = played(config)
    assert total(metrics, "count/replayed") > 0
    assert max(line.get("replayed_age", 0) for line in metrics) >= 1
    steps = [samples.episodes[:fresh] for samples, _, fresh in weighed]
    again = 0
    for now, (samples, copies, fresh) in enumerate(weighed):
        assert copies.sum() == 8
        for old in samples.episodes[fresh:]:
            (first,) = [
                e
                for step in steps[:now]
                for e in step
                if e.question == old.question and np.array_equal(e.logprobs, old.logprobs)
            ]
            np.testing.assert_array_equal(old.tokens, first.tokens)
            np.testing.assert_array_equal(old.loss_mask, first.loss_mask)
            for a, b in zip(old.pictures, first.pictures, strict=True):
                np.testing.assert_array_equal(a.patches, b.patches)
            again += 1
    assert again > 0


def test_a_filter_repeats_what_carries_a_signal(configure, weighed, tmp_path):
    metrics = played(configure(QUESTIONS, tmp_path / "filter", "replay.method=filter", "steps=2"))
    for line, (samples, copies, _) in zip(metrics, weighed, strict=True):
        assert line["effective_batch"] == 1 > line["effective_queries"]
        assert copies.sum() == 16 and not copies[samples.advantage == 0].any()


@pytest.mark.parametrize("method", ["filter", "ssr"])
def test_without_any_signal_there_is_no_update(configure, tmp_path, monkeypatch, method):
    same = types.SimpleNamespace(divides=lambda texts, example: 1.0)
    monkeypatch.setitem(sys.modules, "own_scorer", same)
    config = configure(QUESTIONS, tmp_path / "none", f"replay.method={method}", "steps=1")
    (line,) = played(config)
    assert line["count/updates"] == 0 and line["count/updates_without_samples"] == 1
    assert line["effective_queries"] == line["effective_batch"] == 0
    assert_same(params_of(tmp_path / "none"), vr.load_pretrained(config.policy.path)[1])


def test_a_run_with_replay_resumes_as_the_run_it_was(configure, tmp_path, monkeypatch):
    overrides = ["replay={method: ssr, preset: code}", "steps=3"]
    whole = train.main(configure(QUESTIONS, tmp_path / "whole", *overrides))
    add, calls = learn.selecting.trajectories.add, []

    def die(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(learn.selecting.trajectories, "add", die)
    with pytest.raises(KeyboardInterrupt):
        train.main(configure(QUESTIONS, tmp_path / "cut", *overrides))
    monkeypatch.setattr(learn.selecting.trajectories, "add", add)
    cut = train.main(configure(QUESTIONS, tmp_path / "cut", *overrides), resume=True)
    assert_same(saved_arrays(whole)[1], saved_arrays(cut)[1])
    assert lines(whole, INCIDENTAL) == lines(cut, INCIDENTAL)


# --- forced rethinking ---------------------------------------------------------------------------


def test_rethinking_comes_in_the_second_stage(configure, weighed, tmp_path, monkeypatch):
    """Two stages of one recipe: replay alone, then with second thoughts and their NLL."""
    config = configure(
        QUESTIONS,
        tmp_path / "two",
        "replay.method=ssr",
        "rollout.max_new_tokens=100",  # so that some of them end
        "rethinking={preset: paper, start: 1, share: 1.0, most: 4, nll_coefficient: 0.5}",
    )
    metrics = played(config)
    assert metrics[0].get("count/rethinking_forced", 0) == 0
    assert total(metrics[1:], "count/rethinking_accepted") > 0
    assert any(line["nll"] > 0 for line in metrics[1:]) and metrics[0]["nll"] == 0
    thought = 0
    for samples, _, fresh in weighed:
        for episode, nll in zip(samples.episodes[:fresh], samples.fields["nll"], strict=False):
            if episode.second is None:
                assert not nll.any()
                continue
            (a, b), (c, d) = episode.trigger, episode.second
            said = c + np.flatnonzero(episode.loss_mask[c:d])  # a forced end isn't
            assert b == c and not episode.loss_mask[a:b].any() and said.size >= d - c - 1
            right = episode.rewards["success"] > 0
            np.testing.assert_array_equal(np.flatnonzero(nll), said if right else [])
            thought += right
    assert thought > 0
    assert all(abs(line["ratio_deviation_first"]) < 1e-4 for line in metrics)


# --- prefix masking, replay, the critic ----------------------------------------------------------


def test_prefix_masking_hides_states_and_spares_their_actions(
    configure, speaking, weighed, tmp_path
):
    config = configure(
        NAVIGATION, tmp_path / "mask", *PPO, "prefix_mask={probability: 0.7, pictures: true}"
    )
    for line in played(config):
        assert 0 < line["count/prefix_masked_episodes"] < 16
        assert line["count/prefix_masked_tokens"] >= line["count/prefix_masked_episodes"]
        assert line["count/logprobs_recomputed"] > 0
        # Under masked states too the ratio is 1 before the first update.
        assert abs(line["ratio_deviation_first"]) < 1e-4
    for samples, _, _ in weighed:
        hidden, trained = samples.fields["hidden"] > 0, samples.fields["actor"] > 0
        critic = samples.fields["loss_mask"] > 0
        assert hidden.any() and not (hidden & trained).any()
        assert (hidden & critic).any()  # the critic sees every generated token
        # With pictures: more is hidden than was generated.
        assert (hidden & ~critic).any()


def test_regenerated_continuations_are_trained_on(configure, speaking, weighed, tmp_path):
    config = configure(
        NAVIGATION,
        tmp_path / "again",
        *PPO,
        "prefix_mask={probability: 0.7, continuation: regenerate}",
        "rollout.max_new_tokens=6",
    )
    for line in played(config):
        assert 0 < line["count/prefix_masked_episodes"] <= 16
        assert abs(line["ratio_deviation_first"]) < 1e-4
        assert line["count/logprobs_recomputed"] == 0
    hidden = [e for samples, *_ in weighed for e in samples.episodes if e.hidden is not None]
    assert hidden and all(not (e.hidden & (e.loss_mask > 0)).any() for e in hidden)


def test_trajectories_are_mixed_in(configure, speaking, weighed, tmp_path):
    """As many stored ones as fresh ones, each once, with a critic's labels of now."""
    config = configure(
        NAVIGATION,
        tmp_path / "mix",
        *PPO,
        "replay={method: mix, labels: recomputed, importance: truncated, cap: 1.5}",
        "algorithm.lambda_=0.9",
        "algorithm.minibatches=2",
    )
    metrics = played(config)
    assert metrics[0]["count/replayed"] == 0  # no more than a batch in the ring yet
    assert total(metrics, "count/replayed") > 8
    assert [line["replay_size"] for line in metrics] == [16, 32, 48]
    for line in metrics[1:]:
        assert line["ratio_replayed"] > 0 and 0 < line["replayed_importance"] <= 1.5
        assert np.isfinite(line["value_loss"])
    fields = [samples.fields for samples, _, fresh in weighed if len(samples.episodes) > fresh]
    assert fields and all(np.isfinite(v).all() for f in fields for v in f.values())


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_warm_up_trains_the_critic_alone(configure, speaking, tmp_path, critic):
    config = configure(
        NAVIGATION,
        tmp_path / critic,
        *PPO,
        f"policy.critic={critic}",
        "algorithm={name: ppo, critic_warmup: 2, kl_coefficient: 0}",
        "checkpoint.every=1",
    )
    first, second, _ = played(config)
    assert first["explained_variance"] == 0 != second["explained_variance"]
    saved = [
        checkpoints.read_arrays(tmp_path / critic / "checkpoints" / str(step) / "arrays")
        for step in (1, 2, 3)
    ]
    # Two steps of the critic alone, its head at 0 before; then both learn.
    policies, critics = [], []
    for arrays in saved:
        leaves = jax.tree_util.tree_leaves_with_path(arrays["state"]["params"])
        policies.append({path_name(p): a for p, a in leaves if not is_critic(path_name(p))})
        critics.append({path_name(p): a for p, a in leaves if is_critic(path_name(p))})
    assert_same(policies[0], policies[1])
    base = dict(vr.load_pretrained(config.policy.path)[1])
    start = {path_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(base)}
    assert_same(policies[0], start)
    changed = [
        any(np.any(a[name] != b[name]) for name in a) for a, b in (policies[1:], critics[:2])
    ]
    assert all(changed) and any(np.any(a) for a in critics[0].values())


# --- rewards and roll-in's options ---------------------------------------------------------------


@pytest.mark.parametrize("overlong", ["mask", "penalty"])
def test_replies_that_their_budget_cut(configure, weighed, tmp_path, overlong):
    config = configure(
        QUESTIONS, tmp_path / overlong, f"algorithm.overlong={overlong}", "steps=1",
        "algorithm.overlong_margin=2", "algorithm.advantage=dr_grpo",
    )  # fmt: skip
    (line,) = played(config)
    ((samples, _, _),) = weighed
    cut = np.array([episode.truncated for episode in samples.episodes])
    assert cut.any()
    if overlong == "mask":
        assert line["count/overlong_masked"] == cut.sum()
        assert not samples.fields["actor"][cut].any()
        return
    assert line["count/overlong_penalised"] >= cut.sum()
    groups = np.array([e.group for e in samples.episodes])
    size = np.array([e.loss_mask.sum() for e in samples.episodes])
    score = np.array([e.rewards["total"] for e in samples.episodes]) + np.minimum(0, (2 - size) / 2)
    mean = np.array([score[groups == g].mean() for g in groups])
    np.testing.assert_allclose(samples.advantage, score - mean, atol=1e-6)


def test_a_penalty_in_the_reward_moves_advantages(configure, weighed, tmp_path):
    config = configure(
        QUESTIONS, tmp_path / "kl", "steps=2",
        "algorithm={kl_coefficient: 5.0, kl_in: reward, advantage: dr_grpo}",
    )  # fmt: skip
    first, second = played(config)
    assert abs(first["kl_reward"]) < 1e-3 < abs(second["kl_reward"])
    assert "kl_reference" not in second


def test_rolled_in_prefixes_with_every_option(configure, speaking, weighed, tmp_path):
    config = configure(
        NAVIGATION,
        tmp_path / "all",
        "steps=5",
        "modes={normal: 0.0, rtm: 0.4, roll_in: 0.6}",
        "roll_in.recycle=true",
        "roll_in.replay_commit=true",
        "roll_in.gate=[-0.1, 1.1]",
        "roll_in.wrong_ratio=0.0",
        "roll_in.decision_bonus=0.1",
        "roll_in.train_prefix=true",
    )
    metrics = played(config)
    assert total(metrics, "count/roll_in_groups") > 0
    assert total(metrics, "count/replayed_commits") > 0
    right = [
        e for samples, _, fresh in weighed for e in samples.episodes[:fresh]
        if e.mode == "roll_in" and e.prefix_right and e.sample == 0
    ]  # fmt: skip
    assert right
    for episode in right:
        # The stored commit ends it, and carries loss under its own log-probabilities.
        assert len(episode.texts) == episode.prefix_turns + 1
        start, end = episode.spans[-1]
        assert episode.loss_mask[start:end].any() and episode.rewards["commit_em"] == 1


def test_ratio_is_one_at_learning_rate_zero(configure, speaking, tmp_path):
    """Whatever is masked, replayed and mixed: with unchanged parameters every ratio is 1."""
    config = configure(
        NAVIGATION,
        tmp_path / "still",
        *PPO,
        "optimizer={learning_rate: 0.0, weight_decay: 0.0}",
        "replay={method: mix}",
        "prefix_mask={probability: 0.5}",
        "algorithm.epochs=2",
    )
    for line in played(config):
        assert abs(line["ratio_deviation"]) < 1e-4 and line["kl_old"] < 1e-6
        assert "ratio_replayed" not in line or abs(line["ratio_replayed"] - 1) < 1e-4
