"""Which indices meet: the trilinear form's own count, which no rule has a say in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxconv.explanation.reading import Index
from jaxconv.geometry import Axis, placed

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation


def meetings(e: Explanation, name: str, entry: Index) -> Iterator[tuple[Index, Index]]:
    """The pairs of indices that the trilinear form multiplies on the way to an entry of y, dx or dw."""
    left, right = e.recipes[name].factors
    layout, groups = e.geometry.layout, e.geometry.groups
    first, second, *spatial = (entry[axis] for axis in e.recipes[name].layout(name))
    per_in, per_out = e.channels // groups, e.outputs // groups
    which = {"y": 0, "dw": 1, "dx": 2}[name]  # of p, k and q, the one that the entry names
    along = [
        [met for met in axis_meetings(axis, e.geometry.flip_kernel) if met[which] == place]
        for axis, place in zip(e.axes, spatial, strict=True)
    ]
    examples = range(e.batch) if name == "dw" else [first]
    outputs = range(e.outputs) if name == "dx" else [second if name == "y" else first]
    inputs = {"y": range(per_in), "dx": [second % per_in], "dw": [second]}[name]
    for n, o, c in itertools.product(examples, outputs, inputs):
        channel = o // per_out * per_in + c
        if name == "dx" and channel != second:
            continue
        for met in itertools.product(*along):
            p, k, read = zip(*met, strict=True)
            index = {
                "x": placed(layout.x, n, channel, read),
                "w": placed(layout.w, o, c, k),
                "g": placed(layout.y, n, o, p),
            }
            yield index[left], index[right]


def axis_meetings(a: Axis, flipped: bool) -> Iterator[Index]:
    """All (p, k, q) of one axis: the output p reads the input q at the kernel's entry k."""
    for p, tap in itertools.product(range(a.out), range(a.k)):
        q, between = divmod(a.stride * p + a.dilation * tap - a.lo, a.input_dilation)
        if not between and 0 <= q < a.n:
            yield p, a.k - 1 - tap if flipped else tap, q
