"""The integers are right: sizes and paddings equal what enumerating the positions finds."""

import ast
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jax import lax

import jaxconv.geometry
from jaxconv.geometry import (
    LAYOUTS,
    Axis,
    Geometry,
    Layout,
    channels_last_order,
    conv_geometry,
    inverse,
    placed,
    taps_first_order,
)

# Every axis with up to 6 inputs and 3 taps, except those that crop more than there is.
AXES = [
    axis
    for axis in itertools.starmap(
        Axis, itertools.product(range(7), (1, 2, 3), (1, 2, 3, 5), (1, 2), (1, 2), range(-2, 4), (-2, -1, 0, 1, 2, 4))
    )
    if axis.length + axis.lo + axis.hi >= 0
]
Cells = list[int | None]  # an axis as a list: the index of an element, or None for a zero


def spread(n: int, step: int, lo: int, hi: int) -> Cells:
    """n elements `step` apart, padded, and cropped where the padding is negative."""
    cells: Cells = [None] * lo
    for i in range(n):
        cells += [i] if i == 0 else [*[None] * (step - 1), i]
    cells += [None] * hi
    return cells[max(-lo, 0) : len(cells) - max(-hi, 0)]


def visits(cells: Cells, taps: int, stride: int, dilation: int) -> list[list[int | None]]:
    """What each window of a convolution reads, tap by tap."""
    starts = itertools.count(0, stride)
    places = ([start + tap * dilation for tap in range(taps)] for start in starts)
    inside = itertools.takewhile(lambda place: place[-1] < len(cells), places)
    return [[cells[cell] for cell in place] for place in inside]


def forward(axis: Axis) -> list[list[int | None]]:
    cells = spread(axis.n, axis.input_dilation, axis.lo, axis.hi)
    return visits(cells, axis.k, axis.stride, axis.dilation)


def meetings(windows: list[list[int | None]]) -> set[tuple[int, int, int]]:
    """(window, tap, element) wherever a window reads an element."""
    return {(w, t, cell) for w, window in enumerate(windows) for t, cell in enumerate(window) if cell is not None}


READ = [axis for axis in AXES if axis.out]


def test_there_are_thousands_of_axes() -> None:
    assert len(AXES) > 10_000 and len(READ) > 9_000


def test_length_is_the_number_of_cells() -> None:
    for axis in AXES:
        assert axis.length == len(spread(axis.n, axis.input_dilation, 0, 0)), axis


def test_out_is_the_number_of_windows_that_fit() -> None:
    for axis in AXES:
        assert axis.out == len(forward(axis)), axis


def test_span_and_unread_are_what_a_window_covers_and_what_none_reaches() -> None:
    for axis in AXES:
        cells = len(spread(axis.n, axis.input_dilation, axis.lo, axis.hi))
        touched = [tap * axis.dilation for tap in range(axis.k)]
        assert axis.span == touched[-1] - touched[0] + 1, axis
        last = (axis.out - 1) * axis.stride + touched[-1]
        assert not axis.out or axis.unread == cells - 1 - last, axis


def test_the_input_gradient_is_the_padded_convolution_of_the_dilated_cotangent_with_the_rotated_kernel() -> None:
    for axis in READ:
        cells = spread(axis.out, axis.stride, *axis.input_grad_padding)
        windows = visits(cells, axis.k, axis.input_dilation, axis.dilation)
        assert len(windows) == axis.n, axis
        rotated = {(p, axis.k - 1 - t, q) for q, t, p in meetings(windows)}
        assert rotated == meetings(forward(axis)), axis


def test_the_kernel_gradient_is_the_convolution_with_stride_and_dilation_exchanged() -> None:
    for axis in READ:
        cells = spread(axis.n, axis.input_dilation, *axis.kernel_grad_padding)
        windows = visits(cells, axis.out, axis.dilation, axis.stride)
        assert len(windows) == axis.k, axis
        assert {(p, k, q) for k, p, q in meetings(windows)} == meetings(forward(axis)), axis


# Geometry


def geometry(spatial: Sequence[int], taps: Sequence[int], layout: str = "NHWC", **options: Any) -> Geometry:
    place = Layout.of(layout, len(spatial))
    return conv_geometry(
        "conv", placed(place.x, 2, 4, spatial), placed(place.w, 6, 4, taps), layout=layout, **options
    )  # fmt: skip


def test_a_geometry_is_frozen_hashable_and_equal_by_value() -> None:
    one, other = (geometry((5, 6), (3, 2), stride=(1, 2), padding=[(1, 0), 2]) for _ in range(2))
    assert one is not other and one == other and hash(one) == hash(other)
    assert one != geometry((5, 6), (3, 2), stride=(1, 2), padding=[(0, 1), 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.groups = 2  # type: ignore[misc]


def test_a_geometry_is_its_axes() -> None:
    whole = geometry((9, 8), (3, 2), stride=(2, 3), dilation=(1, 2), input_dilation=(2, 1), padding=((1, -2), (0, 4)))
    first, second = Axis(9, 3, 2, 1, 2, 1, -2), Axis(8, 2, 3, 2, 1, 0, 4)
    assert whole.axes == (first, second) and whole.rank == 2
    for name in ("span", "out", "unread", "input_grad_padding", "kernel_grad_padding"):
        assert getattr(whole, name) == (getattr(first, name), getattr(second, name)), name


def test_more_groups_change_nothing_else() -> None:
    one = geometry((5, 6), (3, 2))
    assert one.with_groups(3) == dataclasses.replace(one, groups=3)


@pytest.mark.parametrize(
    ("layout", "x", "w", "y"),
    [("NHWC", (2, 5, 6, 4), (3, 2, 4, 6), (2, 3, 5, 6)), ("NCHW", (2, 4, 5, 6), (6, 4, 3, 2), (2, 6, 3, 5))],
)
def test_shapes_follow_the_layout(layout: str, x: tuple, w: tuple, y: tuple) -> None:
    resolved = geometry((5, 6), (3, 2), layout, padding="VALID")
    assert (resolved.x_shape(2, 4), resolved.w_shape(4, 6), resolved.y_shape(2, 6)) == (x, w, y)


def test_geometry_imports_no_array_library() -> None:
    allowed = {"__future__", "collections.abc", "dataclasses", "operator", "typing"}
    files = sorted(Path(jaxconv.geometry.__file__).parent.glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{'.' * node.level}{node.module}"] if isinstance(node, ast.ImportFrom) else []
            foreign = {name for name in names if not name.startswith("jaxconv.geometry")} - allowed
            assert not foreign, f"{file.name} imports {foreign}"


# Padding


SIZES = list(itertools.product(range(1, 9), (1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2)))


@pytest.mark.parametrize("word", ["SAME", "SAME_LOWER", "VALID"])
def test_a_word_pads_as_lax_does(word: str) -> None:
    for n, k, s, d, i in SIZES:
        resolved = geometry((n,), (k,), stride=s, dilation=d, input_dilation=i, padding=word)
        (axis,) = resolved.axes
        assert [*resolved.padding] == lax.padtype_to_pads((axis.length,), (axis.span,), (s,), word), axis


@pytest.mark.parametrize("word", ["SAME", "SAME_LOWER"])
def test_same_gives_one_output_per_stride(word: str) -> None:
    for n, k, s, d, i in SIZES:
        (axis,) = geometry((n,), (k,), stride=s, dilation=d, input_dilation=i, padding=word).axes
        assert axis.out == len(range(0, axis.length, s)), axis


def test_causal_reads_nothing_ahead() -> None:
    for n, k, s, d, i in SIZES:
        (axis,) = geometry((n,), (k,), stride=s, dilation=d, input_dilation=i, padding="CAUSAL").axes
        assert axis.out == len(range(0, axis.length, s)), axis
        for p, window in enumerate(forward(axis)):
            assert all(q * i <= p * s for q in window if q is not None), axis
            assert p * s % i or window[-1] == p * s // i, axis


@pytest.mark.parametrize(
    ("spelling", "pairs"),
    [
        (0, ((0, 0), (0, 0))),
        ("VALID", ((0, 0), (0, 0))),
        ("valid", ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        (-1, ((-1, -1), (-1, -1))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, (2, -1)], ((1, 1), (2, -1))),
        ([[1, 1], [2, 0]], ((1, 1), (2, 0))),
        ("SAME", ((1, 1), (0, 1))),
        ("same", ((1, 1), (0, 1))),
        ("SAME_LOWER", ((1, 1), (1, 0))),
    ],
    ids=str,
)
def test_every_spelling_of_padding_is_its_pairs(spelling: Any, pairs: Any) -> None:
    assert geometry((5, 6), (3, 2), padding=spelling) == geometry((5, 6), (3, 2), padding=pairs)


@pytest.mark.parametrize("option", ["stride", "dilation", "input_dilation"])
def test_an_int_is_one_per_axis(option: str) -> None:
    assert geometry((5, 6), (3, 2), **{option: 2}) == geometry((5, 6), (3, 2), **{option: [2, 2]})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", range(4))
def test_a_layout_is_turned_channels_last_and_back(layout: str, rank: int) -> None:
    place, many = Layout.of(layout, rank), tuple(range(3, 3 + rank))
    shape, kernel = placed(place.x, 1, 2, many), placed(place.w, 1, 2, many)
    assert tuple(shape[axis] for axis in channels_last_order(place.x)) == (1, *many, 2)
    assert tuple(kernel[axis] for axis in channels_last_order(place.w)) == (1, *many, 2)
    assert tuple(kernel[axis] for axis in taps_first_order(place.w)) == (*many, 2, 1)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))], ids=str)
def test_an_inverse_undoes_its_permutation(order: tuple[int, ...]) -> None:
    turned = [f"axis {axis}" for axis in order]
    assert [turned[axis] for axis in inverse(order)] == ["axis 0", "axis 1", "axis 2", "axis 3"]
