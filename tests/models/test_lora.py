"""Adapters: the same policy until trained, W + s A B once they are, and nothing else learns."""

import functools

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import inference, start, testing
from vrrl_jax.config import LoraConfig, OptimizerConfig, PolicyConfig
from vrrl_jax.models import lora
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine

RANK, ALPHA = 3, 12.0
EVERYWHERE = ("decoder", "vision", "merger")
FAMILIES = ["qwen2_5_vl_tiny", "qwen3_vl_tiny"]


def flat(tree):
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def adapted(policy, params, targets=EVERYWHERE):
    return testing.random_adapters(policy, params, targets, rank=RANK, alpha=ALPHA)


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request, pytestconfig):
    directory = pytestconfig.rootpath / "tests/models/goldens" / request.param
    with np.load(directory / "goldens.npz") as stored:
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        inputs = [stored[name] for name in names]
    return *vr.load_pretrained(directory), inputs


def test_fresh_adapters_change_nothing(golden):
    policy, params, inputs = golden
    fresh = lora.add_lora(policy, params, rank=RANK, alpha=ALPHA, targets=EVERYWHERE, seed=0)
    np.testing.assert_array_equal(
        vr.logits(policy, fresh, *inputs), vr.logits(policy, params, *inputs)
    )


def test_adapters_equal_their_merged_kernels(golden):
    """Against kernels that a numpy loop adds up, layer by layer."""
    policy, params, inputs = golden
    changed = adapted(policy, params)
    leaves, summed = flat(changed), flat(params)
    for name in [n.removesuffix("/lora_a") for n in leaves if n.endswith("/lora_a")]:
        a, b, kernel = (np.asarray(leaves[f"{name}/{k}"]) for k in ("lora_a", "lora_b", "kernel"))
        total = kernel.copy()
        for i in np.ndindex(kernel.shape[:-2]):
            total[i] += ALPHA / RANK * a[i] @ b[i]
        summed[f"{name}/kernel"] = total
        merged = functools.reduce(dict.get, f"{name}/kernel".split("/"), lora.merge_lora(changed))
        np.testing.assert_allclose(merged, total, rtol=0, atol=1e-5)
    tree = jax.tree.structure(params)
    by_hand = tree.unflatten([summed[name] for name in flat(params)])
    ours = np.asarray(vr.logits(policy, changed, *inputs))
    theirs = np.asarray(vr.logits(policy, by_hand, *inputs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())
    base = np.asarray(vr.logits(policy, params, *inputs))
    assert np.abs(ours - base).max() > 0.1 * base.std()


def test_every_target_is_where_it_says(golden):
    policy, params, _ = golden
    seen = set()
    for target in lora.TARGETS:
        names = {n for n in flat(adapted(policy, params, (target,))) if n.endswith("lora_a")}
        assert names, target
        where = "visual/" if target in ("vision", "merger") else "layers/"
        assert all(name.startswith(where) for name in names)
        seen |= names
    projections = {
        n.replace("/kernel", "/lora_a")
        for n in flat(params)
        if n.endswith("kernel") and "patch_embed" not in n and "lm_head" not in n
    }
    assert seen == projections


def test_unknown_or_absent_targets_are_errors(golden):
    policy, params, _ = golden
    with pytest.raises(ValueError, match=r"\['heads'\]: choose from decoder"):
        lora.add_lora(policy, params, rank=2, alpha=4.0, targets=("heads",), seed=0)
    only = {"layers": params["layers"]}
    with pytest.raises(ValueError, match="name no projection"):
        lora.add_lora(policy, only, rank=2, alpha=4.0, targets=("vision",), seed=0)


def test_decoding_agrees_with_scoring(golden):
    """Sampler and trainer see the same adapters."""
    policy, params, inputs = golden
    changed = adapted(policy, params)
    out = vr.generate(
        policy, changed, *inputs, max_new_tokens=6, stop_ids=(), key=jax.random.key(0)
    )
    prompts = inference.split_rows(policy, *inputs)
    for r, prompt in enumerate(prompts):
        tokens = np.concatenate([prompt.tokens, out.tokens[r]])
        rows = inference.one_a_row(policy, [prompt.__class__(tokens, prompt.pictures)])
        forced = vr.token_logprobs(policy, changed, rows)[0, prompt.tokens.size :]
        np.testing.assert_allclose(out.logprobs[r], forced, rtol=0, atol=3e-5)


def test_only_adapters_learn_and_only_they_have_moments(golden):
    policy, params, inputs = golden
    config = PolicyConfig(lora=LoraConfig(rank=RANK, targets=EVERYWHERE))
    whole = lora.add_lora(policy, params, rank=RANK, alpha=ALPHA, targets=EVERYWHERE, seed=0)
    trained, frozen = lora.split_params(whole, functools.partial(start.trains, config))
    assert all(lora.is_adapter(name) for name in flat(trained))
    assert not any(lora.is_adapter(name) for name in flat(frozen))
    tx = make_optimizer(OptimizerConfig(learning_rate=0.05, weight_decay=0.1), 10)
    state = update.init_state(policy, jax.tree.map(jax.numpy.copy, trained), tx)
    held = sum(a.size for a in jax.tree.leaves(state.opt_state) if a.ndim)
    assert held == 2 * sum(a.size for a in jax.tree.leaves(trained))
    rows = inference.one_a_row(policy, inference.split_rows(policy, *inputs))
    weights = (rows.segments > 0)[..., None] / np.float32((rows.segments > 0).sum())
    batch = update.Microbatch(
        rows, {"target_ids": rows.tokens[..., None], "target_weights": np.float32(weights)}
    )
    programs = update.make_programs(functools.partial(update.supervised_loss, policy), tx, policy)
    losses = []
    for _ in range(4):
        state, metrics = update.run(programs, state, [batch], frozen)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    after = flat(lora.join_params(state.params, frozen))
    for name, leaf in flat(whole).items():
        same = np.array_equal(leaf, after[name])
        assert same is not lora.is_adapter(name), name


def test_merging_keeps_the_kernel_s_dtype_and_the_tree():
    policy, params = testing.tiny_policy()
    params = jax.tree.map(lambda a: jax.numpy.asarray(a, jax.numpy.bfloat16), params)
    merged = lora.merge_lora(adapted(policy, params))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert {a.dtype.name for a in jax.tree.leaves(merged)} == {"bfloat16"}
    stripped = lora.strip_lora(adapted(policy, params))
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (stripped, params)), strict=True))


def test_the_rollout_view_casts_adapters_with_their_layers(golden):
    policy, params, _ = golden
    view = engine.make_view(policy, adapted(policy, params))
    assert len(view.layers) == policy.config.text.layers
    assert view.layers[0]["q_proj"]["lora_a"].shape[-1] == RANK
    assert view.layers[0]["q_proj"]["lora_scale"].shape == ()
