"""Episodes in packed rows: what the model sees, and where each of its tokens comes from.

Per-token quantities live in padded arrays [B, S], one episode a row, where the pure functions of
`vrrl_jax.rl` work on them under jit with one fixed shape; `Packing` moves them to and from the
packed rows.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from vrrl_jax import layout
from vrrl_jax.models.policy import Policy
from vrrl_jax.parallel.mesh import put_rows, row_parts
from vrrl_jax.rl.update import Microbatch
from vrrl_jax.types import Episode, Picture, Rows, Sequence


@dataclasses.dataclass(frozen=True)
class Packing:
    """Rows of microbatches and where each of their tokens comes from.

    Attributes:
      rows: one record a microbatch, on the device. Their number of rows may differ.
      episode: int32 [R, T] each, row of the padded arrays, -1 in padding.
      offset: int32 [R, T] each, token within the episode.
      occupancy: share of token slots in use.
      spared: share of the episodes' tokens that stand in no row, shared ones standing once.
    """

    rows: list[Rows]
    episode: list[np.ndarray]
    offset: list[np.ndarray]
    occupancy: float
    spared: float


def pack(
    policy: Policy,
    episodes: list[Episode],
    indices: list[int],
    shape: layout.PackShape,
    share: bool = False,
) -> Packing:
    """Packs the episodes `indices` into as few microbatches as first fit finds.

    All of them have the shape asked for, but that a half or a quarter of its rows is taken where
    it holds what is left: padding is computed like anything else.

    Args:
      share: episodes of one question share the tokens that they begin with, see
        `shared_beginnings`.

    Raises:
      ValueError: an episode is longer than a row, or has more pictures than a row has slots.
    """
    place = policy.config.layout
    sequences = [
        Sequence(
            episodes[i].tokens,
            episodes[i].pictures,
            {
                "episode": np.full(episodes[i].tokens.size, i + 1, np.int32),
                "offset": np.arange(episodes[i].tokens.size, dtype=np.int32),
            },
        )
        for i in indices
    ]
    families = shared_beginnings([episodes[i] for i in indices], place) if share else None
    rows, members, offsets = [], [], []
    left = list(range(len(sequences)))
    while left:
        chosen = [sequences[i] for i in left]
        related = _among(families, left)
        assignment = layout.assign_rows(chosen, place, shape, related)
        if max(assignment) < 0:
            size = max(s.tokens.size for s in chosen)
            raise ValueError(f"an episode of {size} tokens doesn't fit a row of {shape}")
        narrow = _narrowed(shape, max(assignment) + 1, row_parts(policy.mesh))
        packed, fields = layout.pack(chosen, place, narrow, assignment, related)
        rows.append(place_rows(policy, packed))
        members.append(fields["episode"] - 1)
        offsets.append(fields["offset"])
        left = [i for i, r in zip(left, assignment, strict=True) if r < 0]
    used = sum(int((m >= 0).sum()) for m in members)
    return Packing(
        rows,
        members,
        offsets,
        occupancy=used / sum(m.size for m in members),
        spared=1 - used / sum(s.tokens.size for s in sequences),
    )


def _narrowed(shape: layout.PackShape, used: int, parts: int) -> layout.PackShape:
    """The shape with a quarter or a half of its rows, where that holds `used` of them and splits
    over `parts`."""
    for divisor in (4, 2):
        rows = shape.rows // divisor
        if rows >= used and shape.rows % divisor == 0 and rows % parts == 0:
            return dataclasses.replace(shape, rows=rows)
    return shape


def shared_beginnings(episodes: list[Episode], place: layout.PictureLayout) -> list[layout.Family]:
    """Families of the episodes of each question: tokens and pictures up to where two of them part
    or the first token is trained. Every sample of a question is given the same opening turn: its
    states need computing once, and so do the pictures' features.

    What the policy doesn't see of an episode differs from sample to sample; those with `hidden`
    tokens share nothing.
    """
    questions: dict[int, list[int]] = {}
    for i, episode in enumerate(episodes):
        # A negative number is nobody's question: each of those stands alone.
        seen = episode.hidden is None
        questions.setdefault(episode.question if seen else -1 - i, []).append(i)
    return [
        layout.Family(tuple(members), *_beginning([episodes[i] for i in members], place))
        for members in questions.values()
    ]


def _beginning(episodes: list[Episode], place: layout.PictureLayout) -> tuple[int, int]:
    """(tokens, pictures) that episodes begin with alike."""
    if len(episodes) < 2:
        return 0, 0
    first = episodes[0]
    size = min(e.tokens.size for e in episodes) - 1
    for episode in episodes:
        trained = np.flatnonzero(episode.loss_mask[:size])
        size = min(size, trained[0] if trained.size else size)
        parted = np.flatnonzero(episode.tokens[:size] != first.tokens[:size])
        size = min(size, parted[0] if parted.size else size)
    # Where pictures differ, or the cut would go through one, what is shared ends before it.
    shown = np.flatnonzero(first.tokens[:size] == place.image_id)
    at = 0
    for k, picture in enumerate(first.pictures):
        if at == shown.size:
            return int(size), k
        stop = at + layout.token_count(picture.grid, place.merge)
        alike = all(len(e.pictures) > k and _same(e.pictures[k], picture) for e in episodes)
        if stop > shown.size or not alike:
            return int(shown[at]), k
        at = stop
    return int(size), len(first.pictures)


def _same(a: Picture, b: Picture) -> bool:
    return a is b or (a.grid == b.grid and np.array_equal(a.patches, b.patches))


def _among(families: list[layout.Family] | None, chosen: list[int]) -> list[layout.Family] | None:
    """Families with their members named by where they stand among `chosen`."""
    if families is None:
        return None
    at = {i: n for n, i in enumerate(chosen)}
    found = [f._replace(members=tuple(at[i] for i in f.members if i in at)) for f in families]
    return [family for family in found if family.members]


def place_rows(policy: Policy, rows: Rows) -> Rows:
    """Packed rows onto the device or the mesh."""
    if policy.mesh is None:
        return jax.device_put(rows)
    placed = put_rows(policy.mesh, rows._replace(positions=None))
    return placed._replace(positions=put_rows(policy.mesh, rows.positions, axis=1))


def gather(packing: Packing, padded: np.ndarray) -> list[np.ndarray]:
    """Padded [B, S] to packed [R, T] of every microbatch, zero in padding. Shared tokens have the
    values of one of their episodes."""
    return [
        np.where(episode >= 0, padded[episode, offset], 0)
        for episode, offset in zip(packing.episode, packing.offset, strict=True)
    ]


def scatter(packing: Packing, packed: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Packed [R, T] of every microbatch back to padded [B, S], zero where a token stands in
    another episode's place; no such token is trained."""
    out = np.zeros(like.shape, np.float32)
    for episode, offset, values in zip(packing.episode, packing.offset, packed, strict=True):
        valid = episode >= 0
        out[episode[valid], offset[valid]] = values[valid]
    return out


def microbatches(
    policy: Policy, packing: Packing, fields: dict[str, np.ndarray]
) -> list[Microbatch]:
    """Microbatches whose fields are the padded arrays' values."""
    packed = {name: gather(packing, value) for name, value in fields.items()}
    return [
        Microbatch(
            rows,
            put_rows(
                policy.mesh, {name: value[m].astype(np.float32) for name, value in packed.items()}
            ),
        )
        for m, rows in enumerate(packing.rows)
    ]
