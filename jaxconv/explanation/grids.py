"""Arrays of any rank as cells in the plane, and the pen that draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxconv.explanation.reading import Index

# The most cells of a grid that shows its numbers, and the longer side of one that does not, in cells of one that does.
NUMBERED, IMAGE = 600, 14.0

INK, FAINT = "#1c1c1c", "#707070"
FACES = {
    "element": "#ffffff", "padding": "#e6e6e6", "between": "#e6e6e6", "unread": "#cfcfcf",
    "under": "#f4b63f", "now": INK, "wrong": "#9c2a20",
}  # fmt: skip


class Cell(NamedTuple):
    """How an element is drawn: `kind` is a key of FACES; the numbers that make up a sum are strong.

    A wrong one, which is struck out, knows the right number.
    """

    kind: str
    strong: bool
    right: float | None = None


def decimal(value: float, right: float | None = None) -> str:
    """A whole number, or three digits of a fraction; more where it takes more to tell it from the right one."""
    for digits in (6,) if value == np.round(value) else range(3, 17):
        text = f"{value:.{digits}g}"
        if right is None or value == right or text != f"{right:.{digits}g}":
            break
    return text


class Grid:
    """Where the cells of an N-D array lie in the plane: rows and columns, further axes tiled, channels stacked.

    An array of too many cells for numbers is drawn as an image, no larger than the others.
    """

    def __init__(self, shape: Index, channels: int) -> None:
        self.shape, self.channels, self.scale = shape, channels, 1.0
        self.numbered = math.prod(shape) <= NUMBERED
        if not self.numbered:
            self.scale = min(1.0, IMAGE / max(self._corner()))
        self.width, self.each = self._corner()
        self.height = channels * (self.each + 0.5) - 0.5

    def draw(self, pen: Pen, cells: dict[Index, Cell], numbers: np.ndarray) -> None:
        for channel in range(self.channels):
            if not self.numbered:
                self._images(pen, channel, cells)
                continue
            for index, cell in cells.items():
                pen.cell(*self._place(channel, index), cell, numbers[channel, *index])

    def outline(self, pen: Pen, channel: int, corners: Sequence[Index]) -> None:
        """A frame around the cells between the first and the last of `corners`."""
        x, y = self._place(channel, corners[0])
        right, below = self._place(channel, corners[-1])
        pen.frame(x, y, right - x + self.scale, below - y + self.scale)

    def _images(self, pen: Pen, channel: int, cells: dict[Index, Cell]) -> None:
        *lead, rows, columns = (1,) * (2 - len(self.shape)) + self.shape
        faces = np.array([FACES["wrong" if cell.right is not None else cell.kind] for cell in cells.values()]).reshape(
            *lead, rows, columns
        )
        for tile in np.ndindex(*lead):
            first = (*tile, 0, 0)[-len(self.shape) :]
            pen.image(*self._place(channel, first), columns * self.scale, rows * self.scale, faces[tile])

    def _corner(self) -> tuple[float, float]:
        if not all(self.shape):
            return 0.0, 0.0
        x, y = self._place(0, tuple(n - 1 for n in self.shape))
        return x + self.scale, y + self.scale

    def _place(self, channel: int, index: Index) -> tuple[float, float]:
        where, steps = [0.0, 0.0], [self.scale, self.scale]
        for i, (k, n) in enumerate(zip(reversed(index), reversed(self.shape), strict=True)):
            where[i % 2] += k * steps[i % 2]
            steps[i % 2] = steps[i % 2] * n + 0.5
        return where[0], where[1] + (channel * (self.each + 0.5) if channel else 0)


class Pen:
    """Cells, images and words at an offset."""

    def __init__(self, axes: Any, x: float, y: float) -> None:
        self.axes, self.x, self.y = axes, x, y

    def at(self, x: float, y: float) -> Pen:
        return Pen(self.axes, self.x + x, self.y + y)

    def cell(self, x: float, y: float, cell: Cell, value: float) -> None:
        faint = cell.kind in ("padding", "between")
        edge = {"edgecolor": "#b0b0b0", "linestyle": ":"} if faint else {"edgecolor": "#4a4a4a"}
        if cell.kind == "unread":
            self._rectangle(x, y, 1, 1, facecolor="white", edgecolor="#bcbcbc", hatch="////", linewidth=0)
        face = "none" if cell.kind == "unread" else FACES[cell.kind]
        self._rectangle(x, y, 1, 1, facecolor=face, linewidth=0.6, **edge)
        text = decimal(value, cell.right).replace("-", "−")
        size = min(5.5, 30 / len(text)) if "." in text else 7 if len(text) < 4 else 5.5
        colour = "white" if cell.kind == "now" else FAINT if faint else INK
        weight = "bold" if cell.strong else "normal"
        self.text(x + 0.5, y + 0.52, text, colour, size=size, ha="center", va="center", weight=weight)
        if cell.right is not None:
            self.strike(x, y)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        self._rectangle(x, y, width, height, facecolor="none", edgecolor=INK, linewidth=1.6, zorder=3)

    def strike(self, x: float, y: float) -> None:
        """A cell crossed out: a line that shows on white and on black."""
        x, y = self.x + x, self.y + y
        self.axes.plot([x, x + 1], [y + 1, y], color=FACES["wrong"], linewidth=0.9, zorder=4, solid_capstyle="butt")

    def banner(self, x: float, y: float, width: float, text: str) -> None:
        """A line of text in white on black."""
        self._rectangle(x, y, width, 1.2, facecolor=INK)
        self.text(x + 0.4, y + 0.62, text, "white", size=8, weight="bold", va="center")

    def image(self, x: float, y: float, width: float, height: float, faces: np.ndarray) -> None:
        from matplotlib.colors import to_rgb

        colours = np.array([to_rgb(face) for face in faces.ravel()]).reshape(*faces.shape, 3)
        x, y = self.x + x, self.y + y
        self.axes.imshow(colours, extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto")
        self._rectangle(x - self.x, y - self.y, width, height, facecolor="none", edgecolor="#4a4a4a", linewidth=0.6)

    def text(self, x: float, y: float, text: str, color: str = INK, size: float = 7, **options: Any) -> None:
        self.axes.text(self.x + x, self.y + y, text, color=color, fontsize=size, **options)

    def _rectangle(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((self.x + x, self.y + y), width, height, **options))
