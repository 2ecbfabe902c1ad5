"""How the tests of the page read it: the cells that a reader sees, and what the page says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxconv
from jaxconv.explanation.page import html
from jaxconv.geometry import Geometry, conv_geometry
from tests.support import oracle
from tests.support.cases import CASES, Case

SYMBOLS = {"x": "x", "w": "w", "δ": "delta", "y": "y", "∂x": "dx", "∂w": "dw"}
SLOTS = {"x": "x", "dx": "x", "w": "w", "dw": "w", "y": "y", "delta": "y"}


def geometry_of(case: Case) -> Geometry:
    return conv_geometry("explain", case.x, case.w, **case.options)


def page_of(case: Case) -> str:
    nchw = case.options.get("layout") == "NCHW"
    return html(geometry_of(case), case.x[1 if nchw else -1], case.w[0 if nchw else -1])


def drawable(case: Case) -> bool:
    return len(case.x) < 5 and 0 not in case.x and not case.options.get("flip_kernel")


# The table of geometries, on one example, wherever it can be drawn; and what the page draws differently.
DRAWN = [Case((1, *case.x[1:]), case.w, case.options) for case in CASES if drawable(case)] + [
    Case((1, 4, 5, 1), (2, 2, 1, 1), {"padding": ((3, 0), (0, 4))}),  # δ is cropped: lo > span − 1
    Case((1, 12, 12, 1), (5, 5, 1, 1), {"dilation": 2, "padding": 4}),  # wide: the maps stand below each other
    Case((1, 6, 6), (2, 1, 6), {"groups": 6, "stride": 2, "padding": "VALID"}),
    Case((1, 5, 1), (3, 1, 1), {"padding": ((-3, -2),)}),  # everything is cropped away
]
STRIDED = Case((1, 6, 6, 1), (3, 3, 1, 1), {"stride": 2, "padding": 1})  # unread = 1
GROUPED = Case(
    (1, 5, 4, 4), (3, 2, 2, 4), {"groups": 2, "dilation": (1, 2), "stride": (2, 1), "padding": ((1, 0), (2, 1))}
)
LINE = Case((1, 9, 1), (3, 1, 1), {"stride": 3, "padding": ((2, -1),)})
DILATED = Case((1, 4, 5, 2), (2, 3, 2, 1), {"input_dilation": 2, "stride": 3, "dilation": 2, "padding": 2})
FEW = [STRIDED, GROUPED, LINE, DILATED]


# The library's numbers


class Arrays(NamedTuple):
    """In NHWC and HWIO."""

    x: np.ndarray
    w: np.ndarray
    delta: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dw: np.ndarray


def computed(case: Case, x: np.ndarray, w: np.ndarray, delta: np.ndarray, rules: str) -> Arrays:
    """All six arrays by the library, from the three that are given."""

    @jax.jit
    def three(x: jax.Array, w: jax.Array, delta: jax.Array) -> tuple[jax.Array, ...]:
        y, back = jax.vjp(lambda x, w: jaxconv.conv(x, w, rules=rules, **case.options), x, w)
        return y, *back(delta)

    return Arrays(x, w, delta, *map(np.asarray, three(x, w, delta)))


def summed(case: Case, x: np.ndarray, w: np.ndarray, delta: np.ndarray) -> Arrays:
    """The same by the oracle's loops."""
    dx = oracle.conv_input_grad(delta, w, case.x[1:-1], **case.options)
    dw = oracle.conv_kernel_grad(x, delta, case.w[:-2], **case.options)
    return Arrays(x, w, delta, oracle.conv(x, w, **case.options), dx, dw)


# What a reader sees

SNAPSHOT = """() => {
    const all = where => [...document.querySelectorAll(where)];
    const texts = where => all(where).map(e => e.textContent);
    const drawn = td => [td.dataset.array, td.dataset.key, (td.querySelector("del") ?? td).textContent, td.className,
        td.querySelector("ins")?.textContent ?? null, td.closest(".map").id];
    const framed = row => [...row.cells].filter(td => td.textContent && !td.classList.contains("cropped"));
    const maps = ["forward", "input_grad", "kernel_grad"];
    const per = (names, f) => Object.fromEntries(names.map(name => [name, f(name)]));
    return {
        cells: all("td[data-key]").map(drawn),
        planes: all(".plane").map(plane => [plane.closest(".map").id, plane.closest(".part").classList[1],
            plane.dataset.c, plane.dataset.o,
            [...plane.querySelectorAll("tr")].map(row => framed(row).map(td => td.textContent)).filter(r => r.length)]),
        numbers: window.jaxconv.numbers(),
        geometry: per(["span", "slack", "out", "unread"], name => texts(`#numbers [data-number=${name}]`)),
        recipes: per(maps, map => per(["dilate", "pad", "spread", "step", "gives"],
            name => texts(`#${map} [data-number=${name}]`))),
        alarm: document.getElementById("alarm").checkVisibility(),
    };
}"""


class Cell(NamedTuple):
    """An entry where it is drawn: without the flip, `truth` is what a wrong entry should have been."""

    array: str
    key: str
    text: str
    classes: str
    truth: str | None
    map: str


class Snapshot(NamedTuple):
    cells: list[Cell]
    planes: list[tuple[str, str, str, str, list[list[str]]]]
    numbers: dict[str, Any]
    geometry: dict[str, list[str]]
    recipes: dict[str, dict[str, list[str]]]
    alarm: bool


def snapshot(page: Any) -> Snapshot:
    taken = page.evaluate(SNAPSHOT)
    return Snapshot(**{**taken, "cells": [Cell(*cell) for cell in taken["cells"]]})


Entries = dict[str, dict[tuple[int, ...], int]]


def number(text: str) -> int:
    return int(text.replace("−", "-"))


def index(key: str) -> tuple[int, ...]:
    return tuple(map(int, key.split(",")))


def entries(cells: list[Cell]) -> Entries:
    """The numbers by array and index; wherever an entry is drawn twice, it is the same."""
    found: Entries = {name: {} for name in Arrays._fields}
    for cell in cells:
        assert found[cell.array].setdefault(index(cell.key), number(cell.text)) == number(cell.text)
    return found


def dense(entries: dict[tuple[int, ...], int], shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape)
    assert set(entries) == set(np.ndindex(shape))
    for at, value in entries.items():
        array[at] = value
    return array


def seen(shot: Snapshot, case: Case) -> Arrays:
    """The six arrays of the page of a case, off its cells."""
    x, w, y = case.x, case.w, (1, *geometry_of(case).out, case.w[-1])
    if 0 in y:
        y = (1, *(0 for _ in y[1:-1]), case.w[-1])
    shown = entries(shot.cells)
    arrays = {"x": x, "w": w, "delta": y, "y": y, "dx": x, "dw": w}
    read = Arrays(*(dense(shown[name], shape) for name, shape in arrays.items()))
    out = (1, *geometry_of(case).out, case.w[-1])
    return read._replace(delta=read.delta.reshape(out), y=read.y.reshape(out))


def assert_shows(shot: Snapshot, case: Case, *expected: Callable[..., Arrays]) -> None:
    """Arrays, geometry and recipes of the page are those of the library, exactly."""
    ours, geometry = seen(shot, case), geometry_of(case)
    assert not shot.alarm
    for compute in expected:
        for name, there, here in zip(Arrays._fields, compute(case, *ours[:3]), ours, strict=True):
            np.testing.assert_array_equal(here, there, err_msg=name)
    for name in ("span", "out", "unread", "input_grad_padding", "kernel_grad_padding"):
        assert shot.numbers[name] == [list(v) if isinstance(v, tuple) else v for v in getattr(geometry, name)]
    for name, array in ours._asdict().items():
        np.testing.assert_array_equal(np.reshape(shot.numbers[name], array.shape), array)
    # One column stands for two axes that are alike.
    axes = geometry.axes[:1] if len(set(geometry.axes)) == 1 else geometry.axes
    for name, texts in shot.geometry.items():
        assert [number(text) for text in texts] == [getattr(axis, name) for axis in axes]
    recipes = {
        "forward": [(a.input_dilation, (a.lo, a.hi), a.dilation, a.stride, a.out) for a in axes],
        "input_grad": [(a.stride, a.input_grad_padding, a.dilation, a.input_dilation, a.n) for a in axes],
        "kernel_grad": [(a.input_dilation, a.kernel_grad_padding, a.stride, a.dilation, a.k) for a in axes],
    }
    for name, per_axis in recipes.items():
        for texts, values in zip(shot.recipes[name].values(), zip(*per_axis, strict=True), strict=True):
            assert [text.replace("−", "-") for text in texts] == [str(value) for value in values]


# The browser


class Visitor:
    """Opens pages from a file; when left, they must have complained of nothing and asked the network for nothing."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.file = browser, folder / "page.html"
        self.complaints: list[str] = []
        self.requests: set[str] = set()
        self.special: list[Any] = []
        self.ordinary = self.page()

    def __call__(self, case: Case, change: Callable[[str], str] = str, clock: bool = False, **options: Any) -> Any:
        """The page of a case; one tab serves all visits that ask for nothing special."""
        self.file.write_text(change(page_of(case)), encoding="utf-8")
        page = self.page(**options) if clock or options else self.ordinary
        if page is not self.ordinary:
            self.special.append(page.context)
        if clock:
            page.clock.install(time=0)
        page.mouse.move(1, 1)
        page.goto(self.file.as_uri())
        if clock:
            page.clock.pause_at(3600)  # from here, time passes when a test says so
        return page

    def page(self, **options: Any) -> Any:
        page = self.browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options}).new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.add(request.url))
        return page

    def leave(self) -> None:
        while self.special:
            self.special.pop().close()
        complaints, self.complaints = self.complaints, []
        requests, self.requests = self.requests, set()
        assert not complaints
        assert requests <= {self.file.as_uri()}


Look = Callable[[Case], Snapshot]


def cell(page: Any, array: str, key: str) -> Any:
    return page.locator(f'td[data-array="{array}"][data-key="{key}"]').first


def chosen(page: Any) -> tuple[str, str]:
    return tuple(page.evaluate("Object.values(window.jaxconv.state().chosen)"))


# What an entry is explained by


class Report(NamedTuple):
    """What the page says and marks for an entry."""

    about: str
    symbols: str
    products: str
    chosen: list[list[str]]
    operand: list[list[str]]
    touched: list[list[str]]
    taps: list[list[str]]


REPORT = """() => {
    const text = id => document.getElementById(id).textContent;
    const all = (where, f) => [...document.querySelectorAll(where)].map(f);
    const entry = td => [td.dataset.array, td.dataset.key];
    return [text("about"), text("symbols"), text("products"), all("td.chosen", entry), all("td.operand", entry),
        all("td.touched", entry), all("td[data-times]", td => [td.textContent, td.dataset.times])];
}"""
POINT_AT_EACH = f"""keys => keys.map(([array, key]) => {{
    document.querySelector(`td[data-array=${{array}}][data-key="${{key}}"]`)
        .dispatchEvent(new PointerEvent("pointerover", {{bubbles: true, pointerType: "mouse"}}));
    return ({REPORT})();
}})"""


def terms(text: str) -> list[tuple[str, str]]:
    return [(SYMBOLS[symbol], key) for symbol, key in re.findall(r"(∂?[xwyδ])\[([\d,]+)\]", text)]


def evaluated(sum_of_products: str) -> int:
    assert re.fullmatch(r"[\d()·+− ]+", sum_of_products)
    return eval(sum_of_products.replace("·", "*").replace("−", "-"))


def marked(cells: list[list[str]]) -> set[tuple[str, str]]:
    return {(array, key) for array, key in cells}


def assert_explains(report: Report, shown: Entries, array: str, key: str) -> None:
    """The equation is true, its factors are the marked cells, and its window with its taps makes the number."""
    result = {"x": "dx", "w": "dw", "y": "y"}[SLOTS[array]]
    expected = shown[result][index(key)]
    assert marked(report.chosen) == {(name, key) for name, slot in SLOTS.items() if slot == SLOTS[array]}
    why = "no window reads" if result == "dx" else "with zeros"
    assert report.symbols or (expected == 0 and why in report.about and not report.operand)
    if not report.symbols:
        return
    head, *factors = terms(report.symbols)
    assert head == (result, key)
    _, products, total = report.products.split("=")
    assert evaluated(products.strip()) == number(total.strip()) == expected
    values = [shown[name][index(at)] for name, at in factors]
    assert [number(factor) for factor in re.findall(r"−?\d+", products)] == values
    assert marked(report.operand) == set(factors)
    rest = {"x": {"y", "dw"}, "w": {"y", "dx"}, "y": {"dx", "dw"}}[SLOTS[array]]
    assert {name for name, _ in report.touched} == rest
    assert sum(number(value) * number(tap.removeprefix("×")) for value, tap in report.taps) == expected


def assert_explained(page: Any, shown: Entries, array: str, key: str) -> None:
    assert_explains(Report(*page.evaluate(REPORT)), shown, array, key)
