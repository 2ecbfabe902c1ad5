"""A dense layer is a matrix product with any leading axes, and its gradients are products too."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import Geometry
from tests.support.cases_ops import assert_close, normal
from tests.support.rule_sets import ALL_RULES


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("lead", [(), (2,), (2, 4), (1, 2, 3), (0,)], ids=str)
def test_value_and_gradients_are_matrix_products(lead: tuple[int, ...], bias: bool) -> None:
    x, w, b, g = normal((*lead, 3)), normal((3, 5), 1), normal((5,), 2), normal((*lead, 5), 3)
    operands = (x, w, b) if bias else (x, w)

    def every(g: Any, *operands: Any) -> Any:
        pulls = {r: jax.vjp(partial(jaxconv.dense, rules=r), *operands) for r in ALL_RULES}
        return {r: (y, pullback(g)) for r, (y, pullback) in pulls.items()}

    rows, deltas = x.reshape(-1, 3), g.reshape(-1, 5)
    gradients = g @ w.T, rows.T @ deltas, deltas.sum(0)
    expected = x @ w + b * bias, gradients[: len(operands)]
    assert_close(jax.jit(every)(g, *operands), dict.fromkeys(ALL_RULES, expected))


def test_no_inputs_give_the_bias_alone() -> None:
    x, w, b = np.ones((2, 0)), np.ones((0, 3)), normal((3,))
    for rules in ALL_RULES:
        np.testing.assert_array_equal(jaxconv.dense(x, w, b, rules=rules), np.tile(b, (2, 1)))


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3), (6, 3, 1, 3)], ids=str)
def test_the_gradient_of_a_vmapped_layer_is_one_kernel_grad(shape: tuple[int, ...]) -> None:
    """The batch folds into the rows, so no example gets a kernel gradient of its own."""

    def loss(w: Any, x: Any) -> jax.Array:
        return jnp.sum(jax.vmap(lambda x: jaxconv.dense(x, w))(x) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 5)), jnp.ones(shape)))
    assert text.count("jaxconv_kernel_grad[") == 1
    assert text.count("jaxconv_conv[") == 1
    assert "dot_general" not in text


def test_a_rule_of_the_user_sees_a_geometry_without_spatial_axes() -> None:
    seen = []

    def input_grad(g: Any, w: Any, geometry: Geometry) -> jax.Array:
        seen.append(geometry.rank)
        return 2 * (g @ w.T)

    def kernel_grad(x: Any, g: Any, geometry: Geometry) -> jax.Array:
        seen.append(geometry.rank)
        return 3 * (x.T @ g)

    x, w, b, g = normal((2, 4, 3)), normal((3, 5), 1), normal((5,), 2), normal((2, 4, 5), 3)
    rules = jaxconv.ConvRules(input_grad, kernel_grad)
    y, pullback = jax.vjp(partial(jaxconv.dense, rules=rules), x, w, b)
    dw = np.einsum("abc,abo->co", x, g)
    assert_close((y, pullback(g)), (x @ w + b, (2 * (g @ w.T), 3 * dw, g.sum((0, 1)))))
    assert seen == [0, 0]
