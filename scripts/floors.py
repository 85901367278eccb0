"""Tabulates floors on time for three policies on published chips: docs/performance.md.

    JAX_PLATFORMS=cpu python scripts/floors.py > docs/performance.md

Nothing is run and no accelerator is needed: `vrrl_jax/roofline.py` counts from shapes alone.
"""

from __future__ import annotations

import json
import pathlib
import textwrap

from vrrl_jax import roofline
from vrrl_jax.checkpoint import hf
from vrrl_jax.models.config import ModelConfig, from_hf
from vrrl_jax.roofline import CHIPS, Chip, Work

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = {
    "nano": hf.resolve("nano") / "config.json",
    "Qwen2.5-VL-3B": ROOT / "configs/models/qwen2_5_vl_3b.json",
    "Qwen2.5-VL-7B": ROOT / "configs/models/qwen2_5_vl_7b.json",
}
PIXELS = 1280 * 28 * 28
TEXT = 1024  # tokens of text beside a picture
PICTURES = 8  # of an update, each in a sequence of its own
BATCHES, CONTEXTS = (1, 8, 64), (1024, 4096)

HEADER = """\
# Floors: what the arithmetic allows

Made by `JAX_PLATFORMS=cpu python scripts/floors.py > docs/performance.md` from shapes and published
figures alone (`vrrl_jax/roofline.py`). **These are floors, computed. Nothing here is measured, and
no run of this library has been compared with them yet.** A real program is slower; how many times
slower is the question that a measurement answers.

A floor is the larger of two times on one chip: FLOPs of the matrix products over the chip's dense
bfloat16 FLOP/s, and the bytes that must cross its memory over its bandwidth. What is counted:

- 2 FLOPs a multiply-add; attention causal; the vision tower's windows as windows and its full
  blocks as full. Norms, softmax, rotary angles and sampling are left out.
- Weights, keys and values in bfloat16. Where many tokens pass at once, the residual stream between
  blocks too.
- Decode: one token for each row of a batch, beside a cache of that many tokens a row.
- Prefill: {text:,} tokens of text and one picture of 1280 x 28 x 28 pixels, one row, the vision
  tower included; the head for the last token alone. Vision: that picture through the tower.
- Update: {pictures} sequences of such a picture and {text:,} tokens of text, loss on all text
  ({loss:,} tokens): 3 times the forward pass, the tower trained, and an AdamW step in float32.
  Model FLOPs don't count what is recomputed. "Again" is what rematerialised blocks would add to
  the work; the times leave it out. Whether a chip holds an update is another matter
  (`docs/memory.md`): the times are those of one chip's worth of compute.
- Nothing of several chips: communication is not in these tables. On n chips that share the work
  evenly a floor is at best an n-th.

Cells hold the floor and the tokens a second it allows: drawn ones (decode), those of the prompt, of
the picture, of all sequences. A dash: weights and caches alone don't fit the chip's memory.

| chip | dense bfloat16 | memory | bandwidth | FLOPs a byte to be bound by arithmetic |
| --- | ---: | ---: | ---: | ---: |
{chips}

The sources are named in `vrrl_jax/roofline.py`; all are the vendors' published figures.
"""

FOOTER = """\
**Decode is bound by memory, at every batch here.** A step reads all weights once, however many
rows share them, and every row's cache. At batch 1 the floor is the weights' bytes over the
bandwidth, so the share of bandwidth that a decoder reaches says all about it. FLOPs a byte grow
with the batch only as far as weights outweigh caches. {decode} What speeds a step up is more rows
in flight, fewer bytes a weight, and a cache that is read only as far as it is filled; not faster
products.

**Prefill is bound by arithmetic for the published models**, at {prefill} FLOPs a byte here: a
prompt with one picture already has more tokens than any chip in the table needs. Chunks of a few
tokens (a follow-up turn without a picture) fall back towards decode's figures, unless many rows
are appended together.

**Vision is bound by arithmetic too for the published models**, and is not small: {vision} of the
prefill's FLOPs for the 3B and the 7B, whose towers are nearly the same. Full blocks attend over all
{patches:,} patches; only the others have windows. A picture that is encoded again for each turn, or
for each of a group's samples, is paid for in full each time.

**An update is bound by arithmetic for the published models** with {pictures} sequences. The
optimizer's own traffic, eight float32 numbers a parameter, is a fixed cost, {optimizer} of memory
time on an H100 for the 3B and the 7B, so an update of few tokens is bound by memory. Rematerialised
blocks add up to a third to the work.

**nano** is so small that these floors say little about it: a drawn token takes microseconds at
most, and what it costs to launch a program and to meet the host once a turn isn't counted here.
Everywhere but at batch 1 and context 1k its caches outweigh its weights.
"""


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sized(value: float) -> str:
    """Three digits and a power of ten."""
    for limit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g} {letter}"
    return f"{value:.3g} "


def patches_of(config: ModelConfig) -> int:
    """Of the picture."""
    return PIXELS // config.vision.patch**2


def row_tokens(config: ModelConfig) -> int:
    """Of a prompt: text and picture."""
    return TEXT + patches_of(config) // config.vision.merge**2


def decodes(config: ModelConfig) -> dict[str, tuple[Work, int, int]]:
    """Name -> (work, tokens that come of it, bytes that must be held)."""
    found = {}
    for rows in BATCHES:
        for context in CONTEXTS:
            work = roofline.decode(config, rows, context)
            name = f"decode, batch {rows}, context {context // 1024}k"
            cache = rows * context * roofline.slot_bytes(config.text)
            found[name] = work, rows, 2 * roofline.all_params(config) + cache
    return found


def programs(config: ModelConfig) -> dict[str, tuple[Work, int, int]]:
    patches, tokens = patches_of(config), row_tokens(config)
    update = roofline.update(
        config, PICTURES, tokens, PICTURES * TEXT, PICTURES, patches, remat=True
    )
    weights = 2 * roofline.all_params(config)
    return decodes(config) | {
        "prefill": (roofline.prefill(config, 1, tokens, 1, patches), tokens, weights),
        "vision": (roofline.vision(config, 1, patches), tokens - TEXT, weights),
        "update": (update, PICTURES * tokens, 0),
    }


def cell(work: Work, tokens: int, held: int, chip: Chip) -> str:
    """Milliseconds and tokens/s."""
    if held > chip.memory:
        return "-"
    seconds = roofline.lower_bound(work.flops, work.bytes, chip)
    return f"{lasting(seconds)}, {sized(tokens / seconds).strip()}/s"


def lasting(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, name in ((1, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def intensity(work: Work) -> str:
    """FLOPs a byte."""
    ratio = work.flops / work.bytes
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def table(config: ModelConfig) -> list[str]:
    lines = [
        line(["work", "FLOPs", "again", "bytes", "FLOPs a byte", *CHIPS]),
        line(["---", *["---:"] * (4 + len(CHIPS))]),
    ]
    for name, (work, tokens, held) in programs(config).items():
        amounts = [
            sized(work.flops),
            sized(work.recomputed) if work.recomputed else "",
            sized(work.bytes) + "B",
            intensity(work),
        ]
        cells = [cell(work, tokens, held, chip) for chip in CHIPS.values()]
        lines.append(line([name, *amounts, *cells]))
    return lines


def chips() -> str:
    return "\n".join(
        line(
            [
                name,
                f"{chip.flops / 1e12:.0f} TFLOP/s",
                f"{chip.memory / 1e9:.0f} GB",
                f"{chip.bandwidth / 1e12:.3g} TB/s",
                f"{chip.flops / chip.bandwidth:.0f}",
            ]
        )
        for name, chip in CHIPS.items()
    )


def remarks(configs: dict[str, ModelConfig]) -> dict[str, str]:
    """The figures that the paragraphs name."""
    published = [configs[name] for name in ("Qwen2.5-VL-3B", "Qwen2.5-VL-7B")]
    found = [programs(config) for config in published]
    both = lambda values: " and ".join(values)
    most = [roofline.decode(config, BATCHES[-1], CONTEXTS[0]) for config in published]
    share = [f["vision"][0].flops / f["prefill"][0].flops for f in found]
    step = [roofline.optimizer_step(config).bytes / CHIPS["H100"].bandwidth for config in published]
    least = min(chip.flops / chip.bandwidth for chip in CHIPS.values())
    return {
        "decode": f"At batch {BATCHES[-1]} and context {CONTEXTS[0] // 1024}k they are "
        f"{both([intensity(w) for w in most])} for the 3B and the 7B, where the least "
        f"demanding chip asks for {least:.0f}.",
        "prefill": both([intensity(f["prefill"][0]) for f in found]),
        "vision": both([f"{s:.0%}" for s in share]),
        "patches": patches_of(published[0]),
        "pictures": PICTURES,
        "optimizer": both([f"{1e3 * s:.0f} ms" for s in step]),
    }


def page() -> str:
    """The whole of docs/performance.md."""
    configs = {
        name: from_hf(json.loads(path.read_text(encoding="utf-8")), str(path))
        for name, path in MODELS.items()
    }
    lines = [HEADER.format(text=TEXT, pictures=PICTURES, loss=PICTURES * TEXT, chips=chips())]
    for name, config in configs.items():
        counted = f"{sized(roofline.all_params(config))} parameters"
        prompt = f"a prompt of {row_tokens(config):,} tokens"
        lines += [f"## {name}", "", f"{counted}; {prompt}.", "", *table(config), ""]
    lines += ["## What bounds what", ""]
    for paragraph in FOOTER.format(**remarks(configs)).split("\n\n"):
        lines += [textwrap.fill(paragraph, 100, break_on_hyphens=False), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    print(page(), end="")


if __name__ == "__main__":
    main()
