"""A wrong rule is not explained as if it were right: whatever `explain` writes or draws says so first.

The wrong entries are marked, the right products stand beside the wrong ones, and no window is drawn whose numbers do
not add up to what the picture says of it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from experiments.verdicts.wrong_rules import WRONG_INPUT_GRADS, WRONG_KERNEL_GRADS, input_grad, kernel_grad
from jaxconv.explanation import Explanation
from jaxconv.rules import ConvRules, rotated
from tests.instruments.test_explain import explained
from tests.support import oracle
from tests.support.cases import Case, in_layout
from tests.support.sampling import sampled
from tests.trio.test_sabotage import BENCH

LINE = (1, 3, 3, 1), (2, 2, 1, 1)


def with_rules(name: str, rule: Any) -> ConvRules:
    return ConvRules(rule, kernel_grad) if name == "dx" else ConvRules(input_grad, rule)


def telling(wrong: str) -> Case:
    """A convolution on which this mistake can be seen."""
    bench = {"input dilation": BENCH[3], "remainder": BENCH[1], "circular": BENCH[0], "true convolution": BENCH[4]}
    return next((case for word, case in bench.items() if word in wrong), BENCH[2])


def true(e: Explanation, case: Case, name: str) -> np.ndarray:
    """dx or dw by the oracle's loops."""
    x, w, g = (e.example[array] for array in ("x", "w", "g"))
    if name == "dx":
        return oracle.conv_input_grad(g, w, x.shape[1:-1], **case.options)
    return oracle.conv_kernel_grad(x, g, w.shape[:-2], **case.options)


# What a picture shows


def shown(figure: Any) -> list[tuple[str, str]]:
    """(face, number) of each cell, in the order in which they are drawn."""
    from matplotlib.colors import to_hex

    def at(x: float, y: float) -> tuple[float, float]:
        return round(x, 6), round(y, 6)

    axes = figure.axes[0]
    # In reverse: a frame begins where its first cell does.
    faces = {at(p.get_x(), p.get_y()): to_hex(p.get_facecolor(), keep_alpha=True) for p in reversed(axes.patches)}
    middles = [(at(x - 0.5, y - 0.52), t) for t in axes.texts for x, y in [t.get_position()] if t.get_ha() == "center"]
    return [(faces[corner], t.get_text()) for corner, t in middles if corner in faces]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def window(figure: Any) -> float:
    """What the numbers under the window of a picture of one map add up to, multiplied by the kernel's."""
    under = [number(text) for face, text in shown(figure) if face.startswith("#f4b63f")]
    half = len(under) // 2
    return float(np.dot(under[:half], under[half:]))


def results(figure: Any) -> list[float]:
    """The numbers on black: the entry that the window makes, and beside it what the rule makes of it."""
    return [number(text) for face, text in shown(figure) if face.startswith("#1c1c1c")]


def said(figure: Any, word: str) -> str:
    *_, line = (t.get_text() for t in figure.axes[0].texts if t.get_text().startswith(f"{word}:"))
    return line.removeprefix(f"{word}: ")


def assert_adds_up(line: str, total: float) -> None:
    """dx[0,1,2,0] = (−2)·3 + 4·1 = −2, the products unless some are only counted; ≈ where a number is rounded."""
    tolerance = 5e-3 if "≈" in line else 1e-12
    _, *terms, last = line.replace("≈", "=").split(" = ")
    assert number(last) == pytest.approx(total, rel=tolerance)
    for products in terms[: "…" not in line]:
        assert re.fullmatch(r"[\d().·+− e]+", products)
        assert eval(products.replace("·", "*").replace("−", "-")) == pytest.approx(total, rel=tolerance)


WRONG = [*(("dx", wrong) for wrong in WRONG_INPUT_GRADS), *(("dw", wrong) for wrong in WRONG_KERNEL_GRADS)]


@pytest.mark.parametrize("fault", sampled({f"{name}: {wrong}": (name, wrong) for name, wrong in WRONG}, every=3))
def test_a_wrong_rule_is_said_to_be_wrong_wherever_it_is_explained(fault: tuple[str, str]) -> None:
    name, wrong = fault
    case = telling(wrong)
    e = explained(case, rules=with_rules(name, (WRONG_INPUT_GRADS if name == "dx" else WRONG_KERNEL_GRADS)[wrong]))
    assert not e.verify()
    right, made, other = true(e, case, name), e.example[name], "dw" if name == "dx" else "dx"
    # Which entries: those that differ, and few that do not on these very numbers.
    assert e.wrong[name][np.abs(made - right) > 1e-6].all() and not e.wrong[other].any() and not e.wrong["y"].any()
    assert np.array_equal(e.right[name], right) and np.array_equal(e.right[other], e.example[other])
    q, count = e.equation(name, e.richest(name)), f"{e.wrong[name].sum()} of {made.size} entries of {name}"
    assert e.verdict == f"WRONG: the rules miscompute {count}." and e.wrong[name][q.entry]
    # Text: first, and the right products beside the wrong ones.
    text = str(e).splitlines()
    assert text[0] == e.verdict and text[1].startswith(f"  {name}[") and "the recipe gives" in text[1]
    assert q.wrong or made[q.entry] != right[q.entry]
    assert sum(p.coefficient * _product(e, q, p) for p in q.right) == right[q.entry]
    lines = [f"  {line}" for line in str(q).splitlines()]
    assert text[(at := text.index(lines[0])) : at + 2] == lines and [line[:7] for line in lines] == [
        "  WRONG",
        "  right",
    ]
    assert not any(line.startswith(f"  WRONG {other}") for line in text)
    # LaTeX, JSON.
    assert e.latex().splitlines()[1].startswith(r"& \text{WRONG: ") and "WRONG; right is" in e.latex()
    known = json.loads(json.dumps(e.to_dict()))
    assert next(iter(known)) == "faults" and known["faults"] == e.faults()
    assert known["maps"][name]["wrong"] == e.wrong[name].sum() and known["maps"][other]["wrong"] == 0
    (entry,) = (entry for entry in known["maps"][name]["equations"] if entry["entry"] == list(q.entry))
    assert len(entry["right"]) == len(q.right)
    # The picture: the window adds up to the right number; the rule's is beside it, and its wrong ones are struck.
    figure = e.figure(maps=name)
    words = [t.get_text() for t in figure.axes[0].texts]
    assert words[0] == e.verdict and "right" in words and "the rule's" in words
    assert (
        results(figure) == [right[q.entry], pytest.approx(made[q.entry], rel=5e-3)]
        and results(figure)[0] != results(figure)[1]
    )
    assert window(figure) == right[q.entry]
    assert_adds_up(said(figure, "right"), right[q.entry])
    assert_adds_up(said(figure, "WRONG"), made[q.entry])
    drawn = e.wrong[name][_slice(e, name, q.entry)]
    assert len(figure.axes[0].lines) == drawn.sum() > 0


def _product(e: Explanation, q: Any, p: Any) -> float:
    return float(e.example[q.factors[0]][p.left] * e.example[q.factors[1]][p.right])


def _slice(e: Explanation, name: str, entry: tuple[int, ...]) -> tuple[Any, ...]:
    first, second, *_ = e.recipes[name].layout(name)
    return tuple(i if axis in (first, second) else slice(None) for axis, i in enumerate(entry))


def test_every_frame_of_a_wrong_map_adds_up() -> None:
    """δ goes to the row below: most windows make another number than the rule."""
    rules = ConvRules(lambda g, w, z: jnp.roll(rotated.input_grad(g, w, z), 1, 1), rotated.kernel_grad)
    e = jaxconv.explain((1, 4, 4, 1), (2, 2, 1, 1), padding="VALID", rules=rules)
    figure = e.figure(maps="dx", frames=16)
    lines = [t.get_text() for t in figure.axes[0].texts if t.get_text().startswith("right: ")]
    assert len(lines) == 16
    for line, right, made in zip(lines, e.right["dx"].ravel(), e.example["dx"].ravel(), strict=True):
        assert_adds_up(line.removeprefix("right: "), right)
        assert f"= {made:g}".replace("-", "−") in "".join(t.get_text() for t in figure.axes[0].texts)


def test_an_animation_says_so_too(tmp_path: Any) -> None:
    pytest.importorskip("PIL.Image")
    rules = with_rules("dx", WRONG_INPUT_GRADS["the sign is wrong"])
    e = jaxconv.explain((1, 3, 1, 1), (2, 1, 1, 1), padding="VALID", rules=rules)
    last = e.figure(tmp_path / "wrong.gif", maps="dx")
    assert last.axes[0].texts[0].get_text() == e.verdict == "WRONG: the rules miscompute 3 of 3 entries of dx."


def test_a_picture_too_large_for_numbers_shows_where() -> None:
    rules = ConvRules(lambda g, w, z: rotated.input_grad(g, w, z).at[:, 30:].set(0), rotated.kernel_grad)
    e = jaxconv.explain((1, 40, 30, 1), (3, 3, 1, 1), rules=rules)
    *_, right, ours = e.figure(maps="dx").axes[0].images
    white = np.array([1.0, 1.0, 1.0])
    assert (right.get_array() == white).all(-1).sum() == 40 * 30 - 1
    marked = (ours.get_array() != white).any(-1)
    assert marked[30:].all() and marked[:30].sum() == 0


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_wrong_rule_in_channels_first(layout: str) -> None:
    def halved(x: jax.Array, g: jax.Array, z: Any) -> jax.Array:
        return rotated.kernel_grad(x, g, z) / 2

    case = in_layout(Case((1, 4, 2), (2, 2, 3), {"padding": "VALID"}), layout)
    e = explained(case, rules=ConvRules(rotated.input_grad, halved))
    assert e.verdict == "WRONG: the rules miscompute 12 of 12 entries of dw."
    assert all(q.wrong and {p.coefficient for p in q.products} == {0.5} for q in e.equations["dw"])
    assert "·".join(("WRONG dw[0,0,0] = 0.5", "x[0,0,0]")) in str(e)


@pytest.mark.parametrize("case", BENCH[1:4], ids=str)
def test_the_right_rule_that_they_were_made_of_verifies(case: Case) -> None:
    e = explained(case, rules=ConvRules(input_grad, kernel_grad))
    assert e.verify() and e.verdict == "" and "WRONG" not in str(e) + e.latex() and "faults" not in e.to_dict()


@pytest.mark.parametrize(
    ("wrong", "printed"),
    [
        ("the kernel is not rotated", "δ[0,0,0,0]·w[0,0,0,0] + δ[0,0,1,0]·w[0,1,0,0]"),
        ("the sign is wrong", "−δ"),
        ("all is scaled by 1.001", "1.001·δ"),
        ("the taps are transposed", "δ[0,0,1,0]·w[0,1,0,0] + δ[0,1,0,0]·w[1,0,0,0]"),
    ],
)
def test_a_wrong_rule_prints_wrong_equations_and_right_ones(wrong: str, printed: str) -> None:
    e = jaxconv.explain(*LINE, padding="VALID", rules=with_rules("dx", WRONG_INPUT_GRADS[wrong]))
    ours, right = str(e.equation("dx", (0, 1, 1, 0))).splitlines()
    assert printed in ours.replace("= − δ", "= −δ") and ours.startswith("WRONG dx[0,1,1,0] = ")
    products = "δ[0,0,0,0]·w[1,1,0,0]", "δ[0,0,1,0]·w[1,0,0,0]", "δ[0,1,0,0]·w[0,1,0,0]", "δ[0,1,1,0]·w[0,0,0,0]"
    assert sorted(right.removeprefix("right dx[0,1,1,0] = ").split(" + ")) == sorted(products)
    assert any(fault.startswith("dx[0, 1, 1, 0]: the rule adds up") for fault in e.faults())
    assert not any("dw" in fault for fault in e.faults())


def test_of_many_products_those_that_differ_are_shown() -> None:
    rules = ConvRules(lambda g, w, z: rotated.input_grad(g, w.at[2, 2, 0, 19].set(0), z), rotated.kernel_grad)
    e = jaxconv.explain((1, 6, 6, 3), (3, 3, 3, 20), padding="VALID", rules=rules)
    ours, right = str(e.equation("dx", (0, 2, 2, 0))).splitlines()
    assert ours.endswith("(179 products)") and right.endswith("(180 products)")
    assert right.startswith("right dx[0,2,2,0] = δ[0,0,0,19]·w[2,2,0,19] + ") and "w[2,2,0,19]" not in ours


def test_a_gradient_that_is_missing_is_few_lines() -> None:
    rules = ConvRules(lambda g, w, z: jnp.zeros(z.x_shape(1, 1)), rotated.kernel_grad)
    e = jaxconv.explain((1, 20, 20, 1), (2, 2, 1, 1), stride=9, padding="VALID", rules=rules)
    assert len(e.equations["dx"]) == 1 and "400 entries of 36 products" in str(e) and not e.verify()
    assert str(e.equations["dx"][0]).startswith("WRONG dx[0,") and " = 0\nright" in str(e.equations["dx"][0])
    assert e.wrong["dx"].sum() == 3 * 3 * 4  # the rest is read by no window


def test_what_is_no_number_is_wrong() -> None:
    rules = ConvRules(lambda g, w, z: rotated.input_grad(g, w, z).at[0, 1].set(jnp.nan), rotated.kernel_grad)
    e = jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID", rules=rules)
    assert e.verdict == "WRONG: the rules miscompute 1 of 4 entries of dx." and e.wrong["dx"][0, 1, 0]
    figure = e.figure(maps="dx")
    assert window(figure) == results(figure)[0] == e.right["dx"][0, 1, 0] and said(figure, "WRONG").startswith(
        "dx[0,1,0] = nan, no sum"
    )


def test_a_rule_that_is_not_linear_makes_no_sum_of_products() -> None:
    rules = ConvRules(lambda g, w, z: rotated.input_grad(g, w, z) ** 2, rotated.kernel_grad)
    e = jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID", rules=rules)
    assert e.verdict.startswith("WRONG: the rules miscompute") and any("the products sum to" in f for f in e.faults())
    assert said(e.figure(maps="dx"), "WRONG").endswith(", no sum of such products")


def test_an_element_that_meets_several_others_is_asked_one_by_one() -> None:
    def smeared(g: jax.Array, w: jax.Array, geometry: Any) -> jax.Array:
        return rotated.input_grad(g, w + 0.5 * jnp.roll(w, 1, 0), geometry)

    e = jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID", rules=ConvRules(smeared, rotated.kernel_grad))
    assert str(e.equation("dx", (0, 1, 0))).splitlines()[0] == (
        "WRONG dx[0,1,0] = 0.5·δ[0,0,0]·w[0,0,0] + 0.5·δ[0,1,0]·w[1,0,0] + δ[0,0,0]·w[1,0,0] + δ[0,1,0]·w[0,0,0]"
    )
