"""Floors against parameter trees, against XLA's own count, and against small cases by hand."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrrl_jax import roofline, testing
from vrrl_jax.checkpoint import hf
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import from_hf
from vrrl_jax.roofline import Chip, Work
from vrrl_jax.types import Pictures, Rows

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "models"
# Of each family one with a tied head and one without.
MODELS = ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_2b", "qwen3_vl_8b", "nano")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def published(name: str):
    path = hf.resolve("nano") / "config.json" if name == "nano" else CONFIGS / f"{name}.json"
    return from_hf(json.loads(path.read_text(encoding="utf-8")))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def wide(family: str, **vision):
    """The tiny policy made wide, so that products outweigh norms and softmax, and one layer deep:
    XLA counts a loop's body once."""
    config = from_hf(testing.tiny_config(family))
    text = dataclasses.replace(
        config.text,
        width=256, layers=1, heads=4, kv_heads=2, head_dim=64, intermediate=512, vocab_size=512,
        mrope_section=(12, 10, 10),
    )  # fmt: skip
    tower = dataclasses.replace(
        config.vision,
        width=256, layers=1, heads=4, intermediate=512, out_width=256, full_blocks=(0,), window=2,
    )  # fmt: skip
    return dataclasses.replace(config, text=text, vision=dataclasses.replace(tower, **vision))


def shapes(config, rows, tokens, slots, patches):
    struct, features = jax.ShapeDtypeStruct, roofline.patch_features(config.vision)
    pictures = Pictures(
        struct((rows, slots, patches, features), jnp.float32),
        struct((rows, slots, patches, 4), jnp.int32),
        struct((rows, slots, patches), jnp.int32),
        struct((rows, tokens), jnp.int32),
    )
    ints = struct((rows, tokens), jnp.int32)
    return Rows(ints, struct((3, rows, tokens), jnp.int32), ints, pictures)


def measured(function, *args) -> float:
    """FLOPs as XLA counts them in what it compiled."""
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_tree(name):
    config = published(name)
    tree = models.abstract_params(models.Policy(config))
    assert roofline.all_params(config) == count(tree)
    assert roofline.vision_params(config) == count(tree["visual"])
    head = tree["embed_tokens"] if config.text.tied else tree["lm_head"]
    assert roofline.decode_params(config) == count([tree["layers"], tree["norm"], head])


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_slots_are_those_of_the_cache(family):
    policy, _ = testing.tiny_policy(family=family)
    cache = jax.eval_shape(lambda: models.init_cache(policy, 3, 40))
    assert 3 * 40 * roofline.slot_bytes(policy.config.text, 1) == count(cache)


# --- FLOPs against XLA ---------------------------------------------------------------------------

# What XLA counts and a floor leaves out is elementwise: some ten operations a number in norms,
# rotary angles, biases and activations, and seven a score (scale, mask, maximum, exponential, sum).
# Against 2 x 256 to 2 x 512 operations a number in the products that is a few percent.
SLACK = 1.06


def check(floor: float, found: float) -> None:
    assert floor <= found <= SLACK * floor, found / floor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_has_the_flops_that_xla_counts(family):
    config = wide(family)
    policy = models.Policy(config)
    rows, tokens, slots, patches = 2, 64, 2, 64
    found = measured(
        functools.partial(models.forward, policy),
        models.abstract_params(policy),
        shapes(config, rows, tokens, slots, patches),
    )
    floor = roofline.forward(config, rows, tokens, rows * tokens)
    floor += roofline.vision(config, rows * slots, patches)
    # The program computes scores that causality masks: the other half of each square.
    masked = 2 * config.text.heads * config.text.head_dim * rows * tokens * (tokens - 1)
    check(floor.flops + masked, found)


@pytest.mark.parametrize("full_blocks", [(), (0,)], ids=["windows", "frames"])
def test_the_tower_attends_where_xla_says(full_blocks):
    """Pictures so large that attention decides: one kind of block can't pass for the other."""
    config = wide("qwen2_5_vl", full_blocks=full_blocks, intermediate=64)
    policy = models.Policy(config)
    pictures = shapes(config, 1, 8, 1, 1024).pictures
    found = measured(
        lambda params, p: models.encode_pictures(policy, params, p),
        models.abstract_params(policy),
        pictures,
    )
    check(roofline.vision(config, 1, 1024).flops, found)


def test_a_decoded_token_has_the_flops_that_xla_counts():
    config = wide("qwen2_5_vl")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=2))
    policy, rows, slots = models.Policy(config), 4, 96

    def step(params, cache, tokens, positions, offset):
        view = models.rollout_view(policy, params)
        hidden, cache = models.cached_forward(policy, view, cache, tokens, positions, offset)
        return models.logits(policy, params, hidden), cache

    found = measured(
        step,
        models.abstract_params(policy),
        jax.eval_shape(lambda: models.init_cache(policy, rows, slots)),
        np.zeros((rows, 1), np.int32),
        np.zeros((3, rows, 1), np.int32),
        np.zeros(rows, np.int32),
    )
    check(roofline.decode(config, rows, slots - 1).flops, found)


def test_a_backward_pass_is_twice_the_forward_pass():
    config = wide("qwen2_5_vl")
    policy, rows, tokens = models.Policy(config), 2, 64

    def loss(params, rows):
        return jnp.sum(models.forward(policy, params, rows) ** 2)

    # As traced: the compiler would take twice the time of all other tests here.
    args = models.abstract_params(policy), shapes(config, rows, tokens, 1, 64)
    found = jax.jit(jax.value_and_grad(loss)).lower(*args).cost_analysis()["flops"]
    floor = roofline.update(config, rows, tokens, rows * tokens, rows, 64).flops
    masked = 2 * config.text.heads * config.text.head_dim * rows * tokens * (tokens - 1)
    # The patches themselves have no gradient.
    inputs = 2 * roofline.patch_features(config.vision) * config.vision.width * rows * 64
    check(floor + 3 * masked - inputs, found)


# --- by hand -------------------------------------------------------------------------------------


def small():
    """Widths of which everything can be written down."""
    config = from_hf(testing.tiny_config())
    text = dataclasses.replace(
        config.text, vocab_size=10, width=4, layers=3, heads=2, kv_heads=1, head_dim=2,
        intermediate=5, tied=True,
    )  # fmt: skip
    vision = dataclasses.replace(
        config.vision, layers=2, width=6, heads=1, intermediate=7, patch=1, merge=1, temporal=2,
        channels=3, window=2, full_blocks=(1,), out_width=4,
    )  # fmt: skip
    return dataclasses.replace(config, text=text, vision=vision)


LAYER = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 5  # q, k and v, o, MLP
BLOCK = 4 * 36 + 3 * 6 * 7


def test_decode_by_hand():
    held = 3 * (LAYER + 8 + 2 * 4) + 4 + 40  # kernels, biases, norms; last norm; head
    work = roofline.decode(small(), rows=5, context=8)
    assert work.flops == 5 * (2 * (3 * LAYER + 40) + 4 * 3 * 4 * 9)
    assert work.bytes == 2 * (held + 5 * 4) + 5 * 9 * (2 * 3 * 2 * 2)


def test_prefill_by_hand():
    held = 3 * (LAYER + 8 + 2 * 4) + 4 + 40
    work = roofline.prefill(small(), rows=2, tokens=3)
    pairs = 2 * (1 + 2 + 3)
    assert work.flops == 6 * 2 * 3 * LAYER + 3 * pairs * 4 * 4 + 2 * 2 * 40
    assert work.bytes == 2 * (held + 6 * (2 * 3 + 1) * 4) + 6 * 24


def test_appending_is_what_a_longer_prefill_does_more():
    config = small()
    short, more, whole = (
        roofline.prefill(config, 2, 3),
        roofline.prefill(config, 2, 4, context=3),
        roofline.prefill(config, 2, 7),
    )
    assert short.flops + more.flops == whole.flops + roofline.head_flops(config.text, 2)
    # What was written is read, and the weights a second time.
    again = 2 * roofline.decode_params(config) + 6 * roofline.slot_bytes(config.text)
    assert short.bytes + more.bytes == whole.bytes + again
    one = roofline.prefill(config, 2, 1, context=8)
    assert one.flops == roofline.decode(config, 2, 8).flops


@pytest.mark.parametrize(("patches", "window"), [(12, 4), (3, 3)])
def test_vision_by_hand(patches, window):
    """One block of windows of 2 x 2, one over the frame; a picture smaller than a window."""
    work = roofline.vision(small(), 2, patches)
    pairs = patches * window + patches**2
    merger = 6 * 6 + 6 * 4
    products = patches * (6 * 6 + 2 * BLOCK + merger)
    assert work.flops == 2 * (2 * products + 4 * 6 * pairs)
    assert roofline.vision(small(), 0, patches) == Work(0, 0)


def test_deepstack_merges_more_than_once():
    plain, deep = wide("qwen3_vl", deepstack=()), wide("qwen3_vl", deepstack=(0,))
    merger = roofline.merger_kernels(deep.vision)
    work, more = (roofline.vision(c, 3, 64) for c in (plain, deep))
    assert more.flops - work.flops == 2 * 3 * 16 * merger
    assert more.bytes > work.bytes + 2 * merger


def test_what_is_recomputed_is_no_model_flops():
    config = wide("qwen2_5_vl")
    args = (config, 2, 64, 50, 4, 64)
    plain, again = roofline.update(*args), roofline.update(*args, remat=True)
    head = 2 * 256 * 512 * 50
    once = roofline.forward(config, 2, 64, 50).flops + roofline.vision(config, 4, 64).flops
    assert plain.flops == again.flops == 3 * once
    assert (plain.recomputed, again.recomputed) == (head, once)
    assert plain.bytes == again.bytes


def test_a_frozen_tower_runs_once():
    config = wide("qwen2_5_vl")
    args, seen = (config, 2, 64, 50, 4, 64), roofline.vision(config, 4, 64)
    whole, frozen = roofline.update(*args), roofline.update(*args, freeze_vision=True)
    assert whole.flops - frozen.flops == 2 * seen.flops
    assert whole.bytes - frozen.bytes > 8 * 4 * roofline.vision_params(config)
    again = roofline.update(*args, freeze_vision=True, remat=True)
    assert again.recomputed == roofline.forward(config, 2, 64, 50).flops


def test_the_published_table_is_that_of_the_script():
    path = ROOT / "scripts" / "floors.py"
    spec = importlib.util.spec_from_file_location("floors", path)
    floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floors)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page == floors.page(), "run scripts/floors.py"


# --- time ----------------------------------------------------------------------------------------


def test_the_slower_of_the_two_bounds():
    chip = Chip(flops=100.0, bandwidth=10.0, memory=1.0, interconnect=1.0)
    assert roofline.lower_bound(1000, 50, chip) == 10  # arithmetic
    assert roofline.lower_bound(1000, 200, chip) == 20  # memory
    assert roofline.lower_bound(1000, 200, chip, chips=4) == 5


def test_work_adds_up():
    one, two = Work(1, 2, 3), Work(10, 20, 30)
    assert one + two == Work(11, 22, 33) and one.times(3) == Work(3, 6, 9)


def test_a_3b_policy_decodes_no_faster_than_its_weights_are_read():
    """6.2 GB of weights at 3.35 TB/s."""
    work = roofline.decode(published("qwen2_5_vl_3b"), 1, 1024)
    seconds = roofline.lower_bound(work.flops, work.bytes, roofline.CHIPS["H100"])
    assert seconds == pytest.approx(3.0859e9 * 2 / 3.35e12, rel=0.02)
