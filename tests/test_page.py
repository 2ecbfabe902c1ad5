"""The page of a convolution, in a real browser: every number that it shows is the library's.

The page computes on its own, in JavaScript, from small integers; so its numbers and ours must be equal exactly. What
is compared is read off the cells that a reader sees. Without Chromium or Playwright the browser tests are skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.explanation.page import html
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.rules import rotated
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
    x: np.ndarray
    w: np.ndarray
    delta: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dw: np.ndarray


def computed(case: Case, x: np.ndarray, w: np.ndarray, delta: np.ndarray, rules: str) -> Arrays:
    """All six arrays by the library, from the three that are given."""

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return jaxconv.conv(x, w, rules=rules, **case.options)

    y, back = jax.vjp(conv, jnp.asarray(x), jnp.asarray(w))
    dx, dw = back(jnp.asarray(delta).reshape(y.shape))
    return Arrays(x, w, delta.reshape(y.shape), *(np.asarray(a) for a in (y, dx, dw)))


# What a reader sees


def number(text: str) -> int:
    return int(text.replace("−", "-"))


def shown(page: Any, scope: str = "body") -> dict[str, dict[tuple[int, ...], int]]:
    """The numbers in the cells, by array and index; wherever an entry is drawn twice, it is the same."""
    cells = page.evaluate(
        """scope => [...document.querySelectorAll(scope + " td[data-key]")].map(
            td => [td.dataset.array, td.dataset.key, (td.querySelector("del") ?? td).textContent])""",
        scope,
    )
    found: dict[str, dict[tuple[int, ...], int]] = {name: {} for name in Arrays._fields}
    for array, key, text in cells:
        index = tuple(map(int, key.split(",")))
        assert found[array].setdefault(index, number(text)) == number(text)
    return found


def dense(entries: dict[tuple[int, ...], int], shape: tuple[int, ...]) -> np.ndarray:
    assert len(entries) == np.prod(shape)
    array = np.zeros(shape)
    for index, value in entries.items():
        array[index] = value
    return array


def seen(page: Any, case: Case) -> Arrays:
    """The six arrays of the page of a case in NHWC, off its cells."""
    geometry, cells = geometry_of(case), shown(page)
    x, w, y = case.x, case.w, (1, *geometry.out, case.w[-1])
    shapes = {"x": x, "w": w, "delta": y, "y": y, "dx": x, "dw": w}
    if 0 in y:
        assert not cells["delta"] and not cells["y"]
        return Arrays(*(np.zeros(y) if name in ("delta", "y") else dense(cells[name], shapes[name]) for name in shapes))
    return Arrays(*(dense(cells[name], shapes[name]) for name in shapes))


def assert_agrees(page: Any, case: Case) -> None:
    """Arrays and geometry of the page are those of the library, exactly."""
    ours = seen(page, case)
    assert not page.locator("#alarm").is_visible()
    for rules in ("textbook", "autodiff"):
        for name, there, here in zip(Arrays._fields, computed(case, *ours[:3], rules), ours, strict=True):
            np.testing.assert_array_equal(here, there, err_msg=f"{name} by {rules}")
    geometry, numbers = geometry_of(case), page.evaluate("window.jaxconv.numbers()")
    for name in ("span", "out", "unread", "input_grad_padding", "kernel_grad_padding"):
        assert numbers[name] == [list(v) if isinstance(v, tuple) else v for v in getattr(geometry, name)]
    for name in Arrays._fields:
        np.testing.assert_array_equal(np.reshape(numbers[name], getattr(ours, name).shape), getattr(ours, name))
    displayed(page, geometry)


def displayed(page: Any, geometry: Geometry) -> None:
    """The numbers above the maps; one column stands for two axes that are alike."""
    axes = geometry.axes[:1] if len(set(geometry.axes)) == 1 else geometry.axes
    for name in ("span", "slack", "out", "unread"):
        texts = page.locator(f"#numbers [data-number={name}]").all_text_contents()
        assert [number(text) for text in texts] == [getattr(axis, name) for axis in axes]
    recipes = {
        "forward": [(a.input_dilation, (a.lo, a.hi), a.dilation, a.stride, a.out) for a in axes],
        "input_grad": [(a.stride, a.input_grad_padding, a.dilation, a.input_dilation, a.n) for a in axes],
        "kernel_grad": [(a.input_dilation, a.kernel_grad_padding, a.stride, a.dilation, a.k) for a in axes],
    }
    for map_name, expected in recipes.items():
        for name, values in zip(("dilate", "pad", "spread", "step", "gives"), zip(*expected, strict=True), strict=True):
            texts = page.locator(f"#{map_name} [data-number={name}]").all_text_contents()
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


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a case from a file; at the end, it must have complained of nothing and asked for nothing."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts: list[Any] = []
    file = tmp_path / "page.html"

    def visit(case: Case, change: Callable[[str], str] = str, clock: bool = False, **options: Any) -> Any:
        file.write_text(change(page_of(case)), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if clock:
            page.clock.install()
        page.goto(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints
    assert set(requests) <= {file.as_uri()}


def cell(page: Any, array: str, key: str) -> Any:
    return page.locator(f'td[data-array="{array}"][data-key="{key}"]').first


def chosen(page: Any) -> tuple[str, str]:
    return tuple(page.evaluate("Object.values(window.jaxconv.state().chosen)"))


# The numbers


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_the_numbers_are_the_librarys(visit: Open, case: Case) -> None:
    assert_agrees(visit(case), case)


@pytest.mark.parametrize("case", [case for case in DRAWN if 0 not in geometry_of(case).out], ids=str)
def test_what_is_drawn_is_what_is_read(visit: Open, case: Case) -> None:
    """Frames are the arrays dilated, padded and cropped as `rotated` says; kernels are dilated, and rotated for ∂x."""
    page, geometry = visit(case), geometry_of(case)
    arrays, axes = seen(page, case), geometry.axes

    def read(a: np.ndarray, by: Any, pads: Any) -> np.ndarray:
        config = [(lo, hi, i - 1) for i, (lo, hi) in zip(by, pads, strict=True)]
        return np.asarray(lax.pad(a, np.zeros((), a.dtype), config))

    def planes(map_name: str, part: str) -> dict[tuple[str | None, str | None], np.ndarray]:
        found = page.evaluate(
            """where => [...document.querySelectorAll(where)].map(plane => [plane.dataset.c, plane.dataset.o,
                [...plane.querySelectorAll("tr")].map(row => [...row.cells].filter(
                    td => td.textContent && !td.classList.contains("cropped")).map(td => td.textContent))
                .filter(row => row.length)])""",
            f"#{map_name} .{part} .plane",
        )
        squeeze = (0,) if geometry.rank == 1 else ()
        return {(c, o): np.squeeze([[number(text) for text in row] for row in rows], squeeze) for c, o, rows in found}

    def same(drawn: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(drawn.reshape(expected.shape), expected)

    by, stride, dilation = geometry.input_dilation, geometry.stride, geometry.dilation
    none = ((0, 0),) * geometry.rank
    for map_name, pads in (("forward", geometry.padding), ("kernel_grad", geometry.kernel_grad_padding)):
        for (c, _), drawn in planes(map_name, "read").items():
            same(drawn, read(arrays.x[0, ..., int(c or 0)], by, pads))
    for (_, o), drawn in planes("input_grad", "read").items():
        same(drawn, read(arrays.delta[0, ..., int(o or 0)], stride, geometry.input_grad_padding))
    for (_, o), drawn in planes("kernel_grad", "kernel").items():
        same(drawn, read(arrays.delta[0, ..., int(o or 0)], stride, none))
    inputs = case.w[-2]
    for map_name, turn in (("forward", 1), ("input_grad", -1)):
        for (c, o), drawn in planes(map_name, "kernel").items():
            kernel = arrays.w[..., int(c or 0) % inputs, int(o or 0)]
            same(drawn, read(kernel[(slice(None, None, turn),) * len(axes)], dilation, none))


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_unread_inputs_are_marked(visit: Open, case: Case) -> None:
    page, geometry = visit(case), geometry_of(case)
    read = rotated.input_grad(jnp.ones((1, *geometry.out, case.w[-1])), jnp.ones(case.w), geometry)

    def marked(scope: str, classes: tuple[str, ...]) -> set[str]:
        where = ", ".join(f"{scope} td.{name}[data-key]" for name in classes)
        return set(page.evaluate("where => [...document.querySelectorAll(where)].map(td => td.dataset.key)", where))

    unread = {",".join(map(str, index)) for index in np.argwhere(np.asarray(read) == 0)}
    assert marked("#input_grad .result", ("unread",)) == unread
    assert marked("#forward .read", ("unread", "cropped")) == unread


# Pointing at a number


def terms(text: str) -> list[tuple[str, str]]:
    return [(SYMBOLS[symbol], index) for symbol, index in re.findall(r"(∂?[xwyδ])\[([\d,]+)\]", text)]


def evaluated(sum_of_products: str) -> int:
    assert re.fullmatch(r"[\d()·+− ]+", sum_of_products)
    return eval(sum_of_products.replace("·", "*").replace("−", "-"))


def marked(page: Any, name: str) -> set[tuple[str, str]]:
    found = page.locator(f"td.{name}").evaluate_all("all => all.map(td => [td.dataset.array, td.dataset.key])")
    return {(array, key) for array, key in found}


def assert_explained(page: Any, cells: dict[str, dict[tuple[int, ...], int]], array: str, key: str) -> None:
    """The equation is true, its factors are the marked cells, and its window with its taps makes the number."""
    result = {"x": "dx", "w": "dw", "y": "y"}[SLOTS[array]]
    expected = cells[result][tuple(map(int, key.split(",")))]
    symbols, products = page.locator("#symbols").inner_text(), page.locator("#products").inner_text()
    assert marked(page, "chosen") == {(name, key) for name, slot in SLOTS.items() if slot == SLOTS[array]}
    if not symbols:
        assert expected == 0 and "no window reads" in page.locator("#about").inner_text()
        assert not marked(page, "operand")
        return
    head, *factors = terms(symbols)
    assert head == (result, key)
    _, middle, total = products.split("=")
    assert evaluated(middle.strip()) == number(total.strip()) == expected
    values = [cells[name][tuple(map(int, index.split(",")))] for name, index in factors]
    assert [number(n) for n in re.findall(r"−?\d+", middle)] == values
    assert marked(page, "operand") == set(factors)
    rest = {"x": {"y", "dw"}, "w": {"y", "dx"}, "y": {"dx", "dw"}}[SLOTS[array]]
    assert {name for name, _ in marked(page, "touched")} == rest
    taps = page.locator("td[data-times]").evaluate_all("all => all.map(td => [td.textContent, td.dataset.times])")
    assert sum(number(value) * number(tap.removeprefix("×")) for value, tap in taps) == expected


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_number_is_explained(visit: Open, case: Case) -> None:
    page = visit(case)
    cells = shown(page)
    for array in Arrays._fields:
        keys = [",".join(map(str, index)) for index in cells[array]]
        for key in keys[:: max(1, len(keys) // 7)]:
            # As a pointer event of the browser's own where it can be seen: see below.
            cell(page, array, key).dispatch_event("pointerover", {"bubbles": True, "pointerType": "mouse"})
            assert_explained(page, cells, array, key)


def test_hovering_shows_the_products_and_leaving_returns(visit: Open) -> None:
    page = visit(STRIDED)
    cells, before = shown(page), page.locator("#symbols").inner_text()
    for array, key in (("dx", "0,1,2,0"), ("w", "1,0,0,0"), ("y", "0,2,1,0"), ("delta", "0,0,0,0"), ("x", "0,4,4,0")):
        cell(page, array, key).hover()
        assert_explained(page, cells, array, key)
        assert page.locator("#symbols").inner_text() != before
    page.mouse.move(5, 5)
    assert page.locator("#symbols").inner_text() == before


def test_the_equation_as_text(visit: Open) -> None:
    page = visit(Case((1, 3, 1), (2, 1, 1), {"padding": "VALID"}))
    cell(page, "dx", "0,1,0").hover()
    assert page.locator("#symbols").inner_text() == "∂x[0,1,0] = δ[0,0,0]·w[1,0,0] + δ[0,1,0]·w[0,0,0]"
    delta, w = shown(page)["delta"], shown(page)["w"]
    a, b, c, d = delta[0, 0, 0], w[1, 0, 0], delta[0, 1, 0], w[0, 0, 0]
    text = " + ".join(
        f"{m}·{f'({n})' if n < 0 else n}" for m, n in ((f"({a})" if a < 0 else a, b), (f"({c})" if c < 0 else c, d))
    )
    assert page.locator("#products").inner_text() == f"= {text} = {a * b + c * d}".replace("-", "−")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_windows_stand_where_the_recipe_puts_them(visit: Open, case: Case) -> None:
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
            index = [int(i) for i in key.split(",")]
            spatial = index[: geometry.rank] if array == "dw" else index[1:-1]
            (row, tall), (column, wide) = (
                frame(a, map_name, p)
                for a, p in zip(both, spatial if geometry.rank == 2 else [0, *spatial], strict=True)
            )
            page.evaluate("chosen => window.jaxconv.set({chosen})", {"array": array, "key": key})
            boxes = page.evaluate(
                """([map, row, column, tall, wide]) => [...document.querySelectorAll(`#${map} .read .plane`)]
                    .filter(plane => !plane.querySelector(".window").hidden).map(plane => {
                        const at = (r, c) => plane.querySelector("table").rows[r].cells[c].getBoundingClientRect();
                        const [a, b] = [at(row, column), at(row + tall - 1, column + wide - 1)];
                        const box = plane.querySelector(".window").getBoundingClientRect();
                        return [box.left - a.left, box.top - a.top, box.right - b.right, box.bottom - b.bottom]; })""",
                [map_name, row, column, tall, wide],
            )
            per_group = {"y": case.w[-2], "dx": case.w[-1] // geometry.groups, "dw": 1}[array]
            assert len(boxes) == per_group
            np.testing.assert_allclose(boxes, [[-3, -3, 3, 3]] * per_group, atol=0.6)
            other = page.locator(f".map:not(#{map_name}) .window.spans:visible").count()
            assert other > 0 or not page.locator("#symbols").inner_text()


# Sliders


def slide(page: Any, control: str, key: str = "ArrowRight", times: int = 1) -> None:
    page.locator(f"#{control}").focus()
    for _ in range(times):
        page.keyboard.press(key)


def test_sliders_change_the_geometry(visit: Open) -> None:
    page, case = visit(STRIDED), STRIDED
    options = dict(STRIDED.options)
    for control, key, change in (
        ("s-0", "ArrowRight", {"stride": 3}),
        ("d-0", "ArrowRight", {"dilation": 2}),
        ("lo-0", "ArrowRight", {"padding": 2}),
        ("i-0", "ArrowRight", {"input_dilation": 2}),
    ):
        slide(page, control, key)
        case = Case(case.x, case.w, options := {**options, **change})
        assert_agrees(page, case)
    slide(page, "n-0", "ArrowLeft")
    slide(page, "k-0", "ArrowLeft")
    assert_agrees(page, case := Case((1, 5, 5, 1), (2, 2, 1, 1), options))
    slide(page, "groups")
    slide(page, "inputs")
    slide(page, "outputs")
    assert_agrees(page, case := Case((1, 5, 5, 4), (2, 2, 2, 4), {**options, "groups": 2}))
    page.locator("#each").click()
    slide(page, "lo-0", "ArrowLeft", 5)
    slide(page, "hi-1", "ArrowRight")
    slide(page, "s-1", "ArrowLeft")
    slide(page, "k-0", "ArrowRight")
    uneven = {**options, "groups": 2, "padding": ((-3, 2), (2, 3)), "stride": (3, 2)}
    assert_agrees(page, Case(case.x, (3, 2, 2, 4), uneven))
    page.locator("#each").click()
    assert_agrees(page, Case(case.x, (3, 3, 2, 4), {**uneven, "padding": -3, "stride": 3}))


def test_each_end_of_a_line(visit: Open) -> None:
    page = visit(LINE)
    assert page.locator("#each").is_checked()
    slide(page, "hi-0", "ArrowRight", 3)
    assert_agrees(page, Case(LINE.x, LINE.w, {"stride": 3, "padding": ((2, 2),)}))
    page.locator("#each").click()
    slide(page, "lo-0", "ArrowLeft")
    assert_agrees(page, Case(LINE.x, LINE.w, {"stride": 3, "padding": 1}))


def test_a_window_that_does_not_fit_is_said(visit: Open) -> None:
    page = visit(Case((1, 3, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}))
    assert not page.locator("#notice").is_visible()
    slide(page, "n-0", "ArrowLeft")
    assert page.locator("#notice").inner_text() == (
        "The window does not fit: slack = n + lo + hi − span = 2 + 0 + 0 − 3 = −1 < 0 (height). "
        "There is no output, and every gradient is 0."
    )
    assert_agrees(page, Case((1, 2, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}))
    slide(page, "n-0", "ArrowRight")
    assert not page.locator("#notice").is_visible()


def test_groups_leave_at_most_six_channels(visit: Open) -> None:
    page = visit(Case((1, 4, 2), (2, 2, 2), {}))
    slide(page, "groups", times=2)
    assert_agrees(page, Case((1, 4, 6), (2, 2, 6), {"groups": 3}))
    page.evaluate("window.jaxconv.set({groups: 6})")
    assert_agrees(page, Case((1, 4, 6), (2, 1, 6), {"groups": 6}))
    assert page.locator("#inputs").input_value() == "1"


# Steps


def test_stepping_visits_every_entry_of_the_chosen_map(visit: Open) -> None:
    page = visit(STRIDED)
    for name, array, count in (("forward", "y", 9), ("kernel_grad", "dw", 9), ("input_grad", "dx", 36)):
        page.locator(f"#steps [value={name}]").check()
        first = page.locator("#position").inner_text()
        visited = []
        for _ in range(count):
            page.locator("#next").click()
            visited.append(chosen(page))
        assert page.locator("#position").inner_text() == first
        assert {key for _, key in visited} == {",".join(map(str, index)) for index in shown(page)[array]}
        page.locator("#previous").click()
        assert chosen(page) == visited[-2]


def test_playing_moves_the_windows_and_pauses(visit: Open) -> None:
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


def test_reduced_motion(visit: Open) -> None:
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
def test_without_the_flip_exactly_the_wrong_entries_are_marked(visit: Open, case: Case) -> None:
    page, geometry = visit(case), geometry_of(case)
    true = seen(page, case)
    page.locator("#flip").click()
    mirrored = np.flip(true.w, range(geometry.rank)).copy()
    unrotated = np.asarray(rotated.input_grad(jnp.asarray(true.delta), jnp.asarray(mirrored), geometry))
    np.testing.assert_array_equal(seen(page, case).dx, unrotated)
    wrong = page.locator("td.wrong").evaluate_all(
        "all => all.map(td => [td.dataset.key, td.querySelector('ins').textContent])"
    )
    expected = {",".join(map(str, at)): int(true.dx[tuple(at)]) for at in np.argwhere(unrotated != true.dx)}
    assert {key: number(text) for key, text in wrong} == expected
    assert bool(expected) == (max(geometry.taps) > 1)
    assert not page.locator("#alarm").is_visible()
    for key, value in list(expected.items())[:3]:
        cell(page, "dx", key).hover()
        cells = shown(page)
        assert_explained(page, cells, "dx", key)
        assert f"the gradient is {value}.".replace("-", "−") in page.locator("#about").inner_text()
    page.locator("#flip").click()
    assert not page.locator("td.wrong").count()
    np.testing.assert_array_equal(seen(page, case).dx, true.dx)


# Keyboard, screen readers, small and dark screens


def test_everything_by_keyboard(visit: Open) -> None:
    page = visit(STRIDED, clock=True)
    cells, stops = shown(page), []
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
                const visible = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2;
                const radio = e.name === "map" && getComputedStyle(e.parentElement).outlineStyle !== "none";
                return [e.dataset.array ? `${e.closest(".map").id} ${e.dataset.array}` : e.id || e.value || e.tagName,
                    visible || radio]; }"""
        )
        if stop[0] == "BODY":
            break
        stops.append(stop[0])
        assert stop[1], f"the focus on {stop[0]} is not visible"
    arrays = [stop for stop in stops if " " in stop]
    assert arrays == [
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
        assert_explained(page, cells, "y", at)
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


def test_arrows_cross_from_channel_to_channel(visit: Open) -> None:
    page = visit(GROUPED)
    cell(page, "x", "0,0,3,0").focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("x", "0,0,0,1")


def test_what_a_screen_reader_is_told(visit: Open) -> None:
    page = visit(STRIDED)
    live = page.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    cell(page, "dw", "1,2,0,0").focus()
    assert live.inner_text().startswith("∂w[1,2,0,0] = ")
    value = shown(page)["dw"][1, 2, 0, 0]
    assert live.inner_text().endswith(f" = {value}".replace("-", "−"))
    assert cell(page, "dw", "1,2,0,0").get_attribute("aria-label") == f"∂w[1,2,0,0] = {value}".replace("-", "−")
    assert page.locator("table[role=grid]:not([aria-label])").count() == 0
    assert page.locator("input:not([aria-label])").evaluate_all("all => all.every(i => i.labels.length)")


def test_indices_follow_the_layout(visit: Open) -> None:
    page = visit(in_layout(Case((1, 4, 5, 2), (2, 3, 2, 3), {"padding": "VALID"}), "NCHW"))
    cell(page, "dx", "0,0,1,1").hover()
    text = page.locator("#symbols").inner_text()
    assert text.startswith("∂x[0,1,0,1] = ")
    assert "δ[0,2,0,1]·w[2,1,0,0]" in text


@pytest.mark.parametrize("case", [*FEW, Case((1, 5, 5, 3), (3, 3, 3, 2), {})], ids=str)
@pytest.mark.parametrize("width", [360, 820, 1280])
def test_no_width_scrolls_sideways(visit: Open, case: Case, width: int) -> None:
    page = visit(case, viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("window.jaxconv.set({each: true, flip: false})")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in ("forward", "input_grad", "kernel_grad")]
    assert len(set(tops)) == (3 if width < 1000 or page.locator("#maps.stacked").count() else 1)


def test_a_tap_explains(visit: Open) -> None:
    page = visit(STRIDED, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    cells = shown(page)
    cell(page, "dx", "0,3,3,0").tap()
    assert_explained(page, cells, "dx", "0,3,3,0")
    assert page.locator("#symbols").is_visible()


def luminance(colour: str) -> float:
    r, g, b = (int(c) / 255 for c in re.findall(r"\d+", colour)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_light_and_dark_are_different_and_readable(visit: Open) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = visit(Case((1, 7, 7, 1), (3, 3, 1, 1), {"stride": 3, "padding": ((-1, 1), (1, 0))}), color_scheme=scheme)
        page.locator("#flip").click()
        colours = page.evaluate(
            """() => { const ground = getComputedStyle(document.documentElement).backgroundColor;
                const of = e => { const s = getComputedStyle(e); return [e.className || e.tagName, s.color,
                    s.backgroundColor === "rgba(0, 0, 0, 0)" ? ground : s.backgroundColor]; };
                return [ground, [...document.querySelectorAll("td.cell, p, h2, th, h1, .slider label, #maps em")].map(of)]; }"""
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
        ("s * p + d * tap - lo", "s * p + d * tap - hi"),
    ],
)
def test_a_wrong_page_says_so(visit: Open, right: str, wrong: str) -> None:
    def broken(text: str) -> str:
        assert text.count(right) == 1
        return text.replace(right, wrong)

    case = Case((1, 6, 7, 1), (3, 2, 1, 1), {"stride": 2, "padding": ((1, 0), (0, 2)), "dilation": (1, 2)})
    page = visit(case, broken)
    assert page.locator("#alarm").is_visible()
    assert page.locator("#alarm").inner_text().startswith("This page is wrong: by its recipe ")


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
            "explain: --html draws at most 2 spatial axes, but there are 3. Leave out --html for the explanation in words.",
        ),
        (
            (1, 5, 5, 1), (3, 3, 1, 1), {"flip_kernel": True},
            "explain: --html draws the cross-correlation, but flip_kernel is True. "
            "Rotate the kernel by 180° and say flip_kernel=False, which is the same convolution.",
        ),
        (
            (1, 5, 28, 1), (3, 3, 1, 1), {},
            "explain: --html draws at most 12 elements per axis, but x has 28 > 12 along spatial axis 1. "
            "Take a smaller one: the pattern of its gradients is the same.",
        ),
        (
            (1, 5, 1), (13, 1, 1), {"padding": 9},
            "explain: --html draws at most 12 elements per axis, but w has 13 > 12 along spatial axis 0. "
            "Take a smaller one: the pattern of its gradients is the same.",
        ),
        (
            (1, 12, 1), (3, 1, 1), {"padding": ((20, 0),)},
            "explain: --html draws at most 24 cells in a row, but spatial axis 0 needs 32 > 24 "
            "with the zeros of its padding and dilations. Take a smaller input, padding or dilation.",
        ),
        (
            (1, 5, 5, 8), (3, 3, 8, 1), {},
            "explain: --html draws at most 6 channels, but x has 8 > 6. "
            "Take fewer: every channel of a group is treated alike.",
        ),
        (
            (1, 5, 5, 1), (3, 3, 1, 7), {},
            "explain: --html draws at most 6 channels, but y has 7 > 6. "
            "Take fewer: every channel of a group is treated alike.",
        ),
        (
            (1, 0, 5, 1), (3, 3, 1, 1), {"padding": 2},
            "explain: --html draws at least 1 element per axis, but x has 0 along spatial axis 0. "
            "Leave out --html for the explanation in words.",
        ),
        (
            (1, 5, 5, 0), (3, 3, 0, 1), {},
            "explain: --html draws at least one channel per group, but x has 0 in 1 groups.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    x: tuple[int, ...], w: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        page_of(Case(x, w, options))
