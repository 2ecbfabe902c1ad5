"""The page, put together from its parts; and what is too large for it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jaxconv.geometry import Geometry, Layout

AXES, ELEMENTS, CELLS, CHANNELS = 2, 12, 24, 6


def html(geometry: Geometry, channels: int, outputs: int, told: dict[str, Any] | None = None) -> str:
    """A self-contained page that starts from `geometry`; nothing in it asks the network for anything.

    Args:
      geometry: a resolved geometry of 1 or 2 spatial axes.
      channels: the channels of x.
      outputs: the channels of y.
      told: numbers to start from and what is wrong about a rule, as `told` finds them; else the page invents numbers.

    Returns:
      The text of an HTML file.

    Raises:
      ValueError: if the convolution is too large to be drawn, or is a true convolution (`flip_kernel`).

    Example:
      >>> from jaxconv.geometry import conv_geometry
      >>> from jaxconv.explanation.page import html
      >>> geometry = conv_geometry("explain", (1, 5, 5, 1), (3, 3, 1, 1), stride=2)
      >>> html(geometry, channels=1, outputs=1).splitlines()[0]
      '<!doctype html>'
    """
    _check(geometry, channels, outputs)
    start: dict[str, Any] = {
        "axes": [
            {"n": a.n, "k": a.k, "s": a.stride, "d": a.dilation, "i": a.input_dilation, "lo": a.lo, "hi": a.hi}
            for a in geometry.axes
        ],
        "groups": geometry.groups,
        "inputs": channels // geometry.groups,
        "outputs": outputs // geometry.groups,
        "layout": "NHWC" if geometry.layout == Layout.of("NHWC", geometry.rank) else "NCHW",
    }
    if told is not None:
        start["told"] = told
    page = _file("page.html")
    for name in ("page.css", "algebra.js", "controls.js", "drawing.js", "pointing.js", "page.js"):
        page = page.replace(f"{{{{{name}}}}}", _file(name).rstrip())
    return page.replace("{{start}}", json.dumps(start).replace("<", "\\u003c"))


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _check(geometry: Geometry, channels: int, outputs: int) -> None:
    """What the page can draw, and what to do about the rest."""
    text = "As text, explain(...) says it all."
    if not 1 <= geometry.rank <= AXES:
        raise ValueError(f"explain: the page draws at most {AXES} spatial axes, but there are {geometry.rank}. {text}")
    if geometry.flip_kernel:
        raise ValueError(
            "explain: the page draws the cross-correlation, but flip_kernel is True. "
            "Rotate the kernel by 180° and say flip_kernel=False, which is the same convolution."
        )
    for name, count in (("x", channels), ("y", outputs)):
        if count > CHANNELS:
            raise ValueError(
                f"explain: the page draws at most {CHANNELS} channels, but {name} has {count} > {CHANNELS}. "
                "Take fewer: every channel of a group is treated alike."
            )
        if count < 1 or count % geometry.groups:
            raise ValueError(
                f"explain: the page draws at least one channel per group, but {name} has {count} "
                f"in {geometry.groups} groups."
            )
    for i, axis in enumerate(geometry.axes):
        for name, count in (("x", axis.n), ("w", axis.k)):
            if count > ELEMENTS:
                raise ValueError(
                    f"explain: the page draws at most {ELEMENTS} elements per axis, "
                    f"but {name} has {count} > {ELEMENTS} along spatial axis {i}. "
                    "Take a smaller one: the pattern of its gradients is the same."
                )
        if not axis.n:
            raise ValueError(
                f"explain: the page draws at least 1 element per axis, but x has 0 along spatial axis {i}. {text}"
            )
        cells = _cells_in_a_row(geometry, i)
        if cells > CELLS:
            raise ValueError(
                f"explain: the page draws at most {CELLS} cells in a row, but spatial axis {i} needs {cells} > {CELLS} "
                "with the zeros of its padding and dilations. Take a smaller input, padding or dilation."
            )


def _cells_in_a_row(geometry: Geometry, i: int) -> int:
    """The widest of what is read: x dilated and padded, δ dilated and padded, the kernels dilated."""
    axis = geometry.axes[i]
    delta = (axis.out - 1) * axis.stride + 1 if axis.out else 0
    frames = ((axis.length, (axis.lo, axis.hi)), (delta, axis.input_grad_padding))
    return max(axis.span, *(length + max(lo, 0) + max(hi, 0) for length, (lo, hi) in frames))
