"""The shape of a Qwen2.5-VL policy, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vrrl_jax.layout import PictureLayout


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder: widths and counts by their Hugging Face meaning."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    tied: bool


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `window` is in merged units; `full_blocks` attend to the whole frame."""

    layers: int
    width: int
    heads: int
    intermediate: int
    patch: int
    merge: int
    temporal: int
    channels: int
    window: int
    full_blocks: tuple[int, ...]
    out_width: int
    rope_theta: float

    @property
    def windowed(self) -> bool:
        """Whether any block attends within windows."""
        return len(set(self.full_blocks) & set(range(self.layers))) < self.layers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Qwen2.5-VL model.

    Attributes:
      text: the decoder.
      vision: the tower.
      image_token_id, video_token_id: placeholders.
      vision_start_token_id, vision_end_token_id: the marks around them.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @property
    def layout(self) -> PictureLayout:
        """What the host needs to order patches and count tokens."""
        window = self.vision.window if self.vision.windowed else None
        return PictureLayout(self.vision.merge, window, self.image_token_id)


def from_hf(raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads both the flat layout (transformers 4) and the nested one (transformers 5).

    Raises:
      ValueError: another architecture, an option that this port doesn't compute, or a field that
        is missing; the message names it.
    """
    try:
        return _from_hf(raw, where)
    except KeyError as field:
        raise ValueError(f"{where}: no field {field}") from None


def _from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    if raw.get("model_type") != "qwen2_5_vl":
        raise ValueError(
            f"{where}: model_type is {raw.get('model_type')!r}; supported: 'qwen2_5_vl'"
        )
    if raw.get("quantization_config"):
        raise ValueError(f"{where}: quantised checkpoints are not supported; load the bf16 one")
    text, vision = raw.get("text_config") or raw, raw["vision_config"]
    if text.get("use_sliding_window"):
        raise ValueError(f"{where}: use_sliding_window is on; sliding windows are not supported")
    for section, activation in (("text_config", text), ("vision_config", vision)):
        if activation.get("hidden_act", "silu") != "silu":
            raise ValueError(f"{where}: {section}.hidden_act must be 'silu'")

    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{where}: rope_type {kind!r} is not supported")
    theta = rope.get("rope_theta", text.get("rope_theta", 1e6))
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    section = tuple(rope.get("mrope_section") or ())
    if not section or len(section) % 3 or 2 * sum(section) != head_dim:
        raise ValueError(
            f"{where}: mrope_section {section} must have sum head_dim/2={head_dim // 2}"
        )
    tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    unit = vision["spatial_merge_size"] * vision["patch_size"]
    return ModelConfig(
        text=TextConfig(
            vocab_size=text["vocab_size"],
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            intermediate=text["intermediate_size"],
            eps=text.get("rms_norm_eps", 1e-5),
            rope_theta=float(theta),
            mrope_section=section,
            tied=bool(tied),
        ),
        vision=VisionConfig(
            layers=vision["depth"],
            width=vision["hidden_size"],
            heads=vision["num_heads"],
            intermediate=vision["intermediate_size"],
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            temporal=vision.get("temporal_patch_size", 2),
            channels=vision.get("in_channels", vision.get("in_chans", 3)),
            window=vision["window_size"] // unit,
            full_blocks=tuple(vision["fullatt_block_indexes"]),
            out_width=vision["out_hidden_size"],
            rope_theta=float((vision.get("rope_parameters") or {}).get("rope_theta", 1e4)),
        ),
        image_token_id=raw.get("image_token_id", 151655),
        video_token_id=raw.get("video_token_id", 151656),
        vision_start_token_id=raw.get("vision_start_token_id", 151652),
        vision_end_token_id=raw.get("vision_end_token_id", 151653),
    )
