"""`explain(layer, x, w)` finds which convolution a function is, draws its own numbers, and says what is not one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxconv
from jaxconv.explanation.fitting import fits
from jaxconv.explanation.meetings import axis_meetings
from jaxconv.geometry import Axis
from tests.support import oracle
from tests.support.cases import CASES, FEW, Case, arrays, in_layout


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# From what meets to steps


def met(axis: Axis, flipped: bool, outputs: Any) -> dict[int, set[tuple[int, int]]]:
    return {p: {(k, q) for at, k, q in axis_meetings(axis, flipped) if at == p} for p in outputs}


@given(
    n=st.integers(1, 9), k=st.integers(1, 4), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    input_dilation=st.integers(1, 3), lo=st.integers(-2, 4), hi=st.integers(-2, 4), flipped=st.booleans(),
)  # fmt: skip
def test_steps_are_found_from_what_meets(flipped: bool, **integers: int) -> None:
    axis = Axis(**integers)
    seen = met(axis, flipped, range(axis.out))
    if not any(seen.values()):
        return
    found = next(fits(axis.n, axis.k, axis.out, seen, flipped))
    assert found.out == axis.out and met(found, flipped, range(axis.out)) == seen


def test_a_window_whose_step_changes_fits_nothing() -> None:
    axis = Axis(9, 3, 2, 1, 1, 0, 0)
    seen = met(axis, False, range(4))
    seen[3] = {(k, q + 1) for k, q in seen[3] if q < 8}
    assert not [axis for flipped in (False, True) for axis in fits(9, 3, 4, seen, flipped)]


# Functions that are convolutions


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("case", [*FEW, CASES[3], CASES[5], CASES[10]], ids=str)
def test_conv_is_found_out(case: Case, layout: str) -> None:
    x, w = arrays(case)
    expected = oracle.conv(x, w, **case.options)
    case = in_layout(case, layout)
    if layout == "NCHW":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
        expected = np.moveaxis(expected, -1, 1)
    e = jaxconv.explain(lambda x, w: jaxconv.conv(x, w, **case.options), x, w)
    assert e.layout == layout and e.geometry.groups == case.options.get("groups", 1)
    np.testing.assert_allclose(e.recipes["y"].follow(x, w), expected, atol=1e-12)
    assert np.array_equal(e.example["x"], x) and np.array_equal(e.example["w"], w)
    np.testing.assert_allclose(e.example["y"], expected, atol=1e-12)


def loops(x: Any, w: Any) -> Any:
    """As a student writes it: no batch, no channels."""
    rows, columns = (n - k + 1 for n, k in zip(x.shape, w.shape, strict=True))
    return jnp.stack(
        [
            jnp.stack([(x[i : i + w.shape[0], j : j + w.shape[1]] * w).sum() for j in range(columns)])
            for i in range(rows)
        ]
    )


def depthwise(x: Any, w: Any) -> Any:
    """(H, W, C) and (k, k, C): each channel on its own."""
    return jaxconv.conv(x[None], w[:, :, None], groups=x.shape[-1], padding="VALID")[0]


def mixed(x: Any, w: Any) -> Any:
    return lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW"))


def single(x: Any, w: Any) -> Any:
    """Insists on float32."""
    return lax.conv(x.astype(jnp.float32), w.astype(jnp.float32), (1,), "VALID")


Options = dict[str, Any]
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], tuple[int, ...], Options]] = {
    "loops": (loops, (5, 4), (2, 3), (1, 5, 4, 1), {"padding": ((0, 0), (0, 0))}),
    "numpy's": (lambda x, w: jnp.convolve(x, w), (6,), (3,), (1, 6, 1), {"padding": ((2, 2),), "flip_kernel": True}),
    "correlate": (lambda x, w: jnp.correlate(x, w, "same"), (6,), (3,), (1, 6, 1), {"padding": ((1, 1),)}),
    "one example": (
        lambda x, w: jaxconv.conv(x[None], w, stride=3, padding="VALID")[0], (7, 8, 2), (2, 2, 2, 3), (1, 7, 8, 2),
        {"stride": (3, 3), "padding": ((0, 0), (0, 0))},
    ),
    "one filter": (
        lambda x, w: jaxconv.conv(x[None], w[..., None])[0, ..., 0], (5, 4, 2), (3, 3, 2), (1, 5, 4, 2),
        {"padding": ((1, 1), (1, 1))},
    ),
    "depthwise": (depthwise, (5, 6, 3), (2, 3, 3), (1, 5, 6, 3), {"groups": 3, "padding": ((0, 0), (0, 0))}),
    "mixed layouts": (mixed, (2, 2, 6, 5), (3, 3, 2, 3), (2, 2, 6, 5), {"stride": (2, 1), "padding": ((0, 1), (1, 1))}),
    "float32": (single, (2, 3, 7), (4, 3, 2), (2, 3, 7), {"padding": ((0, 0),)}),
    "transposed": (
        lambda x, w: jaxconv.conv_transpose(x, w, stride=2, padding="VALID"), (1, 4, 2), (3, 5, 2), (1, 4, 2),
        {"input_dilation": (2,), "padding": ((2, 2),), "flip_kernel": True},
    ),
    "in a loop": (
        lambda x, w: lax.scan(lambda _, row: (None, jnp.correlate(row, w, "valid")), None, x)[1], (3, 6), (2,),
        (3, 6, 1), {"padding": ((0, 0),)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_found_out(name: str) -> None:
    f, x, w, read_as, options = FUNCTIONS[name]
    x, w = normal(*x), normal(*w, seed=1)
    with jax.numpy_dtype_promotion("standard"):
        e = jaxconv.explain(f, x, w)
        assert e.verify() and e.shapes["x"] == read_as
        z = e.geometry
        defaults = {"stride": (1,), "dilation": (1,), "input_dilation": (1,)}
        expected = {option: values * z.rank for option, values in defaults.items()}
        expected |= {"groups": 1, "flip_kernel": False, **options}
        assert {option: getattr(z, option) for option in expected} == expected
        y = np.asarray(f(x, w), np.float64)
        np.testing.assert_allclose(np.sort(e.example["y"].ravel()), np.sort(y.ravel()), rtol=1e-5, atol=1e-5)
        assert str(e).startswith(f"{f.__name__}(x, w) is conv(x, w, padding={z.padding}")
        assert json.loads(json.dumps(e.to_dict()))["function"]["name"] == f.__name__


def test_the_text_says_the_call_and_how_arrays_are_read() -> None:
    e = jaxconv.explain(loops, normal(4, 4), normal(2, 2))
    assert str(e).splitlines()[:2] == [
        "loops(x, w) is conv(x, w, padding=((0, 0), (0, 0))); x (4, 4) is read as (1, 4, 4, 1), "
        "w (2, 2) is read as (2, 2, 1, 1), y (3, 3) is read as (1, 3, 3, 1)",
        "y (1, 3, 3, 1) = conv(x (1, 4, 4, 1), w (2, 2, 1, 1)); NHWC and HWIO, indices count from 0",
    ]
    x, w = normal(1, 2, 5, 6), normal(4, 1, 2, 2)
    e = jaxconv.explain(lambda x, w: jaxconv.conv(x, w, stride=(1, 2), groups=2, padding=1, layout="NCHW"), x, w)
    assert (
        "is conv(x, w, padding=((1, 1), (1, 1)), stride=(1, 2), groups=2, layout='NCHW')\n"
        in str(e).splitlines(True)[0]
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_where_shapes_leave_the_layout_open_it_can_be_given(layout: str) -> None:
    """One channel in and out, one example: both layouts fit."""

    def f(x: Any, w: Any) -> Any:
        return jnp.correlate(x.ravel(), w.ravel(), "valid").reshape(1, -1, 1)[:, :, 0][..., None]

    e = jaxconv.explain(f, normal(1, 5, 1), normal(2, 1, 1), layout=layout)
    assert e.layout == "NHWC" and e.verify()
    e = jaxconv.explain(lambda x, w: jnp.correlate(x, w, "valid"), normal(5), normal(2), layout=layout)
    assert e.layout == layout and e.verify()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_numbers_of_every_dtype(dtype: Any) -> None:
    x, w = jnp.arange(6, dtype=dtype), jnp.array([1, 2], dtype)
    with jax.numpy_dtype_promotion("standard"):
        e = jaxconv.explain(lambda x, w: jnp.correlate(x, w, "valid"), x, w)
        assert e.verify() and e.example["y"].ravel().tolist() == [2, 5, 8, 11, 14]


# Functions with a backward pass of their own


def with_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    def layer(x: Any, w: Any) -> Any:
        return jaxconv.conv(x, w, padding="VALID", rules="autodiff")

    f = jax.custom_vjp(layer)
    f.defvjp(lambda x, w: (layer(x, w), (x, w)), lambda saved, g: backward(*saved, g))
    return f


def right(x: Any, w: Any, g: Any) -> Any:
    return (
        jaxconv.conv_input_grad(g, w, x.shape[1:-1], padding="VALID"),
        jaxconv.conv_kernel_grad(x, g, w.shape[:-2], padding="VALID"),
    )


WRONG_BACKWARDS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "dx is not rotated": (lambda x, w, g: (right(x, w[::-1, ::-1], g)[0], right(x, w, g)[1]), {"dx": 20}),
    "dw is rolled": (lambda x, w, g: (right(x, w, g)[0], jnp.roll(right(x, w, g)[1], 1, 0)), {"dw": 4}),
    "dx depends on x": (lambda x, w, g: (right(x, w, g)[0] * x, right(x, w, g)[1]), {"dx": 20}),
    "both are halved": (lambda x, w, g: tuple(a / 2 for a in right(x, w, g)), {"dx": 20, "dw": 4}),
    "nothing": (right, {}),
}


@pytest.mark.parametrize("name", WRONG_BACKWARDS)
def test_the_functions_own_backward_pass_is_read(name: str) -> None:
    backward, wrong = WRONG_BACKWARDS[name]
    x, w = normal(1, 4, 5, 1), normal(2, 2, 1, 1)
    e = jaxconv.explain(with_backward(backward), x, w)
    counts = {array: int(mask.sum()) for array, mask in e.wrong.items() if mask.any()}
    assert counts == wrong and e.verify() == (not wrong)
    said = " and ".join(f"{count} of {count} entries of {array}" for array, count in wrong.items())
    assert e.verdict == (f"WRONG: layer miscomputes {said}." if wrong else "")
    assert str(e).startswith(e.verdict or "layer(x, w) is conv(x, w")
    words = [t.get_text() for t in e.figure().axes[0].texts]
    assert (words[0] == e.verdict) == bool(wrong) and ("layer" in words) == bool(wrong)


def test_it_is_drawn_with_its_own_numbers() -> None:
    x, w = np.array([0.5, -1.25, 3.0, 0.123456]), np.array([2.0, -1.0])
    e = jaxconv.explain(lambda x, w: jnp.correlate(x, w, "valid"), x, w)
    words = [t.get_text() for t in e.figure(maps="y").axes[0].texts]
    assert words[1:5] == ["0.5", "−1.25", "3", "0.123"] and words[6:8] == ["2", "−1"]
    assert words[-1] == "y[0,1,0] = (−1.25)·2 + 3·(−1) = −5.5"
    words = [t.get_text() for t in e.figure(maps="y", frames=3).axes[0].texts]
    assert words[-1] == "y[0,2,0] = 3·2 + 0.123·(−1) ≈ 5.88"  # what is rounded is not equal


# What is no convolution


def wobbling(x: Any, w: Any) -> Any:
    """The last row is shifted."""
    y = jaxconv.conv(x, w, padding="VALID", rules="autodiff")
    return y.at[:, -1].set(jnp.roll(y[:, -1], 1, 1))


NOT_ONE: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], str]] = {
    "an activation": (
        lambda x, w: jax.nn.relu(jaxconv.conv(x, w)), (1, 5, 5, 1), (3, 3, 1, 1),
        r"linear in x, but <lambda>\(x \+ 2·u, w\) of random numbers is .* at y\[0, \d, \d, 0\], where a linear",
    ),
    "a bias": (
        lambda x, w: jaxconv.conv(x, w) + 1.5, (1, 5, 5, 1), (3, 3, 1, 1),
        r"must be linear in x, but <lambda>\(0, w\) is 1.5 at y\[0, 0, 0, 0\], where .* is 0. Take the bias out",
    ),
    "not linear in w": (
        lambda x, w: jaxconv.conv(x, w**2), (1, 5, 1), (3, 1, 1),
        r"must be linear in w, but <lambda>\(x, w \+ 2·v\) of random numbers is ",
    ),
    "no w in it": (
        lambda x, w: x * 1.0, (4, 4), (2, 2), r"must be linear in w, but <lambda>\(x, 0\) is .* at y\[0, 0\]",
    ),
    "a window that changes": (
        wobbling, (1, 5, 5, 1), (2, 2, 1, 1),
        r"its window does not stay the same as it moves: elsewhere it is conv\(x, w, padding=\(\(0, 0\), \(0, 0\)\)\), "
        r"which has y\[0,3,0,0\] = x\[0,3,0,0\].*; it has y\[0,3,0,0\] = x\[0,3,3,0\]",
    ),
    "a mean": (
        lambda x, w: jaxconv.conv(x, w, padding="VALID") / 2, (1, 5, 1), (2, 1, 1),
        r"products of x and w that count once each, but y\[0,\d,0\] = 0.5·x",
    ),
    "a matrix product": (
        lambda x, w: x @ w, (3, 4), (4, 5), r"no window that moves over x makes .*: y\[1,2\] = x\[1,0\]·w\[0,2\]",
    ),
    "other shapes": (
        lambda x, w: jnp.tensordot(x, w, 1), (2, 3, 4), (4, 5, 6, 7),
        r"no axes of x \(2, 3, 4\) and w \(4, 5, 6, 7\) become those of y \(2, 3, 5, 6, 7\)",
    ),
    "one axis flipped": (
        lambda x, w: jaxconv.conv(x, w[::-1]), (1, 5, 6, 1), (3, 3, 1, 1), "no window that moves over x",
    ),
    "two results": (lambda x, w: (x, w), (4,), (2,), "must return one array of floats, but returns tuple"),
    "no output": (
        lambda x, w: jaxconv.conv(x, w, padding="VALID"), (1, 2, 1), (3, 1, 1), r"must have an output to ask about",
    ),
    "no numbers": (lambda x, w: x, (0, 4), (2,), r"x must have elements to ask about, but x.shape = \(0, 4\)"),
    "what JAX cannot trace": (
        lambda x, w: np.convolve(x, w), (4,), (2,), "must be a function of x and w that JAX can differ.*, but Tracer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ONE)
def test_what_is_no_convolution_is_said_to_be_none(name: str) -> None:
    f, x, w, message = NOT_ONE[name]
    with pytest.raises((ValueError, TypeError), match=f"^explain: .*{message}"):
        jaxconv.explain(f, normal(*x), normal(*w, seed=1))


def test_options_are_found_not_given() -> None:
    x, w = normal(5), normal(2)
    with pytest.raises(TypeError, match="explain: stride, groups must be left out for a function"):
        jaxconv.explain(loops, x, w, stride=2, groups=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"a function needs the x and w to ask it about: explain\(layer, x, w\)"):
        jaxconv.explain(loops, x)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="shapes take no third argument"):
        jaxconv.explain((1, 5, 1), (2, 1, 1), w)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="explain: w must be an array of numbers, but is str"):
        jaxconv.explain(loops, x, "w")
    with pytest.raises(ValueError, match="explain: layout must be one of NHWC, NCHW"):
        jaxconv.explain(loops, x, w, layout="HWC")


def test_a_large_layer_is_asked_little() -> None:
    """Some forty entries tell the geometry, however many there are."""
    asked = 0

    def layer(x: Any, w: Any) -> Any:
        nonlocal asked
        asked += 1
        return jaxconv.conv(x, w, stride=2, rules="autodiff")

    e = jaxconv.explain(layer, normal(2, 40, 40, 3), normal(5, 5, 3, 8))
    assert e.geometry.stride == (2, 2) and e.geometry.padding == ((1, 2), (1, 2))
    assert asked < 20  # traces


def test_every_reading_of_axes_is_tried_once() -> None:
    from jaxconv.explanation.layer import readings

    for x, w, y in (((4, 4), (2, 2), (3, 3)), ((2, 5, 5, 3), (3, 3, 3, 4), (2, 5, 5, 4)), ((3, 5), (2,), (3, 4))):
        found = list(readings(x, w, y, "NHWC"))
        assert found and len({axes[1:] for axes in found}) == len(found)
        for axes, name in itertools.product(found, "xwy"):
            a = np.arange(np.prod(dict(x=x, w=w, y=y)[name])).reshape(dict(x=x, w=w, y=y)[name])
            lifted = axes.lifted(name, a)
            assert lifted.shape == axes.shape(name, a.shape)
            assert np.array_equal(axes.lowered(name, lifted), a)
