"""The table of transposed convolutions: x (n, *spatial, o), w (*taps, c // groups, o), options of `conv_transpose`."""

from __future__ import annotations

from jaxconv.geometry import Layout
from tests.support.cases import Case

TRANSPOSED = [
    Case((2, 5, 2), (3, 3, 2), {"stride": 2, "padding": "VALID"}),
    Case((2, 4, 2), (3, 3, 2), {"stride": 3, "padding": ((2, -1),), "output_padding": 2}),
    Case((2, 3, 4, 3), (3, 3, 2, 3), {}),
    Case((2, 3, 4, 3), (3, 3, 2, 3), {"stride": 2}),
    Case((1, 4, 3, 2), (2, 3, 3, 2), {"stride": (3, 2), "padding": "SAME_LOWER", "output_padding": (1, 0)}),
    Case((2, 4, 3, 4), (3, 3, 2, 4), {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1}),
    Case((2, 3, 3, 4), (3, 2, 1, 4), {"groups": 4, "dilation": (2, 3), "stride": (1, 2), "padding": ((1, 2), (0, 3))}),
    Case((2, 4, 4, 2), (2, 2, 3, 2), {"stride": 4, "padding": 0}),  # a stride wider than the window
    Case((2, 3, 3, 3), (1, 1, 2, 3), {"stride": 2, "padding": 0, "output_padding": 1}),
    Case((1, 2, 3, 2, 2), (2, 3, 2, 2, 2), {"stride": (1, 2, 2), "padding": (0, 1, 1)}),
    Case((0, 3, 3, 2), (3, 3, 2, 2), {"stride": 2}),
    Case((1, 1, 1, 1), (3, 3, 1, 1), {"stride": 2, "padding": "VALID"}),
]

# A handful that between them use every option.
FEW_TRANSPOSED = [TRANSPOSED[i] for i in (1, 4, 6, 9)]


def layout_of(case: Case) -> tuple[str, Layout]:
    """The name of a case's layout and where it puts the axes."""
    name = case.options.get("layout", "NHWC")
    return name, Layout.of(name, len(case.x) - 2)


def spatial_and_taps(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The spatial sizes of x and of w."""
    _, place = layout_of(case)
    return tuple(case.x[axis] for axis in place.x[2:]), tuple(case.w[axis] for axis in place.w[2:])
