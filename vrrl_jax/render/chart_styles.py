"""How charts look: themes are their colours, styles all the rest. Some themes are held out.

What is held out is drawn for the out-of-distribution split alone, so it must stay marked here: a
policy trained on it would make that split say nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vrrl_jax.render.table_styles import BLACK, WHITE, Colour

# Colours of marks that every theme has: more series, or parts of a pie, can't be told apart.
COLOURS = 8


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours, each RGB in 0 .. 255.

    Attributes:
      name: unique among `THEMES`.
      marks: of series, or of categories; `COLOURS` of them.
      page: around the plot.
      plot: ground of the plot.
      ink: all text.
      axis: lines of axes and frames.
      grid: lines across the plot.
      bold: whether the title is bold.
      held_out: whether only the out-of-distribution split may draw it.

    Raises:
      ValueError: too few or equal colours of marks.
    """

    name: str
    marks: tuple[Colour, ...]
    page: Colour = WHITE
    plot: Colour = WHITE
    ink: Colour = BLACK
    axis: Colour = BLACK
    grid: Colour = (221, 221, 221)
    bold: bool = False
    held_out: bool = False

    def __post_init__(self):
        if len(set(self.marks)) != COLOURS or len(self.marks) != COLOURS:
            raise ValueError(f"{self.name} needs {COLOURS} colours of marks, got {self.marks}")


@dataclasses.dataclass(frozen=True)
class Style:
    """All that drawing a chart needs beside the chart.

    A picture is as large as its texts need, and at least as `smallest`, up to the next multiple:
    what fits is drawn in exactly `smallest`.

    Attributes:
      theme: colours.
      size: type size in pixels, at least 8.
      smallest: the picture's least (width, height).
      multiple: the picture's sides are multiples of it.
      margin: pixels around everything.
      legend: where the legend stands, for charts that need one.
      direct: names of sectors and scattered points stand beside them rather than in a legend.
      values: whether each mark has its number beside it.
      ticks: whether the value axis has numbers.
      grid: whether lines cross the plot at the ticks.
      frame: lines around the plot: "axes" left and below, "box" all around, "base" the line that
        bars stand on.
      names: whether axes are named.
      varied: whether each bar or dot of a single series has a colour of its own.
      share: of its room that a bar fills, in 0 .. 1.
      marker: shape of points.
      turn: where a pie begins, in 0 .. 1 turns clockwise from the top.

    Raises:
      ValueError: a size, margin, multiple, share or turn out of range.
    """

    theme: Theme
    size: int = 12
    smallest: tuple[int, int] = (320, 240)
    multiple: int = 1
    margin: int = 8
    legend: Literal["right", "top", "bottom"] = "right"
    direct: bool = True
    values: bool = True
    ticks: bool = True
    grid: bool = True
    frame: Literal["axes", "box", "base"] = "axes"
    names: bool = False
    varied: bool = False
    share: float = 0.7
    marker: Literal["disc", "square", "diamond"] = "disc"
    turn: float = 0.0

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"type under 8 pixels can't be read, got size {self.size}")
        if self.margin < 0 or self.multiple < 1:
            raise ValueError(f"margin {self.margin} or multiple {self.multiple} is too small")
        if not 0.1 <= self.share <= 1 or not 0 <= self.turn <= 1:
            raise ValueError(f"share {self.share} or turn {self.turn} is out of range")


def _colours(text: str) -> tuple[Colour, ...]:
    """Colours from their hexadecimal names."""
    return tuple(tuple(bytes.fromhex(word)) for word in text.split())


_DARK, _GREY, _PALE = (45, 45, 45), (120, 120, 120), (228, 228, 228)

THEMES: tuple[Theme, ...] = (
    Theme("plain", _colours("4472c4 ed7d31 70ad47 ffc000 7a5ca8 5bc0de c0504d 808080")),
    Theme(
        "category",
        _colours("1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 17becf"),
        ink=_DARK,
        axis=_GREY,
        grid=_PALE,
    ),
    Theme(
        "grey_ground",
        _colours("e24a33 348abd 988ed5 777777 fbc15e 8eba42 d98aa0 3a6b6b"),
        plot=(232, 232, 232),
        ink=(60, 60, 60),
        axis=(150, 150, 150),
        grid=WHITE,
    ),
    Theme(
        "muted",
        _colours("4878a8 d0804e 5fa068 c05a5a 8a77b0 8f7a66 cf93bf 85a9ac"),
        ink=(40, 50, 65),
        axis=(90, 100, 115),
        grid=(225, 230, 236),
        bold=True,
    ),
    Theme(
        "paper",
        _colours("8c2d19 2f5d62 d9a441 5e6b3a a35d6a 3d405b b08968 6b9080"),
        page=(250, 246, 236),
        plot=(250, 246, 236),
        ink=(60, 45, 25),
        axis=(110, 90, 60),
        grid=(228, 218, 196),
        bold=True,
    ),
    Theme(
        "office",
        _colours("156082 e97132 196b24 0f9ed5 a02b93 4ea72e b8860b 7f7f7f"),
        page=(244, 247, 250),
        ink=(30, 40, 50),
        axis=(140, 150, 160),
        grid=(217, 224, 231),
    ),
    Theme(
        "night",
        _colours("8dd3c7 feffb3 bfbbd9 fa8174 81b1d2 fdb462 b3de69 bc82bd"),
        page=(18, 20, 26),
        plot=(26, 29, 38),
        ink=(225, 228, 235),
        axis=(150, 156, 170),
        grid=(52, 57, 72),
        held_out=True,
    ),
    Theme(
        "violet",
        _colours("6831a0 c77dff e0559a 3c096c ff9e00 48bfe3 7b2c5f a29bd8"),
        page=(246, 240, 252),
        plot=(236, 226, 247),
        ink=(50, 25, 80),
        axis=(130, 100, 165),
        grid=(218, 202, 236),
        bold=True,
        held_out=True,
    ),
    Theme(
        "terminal",
        _colours("5aff78 ffd75a 5ad7ff ff6e6e d28cff b4ffb4 ffa04b 9aa5a0"),
        page=BLACK,
        plot=BLACK,
        ink=(90, 255, 120),
        axis=(60, 205, 90),
        grid=(20, 70, 35),
        held_out=True,
    ),
    Theme(
        "signal",
        _colours("141414 c1121f 003f88 2d6a4f 7b2d8b 8a5a00 5c5c5c 0081a7"),
        page=(255, 236, 110),
        plot=(255, 244, 170),
        ink=(20, 20, 20),
        axis=(20, 20, 20),
        grid=(236, 208, 80),
        bold=True,
        held_out=True,
    ),
)


def theme(name: str) -> Theme:
    """The theme of that name; KeyError where there is none."""
    return {theme.name: theme for theme in THEMES}[name]
