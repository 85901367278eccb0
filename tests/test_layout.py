"""Positions, window order and packing against loops written from their definitions."""

import pathlib

import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import layout
from vrrl_jax.layout import PackShape, PictureLayout
from vrrl_jax.types import Picture, Sequence

TINY = pathlib.Path(__file__).parent / "models" / "goldens" / "qwen2_5_vl_tiny"
IMAGE, START, END = 92, 94, 95
WINDOWS = PictureLayout(merge=2, window=2, image_id=IMAGE)
WHOLE = PictureLayout(merge=2, window=None, image_id=IMAGE)


# --- positions -----------------------------------------------------------------------------------


def naive_positions(parts, merge):
    """Token by token: `parts` are text lengths or grids."""
    out, current = [], 0
    for part in parts:
        if isinstance(part, int):
            for _ in range(part):
                out.append((current, current, current))
                current += 1
            continue
        frames, rows, columns = part[0], part[1] // merge, part[2] // merge
        for frame in range(frames):
            for row in range(rows):
                for column in range(columns):
                    out.append((current + frame, current + row, current + column))
        current += max(rows, columns)
    return np.array(out).T, current


def tokens_of(parts, place, rng):
    tokens = []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(3, 90, part).tolist()
        else:
            tokens += [place.image_id] * layout.token_count(part, place.merge)
    return np.array(tokens, np.int32)


@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        [5],
        [1, (1, 2, 3), 4],
        [(1, 4, 1)],
        [(1, 1, 1), 1, (1, 5, 2), 1, (1, 2, 5)],
        [3, (4, 2, 2), 2],
        [3, (1, 1, 7)],
    ],
    ids=str,
)
def test_positions_equal_a_loop(shape, merge):
    parts = [p if isinstance(p, int) else (p[0], merge * p[1], merge * p[2]) for p in shape]
    place = PictureLayout(merge, None, IMAGE)
    tokens = tokens_of(parts, place, np.random.default_rng(0))
    grids = [part for part in parts if not isinstance(part, int)]
    wanted, after = naive_positions(parts, merge)
    ours, next_position = layout.positions(tokens, grids, place)
    np.testing.assert_array_equal(ours, wanted)
    assert (ours.dtype, next_position) == (np.int32, after)
    # A continuation is the same, shifted.
    moved, moved_after = layout.positions(tokens, grids, place, start=17)
    np.testing.assert_array_equal(moved, wanted + 17)
    assert moved_after == after + 17


def test_positions_of_turns_join_up():
    """Positions of a chat are those of its turns one after another: what an appended turn needs."""
    rng = np.random.default_rng(1)
    turns = [[3, (1, 4, 6), 2], [4], [1, (1, 2, 2), 1, (1, 6, 2), 3]]
    pieces, at = [], 0
    for turn in turns:
        grids = [part for part in turn if not isinstance(part, int)]
        piece, at = layout.positions(tokens_of(turn, WHOLE, rng), grids, WHOLE, at)
        pieces.append(piece)
    whole, after = naive_positions([part for turn in turns for part in turn], 2)
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole)
    assert at == after


def test_no_tokens_take_no_positions():
    ours, after = layout.positions(np.zeros(0, np.int32), [], WHOLE, start=4)
    assert ours.shape == (3, 0)
    assert after == 4


@pytest.mark.parametrize(
    ("tokens", "grids", "words"),
    [
        ([5, IMAGE, 6], [], "no picture is left"),
        ([5, 6], [(1, 2, 2)], "1 pictures have no placeholder"),
        ([5, IMAGE, IMAGE], [(1, 2, 2)], "run of 2 picture tokens at 1"),
        # Two pictures need a token between them.
        ([IMAGE, IMAGE], [(1, 2, 2), (1, 2, 2)], "run of 2"),
    ],
)
def test_runs_and_grids_must_match(tokens, grids, words):
    with pytest.raises(ValueError, match=words):
        layout.positions(np.array(tokens), grids, WHOLE)


# --- window order --------------------------------------------------------------------------------


def merge_block_coords(grid, merge):
    """(frame, row, column) of each patch in a processor's order, by nested loops."""
    frames, rows, columns = grid
    return [
        (frame, row * merge + i, column * merge + j)
        for frame in range(frames)
        for row in range(rows // merge)
        for column in range(columns // merge)
        for i in range(merge)
        for j in range(merge)
    ]


GRIDS = [(1, 2, 2), (1, 4, 4), (1, 6, 10), (1, 10, 6), (1, 2, 14), (3, 6, 6), (2, 4, 10)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
def test_windows_equal_plain_slicing(grid, window):
    place = PictureLayout(2, window, IMAGE)
    order, coords, frames, units = layout.patch_order(grid, place)
    where = merge_block_coords(grid, 2)
    t, h, w = grid[0], grid[1] // 2, grid[2] // 2
    index = np.arange(t * h * w).reshape(t, h, w)
    slices = [
        index[frame, i : i + window, j : j + window].ravel()
        for frame in range(t)
        for i in range(0, h, window)
        for j in range(0, w, window)
    ]
    blocks = order.reshape(len(slices), place.block)
    for block, wanted in zip(blocks, slices, strict=True):
        held = block[block >= 0]
        np.testing.assert_array_equal(held, (wanted[:, None] * 4 + np.arange(4)).ravel())
        # Padding comes last, so a merged unit is never torn.
        assert (block[: held.size] >= 0).all()
    for slot, patch in enumerate(order):
        if patch < 0:
            assert frames[slot] == 0
            assert tuple(coords[slot]) == (0, 0)
        else:
            assert (frames[slot] - 1, *coords[slot]) == where[patch]
    # Every token finds its own unit again.
    np.testing.assert_array_equal(
        order.reshape(-1, 4)[units], np.arange(4 * t * h * w).reshape(-1, 4)
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_windows_the_order_is_the_processors(grid):
    order, coords, frames, units = layout.patch_order(grid, WHOLE)
    n = int(np.prod(grid))
    np.testing.assert_array_equal(order, np.arange(n))
    np.testing.assert_array_equal(np.c_[frames - 1, coords], merge_block_coords(grid, 2))
    np.testing.assert_array_equal(units, np.arange(n // 4))
    assert layout.slot_patches(grid, WHOLE) == n


def test_bucket():
    ladder = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    for n in range(129):
        wanted = next(size for size in ladder if size >= n)
        assert layout.bucket(n) == wanted
        assert layout.bucket(8 * n, 16) == 8 * wanted
        assert n < 3 or wanted <= 1.5 * n


# --- packing -------------------------------------------------------------------------------------


def sequence(parts, place, rng, features=96):
    """A random sequence with a field; parts are text lengths or grids (between their marks)."""
    tokens, pictures = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(3, 90, part).tolist()
        else:
            tokens += [START, *[IMAGE] * layout.token_count(part, place.merge), END]
            values = rng.standard_normal((int(np.prod(part)), features)).astype(np.float32)
            pictures.append(Picture(values, part))
    n = len(tokens)
    fields = {"loss_mask": rng.random(n, np.float32), "target_ids": rng.integers(0, 90, (n, 2))}
    return Sequence(np.array(tokens, np.int32), tuple(pictures), fields)


PARTS = [
    [3, (1, 4, 6), 4],
    [6],
    [2, (1, 2, 2), 3, (1, 6, 2), 2],
    [(1, 4, 4), 2],
    [1],
    [5, (1, 2, 4), 1],
]


def sequences(place, seed=0):
    rng = np.random.default_rng(seed)
    return [sequence(parts, place, rng) for parts in PARTS]


def unpack(rows, fields, place, i):
    """Sequence `i` of packed rows, pictures as their patches in the processor's order."""
    here = fields["sequence"] == i
    (r,) = set(np.flatnonzero(here.any(1)).tolist())
    at = np.flatnonzero(here[r])
    assert np.ptp(at) == at.size - 1, "a sequence stands in one piece"
    source = rows.pictures.source[r, at]
    flat = lambda a: a[r].reshape(-1, place.merge**2, *a.shape[3:])
    shown = source[source >= 0]
    return {
        "tokens": rows.tokens[r, at],
        "positions": rows.positions[:, r, at],
        "source": source,
        "patches": flat(rows.pictures.patches)[shown],
        "coords": flat(rows.pictures.coords)[shown],
        "segments": flat(rows.pictures.segments)[shown],
        **{name: value[r, at] for name, value in fields.items() if name != "sequence"},
    }


@pytest.mark.parametrize("place", [WINDOWS, WHOLE], ids=["windows", "whole"])
@pytest.mark.parametrize(
    "shape", [PackShape(2, 40, 3, 48), PackShape(3, 40, 2, 64), PackShape(6, 24, 2, 32)], ids=str
)
def test_what_is_packed_comes_back(place, shape):
    given = sequences(place)
    rows, fields = layout.pack(given, place, shape)
    assert rows.tokens.shape == (shape.rows, shape.tokens)
    assert rows.pictures.patches.shape[:3] == (shape.rows, shape.slots, shape.patches)
    for i, wanted in enumerate(given):
        got = unpack(rows, fields, place, i)
        np.testing.assert_array_equal(got["tokens"], wanted.tokens)
        for name, value in wanted.fields.items():
            np.testing.assert_array_equal(got[name], value)
            assert got[name].dtype == value.dtype
        grids = [p.grid for p in wanted.pictures]
        np.testing.assert_array_equal(
            got["positions"], layout.positions(wanted.tokens, grids, place)[0]
        )
        np.testing.assert_array_equal(got["source"] >= 0, wanted.tokens == IMAGE)
        if grids:
            np.testing.assert_array_equal(
                np.concatenate(got["patches"]), np.concatenate([p.patches for p in wanted.pictures])
            )
            coords = [(*c[1:], *grid[1:]) for grid in grids for c in merge_block_coords(grid, 2)]
            np.testing.assert_array_equal(np.concatenate(got["coords"]), coords)


def test_slots_are_whole_blocks():
    with pytest.raises(ValueError, match="multiple of 16, such as 48"):
        layout.pack_pictures([[]], WINDOWS, 1, 40)


@pytest.mark.parametrize("place", [WINDOWS, WHOLE], ids=["windows", "whole"])
def test_segments_separate_everything(place):
    """Within a row each sequence, within a slot each frame of each picture, has its own number."""
    rng = np.random.default_rng(2)
    given = [sequence(p, place, rng) for p in ([2, (2, 4, 2), 1], [(1, 2, 2), 1, (3, 2, 2)], [4])]
    rows, fields = layout.pack(given, place, PackShape(1, 40, 1, 96))
    real = fields["sequence"][0] >= 0
    np.testing.assert_array_equal(rows.segments[0] > 0, real)
    pairs = set(
        zip(rows.segments[0, real].tolist(), fields["sequence"][0, real].tolist(), strict=False)
    )
    assert len(pairs) == len({s for s, _ in pairs}) == 3

    segments = rows.pictures.segments[0, 0]
    sizes = np.bincount(segments)[1:]
    assert sorted(sizes) == sorted([8, 8, 4, 4, 4, 4])
    padding = segments == 0
    assert not rows.pictures.patches[0, 0][padding].any()
    assert not rows.tokens[0, ~real].any()
    assert (rows.pictures.source[0, ~real] == -1).all()


def test_families_share_what_they_begin_with():
    """Followed back from its last token, each sequence is whole, whoever else uses its tokens."""
    rng = np.random.default_rng(3)
    head = sequence([2, (1, 4, 2), 1], WHOLE, rng)
    tails = [sequence(parts, WHOLE, rng) for parts in ([3], [5, (1, 2, 2), 1], [4], [2])]
    joined = [
        Sequence(
            np.concatenate([head.tokens, tail.tokens]),
            (*head.pictures, *tail.pictures),
            {k: np.concatenate([v, tail.fields[k]]) for k, v in head.fields.items()},
        )
        for tail in tails
    ]
    lone = sequence([4, (1, 2, 4), 2], WHOLE, rng)
    given = [*joined[:2], lone, *joined[2:]]
    families = [layout.Family((0, 1, 3, 4), head.tokens.size, 1), layout.Family((2,))]
    own = [s.tokens.size - head.tokens.size for s in (given[0], given[1], given[3], given[4])]
    # Room for the family in one row; for two of it in the first and the rest elsewhere.
    for tokens in (head.tokens.size + sum(own), head.tokens.size + own[1] + own[2]):
        shape = PackShape(3, tokens, 2, 16)
        rows, fields = layout.pack(given, WHOLE, shape, families=families)
        homes = [
            int(np.flatnonzero((rows.segments > 0).any(1) & (fields["sequence"] == i).any(1))[0])
            for i in range(5)
        ]
        copies = len({homes[i] for i in (0, 1, 3, 4)})
        assert copies == (1 if tokens > 20 else 2)
        assert (rows.segments > 0).sum() == lone.tokens.size + copies * head.tokens.size + sum(own)
        for i, wanted in enumerate(given):
            r = homes[i]
            at = int(np.flatnonzero(fields["sequence"][r] == i)[-1])
            chain = [at]
            for _ in range(wanted.tokens.size - 1):
                chain.append(int(rows.shared.before[r, chain[-1]]))
            chain = chain[::-1]
            np.testing.assert_array_equal(rows.tokens[r, chain], wanted.tokens)
            grids = [p.grid for p in wanted.pictures]
            np.testing.assert_array_equal(
                rows.positions[:, r, chain], layout.positions(wanted.tokens, grids, WHOLE)[0]
            )
            patches = rows.pictures.patches[r].reshape(-1, 4, rows.pictures.patches.shape[-1])
            shown = rows.pictures.source[r, chain]
            np.testing.assert_array_equal(
                np.concatenate(patches[shown[shown >= 0]]),
                np.concatenate([p.patches for p in wanted.pictures]),
            )
            seen = {int(s) for s in rows.segments[r, chain]}
            parents = {int(p) for p in rows.shared.parents[r, chain]} - {0}
            assert len(seen) == (1 if i == 2 else 2) and parents == (
                set() if i == 2 else {min(seen)}
            )


def test_assignment_is_respected_and_may_leave_out():
    given = sequences(WINDOWS)
    rows, fields = layout.pack(given, WINDOWS, PackShape(3, 40, 2, 64), [2, 0, 0, -1, 2, 1])
    where = [set(np.flatnonzero((fields["sequence"] == i).any(1)).tolist()) for i in range(6)]
    assert where == [{2}, {0}, {0}, set(), {2}, {1}]
    assert (rows.segments.max(1) == [2, 1, 2]).all()


def test_first_fit_decreasing_fills_rows_first():
    rng = np.random.default_rng(0)
    given = [sequence([n], WHOLE, rng) for n in (3, 9, 5, 7, 1, 6)]
    assert layout.assign_rows(given, WHOLE, PackShape(3, 12, 1, 4)) == [0, 0, 1, 1, 2, 2]


def test_what_does_not_fit_is_named():
    given = sequences(WINDOWS)
    assert layout.assign_rows(given, WINDOWS, PackShape(1, 20, 1, 48)).count(-1) > 0
    with pytest.raises(ValueError, match=r"4 of 6 sequences don't fit"):
        layout.pack(given, WINDOWS, PackShape(1, 20, 2, 48))
    with pytest.raises(ValueError, match=r"row 0 needs .* tokens, the shape has 20"):
        layout.pack(given, WINDOWS, PackShape(1, 20, 8, 64), [0] * 6)
    with pytest.raises(ValueError, match="row 1: a picture of 32 patches doesn't fit"):
        layout.pack_pictures([[], given[0].pictures], WINDOWS, 2, 16)


def test_no_sequences_make_empty_rows():
    rows, fields = layout.pack([], WINDOWS, PackShape(2, 4, 1, 16))
    assert not rows.segments.any()
    assert (fields["sequence"] == -1).all()


def test_packed_rows_give_the_same_logprobs():
    """Through a model with windows: a sequence doesn't notice what shares its row and slots."""
    policy, params = vr.load_pretrained(TINY)
    place = policy.config.layout
    assert place == WINDOWS
    given = sequences(place)
    alone, alone_fields = layout.pack(given, place, PackShape(6, 24, 2, 32), range(6))
    packed, packed_fields = layout.pack(given, place, PackShape(2, 40, 3, 48))
    assert packed.segments.max() > 2
    one = np.asarray(vr.token_logprobs(policy, params, alone))
    many = np.asarray(vr.token_logprobs(policy, params, packed))
    for i in range(6):
        a, b = one[alone_fields["sequence"] == i][1:], many[packed_fields["sequence"] == i][1:]
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    # The same comparison sees a neighbour that isn't shut out.
    leaky = packed._replace(segments=np.minimum(packed.segments, 1))
    leaked = np.asarray(vr.token_logprobs(policy, params, leaky))
    assert np.abs(leaked - many)[packed_fields["sequence"] >= 0].max() > 0.1
