"""`ConvRules.from_backward` makes rules of a plain backward function, and says what is wrong with one that is none."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import Geometry
from jaxconv.rules import ConvRules, textbook
from tests.support import oracle
from tests.support.cases import FEW, Case, arrays, cotangent, in_layout

VALID = Case((2, 7, 6, 3), (3, 2, 3, 4), {"padding": "VALID"})


def by_taps(x: Any, w: Any, g: Any, stride: Any = (1, 1), padding: Any = ((0, 0), (0, 0))) -> tuple[Any, Any]:
    """Every tap reads a strided slice of the padded input, and its share of ∂x goes back there."""
    (rows, columns), (s, t) = g.shape[1:3], stride
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    dx, dw = jnp.zeros_like(padded), jnp.zeros_like(w)
    for i, j in np.ndindex(*w.shape[:2]):
        read = (slice(None), slice(i, i + s * (rows - 1) + 1, s), slice(j, j + t * (columns - 1) + 1, t))
        dx = dx.at[read].add(g @ w[i, j].T)
        dw = dw.at[i, j].set(jnp.einsum("npqc,npqo->co", padded[read], g))
    (top, _), (left, _) = padding
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def plain(x: Any, w: Any, g: Any) -> tuple[Any, Any]:
    return by_taps(x, w, g)


def with_stride(x: Any, w: Any, g: Any, stride: Any) -> tuple[Any, Any]:
    return by_taps(x, w, g, stride)


def by_keyword(x: Any, w: Any, g: Any, *, padding: Any, stride: Any, scale: float = 1.0) -> tuple[Any, Any]:
    return by_taps(x, w, scale * g, stride, padding)


def with_geometry(x: Any, w: Any, g: Any, geometry: Geometry) -> tuple[Any, Any]:
    return textbook.input_grad(g, w, geometry), textbook.kernel_grad(x, g, geometry)


STRIDED = Case(VALID.x, VALID.w, {"padding": ((1, 0), (2, 1)), "stride": (2, 3)})
RIGHT = [
    (plain, VALID),
    (functools.partial(by_taps, stride=(2, 1)), Case(VALID.x, VALID.w, {"padding": "VALID", "stride": (2, 1)})),
    (with_stride, Case(VALID.x, VALID.w, {"padding": "VALID", "stride": (3, 2)})),
    (by_keyword, STRIDED),
    (by_taps, STRIDED),
    *((with_geometry, case) for case in FEW),
    (with_geometry, in_layout(FEW[3], "NCHW")),
]


def name_of(value: Any) -> str:
    return str(getattr(getattr(value, "func", value), "__name__", value))


@pytest.mark.parametrize(("backward", "case"), RIGHT, ids=name_of)
def test_its_gradients_are_the_functions(backward: Any, case: Case) -> None:
    (x, w), rules = arrays(case), ConvRules.from_backward(backward)
    run = jax.jit(lambda x, w, g: jax.vjp(lambda x, w: jaxconv.conv(x, w, **case.options, rules=rules), x, w)[1](g))
    y = jax.eval_shape(lambda x, w: jaxconv.conv(x, w, **case.options), x, w)
    g = cotangent(y.shape)
    dx, dw = run(x, w, g)
    made = jax.vjp(lambda x, w: jaxconv.conv(x, w, **case.options, rules="autodiff"), x, w)[1](g)
    np.testing.assert_allclose(dx, made[0], atol=1e-12)
    np.testing.assert_allclose(dw, made[1], atol=1e-12)


def test_against_the_loops_and_eagerly() -> None:
    (x, w), rules = arrays(STRIDED), ConvRules.from_backward(by_taps)
    g = cotangent(oracle.conv(x, w, **STRIDED.options).shape)
    dx, dw = jax.vjp(lambda x, w: jaxconv.conv(x, w, **STRIDED.options, rules=rules), x, w)[1](g)
    np.testing.assert_allclose(dx, oracle.conv_input_grad(g, w, x.shape[1:3], **STRIDED.options), atol=1e-12)
    np.testing.assert_allclose(dw, oracle.conv_kernel_grad(x, g, w.shape[:2], **STRIDED.options), atol=1e-12)


def test_a_wrong_one_is_told_where() -> None:
    rules = ConvRules.from_backward(lambda x, w, g: (plain(x, w[::-1], g)[0], plain(x, w, g)[1]))
    e = jaxconv.explain((1, 4, 4, 1), (2, 2, 1, 1), padding="VALID", rules=rules)
    assert e.verdict == "WRONG: the rules miscompute 16 of 16 entries of dx."


def test_equal_functions_make_equal_rules() -> None:
    assert ConvRules.from_backward(plain) == ConvRules.from_backward(plain)
    assert hash(ConvRules.from_backward(plain)) == hash(ConvRules.from_backward(plain))
    assert ConvRules.from_backward(plain) != ConvRules.from_backward(by_taps)


def test_only_the_gradient_that_is_asked_for_is_computed() -> None:
    (x, w), rules = arrays(VALID), ConvRules.from_backward(plain)

    def dots(argnum: int) -> int:
        gradient = jax.grad(lambda *a: jaxconv.conv(*a, padding="VALID", rules=rules).sum(), argnum)
        return jax.jit(gradient).lower(x, w).compile().as_text().count(" dot(")

    both = jax.grad(lambda *a: jaxconv.conv(*a, padding="VALID", rules=rules).sum(), (0, 1))
    together = jax.jit(both).lower(x, w).compile().as_text().count(" dot(")
    assert 0 < dots(0) < together and 0 < dots(1) < together


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda x, w: (x, w), r"backward must take \(x, w, g\) and may take stride, .*, but takes \(x, w\)"),
        (
            lambda x, w, g, mode: (x, w),
            r"but takes \(x, w, g, mode\). Bind what else it needs: lambda x, w, g: backward",
        ),
        (lambda x, w, g, *, mode: (x, w), r"but takes \(x, w, g, mode\)"),
        ("backward", r"backward must be a function of \(x, w, g\), but is 'backward'"),
    ],
)
def test_other_parameters_are_refused_at_once(backward: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^ConvRules.from_backward: .*{message}"):
        ConvRules.from_backward(backward)


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda x, w, g: plain(x, w, g)[0], TypeError, r"backward must return \(dx, dw\), but returned "),
        (lambda x, w, g: None, TypeError, r"backward must return \(dx, dw\), but returned NoneType"),
        (lambda x, w, g: (*plain(x, w, g), g), TypeError, "returned 3 results. The bias of conv has its own"),
        (lambda x, w, g: (None, plain(x, w, g)[1]), ValueError, r"dx of x's shape \(2, 7, 6, 3\), but dx is None"),
        (
            lambda x, w, g: (plain(x, w, g)[0], plain(x, w, g)[1][1:]), ValueError,
            r"dw of w's shape \(3, 2, 3, 4\), but dw is of shape \(2, 2, 3, 4\). The forward pass has stride \(1, 1\)",
        ),
        (lambda x, w, g: (plain(x, w, g)[::-1]), ValueError, r"but dw is of shape \(2, 7, 6, 3\)"),
    ],
)  # fmt: skip
def test_wrong_results_are_named_when_it_is_called(backward: Any, error: Any, message: str) -> None:
    x, w = arrays(VALID)
    rules = ConvRules.from_backward(backward)
    with pytest.raises(error, match=f"^ConvRules.from_backward: .*{message}"):
        jax.grad(lambda x, w: jaxconv.conv(x, w, padding="VALID", rules=rules).sum(), (0, 1))(x, w)
