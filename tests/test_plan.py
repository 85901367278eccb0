"""Bytes on paper against bytes that are there."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from vrrl_jax import plan, testing
from vrrl_jax.config import OptimizerConfig, RolloutConfig, TrainConfig, UpdateConfig
from vrrl_jax.models import critic
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import from_hf
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.mesh import make_mesh
from vrrl_jax.parallel.rules import param_shardings
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.types import Pictures, Rows

CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "models"
MESHES = {
    "one": None,
    "data8": {"data": 8},
    "fsdp4-tensor2": {"fsdp": 4, "tensor": 2},
    # Two key-value heads over four parts: those are held whole.
    "fsdp2-tensor4": {"fsdp": 2, "tensor": 4},
}
WORK = plan.Workload(16, 64, 24, 64, 8, 64, 2)


def on_device(tree) -> int:
    """Bytes that one device holds; the arrays are split evenly or not at all."""
    first = jax.devices()[0]
    shards = [s for a in jax.tree.leaves(tree) for s in a.addressable_shards if s.device == first]
    return sum(shard.data.nbytes for shard in shards)


def published(name, **changes) -> models.Policy:
    raw = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return models.Policy(from_hf(raw), compute_dtype="bfloat16", remat=True, **changes)


@pytest.fixture(scope="module", params=MESHES.values(), ids=MESHES.keys())
def place(request):
    """(policy whose mesh is abstract, the same with devices, its parameters on them)."""
    abstract = real = None
    if request.param is not None:
        abstract, real = plan.abstract_mesh(**request.param), make_mesh(**request.param)
    policy, params = testing.tiny_policy(value_head=True, mesh=real)
    shardings = param_shardings(params, real, head_dim=policy.config.text.head_dim)
    params = jax.device_put(params, jax.devices()[0] if shardings is None else shardings)
    return dataclasses.replace(policy, mesh=abstract), policy, params


# --- what is held --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_and_optimizer_are_exact(place, optimizer):
    paper, policy, params = place
    config = OptimizerConfig(name=optimizer)
    ours = plan.plan(paper, WORK, config)
    state = update.init_state(policy, params, make_optimizer(config, 1))
    assert ours.parameters == ours.reference == on_device(params)
    assert ours.optimizer == on_device(state.opt_state)
    assert ours.gradients == 2 * ours.parameters


def test_a_frozen_tower_has_no_state(place):
    paper, policy, params = place
    config = OptimizerConfig()
    ours, whole = (plan.plan(paper, WORK, config, freeze_vision=f) for f in (True, False))
    trained = {k: v for k, v in params.items() if k != "visual"}
    state = update.init_state(policy, trained, make_optimizer(config, 1))
    assert ours.parameters == whole.parameters == on_device(params)
    assert ours.optimizer == on_device(state.opt_state) < whole.optimizer
    assert ours.gradients == 2 * ours.reference == 2 * on_device(trained)


@pytest.mark.parametrize("freeze_vision", [False, True])
def test_a_separate_critic_is_a_second_model(place, freeze_vision):
    """It trains beside the policy, is in neither reference nor view, and shares a frozen tower."""
    paper, policy, params = place
    config = OptimizerConfig()
    held = lambda name: freeze_vision and name.startswith("critic/visual")
    whole = critic.add_critic(policy, params, held)
    tower = {"visual", "critic"} if freeze_vision else {"critic"}
    trained = {k: v for k, v in whole.items() if k not in tower}
    own = {k: v for k, v in whole["critic"].items() if not (freeze_vision and k == "visual")}
    both = on_device([trained, own])
    options = {"freeze_vision": freeze_vision}
    ours = plan.plan(paper, WORK, config, separate_critic=True, **options)
    shared = plan.plan(paper, WORK, config, **options)
    arrays = {id(a): a for a in jax.tree.leaves(whole)}
    assert ours.parameters == on_device(arrays)
    assert ours.optimizer == 2 * both + 2 * 4  # two counters beside the moments
    assert ours.gradients == 2 * both
    assert ours.reference == on_device(trained)
    assert (ours.view, ours.cache, ours.rollout) == (shared.view, shared.cache, shared.rollout)
    assert shared.update < ours.update < 2 * shared.update


@pytest.mark.parametrize("rows", [16, 6])  # the latter divide by no mesh of several rows
def test_the_cache_is_exact(place, rows):
    paper, policy, _ = place
    state = engine.init(policy, rows, 40)
    assert plan.cache_bytes(paper, rows, 40) == on_device(state.cache)


def test_the_view_is_exact(place):
    paper, policy, params = place
    assert policy.config.text.tied  # the head is there twice
    view = engine.make_view(policy, params)
    assert plan.view_bytes(paper, plan.master_params(paper, "float32")) == on_device(view)


def test_dtypes(place):
    """Parameters in bfloat16 take half, but for a value head; so does a cache."""
    paper, policy, params = place
    half = plan.master_params(paper, "bfloat16")
    held = plan.held_bytes(half, paper.mesh, head_dim=policy.config.text.head_dim)
    head = on_device(params["value_head"])
    assert held == (on_device(params) - head) // 2 + head
    bf16 = dataclasses.replace(paper, compute_dtype="bfloat16")
    assert 2 * plan.cache_bytes(bf16, 16, 64) == plan.cache_bytes(paper, 16, 64)


# --- published sizes -----------------------------------------------------------------------------


def test_a_small_model_by_hand():
    """3B on one device: 3.75e9 parameters of 4 bytes, twice that of moments, and a cache of 36,864
    bytes a token (36 layers, 2 heads of 128, keys and values, 2 bytes)."""
    ours = plan.plan(published("qwen2_5_vl_3b"), WORK, OptimizerConfig())
    assert ours.parameters == 4 * 3_754_622_976
    assert ours.optimizer == 2 * ours.parameters + 2 * 4  # two counters beside the moments
    assert ours.cache == 16 * 64 * 36_864
    assert 97e9 < ours.peak < 103e9
    assert [device for device in plan.DEVICES if ours.fits(device)] == ["H200"]


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "qwen2_5_vl_72b", "qwen3_vl_8b"])
def test_more_devices_hold_less(name):
    """Doubling fsdp halves all that is held but for what doesn't divide: biases, norms, and an MLP
    of 3,420 in the vision tower of the 7B. The sampler's copy halves where it isn't gathered."""
    policies = [
        published(name, mesh=plan.abstract_mesh(fsdp=n), gather_view=False) for n in (8, 16)
    ]
    memory = [plan.plan(policy, WORK, OptimizerConfig()) for policy in policies]
    whole = plan.plan(dataclasses.replace(policies[1], gather_view=True), WORK, OptimizerConfig())
    assert 15.9 < whole.view / memory[1].view <= 16 or name == "qwen2_5_vl_7b"
    for field in ("parameters", "optimizer", "view", "gradients"):
        few, many = (getattr(m, field) for m in memory)
        assert 0.5 < many / few < (0.57 if name == "qwen2_5_vl_7b" else 0.51)
    assert memory[1].peak < memory[0].peak


def test_heads_that_do_not_divide_are_refused():
    policy = published("qwen2_5_vl_7b", mesh=plan.abstract_mesh(fsdp=4, tensor=8))
    with pytest.raises(ValueError, match="doesn't divide the 28 query heads"):
        plan.plan(policy, WORK, OptimizerConfig())


def test_fits_leaves_the_runtime_its_share():
    memory = plan.Memory(10, 20, 10, 5, 4, 20, 1, 7)
    assert memory.resident == 45 and memory.peak == 72
    whole = dataclasses.replace(memory, parameters=round(32e9), optimizer=0, reference=0, view=0)
    assert not whole.fits("v6e") and whole.fits("H100")


def test_the_shapes_of_a_recipe(tiny_processor):
    policy, _ = testing.tiny_policy()
    config = TrainConfig(
        rollout=RolloutConfig(questions=4, samples=2, max_new_tokens=8),
        update=UpdateConfig(rows_per_microbatch=4, row_tokens=256),
    )
    settings = episodes.Settings(2, config.env.max_turns, 8)
    board = testing.tiny_environment(config.env.max_turns)
    shapes = episodes.plan_shapes(
        policy, tiny_processor, board, testing.tiny_probes(), settings, roll_in=True
    )
    work = plan.workload(config, policy, shapes)
    # A packed row holds the longest episode, whatever the recipe asks for.
    assert work.batch_tokens == work.slots == shapes.slots > 256
    assert (work.rows, work.batch_rows) == (8, 4)
    assert work.chunk >= max(shapes.prompt, shapes.follow)
    # A picture for each prompt and reply that it has room for.
    assert work.batch_pictures * (shapes.prompt + 8) >= work.batch_tokens


# --- estimates -----------------------------------------------------------------------------------


def abstract(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def pictures(policy, rows, slots, patches, tokens):
    vision = policy.config.vision
    features = vision.channels * vision.patch**2
    return Pictures(
        abstract((rows, slots, patches, features), jnp.uint8),
        abstract((rows, slots, patches, 4)),
        abstract((rows, slots, patches)),
        abstract((rows, tokens)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("separate", [None, False, True])  # None: no critic
def test_an_update_takes_about_what_is_said(remat, separate):
    """Against XLA's own count of temporaries on a CPU, for shapes that fill a microbatch."""
    policy, _ = testing.tiny_policy(remat=remat, value_head=separate is not None)
    r, t, k, p = 4, 512, 2, 64
    rows = Rows(
        abstract((r, t)), abstract((3, r, t)), abstract((r, t)), pictures(policy, r, k, p, t)
    )
    names = ("loss_weights", "logprobs", "advantages", "value_weights", "values", "returns")
    fields = {name: abstract((r, t), jnp.float32) for name in names}
    objective = update.Objective(value_coefficient=0.0 if separate is None else 0.5)
    loss = functools.partial(update.policy_loss, policy, objective)
    programs = update.make_programs(loss, make_optimizer(OptimizerConfig(), 1), policy)
    params = plan.master_params(policy, "float32", separate_critic=bool(separate))
    lowered = programs.accumulate.lower(params, {}, params, update.Microbatch(rows, fields))
    theirs = lowered.compile().memory_analysis().temp_size_in_bytes
    work = plan.Workload(8, t, t, p, r, t, k)
    ours = plan.plan(policy, work, OptimizerConfig(), separate_critic=bool(separate))
    # Theirs holds the new gradient; ours counts that among the gradients.
    assert ours.update + ours.parameters == pytest.approx(theirs, rel=0.5)


def test_an_appended_chunk_takes_about_what_is_said():
    policy, params = testing.tiny_policy()
    b, n, s, p = 16, 128, 512, 64
    view = jax.eval_shape(functools.partial(models.rollout_view, policy), params)
    state = jax.eval_shape(lambda: engine.init(policy, b, s))
    chunk = engine.Chunk(
        abstract((b, n)), abstract((b,)), abstract((3, b, n)), abstract((b,)),
        pictures(policy, b, 1, p, n),
    )  # fmt: skip
    theirs = engine.append.lower(policy, view, state, chunk).compile().memory_analysis()
    ours = plan.plan(policy, plan.Workload(b, s, n, p, 8, 64, 1), OptimizerConfig())
    assert ours.rollout == pytest.approx(theirs.temp_size_in_bytes, rel=0.5)


def test_what_grows_with_what():
    """Scores that are written out with the square of a row's tokens, a kernel's blocks not at all,
    residuals in proportion to layers and rows."""
    policy = published("qwen2_5_vl_3b")
    written = dataclasses.replace(policy, attention="xla")
    at = lambda policy=policy, **changes: (
        plan.plan(policy, dataclasses.replace(WORK, **changes), OptimizerConfig()).update
    )
    short, long = at(batch_tokens=4096), at(batch_tokens=8192)
    assert 1.8 < long / short < 2.1
    assert 2 < at(written, batch_tokens=8192) / at(written, batch_tokens=4096) < 4.2
    assert at(batch_rows=16, batch_tokens=4096) == pytest.approx(2 * short, rel=0.2)
    kept = dataclasses.replace(policy, remat=False)
    assert plan.plan(kept, WORK, OptimizerConfig()).update > 3 * at()
