"""Every attention kernel against loops in NumPy: results, gradients, meshes, and what is chosen."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax import topology
from vrrl_jax.models import attention, flash, splash
from vrrl_jax.parallel.mesh import AXES, make_mesh

HERE = ("xla", "chunked", "splash")  # "cudnn" needs a GPU
LIBTPU = importlib.util.find_spec("libtpu") is not None


def reference(q, k, v, given, visible):
    """(attention, its gradients by q, k and v under cotangents `given`), a query at a time.

    `visible(row, t)`: the keys that a query sees; one that sees none gives zero and gets nothing.
    """
    q, k, v, given = (np.asarray(a, np.float64) for a in (q, k, v, given))
    rows, tokens, heads, width = q.shape
    out, dq, dk, dv = np.zeros(q.shape), np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b in range(rows):
        for t in range(tokens):
            seen = visible(b, t)
            for n in range(heads if seen else 0):
                g = n // (heads // k.shape[2])
                scores = np.array([q[b, t, n] @ k[b, s, g] for s in seen]) / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                for s, weight in zip(seen, weights, strict=True):
                    out[b, t, n] += weight * v[b, s, g]
                for s, weight in zip(seen, weights, strict=True):
                    pull = weight * given[b, t, n] @ (v[b, s, g] - out[b, t, n]) / np.sqrt(width)
                    dq[b, t, n] += pull * k[b, s, g]
                    dk[b, s, g] += pull * q[b, t, n]
                    dv[b, s, g] += weight * given[b, t, n]
    return out.reshape(rows, tokens, -1), (dq, dk, dv)


def drawn(rows, tokens, slots, heads, groups, width=8):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    q, k, v = (draw(rows, *shape, width) for shape in ((tokens, heads), *((slots, groups),) * 2))
    return 2 * q, 2 * k, v, draw(rows, tokens, heads, width)


def check(call, q, k, v, given, visible, bound=2e-5):
    """A kernel gives what the loops give, and so do its gradients."""

    @jax.jit
    def both(q, k, v, given):
        out, back = jax.vjp(call, q, k, v)
        return out, back(given.reshape(out.shape))

    # Queries that see nothing mean nothing: no gradient comes to them.
    rows, tokens = q.shape[:2]
    some = np.array([[bool(visible(b, t)) for t in range(tokens)] for b in range(rows)])
    given = given * some[..., None, None]
    out, gradients = both(q, k, v, given)
    wanted, expected = reference(q, k, v, given, visible)
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(np.asarray(out)[some], wanted[some], atol=bound, rtol=bound)
    for found, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, want, atol=5 * bound, rtol=5 * bound)


# Segments 1 and 4 stand before two others each, 2 and 3, 5 and 6; padding within and at the end.
SEGMENTS = np.array([[1] * 5 + [2] * 3 + [3] * 4 + [0] * 2 + [4] * 3 + [5] * 1 + [6] * 2 + [0]])
PARENTS = np.array([[0] * 5 + [1] * 3 + [1] * 4 + [0] * 2 + [0] * 3 + [4] * 1 + [4] * 2 + [0]])


def several(pattern, rows):
    """Rows with the pattern, each of them rolled a token further, its end cut to padding."""
    moved = [np.pad(pattern[0], (i, 0))[: pattern.shape[1]] for i in range(rows)]
    return np.stack(moved).astype(np.int32)


def in_rows(segments, parents):
    def visible(b, t):
        mine, above = segments[b, t], 0 if parents is None else parents[b, t]
        allowed = {mine} | ({above} if above else set())
        return [s for s in range(t + 1) if mine and segments[b, s] in allowed]

    return visible


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few tokens, so that small rows have several, the last of them incomplete."""
    monkeypatch.setattr(flash, "MOST", 4)
    monkeypatch.setattr(splash, "BLOCK", splash.LANES)


@pytest.mark.parametrize("name", ["xla", "chunked"])
@pytest.mark.parametrize("parents", [None, PARENTS], ids=["segments", "parents"])
def test_packed_rows(name, parents, small_blocks):
    segments = several(SEGMENTS, 2)
    above = None if parents is None else several(parents, 2)
    q, k, v, given = drawn(2, 21, 21, 4, 2)
    call = lambda q, k, v: attention.packed(q, k, v, segments, above, implementation=name)
    check(call, q, k, v, given, in_rows(segments, above))


@pytest.mark.parametrize("parents", [False, True])
def test_splash_over_several_blocks(parents, small_blocks):
    """The kernel's blocks have 128 tokens: here two, the second of them incomplete."""
    segments = np.repeat(several(SEGMENTS, 1), 7, 1)
    above = np.repeat(several(PARENTS, 1), 7, 1) if parents else None
    q, k, v, given = drawn(1, 147, 147, 2, 1)
    call = lambda q, k, v: attention.packed(q, k, v, segments, above, implementation="splash")
    check(call, q, k, v, given, in_rows(segments, above))


@pytest.mark.parametrize("name", ["xla", "chunked"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_cached(name, tokens, small_blocks):
    offset = np.array([0, 3, 13], np.int32)
    q, k, v, given = drawn(3, tokens, 19, 4, 2)
    call = lambda q, k, v: attention.cached(q, k, v, offset, implementation=name)
    check(call, q, k, v, given, lambda b, t: list(range(offset[b] + t + 1)))


@pytest.mark.parametrize("name", HERE)
def test_vision(name, small_blocks):
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2, [0] * 3 + [1] * 8], np.int32)
    q, k, v, given = drawn(2, 11, 11, 2, 2, 6)
    call = lambda q, k, v: attention.vision(q, k, v, segments, implementation=name)
    same = lambda b, t: [
        s for s in range(11) if segments[b, t] and segments[b, s] == segments[b, t]
    ]
    check(call, q, k, v, given, same)


def test_windows():
    segments = np.array([[1] * 4 + [1, 1, 0, 0], [2] * 3 + [0] + [1] * 4], np.int32)
    q, k, v, given = drawn(2, 8, 8, 2, 2)
    within = lambda b, t: [
        s for s in range(t // 4 * 4, t // 4 * 4 + 4) if segments[b, t] and segments[b, s]
    ]
    check(lambda q, k, v: attention.windows(q, k, v, segments, 4), q, k, v, given, within)


@pytest.mark.parametrize(
    "sizes, rows, heads, groups",
    [
        ((2, 2, 2), 4, 4, 2),  # each device has its own key-value heads
        ((2, 1, 4), 2, 8, 2),  # two devices read one
        ((1, 1, 2), 1, 6, 3),  # they don't divide: repeated
        ((4, 1, 2), 2, 4, 2),  # rows don't divide: whole on each
    ],
    ids=str,
)
def test_on_a_mesh(sizes, rows, heads, groups, small_blocks):
    on_a_mesh("chunked", sizes, rows, heads, groups)


@pytest.mark.parametrize("parents", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_splash_on_a_mesh(parents, small_blocks):
    on_a_mesh("splash", (2, 1, 4), 2, 8, 2, parents)


def on_a_mesh(name, sizes, rows, heads, groups, parents=True):
    segments, above = several(SEGMENTS, rows), several(PARENTS, rows) if parents else None
    q, k, v, given = drawn(rows, 21, 21, heads, groups)
    options = {"implementation": name, "mesh": make_mesh(*sizes)}
    call = lambda q, k, v: attention.packed(q, k, v, segments, above, **options)
    check(call, q, k, v, given, in_rows(segments, above))


def test_a_cache_on_a_mesh(small_blocks):
    """Devices read as many blocks as their own rows have filled."""
    offset = np.array([0, 3, 13, 7], np.int32)
    q, k, v, given = drawn(4, 6, 19, 4, 2)
    options = {"implementation": "chunked", "mesh": make_mesh(2, 2, 2)}
    call = lambda q, k, v: attention.cached(q, k, v, offset, **options)
    check(call, q, k, v, given, lambda b, t: list(range(offset[b] + t + 1)))


def test_chunked_keeps_no_scores():
    """Forward and backward, all that a row of many tokens needs is less than one head's scores."""
    tokens = 2048
    shape = lambda heads: jax.ShapeDtypeStruct((1, tokens, heads, 8), jnp.float32)
    segments = jnp.ones((1, tokens), jnp.int32)
    call = lambda q, k, v: attention.packed(q, k, v, segments, implementation="chunked").sum()
    back = jax.jit(jax.grad(call, (0, 1, 2)))
    held = back.lower(shape(4), shape(2), shape(2)).compile().memory_analysis()
    assert held.temp_size_in_bytes < tokens**2 * 4


def test_far_segments_are_not_read():
    """A block of queries reads from the first block of keys that it sees to the last."""
    segments = jnp.array([[1] * 8 + [2] * 8 + [0] * 4, [1] * 4 + [2] * 4 + [3] * 8 + [0] * 4])
    q = k = jnp.zeros((2, 20, 1, 8))
    last = jnp.broadcast_to(jnp.arange(20), (2, 20))

    @jax.jit
    def plan(ids, q=q):
        return flash._plan(ids, q, k, (4, 4))

    _, low, high = plan(flash.Ids(last, segments))
    assert low.tolist() == [0, 0, 2, 2, 0] and high.tolist() == [1, 2, 3, 4, 0]
    _, low, high = plan(flash.Ids(last, segments, jnp.where(segments == 3, 1, 0)))
    assert low.tolist() == [0, 0, 0, 0, 0] and high.tolist() == [1, 2, 3, 4, 0]
    _, low, high = plan(flash.Ids(jnp.array([[2, 3, 4, 5, 6], [0, 1, 2, 3, 4]])), q[:, :5])
    assert low.tolist() == [0, 0] and high.tolist() == [2, 2]


class Chips:
    """Devices of another platform, as a mesh has them."""

    def __init__(self, platform, tensor=1):
        self.devices = np.array([type("Chip", (), {"platform": platform})()])
        self.shape = {"data": 1, "fsdp": 1, "tensor": tensor}


def test_what_is_chosen():
    small, large = (16, 4, 320, 320), (1, 16, 6144, 6144)
    chosen = lambda name, sizes, mesh=None, **kind: attention.Kernel(name, mesh).chosen(
        *sizes, **kind
    )
    assert chosen("auto", small) == chosen("auto", small, Chips("tpu")) == "xla"
    assert chosen("auto", large) == chosen("auto", large, Chips("gpu")) == "chunked"
    assert chosen("auto", large, Chips("tpu")) == "splash"
    assert chosen("auto", large, Chips("tpu"), cache=True) == "chunked"
    assert chosen("auto", large, Chips("tpu"), parents=True) == "splash"
    assert chosen("auto", (1, 16, 16384, 16384), Chips("tpu"), parents=True) == "chunked"
    assert chosen("auto", (8, 16, 1024, 1024), Chips("tpu", tensor=2)) == "xla"
    assert chosen("splash", large, cache=True) == "chunked"
    assert chosen("cudnn", small, cache=True) == "xla"
    assert all(chosen(name, small) == name for name in attention.NAMES if name != "auto")
    with pytest.raises(ValueError, match="auto, xla"):
        attention.Kernel("flash")
    q, k, v, _ = drawn(1, 4, 4, 2, 1)
    with pytest.raises(ValueError, match="bfloat16"):
        attention.packed(q, k, v, np.ones((1, 4), np.int32), implementation="cudnn")


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu, the extra topology")
@pytest.mark.parametrize("parents", [False, True])
@pytest.mark.parametrize("width", [80, 128])
def test_splash_compiles_for_a_tpu(width, parents):
    """Forward and backward on a mesh of chips that aren't here, chosen by itself: the kernels are
    in the program."""
    mesh = Mesh(
        np.array(topology.devices_of("v5e:2x2")).reshape(2, 1, 2),
        AXES,
        axis_types=(AxisType.Auto,) * 3,
    )
    rows, tokens, heads, groups = 2, 8209, 4, 2
    kernel = attention.Kernel("auto", mesh)
    assert kernel.chosen(rows, heads, tokens, tokens) == "splash"

    def loss(q, k, v, segments, parents):
        out = attention.packed(q, k, v, segments, parents, mesh=mesh)
        return out.astype(jnp.float32).sum()

    def shape(dtype, *sizes):
        spec = P(("data", "fsdp"), None, "tensor") if len(sizes) == 4 else P(("data", "fsdp"))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    ids = shape(jnp.int32, rows, tokens)
    held = [shape(jnp.bfloat16, rows, tokens, n, width) for n in (heads, groups, groups)]
    back = jax.jit(jax.grad(loss, (0, 1, 2)))
    compiled = back.lower(*held, ids, ids if parents else None).compile()
    text = compiled.as_text()
    for phase in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{phase}" in text
    # With parents, a row's mask as an array in two layouts.
    pairs = compiled.memory_analysis().temp_size_in_bytes / tokens**2
    assert pairs < (1.2 * attention.MASK_BYTES_A_PAIR if parents else 4)
