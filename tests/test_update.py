"""From episodes to an optimizer step: labels, packing, the accumulated gradient, the optimizer."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrrl_jax import label, optimizer, packing, selecting, start, testing
from vrrl_jax.config import (
    AlgorithmConfig,
    OptimizerConfig,
    PolicyConfig,
    RtmConfig,
)
from vrrl_jax.layout import PackShape
from vrrl_jax.models import policy as models
from vrrl_jax.models.lora import join_params, split_params
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.processing import encode
from vrrl_jax.rl import update
from vrrl_jax.types import Episode, Picture

SLOTS, TURNS, ROWS = 128, 3, 8
OBJECTIVE = update.Objective(
    clip_low=0.1,
    clip_high=0.2,
    dual_clip=1.5,
    kl_coefficient=0.3,
    entropy_coefficient=0.02,
    value_coefficient=0.5,
    value_clip=0.4,
    temperature=0.8,
)
WIDE = PackShape(rows=6, tokens=SLOTS, slots=TURNS, patches=64)  # one episode a row
SPLIT = dataclasses.replace(WIDE, rows=2)  # three microbatches
DENSE = PackShape(rows=2, tokens=3 * SLOTS, slots=3 * TURNS, patches=64)  # three episodes a row
PAIRS = PackShape(rows=4, tokens=2 * SLOTS, slots=2 * TURNS, patches=64)  # a group a row, one left


def episode(processor, rng, map, group, sample, mode="normal", turns=TURNS) -> Episode:
    """An episode of random replies, each but for its first token generated, in a real chat."""
    board = testing.tiny_environment(turns + 1)
    prompt, parts = board.reset(map), []
    pictures = []
    for turn in range(turns):
        make = encode.next_chunk if turn else encode.first_chunk
        chunk = make(processor, prompt)
        reply = rng.integers(0, 320, rng.integers(3, 8))
        pictures += chunk.pictures
        parts.append((chunk.tokens, np.zeros(chunk.tokens.size), turn))
        parts.append((reply, np.arange(reply.size) > 0, turn))
        prompt = board.step(map, "<ANSWER>up</ANSWER>", turn).prompt
    tokens, mask = (np.concatenate([p[i] for p in parts]) for i in range(2))
    return Episode(
        question=group,
        sample=sample,
        group=group,
        tokens=tokens.astype(np.int32),
        loss_mask=mask.astype(np.float32),
        turn_index=np.concatenate([np.full(len(p[0]), p[2], np.int32) for p in parts]),
        logprobs=(-rng.random(mask.size) * mask).astype(np.float32),
        pictures=tuple(pictures),
        texts=("",) * turns,
        spans=((0, 0),) * turns,
        rewards={"total": float(rng.integers(0, 4))},
        mode=mode,
    )


@pytest.fixture(scope="module")
def played(tiny_processor):
    """Three groups of two; the numbers of the groups have gaps, as a filter leaves them."""
    rng = np.random.default_rng(0)
    maps = testing.tiny_maps(3)
    modes = ("normal", "rtm", "rtm")
    return [
        episode(tiny_processor, rng, maps[g], 3 * g + 1, s, modes[g])
        for g in range(3)
        for s in range(2)
    ]


@pytest.fixture(scope="module")
def padded(played):
    return label.pad(played, ROWS, SLOTS)


@pytest.fixture(scope="module")
def actor():
    """(policy, params) with a critic that says something."""
    policy, params = testing.tiny_policy(value_head=True)
    rng = np.random.default_rng(5)
    head = {k: np.float32(rng.normal(size=v.shape)) for k, v in params["value_head"].items()}
    return policy, jax.device_put(params | {"value_head": head})


@pytest.fixture(scope="module")
def fields(padded, actor, played):
    """Old log-probabilities near the policy's own, so that some ratios are clipped."""
    rng = np.random.default_rng(1)
    noise = lambda scale: np.float32(rng.normal(0, scale, padded.loss_mask.shape))
    scored = scores(actor, played, padded)
    return {
        "loss_weights": label.loss_weights(padded.loss_mask, "token_mean", 1),
        "value_weights": label.loss_weights(padded.loss_mask, "token_mean", 1),
        "logprobs": scored["logprobs"] + noise(0.3),
        "ref_logprobs": scored["logprobs"] + noise(0.5),
        "advantages": noise(1.0),
        "values": scored["values"] + noise(0.5),
        "returns": noise(1.0),
    }


_score = jax.jit(update.score, static_argnums=(0, 3))


def scores(actor, played, padded, shape=WIDE, temperature=OBJECTIVE.temperature):
    whole = packing.pack(actor[0], played, list(range(len(played))), shape)
    out = [_score(*actor, rows, temperature) for rows in whole.rows]
    return {
        name: packing.scatter(whole, [np.asarray(o[name]) for o in out], padded.loss_mask)
        for name in out[0]
    }


@pytest.fixture(scope="module")
def programs(actor):
    loss = functools.partial(update.policy_loss, actor[0], OBJECTIVE)
    return update.make_programs(loss, optax.sgd(1.0))


@pytest.fixture(scope="module")
def gradient(actor, played, fields, programs):
    @functools.cache
    def gradient(shape, share=False):
        whole = packing.pack(actor[0], played, list(range(len(played))), shape, share)
        assert (whole.spared > 0) == (share and shape is not WIDE)
        grads, totals = programs.zeros(actor[1]), {}
        batches = packing.microbatches(actor[0], whole, fields)
        for batch in batches:
            grads, metrics = programs.accumulate(actor[1], {}, grads, batch)
            totals = {k: totals.get(k, 0) + float(v) for k, v in metrics.items()}
        return len(batches), grads, totals

    return gradient


# --- accumulation and packing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "share", "count"),
    [(SPLIT, False, 3), (DENSE, False, 1), (PAIRS, True, 1), (DENSE, True, 1), (WIDE, True, 1)],
)
def test_microbatches_and_packing_change_nothing(gradient, shape, share, count):
    """Accumulated over microbatches, packed, or with a question's opening turn and its picture
    computed once for all its episodes: the gradient of one batch, an episode a row."""
    one, wanted, wanted_metrics = gradient(WIDE)
    parts, grads, metrics = gradient(shape, share)
    assert (one, parts) == (1, count)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(grads), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5 * largest, rtol=1e-3, err_msg=path_name(path))
        assert np.asarray(a).any(), f"no gradient reaches {path_name(path)}"
    assert metrics == pytest.approx(wanted_metrics, rel=1e-4, abs=1e-6)


def test_the_loss_equals_its_formula(gradient, fields, padded, actor, played):
    """Equation by equation in numpy, from the scores of a separate pass."""
    scored = scores(actor, played, padded)
    mask = padded.loss_mask > 0
    at = {name: np.float64(value)[mask] for name, value in fields.items()}
    logp, values = np.float64(scored["logprobs"])[mask], np.float64(scored["values"])[mask]
    ratio = np.exp(logp - at["logprobs"])
    a, clipped = at["advantages"], np.clip(ratio, 0.9, 1.2)
    losses = np.maximum(-a * ratio, -a * clipped)
    losses = np.where(a < 0, np.minimum(losses, -a * 1.5), losses)
    d = at["ref_logprobs"] - logp
    kl = np.minimum(np.exp(d) - d - 1, update.KL_LIMIT)
    moved = at["values"] + np.clip(values - at["values"], -0.4, 0.4)
    value = np.maximum((values - at["returns"]) ** 2, (moved - at["returns"]) ** 2)
    metrics = gradient(WIDE)[2]
    wanted = {
        "policy_loss": losses.mean(),
        "kl_reference": kl.mean(),
        "value_loss": value.mean(),
        "ratio_mean": ratio.mean(),
        "ratio_deviation": np.abs(ratio - 1).mean(),
        "clip_fraction_low": ((a < 0) & (ratio < 0.9)).mean(),
        "clip_fraction_high": ((a > 0) & (ratio > 1.2)).mean(),
        "clip_fraction_dual": ((a < 0) & (ratio > 1.5)).mean(),
        "kl_old": (ratio - 1 - logp + at["logprobs"]).mean(),
    }
    assert {k: metrics[k] for k in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert min(wanted[f"clip_fraction_{k}"] for k in ("low", "high", "dual")) > 0
    assert 0 < metrics["entropy"] < np.log(384)
    total = losses.mean() + 0.3 * kl.mean() - 0.02 * metrics["entropy"] + 0.5 * value.mean()
    assert metrics["loss"] == pytest.approx(total, rel=1e-3)


def test_learning_rate_zero_keeps_the_ratio_at_one(actor, played, fields, padded, programs):
    policy, params = actor
    old = scores(actor, played, padded)["logprobs"]
    tx = optimizer.make_optimizer(OptimizerConfig(learning_rate=0.0), 10)
    apply = update.make_programs(lambda *_: None, tx).apply
    whole = packing.pack(policy, played, list(range(6)), SPLIT)
    batches = packing.microbatches(policy, whole, fields | {"logprobs": old})
    state = update.init_state(policy, jax.tree.map(jnp.copy, params), tx)
    for _ in range(2):
        state, metrics = update.run(programs._replace(apply=apply), state, batches)
        assert float(metrics["ratio_mean"]) == pytest.approx(1, abs=1e-6)
        assert float(metrics["ratio_deviation"]) < 1e-5
        assert float(metrics["grad_norm"]) > 0
    assert int(state.step) == 2
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, state.params)
    assert all(jax.tree.leaves(same))


def test_supervised_loss_is_the_cross_entropy_with_soft_targets(tiny, tiny_processor):
    policy, params = tiny
    rng = np.random.default_rng(0)
    spoken = episode(tiny_processor, rng, testing.tiny_maps(1)[0], 0, 0)
    whole = packing.pack(policy, [spoken], [0], dataclasses.replace(WIDE, rows=1))
    ids = rng.integers(0, 320, (1, SLOTS, 4))
    weights = rng.random((1, SLOTS, 4)) * (rng.random((1, SLOTS, 1)) < 0.2)
    weights[:, 0] = 0
    weights[:, spoken.tokens.size :] = 0
    weights /= weights.sum()
    batch = update.Microbatch(
        whole.rows[0], {"target_ids": np.int32(ids), "target_weights": np.float32(weights)}
    )
    loss, metrics = jax.jit(update.supervised_loss, static_argnums=0)(policy, params, batch)
    raw = jax.jit(models.forward, static_argnums=0)(policy, params, batch.rows)
    raw = np.array(raw, np.float64)[0, :-1]
    raw[:, list(policy.placeholder_ids)] = -np.inf
    logprobs = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    picked = np.take_along_axis(logprobs, ids[0, 1:], -1)
    assert float(loss) == pytest.approx(-(picked * weights[0, 1:]).sum(), rel=1e-4)
    assert float(metrics["nll"]) == float(loss)
    probability = (np.exp(picked) * weights[0, 1:]).sum()
    assert float(metrics["target_probability"]) == pytest.approx(probability, rel=1e-4)


# --- non-finite gradients ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    """A loss whose gradient is the batch itself."""
    tx = optax.adamw(0.1)
    params = {"w": jnp.ones(3)}
    programs = update.make_programs(lambda p, b: (jnp.sum(p["w"] * b), {"seen": b.sum()}), tx)
    opt_state = tx.init(params)
    zero = np.int32(0)
    return programs, update.TrainState(params, opt_state, zero, zero)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_skips_the_update(toy, bad):
    programs, state = toy
    good, poisoned = np.float32([1, 2, 3]), np.float32([1, bad, 3])
    state, metrics = update.run(programs, jax.tree.map(jnp.array, state), [good])
    assert int(metrics["count/skipped_updates"]) == 0 and int(state.bad_steps) == 0
    before = jax.device_get(state)
    for n in (1, 2):
        # One bad microbatch among good ones is enough.
        state, metrics = update.run(programs, state, [good, poisoned, good])
        assert int(metrics["count/skipped_updates"]) == 1
        assert int(state.bad_steps) == n and int(state.step) == 1 + n
    for a, b in zip(
        jax.tree.leaves((before.params, before.opt_state)),
        jax.tree.leaves((state.params, state.opt_state)),
        strict=True,
    ):
        assert np.array_equal(a, b)
    state, metrics = update.run(programs, state, [good])
    assert int(state.bad_steps) == 0 and int(metrics["count/skipped_updates"]) == 0
    assert (np.asarray(state.params["w"]) != before.params["w"]).all()
    assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt(14))


def test_metrics_of_microbatches_add_up(toy):
    programs, state = toy
    parts = [np.float32([1, 2, 3]), np.float32([4, 5, 6])]
    _, metrics = update.run(programs, jax.tree.map(jnp.array, state), parts)
    assert float(metrics["seen"]) == 21 and float(metrics["loss"]) == 21


# --- the optimizer -------------------------------------------------------------------------------

MATRICES = {  # leaf -> the axes that are orthogonalised
    "layers/q_proj/kernel": (1, 2),
    "layers/k_proj/kernel": (1, 2),
    "layers/v_proj/kernel": (1, 2),
    "layers/o_proj/kernel": (1, 2),
    "layers/mlp/gate_proj/kernel": (1, 2),
    "layers/mlp/up_proj/kernel": (1, 2),
    "layers/mlp/down_proj/kernel": (1, 2),
    "visual/blocks/qkv/kernel": (1, 2),
    "visual/blocks/proj/kernel": (1, 2),
    "visual/blocks/mlp/gate_proj/kernel": (1, 2),
    "visual/blocks/mlp/up_proj/kernel": (1, 2),
    "visual/blocks/mlp/down_proj/kernel": (1, 2),
    "visual/merger_0/kernel": (0, 1),
    "visual/merger_2/kernel": (0, 1),
}
OTHERS = {
    "embed_tokens/embedding",
    "layers/input_layernorm/scale",
    "layers/k_proj/bias",
    "layers/post_attention_layernorm/scale",
    "layers/q_proj/bias",
    "layers/v_proj/bias",
    "norm/scale",
    "value_head/bias",
    "value_head/kernel",
    "visual/blocks/mlp/down_proj/bias",
    "visual/blocks/mlp/gate_proj/bias",
    "visual/blocks/mlp/up_proj/bias",
    "visual/blocks/norm1/scale",
    "visual/blocks/norm2/scale",
    "visual/blocks/proj/bias",
    "visual/blocks/qkv/bias",
    "visual/ln_q/scale",
    "visual/merger_0/bias",
    "visual/merger_2/bias",
    "visual/patch_embed/kernel",
}


def test_muon_takes_the_hidden_matrices_and_adam_the_rest(actor):
    """By the states that optax really keeps: Adam has two moments of a leaf, Muon one."""
    params = actor[1]
    tx = optimizer.make_optimizer(OptimizerConfig(name="muon"), 10)
    state = jax.eval_shape(tx.init, params)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    leaves = {path_name(path): a for path, a in jax.tree_util.tree_leaves_with_path(params)}
    assert set(leaves) == set(MATRICES) | OTHERS
    for leaf in leaves:
        moments = sum(name.endswith("/" + leaf) for name in names)
        assert moments == (1 if leaf in MATRICES else 2), leaf
    numbers = optimizer.muon_dimensions(params)
    for name, axes in MATRICES.items():
        found = functools.reduce(lambda tree, key: tree[key], name.split("/"), numbers)
        assert (found.reduction_axis, found.output_axis) == axes
        assert leaves[name].ndim == axes[1] + 1


def random_grads(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), params)


def changed(tx, params):
    """Names of the leaves that one step changes."""
    updates, _ = jax.jit(tx.update)(random_grads(params), tx.init(params), params)
    return {
        path_name(path)
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
        if np.asarray(u).any()
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_vision_tower_gets_no_update(actor, name):
    tx = optimizer.make_optimizer(OptimizerConfig(name=name, learning_rate=0.1), 10)
    every = set(MATRICES) | OTHERS
    assert changed(tx, actor[1]) == every
    frozen = PolicyConfig(freeze_vision=True)
    trained, rest = split_params(actor[1], functools.partial(start.trains, frozen))
    assert changed(tx, trained) == {n for n in every if not n.startswith("visual/")}
    assert list(rest) == ["visual"]
    both = join_params(trained, rest)
    assert jax.tree.structure(both) == jax.tree.structure(actor[1])
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (both, actor[1])), strict=True))


def test_a_muon_update_is_orthogonal_layer_by_layer(actor):
    """Stacked kernels are many matrices, not one: every layer's update has its own directions."""
    params = actor[1]
    config = OptimizerConfig(name="muon", learning_rate=1.0, weight_decay=0.0, grad_clip=None)
    tx = optimizer.make_optimizer(config, 10)
    grads = random_grads(params)
    # A layer whose gradient is tiny moves like the others.
    kernel = grads["layers"]["q_proj"]["kernel"].at[0].multiply(1e-3)
    grads["layers"]["q_proj"]["kernel"] = kernel
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    for layer in np.asarray(updates["layers"]["q_proj"]["kernel"]):
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.max() / values.min() < 3
        # As large as Adam's: 0.2 is the RMS that `consistent_rms` asks for.
        assert 0.1 < np.sqrt((layer**2).mean()) < 0.3


def test_gradients_are_clipped_by_their_global_norm(actor):
    config = OptimizerConfig(learning_rate=1.0, grad_clip=0.5, weight_decay=0.0, eps=1e3)
    config = dataclasses.replace(config, value_head_scale=1.0)
    tx = optimizer.make_optimizer(config, 10)
    grads = random_grads(actor[1])
    updates, _ = jax.jit(tx.update)(grads, tx.init(actor[1]), actor[1])
    # With a huge eps Adam's first step is -gradient / eps.
    assert float(optax.global_norm(updates)) * 1e3 == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "steps", "wanted"),
    [
        ({}, 3, [1, 1, 1]),
        ({"warmup_steps": 4}, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "linear"}, 4, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear"}, 1, [1]),
        ({"schedule": "linear", "warmup_steps": 2}, 6, [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6]),
        ({"schedule": "linear", "decay_fraction": 0.5}, 6, [1, 1, 1, 1, 2 / 3, 1 / 3]),
        ({"schedule": "cosine"}, 4, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
        ({"schedule": "linear", "final_fraction": 0.5}, 4, [1, 0.875, 0.75, 0.625]),
        ({"schedule": "cosine", "final_fraction": 0.5}, 2, [1, 0.75]),
    ],
)
def test_the_schedule_s_rates(options, steps, wanted):
    rate = optimizer.schedule(OptimizerConfig(learning_rate=0.2, **options), steps)
    found = [float(rate(i)) / 0.2 for i in range(steps)]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert min(found) > 0  # no update is thrown away


# --- labels --------------------------------------------------------------------------------------


def test_padding_keeps_values_and_finds_each_turn_s_last_token(played, padded):
    for b, e in enumerate(played):
        n = e.tokens.size
        assert (padded.loss_mask[b, :n] == e.loss_mask).all()
        assert (padded.turn_index[b, :n] == e.turn_index).all()
        assert (padded.logprobs[b, :n] == e.logprobs).all()
        last = [
            max(t for t in range(n) if e.loss_mask[t] and e.turn_index[t] == u)
            for u in range(TURNS)
        ]
        assert np.flatnonzero(padded.last[b]).tolist() == last
        assert np.flatnonzero(padded.final[b]).tolist() == last[-1:]
        assert not padded.loss_mask[b, n:].any()
    for name in ("loss_mask", "turn_index", "logprobs", "last", "final"):
        assert not getattr(padded, name)[len(played) :].any()


@pytest.mark.parametrize("kind", ["sampled", "closed_form", "final_turn"])
@pytest.mark.parametrize("k_min", [0, 1])
def test_turn_masking_touches_the_episodes_of_its_mode(played, padded, kind, k_min):
    config = RtmConfig(kind=kind, k_min=k_min)
    draw = lambda seed: label.turn_masked(jax.random.key(seed), played, padded, config)
    first = draw(0)
    assert (first[:2] == padded.loss_mask[:2]).all()  # normal mode
    assert not first[len(played) :].any()
    turn, mask = padded.turn_index, padded.loss_mask
    starts = set()
    for seed in range(20):
        out = draw(seed)
        for b in range(2, 6):
            if kind == "closed_form":
                weights = np.maximum(turn[b] - k_min + 1, 0) / (TURNS - k_min)
                np.testing.assert_allclose(out[b], weights * mask[b], atol=1e-6)
                continue
            first_turn = turn[b][out[b] > 0].min()
            starts.add(int(first_turn))
            assert (out[b] == mask[b] * (turn[b] >= first_turn)).all()
    if kind == "final_turn":
        assert starts == {TURNS - 1}
    elif kind == "sampled":
        assert starts == set(range(k_min, TURNS))


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean", "fixed_length"])
def test_loss_weights_reduce_as_named(normalization):
    """Against a loop over episodes; weights needn't be 0 or 1, a row may be empty."""
    rng = np.random.default_rng(0)
    weights = rng.random((5, 12)) * (rng.random((5, 12)) < 0.6)
    weights[3] = 0
    losses = rng.normal(size=weights.shape)
    scaled = label.loss_weights(np.float32(weights), normalization, 10)
    rows = [(w, x) for w, x in zip(weights, losses, strict=True) if w.any()]
    wanted = {
        "token_mean": sum((w * x).sum() for w, x in rows) / weights.sum(),
        "sequence_mean": np.mean([(w * x).sum() / w.sum() for w, x in rows]),
        "fixed_length": sum((w * x).sum() for w, x in rows) / (len(rows) * 10),
    }[normalization]
    assert (scaled * losses).sum() == pytest.approx(wanted, rel=1e-5)
    assert not label.loss_weights(np.zeros((2, 3), np.float32), normalization, 10).any()


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_advantages_are_relative_to_what_is_left_of_a_group(played, kind):
    totals = np.array([e.rewards["total"] for e in played]).reshape(3, 2)
    assert (totals[:, 0] != totals[:, 1]).any()
    if kind == "rloo":
        wanted = totals - totals[:, ::-1]
    else:
        wanted = totals - totals.mean(1, keepdims=True)
    if kind == "grpo":
        wanted = wanted / (totals.std(1, ddof=1, keepdims=True) + 1e-6)
    out = label.episode_advantages(played, ROWS, AlgorithmConfig(advantage=kind))
    np.testing.assert_allclose(out[:6], wanted.ravel(), atol=1e-5)
    assert not out[6:].any()


def test_rewards_of_turns_sit_on_their_last_generated_tokens(played, padded):
    """Turn 0 is taken for rolled in: nothing of it was generated, and its reward is nobody's."""
    first = dataclasses.replace(
        played[0],
        loss_mask=played[0].loss_mask * (played[0].turn_index > 0),
        turn_rewards=tuple(10.0 + u for u in range(TURNS)),
    )
    again = label.pad([first], len(padded.loss_mask), padded.loss_mask.shape[1])
    rewards = label.placed_rewards([first], again)
    wanted = np.zeros_like(rewards)
    for u in range(1, TURNS):
        wanted[0, np.flatnonzero(first.loss_mask * (first.turn_index == u))[-1]] = 10.0 + u
    np.testing.assert_array_equal(rewards, wanted)


def test_the_reward_sits_on_the_last_generated_token(played, padded):
    rewards = label.placed_rewards(played, padded)
    for b, e in enumerate(played):
        at = np.flatnonzero(e.loss_mask)[-1]
        assert rewards[b, at] == e.rewards["total"]
        assert np.delete(rewards[b], at).any() == 0


@pytest.mark.parametrize("shape", [WIDE, SPLIT, DENSE])
def test_scatter_undoes_gather(tiny, played, padded, shape):
    whole = packing.pack(tiny[0], played, [4, 0, 2, 5], shape)
    values = np.random.default_rng(0).normal(size=padded.loss_mask.shape).astype(np.float32)
    packed = packing.gather(whole, values)
    back = packing.scatter(whole, packed, values)
    for b in range(ROWS):
        n = played[b].tokens.size if b in (0, 2, 4, 5) else 0
        assert (back[b, :n] == values[b, :n]).all() and not back[b, n:].any()
    assert sum((p != 0).sum() for p in packed) == sum(played[b].tokens.size for b in (0, 2, 4, 5))
    # The tokens that the model sees are the episodes' own.
    tokens = packing.scatter(whole, [np.asarray(r.tokens) for r in whole.rows], values)
    for b in (0, 2, 4, 5):
        assert (tokens[b, : played[b].tokens.size] == played[b].tokens).all()
    assert 0 < whole.occupancy <= 1


def test_padding_rows_are_left_out(tiny, played):
    rows = lambda indices: packing.pack(tiny[0], played, indices, PAIRS).rows[0].tokens.shape[0]
    assert (rows([0]), rows([0, 1, 2, 3]), rows([0, 1, 2, 3, 4])) == (1, 2, 4)
    three = dataclasses.replace(PAIRS, rows=3)  # which has no half
    assert packing.pack(tiny[0], played, [0], three).rows[0].tokens.shape[0] == 3


def test_shared_tokens_are_scored_like_one_s_own(actor, played, padded):
    whole = packing.pack(actor[0], played, list(range(len(played))), PAIRS, True)
    out = [_score(*actor, rows, OBJECTIVE.temperature) for rows in whole.rows]
    wanted = scores(actor, played, padded)
    for name in ("logprobs", "values"):
        ours = packing.scatter(whole, [np.asarray(o[name]) for o in out], padded.loss_mask)
        np.testing.assert_allclose(
            ours * padded.loss_mask, wanted[name] * padded.loss_mask, atol=3e-5
        )
    sizes = [e.tokens.size for e in played]
    opening = np.flatnonzero(played[0].tokens != played[1].tokens)[0]
    assert whole.spared == pytest.approx(3 * opening / sum(sizes))
    # The first picture of each question stands once: 5 of 6 pictures of a row.
    shown = [len({*np.unique(r)} - {0}) for r in np.asarray(whole.rows[0].pictures.segments)]
    assert sum(shown[:3]) <= 3 * (2 * TURNS - 1)


def beginning(sequences, grids, image):
    """(tokens, pictures) that are alike, token by token, of (tokens, mask, pictures) each."""
    size, pictures, left = 0, 0, 0
    while True:
        at = [(t[size], m[size]) for t, m, _ in sequences if len(t) > size + 1]
        if len(at) < len(sequences) or len({t for t, _ in at}) > 1 or any(m for _, m in at):
            break
        if at[0][0] == image and not left:
            same = {
                p[pictures].tobytes() if len(p) > pictures else i
                for i, (_, _, p) in enumerate(sequences)
            }
            if len(same) > 1:
                return size, pictures
            left, pictures, start = grids[pictures], pictures + 1, size
        left -= at[0][0] == image
        size += 1
    return (start, pictures - 1) if left else (size, pictures)


def test_beginnings_end_where_a_loop_says(tiny, played):
    """Random chats that part at random places, in pictures too."""
    place, rng = tiny[0].config.layout, np.random.default_rng(0)
    found = collections.Counter()
    for _ in range(300):
        units = rng.integers(1, 4, 3).tolist()
        whole = [np.arange(3, 3 + rng.integers(0, 3))]
        for n in units:
            whole += [np.full(n, place.image_id), np.arange(3, 3 + rng.integers(1, 3))]
        whole = np.concatenate(whole)
        shown = [rng.integers(0, 255, (n * place.merge**2, 2)).astype(np.uint8) for n in units]
        chats = []
        for _ in range(rng.integers(2, 4)):
            tokens, pictures = whole.copy(), list(shown)
            mask = np.zeros(tokens.size, np.float32)
            if rng.random() < 0.3:
                mask[rng.integers(tokens.size // 2, tokens.size)] = 1
            if rng.random() < 0.2:
                part = rng.integers(0, tokens.size)
                if tokens[part] != place.image_id:
                    tokens[part] = 99
            if rng.random() < 0.2:
                which = rng.integers(len(units))
                pictures[which] = pictures[which] + 1
            stop = rng.integers(tokens.size // 2, 2 * tokens.size)
            while stop < tokens.size and tokens[stop] == tokens[stop - 1] == place.image_id:
                stop += 1
            kept = np.sum(np.cumsum(units) <= (tokens[:stop] == place.image_id).sum())
            chats.append((tokens[:stop], mask[:stop], pictures[:kept]))
        wanted = beginning(chats, units, place.image_id)
        grid = lambda p: (1, place.merge, len(p) // place.merge)
        made = [
            dataclasses.replace(
                played[0], tokens=t, loss_mask=m, pictures=tuple(Picture(p, grid(p)) for p in ps)
            )
            for t, m, ps in chats
        ]
        (family,) = packing.shared_beginnings(made, place)
        assert (family.tokens, family.pictures) == wanted
        found[wanted[1]] += 1
    assert min(found[k] for k in range(4)) > 10


def test_what_is_hidden_from_one_episode_is_not_shared(played, tiny):
    place = tiny[0].config.layout
    hidden = dataclasses.replace(played[1], hidden=np.ones(played[1].tokens.size, bool))
    families = packing.shared_beginnings([played[0], hidden, *played[2:]], place)
    assert sorted(f.members for f in families) == [(0,), (1,), (2, 3), (4, 5)]
    assert [f.tokens > 0 for f in sorted(families)] == [False, False, True, True]


def test_an_episode_that_fits_no_row_is_an_error(tiny, played):
    with pytest.raises(ValueError, match="doesn't fit a row"):
        packing.pack(tiny[0], played, [0], dataclasses.replace(WIDE, tokens=32))
    with pytest.raises(ValueError, match="doesn't fit a row"):
        packing.pack(tiny[0], played, [0], dataclasses.replace(WIDE, slots=TURNS - 1))


# --- the loop's own parts ------------------------------------------------------------------------


def test_minibatches_hold_whole_groups_and_every_sample_once():
    groups, wanted = [7, 7, 3, 3, 9, 9], np.ones(6, bool)
    seen = [selecting.minibatches(groups, wanted, 2, (0, epoch)) for epoch in range(8)]
    for parts in seen:
        assert (sum(parts) == 1).all()
        assert sorted(part.sum() for part in parts) == [2, 4]
        for part in parts:
            assert all(part[i] == part[i + 1] for i in (0, 2, 4))
    assert len({str(parts) for parts in seen}) > 1
    assert str(selecting.minibatches(groups, wanted, 2, (0, 3))) == str(seen[3])
    (whole,) = selecting.minibatches(groups, wanted, 1, (0,))
    assert (whole == 1).all()
    # Fewer groups than minibatches, after a filter or a draw: no empty step.
    (only,) = selecting.minibatches(groups, np.array([0, 0, 1, 0, 0, 0]) > 0, 3, (0,))
    assert only.tolist() == [0, 0, 1, 1, 0, 0]


def test_the_value_head_learns_faster():
    """AdamW's first step is the rate in every entry; the value head's is a multiple of it."""
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.0, eps=1e-12, value_head_scale=7.0)
    tx = optimizer.make_optimizer(config, 10)
    params = {"norm": {"scale": jnp.ones(3)}, "value_head": {"kernel": jnp.zeros((3, 1))}}
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(updates["value_head"]["kernel"], -0.07, rtol=1e-5)
