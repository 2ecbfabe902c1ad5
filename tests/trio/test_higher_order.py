"""Every order of derivative: the trio is closed under differentiation, so each mode applies to each mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxconv.rules import ConvRules, rotated
from tests.support.agreement import GROUPED, LAYERS, TINY, Layer, agree, each_rule, oracle
from tests.support.cases import cotangent


def loss(layer: Layer, rules: str, power: int = 2) -> Callable[..., jax.Array]:
    """Σ δ·y²: not linear in any operand, so that its second derivatives are not zero."""
    return lambda x, w, b, delta: jnp.sum(delta * layer(x, w, b, rules=rules) ** power)


def dot(a: Any, b: Any) -> jax.Array:
    return sum(jnp.vdot(u, v) for u, v in zip(a, b, strict=True))


def directions(layer: Layer) -> tuple[Any, ...]:
    return tuple(cotangent(a.shape, seed=20 + i) for i, a in enumerate(layer.arguments()[:3]))


@pytest.mark.parametrize("layer", LAYERS[::2], ids=str)
def test_jvp_of_vjp_agrees_with_autodiff(layer: Layer) -> None:
    """The Hessian times a vector, forward over reverse."""

    def product(rules: str) -> Callable[..., Any]:
        def along(x: Any, w: Any, b: Any, delta: Any, v: Any) -> Any:
            gradient = jax.grad(lambda *a: loss(layer, rules)(*a, delta), (0, 1, 2))
            return jax.jvp(gradient, (x, w, b), v)[1]

        return along

    agree(each_rule(product), oracle(product), *layer.arguments(), directions(layer))


@pytest.mark.parametrize("layer", [GROUPED, LAYERS[-1]], ids=str)
def test_vjp_of_jvp_agrees_with_autodiff(layer: Layer) -> None:
    """The Hessian times a vector, reverse over forward."""

    def product(rules: str) -> Callable[..., Any]:
        def along(x: Any, w: Any, b: Any, delta: Any, v: Any) -> Any:
            def derivative(*a: Any) -> jax.Array:
                return jax.jvp(lambda *a: loss(layer, rules)(*a, delta), a, v)[1]

            return jax.grad(derivative, (0, 1, 2))(x, w, b)

        return along

    agree(product("fast"), product("autodiff"), *layer.arguments(), directions(layer))


@pytest.mark.parametrize("layer", [GROUPED, LAYERS[-1]], ids=str)
def test_grad_of_grad_agrees_with_autodiff_under_every_rule_set(layer: Layer) -> None:
    """Reverse over reverse."""

    def product(rules: str) -> Callable[..., Any]:
        def along(x: Any, w: Any, b: Any, delta: Any, v: Any) -> Any:
            gradient = jax.grad(lambda *a: loss(layer, rules)(*a, delta), (0, 1, 2))
            return jax.grad(lambda *a: dot(gradient(*a), v), (0, 1, 2))(x, w, b)

        return along

    agree(each_rule(product), oracle(product), *layer.arguments(), directions(layer))


def test_hessian_agrees_with_autodiff() -> None:
    def hessian(rules: str) -> Callable[..., Any]:
        return jax.hessian(loss(TINY, rules), (0, 1))

    agree(each_rule(hessian), oracle(hessian), *TINY.arguments())


def test_third_derivative_agrees_with_autodiff() -> None:
    def third(rules: str) -> Callable[..., Any]:
        return jax.jacfwd(jax.jacrev(jax.grad(loss(TINY, rules, power=3), 1), 0), 1)

    agree(third("fast"), third("autodiff"), *TINY.arguments())


def test_nobody_differentiates_a_rule() -> None:
    """The derivatives of the three maps are the three maps, also where JAX would find none in them."""

    def opaque(rule: Callable[..., Any]) -> Callable[..., Any]:
        return lambda a, b, geometry: jax.lax.stop_gradient(rule(a, b, geometry))

    mine = ConvRules(opaque(rotated.input_grad), opaque(rotated.kernel_grad))

    def hessian(rules: Any) -> Callable[..., Any]:
        return jax.hessian(loss(TINY, rules), (0, 1))

    agree(hessian(mine), hessian("autodiff"), *TINY.arguments())
