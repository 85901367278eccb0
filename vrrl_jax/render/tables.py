"""Pictures of tables, with the exact box of every cell and of every text.

All coordinates are whole pixels of the drawn picture, x to the right and y down from the top left
corner; a box (x0, y0, x1, y1) is half-open: it holds the pixels x0 .. x1 - 1 and y0 .. y1 - 1.

The ground is painted in the colour of the rules and every cell over it, so rules are what stays
uncovered and a merged header needs no case of its own. Text is composed from glyphs that are
rasterised once: numbers hardly ever repeat, but their digits do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import ImageFont

from vrrl_jax.render.table_styles import Colour, Layout, Style, Theme

if TYPE_CHECKING:
    from vrrl_jax.data.tables import Table

Box = tuple[int, int, int, int]
Key = int | tuple[int, int]
# Coverage under this is no ink: specks that nobody sees must not widen a box.
FAINT = 32


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture and where things are in it.

    Attributes:
      image: uint8 [height, width, 3].
      boxes: kind -> key -> box in pixels of `image`, half-open. Kinds: "cell", keyed (row, column)
        from 0, column 0 being the row's header; "header", keyed by column, 0 being the corner;
        "group", merged headers, keyed by their place in `Table.groups`; "cell_text",
        "header_text" and "group_text", the ink inside of each, missing where there is none; and
        "table", key 0, with its outer rules. A cell's box is its filled area, inside the rules.
    """

    image: np.ndarray
    boxes: dict[str, dict[Key, Box]]


def render(
    table: Table, style: Style, paint: Mapping[tuple[str, Key], Colour] | None = None
) -> Drawn:
    """Draws a table.

    Args:
      table: what to draw.
      style: how.
      paint: (kind, key) of a mark -> colour that replaces the theme's: the ink of a text, the
        fill of a cell. Nothing moves by it.

    Raises:
      ValueError: a character that the font lacks, or `paint` for a mark that isn't there.
    """
    theme, layout = style.theme, style.layout
    paint = dict(paint or {})
    marks = _marks(table, layout)
    texts = [text_mask(mark.text, style.size, theme.bold and mark.role != "cell") for mark in marks]
    lines_x, lines_y = _rules(table, layout)
    ascent, descent = _line(texts, style.size)
    pad_x, pad_y = (max(1, round(share * style.size)) for share in layout.pad)
    widths = _tracks(
        lines_x,
        [
            (m.x0, m.x1, 2 * pad_x + text.mask.shape[1])
            for m, text in zip(marks, texts, strict=True)
        ],
        layout.equal,
        style.pitch[0],
    )
    high = 2 * pad_y + ascent + descent
    heights = _tracks(lines_y, [(m.y0, m.y1, high) for m in marks], False, style.pitch[1])
    width, (left, starts_x, stops_x) = _place(style, widths, lines_x, 0)
    height, (top, starts_y, stops_y) = _place(style, heights, lines_y, 1)

    image = np.empty((height, width, 3), np.uint8)
    image[:] = theme.page
    outer = (left, top, stops_x[-1] + lines_x[-1], stops_y[-1] + lines_y[-1])
    _fill(image, outer, theme.rule)
    boxes: dict[str, dict[Key, Box]] = {"table": {0: outer}}
    for kind in ("cell", "header", "group"):
        boxes[kind], boxes[f"{kind}_text"] = {}, {}
    for mark, text in zip(marks, texts, strict=True):
        box = starts_x[mark.x0], starts_y[mark.y0], stops_x[mark.x1 - 1], stops_y[mark.y1 - 1]
        boxes[mark.kind][mark.key] = box
        fill, ink = _colours(theme, mark)
        fill = paint.pop((mark.kind, mark.key), fill)
        _fill(image, box, fill)
        if text.mask.size:
            ink = paint.pop((f"{mark.kind}_text", mark.key), ink)
            x = _aligned(box, text.mask.shape[1], pad_x, mark.align)
            y = box[1] + (box[3] - box[1] - ascent - descent) // 2 + ascent + text.top
            h, w = text.mask.shape
            image[y : y + h, x : x + w] = _ramp(ink, fill)[text.mask]
            boxes[f"{mark.kind}_text"][mark.key] = (x, y, x + w, y + h)
    if paint:
        raise ValueError(f"paint names marks that this table lacks: {sorted(paint, key=repr)}")
    return Drawn(image, boxes)


def target_boxes(table: Table, drawn: Drawn) -> tuple[Box, ...]:
    """Boxes of the cells that the table's question asks for, in the order of its targets."""
    return tuple(drawn.boxes["cell"][target] for target in table.targets)


# --- where things stand --------------------------------------------------------------------------


class _Mark(NamedTuple):
    """A cell of any kind; x0 .. x1 and y0 .. y1 count the grid's tracks, half-open."""

    kind: str
    key: Key
    role: str  # whose colours it wears: "header", "stub" or "cell"
    text: str
    align: str
    x0: int
    y0: int
    x1: int
    y1: int


def _marks(table: Table, layout: Layout) -> list[_Mark]:
    """Everything that has text, placed on the grid as the layout wants it."""
    depth, n = (2 if table.groups else 1), len(table.rows)
    columns = len(table.header)
    grouped = {c for group in table.groups for c in range(group.start, group.stop)}
    marks = []

    def add(kind, key, role, text, align, x0, y0, x1, y1):
        if layout.header_last:
            # The block of headers moves below, leaf headers next to the body.
            y0, y1 = (n + depth - y1, n + depth - y0) if y1 <= depth else (y0 - depth, y1 - depth)
        if layout.stub_last:
            x0, x1 = (columns - 1, columns) if x0 == 0 else (x0 - 1, x1 - 1)
        if layout.transposed:
            x0, y0, x1, y1 = y0, x0, y1, x1
        marks.append(_Mark(kind, key, role, text, align, x0, y0, x1, y1))

    for g, group in enumerate(table.groups):
        add("group", g, "header", group.text, "center", group.start, 0, group.stop, 1)
    for c, text in enumerate(table.header):
        align = "left" if c == 0 else layout.align
        add("header", c, "header", text, align, c, depth - 1 if c in grouped else 0, c + 1, depth)
    for r, row in enumerate(table.rows):
        for c, text in enumerate(row):
            role, align = ("cell", layout.align) if c else ("stub", "left")
            add("cell", (r, c), role, text, align, c, depth + r, c + 1, depth + r + 1)
    return marks


def _rules(table: Table, layout: Layout) -> tuple[list[int], list[int]]:
    """Pixels of the rules before, between and after the tracks, (across, down)."""
    depth = 2 if table.groups else 1
    # A table without rules has none below a merged header either.
    below_group = [layout.rows or min(layout.header, 1)] * (depth - 1)
    between_rows = [layout.rows] * (len(table.rows) - 1)
    down = [layout.ends, *below_group, layout.header, *between_rows, layout.ends]
    between_columns = [layout.columns] * (len(table.header) - 2)
    across = [layout.sides, layout.stub, *between_columns, layout.sides]
    # Reversing moves the one special rule to the other side: all else is symmetric.
    down = down[::-1] if layout.header_last else down
    across = across[::-1] if layout.stub_last else across
    return (down, across) if layout.transposed else (across, down)


def _tracks(
    rules: Sequence[int], needs: list[tuple[int, int, int]], equal: bool, pitch: int
) -> list[int]:
    """Pixels of each track, so that every (first, stop, pixels) fits; rules within a span help.

    With the rule before it, the last one with both, a track takes a multiple of `pitch`.
    """
    sizes = [0] * (len(rules) - 1)
    for first, stop, pixels in needs:
        if stop == first + 1:
            sizes[first] = max(sizes[first], pixels)
    for first, stop, pixels in needs:
        lacking = pixels - sum(sizes[first:stop]) - sum(rules[first + 1 : stop])
        if stop > first + 1 and lacking > 0:
            for track in range(first, stop):
                sizes[track] += -(-lacking // (stop - first))
    sizes = [max(sizes)] * len(sizes) if equal else sizes
    ruled = [*rules[:-2], rules[-2] + rules[-1]]
    return [-(-(s + r) // pitch) * pitch - r for s, r in zip(sizes, ruled, strict=True)]


def _place(
    style: Style, sizes: list[int], rules: list[int], axis: int
) -> tuple[int, tuple[int, list[int], list[int]]]:
    """(the picture's side, (where the table starts, where its tracks start, where they stop))."""
    used = sum(sizes) + sum(rules)
    side = max(used + 2 * style.margin, style.smallest[axis])
    side = -(-side // style.multiple) * style.multiple
    spare = side - used - 2 * style.margin
    pitch = style.pitch[axis]
    begin = at = (
        style.margin + min(round(spare / pitch * style.place[axis]), spare // pitch) * pitch
    )
    starts, stops = [], []
    # The last rule stands after all tracks.
    for size, rule in zip(sizes, rules, strict=False):
        starts.append(at + rule)
        at += rule + size
        stops.append(at)
    return side, (begin, starts, stops)


def _aligned(box: Box, width: int, pad: int, align: str) -> int:
    """x where a text of that width starts."""
    if align == "left":
        return box[0] + pad
    if align == "right":
        return box[2] - pad - width
    return box[0] + (box[2] - box[0] - width) // 2


# --- ink -----------------------------------------------------------------------------------------


def _colours(theme: Theme, mark: _Mark) -> tuple[Colour, Colour]:
    """(fill, ink) of a mark."""
    if mark.role == "header":
        return theme.header, theme.header_ink
    if mark.role == "stub":
        return theme.stub, theme.stub_ink
    # Stripes follow the table's rows, also where these are drawn as columns.
    striped = theme.zebra is not None and mark.key[0] % 2
    return theme.zebra if striped else theme.body, theme.ink


def _fill(image: np.ndarray, box: Box, colour: Colour) -> None:
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = colour


@functools.lru_cache(maxsize=1024)
def _ramp(ink: Colour, fill: Colour) -> np.ndarray:
    """uint8 [256, 3]: from the fill to the ink, by coverage."""
    share = np.arange(256)[:, None] / 255.0
    ramp = np.rint(np.array(fill) * (1 - share) + np.array(ink) * share).astype(np.uint8)
    ramp.setflags(write=False)
    return ramp


class Text(NamedTuple):
    """Coverage uint8 [h, w], cut to the ink; `top`: its first row, from the baseline."""

    mask: np.ndarray
    top: int


class _Glyph(NamedTuple):
    mask: np.ndarray
    left: int
    top: int
    advance: int


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, a true outline font (Aileron): no download, the same everywhere."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, so it can't draw tables")
    return font


@functools.lru_cache(maxsize=8192)
def _glyph(character: str, size: int) -> _Glyph:
    font = _font(size)
    if not has_glyph(character):
        raise ValueError(f"the built-in font has no {character!r} (U+{ord(character):04X})")
    core, (left, top) = font.getmask2(character, mode="L", anchor="ls")
    mask = np.array(core, np.uint8).reshape(core.size[::-1])
    return _Glyph(mask, left, top, round(font.getlength(character)))


@functools.lru_cache(maxsize=8192)
def has_glyph(character: str) -> bool:
    """Whether the font can draw a character: what it lacks would come out as an empty frame."""
    font = _font(24)
    mask, absent = font.getmask(character), font.getmask("\uffff")
    return mask.size != absent.size or bytes(mask) != bytes(absent)


@functools.lru_cache(maxsize=1 << 14)
def text_mask(text: str, size: int, bold: bool) -> Text:
    """A line of text, without its surrounding room; an empty mask where nothing is to be inked.

    Raises:
      ValueError: a character that the font lacks.
    """
    pen, placed = 0, []
    for character in text:
        glyph = _glyph(character, size)
        if glyph.mask.size:
            placed.append((pen + glyph.left, glyph))
        pen += glyph.advance
    if not placed:
        return Text(np.zeros((0, 0), np.uint8), 0)
    left = min(x for x, _ in placed)
    top = min(glyph.top for _, glyph in placed)
    right = max(x + glyph.mask.shape[1] for x, glyph in placed)
    bottom = max(glyph.top + glyph.mask.shape[0] for _, glyph in placed)
    canvas = np.zeros((bottom - top, right - left + bold), np.uint8)
    for x, glyph in placed:
        h, w = glyph.mask.shape
        for shift in range(bold + 1):
            # Bold is a second, paler strike one pixel on: a full one would close m and w.
            ink = glyph.mask // 2 if shift else glyph.mask
            x0 = x - left + shift
            part = canvas[glyph.top - top : glyph.top - top + h, x0 : x0 + w]
            # Neighbours may overlap by a pixel: the darker one wins.
            np.maximum(part, ink, out=part)
    canvas[canvas < FAINT] = 0
    if not canvas.any():
        return Text(np.zeros((0, 0), np.uint8), 0)
    rows, columns = canvas.any(1).nonzero()[0], canvas.any(0).nonzero()[0]
    mask = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    mask.setflags(write=False)
    return Text(mask, top + int(rows[0]))


def _line(texts: list[Text], size: int) -> tuple[int, int]:
    """(pixels above, below the baseline) that hold all texts, and common letters in any case."""
    known = [text for text in [*texts, text_mask("Hg", size, False)] if text.mask.size]
    return max(-t.top for t in known), max(t.top + t.mask.shape[0] for t in known)


def clear_caches() -> None:
    """Forgets all rasters, for tests that draw anew."""
    for cached in (_font, _glyph, text_mask, _ramp, has_glyph):
        cached.cache_clear()
