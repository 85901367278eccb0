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
from vrrl_jax.parallel.mesh import put_rows
from vrrl_jax.rl.update import Microbatch
from vrrl_jax.types import Episode, Rows, Sequence


@dataclasses.dataclass(frozen=True)
class Packing:
    """Rows of microbatches and where each of their tokens comes from.

    Attributes:
      rows: one record a microbatch, on the device.
      episode: int32 [M, R, T], row of the padded arrays, -1 in padding.
      offset: int32 [M, R, T], token within the episode.
      occupancy: share of token slots in use.
    """

    rows: list[Rows]
    episode: np.ndarray
    offset: np.ndarray
    occupancy: float


def pack(
    policy: Policy, episodes: list[Episode], indices: list[int], shape: layout.PackShape
) -> Packing:
    """Packs the episodes `indices` into as few microbatches of one shape as first fit finds.

    Raises:
      ValueError: an episode is longer than a row, or has more pictures than a row has slots.
    """
    place = policy.config.layout
    left = [
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
    rows, members, offsets, used = [], [], [], 0.0
    while left:
        assignment = layout.assign_rows(left, place, shape)
        if max(assignment) < 0:
            size = max(s.tokens.size for s in left)
            raise ValueError(f"an episode of {size} tokens doesn't fit a row of {shape}")
        packed, fields = layout.pack(left, place, shape, assignment)
        used += float((packed.segments > 0).mean())
        rows.append(place_rows(policy, packed))
        members.append(fields["episode"] - 1)
        offsets.append(fields["offset"])
        left = [s for s, r in zip(left, assignment, strict=True) if r < 0]
    return Packing(rows, np.stack(members), np.stack(offsets), used / len(rows))


def place_rows(policy: Policy, rows: Rows) -> Rows:
    """Packed rows onto the device or the mesh."""
    if policy.mesh is None:
        return jax.device_put(rows)
    placed = put_rows(policy.mesh, rows._replace(positions=None))
    return placed._replace(positions=put_rows(policy.mesh, rows.positions, axis=1))


def gather(packing: Packing, padded: np.ndarray) -> np.ndarray:
    """Padded [B, S] to packed [M, R, T], zero in padding."""
    return np.where(packing.episode >= 0, padded[packing.episode, packing.offset], 0)


def scatter(packing: Packing, packed: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Packed [R, T] of every microbatch back to padded [B, S]."""
    out = np.zeros(like.shape, np.float32)
    valid = packing.episode >= 0
    out[packing.episode[valid], packing.offset[valid]] = np.stack(packed)[valid]
    return out


def microbatches(
    policy: Policy, packing: Packing, fields: dict[str, np.ndarray]
) -> list[Microbatch]:
    """Microbatches whose fields are the padded arrays' values."""
    packed = {name: gather(packing, value).astype(np.float32) for name, value in fields.items()}
    return [
        Microbatch(rows, put_rows(policy.mesh, {name: value[m] for name, value in packed.items()}))
        for m, rows in enumerate(packing.rows)
    ]
