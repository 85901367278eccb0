"""Everything on a mesh of eight simulated devices gives what one device gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vrrl_jax import collect, label, layout, packing, testing
from vrrl_jax.checkpoint import hf
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import ModesConfig, OptimizerConfig, RollInConfig
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.models import critic
from vrrl_jax.models import policy as models
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.mesh import make_mesh, row_parts
from vrrl_jax.parallel.rules import param_shardings, path_name
from vrrl_jax.processing.processor import encode
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Rows

MESHES = {
    "data8": {"data": 8},
    "fsdp4-tensor2": {"fsdp": 4, "tensor": 2},
    "data2-fsdp2-tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}
GROUPS, SAMPLES, TURNS, REPLY = 4, 4, 3, 8
PROPOSAL = "<ANSWER>right down</ANSWER>"
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, eps=1e-3, weight_decay=0.1)
ROLL_IN = RollInConfig(capacity=16, max_per_question=3, max_prefix_turns=2, min_size=1)


@dataclasses.dataclass(frozen=True)
class Patient:
    """FrozenLake that takes any reply for a proposal: a random policy never writes one."""

    board: env.Environment

    def reset(self, example):
        return self.board.reset(example)

    def step(self, example, text, turn):
        del text
        if turn + 1 == TURNS:
            return env.Outcome(None, True, None)
        return self.board.step(example, PROPOSAL, turn)


def score(texts, example, group):
    """Named rewards that differ between replies; every commit counts as clean."""
    del example, group
    total = sum(ord(letter) % 7 for letter in "".join(texts)) % 5 / 4
    return {"total": total, "clean_commit": 1.0, "commit_em": float(total > 0.5)}


@dataclasses.dataclass(frozen=True)
class Place:
    """A policy somewhere: on one device or on a mesh."""

    policy: models.Policy
    params: models.Params


def place(mesh=None) -> Place:
    """The tiny policy with a value head that is not zero and stop tokens that do occur."""
    policy, params = testing.tiny_policy(value_head=True, mesh=mesh, stop_ids=tuple(range(40)))
    head = np.random.default_rng(1).normal(size=(32, 1)).astype(np.float32) / 6
    params["value_head"] = {"kernel": head, "bias": np.full(1, 0.1, np.float32)}
    return Place(policy, jax.device_put(params, shardings(policy, params)))


def shardings(policy, tree):
    return param_shardings(tree, policy.mesh, head_dim=policy.config.text.head_dim)


@pytest.fixture(scope="module")
def alone() -> Place:
    return place()


# One mesh of two axes always, the others with the slow tests.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(m, id=n, marks=[] if n == "fsdp4-tensor2" else pytest.mark.slow)
        for n, m in MESHES.items()
    ],
)
def split(request) -> Place:
    return place(make_mesh(**request.param))


def close(ours, theirs, share=1e-5, floor=1e-7):
    """Trees equal to `share` of the largest entry of each leaf."""
    paths = jax.tree_util.tree_leaves_with_path(theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, want), got in zip(paths, jax.tree.leaves(ours), strict=True):
        bound = share * np.abs(want).max(initial=0) + floor
        np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=path_name(path))


def laid_out(policy, tree):
    """Every leaf lies where the table says."""
    wanted = jax.tree.leaves(shardings(policy, tree))
    for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(tree), wanted, strict=True):
        assert leaf.sharding.is_equivalent_to(want, leaf.ndim), path_name(path)


# --- a rollout -----------------------------------------------------------------------------------


def play(where: Place):
    """Four groups, the last one rolled in, three turns each."""
    processor, board = testing.tiny_processor(), Patient(testing.tiny_environment(TURNS))
    maps = testing.tiny_maps(GROUPS)
    settings = episodes.Settings(SAMPLES, TURNS, REPLY, train_prefix=True)
    reply = np.int32([*encode(processor, "<ANSWER>up</ANSWER>"), processor.ids.im_end])
    rolled = episodes.Group(
        7, maps[3], "roll_in", (reply,), (np.full(reply.size, -0.5, np.float32),), False, "<THINK>"
    )
    groups = [episodes.Group(i, maps[i]) for i in range(GROUPS - 1)] + [rolled]
    shapes = episodes.plan_shapes(
        where.policy,
        processor,
        testing.tiny_environment(),
        testing.tiny_probes(),
        settings,
        roll_in=True,
    )
    view = engine.make_view(where.policy, where.params)
    key = jax.random.key(3)
    played, _ = episodes.rollout(
        where.policy, view, processor, board, groups, settings, shapes, key, 5, score
    )
    return played, shapes


@pytest.fixture(scope="module")
def played(alone):
    return play(alone)


def test_a_rollout_is_the_same(split, played):
    ours, shapes = play(split)
    assert shapes == played[1]
    assert len(ours) == GROUPS * SAMPLES
    for a, b in zip(ours, played[0], strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.loss_mask, b.loss_mask)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-4)
        assert (a.texts, a.spans, a.rewards) == (b.texts, b.spans, b.rewards)
    lengths = {e.spans[1][1] - e.spans[1][0] for e in ours}
    assert len(lengths) > 2, "replies of one length show nothing about rows that stop early"
    assert len({e.rewards["total"] for e in ours}) > 2


def collectives(program) -> list[str]:
    """What a compiled program's collectives return, a line each."""
    lines = program.compile().as_text().splitlines()
    marks = [" all-gather(", " all-reduce(", " all-to-all(", " collective-permute("]
    return [line.split(mark)[0] + mark for line in lines for mark in marks if mark in line]


def test_cache_and_view_lie_on_the_mesh(split):
    mesh = split.policy.mesh
    state = engine.init(split.policy, 16, 64)
    keys = state.cache[0][0]
    assert keys.sharding.shard_shape(keys.shape)[0] == 16 // row_parts(mesh)
    assert keys.sharding.shard_shape(keys.shape)[2] == 2 // mesh.shape["tensor"]
    assert state.lengths.sharding.shard_shape((16,)) == (16 // row_parts(mesh),)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    # Gathered over fsdp, unless there is no room for that.
    for policy, parts in (
        (split.policy, tensor),
        (dataclasses.replace(split.policy, gather_view=False), fsdp * tensor),
    ):
        view = engine.make_view(policy, split.params)
        for leaf in (view.embedding, view.head, view.layers[1]["mlp"]["up_proj"]["kernel"]):
            assert np.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size // parts


def test_decoding_keeps_rows_where_they_are():
    """Each row's keys and values go into the part of the cache that holds the row."""
    split = place(make_mesh(fsdp=4, tensor=2))
    view = engine.make_view(split.policy, split.params)
    state, active = engine.init(split.policy, 16, 128), np.ones(16, bool)
    keys = engine.make_keys(jax.random.key(0), 0, np.arange(16), np.arange(16), 0)
    stops, sampling = np.int32(split.policy.stop_ids), Sampling()
    program = engine.decode.lower(
        split.policy, view, state, active, keys, sampling, stops, REPLY, REPLY
    )
    moved = collectives(program)
    assert moved and not [line for line in moved if "f32[16,1,1,8]" in line or "[16,128," in line]


# --- forward, gradients, updates -----------------------------------------------------------------


def packed(where: Place, played) -> list[update.Microbatch]:
    """The played episodes in microbatches, with made-up fields of every kind."""
    ours, shapes = played
    longest = max(e.tokens.size for e in ours)
    shape = layout.PackShape(8, layout.bucket(longest, 8), TURNS, shapes.patches)
    whole = packing.pack(where.policy, ours, list(range(len(ours))), shape)
    padded = label.pad(ours, len(ours), shapes.slots)
    rng = np.random.default_rng(2)
    weights = padded.loss_mask / padded.loss_mask.sum()
    noise = lambda: rng.normal(size=weights.shape).astype(np.float32)
    fields = {
        "logprobs": padded.logprobs + 0.05 * noise(),
        "ref_logprobs": padded.logprobs + 0.05 * noise(),
        "advantages": noise(),
        "loss_weights": weights,
        "value_weights": weights,
        "values": noise(),
        "returns": noise(),
    }
    return packing.microbatches(where.policy, whole, fields)


def programs(where: Place, tx):
    objective = update.Objective(
        kl_coefficient=0.1, entropy_coefficient=0.01, value_coefficient=0.5, value_clip=0.2
    )
    loss = functools.partial(update.policy_loss, where.policy, objective)
    return update.make_programs(loss, tx, where.policy)


@functools.partial(jax.jit, static_argnums=0)
def forward(policy, params, rows):
    hidden = models.hidden_states(policy, params, rows)
    logprobs, entropy = models.token_logprobs(policy, params, hidden, rows.tokens, temperature=0.8)
    raw = models.logits(policy, params, hidden)
    return raw, logprobs, entropy, critic.values(policy, params, rows, hidden)


def learn(where: Place, played):
    """Outputs of a forward pass, gradients over two microbatches, and the state after a step."""
    batches = packed(where, played)
    assert len(batches) == 2
    shown = forward(where.policy, where.params, batches[0].rows)
    tx = make_optimizer(OPTIMIZER, 10)
    run = programs(where, tx)
    state = update.init_state(where.policy, jax.tree.map(jnp.copy, where.params), tx)
    grads = run.zeros(state.params)
    for batch in batches:
        grads, _ = run.accumulate(state.params, {}, grads, batch)
    state, metrics = update.run(run, state, batches)
    return shown, grads, state, metrics


@pytest.fixture(scope="module")
def learned(alone, played):
    return learn(alone, played)


def test_forward_gradients_and_update_are_the_same(split, played, learned):
    shown, grads, state, metrics = learn(split, played)
    close(shown, learned[0], 2e-6)
    close(grads, learned[1])
    assert min(np.abs(g).max() for g in jax.tree.leaves(grads["visual"])) > 0, "no picture learns"
    close(state.opt_state, learned[2].opt_state, 2e-5)
    close(state.params, learned[2].params, 0, 1e-3 * OPTIMIZER.learning_rate)
    close(metrics, learned[3], 1e-4)
    laid_out(split.policy, grads)
    laid_out(split.policy, state)


def test_muon_is_the_same():
    """Newton-Schulz multiplies whole matrices, of which every device holds a piece."""
    tx = make_optimizer(dataclasses.replace(OPTIMIZER, name="muon"), 10)
    alone, split = place(), place(make_mesh(fsdp=4, tensor=2))
    rng = np.random.default_rng(4)
    grads = jax.tree.map(lambda a: np.float32(rng.normal(size=a.shape)), alone.params)

    def step(where):
        state = update.init_state(where.policy, where.params, tx)
        placed = jax.device_put(grads, shardings(where.policy, grads))
        return programs(where, tx).apply(state, placed)[0]

    ours, theirs = step(split), step(alone)
    laid_out(split.policy, ours)
    close(ours.params, theirs.params, 0, 1e-3 * OPTIMIZER.learning_rate)
    close(ours.opt_state, theirs.opt_state)


def test_key_value_heads_held_whole_change_nothing(alone, played, learned):
    split = place(make_mesh(fsdp=2, tensor=4))
    assert split.params["layers"]["k_proj"]["kernel"].sharding.spec == P(None, "fsdp", None)
    close(forward(split.policy, split.params, packed(split, played)[0].rows), learned[0], 2e-6)
    keys = engine.init(split.policy, 4, 8).cache[0][0]
    assert keys.sharding.shard_shape(keys.shape) == (2, 8, 2, 8)


def test_the_vocabulary_is_never_gathered(played):
    """Log-probabilities and their gradients: no device gets all logits, or all of the head."""
    split = place(make_mesh(fsdp=4, tensor=2))
    batch = packed(split, played)[0]
    run = programs(split, make_optimizer(OPTIMIZER, 10))
    moved = collectives(run.accumulate.lower(split.params, {}, run.zeros(split.params), batch))
    gathered = [line for line in moved if "all-gather(" in line]
    assert gathered and not [line for line in gathered if "384" in line]


# --- how much a device holds ---------------------------------------------------------------------


def largest_share(tree) -> float:
    """The largest part of a tree's bytes that one device holds."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    assert len(held) == 8
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_no_device_holds_much_of_the_shipped_policy():
    """Parameters, gradients and moments on fsdp=4, tensor=2, before and after an update."""
    policy = hf.load_policy("nano", mesh=make_mesh(fsdp=4, tensor=2))
    assert (policy.config.text.width, policy.config.text.layers) == (128, 4)
    params = models.init_params(policy, 0)
    tx = make_optimizer(OPTIMIZER, 10)
    state = update.init_state(policy, jax.device_put(params, shardings(policy, params)), tx)
    assert largest_share(state.params) < 0.3 and largest_share(state.opt_state) < 0.3

    rng = np.random.default_rng(0)
    position = np.broadcast_to(np.arange(16, dtype=np.int32), (3, 8, 16)).copy()
    tokens, ones = rng.integers(0, 300, (8, 16), np.int32), np.ones((8, 16), np.int32)
    rows = packing.place_rows(policy, Rows(tokens, position, ones, None))
    fields = {"target_ids": tokens[..., None], "target_weights": ones[..., None] / np.float32(128)}
    run = update.make_programs(functools.partial(update.supervised_loss, policy), tx, policy)
    batch = update.Microbatch(rows, packing.put_rows(policy.mesh, fields))
    grads, _ = run.accumulate(state.params, {}, run.zeros(state.params), batch)
    state, metrics = run.apply(state, grads)
    assert metrics["grad_norm"] > 0 and int(state.step) == 1
    assert largest_share(grads) < 0.3
    assert largest_share(state.params) < 0.3 and largest_share(state.opt_state) < 0.3


# --- prefixes ------------------------------------------------------------------------------------


def buffered(mesh, played):
    """The prefix buffer after adding a rollout's prefixes and sampling from them twice."""
    buffer = collect.empty_prefixes(ROLL_IN, REPLY + 10, mesh)
    maps = testing.tiny_maps(GROUPS) * 2
    modes = ModesConfig(normal=0, rtm=0, roll_in=1)
    states, groups = [buffer], []
    for step in range(2):
        buffer, offered = collect.collect_prefixes(buffer, played[0], ROLL_IN, step)
        assert offered == (GROUPS - 1) * SAMPLES
        states.append(jax.tree.map(jnp.copy, buffer))
        drawn, buffer = collect.make_groups(
            [0, 1, 2], maps, buffer, modes, ROLL_IN, "<THINK>", jax.random.key(1), step, 0
        )
        states.append(jax.tree.map(jnp.copy, buffer))
        groups += drawn
    return states[1:], groups


def test_the_prefix_buffer_is_the_same_and_split(split, played):
    alone_states, alone_groups = buffered(None, played)
    states, groups = buffered(split.policy.mesh, played)
    parts = row_parts(split.policy.mesh)
    for state in states:
        for leaf in jax.tree.leaves(state.payload):
            assert [s.data.shape[0] for s in leaf.addressable_shards] == [16 // parts] * 8
            assert len({str(s.index[0]) for s in leaf.addressable_shards}) == parts
        for leaf in jax.tree.leaves(state._replace(payload=None)):
            assert leaf.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, states, alone_states)
    assert {group.mode for group in groups} == {"roll_in"}
    for a, b in zip(groups, alone_groups, strict=True):
        assert (a.question, a.prefix_right, a.opening) == (b.question, b.prefix_right, b.opening)
        jax.tree.map(np.testing.assert_array_equal, (a.prefix, a.prefix_logprobs), (
            b.prefix, b.prefix_logprobs))  # fmt: skip


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_restored_checkpoint_lies_as_before(played, tmp_path):
    split = place(make_mesh(data=2, fsdp=2, tensor=2))
    tx = make_optimizer(OPTIMIZER, 10)
    state = update.init_state(split.policy, split.params, tx)._replace(step=jnp.int32(7))
    buffer = collect.empty_prefixes(ROLL_IN, REPLY + 10, split.policy.mesh)
    buffer, _ = collect.collect_prefixes(buffer, played[0], ROLL_IN, 0)
    arrays = {"state": state, "buffer": buffer}
    fresh = {
        "state": update.init_state(split.policy, split.params, tx),
        "buffer": collect.empty_prefixes(ROLL_IN, REPLY + 10, split.policy.mesh),
    }
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 7, arrays, {"cursor": 3})
        restored, meta, step = checkpoints.restore(saved, fresh)
        raw = checkpoints.restore_raw(saved)["state"]["params"]
    assert (meta, step) == ({"cursor": 3}, 7)
    jax.tree.map(np.testing.assert_array_equal, restored, arrays)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(fresh), strict=True):
        assert got.sharding == want.sharding
        assert got.sharding.device_set == set(jax.devices())
    laid_out(split.policy, restored["state"])
    # A machine with other devices can read it too: nothing is put where it was.
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(raw))
    jax.tree.map(np.testing.assert_array_equal, raw, split.params)
