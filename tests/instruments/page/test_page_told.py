"""The page of a wrong rule says so first and marks what is wrong; that of a function shows the function's numbers."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from experiments.verdicts.wrong_rules import WRONG_INPUT_GRADS, WRONG_KERNEL_GRADS, input_grad, kernel_grad
from jaxconv.explanation import Explanation
from jaxconv.rules import ConvRules, rotated
from tests.instruments.page.looking import Arrays, Cell, Visitor, cell, number, snapshot
from tests.instruments.test_explain_faults import telling
from tests.support.cases import Case, in_layout


def opened(visit: Visitor, e: Explanation) -> Any:
    return visit(Case((1, 3, 1), (1, 1, 1), {}), lambda _: e.html())


def keys(e: Explanation, name: str, mask: np.ndarray) -> set[str]:
    """The entries of a mask that are drawn, as the page calls them."""
    if name == "dw":
        return {",".join(map(str, at)) for at in np.argwhere(mask)}
    return {",".join(map(str, at)) for at in np.argwhere(mask) if at[0] == 0}


def marked(cells: list[Cell], name: str) -> dict[str, Cell]:
    return {c.key: c for c in cells if c.array == name and "wrong" in c.classes.split()}


WRONG = [
    *(("dx", name) for name in ("the kernel is not rotated", "the sign is wrong", "all is scaled by 1.001")),
    *(("dx", name) for name in ("δ is not dilated by the stride", "the last row of δ is dropped")),
    *(("dw", name) for name in ("the taps are transposed", "padding low and high are exchanged")),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_rule_is_said_and_marked(visit: Visitor, name: str, wrong: str) -> None:
    rule = (WRONG_INPUT_GRADS if name == "dx" else WRONG_KERNEL_GRADS)[wrong]
    case = telling(wrong)
    case = Case((1, *case.x[1:]), case.w, case.options)
    rules = ConvRules(rule, kernel_grad) if name == "dx" else ConvRules(input_grad, rule)
    e = jaxconv.explain(case.x, case.w, **case.options, rules=rules)
    page = opened(visit, e)
    assert page.locator("#alarm").inner_text() == e.verdict
    shot = snapshot(page)
    found = marked(shot.cells, name)
    assert set(found) == keys(e, name, e.wrong[name]) != set()
    others = {"dx", "dw", "y"} - {name}
    assert not any(marked(shot.cells, other) for other in others)
    for key, drawn in found.items():
        at = tuple(map(int, key.split(",")))
        assert float(drawn.text.replace("−", "-")) == pytest.approx(e.example[name][at], rel=1e-3)
        assert drawn.truth is not None and number(drawn.truth) == e.right[name][at]
        assert drawn.text != drawn.truth or e.example[name][at] == e.right[name][at]
    # All other numbers are the right ones.
    others = [drawn for drawn in shot.cells if drawn.array in Arrays._fields and drawn.key not in found]
    assert others
    for drawn in others:
        arrays = {**e.shown.given, **e.right}
        array = arrays["g" if drawn.array == "delta" else drawn.array]
        assert number(drawn.text) == array[tuple(map(int, drawn.key.split(",")))]
    # The right products beside the wrong ones.
    key = next(iter(found))
    cell(page, name, key).focus()
    ours, right = e.equation(name, tuple(map(int, key.split(",")))).telling()
    about = page.locator("#about").inner_text()
    assert about.startswith("WRONG: the rule gives ") and about.count("[") - 1 == 2 * len(ours)
    assert page.locator("#symbols").inner_text().count("[") == (1 + 2 * len(right) if right else 0)


def test_elsewhere_the_numbers_are_right(visit: Visitor) -> None:
    rules = ConvRules(lambda g, w, z: jnp.roll(rotated.input_grad(g, w, z), 1, 1), rotated.kernel_grad)
    page = opened(visit, jaxconv.explain((1, 4, 4, 1), (2, 2, 1, 1), padding="VALID", rules=rules))
    assert marked(snapshot(page).cells, "dx")
    page.locator("#s-0").focus()
    page.keyboard.press("ArrowRight")
    assert "That was for the geometry this page opened with" in page.locator("#alarm").inner_text()
    assert not marked(snapshot(page).cells, "dx")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#alarm").inner_text() == "WRONG: the rules miscompute 16 of 16 entries of dx."
    page.locator("#flip").click()  # the page's own lesson, of the right rule
    assert not page.locator("#about em", has_text="WRONG").count()


def test_no_number_is_shown_as_none(visit: Visitor) -> None:
    rules = ConvRules(lambda g, w, z: rotated.input_grad(g, w, z).at[0, 1].set(jnp.nan), rotated.kernel_grad)
    page = opened(visit, jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID", rules=rules))
    (drawn,) = marked(snapshot(page).cells, "dx").values()
    assert (drawn.key, drawn.text) == ("0,1,0", "NaN")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_function_is_drawn_with_its_own_numbers(visit: Visitor, layout: str) -> None:
    rng = np.random.default_rng(0)
    case = in_layout(Case((2, 4, 5, 2), (2, 3, 2, 1), {"stride": 2, "padding": "VALID"}), layout)
    x, w = rng.normal(size=case.x), rng.normal(size=case.w)
    e = jaxconv.explain(lambda x, w: jaxconv.conv(x, w, **case.options), x, w)
    page = opened(visit, e)
    assert not page.locator("#alarm").is_visible()
    shot = snapshot(page)
    y = e.example["y"]
    if layout == "NCHW":
        x, w, y = x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), y.transpose(0, 2, 3, 1)
    for name, array in (("x", x), ("w", w), ("y", y)):
        drawn = {c.key: c.text for c in shot.cells if c.array == name}
        assert len(drawn) == (array.size if name == "w" else array[0].size)
        for key, text in drawn.items():
            assert float(text.replace("−", "-")) == pytest.approx(array[tuple(map(int, key.split(",")))], rel=6e-3)
    cell(page, "y", "0,0,0,0").focus()
    assert re.search(r"≈ −?[\d.]+$", page.locator("#products").inner_text())
    widths = page.evaluate("[...document.querySelectorAll('td.cell')].map(td => td.offsetWidth)")
    assert max(widths) - min(widths) <= 1
