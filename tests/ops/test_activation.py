"""Activations and their first two derivatives are those of their formulas, at kinks and in the tails too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close
from tests.support.rule_sets import ALL_RULES, RULES

# With the parameters of `oracle.ACTIVATIONS`.
FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "relu": jaxconv.relu,
    "leaky_relu": partial(jaxconv.leaky_relu, negative_slope=0.2),
    "relu6": jaxconv.relu6,
    "elu": partial(jaxconv.elu, alpha=0.7),
    "sigmoid": jaxconv.sigmoid,
    "tanh": jaxconv.tanh,
    "softplus": jaxconv.softplus,
    "silu": jaxconv.silu,
    "gelu": jaxconv.gelu,
    "gelu_exact": partial(jaxconv.gelu, approximate=False),
}

# The derivative at a kink, which belongs to the left piece except at 6.
KINKS = [("relu", 0.0, 0), ("leaky_relu", 0.0, 0.2), ("relu6", 0.0, 0), ("relu6", 6.0, 0), ("elu", 0.0, 0.7)]

# (σ, σ′) at −∞ and at +∞.
LIMITS = {
    "relu": ((0, 0), (np.inf, 1)),
    "leaky_relu": ((-np.inf, 0.2), (np.inf, 1)),
    "relu6": ((0, 0), (6, 0)),
    "elu": ((-0.7, 0), (np.inf, 1)),
    "sigmoid": ((0, 0), (1, 0)),
    "tanh": ((-1, 0), (1, 0)),
    **dict.fromkeys(("softplus", "silu", "gelu", "gelu_exact"), ((0, 0), (np.inf, 1))),
}


def derivatives(name: str, rules: str) -> Callable[[Any], tuple[jax.Array, ...]]:
    """σ, σ′ and σ″ of an array."""

    def value(z: Any) -> jax.Array:
        return FUNCTIONS[name](z, rules=rules)

    def slope(z: Any) -> jax.Array:
        return jax.grad(lambda z: value(z).sum())(z)

    return lambda z: (value(z), slope(z), jax.grad(lambda z: slope(z).sum())(z))


def exact(name: str, z: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.vectorize(f, otypes=[float])(z) for f in oracle.ACTIVATIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_slope_and_bend_are_those_of_the_formula(name: str) -> None:
    z = np.linspace(-5, 5, 998).reshape(2, 499) * (2 if name == "relu6" else 1)  # no kink among them
    every = jax.jit(lambda z: {r: derivatives(name, r)(z) for r in ALL_RULES})(z)
    assert_close(every, dict.fromkeys(ALL_RULES, exact(name, z)))


# Points that need care, in float32: far out, in the tails, and 0 with either sign.
FAR = [-np.inf, -1e30, -1e4, 1e4, 1e30, np.inf]
TAILS = [-20.0, -12.0, -8.0, -5.0, -3.0, -1e-3, 1e-3, 3.0, 5.0, 8.0, 12.0, 20.0]
POINTS = np.array([*FAR, *TAILS, 0.0, -0.0, 6.0, np.nan], np.float32)


@functools.cache
def at_points(name: str) -> dict[str, np.ndarray]:
    """σ, σ′ and σ″ at all the points, by rule set."""
    every = jax.jit(lambda z: {r: derivatives(name, r)(z) for r in ALL_RULES})(POINTS)
    return {rules: np.array(results) for rules, results in every.items()}


@pytest.mark.parametrize(("name", "z", "slope"), KINKS, ids=str)
def test_the_derivative_at_a_kink_is_the_stated_one(name: str, z: float, slope: float) -> None:
    for rules in ALL_RULES:
        actual = at_points(name)[rules][1, z == POINTS]
        assert actual.size == (1 if z else 2)
        np.testing.assert_array_equal(actual, np.float32(slope), err_msg=rules)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinite_and_huge_arguments_have_the_limit_as_their_derivative(name: str) -> None:
    (low, low_slope), (high, high_slope) = LIMITS[name]
    for rules in RULES:
        value, slope, bend = at_points(name)[rules][:, : len(FAR)]
        np.testing.assert_array_equal(value[[0, -1]], np.float32([low, high]), err_msg=rules)
        np.testing.assert_array_equal(slope, np.float32([low_slope] * 3 + [high_slope] * 3), err_msg=rules)
        np.testing.assert_array_equal(bend, 0, err_msg=rules)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays_nan_in_value_and_slope(name: str) -> None:
    for rules in RULES:
        value, slope, _ = at_points(name)[rules][:, -1]
        assert np.isnan(value) and np.isnan(slope), rules


SMOOTH = ["elu", "sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_exact"]


@pytest.mark.parametrize("order", [0, 1], ids=["value", "slope"])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_small_result_in_the_tails_is_as_accurate_as_a_large_one(name: str, order: int) -> None:
    """1 − σ, 1 − tanh² and 1 + erf cancel there; the rules do not compute them."""
    tails = slice(len(FAR), len(FAR) + len(TAILS))
    expected = exact(name, POINTS[tails].astype(np.float64))[order]
    for rules in RULES:
        actual = at_points(name)[rules][order, tails]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=np.finfo(np.float32).tiny, err_msg=rules)
