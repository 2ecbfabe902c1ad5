"""Every number on the page is the library's, and a page whose numbers are wrong says so.

The page computes on its own, in JavaScript, from small integers; so its numbers and ours must be equal exactly. What
is compared is read off the cells that a reader sees. Without Chromium or Playwright the browser tests are skipped.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from tests.instruments.page.looking import (
    DRAWN,
    FEW,
    STRIDED,
    Look,
    Visitor,
    assert_shows,
    computed,
    geometry_of,
    index,
    number,
    page_of,
    seen,
    summed,
)
from tests.support import oracle
from tests.support.cases import Case
from tests.support.refusal import refusal
from tests.support.rule_sets import RULES


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_the_numbers_are_the_librarys(first_sight: Look, case: Case) -> None:
    assert_shows(first_sight(case), case, summed, functools.partial(computed, rules="autodiff"))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_numbers_are_those_of_every_rule(first_sight: Look, case: Case, rules: str) -> None:
    assert_shows(first_sight(case), case, functools.partial(computed, rules=rules))


@pytest.mark.parametrize("case", [case for case in DRAWN if 0 not in geometry_of(case).out], ids=str)
def test_what_is_drawn_is_what_is_read(first_sight: Look, case: Case) -> None:
    """Frames are the arrays dilated, padded and cropped as `rotated` says; kernels are dilated, and rotated for ∂x."""
    shot, geometry = first_sight(case), geometry_of(case)
    arrays, none = seen(shot, case), ((0, 0),) * geometry.rank

    def framed(a: np.ndarray, by: Any, pads: Any) -> np.ndarray:
        """`a` dilated and padded; negative padding crops."""
        for axis, (i, (lo, hi)) in enumerate(zip(by, pads, strict=True)):
            a = np.moveaxis(a, axis, 0)
            wide = np.zeros(((len(a) - 1) * i + 1, *a.shape[1:]))
            wide[::i] = a
            wide = np.pad(wide, [(max(lo, 0), max(hi, 0)), *[(0, 0)] * (a.ndim - 1)])
            a = np.moveaxis(wide[max(-lo, 0) : len(wide) - max(-hi, 0)], 0, axis)
        return a

    turned = np.flip(arrays.w, range(geometry.rank))
    expected = {
        ("forward", "read"): lambda c, o: framed(arrays.x[0, ..., c], geometry.input_dilation, geometry.padding),
        ("forward", "kernel"): lambda c, o: framed(arrays.w[..., c % case.w[-2], o], geometry.dilation, none),
        ("input_grad", "read"): lambda c, o: framed(
            arrays.delta[0, ..., o], geometry.stride, geometry.input_grad_padding
        ),
        ("input_grad", "kernel"): lambda c, o: framed(turned[..., c % case.w[-2], o], geometry.dilation, none),
        ("kernel_grad", "read"): lambda c, o: framed(
            arrays.x[0, ..., c], geometry.input_dilation, geometry.kernel_grad_padding
        ),
        ("kernel_grad", "kernel"): lambda c, o: framed(arrays.delta[0, ..., o], geometry.stride, none),
    }
    planes = [plane for plane in shot.planes if plane[1] != "result"]
    for map_name, part, c, o, rows in planes:
        channels = (0 if name == "undefined" else int(name) for name in (c, o))
        there = expected[map_name, part](*channels)
        drawn = np.array([[number(text) for text in row] for row in rows])
        np.testing.assert_array_equal(drawn, there.reshape((1, *there.shape)[-2:]), err_msg=f"{map_name} {part}")
    assert {(map_name, part) for map_name, part, *_ in planes} == set(expected)


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_unread_inputs_are_marked(first_sight: Look, case: Case) -> None:
    shot, out = first_sight(case), geometry_of(case).out
    read = oracle.conv_input_grad(np.ones((1, *out, case.w[-1])), np.ones(case.w), case.x[1:-1], **case.options)
    unread = {tuple(map(int, at)) for at in np.argwhere(read == 0)}

    def marked(map_name: str, array: str, *names: str) -> set[tuple[int, ...]]:
        return {
            index(cell.key)
            for cell in shot.cells
            if (cell.map, cell.array) == (map_name, array) and set(names) & set(cell.classes.split())
        }

    assert marked("input_grad", "dx", "unread") == unread
    assert marked("forward", "x", "unread", "cropped") == unread


# The page checks itself


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("const rotated = (a) => a.map((row) => [...row].reverse()).reverse();", "const rotated = (a) => a;"),
        ("span - 1 - hi + unread", "span - 1 - hi"),
        ("input_grad_padding: [span - 1 - lo", "input_grad_padding: [span - lo"),
        ("kernel_grad_padding: [lo, hi - unread]", "kernel_grad_padding: [lo, hi]"),
        ("spread: each((a) => a.s), step: each((a) => a.d)", "spread: each((a) => a.d), step: each((a) => a.s)"),
        ("part + value * read", "part + 2 * value * read"),
        ("s * p + d * tap - lo", "s * p + d * tap + lo"),
    ],
)
def test_a_wrong_page_says_so(visit: Visitor, right: str, wrong: str) -> None:
    def broken(text: str) -> str:
        assert text.count(right) == 1
        return text.replace(right, wrong)

    case = Case((1, 7, 7, 1), (3, 2, 1, 1), {"stride": 2, "padding": ((1, 0), (0, 2)), "dilation": (1, 2)})
    page = visit(case, broken)
    assert page.locator("#alarm").is_visible()
    assert page.locator("#alarm").inner_text().startswith("This page is wrong: its recipe gives ")


# Without a browser


def test_one_file_and_nothing_else() -> None:
    text = page_of(STRIDED)
    assert "{{" not in text
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (
            (1, 4, 4, 4, 1), (2, 2, 2, 1, 1), {},
            "explain: the page draws at most 2 spatial axes, but there are 3. "
            "As text, explain(...) says it all.",
        ),
        (
            (1, 5, 5, 1), (3, 3, 1, 1), {"flip_kernel": True},
            "explain: the page draws the cross-correlation, but flip_kernel is True. "
            "Rotate the kernel by 180° and say flip_kernel=False, which is the same convolution.",
        ),
        (
            (1, 5, 28, 1), (3, 3, 1, 1), {},
            "explain: the page draws at most 12 elements per axis, but x has 28 > 12 along spatial axis 1. "
            "Take a smaller one: the pattern of its gradients is the same.",
        ),
        (
            (1, 5, 1), (13, 1, 1), {"padding": 9},
            "explain: the page draws at most 12 elements per axis, but w has 13 > 12 along spatial axis 0. "
            "Take a smaller one: the pattern of its gradients is the same.",
        ),
        (
            (1, 12, 1), (3, 1, 1), {"padding": ((20, 0),)},
            "explain: the page draws at most 24 cells in a row, but spatial axis 0 needs 32 > 24 "
            "with the zeros of its padding and dilations. Take a smaller input, padding or dilation.",
        ),
        (
            (1, 5, 5, 8), (3, 3, 8, 1), {},
            "explain: the page draws at most 6 channels, but x has 8 > 6. "
            "Take fewer: every channel of a group is treated alike.",
        ),
        (
            (1, 5, 5, 1), (3, 3, 1, 7), {},
            "explain: the page draws at most 6 channels, but y has 7 > 6. "
            "Take fewer: every channel of a group is treated alike.",
        ),
        (
            (1, 0, 5, 1), (3, 3, 1, 1), {"padding": 2},
            "explain: the page draws at least 1 element per axis, but x has 0 along spatial axis 0. "
            "As text, explain(...) says it all.",
        ),
        (
            (1, 5, 5, 0), (3, 3, 0, 1), {},
            "explain: the page draws at least one channel per group, but x has 0 in 1 groups.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    x: tuple[int, ...], w: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    assert refusal(lambda: page_of(Case(x, w, options)), ValueError) == message
