"""The three maps as pictures: a kernel moving over its operand, one frame, a strip of frames, or an animation.

Everything is told apart by lightness and line, so that it survives a greyscale printer.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxconv.explanation import verification
from jaxconv.explanation.equations import LETTERS, Equation, number
from jaxconv.explanation.grids import FAINT, Cell, Grid, Pen, decimal
from jaxconv.explanation.reading import Index, Product
from jaxconv.explanation.recipes import Recipe
from jaxconv.explanation.svg import compact
from jaxconv.geometry import placed

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation

CELL = 0.3  # inches
GAP = 1.0  # cells, between arrays
LINE = 1.0  # cells, for a line of text
BANNER = 1.8  # cells, for what is wrong, above everything else
# Channels of an operand that are drawn (in dw: examples).
CHANNELS = 3
# Products of a sum that are written out.
TERMS = 4
# Positions that an animation visits at most, and how many it shows a second.
FRAMES, PER_SECOND = 120, 2
# Resolution of a PNG, and what its renderer can hold.
DPI, PIXELS = 160, 2**15
FORMATS = (".svg", ".png", ".pdf", ".gif")


def figure(e: Explanation, path: str | Path | None, maps: Sequence[str], frames: int | None) -> Any:
    """See `Explanation.figure`."""
    maps = _checked(e, path, maps, frames)
    try:
        from matplotlib import rc_context
        from matplotlib.animation import FuncAnimation, PillowWriter
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("explain: figure needs matplotlib. pip install jaxconv[experiments]") from error
    kind = Path(path).suffix.lower() if path is not None else ""
    animated = kind == ".gif"
    rows = [_Row(e, name) for name in maps]
    longest = max(math.prod(row.recipe.positions) for row in rows)
    count = min(longest, FRAMES) if animated and frames is None else min(longest, frames or 1)
    for row in rows:
        row.visit(count)
    width = GAP + max(row.width for row in rows)
    columns = 1 if animated else count
    first_row = BANNER if e.verdict else 0.0
    size = columns * width + GAP, first_row + sum(row.height for row in rows)
    if max(size) * CELL * DPI > PIXELS:
        raise ValueError(
            f"explain: frames must fit into {PIXELS} pixels, but {columns} frames are {size[0] * CELL * DPI:.0f} wide. "
            "Ask for fewer, or for a GIF."
        )
    drawn = Figure(figsize=(size[0] * CELL, size[1] * CELL))
    axes = drawn.add_axes((0, 0, 1, 1))

    def draw(first: int) -> Sequence[Any]:
        axes.clear()
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        axes.axis("off")
        if e.verdict:
            Pen(axes, 0, 0).banner(0, 0.2, size[0], e.verdict)
        top = first_row
        for row in rows:
            for column in range(columns):
                row.draw(Pen(axes, GAP + column * width, top), first + column)
            top += row.height
        return ()

    if path is not None and animated:
        FuncAnimation(drawn, draw, frames=count).save(path, writer=PillowWriter(fps=PER_SECOND), dpi=100)
        return drawn
    draw(0)
    if path is not None and kind == ".svg":
        written = io.StringIO()
        with rc_context({"svg.hashsalt": "jaxconv"}):  # the same picture, the same file
            drawn.savefig(written, format="svg", dpi=DPI, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        Path(path).write_text(compact(written.getvalue()), encoding="utf-8")
    elif path is not None:
        drawn.savefig(path, dpi=DPI)
    return drawn


def _checked(e: Explanation, path: str | Path | None, maps: Sequence[str], frames: int | None) -> Sequence[str]:
    """The maps to draw; every mistake is found before anything is computed."""
    maps = [maps] if isinstance(maps, str) else list(maps)
    if not maps or not set(maps) <= set(e.recipes):
        known, given = ", ".join(e.recipes), ", ".join(map(repr, maps)) or "none"
        raise ValueError(f"explain: maps must be some of {known}, but are {given}.")
    if frames is not None and frames < 1:
        raise ValueError(f"explain: frames must be at least 1, but {frames} < 1.")
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"explain: a figure's path must end in one of {', '.join(FORMATS)}, but is {str(path)!r}.")
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"explain: {path} cannot be written: its folder does not exist.")
    return maps


class _Row:
    """One map, for one row of its operand and one output of one group: what is moved over, what moves, the result.

    The result is the one that the window adds up to. Where the rule's is another, it stands beside that one.
    """

    def __init__(self, e: Explanation, name: str) -> None:
        self.e, self.name, self.recipe = e, name, e.recipes[name]
        left, right = (e.example[factor] for factor in self.recipe.factors)
        self.result, self.ours, self.wrong = e.right[name], e.example[name], e.wrong[name]
        self.at = e.richest(name)
        group, batch, output, self.richest = _parts(e, name, self.at)
        operand = self.recipe.prepared_operand(left)[group, batch]
        self.summed = len(operand)
        self.operand = operand[:CHANNELS]
        self.kernel = self.recipe.prepared_kernel(right)[group, output, :CHANNELS]
        self.kinds = _kinds(self)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel.shape[1:], self.recipe.kernel_dilation, strict=True)]
        shapes = self.operand.shape[1:], tuple(max(n, 0) for n in spans), self.recipe.positions
        channels = len(self.operand), len(self.kernel), 1
        self.grids = [Grid(shape, n) for shape, n in zip(shapes, channels, strict=True)]
        if self.wrong.any():
            self.grids.append(Grid(self.recipe.positions, 1))
        self.width = max(sum(grid.width for grid in self.grids) + 2 * (len(self.grids) - 1) * GAP, 22.0)
        self.tallest = max(grid.height for grid in self.grids)
        self.top = 1.6 * LINE
        self.height = self.tallest + 4.2 * LINE + (0.9 if self.summed > CHANNELS else 0)
        if self.wrong.any():  # a heading for each of two results, and a line for each of two sums
            self.top += 0.7
            self.height += 1.6
        self.equations: tuple[Equation, ...] = ()

    def visit(self, count: int) -> None:
        """Choose that many positions, evenly spaced, and read what each is the sum of; a single one is the richest."""
        places = list(np.ndindex(*self.recipe.positions))
        if not places or not self.e.example["y"].size:
            self.places: list[Index] = [()] * count
            return
        picked = [round(i * (len(places) - 1) / max(count - 1, 1)) for i in range(count)]
        self.places = [self.richest] if count == 1 else [places[i] for i in picked]
        self.equations = self.e.read(self.name, [self._entry(place) for place in self.places])

    def draw(self, pen: Pen, frame: int) -> None:
        """One frame: title, operand with the window on it ⋆ kernel = result, and the sum in numbers."""
        pen.text(0, 0.9, self._title(), size=8, weight="bold")
        if not self.equations:
            pen.text(0, 2 * LINE, f"no window fits: there is nothing to sum up for {self.name}")
            return
        place, q = self.places[frame], self.equations[frame]
        middle = self.top + self.tallest / 2
        operand, kernel, result, *ours = self.grids
        left = 0.0
        self._operand(pen.at(left, middle - operand.height / 2), place)
        left += operand.width
        pen.text(left + GAP, middle, "⋆", size=12, ha="center", va="center")
        left += 2 * GAP
        self._kernel(pen.at(left, middle - kernel.height / 2))
        left += kernel.width
        pen.text(left + GAP, middle, "=", size=12, ha="center", va="center")
        left += 2 * GAP
        self._result(pen.at(left, middle - result.height / 2), result, self.result, place)
        left += result.width
        for grid in ours:
            pen.text(left + GAP, middle, "≠", size=12, ha="center", va="center")
            above = middle - grid.height / 2 - 0.3
            pen.text(left - grid.width, above, "right")
            left += 2 * GAP
            pen.text(left, above, "the rule's" if self.e.layer is None else self.e.layer.name)
            self._result(pen.at(left, middle - grid.height / 2), grid, self.ours, place, self.wrong)
        below = self.top + self.tallest + 1.3
        for line in self._sums(q):
            pen.text(0, below, line)
            below += 0.9
        if self.summed > len(self.operand):
            what = "examples" if self.name == "dw" else "channels"
            pen.text(0, below, f"drawn: {len(self.operand)} of the {self.summed} {what} that are summed", FAINT)

    def _operand(self, pen: Pen, place: Index) -> None:
        grid, taps = self.grids[0], self.kernel.shape[1:]
        under = [range(*w.indices(n)) for w, n in zip(self.recipe.window(place, taps), grid.shape, strict=True)]
        cells = {}
        for index in np.ndindex(*grid.shape):
            kind = self.kinds(index)
            tapped = all(i in along for i, along in zip(index, under, strict=True))
            cells[index] = Cell("under" if tapped else kind, strong=tapped and kind == "element")
        grid.draw(pen, cells, self.operand)
        for channel in range(grid.channels):
            for lead in itertools.product(*under[:-2]):
                grid.outline(pen, channel, [(*lead, *corner) for corner in _corners(under[-2:])])

    def _kernel(self, pen: Pen) -> None:
        """The kernel as it lies on the operand, its dilation filled with zeros."""
        grid, steps = self.grids[1], self.recipe.kernel_dilation
        spread = np.zeros((grid.channels, *grid.shape))
        spread[:, *(slice(None, None, d) for d in steps)] = self.kernel
        cells = {
            index: Cell("under", True)
            if not any(i % d for i, d in zip(index, steps, strict=True))
            else Cell("between", False)
            for index in np.ndindex(*grid.shape)
        }
        grid.draw(pen, cells, spread)

    def _result(self, pen: Pen, grid: Grid, result: np.ndarray, place: Index, wrong: np.ndarray | None = None) -> None:
        numbers, cells = np.zeros((1, *grid.shape)), {}
        for index in np.ndindex(*grid.shape):
            entry, now = self._entry(index), index == place
            numbers[0, *index] = result[entry]
            right = float(self.result[entry]) if wrong is not None and wrong[entry] else None
            cells[index] = Cell("now" if now else "element", now, right)
        grid.draw(pen, cells, numbers)

    def _entry(self, place: Index) -> Index:
        """The entry of the result that the kernel computes at this position."""
        first, second, *_ = layout = self.recipe.layout(self.name)
        return placed(layout, self.at[first], self.at[second], _turned(self.recipe, place))

    def _title(self) -> str:
        recipe = self.recipe
        first, second = LETTERS[recipe.operand], LETTERS[recipe.kernel]
        if max(recipe.operand_dilation) > 1:
            first = f"dilated {first}"
        if any(any(pair) for pair in recipe.padding):
            first = f"padded {first}" if min(map(min, recipe.padding)) >= 0 else f"padded and cropped {first}"
        if recipe.rotated:
            second = f"{second} rotated by 180°"
        if max(recipe.kernel_dilation) > 1:
            second = f"dilated {second}"
        return f"{self.name}: {first} ⋆ {second}"

    def _sums(self, q: Equation) -> list[str]:
        """What the window adds up to; and above it what the rule does, where that is something else."""
        ours, right = q.telling()
        if not (q.wrong or self.wrong[q.entry]):
            return [self._sum(q, right, self.result)]
        made = self._sum(q, ours, self.ours)
        if not verification.adds_up(self.e, q):
            made = f"{self._sum(q, [], self.ours)}, no sum of such products"
        return [f"WRONG: {made}", f"right: {self._sum(q, right, self.result)}"]

    def _sum(self, q: Equation, products: Sequence[Product], result: np.ndarray) -> str:
        factors = [self.e.example[factor] for factor in q.factors]
        numbers = [[left[i] for left, i in zip(factors, p[1:], strict=True)] for p in products[:TERMS]]
        terms = [
            "·".join([*([] if p.coefficient == 1 else [_bracketed(number(p.coefficient))]), *map(_signed, pair)])
            for p, pair in zip(products, numbers, strict=False)
        ]
        if len(products) > TERMS:
            terms.append(f"… ({len(products)} products)")
        total = decimal(result[q.entry], self.e.right[self.name][q.entry])
        exact = all(float(decimal(n)) == n for n in itertools.chain(*numbers)) and float(total) == result[q.entry]
        head = f"{self.name}[{','.join(map(str, q.entry))}]"
        total = total.replace("-", "−")
        return f"{head} = {' + '.join(terms)} {'=' if exact else '≈'} {total}" if terms else f"{head} = {total}"


def _signed(value: float) -> str:
    return _bracketed(decimal(value))


def _bracketed(text: str) -> str:
    return f"(−{text[1:]})" if text[0] in "-−" else text


def _corners(along: Sequence[range]) -> list[Index]:
    """The first and the last index of a window."""
    return [tuple(r[0] for r in along), tuple(r[-1] for r in along)]


def _parts(e: Explanation, name: str, entry: Index) -> tuple[int, int, int, Index]:
    """Group, row of the operand, output within the group, and position of the kernel, for an entry of a result."""
    if not entry:  # there is none
        return 0, 0, 0, ()
    recipe = e.recipes[name]
    first, second, *place = (entry[axis] for axis in recipe.layout(name))
    per_group = (e.channels if name == "dx" else e.outputs) // e.geometry.groups
    channel, row = (first, second) if name == "dw" else (second, first)
    return channel // per_group, row, channel % per_group, _turned(recipe, place)


def _turned(recipe: Recipe, place: Sequence[int]) -> Index:
    """From a position of the kernel to an index of the result, or back."""
    if not recipe.result_rotated:
        return tuple(place)
    return tuple(n - 1 - p for p, n in zip(place, recipe.positions, strict=True))


def _kinds(row: _Row) -> Any:
    """Says what stands at an index of the prepared operand: an element, one that is unread, or which kind of zero."""
    recipe, axes = row.recipe, row.e.axes
    lengths = row.e.geometry.out if recipe.operand == "g" else row.e.geometry.spatial
    unread = [a.unread if row.name == "y" else 0 for a in axes]

    def kind(index: Index) -> str:
        found = "element"
        for i, n, step, (lo, _), size, missed in zip(
            index, lengths, recipe.operand_dilation, recipe.padding, row.operand.shape[1:], unread, strict=True
        ):
            if not 0 <= i - lo <= (n - 1) * step:
                return "padding"
            if (i - lo) % step:
                found = "between"
            elif i >= size - missed and found == "element":
                found = "unread"
        return found

    return kind
