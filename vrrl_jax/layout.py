"""Where tokens and patches go: M-RoPE positions, window order, packing. numpy only.

Everything here runs on the host, once per picture size or once per batch; the device receives
finished index arrays. Source of the formulae: Qwen2.5-VL (arXiv 2502.13923), section 2.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from vrrl_jax.types import Picture, Pictures, Rows, Sequence, Shared


@dataclasses.dataclass(frozen=True)
class PictureLayout:
    """How a vision tower wants its patches.

    Attributes:
      merge: side of a merged unit in patches; one unit becomes one token.
      window: side of an attention window in merged units, or None where no block uses windows.
      image_id: token id of the picture placeholder.
    """

    merge: int
    window: int | None
    image_id: int

    @property
    def block(self) -> int:
        """Patches of an aligned block: a padded window, or one merged unit without windows."""
        side = 1 if self.window is None else self.window
        return (side * self.merge) ** 2


@dataclasses.dataclass(frozen=True)
class PackShape:
    """The static shape of packed rows: `rows` R, `tokens` T, `slots` K, `patches` P, `features` F.

    F says how wide a patch is where no row has a picture.
    """

    rows: int
    tokens: int
    slots: int
    patches: int
    features: int = 1


def token_count(grid: tuple[int, int, int], merge: int) -> int:
    """Tokens that a picture of `grid` (frames, rows, columns in patches) takes."""
    frames, rows, columns = grid
    return frames * rows * columns // merge**2


@functools.lru_cache(maxsize=4096)
def patch_order(
    grid: tuple[int, int, int], layout: PictureLayout
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tower's order of a picture's patches, windows padded to whole blocks.

    Returns:
      order: int32 [slots], index into the picture's patches, -1 in padding.
      coords: int32 [slots, 2], row and column of the patch in the picture.
      frames: int32 [slots], frame counted from 1, 0 in padding.
      units: int32 [tokens], for each token of the picture the merged unit (slot // merge**2).
    """
    t, h, w = grid
    m = layout.merge
    uh, uw = h // m, w // m
    units = np.arange(t * uh * uw, dtype=np.int32).reshape(t, uh, uw)
    if layout.window is None:
        unit_slots = units.ravel()
    else:
        side, blocks = layout.window, []
        for frame in units:
            for i in range(0, uh, side):
                for j in range(0, uw, side):
                    block = np.full(side * side, -1, np.int32)
                    inside = frame[i : i + side, j : j + side].ravel()
                    block[: inside.size] = inside
                    blocks.append(block)
        unit_slots = np.concatenate(blocks)

    patch = unit_slots[:, None] * m * m + np.arange(m * m, dtype=np.int32)
    order = np.where(unit_slots[:, None] >= 0, patch, -1).reshape(-1).astype(np.int32)
    # Merge-block order: block row, block column, then m x m inside.
    rows, columns = np.divmod(np.arange(h * w), w)
    to_blocks = (uh, m, uw, m)
    rows = np.tile(rows.reshape(to_blocks).transpose(0, 2, 1, 3).ravel(), t)
    columns = np.tile(columns.reshape(to_blocks).transpose(0, 2, 1, 3).ravel(), t)
    valid = order >= 0
    coords = np.where(valid[:, None], np.stack([rows[order], columns[order]], -1), 0)
    frames = np.where(valid, order // (h * w) + 1, 0)
    inverse = np.empty(units.size, np.int32)
    inverse[unit_slots[unit_slots >= 0]] = np.flatnonzero(unit_slots >= 0)
    return order, coords.astype(np.int32), frames.astype(np.int32), inverse


def positions(
    tokens: np.ndarray, grids: Iterable[tuple[int, int, int]], layout: PictureLayout, start: int = 0
) -> tuple[np.ndarray, int]:
    """M-RoPE position ids of a run of tokens that follows `start` positions.

    Text advances all three axes by one; a picture of h' x w' merged units occupies one time
    step a frame and advances by max(h', w').

    Args:
      tokens: int [t].
      grids: of the pictures whose placeholder runs stand in `tokens`, in order.
      layout: names the placeholder and the merge size.
      start: the position of the first token.

    Returns:
      (int32 [3, t], the position of the token after the last).

    Raises:
      ValueError: placeholder runs and grids don't match.
    """
    tokens = np.asarray(tokens)
    out = np.empty((3, tokens.size), np.int32)
    is_picture = tokens == layout.image_id
    remaining = list(grids)
    at, current = 0, start
    edges = np.flatnonzero(np.diff(is_picture.astype(np.int8))) + 1
    for end in [*edges.tolist(), tokens.size]:
        n = end - at
        if n == 0:
            continue
        if not is_picture[at]:
            out[:, at:end] = np.arange(current, current + n, dtype=np.int32)
            current += n
        else:
            if not remaining:
                raise ValueError(f"{n} picture tokens at {at} but no picture is left for them")
            frames, rows, columns = remaining.pop(0)
            rows, columns = rows // layout.merge, columns // layout.merge
            if frames * rows * columns != n:
                raise ValueError(
                    f"a run of {n} picture tokens at {at} for a picture of "
                    f"{frames} x {rows} x {columns} = {frames * rows * columns} tokens"
                )
            index = np.indices((frames, rows, columns), dtype=np.int32).reshape(3, -1)
            out[:, at:end] = index + current
            current += max(rows, columns)
        at = end
    if remaining:
        raise ValueError(f"{len(remaining)} pictures have no placeholder tokens")
    return out, current


def slot_patches(grid: tuple[int, int, int], layout: PictureLayout) -> int:
    """Patch slots that a picture takes in the tower, window padding included."""
    return patch_order(tuple(grid), layout)[0].size


def bucket(n: int, smallest: int = 2) -> int:
    """The smallest of `smallest` times 1, 1.5, 2, 3, 4, 6, 8, ... that holds n.

    Steps of at most a half keep programs few and padding under a third.
    """
    power = smallest
    while True:
        for size in (power, power * 3 // 2):
            if size >= n:
                return size
        power *= 2


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def pack_pictures(
    rows: Seq[Seq[Picture]], layout: PictureLayout, slots: int, patches: int, features: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[np.ndarray]]]:
    """Pictures of each row into K slots of P patches, first fit; small ones share a slot.

    Args:
      rows: the pictures of each row.
      layout: the tower's layout.
      slots, patches: K and P.
      features: of a patch, where there is no picture to tell.

    Returns:
      patches [R, K, P, F], coords [R, K, P, 4], segments [R, K, P] as in `Pictures`, and for
      every picture the merged unit of its row that each of its tokens shows.

    Raises:
      ValueError: a row's pictures don't fit, or slots are no whole number of blocks.
    """
    if patches % layout.block:
        raise ValueError(
            f"slots of {patches} patches: this vision tower needs a multiple of {layout.block}, "
            f"such as {round_up(patches, layout.block)}"
        )
    first = next((p for row in rows for p in row), None)
    features = features if first is None else first.patches.shape[-1]
    dtype = np.uint8 if first is None else first.patches.dtype
    data = np.zeros((len(rows), slots, patches, features), dtype)
    coords = np.zeros((len(rows), slots, patches, 4), np.int32)
    segments = np.zeros((len(rows), slots, patches), np.int32)
    unit = layout.merge**2
    sources: list[list[np.ndarray]] = []
    for r, pictures in enumerate(rows):
        filled = [0] * slots
        used = [0] * slots  # segments already given out in a slot
        sources.append([])
        for picture in pictures:
            order, places, frames, inverse = patch_order(tuple(picture.grid), layout)
            n = order.size
            k = next((k for k in range(slots) if filled[k] + n <= patches), None)
            if k is None:
                raise ValueError(
                    f"row {r}: a picture of {n} patches doesn't fit into {slots} slots of "
                    f"{patches}; filled so far: {filled}"
                )
            at = slice(filled[k], filled[k] + n)
            if layout.window is None:
                data[r, k, at] = picture.patches
            else:
                data[r, k, at] = np.where((order >= 0)[:, None], picture.patches[order], 0)
            coords[r, k, at, :2], coords[r, k, at, 2:] = places, picture.grid[1:]
            segments[r, k, at] = np.where(frames > 0, frames + used[k], 0)
            sources[r].append(inverse + (k * patches + filled[k]) // unit)
            used[k] += int(frames.max())
            filled[k] += n
    return data, coords, segments, sources


class Family(NamedTuple):
    """Sequences that begin alike: in a row, what they share stands once.

    Attributes:
      members: indices of the sequences.
      tokens: how many first tokens they share, fewer than any of them has.
      pictures: how many first pictures they share; all of their tokens are among those.
    """

    members: tuple[int, ...]
    tokens: int = 0
    pictures: int = 0


def assign_rows(
    sequences: Seq[Sequence],
    layout: PictureLayout,
    shape: PackShape,
    families: Seq[Family] | None = None,
) -> list[int]:
    """First-fit-decreasing assignment of sequences to rows; -1 where one found no room.

    A member of a family goes where the family is, else where the rest of it fits, else where
    there is room for it. By default there are no families.
    """
    tokens_left = [shape.tokens] * shape.rows
    slots_left = [[shape.patches] * shape.slots for _ in range(shape.rows)]
    assignment = [-1] * len(sequences)
    needs = [[slot_patches(p.grid, layout) for p in s.pictures] for s in sequences]
    for family, members in _in_order(sequences, families):
        rest = _room(sequences, family, members)
        home: list[int] = []  # the rows that the family is in
        for i in members:
            size = sequences[i].tokens.size
            own = size - family.tokens
            roomy = [r for r in range(shape.rows) if tokens_left[r] >= rest]
            for r in dict.fromkeys([*home, *roomy, *range(shape.rows)]):
                here = r in home
                if tokens_left[r] < (own if here else size):
                    continue
                left = _fit(slots_left[r], needs[i][family.pictures if here else 0 :])
                if left is None:
                    continue
                tokens_left[r] -= own if here else size
                slots_left[r] = left
                assignment[i] = r
                home += [] if here else [r]
                break
            rest -= own
    return assignment


def _in_order(
    sequences: Seq[Sequence], families: Seq[Family] | None
) -> list[tuple[Family, list[int]]]:
    """Families, the largest first, and their members, the longest first."""
    if families is None:
        families = [Family((i,)) for i in range(len(sequences))]
    longest = lambda members: sorted(members, key=lambda i: -sequences[i].tokens.size)
    pairs = [(family, longest(family.members)) for family in families]
    return sorted(pairs, key=lambda pair: -_room(sequences, *pair))


def _room(sequences: Seq[Sequence], family: Family, members: Seq[int]) -> int:
    """Tokens that members of a family take in a row of their own."""
    return family.tokens + sum(sequences[i].tokens.size - family.tokens for i in members)


def _fit(slots: list[int], needs: Seq[int]) -> list[int] | None:
    """What is left of slots that pictures went into, first fit; None where one didn't fit."""
    slots = list(slots)
    for need in needs:
        k = next((k for k, left in enumerate(slots) if left >= need), None)
        if k is None:
            return None
        slots[k] -= need
    return slots


def pack(
    sequences: Seq[Sequence],
    layout: PictureLayout,
    shape: PackShape,
    assignment: Seq[int] | None = None,
    families: Seq[Family] | None = None,
) -> tuple[Rows, dict[str, np.ndarray]]:
    """Sequences into rows with segment ids, their fields beside them.

    Args:
      sequences: any number; each carries the same field names.
      layout: the tower's layout.
      shape: rows, tokens, slots and patches of the result.
      assignment: the row of each sequence (`assign_rows` by default); -1 leaves it out.
      families: who shares a beginning, each sequence in one of them; None: nobody, and the rows
        have no `shared`. A shared beginning's fields are those of its row's first member.

    Returns:
      (Rows, fields): every field [R, T, ...], zero in padding, plus "sequence" int32 [R, T]: the
      index of the sequence a token belongs to, -1 in padding.

    Raises:
      ValueError: a sequence found no room (with the default assignment) or a row overflows.
    """
    if assignment is None:
        assignment = assign_rows(sequences, layout, shape, families)
        if -1 in assignment:
            lost = [i for i, r in enumerate(assignment) if r < 0]
            raise ValueError(f"{len(lost)} of {len(sequences)} sequences don't fit into {shape}")
    # In the order in which room was found for them: first fit of pictures depends on it.
    rows: list[list[_Piece]] = [[] for _ in range(shape.rows)]
    for family, members in _in_order(sequences, families):
        for i in members:
            if assignment[i] >= 0:
                _place(rows[assignment[i]], sequences[i], i, family)
    pictures = [[p for piece in row for p in piece.pictures(sequences)] for row in rows]
    data, coords, picture_segments, sources = pack_pictures(
        pictures, layout, shape.slots, shape.patches, shape.features
    )
    tokens = np.zeros((shape.rows, shape.tokens), np.int32)
    position = np.zeros((3, shape.rows, shape.tokens), np.int32)
    segments, parents = np.zeros_like(tokens), np.zeros_like(tokens)
    before = np.broadcast_to(
        np.maximum(np.arange(shape.tokens, dtype=np.int32) - 1, 0), tokens.shape
    )
    before = before.copy()
    source = np.full_like(tokens, -1)
    fields = {"sequence": np.full_like(tokens, -1)}
    for name, value in (sequences[0].fields if sequences else {}).items():
        fields[name] = np.zeros((*tokens.shape, *value.shape[1:]), value.dtype)
    for r, row in enumerate(rows):
        runs = iter(sources[r])
        for segment, piece in enumerate(row, 1):
            sequence, start, stop = sequences[piece.sequence], piece.start, piece.stop
            here = slice(piece.at, piece.at + stop - start)
            if here.stop > shape.tokens:
                raise ValueError(f"row {r} needs {here.stop} tokens, the shape has {shape.tokens}")
            tokens[r, here] = sequence.tokens[start:stop]
            grids = [p.grid for p in sequence.pictures]
            position[:, r, here] = positions(sequence.tokens, grids, layout)[0][:, start:stop]
            segments[r, here], parents[r, here] = segment, piece.parent
            if piece.parent:
                before[r, here.start] = piece.after
            fields["sequence"][r, here] = piece.sequence
            shown = piece.at + np.flatnonzero(tokens[r, here] == layout.image_id)
            if shown.size:
                source[r, shown] = np.concatenate([next(runs) for _ in piece.pictures(sequences)])
            for name, value in sequence.fields.items():
                fields[name][r, here] = value[start:stop]
    packed = Pictures(data, coords, picture_segments, source)
    shared = None if families is None else Shared(parents, before)
    return Rows(tokens, position, segments, packed, shared), fields


class _Piece(NamedTuple):
    """Tokens `start` to `stop` of a sequence, from `at` in its row on, and of its pictures those
    from `first` to `last`. `parent` is the segment that it continues, whose last token stands at
    `after`; 0 for none."""

    sequence: int
    at: int
    start: int
    stop: int
    first: int
    last: int
    parent: int = 0
    after: int = 0

    def pictures(self, sequences: Seq[Sequence]) -> tuple[Picture, ...]:
        return sequences[self.sequence].pictures[self.first : self.last]


def _place(row: list[_Piece], sequence: Sequence, i: int, family: Family) -> None:
    """Adds a sequence to the pieces of a row, all of it or what follows a shared beginning."""
    size, shown = sequence.tokens.size, len(sequence.pictures)
    at = row[-1].at + row[-1].stop - row[-1].start if row else 0
    if not family.tokens:
        row.append(_Piece(i, at, 0, size, 0, shown))
        return
    known = set(family.members)
    parent = next((s for s, p in enumerate(row, 1) if p.sequence in known), 0)
    if not parent:
        row.append(_Piece(i, at, 0, family.tokens, 0, family.pictures))
        parent, at = len(row), at + family.tokens
    after = row[parent - 1].at + family.tokens - 1
    row.append(_Piece(i, at, family.tokens, size, family.pictures, shown, parent, after))
