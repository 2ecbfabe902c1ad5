"""What a rule of the user's sees: one ordinary convolution, whatever JAX has made of the call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import Geometry
from jaxconv.rules import rotated
from tests.support.agreement import GROUPED, LAYERS, Layer, agree
from tests.support.cases import Case, cotangent

SIZE = 3
OPS = [GROUPED, LAYERS[-1]]


class Seen(NamedTuple):
    """One call of a rule: which, on what, in which geometry."""

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    geometry: Geometry


def watched(factor: float = 1.0) -> tuple[list[Seen], jaxconv.ConvRules]:
    """The rules of `rotated`, times a factor, and the list of their calls."""
    seen: list[Seen] = []

    def rule(name: str) -> Callable[..., jax.Array]:
        def call(a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
            seen.append(Seen(name, a.shape, b.shape, geometry))
            return factor * getattr(rotated, name)(a, b, geometry)

        return call

    return seen, jaxconv.ConvRules(rule("input_grad"), rule("kernel_grad"), rule("conv"))


def loss(layer: Layer, rules: Any) -> Callable[..., jax.Array]:
    return lambda x, w, delta: jnp.sum(delta * layer(x, w, rules=rules) ** 2)


def batched(a: np.ndarray, axis: int | None) -> np.ndarray:
    return a if axis is None else np.stack([cotangent(a.shape, seed=40 + n) for n in range(SIZE)])


def grown(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(SIZE * n if k == axis else n for k, n in enumerate(shape))


def test_grad_of_vmap_calls_each_rule_once_with_the_batch_in_n() -> None:
    seen, rules = watched()
    x, w, _, delta = GROUPED.arguments()
    args = batched(x, 0), w, batched(delta, 0)
    jax.jit(jax.grad(lambda *a: jax.vmap(loss(GROUPED, rules), (0, None, 0))(*a).sum(), (0, 1)))(*args)
    place = jaxconv.geometry.Layout.of("NHWC", 2)
    folded_x, folded_y = grown(x.shape, place.x[0]), grown(delta.shape, place.y[0])
    assert sorted(call[:3] for call in seen) == [
        ("input_grad", folded_y, w.shape),
        ("kernel_grad", folded_x, folded_y),
    ]
    assert {call.geometry.groups for call in seen} == {2}


def test_a_batch_of_kernels_reaches_the_input_gradient_in_the_channels() -> None:
    seen, rules = watched()
    g, w = cotangent((2, 5, 4)), batched(np.ones((3, 2, 4)), 0)
    jax.jit(jax.vmap(partial(jaxconv.conv_input_grad, spatial_shape=5, groups=2, rules=rules), (None, 0)))(g, w)
    assert [call[:3] for call in seen] == [("input_grad", (2, 5, 4), (3, SIZE * 2, 4))]


def test_a_batch_on_both_operands_leaves_a_rule_its_own_geometry() -> None:
    """A rule for one group only has gradients per example all the same."""
    layer, seen = Layer(jaxconv.conv, Case((1, 5, 2), (2, 2, 2), {"stride": 2})), []
    x, w, _, delta = layer.arguments()

    def ungrouped(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
        assert geometry.groups == 1
        seen.append(x.shape)
        return rotated.kernel_grad(x, g, geometry)

    mine = jaxconv.ConvRules(rotated.input_grad, ungrouped)

    def gradients(rules: Any) -> Callable[..., Any]:
        return jax.vmap(jax.vmap(jax.grad(loss(layer, rules), (0, 1)), (0, None, None)), (0, None, 0))

    args = batched(batched(x, 0), 0), w, batched(delta, 0)
    agree(gradients(mine), gradients("autodiff"), *args)
    assert seen == [x.shape] * len(seen)


@pytest.mark.parametrize("in_axes", [(0, None, 0), (None, 0, 0), (0, 0, 0)], ids=["x", "w", "both"])
@pytest.mark.parametrize("layer", OPS, ids=str)
def test_vmap_in_any_order_with_grad_is_that_of_autodiff(layer: Layer, in_axes: tuple[Any, ...]) -> None:
    _, mine = watched()
    x, w, _, delta = layer.arguments()

    def both(rules: Any) -> Callable[..., Any]:
        inside = jax.vmap(jax.value_and_grad(loss(layer, rules), (0, 1)), in_axes)
        outside = jax.grad(lambda *a: jax.vmap(loss(layer, rules), in_axes)(*a).sum(), (0, 1))
        twice = jax.vmap(outside, (None, 0, None))
        return lambda x, w, delta, ws: (inside(x, w, delta), outside(x, w, delta), twice(x, ws, delta))

    args = tuple(map(batched, (x, w, delta), in_axes))
    agree(both(mine), both("autodiff"), *args, batched(args[1], 0))


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint], ids=lambda t: t.__name__)
def test_the_rule_that_runs_is_the_user_s(transform: Callable[..., Any]) -> None:
    _, thrice = watched(3.0)
    x, w, _, delta = GROUPED.arguments()

    def gradient(rules: Any) -> Any:
        f = transform(loss(GROUPED, rules))
        return jax.grad(lambda *a: jax.lax.scan(lambda c, _: (c + f(*a), None), 0.0, None, 2)[0], (0, 1))(x, w, delta)

    for got, want in zip(gradient(thrice), gradient("rotated"), strict=True):
        np.testing.assert_allclose(got, 3 * want, rtol=1e-12)


def test_the_lengths_of_gradients_are_those_of_the_user_s_rule() -> None:
    """What `per_example_grad_norms` knows of our own kernel gradient it does not assume of another."""
    _, thrice = watched(3.0)
    layer = Layer(jaxconv.conv, Case((1, 5, 2), (2, 2, 2), {}))
    x, w, _, delta = layer.arguments()

    def norms(rules: Any) -> Any:
        def example(w: Any, one: Any) -> jax.Array:
            return loss(layer, rules)(one[0], w, one[1])

        return jaxconv.per_example_grad_norms(example, w, (batched(x, 0), batched(delta, 0)))

    np.testing.assert_allclose(norms(thrice), 3 * norms("fast"), rtol=1e-12)


def test_a_rule_in_numpy_runs_where_nothing_is_traced() -> None:
    """A student's loops see arrays with values in them."""

    def loops(x: Any, g: Any, geometry: Geometry) -> np.ndarray:
        x, g, dw = np.asarray(x), np.asarray(g), np.zeros(geometry.w_shape(1, 1))
        for p in np.ndindex(*geometry.out):
            for k in np.ndindex(*geometry.taps):
                dw[*k, 0, 0] += float(x[0, p[0] + k[0], 0]) * float(g[0, *p, 0])
        return dw

    mine = jaxconv.ConvRules(rotated.input_grad, loops)
    x, w = cotangent((1, 6, 1)), cotangent((3, 1, 1))

    def gradient(rules: Any) -> jax.Array:
        return jax.grad(lambda w: jnp.sum(jaxconv.conv(x, w, padding="VALID", rules=rules) ** 2))(w)

    np.testing.assert_allclose(gradient(mine), gradient("autodiff"), rtol=1e-12)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda x, g, geometry: rotated.kernel_grad(x, g, geometry)[:1],
         r"conv: rules\.kernel_grad must return dw of shape \(3, 1, 2\), but `<lambda>` returned shape \(1, 1, 2\)"),
        (lambda x, g, geometry: None, r"conv: rules\.kernel_grad must return dw, an array of shape .*, but .* None"),
        (lambda x, g, geometry: 1 / 0, "division by zero"),
    ],
    ids=["shape", "nothing", "own error"],
)  # fmt: skip
def test_what_is_wrong_with_a_rule_is_said(rule: Any, message: str, traced: bool) -> None:
    mine = jaxconv.ConvRules(rotated.input_grad, rule)
    gradient = jax.grad(lambda w: jaxconv.conv(np.ones((2, 5, 1)), w, rules=mine).sum())
    with pytest.raises((TypeError, ValueError, ZeroDivisionError), match=message):
        (jax.jit(gradient) if traced else gradient)(np.ones((3, 1, 2)))
