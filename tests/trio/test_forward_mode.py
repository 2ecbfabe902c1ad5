"""Forward mode: tangents go through the primitives, and a layer that is linear in an operand is its own JVP there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.agreement import GROUPED, LAYERS, TINY, Layer, agree, each_rule, oracle
from tests.support.cases import cotangent


def tangents(*primals: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(cotangent(a.shape, seed=10 + i) for i, a in enumerate(primals))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_jvp_agrees_with_autodiff(layer: Layer) -> None:
    def pushforward(rules: str) -> Callable[..., Any]:
        return lambda primals, tangents: jax.jvp(partial(layer, rules=rules), primals, tangents)

    primals = layer.arguments()[:3]
    agree(each_rule(pushforward), oracle(pushforward), primals, tangents(*primals))


@pytest.mark.parametrize("argnum", [0, 1, 2], ids="xwb".__getitem__)
@pytest.mark.parametrize("layer", LAYERS[-2:], ids=str)
def test_jvp_in_one_operand_agrees_with_autodiff(layer: Layer, argnum: int) -> None:
    def pushforward(rules: str) -> Callable[..., Any]:
        def along(primals: tuple[Any, ...], tangent: Any) -> Any:
            def alone(operand: Any) -> jax.Array:
                return layer(*primals[:argnum], operand, *primals[argnum + 1 :], rules=rules)

            return jax.jvp(alone, (primals[argnum],), (tangent,))

        return along

    primals = layer.arguments()[:3]
    agree(pushforward("fast"), pushforward("autodiff"), primals, tangents(*primals)[argnum])


@pytest.mark.parametrize("layer", LAYERS[2:4], ids=str)
def test_linearize_gives_the_jvp_at_a_point(layer: Layer) -> None:
    def linearized(primals: Any, tangents: Any) -> Any:
        y, push = jax.linearize(layer, *primals)
        return y, push(*tangents)

    def pushed(primals: Any, tangents: Any) -> Any:
        return jax.jvp(partial(layer, rules="autodiff"), primals, tangents)

    primals = layer.arguments()[:3]
    agree(linearized, pushed, primals, tangents(*primals))


def test_jacfwd_agrees_with_autodiff() -> None:
    def jacobian(rules: str) -> Callable[..., Any]:
        return jax.jacfwd(partial(TINY, rules=rules), (0, 1, 2))

    agree(each_rule(jacobian), oracle(jacobian), *TINY.arguments()[:3])


def test_jacfwd_agrees_with_jacrev() -> None:
    agree(jax.jacfwd(TINY, (0, 1, 2)), jax.jacrev(TINY, (0, 1, 2)), *TINY.arguments()[:3])


@pytest.mark.parametrize("argnum", [0, 1], ids="xw".__getitem__)
def test_linear_transpose_is_the_gradient(argnum: int) -> None:
    x, w, _, delta = GROUPED.arguments()

    def transposed(x: Any, w: Any, delta: Any) -> Any:
        alone = (lambda x: GROUPED(x, w)) if argnum == 0 else (lambda w: GROUPED(x, w))
        return jax.linear_transpose(alone, (x, w)[argnum])(delta)[0]

    def pulled(x: Any, w: Any, delta: Any) -> Any:
        return jax.vjp(partial(GROUPED, rules="autodiff"), x, w)[1](delta)[argnum]

    agree(transposed, pulled, x, w, delta)
