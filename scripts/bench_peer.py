"""The other side of the benchmarks: transformers on torch with the very checkpoint that we load.

A checkpoint of random weights is drawn and written by transformers, then loaded by both. What is
timed here is the library's own `generate` and a plain training step around its own forward pass.
Importing this needs torch.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import benching
import numpy as np
import torch
import transformers
from benching import Span, Stages
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vrrl_jax import layout
from vrrl_jax.checkpoint import hf
from vrrl_jax.models.config import ModelConfig
from vrrl_jax.types import Picture

ROOT = pathlib.Path(__file__).resolve().parent.parent
# About 112 million parameters, a quarter of them the vocabulary's.
MIDDLE: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vocab_size": 32768,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "image_token_id": 32764,
    "video_token_id": 32765,
    "vision_start_token_id": 32766,
    "vision_end_token_id": 32767,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 6,
        "hidden_size": 384,
        "num_heads": 6,
        "intermediate_size": 1024,
        "hidden_act": "silu",
        "in_chans": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [2, 5],
        "out_hidden_size": 768,
    },
}
SIZES = ("nano", "100m", "3b", "7b")


def architecture(size: str) -> dict[str, Any]:
    """The config.json of a size, without end tokens: replies have a fixed length."""
    if size == "100m":
        raw = MIDDLE
    else:
        files = {
            "nano": hf.resolve("nano") / "config.json",
            "3b": ROOT / "configs/models/qwen2_5_vl_3b.json",
            "7b": ROOT / "configs/models/qwen2_5_vl_7b.json",
        }
        raw = json.loads(files[size].read_text(encoding="utf-8"))
    return raw | {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}


def load(directory: pathlib.Path, size: str, dtype: str, device: str) -> Any:
    """Draws a checkpoint, writes it into the directory, and loads it back."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(architecture(size)))
    config = Qwen2_5_VLConfig.from_pretrained(directory)
    torch.manual_seed(0)
    on, kind = _place(device), getattr(torch, dtype)
    with torch.device(on):
        model = Qwen2_5_VLForConditionalGeneration(config).to(kind)
    with torch.no_grad():
        # Placeholders must not be drawn: with embeddings of zero, which are the head too or go
        # with it, they never have the highest logit.
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[[config.image_token_id, config.video_token_id]] = 0
    model.save_pretrained(directory)
    del model
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=kind)
    model.generation_config.eos_token_id = None
    return model.to(on).eval()


def _place(device: str) -> str:
    if device == "gpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device gpu: {benching.NOT_MEASURED}, this torch has no GPU")
    return "cuda" if device == "gpu" else "cpu"


class Prompts(NamedTuple):
    """A batch of prompts of one length, each with pictures before its text.

    Attributes:
      tokens: int64 [B, T].
      pixels: float32 [patches of all pictures, F].
      grids: int64 [pictures, 3].
    """

    tokens: np.ndarray
    pixels: np.ndarray
    grids: np.ndarray

    @property
    def pictures(self) -> list[Picture]:
        ends = np.cumsum(self.grids.prod(-1))[:-1]
        parts = np.split(self.pixels, ends)
        return [Picture(p, tuple(map(int, g))) for p, g in zip(parts, self.grids, strict=True)]


def prompts(
    config: ModelConfig, rows: int, tokens: int, side: int, pictures: int = 1, seed: int = 0
) -> Prompts:
    """Random prompts.

    Args:
      tokens: of a prompt, its pictures' among them.
      side: of a picture in merged units; it takes side**2 tokens and two marks.

    Raises:
      ValueError: the pictures leave no room for text.
    """
    rng, vision = np.random.default_rng(seed), config.vision
    grid = (1, side * vision.merge, side * vision.merge)
    shown = [
        config.vision_start_token_id,
        *[config.image_token_id] * layout.token_count(grid, vision.merge),
        config.vision_end_token_id,
    ] * pictures
    text = tokens - len(shown)
    if text < 1:
        raise ValueError(f"pictures take {len(shown)} tokens of a prompt of {tokens}")
    first_special = min(config.image_token_id, config.vision_start_token_id) - 16
    words = rng.integers(3, first_special, (rows, text))
    ids = np.concatenate([np.broadcast_to(shown, (rows, len(shown))), words], 1)
    grids = np.broadcast_to(np.array(grid), (rows * pictures, 3)).copy()
    features = vision.channels * vision.temporal * vision.patch**2
    pixels = rng.standard_normal((int(grids.prod(-1).sum()), features), np.float32)
    return Prompts(ids.astype(np.int64), pixels, grids)


def inputs(model: Any, batch: Prompts) -> dict[str, Any]:
    """What its processor would give the model."""
    ids = torch.from_numpy(batch.tokens).to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(batch.pixels).to(model.device, model.dtype),
        "image_grid_thw": torch.from_numpy(batch.grids).to(model.device),
        # Without it transformers 5 takes one-dimensional positions.
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }


def synchronised(model: Any) -> Span:
    """The time once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return benching.now()


# --- generation ----------------------------------------------------------------------------------

# In which order they are tried, and what `generate` is given.
WAYS = {
    "peer, dynamic cache": {},
    "peer, static cache": {"cache_implementation": "static"},
    "peer, static cache, compiled": {"cache_implementation": "static"},
}
COMPILED = "peer, static cache, compiled"


def generating(
    model: Any, way: str, batch: Prompts, new: int, samples: int = 1, temperature: float = 0.0
) -> Callable[[], tuple[Stages, np.ndarray]]:
    """A call of `generate`: (seconds of prefill and decode, new tokens [B * samples, new]).

    The prefill ends when the first token is out.
    """
    given = inputs(model, batch)
    options = dict(WAYS[way])
    if way == COMPILED:
        compiling = transformers.CompileConfig()
        compiling._compile_all_devices = True  # by default a CPU isn't compiled for
        options["compile_config"] = compiling
    else:
        options["disable_compile"] = True
    drawn = {"do_sample": False}
    if temperature:
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

    @torch.inference_mode()
    def call():
        model.model.rope_deltas = None  # state of an earlier call
        first: list[Span] = []

        class Mark(transformers.StoppingCriteria):
            """Notes when the first token is out; ends nothing."""

            def __call__(self, ids, scores, **_):
                if not first:
                    first.append(synchronised(model))
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        began = synchronised(model)
        out = model.generate(
            **given,
            **drawn,
            **options,
            max_new_tokens=new,
            pad_token_id=0,
            num_return_sequences=samples,
            stopping_criteria=transformers.StoppingCriteriaList([Mark()]),
        )
        ended = synchronised(model)
        stages = {"prefill": first[0] - began, "decode": ended - first[0]}
        return stages, out[:, given["input_ids"].shape[1] :].cpu().numpy()

    return call


# --- training ------------------------------------------------------------------------------------


class Padded(NamedTuple):
    """Episodes as rows padded on the right, and their fields.

    Attributes:
      tokens: int64 [B, T].
      pixels, grids: of all rows, as in `Prompts`.
      weights, logprobs, advantages: float32 [B, T].
    """

    tokens: np.ndarray
    pixels: np.ndarray
    grids: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray
    advantages: np.ndarray


def training(
    model: Any,
    batch: Padded,
    dtype: str,
    *,
    rate: float,
    clip: float,
    decay: float,
    compiled: bool = False,
) -> Callable[[], tuple[Stages, float, float]]:
    """A training step: (seconds by stage, loss, norm of the gradient before clipping).

    Nothing is computed that the loss doesn't ask for: there are logits for trained tokens alone,
    entropies aren't told, and no mask is built, since in rows padded on the right a causal query
    sees no padding.

    Args:
      model: with float32 parameters.
      dtype: of products; not float32: under autocast.
    """
    model.train()
    device = model.device
    put = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)
    ids, grids, pixels = put(batch.tokens), put(batch.grids), put(batch.pixels).to(model.dtype)
    types = (ids == model.config.image_token_id).long()
    positions = model.model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=torch.ones_like(ids)
    )[0]
    trained = put(batch.weights > 0)
    # The positions before them emit them: [B, T], and the vocabulary is read there alone.
    kept = torch.nn.functional.pad(trained[:, 1:], (0, 1))
    targets, weights, old, advantages = (
        a[trained] for a in (ids, put(batch.weights), put(batch.logprobs), put(batch.advantages))
    )
    banned = torch.tensor([model.config.image_token_id, model.config.video_token_id], device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=decay, fused=True
    )

    narrow = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def loss_of():
        with narrow:
            out = model(
                input_ids=ids,
                position_ids=positions,
                pixel_values=pixels,
                image_grid_thw=grids,
                mm_token_type_ids=types,
                logits_to_keep=kept,
                use_cache=False,
            )
        logits = out.logits.flatten(0, -2).float().index_fill(-1, banned, float("-inf"))
        picked = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ratio = torch.exp(picked - old)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        return -(torch.minimum(ratio * advantages, clipped * advantages) * weights).sum()

    forward = torch.compile(loss_of) if compiled else loss_of

    def step():
        model.model.rope_deltas = None
        times = [synchronised(model)]
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        times.append(synchronised(model))
        loss.backward()
        times.append(synchronised(model))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        times.append(synchronised(model))
        spans = [b - a for a, b in itertools.pairwise(times)]
        stages = dict(zip(("forward", "backward", "optimizer"), spans, strict=True))
        return stages, float(loss.detach()), float(norm)

    return step


def memory(device: str) -> int | None:
    """Most bytes in use so far by torch's allocator; None on a CPU, which doesn't tell."""
    return torch.cuda.max_memory_allocated() if device == "gpu" else None
