"""Random Qwen2.5-VL and Qwen3-VL checkpoints and what transformers computes with them; needs torch.

    python scripts/make_goldens.py

writes tests/models/goldens/qwen2_5_vl_tiny and qwen3_vl_tiny: a checkpoint each (config.json,
model.safetensors, float32) and goldens.npz, its outputs, for machines without torch. The parity
tests draw their own checkpoints with the functions here. Weights are large (standard deviation 0.2
and more) and norms and biases are not trivial: at the customary 0.02 attention is nearly uniform,
and wrong positions, windows or head groups pass unseen.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

# Models this small gain nothing from threads, which wait for those of XLA.
torch.set_num_threads(1)
GOLDENS = pathlib.Path(__file__).parent.parent / "tests/models/goldens"
CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
# The last ids of a vocabulary of `V`: picture, video, start and end marks are V - 4 .. V - 1.
TEXT = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 3]},
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
VISION = {
    "depth": 3,
    "hidden_size": 24,
    "num_heads": 2,
    "intermediate_size": 40,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
# Heads wider than hidden_size / heads; a table of positions between the pictures' grids in size.
TEXT3 = TEXT | {
    "num_hidden_layers": 3,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}
VISION3 = {k: v for k, v in VISION.items() if k not in ("window_size", "fullatt_block_indexes")} | {
    "depth": 4,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}
DEFAULTS = {"qwen2_5_vl": (TEXT, VISION), "qwen3_vl": (TEXT3, VISION3)}
SEEDS = {"qwen2_5_vl": 1, "qwen3_vl": 6}  # with clear greedy choices


class Batch(NamedTuple):
    """What a Hugging Face processor returns, numpy."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    pixel_values: np.ndarray | None
    image_grid_thw: np.ndarray | None


def random_checkpoint(
    directory: pathlib.Path,
    *,
    family: str = "qwen2_5_vl",
    seed: int = 0,
    std: float = 0.25,
    tied: bool = False,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    layout: str = "nested",
) -> Any:
    """Saves a random checkpoint and loads it back.

    Args:
      directory: where to.
      family: "qwen2_5_vl" or "qwen3_vl".
      seed, std: of the weights; norms are 1 + 0.3 z, biases 0.3 z.
      tied: whether the head is the embedding.
      text, vision: changes to the family's DEFAULTS.
      layout: of config.json: "nested" as transformers 5 writes it, "nested4" as 4.57 did, or
        "flat" as the published Qwen2.5-VL checkpoints have it.
    """
    config_class, model_class = CLASSES[family]
    text = DEFAULTS[family][0] | (text or {})
    vision = DEFAULTS[family][1] | {"out_hidden_size": text["hidden_size"]} | (vision or {})
    vocab = text["vocab_size"]
    config = config_class(
        text_config={"model_type": f"{family}_text", "tie_word_embeddings": tied, **text},
        vision_config=vision,
        image_token_id=vocab - 4,
        video_token_id=vocab - 3,
        vision_start_token_id=vocab - 2,
        vision_end_token_id=vocab - 1,
        tie_word_embeddings=tied,
    )
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(noise * (0.3 if name.endswith("bias") else std))
    model.save_pretrained(directory)
    path = pathlib.Path(directory) / "config.json"
    path.write_text(json.dumps(config_layout(json.loads(path.read_text()), layout), indent=2))
    return model_class.from_pretrained(directory).eval()


def config_layout(raw: dict[str, Any], layout: str) -> dict[str, Any]:
    """A config.json of transformers 5 as version 4 wrote it, or as it is ("nested")."""
    if layout == "nested":
        return raw
    raw = json.loads(json.dumps(raw))
    text, vision = raw.pop("text_config"), raw["vision_config"]
    rope = text.pop("rope_parameters")
    kind = "mrope" if layout == "flat" else "default"
    text["rope_scaling"] = {"type": kind, **{k: rope[k] for k in rope if "mrope" in k}}
    text["rope_theta"] = rope["rope_theta"]
    text.pop("layer_types", None)
    vision.pop("rope_parameters", None)
    vision["in_chans"] = vision.pop("in_channels")
    raw["torch_dtype"] = raw.pop("dtype", "float32")
    text["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if raw["model_type"] != "qwen3_vl":  # whose published files say it in both places
        del raw["tie_word_embeddings"]
    if layout == "nested4":
        text["rope_scaling"]["rope_type"] = "default"
        return raw | {"text_config": text}
    vision.pop("model_type", None)
    return {k: v for k, v in text.items() if k != "model_type"} | raw


def batch(
    rows: list[list[int | tuple[int, int]]],
    vocab: int,
    features: int,
    side: str,
    seed: int = 0,
    merge: int = 2,
) -> Batch:
    """Random rows, padded on `side`.

    Args:
      rows: what each row consists of, in order: n random text tokens, or (rows, columns), a
        picture of that many merged units between its marks.
    """
    rng = np.random.default_rng(seed)
    sequences, grids = [], []
    for parts in rows:
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens += rng.integers(3, vocab - 4, part).tolist()
            else:
                tokens += [vocab - 2, *[vocab - 4] * (part[0] * part[1]), vocab - 1]
                grids.append((1, merge * part[0], merge * part[1]))
        sequences.append(tokens)
    width = max(map(len, sequences))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for r, tokens in enumerate(sequences):
        at = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[r, at], mask[r, at] = tokens, 1
    if not grids:
        return Batch(ids, mask, None, None)
    patches = sum(t * h * w for t, h, w in grids)
    values = rng.standard_normal((patches, features)).astype(np.float32)
    return Batch(ids, mask, values, np.array(grids))


def torch_inputs(model, inputs: Batch) -> dict[str, torch.Tensor]:
    """The batch for the model, with the token types without which transformers 5 silently takes
    one-dimensional positions."""
    kwargs = {k: torch.from_numpy(v) for k, v in inputs._asdict().items() if v is not None}
    types = inputs.input_ids == model.config.image_token_id
    return kwargs | {"mm_token_type_ids": torch.from_numpy(types.astype(np.int64))}


@torch.no_grad()
def logits(model, inputs: Batch) -> np.ndarray:
    """float32 [B, T, V]; what stands at padding means nothing."""
    model.model.rope_deltas = None  # state of an earlier call
    return model(**torch_inputs(model, inputs)).logits.numpy()


@torch.no_grad()
def embeddings(model, inputs: Batch) -> np.ndarray:
    """Picture embeddings, float32 [merged tokens, D]."""
    kwargs = torch_inputs(model, inputs)
    parts = model.get_image_features(kwargs["pixel_values"], kwargs["image_grid_thw"])
    return torch.cat(list(parts.pooler_output)).numpy()


def positions(model, inputs: Batch) -> np.ndarray:
    """M-RoPE ids, int [3, B, T], 0 at padding."""
    kwargs = torch_inputs(model, inputs)
    kwargs.pop("pixel_values", None)
    return model.model.get_rope_index(**kwargs)[0].numpy()


@torch.no_grad()
def greedy(model, inputs: Batch, steps: int, stop: int | None = None) -> np.ndarray:
    """Greedy continuation of left-padded rows, int [B, <= steps], 0 after `stop`."""
    model.model.rope_deltas = None
    config = model.config
    model.generation_config.eos_token_id = stop
    out = model.generate(
        **torch_inputs(model, inputs),
        max_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        suppress_tokens=[config.image_token_id, config.video_token_id],
    )
    return out[:, inputs.input_ids.shape[1] :].numpy()


ROWS: list[list[int | tuple[int, int]]] = [
    [9],
    [3, (2, 3), 4],
    [2, (3, 1), (2, 2), 3],
    [1, (1, 3), 5, (3, 3), 2],
]


def main() -> None:
    """Writes both directories; prints sizes, and how close the greedy choices were."""
    for family in CLASSES:
        write(family, GOLDENS / f"{family}_tiny")


def write(family: str, directory: pathlib.Path) -> None:
    """One checkpoint and its goldens.

    Raises:
      SystemExit: the two best tokens of a greedy step lie too close to each other.
    """
    text, vision = DEFAULTS[family]
    model = random_checkpoint(directory, family=family, seed=SEEDS[family])
    vocab, features, steps = text["vocab_size"], 3 * 2 * vision["patch_size"] ** 2, 8
    inputs = batch(ROWS, vocab, features, "left", seed=2)
    tokens = greedy(model, inputs, steps)
    whole = inputs._replace(
        input_ids=np.concatenate([inputs.input_ids, tokens], 1),
        attention_mask=np.pad(inputs.attention_mask, ((0, 0), (0, steps)), constant_values=1),
    )
    best = np.sort(np.delete(logits(model, whole), [vocab - 4, vocab - 3], -1), -1)
    margin = (best[..., -1] - best[..., -2])[:, -steps - 1 : -1].min()
    if margin < 0.02:
        raise SystemExit(f"two tokens within {margin:.3g}: another rounding may choose the other")
    np.savez_compressed(
        directory / "goldens.npz",
        **inputs._asdict(),
        logits=logits(model, inputs) * inputs.attention_mask[..., None],
        embeddings=embeddings(model, inputs),
        positions=positions(model, inputs),
        greedy=tokens,
    )
    for path in sorted(directory.iterdir()):
        print(f"{path.name:24} {path.stat().st_size / 1e3:7.1f} kB")
    print(
        f"smallest greedy margin {margin:.3f}, logits' deviation {logits(model, inputs).std():.2f}"
    )


if __name__ == "__main__":
    main()
