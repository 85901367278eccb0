"""How tables look: themes are their colours, layouts their structure. Some of both are held out.

What is held out is drawn for the out-of-distribution split alone, so it must stay marked here: a
policy trained on it would make that split say nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Colour = tuple[int, int, int]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours, each RGB in 0 .. 255.

    Attributes:
      name: unique among `THEMES`.
      page: around the table.
      header: fill of column headers, of merged headers, and of the corner.
      header_ink: their text.
      stub: fill of row headers.
      stub_ink: their text.
      body: fill of all other cells.
      zebra: fill of every second line of the body; None: the body's.
      ink: text of the body.
      rule: lines between cells.
      bold: whether headers are bold.
      held_out: whether only the out-of-distribution split may draw it.
    """

    name: str
    page: Colour = WHITE
    header: Colour = WHITE
    header_ink: Colour = BLACK
    stub: Colour = WHITE
    stub_ink: Colour = BLACK
    body: Colour = WHITE
    zebra: Colour | None = None
    ink: Colour = BLACK
    rule: Colour = BLACK
    bold: bool = False
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """Structure. Rows and columns are the table's own, before transposition.

    Attributes:
      name: unique among `LAYOUTS`.
      rows: pixels of the rule between two rows of the body; 0 draws none.
      columns: of the rule between two columns.
      header: of the rule between the column headers and the body.
      stub: of the rule between the row headers and the body.
      ends: of the rules before the first and after the last row.
      sides: of the rules before the first and after the last column.
      align: of values and column headers. Row headers stand left, merged headers in the middle.
      pad: pixels between a cell's side and its text for each pixel of type size, (across, down).
      equal: whether all columns are as wide as the widest.
      transposed: draws every row as a column: column headers stand on the left.
      header_last: column headers below the body (right of it when transposed).
      stub_last: row headers right of the body (below it when transposed).
      held_out: whether only the out-of-distribution split may draw it.
    """

    name: str
    rows: int = 0
    columns: int = 0
    header: int = 0
    stub: int = 0
    ends: int = 0
    sides: int = 0
    align: Literal["left", "center", "right"] = "right"
    pad: tuple[float, float] = (0.5, 0.25)
    equal: bool = False
    transposed: bool = False
    header_last: bool = False
    stub_last: bool = False
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class Style:
    """All that drawing a table needs beside the table.

    Attributes:
      theme: colours.
      layout: structure.
      size: type size in pixels, at least 8.
      margin: least pixels between the table and each side of the picture.
      multiple: the picture's sides are multiples of it.
      smallest: the picture's least (width, height).
      place: where the table stands in spare room, (across, down): 0 left or top, 1 right or
        bottom.
      pitch: (across, down) pixels of a lattice that all cells start and end on, rules included;
        (1, 1) draws them as tight as they get. Pictures on one lattice are easier to learn from.

    Raises:
      ValueError: a size, margin, multiple or place out of range.
    """

    theme: Theme
    layout: Layout
    size: int = 14
    margin: int = 6
    multiple: int = 1
    smallest: tuple[int, int] = (0, 0)
    place: tuple[float, float] = (0.5, 0.5)
    pitch: tuple[int, int] = (1, 1)

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"type under 8 pixels can't be read, got size {self.size}")
        if self.margin < 0 or self.multiple < 1:
            raise ValueError(f"margin {self.margin} or multiple {self.multiple} is too small")
        if min(self.pitch) < 1 or any(self.margin % pitch for pitch in self.pitch):
            raise ValueError(f"the margin {self.margin} isn't on a lattice of pitch {self.pitch}")
        if not all(0 <= share <= 1 for share in self.place):
            raise ValueError(f"place must be in 0 .. 1, got {self.place}")


THEMES: tuple[Theme, ...] = (
    Theme("plain"),
    Theme("plain_bold", bold=True, rule=(120, 120, 120)),
    Theme("grey", header=(221, 221, 221), stub=(242, 242, 242), rule=(160, 160, 160)),
    Theme(
        "blue",
        header=(31, 78, 140),
        header_ink=WHITE,
        zebra=(226, 236, 248),
        rule=(160, 185, 220),
        bold=True,
    ),
    Theme(
        "green",
        header=(198, 224, 190),
        zebra=(240, 247, 237),
        ink=(30, 50, 30),
        rule=(130, 160, 125),
    ),
    Theme(
        "sand",
        page=(250, 246, 236),
        header=(222, 206, 170),
        header_ink=(70, 45, 10),
        stub=(240, 230, 208),
        body=(250, 246, 236),
        ink=(60, 45, 25),
        rule=(150, 125, 85),
    ),
    Theme(
        "red_header",
        header=(170, 35, 45),
        header_ink=WHITE,
        stub_ink=(120, 20, 30),
        rule=(200, 150, 150),
    ),
    Theme(
        "slate",
        page=(236, 239, 243),
        header=(70, 84, 102),
        header_ink=(245, 245, 245),
        stub=(208, 215, 224),
        body=(248, 249, 251),
        ink=(35, 42, 52),
        rule=(150, 160, 172),
        bold=True,
    ),
    Theme(
        "night",
        page=(18, 20, 26),
        header=(38, 42, 54),
        header_ink=(150, 200, 255),
        stub=(26, 29, 38),
        stub_ink=(225, 228, 235),
        body=(18, 20, 26),
        ink=(225, 228, 235),
        rule=(80, 86, 104),
        held_out=True,
    ),
    Theme(
        "violet",
        page=(246, 240, 252),
        header=(104, 58, 150),
        header_ink=(255, 240, 190),
        stub=(222, 204, 240),
        stub_ink=(60, 20, 100),
        body=(252, 248, 255),
        zebra=(236, 224, 248),
        ink=(50, 25, 80),
        rule=(160, 130, 195),
        bold=True,
        held_out=True,
    ),
    Theme(
        "terminal",
        page=BLACK,
        header=BLACK,
        header_ink=(90, 255, 120),
        stub=BLACK,
        stub_ink=(90, 255, 120),
        body=BLACK,
        ink=(60, 205, 90),
        rule=(30, 110, 50),
        held_out=True,
    ),
    Theme(
        "signal",
        page=(255, 236, 110),
        header=(20, 20, 20),
        header_ink=(255, 236, 110),
        stub=(255, 205, 60),
        body=(255, 236, 110),
        zebra=(255, 245, 170),
        rule=(20, 20, 20),
        held_out=True,
    ),
)

_ALL_LINES = {"rows": 1, "columns": 1, "header": 1, "stub": 1, "ends": 1, "sides": 1}

LAYOUTS: tuple[Layout, ...] = (
    Layout("grid", **_ALL_LINES),
    Layout("grid_left", **_ALL_LINES, align="left", pad=(0.4, 0.15)),
    Layout("grid_center", **_ALL_LINES | {"header": 2}, align="center", equal=True),
    Layout("lines", rows=1, header=1, ends=1),
    Layout("lines_airy", rows=1, header=2, pad=(0.9, 0.45), align="left"),
    Layout("booktabs", header=1, ends=2, align="center"),
    Layout("frame", header=1, stub=1, ends=1, sides=1),
    Layout("bare", pad=(0.7, 0.25)),
    Layout("bare_left", align="left", pad=(0.6, 0.2)),
    Layout("transposed", **_ALL_LINES, transposed=True, held_out=True),
    Layout("transposed_bare", transposed=True, align="left", pad=(0.6, 0.2), held_out=True),
    Layout("header_below", rows=1, header=2, ends=1, header_last=True, held_out=True),
    Layout("names_right", **_ALL_LINES, stub_last=True, align="center", held_out=True),
    Layout("columns_only", columns=1, stub=2, sides=1, pad=(0.5, 0.35), held_out=True),
)


def theme(name: str) -> Theme:
    """The theme of that name; KeyError where there is none."""
    return {theme.name: theme for theme in THEMES}[name]


def layout(name: str) -> Layout:
    """The layout of that name; KeyError where there is none."""
    return {layout.name: layout for layout in LAYOUTS}[name]
