"""Reverse mode: the hand-written gradients are those of automatic differentiation, under every rule set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.rules import RULE_SETS
from tests.support.agreement import GROUPED, LAYERS, TINY, Layer, agree, each_rule, oracle

ALL = (0, 1, 2)


def loss(layer: Layer, rules: Any) -> Callable[..., jax.Array]:
    """Σ δ·y²: its gradient needs the layer's, and the layer."""
    return lambda x, w, b, delta: jnp.sum(delta * layer(x, w, b, rules=rules) ** 2)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_value_and_grad_agree_with_autodiff(layer: Layer) -> None:
    def gradient(rules: str) -> Callable[..., Any]:
        return jax.value_and_grad(loss(layer, rules), ALL)

    agree(each_rule(gradient), oracle(gradient), *layer.arguments())


@pytest.mark.parametrize("argnum", ALL, ids="xwb".__getitem__)
def test_grad_in_one_operand_agrees_with_autodiff(argnum: int) -> None:
    def gradient(rules: str) -> Callable[..., Any]:
        return jax.grad(loss(GROUPED, rules), argnum)

    agree(each_rule(gradient), oracle(gradient), *GROUPED.arguments())


@pytest.mark.parametrize("layer", LAYERS[5:7], ids=str)
def test_vjp_pulls_a_cotangent_back_to_x_and_w_where_there_is_no_bias(layer: Layer) -> None:
    def pullback(rules: str) -> Callable[..., Any]:
        return lambda x, w, delta: jax.vjp(partial(layer, rules=rules), x, w)[1](delta)

    x, w, _, delta = layer.arguments()
    agree(each_rule(pullback), oracle(pullback), x, w, delta)


@pytest.mark.parametrize("rules", ["textbook", "rotated"])
@pytest.mark.parametrize("layer", [LAYERS[2], LAYERS[6]], ids=str)
def test_a_numpy_cotangent_is_as_good_as_any(layer: Layer, rules: str) -> None:
    """Eagerly, `jax.vjp` hands a written rule exactly what its caller gave."""
    *args, delta = layer.arguments()
    pullback = jax.vjp(partial(layer, rules=rules), *args)[1]
    for got, want in zip(pullback(delta), pullback(jnp.asarray(delta)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13)


def test_jacrev_agrees_with_autodiff() -> None:
    def jacobian(rules: str) -> Callable[..., Any]:
        return jax.jacrev(partial(TINY, rules=rules), ALL)

    agree(each_rule(jacobian), oracle(jacobian), *TINY.arguments()[:3])


@pytest.mark.parametrize("op", [jaxconv.conv, jaxconv.conv_transpose], ids=lambda op: op.__name__)
def test_the_rule_that_the_user_brings_is_the_rule_that_runs(op: Callable[..., jax.Array]) -> None:
    def thrice(rule: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda *args, **options: 3 * rule(*args, **options)

    named = RULE_SETS["rotated"]
    mine = dataclasses.replace(named, kernel_grad=thrice(named.kernel_grad))
    x, w = np.ones((1, 4, 2)), np.ones((3, 2, 2))

    def gradient(rules: Any) -> Any:
        return jax.jit(jax.grad(lambda x, w: op(x, w, rules=rules).sum(), (0, 1)))(x, w)

    (dx, dw), (dx0, dw0) = gradient(mine), gradient(named)
    np.testing.assert_array_equal(dx, dx0)
    np.testing.assert_array_equal(dw, 3 * dw0)
