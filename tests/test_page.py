"""The page of a convolution, in a real browser: every number that it shows is the library's.

The page computes on its own, in JavaScript, from small integers; so its numbers and ours must be equal exactly. What
is compared is read off the cells that a reader sees. Without Chromium or Playwright the browser tests are skipped.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.explanation.page import html
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.rules import rotated
from tests import oracle
from tests.cases import CASES, Case, in_layout

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium: apt install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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


@pytest.fixture(scope="module")
def visitor(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    return Visitor(browser, tmp_path_factory.mktemp("page"))


@pytest.fixture
def visit(visitor: Visitor) -> Iterator[Visitor]:
    yield visitor
    visitor.leave()


Look = Callable[[Case], Snapshot]


@pytest.fixture(scope="module")
def first_sight(visitor: Visitor) -> Look:
    """The page of a case as it opens, looked at once for all tests."""
    shots: dict[str, Snapshot] = {}

    def look(case: Case) -> Snapshot:
        if str(case) not in shots:
            shots[str(case)] = snapshot(visitor(case))
            visitor.leave()
        return shots[str(case)]

    return look


def cell(page: Any, array: str, key: str) -> Any:
    return page.locator(f'td[data-array="{array}"][data-key="{key}"]').first


def chosen(page: Any) -> tuple[str, str]:
    return tuple(page.evaluate("Object.values(window.jaxconv.state().chosen)"))


# The numbers


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_the_numbers_are_the_librarys(first_sight: Look, case: Case) -> None:
    assert_shows(first_sight(case), case, summed, functools.partial(computed, rules="autodiff"))


@pytest.mark.parametrize("rules", ["textbook", "rotated", "fast"])
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
    for map_name, part, c, o, rows in shot.planes:
        if part != "result":
            channels = (0 if name == "undefined" else int(name) for name in (c, o))
            there = expected[map_name, part](*channels)
            drawn = np.array([[number(text) for text in row] for row in rows])
            np.testing.assert_array_equal(drawn, there.reshape((1, *there.shape)[-2:]), err_msg=f"{map_name} {part}")
    assert {(map_name, part) for map_name, part, *_ in shot.planes} >= set(expected)


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


# Pointing at a number


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
    if not report.symbols:
        assert expected == 0
        assert ("no window reads" if result == "dx" else "with zeros") in report.about
        assert not report.operand
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


# Sliders


def slide(page: Any, control: str, key: str = "ArrowRight", times: int = 1) -> None:
    page.locator(f"#{control}").focus()
    for _ in range(times):
        page.keyboard.press(key)


def test_sliders_change_the_geometry(visit: Visitor) -> None:
    page, options = visit(STRIDED), dict(STRIDED.options)
    for control, change in (
        ("s-0", {"stride": 3}),
        ("d-0", {"dilation": 2}),
        ("lo-0", {"padding": 2}),
        ("i-0", {"input_dilation": 2}),
    ):
        slide(page, control)
        options |= change
        assert_shows(snapshot(page), Case(STRIDED.x, STRIDED.w, options), summed)
    slide(page, "n-0", "ArrowLeft")
    slide(page, "k-0", "ArrowLeft")
    assert_shows(snapshot(page), Case((1, 5, 5, 1), (2, 2, 1, 1), options), summed)
    page.locator("#each").click()
    slide(page, "lo-0", "ArrowLeft", 5)
    slide(page, "hi-1", "ArrowRight")
    slide(page, "s-1", "ArrowLeft")
    slide(page, "k-0", "ArrowRight")
    uneven = {**options, "padding": ((-3, 2), (2, 3)), "stride": (3, 2)}
    assert_shows(snapshot(page), Case((1, 5, 5, 1), (3, 2, 1, 1), uneven), summed)
    page.locator("#each").click()
    even = {**options, "padding": -3, "stride": 3}
    assert_shows(snapshot(page), Case((1, 5, 5, 1), (3, 3, 1, 1), even), summed)
    slide(page, "lo-0", "ArrowRight", 4)
    slide(page, "groups")
    slide(page, "inputs")
    slide(page, "outputs")
    grouped = {**options, "padding": 1, "groups": 2}
    assert_shows(snapshot(page), Case((1, 5, 5, 4), (3, 3, 2, 4), grouped), summed)


def test_each_end_of_a_line(visit: Visitor) -> None:
    page = visit(LINE)
    assert page.locator("#each").is_checked()
    slide(page, "hi-0", "ArrowRight", 3)
    assert_shows(snapshot(page), Case(LINE.x, LINE.w, {"stride": 3, "padding": ((2, 2),)}), summed)
    page.locator("#each").click()
    slide(page, "lo-0", "ArrowLeft")
    assert_shows(snapshot(page), Case(LINE.x, LINE.w, {"stride": 3, "padding": 1}), summed)


def test_a_window_that_does_not_fit_is_said(visit: Visitor) -> None:
    page = visit(Case((1, 3, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}))
    assert not page.locator("#notice").is_visible()
    slide(page, "n-0", "ArrowLeft")
    assert page.locator("#notice").inner_text() == (
        "The window does not fit: slack = n + lo + hi − span = 2 + 0 + 0 − 3 = −1 < 0 (height). "
        "There is no output, and every gradient is 0."
    )
    assert_shows(snapshot(page), Case((1, 2, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}), summed)
    slide(page, "n-0", "ArrowRight")
    assert not page.locator("#notice").is_visible()


def test_groups_leave_at_most_six_channels(visit: Visitor) -> None:
    page = visit(Case((1, 4, 2), (2, 2, 2), {}))
    slide(page, "groups", times=2)
    assert_shows(snapshot(page), Case((1, 4, 6), (2, 2, 6), {"groups": 3}), summed)
    page.evaluate("window.jaxconv.set({groups: 6})")
    assert_shows(snapshot(page), Case((1, 4, 6), (2, 1, 6), {"groups": 6}), summed)
    slide(page, "inputs")
    assert page.locator("#inputs").input_value() == "1"
    slide(page, "groups", "ArrowLeft", times=4)
    slide(page, "inputs")
    slide(page, "outputs")
    assert_shows(snapshot(page), Case((1, 4, 4), (2, 2, 4), {"groups": 2}), summed)


# Steps


def test_stepping_visits_every_entry_of_the_chosen_map(visit: Visitor) -> None:
    page = visit(STRIDED)
    shown = entries(snapshot(page).cells)
    for name, array, count in (("forward", "y", 9), ("kernel_grad", "dw", 9), ("input_grad", "dx", 36)):
        page.locator(f"#steps [value={name}]").check()
        before = chosen(page), page.locator("#position").inner_text()
        visited = page.evaluate(
            """count => Array.from({length: count}, () => {
                document.getElementById("next").click();
                return window.jaxconv.state().chosen.key; })""",
            count,
        )
        assert (chosen(page), page.locator("#position").inner_text()) == before
        assert {index(key) for key in visited} == set(shown[array])
        assert before[1].endswith(f" of {count}")
    page.locator("#next").click()
    page.locator("#previous").click()
    page.locator("#previous").click()
    assert chosen(page) == ("dx", visited[-2])


def test_playing_moves_the_windows_and_pauses(visit: Visitor) -> None:
    page = visit(STRIDED, clock=True)
    page.locator("#steps [value=forward]").check()
    places = []
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Pause"
    for _ in range(3):
        places.append((chosen(page), page.locator(".window").evaluate_all("all => all.map(w => w.style.cssText)")))
        page.clock.run_for(900)
    (_, a), (_, b), (_, c) = places
    assert all(len({*three}) > 1 for three in zip(a, b, c, strict=True)), "all three windows move"
    assert len({entry for entry, _ in places}) == 3
    page.locator("#play").click()
    still = chosen(page)
    page.clock.run_for(5000)
    assert chosen(page) == still


def test_reduced_motion(visit: Visitor) -> None:
    moving, still = visit(STRIDED), visit(STRIDED, clock=True, reduced_motion="reduce")
    duration = "document.querySelector('.window').computedStyleMap().get('transition-duration').toString()"
    assert moving.evaluate(duration) != "0s"
    assert still.evaluate(duration) == "0s"
    still.locator("#play").click()
    before = chosen(still)
    still.clock.run_for(1000)
    assert chosen(still) == before
    still.clock.run_for(1000)
    assert chosen(still) != before


# The flip


@pytest.mark.parametrize("case", [*FEW, Case((1, 4, 4, 1), (1, 1, 1, 1), {})], ids=str)
def test_without_the_flip_exactly_the_wrong_entries_are_marked(visit: Visitor, case: Case) -> None:
    page, geometry = visit(case), geometry_of(case)
    true = seen(snapshot(page), case)
    page.locator("#flip").click()
    mirrored = np.flip(true.w, range(geometry.rank)).copy()
    unrotated = np.asarray(rotated.input_grad(jnp.asarray(true.delta), jnp.asarray(mirrored), geometry))
    shot = snapshot(page)
    assert not shot.alarm
    np.testing.assert_array_equal(seen(shot, case).dx, unrotated)
    expected = {tuple(map(int, at)): int(true.dx[tuple(at)]) for at in np.argwhere(unrotated != true.dx)}
    wrong = [cell for cell in shot.cells if "wrong" in cell.classes.split()]
    assert {index(cell.key): number(str(cell.truth)) for cell in wrong} == expected
    assert bool(expected) == (max(geometry.taps) > 1)
    for at, value in list(expected.items())[:2]:
        key = ",".join(map(str, at))
        cell(page, "dx", key).hover()
        assert_explained(page, entries(shot.cells), "dx", key)
        assert f"the gradient is {value}.".replace("-", "−") in page.locator("#about").inner_text()
    page.locator("#flip").click()
    assert not page.locator("td.wrong").count()
    np.testing.assert_array_equal(seen(snapshot(page), case).dx, true.dx)


# Keyboard, screen readers, small and dark screens


def test_everything_by_keyboard(visit: Visitor) -> None:
    page = visit(STRIDED, clock=True)
    shown, stops = entries(snapshot(page).cells), []
    page.evaluate(
        """() => {
            window.stops = [];
            document.addEventListener("focusin", ({target: e}) => {
                const rings = [e, e.name === "map" ? e.parentElement : e].map(ring => getComputedStyle(ring));
                window.stops.push([e.dataset.array ? `${e.closest(".map").id} ${e.dataset.array}` : e.id || e.value,
                    rings.some(ring => ring.outlineStyle !== "none" && parseFloat(ring.outlineWidth) > 2)]);
            });
        }"""
    )
    for _ in range(30):
        page.keyboard.press("Tab")
    for stop, visible in page.evaluate("window.stops"):
        assert visible, f"the focus on {stop} is not visible"
        stops.append(stop)
    arrays = [stop for stop in stops if " " in stop]
    assert arrays[:9] == [
        "forward x", "forward w", "forward y", "input_grad delta", "input_grad w", "input_grad dx",
        "kernel_grad x", "kernel_grad delta", "kernel_grad dw",
    ]  # fmt: skip
    assert {"n-0", "k-0", "s-0", "d-0", "i-0", "lo-0", "groups", "inputs", "outputs", "each", "flip", "play", "next",
            "previous", "equation"} <= set(stops)  # fmt: skip

    cell(page, "y", "0,0,0,0").focus()
    for key, at in (
        ("ArrowRight", "0,0,1,0"),
        ("ArrowDown", "0,1,1,0"),
        ("ArrowLeft", "0,1,0,0"),
        ("ArrowUp", "0,0,0,0"),
    ):
        page.keyboard.press(key)
        assert chosen(page) == ("y", at)
        assert page.evaluate("document.activeElement.dataset.key") == at
        assert_explained(page, shown, "y", at)
    page.keyboard.press("ArrowUp")
    assert chosen(page) == ("y", "0,0,0,0"), "there is nothing above"

    page.keyboard.press(" ")
    page.clock.run_for(900)
    assert chosen(page) == ("y", "0,0,2,0")
    page.keyboard.press(" ")
    page.clock.run_for(5000)
    assert chosen(page) == ("y", "0,0,2,0")

    # Arrows cross the zeros of a dilated δ, and follow the eye on a rotated kernel.
    page.locator('#input_grad td[data-array=delta][data-key="0,0,0,0"]').focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("delta", "0,0,1,0")
    page.locator('#input_grad td[data-array=w][data-key="2,2,0,0"]').focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("w", "2,1,0,0")


def test_arrows_cross_from_channel_to_channel(visit: Visitor) -> None:
    page = visit(GROUPED)
    cell(page, "x", "0,0,3,0").focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("x", "0,0,0,1")


def test_what_a_screen_reader_is_told(visit: Visitor) -> None:
    page = visit(STRIDED)
    live = page.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    cell(page, "dw", "1,2,0,0").focus()
    assert live.inner_text().startswith("∂w[1,2,0,0] = ")
    value = entries(snapshot(page).cells)["dw"][1, 2, 0, 0]
    assert live.inner_text().endswith(f" = {value}".replace("-", "−"))
    assert cell(page, "dw", "1,2,0,0").get_attribute("aria-label") == f"∂w[1,2,0,0] = {value}".replace("-", "−")
    assert page.locator("table[role=grid]:not([aria-label])").count() == 0
    assert page.locator("input:not([aria-label])").evaluate_all("all => all.every(i => i.labels.length)")


def test_indices_follow_the_layout(visit: Visitor) -> None:
    page = visit(in_layout(Case((1, 4, 5, 2), (2, 3, 2, 3), {"padding": "VALID"}), "NCHW"))
    cell(page, "dx", "0,0,1,1").hover()
    text = page.locator("#symbols").inner_text()
    assert text.startswith("∂x[0,1,0,1] = ")
    assert "δ[0,2,0,1]·w[2,1,0,0]" in text


@pytest.mark.parametrize("case", [STRIDED, GROUPED, LINE, Case((1, 5, 5, 3), (3, 3, 3, 2), {})], ids=str)
def test_no_width_scrolls_sideways(visit: Visitor, case: Case) -> None:
    page = visit(case, viewport={"width": 1280, "height": 740})
    for change in ({}, {"each": True, "flip": False}):
        page.evaluate("change => window.jaxconv.set(change)", change)
        for width in (360, 820, 1280):
            page.set_viewport_size({"width": width, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            tops = page.locator(".map").evaluate_all("all => all.map(map => map.getBoundingClientRect().top)")
            stacked = width < 1000 or page.locator("#maps.stacked").count()
            assert len(set(tops)) == (3 if stacked else 1)


def test_a_tap_explains(visit: Visitor) -> None:
    page = visit(STRIDED, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    shown = entries(snapshot(page).cells)
    cell(page, "dx", "0,3,3,0").tap()
    assert_explained(page, shown, "dx", "0,3,3,0")
    assert page.locator("#symbols").is_visible()


def luminance(colour: str) -> float:
    r, g, b = (int(c) / 255 for c in re.findall(r"\d+", colour)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_light_and_dark_are_different_and_readable(visit: Visitor) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = visit(Case((1, 7, 7, 1), (3, 3, 1, 1), {"stride": 3, "padding": ((-1, 1), (1, 0))}), color_scheme=scheme)
        page.locator("#flip").click()
        colours = page.evaluate(
            """() => { const ground = getComputedStyle(document.documentElement).backgroundColor;
                const of = e => { const s = getComputedStyle(e); return [e.className || e.tagName, s.color,
                    s.backgroundColor === "rgba(0, 0, 0, 0)" ? ground : s.backgroundColor]; };
                return [ground, [...document.querySelectorAll("td.cell, p, h1, h2, h3, th, em, label")].map(of)]; }"""
        )
        grounds.append(luminance(colours[0]))
        for name, ink, ground in colours[1]:
            low, high = sorted((luminance(ink), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{scheme}: {name} is {ink} on {ground}"
    assert grounds[0] > 0.8 and grounds[1] < 0.05


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
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        page_of(Case(x, w, options))
