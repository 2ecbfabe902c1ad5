"""Every entry that is pointed at is explained: its equation is true, and what is marked is what makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.instruments.page.looking import (
    FEW,
    POINT_AT_EACH,
    STRIDED,
    Report,
    Visitor,
    assert_explained,
    assert_explains,
    cell,
    entries,
    geometry_of,
    index,
    snapshot,
)
from tests.support.cases import Case


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_number_is_explained(visit: Visitor, case: Case) -> None:
    page = visit(case)
    shown = entries(snapshot(page).cells)
    keys = [(array, ",".join(map(str, at))) for array, numbers in shown.items() for at in numbers]
    for (array, key), report in zip(keys, page.evaluate(POINT_AT_EACH, keys), strict=True):
        assert_explains(Report(*report), shown, array, key)


def test_hovering_shows_the_products_and_leaving_returns(visit: Visitor) -> None:
    page = visit(STRIDED)
    shown, before = entries(snapshot(page).cells), page.locator("#symbols").inner_text()
    for array, key in (("dx", "0,1,2,0"), ("w", "1,0,0,0"), ("y", "0,2,1,0"), ("delta", "0,0,0,0"), ("x", "0,4,4,0")):
        cell(page, array, key).hover()
        assert_explained(page, shown, array, key)
        assert page.locator("#symbols").inner_text() != before
    page.mouse.move(5, 5)
    assert page.locator("#symbols").inner_text() == before


def test_the_equation_as_text(visit: Visitor) -> None:
    page = visit(Case((1, 3, 1), (2, 1, 1), {"padding": "VALID"}))
    cell(page, "dx", "0,1,0").hover()
    assert page.locator("#symbols").inner_text() == "∂x[0,1,0] = δ[0,0,0]·w[1,0,0] + δ[0,1,0]·w[0,0,0]"
    shown = entries(snapshot(page).cells)
    delta, w = shown["delta"], shown["w"]
    a, b, c, d = delta[0, 0, 0], w[1, 0, 0], delta[0, 1, 0], w[0, 0, 0]
    text = " + ".join(
        f"{m}·{f'({n})' if n < 0 else n}" for m, n in ((f"({a})" if a < 0 else a, b), (f"({c})" if c < 0 else c, d))
    )
    assert page.locator("#products").inner_text() == f"= {text} = {a * b + c * d}".replace("-", "−")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_windows_stand_where_the_recipe_puts_them(visit: Visitor, case: Case) -> None:
    """On the screen: the box around the cells that the window of an entry reads, and in other maps its factors."""
    page, geometry = visit(case, reduced_motion="reduce"), geometry_of(case)
    both = geometry.axes if geometry.rank == 2 else (None, *geometry.axes)

    def frame(a: Any, map_name: str, p: int) -> tuple[int, int]:
        if a is None:
            return 0, 1
        step, span, lo = {
            "forward": (a.stride, a.span, a.lo),
            "input_grad": (a.input_dilation, a.span, a.input_grad_padding[0]),
            "kernel_grad": (a.dilation, (a.out - 1) * a.stride + 1, a.lo),
        }[map_name]
        return p * step + max(0, -lo), span

    for map_name, array in (("forward", "y"), ("input_grad", "dx"), ("kernel_grad", "dw")):
        keys = [td.get_attribute("data-key") for td in page.locator(f"#{map_name} .result td[data-key]").all()]
        for key in (keys[0], keys[-1], keys[len(keys) // 2]):
            at = index(key)[: geometry.rank] if array == "dw" else index(key)[1:-1]
            at = at if geometry.rank == 2 else (0, *at)
            (row, tall), (column, wide) = (frame(a, map_name, p) for a, p in zip(both, at, strict=True))
            boxes, spans = page.evaluate(
                """([map, chosen, row, column, tall, wide]) => {
                    window.jaxconv.set({chosen});
                    const planes = [...document.querySelectorAll(`#${map} .read .plane`)];
                    const boxes = planes.filter(plane => !plane.querySelector(".window").hidden).map(plane => {
                        const at = (r, c) => plane.querySelector("table").rows[r].cells[c].getBoundingClientRect();
                        const [a, b] = [at(row, column), at(row + tall - 1, column + wide - 1)];
                        const box = plane.querySelector(".window").getBoundingClientRect();
                        return [box.left - a.left, box.top - a.top, box.right - b.right, box.bottom - b.bottom];
                    });
                    const others = [...document.querySelectorAll(`.map:not(#${map}) .window:not([hidden])`)];
                    return [boxes, others.map(box => box.closest(".map").id)];
                }""",
                [map_name, {"array": array, "key": key}, row, column, tall, wide],
            )
            per_group = {"y": case.w[-2], "dx": case.w[-1] // geometry.groups, "dw": 1}[array]
            np.testing.assert_allclose(boxes, [[-3, -3, 3, 3]] * per_group, atol=0.6)
            assert len(set(spans)) == 2 or not page.locator("#symbols").inner_text()
