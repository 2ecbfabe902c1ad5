"""What a transformed program computes and remembers: each gradient once, and nothing for a frozen operand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

import jaxconv

BATCH = 16
X, W = np.ones((1, 6, 6, 2), np.float32), np.ones((3, 3, 2, 5), np.float32)
XS, WS = np.ones((BATCH, *X.shape), np.float32), np.ones((BATCH, *W.shape), np.float32)


def equations(jaxpr: Any) -> Iterator[JaxprEqn]:
    """All equations, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr))
        for program in inner:
            if isinstance(program, Jaxpr | ClosedJaxpr):
                yield from equations(getattr(program, "jaxpr", program))


def program(f: Callable[..., Any], *args: Any) -> list[JaxprEqn]:
    return list(equations(jax.make_jaxpr(f)(*args).jaxpr))


def ours(f: Callable[..., Any], *args: Any) -> Counter[str]:
    """How often each of the three maps occurs in a program."""
    names = (equation.primitive.name for equation in program(f, *args))
    return Counter(name.removeprefix("jaxconv_") for name in names if name.startswith("jaxconv_"))


def sizes(f: Callable[..., Any], *args: Any) -> set[int]:
    """The sizes of all arrays that a program computes."""
    return {out.aval.size for equation in program(f, *args) for out in equation.outvars}


def loss(x: Any, w: Any, rules: str = "fast") -> jax.Array:
    return jnp.sum(jaxconv.conv(x, w, rules=rules) ** 2)


def batch_loss(x: Any, w: Any, rules: str = "fast") -> jax.Array:
    return jax.vmap(partial(loss, rules=rules), (0, None))(x, w).sum()


def saved(f: Callable[..., Any], *primals: Any) -> set[tuple[int, ...]]:
    """The shapes that the pullback holds on to."""
    _, pullback = jax.vjp(f, *primals)
    return {leaf.shape for leaf in jax.tree.leaves(pullback)}


def test_a_gradient_runs_each_map_once() -> None:
    assert ours(jax.grad(loss, (0, 1)), X, W) == {"conv": 1, "input_grad": 1, "kernel_grad": 1}


def test_grad_in_x_computes_no_kernel_gradient() -> None:
    assert ours(jax.grad(loss, 0), X, W) == {"conv": 1, "input_grad": 1}


def test_grad_in_w_computes_no_input_gradient() -> None:
    assert ours(jax.grad(loss, 1), X, W) == {"conv": 1, "kernel_grad": 1}


def test_the_first_layer_of_a_network_computes_no_input_gradient() -> None:
    def network(kernels: Any, x: Any) -> jax.Array:
        for w in kernels:
            x = jaxconv.conv(x, w)
        return jnp.sum(x**2)

    kernels = [W, np.ones((3, 3, 5, 2), np.float32), W]
    assert ours(jax.grad(network), kernels, X) == {"conv": 3, "kernel_grad": 3, "input_grad": 2}


MINE = jaxconv.ConvRules(jaxconv.rules.rotated.input_grad, jaxconv.rules.textbook.kernel_grad)


@pytest.mark.parametrize("rules", [*jaxconv.rules.RULE_SETS, MINE], ids=lambda r: r if isinstance(r, str) else "mine")
def test_grad_of_vmap_computes_one_kernel_gradient_and_none_per_example(rules: Any) -> None:
    gradient = jax.grad(partial(batch_loss, rules=rules), 1)
    assert ours(gradient, XS, W) == {"conv": 1, "kernel_grad": 1}
    assert BATCH * W.size not in sizes(gradient, XS, W)


def test_the_same_search_finds_the_gradients_per_example_of_custom_vjp() -> None:
    """Why rule sets are carried by primitives: the rule of a custom_vjp is mapped over the batch, then summed."""
    conv = jax.custom_vjp(lambda x, w: jaxconv.conv(x, w))
    conv.defvjp(lambda x, w: jax.vjp(jaxconv.conv, x, w), lambda pullback, g: pullback(g))
    gradient = jax.grad(lambda x, w: jnp.sum(jax.vmap(conv, (0, None))(x, w) ** 2), 1)
    assert BATCH * W.size in sizes(gradient, XS, W)


def test_vmap_of_grad_computes_one_kernel_gradient_per_example_in_one_map() -> None:
    gradients = jax.vmap(jax.grad(loss, 1), (0, None))
    assert ours(gradients, XS, W) == {"conv": 1, "kernel_grad": 1}
    assert BATCH * W.size in sizes(gradients, XS, W)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)], ids=["x", "w", "both"])
def test_vmap_keeps_each_map_one_map(in_axes: tuple[Any, ...]) -> None:
    gradients = jax.vmap(jax.grad(loss, (0, 1)), in_axes)
    args = XS if in_axes[0] == 0 else X, WS if in_axes[1] == 0 else W
    assert ours(gradients, *args) == {"conv": 1, "input_grad": 1, "kernel_grad": 1}


def test_every_order_of_derivative_is_a_program_of_the_three_maps() -> None:
    third = jax.jacfwd(jax.grad(lambda x, w: jax.jvp(loss, (x, w), (x, w))[1], (0, 1)), 1)
    assert set(ours(third, X, W)) == {"conv", "input_grad", "kernel_grad"}
    assert "conv_general_dilated" not in {equation.primitive.name for equation in program(third, X, W)}


def test_a_transposed_convolution_is_a_program_of_the_three_maps() -> None:
    def transposed(x: Any, w: Any) -> jax.Array:
        return jnp.sum(jaxconv.conv_transpose(x, w) ** 2)

    w = np.ones((3, 3, 5, 2), np.float32)
    assert ours(transposed, X, w) == {"input_grad": 1}
    assert ours(jax.grad(transposed, (0, 1)), X, w) == {"input_grad": 1, "conv": 1, "kernel_grad": 1}


@pytest.mark.parametrize("rules", jaxconv.rules.RULE_SETS)
@pytest.mark.parametrize("op", [jaxconv.conv, jaxconv.conv_transpose], ids=lambda op: op.__name__)
def test_a_frozen_operand_s_partner_is_not_remembered(op: Callable[..., jax.Array], rules: str) -> None:
    """dx needs w and dw needs x: differentiate in one, and only the other is kept."""
    w = W if op is jaxconv.conv else W.swapaxes(2, 3)
    op = partial(op, rules=rules)
    b = np.ones(5, np.float32)
    assert saved(lambda x: op(x, w, b), X) == {w.shape}
    assert saved(lambda w: op(X, w, b), w) == {X.shape}
    assert saved(lambda b: op(X, w, b), b) == set()
    assert saved(op, X, w, b) == {X.shape, w.shape}


def test_linearize_remembers_what_vjp_does() -> None:
    _, push = jax.linearize(lambda x: jaxconv.conv(x, W), X)
    assert {leaf.shape for leaf in jax.tree.leaves(push)} == {W.shape}
