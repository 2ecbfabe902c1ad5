"""Every order of derivative: the trio is closed under differentiation, so each mode applies to each mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.agreement import GROUPED, LAYERS, TINY, Layer, agree, each_rule, oracle
from tests.cases import cotangent

FORWARD_MODE = r"has reverse mode only: .* rules=\"fast\" has them all\."


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

    agree(product("fast"), product("autodiff"), *layer.arguments(), directions(layer))


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
    """Reverse over reverse: a rule is differentiable code itself, and needs no primitive for that."""

    def product(rules: str) -> Callable[..., Any]:
        def along(x: Any, w: Any, b: Any, delta: Any, v: Any) -> Any:
            gradient = jax.grad(lambda *a: loss(layer, rules)(*a, delta), (0, 1, 2))
            return jax.grad(lambda *a: dot(gradient(*a), v), (0, 1, 2))(x, w, b)

        return along

    agree(each_rule(product), oracle(product), *layer.arguments(), directions(layer))


def test_hessian_agrees_with_autodiff() -> None:
    def hessian(rules: str) -> Callable[..., Any]:
        return jax.hessian(loss(TINY, rules), (0, 1))

    agree(hessian("fast"), hessian("autodiff"), *TINY.arguments())


def test_third_derivative_agrees_with_autodiff() -> None:
    def third(rules: str) -> Callable[..., Any]:
        return jax.jacfwd(jax.jacrev(jax.grad(loss(TINY, rules, power=3), 1), 0), 1)

    agree(third("fast"), third("autodiff"), *TINY.arguments())


@pytest.mark.parametrize("rules", ["textbook", "rotated"])
@pytest.mark.parametrize("layer", [TINY, LAYERS[-3]], ids=str)
def test_custom_vjp_rule_sets_refuse_forward_mode(layer: Layer, rules: str) -> None:
    x, w, *_ = layer.arguments()
    f = partial(layer, w=w, rules=rules)
    with pytest.raises(TypeError, match=FORWARD_MODE):
        jax.jit(lambda x: jax.jvp(f, (x,), (x,))).lower(x)
    with pytest.raises(TypeError, match=FORWARD_MODE):
        jax.jit(jax.hessian(lambda x: jnp.sum(f(x) ** 2))).lower(x)
