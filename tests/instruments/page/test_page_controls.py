"""Sliders, steps, the flip, the keyboard, touch, widths and colours."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.rules import rotated
from tests.instruments.page.looking import (
    FEW,
    GROUPED,
    LINE,
    STRIDED,
    Visitor,
    assert_explained,
    assert_shows,
    cell,
    chosen,
    entries,
    geometry_of,
    index,
    number,
    seen,
    snapshot,
    summed,
)
from tests.support.cases import Case, in_layout

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
