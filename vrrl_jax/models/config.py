"""The shape of a Qwen2.5-VL or Qwen3-VL policy, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vrrl_jax.layout import PictureLayout

FAMILIES = ("qwen2_5_vl", "qwen3_vl")

# What a config.json may say that changes nothing here: training settings, bookkeeping, and what
# belongs to tokenizers, videos or generation. A field that is neither read below nor named here is
# refused: it may mean something.
IGNORED = frozenset(
    (
        *("architectures", "auto_map", "_name_or_path", "transformers_version", "model_type"),
        *("dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "use_cache"),
        *("initializer_range", "attention_dropout", "max_position_embeddings", "problem_type"),
        *("output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder"),
        *("chunk_size_feed_forward", "id2label", "label2id", "tokens_per_second"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "vision_token_id"),
        *("max_window_layers", "sliding_window"),
        "mrope_interleaved",  # the family decides, as in transformers
    )
)

# What transformers takes where a vision_config leaves a field out, as Qwen2.5-VL-32B's does.
VISION_DEFAULTS = {
    "qwen2_5_vl": {
        "depth": 32,
        "hidden_size": 3584,
        "num_heads": 16,
        "intermediate_size": 3420,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    "qwen3_vl": {
        "depth": 27,
        "hidden_size": 1152,
        "num_heads": 16,
        "intermediate_size": 4304,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": (8, 16, 24),
    },
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder: widths and counts by their Hugging Face meaning.

    Attributes:
      interleaved: whether the M-RoPE axes alternate over the frequencies (Qwen3-VL) or follow one
        another in sections.
      qkv_bias: whether query, key and value projections have biases (Qwen2.5-VL).
      qk_norm: whether queries and keys are RMS-normalised a head (Qwen3-VL).
    """

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
    interleaved: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower.

    Attributes:
      window: side of an attention window in merged units.
      full_blocks: blocks that attend to the whole frame; all of them in Qwen3-VL.
      positions: side of the square table of learned positions; 0 where there is none.
      deepstack: blocks whose output goes to the decoder too, the k-th after its layer k.
    """

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
    positions: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def windowed(self) -> bool:
        """Whether any block attends within windows."""
        return len(set(self.full_blocks) & set(range(self.layers))) < self.layers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Qwen-VL model.

    Attributes:
      text: the decoder.
      vision: the tower.
      image_token_id, video_token_id: placeholders.
      vision_start_token_id, vision_end_token_id: the marks around them.
      family: one of `FAMILIES`.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    family: str = "qwen2_5_vl"

    @property
    def layout(self) -> PictureLayout:
        """What the host needs to order patches and count tokens."""
        window = self.vision.window if self.vision.windowed else None
        return PictureLayout(self.vision.merge, window, self.image_token_id)


class _Section:
    """A JSON object that knows which of its fields were asked for."""

    def __init__(self, fields: dict[str, Any], name: str, defaults: dict[str, Any] | None = None):
        self.fields, self.name, self.read = fields, name, set()
        self.defaults = defaults or {}

    def get(self, field: str, default: Any = None) -> Any:
        self.read.add(field)
        value = self.fields.get(field)
        return default if value is None else value

    def need(self, field: str) -> Any:
        self.read.add(field)
        value = self.fields.get(field, self.defaults.get(field))
        if value is None:
            raise ValueError(f"no field {self.name}{field}")
        return value

    def must_be(self, field: str, *allowed: Any) -> None:
        """Refuses a field that is there and says something else."""
        value = self.get(field, allowed[0])
        if value not in allowed:
            raise ValueError(f"{self.name}{field} is {value!r}; supported: {allowed[0]!r}")

    def strangers(self) -> list[str]:
        known = self.read | IGNORED
        unset = (None, False)  # a flag that is off changes nothing
        return [
            self.name + field
            for field, value in self.fields.items()
            if field not in known and not any(value is u for u in unset)
        ]


def from_hf(raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads both the flat layout (transformers 4) and the nested one (transformers 5).

    Every field is used, in `IGNORED`, or refused.

    Raises:
      ValueError: another architecture, an option that this port doesn't compute, a field that it
        doesn't know, or one that is missing; the message names it.
    """
    try:
        return _from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _from_hf(raw: dict[str, Any]) -> ModelConfig:
    top = _Section(raw, "")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}; supported: {', '.join(FAMILIES)}")
    if top.get("quantization_config"):
        raise ValueError(
            "quantization_config: quantised checkpoints are not supported; load the bf16 one"
        )
    vision = _Section(top.need("vision_config"), "vision_config.", VISION_DEFAULTS[family])
    text = top
    if isinstance(top.get("text_config"), dict):
        text = _Section(raw["text_config"], "text_config.")
        text.must_be("model_type", f"{family}_text", family)
    vision.must_be("model_type", f"{family}_vision", family)
    ids = {
        name: top.get(name, text.get(name, default))
        for name, default in (
            ("image_token_id", 151655),
            ("video_token_id", 151656),
            ("vision_start_token_id", 151652),
            ("vision_end_token_id", 151653),
        )
    }
    # As in transformers: the top level decides; in Qwen2.5-VL either may say yes.
    inner = bool(text.get("tie_word_embeddings", False))
    tied = top.get("tie_word_embeddings", inner) or (inner and family == "qwen2_5_vl")
    vision.get("tie_word_embeddings")  # written by transformers, without a meaning there
    config = ModelConfig(
        text=_text(text, bool(tied), family), vision=_vision(vision, family), family=family, **ids
    )
    sections = [top, vision] if text is top else [top, text, vision]
    if strange := [name for section in sections for name in section.strangers()]:
        raise ValueError(
            f"unknown fields {', '.join(strange)}: this port doesn't know what they change. "
            "Remove them if they mean nothing"
        )
    if config.vision.out_width != config.text.width:
        raise ValueError(
            f"vision_config.out_hidden_size {config.vision.out_width} must equal "
            f"text_config.hidden_size {config.text.width}"
        )
    return config


def _text(text: _Section, tied: bool, family: str) -> TextConfig:
    qwen3 = family == "qwen3_vl"
    text.must_be("hidden_act", "silu")
    text.must_be("use_sliding_window", False)
    text.must_be("attention_bias", False)
    if strange := set(text.get("layer_types", ())) - {"full_attention"}:
        raise ValueError(f"{text.name}layer_types: {', '.join(sorted(strange))} not supported")
    heads, width = text.need("num_attention_heads"), text.need("hidden_size")
    # What a file leaves out has transformers' default; null means as many as query heads.
    absent = "num_key_value_heads" not in text.fields
    kv_heads = text.get("num_key_value_heads", (32 if qwen3 else 8) if absent else heads)
    head_dim = text.get("head_dim", 128 if qwen3 else width // heads)
    if heads % kv_heads:
        raise ValueError(
            f"{text.name}num_attention_heads {heads} is no multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    theta, section, interleaved = _rope(text, head_dim, qwen3)
    return TextConfig(
        vocab_size=text.need("vocab_size"),
        width=width,
        layers=text.need("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=text.need("intermediate_size"),
        eps=text.get("rms_norm_eps", 1e-6 if qwen3 else 1e-5),
        rope_theta=theta,
        mrope_section=section,
        tied=tied,
        interleaved=interleaved,
        qkv_bias=not qwen3,
        qk_norm=qwen3,
    )


def _rope(text: _Section, head_dim: int, qwen3: bool) -> tuple[float, tuple[int, ...], bool]:
    """(theta, sections, whether they interleave) of either layout."""
    old, new = text.get("rope_scaling"), text.get("rope_parameters")
    rope = _Section(new or old or {}, text.name + ("rope_parameters." if new else "rope_scaling."))
    rope.must_be("rope_type", "default", "mrope")
    rope.must_be("type", "default", "mrope")
    fallback = text.get("rope_theta", 5e5 if qwen3 else 1e6)
    theta = float(rope.get("rope_theta", fallback))
    section = tuple(rope.get("mrope_section", (24, 20, 20) if qwen3 else (16, 24, 24)))
    if qwen3 and len(section) != 3:
        raise ValueError(f"{rope.name}mrope_section {list(section)} must have three entries")
    if len(section) % 3 or 2 * sum(section) != head_dim:
        raise ValueError(
            f"{rope.name}mrope_section {list(section)} must have sum head_dim/2={head_dim // 2}"
        )
    if strange := rope.strangers():
        raise ValueError(f"unknown fields {', '.join(strange)}")
    return theta, section, qwen3


def _vision(vision: _Section, family: str) -> VisionConfig:
    qwen3 = family == "qwen3_vl"
    vision.must_be("hidden_act", "gelu_pytorch_tanh" if qwen3 else "silu")
    layers, patch = vision.need("depth"), vision.need("patch_size")
    merge = vision.need("spatial_merge_size")
    vision.must_be("spatial_patch_size", patch)
    rope = _Section(vision.get("rope_parameters", {}), "vision_config.rope_parameters.")
    rope.must_be("rope_type", "axial", "default")
    shared = {
        "layers": layers,
        "width": vision.need("hidden_size"),
        "heads": vision.need("num_heads"),
        "intermediate": vision.need("intermediate_size"),
        "patch": patch,
        "merge": merge,
        "temporal": vision.get("temporal_patch_size", 2),
        "channels": vision.get("in_channels", vision.get("in_chans", 3)),
        "out_width": vision.need("out_hidden_size"),
        "rope_theta": float(rope.get("rope_theta", 1e4)),
    }
    vision.get("in_chans")
    if strange := rope.strangers():
        raise ValueError(f"unknown fields {', '.join(strange)}")
    if not qwen3:
        return VisionConfig(
            window=vision.need("window_size") // (merge * patch),
            full_blocks=tuple(vision.need("fullatt_block_indexes")),
            **shared,
        )
    table = vision.need("num_position_embeddings")
    side, deepstack = round(table**0.5), tuple(vision.need("deepstack_visual_indexes"))
    if side * side != table:
        raise ValueError(f"vision_config.num_position_embeddings {table} is no square")
    if list(deepstack) != sorted(set(deepstack)) or not set(deepstack) <= set(range(layers)):
        raise ValueError(
            f"vision_config.deepstack_visual_indexes {list(deepstack)} must be increasing blocks "
            f"of 0 .. {layers - 1}"
        )
    return VisionConfig(
        window=1, full_blocks=tuple(range(layers)), positions=side, deepstack=deepstack, **shared
    )
