"""What `explain` says is true of the rules that run: its recipes, its equations, its pictures."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.explanation import Explanation
from jaxconv.explanation.recipes import Recipe
from jaxconv.rules import RULE_SETS, ConvRules, rotated
from tests.support import oracle
from tests.support.cases import CASES, FEW, Case, in_layout
from tests.support.sampling import chosen
from tests.trio.test_sabotage import BENCH

Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
SMALL = Case(
    (2, 5, 4, 2), (3, 2, 1, 4), {"stride": (2, 1), "groups": 2, "dilation": (1, 2), "padding": ((1, 1), (0, 1))}
)


def explained(case: Case, **more: Any) -> Explanation:
    return jaxconv.explain(case.x, case.w, **case.options, **more)


def triples(case: Case) -> set[Triple]:
    """Which x, w and g the trilinear form multiplies, by the oracle's own count; in NHWC."""
    options = {name: value for name, value in case.options.items() if name != "groups"}
    groups = case.options.get("groups", 1)
    (n, *spatial, _), (*taps, per_in, outputs) = case.x, case.w
    _, meetings = oracle.conv_meetings(spatial, taps, **options)
    found = set()
    for (p, k, q), i, c, o in itertools.product(meetings, range(n), range(per_in), range(outputs)):
        found.add(((i, *q, o // (outputs // groups) * per_in + c), (*k, c, o), (i, *p, o)))
    return found


def read(e: Explanation, name: str) -> set[Triple]:
    """The same, from the equations of every entry of one map."""
    found = set()
    for entry in np.ndindex(*e.shape(name)):
        q = e.equation(name, entry)
        for coefficient, left, right in q.products:
            assert coefficient == 1
            known = {q.factors[0]: left, q.factors[1]: right, {"y": "g", "dx": "x", "dw": "w"}[name]: entry}
            triple = known["x"], known["w"], known["g"]
            assert triple not in found
            found.add(triple)
    return found


# True


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_explained_is_what_runs(case: Case) -> None:
    assert explained(case).faults() == []


@pytest.mark.parametrize("case", FEW, ids=str)
def test_in_channels_first_too(case: Case) -> None:
    assert explained(in_layout(case, "NCHW")).verify()


@pytest.mark.parametrize("rules", [*(name for name in RULE_SETS if name != "fast"), "autodiff"])
def test_every_rule_set_can_be_read(rules: str) -> None:
    assert explained(SMALL, rules=rules).verify()


@pytest.mark.parametrize("name", ["y", "dx", "dw"])
@pytest.mark.parametrize("case", [SMALL, FEW[1]], ids=str)
def test_the_three_maps_multiply_the_same_triples(case: Case, name: str) -> None:
    assert read(explained(case), name) == triples(case)


@pytest.mark.parametrize("case", [*FEW, *BENCH], ids=str)
def test_the_recipes_compute_what_the_loops_compute(case: Case) -> None:
    e, options = explained(case), case.options
    x, w, g = (e.example[name] for name in ("x", "w", "g"))
    assert np.array_equal(e.recipes["y"].follow(x, w), oracle.conv(x, w, **options))
    assert np.array_equal(e.recipes["dx"].follow(g, w), oracle.conv_input_grad(g, w, x.shape[1:-1], **options))
    assert np.array_equal(e.recipes["dw"].follow(x, g), oracle.conv_kernel_grad(x, g, w.shape[:-2], **options))


def test_the_articles_equations() -> None:
    """3×3 and 2×2: four equations for the output, nine for the input gradient, four for the kernel gradient."""
    e = jaxconv.explain((1, 3, 3, 1), (2, 2, 1, 1), padding="VALID")
    assert [len(e.equations[name]) for name in ("y", "dx", "dw")] == [4, 9, 4]
    assert str(e.equation("dx", (0, 1, 2, 0))) == "dx[0,1,2,0] = δ[0,0,1,0]·w[1,1,0,0] + δ[0,1,1,0]·w[0,1,0,0]"
    assert str(e.equation("dx", (0, 2, 2, 0))) == "dx[0,2,2,0] = δ[0,1,1,0]·w[1,1,0,0]"
    assert str(e.equation("dw", (0, 1, 0, 0))) == (
        "dw[0,1,0,0] = x[0,0,1,0]·δ[0,0,0,0] + x[0,0,2,0]·δ[0,0,1,0] + x[0,1,1,0]·δ[0,1,0,0] + x[0,1,2,0]·δ[0,1,1,0]"
    )


def test_twenty_filters_on_three_colours_go_back_by_three_kernels_of_depth_twenty() -> None:
    e = jaxconv.explain((1, 6, 6, 3), (3, 3, 3, 20), padding="VALID")
    assert e.recipes["dx"].kernel_shape(e.shapes["w"]) == (3, 3, 20, 3)
    assert "rotated by 180°, inputs and outputs exchanged: (3, 3, 20, 3)" in str(e)
    assert len(e.equation("dx", (0, 2, 2, 0)).products) == 9 * 20


def test_channels_are_exchanged_as_the_text_says() -> None:
    for layout, said in (
        ("NHWC", "w′[k, o, 2g + c] = w[k, c, 3g + o]"),
        ("NCHW", "w′[2g + c, o, k] = w[3g + o, c, k]"),
    ):
        case = in_layout(Case((1, 4, 4), (2, 2, 6), {"groups": 2}), layout)
        e = explained(case, rules="rotated")
        assert said in str(e)
        w, turned = e.example["w"], e.recipes["dx"].prepared_kernel(e.example["w"])  # (g, c, o, k), rotated
        for g, c, o, k in np.ndindex(2, 2, 3, 2):
            index = (k, c, 3 * g + o) if layout == "NHWC" else (3 * g + o, c, k)
            assert turned[g, c, o, 1 - k] == w[index]


def test_a_stride_becomes_a_dilation_and_what_it_leaves_over_is_cropped() -> None:
    e = jaxconv.explain((1, 6, 5, 1), (3, 2, 1, 1), stride=(2, 3), padding=((1, 0), (0, 0)))
    dx, dw = e.recipes["dx"], e.recipes["dw"]
    assert e.geometry.unread == (0, 0) and dx.operand_dilation == (2, 3) and dx.stride == (1, 1)
    assert dw.kernel_dilation == (2, 3) and dw.stride == (1, 1) and dw.padding == ((1, 0), (0, 0))
    e = jaxconv.explain((1, 6, 1), (3, 1, 1), stride=2, padding="VALID", dilation=1)
    assert e.geometry.unread == (1,)
    assert e.recipes["dx"].padding == ((2, 3),) and e.recipes["dw"].padding == ((0, -1),)
    assert str(e.equation("dx", (0, 5, 0))) == "dx[0,5,0] = 0"


def test_a_true_convolution_rotates_forward_and_not_backward() -> None:
    e = jaxconv.explain((1, 4, 1), (2, 1, 1), flip_kernel=True)
    assert [recipe.rotated for recipe in e.recipes.values()] == [True, False, False]
    assert e.recipes["dw"].result_rotated and e.verify()


@pytest.mark.parametrize("name", ["y", "dx", "dw"])
def test_a_wrong_recipe_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    e = explained(SMALL)
    recipe = e.recipes[name]
    (lo, hi), *rest = recipe.padding
    wrong = Recipe(**{**recipe.__dict__, "padding": ((lo + 1, hi - 1), *rest)})
    monkeypatch.setitem(e.recipes, name, wrong)
    (fault,) = e.faults()
    assert re.fullmatch(rf"{name}\[[\d, ]+\]: the recipe gives -?\d+, the rule -?\d+\.", fault)


# Text, LaTeX, JSON


def test_small_ones_are_written_out_and_large_ones_counted() -> None:
    small = str(jaxconv.explain((1, 3, 3, 1), (2, 2, 1, 1), padding="VALID"))
    assert small.count("dx[") == 9 and "products" not in small
    large = jaxconv.explain((2, 12, 12, 8), (3, 3, 4, 16), stride=2, groups=2, rules="rotated")
    text = str(large)
    assert text.count("dx[") == 1 and "2,304 entries of" in text and "products)" in text
    assert large.total("dx") == large.total("dw") == large.total("y") == len(triples(Case(
        (2, 12, 12, 8), (3, 3, 4, 16), {"stride": 2, "groups": 2}
    )))  # fmt: skip


def test_the_text_names_every_number_of_the_derivation() -> None:
    options = {"stride": (2, 3), "padding": ((2, 0), (-1, 1)), "groups": 2, "rules": "rotated"}
    text = str(jaxconv.explain((1, 8, 7, 2), (3, 2, 1, 2), **options))
    axis = text.splitlines()[2:5]
    assert axis[0].split() == ["axis", *jaxconv.explanation.writing.COLUMNS]
    assert axis[1].split() == ["0", "8", "3", "2", "1", "1", "2", "0", "3", "7", "4", "1"]
    assert axis[2].split() == ["1", "7", "2", "3", "1", "1", "-1", "1", "2", "5", "2", "2"]
    assert "padded by (2, 0), (-1, 1): (lo, hi)" in text and "moves in steps of 2, 3 to 4 × 2 places" in text
    δ = "δ (1, 4, 2, 2), its elements 2, 3 apart, zeros between, padded by (0, 3), (2, 2)"
    assert f"{δ}: (span − 1 − lo, span − 1 − hi + unread)" in text and "moves in steps of 1 to 8 × 7 places" in text
    assert "x (1, 8, 7, 2), padded by (2, -1), (-1, -1): (lo, hi − unread)" in text
    assert "exchanged within each of 2 groups: (3, 2, 1, 2), w′[k, o, g + c] = w[k, c, g + o]" in text


def test_json_holds_the_products() -> None:
    e = explained(SMALL, rules="rotated")
    known = json.loads(json.dumps(e.to_dict()))
    assert known["flip_kernel"] is False and known["groups"] == 2 and known["layout"] == "NHWC"
    assert jaxconv.explain((1, 4, 1), (2, 1, 1), flip_kernel=True, rules="rotated").to_dict()["flip_kernel"] is True
    assert known["axes"][0]["unread"] == e.geometry.unread[0] and known["shapes"]["x"] == [2, 5, 4, 2]
    for name, first, second in (("y", "x", "w"), ("dx", "g", "w"), ("dw", "x", "g")):
        entry = known["maps"][name]
        assert entry["recipe"]["padding"] == [list(pair) for pair in e.recipes[name].padding]
        assert entry["products"] == len(triples(SMALL)) and entry["entries"] == e.example[name].size
        for equation in entry["equations"]:
            total = sum(
                p["coefficient"] * e.example[first][tuple(p[first])] * e.example[second][tuple(p[second])]
                for p in equation["products"]
            )
            assert total == e.example[name][tuple(equation["entry"])]


@pytest.mark.parametrize("layout", chosen(["NHWC", "NCHW"], ["NHWC"]))
@pytest.mark.parametrize("case", FEW, ids=str)
def test_latex_can_be_typeset(case: Case, layout: str) -> None:
    mathtext = pytest.importorskip("matplotlib.mathtext").MathTextParser("path")
    lines = explained(in_layout(case, layout), rules="rotated").latex().splitlines()
    assert lines[0] == r"\begin{align*}" and lines[-1] == r"\end{align*}"
    for line in lines[1:-1]:
        left, right = line.removesuffix(r" \\").split(" &= ")
        for side in (left, right):
            mathtext.parse(f"${side}$")


def test_latex_says_the_recipe() -> None:
    latex = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID").latex()
    assert r"q_{0} = 2p_{0} + k_{0},\;q_{1} = 2p_{1} + k_{1}" in latex
    assert (
        r"\frac{\partial L}{\partial x} &= \mathrm{pad}_{(1, 2)} (\delta \uparrow 2) \star \mathrm{rot}_{180} w^\top"
        in latex
    )
    assert r"\frac{\partial L}{\partial w} &= \mathrm{pad}_{(0, -1)} x^\top \star (\delta^\top \uparrow 2)" in latex


def test_latex_says_which_indices_meet() -> None:
    options = {
        "stride": (2, 1),
        "dilation": (1, 3),
        "padding": ((2, 0), (-1, 1)),
        "input_dilation": (3, 1),
        "groups": 2,
    }
    latex = jaxconv.explain((1, 5, 9, 4), (2, 3, 2, 6), **options, flip_kernel=True, rules="rotated").latex()
    assert r"3q_{0} = 2p_{0} + (1 - k_{0}) - 2,\;q_{1} = p_{1} + 3(2 - k_{1}) + 1" in latex
    assert r"x_{n,q_{0},q_{1},2\lfloor o / 3 \rfloor + c}" in latex


# Errors


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((1, 5, 5, 3), (3, 3, 2, 4)), {}),
        (((5, 5, 3), (3, 3, 3, 4)), {}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"stride": 0}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"padding": "FULL"}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"padding": ((-3, -3), (0, 0))}),
        (((1, 5, 5, 4), (3, 3, 2, 3)), {"groups": 2}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"dilation": (1, 2, 3)}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"layout": "HWC"}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"rules": "slow"}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"engine": "gpu"}),
        (((1, 5, 5, 3), (3, 3, 3, 4)), {"flip_kernel": 1}),
        (((1, 5, 5, 3), (0, 3, 3, 4)), {}),
    ],
)
def test_a_bad_geometry_is_refused_in_the_words_of_conv(shapes: Any, options: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as of_conv:
        jaxconv.conv(*(jnp.zeros(shape) for shape in shapes), **options)
    with pytest.raises(type(of_conv.value)) as of_explain:
        jaxconv.explain(*shapes, **options)
    assert str(of_explain.value) == str(of_conv.value).replace("conv:", "explain:", 1)


@pytest.mark.parametrize("shape", [(1, 5.0, 5, 1), "1551", 5, (1, -5, 5, 1)])
def test_a_shape_must_be_one(shape: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="explain: input_shape"):
        jaxconv.explain(shape, (2, 2, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.equation("db", (0,)), "explain: the equation must be one of y, dx, dw, but is 'db'."),
        (lambda e: e.equation("dx", (0, 5, 0, 0)), r"below \(1, 5, 5, 1\), but is \(0, 5, 0, 0\)"),
        (lambda e: e.equation("dx", (0, 1)), "one index per axis of dx"),
        (lambda e: e.figure(maps=["db"]), "explain: maps must be some of y, dx, dw, but are 'db'."),
        (lambda e: e.figure(frames=0), "explain: frames must be at least 1, but 0 < 1."),
        (lambda e: e.figure("recipe.bmp"), "must end in one of .svg, .png, .pdf, .gif, but is 'recipe.bmp'"),
        (lambda e: jaxconv.explain((1, 9, 9, 1), (2, 2, 1, 1)).figure(frames=60), "Ask for fewer, or for a GIF."),
    ],
)
def test_a_question_that_has_no_answer(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), padding="VALID"))


def test_a_rule_that_jax_cannot_differentiate_cannot_be_read() -> None:
    def opaque(g: jax.Array, w: jax.Array, geometry: Any) -> jax.Array:
        out = jax.ShapeDtypeStruct(geometry.x_shape(g.shape[0], w.shape[-2]), g.dtype)
        return jax.pure_callback(lambda *_: np.zeros(out.shape, out.dtype), out, g, w)

    e = jaxconv.explain((1, 4, 1), (2, 1, 1), rules=ConvRules(opaque, rotated.kernel_grad))
    with pytest.raises(TypeError, match=r"explain: rules\.input_grad must be a function of arrays that JAX can differ"):
        e.equation("dx", (0, 0, 0))
