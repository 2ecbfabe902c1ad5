"""vmap: a batch on any operand, or on several, on any axis, at any depth, in any order with grad."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.agreement import GROUPED, LAYERS, TINY, Layer, agree, each_rule, oracle
from tests.support.cases import FEW, Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import spatial_and_taps

SIZE = 3  # coprime to every number of groups in the table


def looped(f: Callable[..., Any], in_axes: Any = 0, out_axes: int = 0) -> Callable[..., Any]:
    """What `jax.vmap` means: one call after the other."""

    def call(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        mapped = {k: jnp.moveaxis(a, i, 0) for k, (a, i) in enumerate(zip(args, axes, strict=True)) if i is not None}
        results = jax.lax.map(lambda one: f(*(one.get(k, a) for k, a in enumerate(args))), mapped)
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, out_axes), results)

    return call


def batched(a: np.ndarray, axis: int | None = 0, size: int = SIZE) -> np.ndarray:
    """`size` random arrays of a's shape along `axis`; None: a itself."""
    return a if axis is None else np.stack([cotangent(a.shape, seed=30 + n) for n in range(size)], axis)


def trio(case: Case, rules: str) -> dict[str, tuple[Callable[..., jax.Array], np.ndarray, np.ndarray]]:
    """The three maps and their operands."""
    x, w = arrays(case)
    options = {**case.options, "rules": rules}
    g = cotangent(jax.eval_shape(partial(jaxconv.conv, **options), x, w).shape)
    spatial, taps = spatial_and_taps(case)
    return {
        "conv": (partial(jaxconv.conv, **options), x, w),
        "input_grad": (partial(jaxconv.conv_input_grad, spatial_shape=spatial, **options), g, w),
        "kernel_grad": (partial(jaxconv.conv_kernel_grad, kernel_shape=taps, **options), x, g),
    }


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)], ids=["first", "second", "both"])
@pytest.mark.parametrize(
    "case", [in_layout(case, layout) for case, layout in zip(FEW, ("NHWC", "NCHW") * 3, strict=True)], ids=str
)
def test_each_of_the_three_maps_takes_a_batch_on_either_operand_or_both(case: Case, in_axes: tuple[Any, ...]) -> None:
    def ours(operands: Any) -> Any:
        return {name: jax.vmap(f, in_axes)(*operands[name]) for name, (f, *_) in trio(case, "fast").items()}

    def theirs(operands: Any) -> Any:
        return {name: looped(f, in_axes)(*operands[name]) for name, (f, *_) in trio(case, "autodiff").items()}

    agree(ours, theirs, {name: tuple(map(batched, ab, in_axes)) for name, (_, *ab) in trio(case, "fast").items()})


AXES = [
    # x, w, b -> y: every operand on its own, all of them, and axes counted from either end
    ((1, None, None), 0),
    ((None, -2, None), -1),
    ((None, None, 1), 2),
    ((-1, 3, None), 1),
    ((None, 1, 0), -2),
    ((2, -1, -1), -1),
]


@pytest.mark.parametrize(("in_axes", "out_axes"), AXES, ids=str)
@pytest.mark.parametrize("layer", [GROUPED, LAYERS[-1]], ids=str)
def test_the_batch_may_stand_on_any_axis(layer: Layer, in_axes: tuple[Any, ...], out_axes: int) -> None:
    ours = jax.vmap(layer, in_axes, out_axes)
    theirs = looped(partial(layer, rules="autodiff"), in_axes, out_axes)
    agree(ours, theirs, *map(batched, layer.arguments()[:3], in_axes))


@pytest.mark.parametrize("layer", LAYERS[-3:], ids=str)
def test_a_transposed_convolution_takes_a_batch_on_every_operand(layer: Layer) -> None:
    agree(jax.vmap(layer), looped(partial(layer, rules="autodiff")), *map(batched, layer.arguments()[:3]))


def test_vmap_nests() -> None:
    """Kernels outside, inputs inside, and over all that a batch of both."""

    def nested(mapping: Callable[..., Any], rules: str) -> Callable[..., Any]:
        layer = partial(GROUPED, rules=rules)
        return mapping(mapping(mapping(layer, (1, None, None)), (None, 0, 0), 1), (0, -1, None))

    x, w, b, _ = GROUPED.arguments()
    args = batched(batched(x, 1), 0, 2), batched(batched(w), -1, 2), batched(b)
    agree(nested(jax.vmap, "fast"), nested(looped, "autodiff"), *args)


@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 0, None), (None, None, 0), 0], ids=str)
def test_a_batch_of_one_is_a_batch(in_axes: Any) -> None:
    axes = in_axes or (0, 0, 0)
    args = [batched(a, i, 1) for a, i in zip(TINY.arguments(), axes, strict=False)]
    agree(jax.vmap(TINY, axes), looped(partial(TINY, rules="autodiff"), axes), *args)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_a_batch_of_none_is_empty(in_axes: Any) -> None:
    operands = TINY.arguments()[:2]
    none = (a if axis is None else np.zeros((0, *a.shape)) for a, axis in zip(operands, in_axes, strict=True))
    y = jax.vmap(TINY, in_axes)(*none)
    assert y.shape == (0, *TINY(*operands).shape)


def loss(layer: Layer, rules: str) -> Callable[..., jax.Array]:
    return lambda x, w, b, delta: jnp.sum(delta * layer(x, w, b, rules=rules) ** 2)


@pytest.mark.parametrize("layer", [GROUPED, LAYERS[-1]], ids=str)
def test_vmap_of_grad_gives_the_gradients_of_every_example(layer: Layer) -> None:
    in_axes = (0, None, None, 0)

    def ours(rules: str) -> Callable[..., Any]:
        return jax.vmap(jax.grad(loss(layer, rules), (0, 1, 2)), in_axes)

    def theirs(rules: str) -> Callable[..., Any]:
        return looped(jax.grad(loss(layer, rules), (0, 1, 2)), in_axes)

    agree(each_rule(ours), oracle(theirs), *map(batched, layer.arguments(), in_axes))


@pytest.mark.parametrize("layer", [GROUPED, LAYERS[-1]], ids=str)
def test_grad_of_vmap_sums_the_gradients_of_every_example(layer: Layer) -> None:
    in_axes = (0, None, None, 0)

    def gradient(mapping: Callable[..., Any], rules: str) -> Callable[..., Any]:
        return jax.grad(lambda *a: mapping(loss(layer, rules), in_axes)(*a).sum(), (0, 1, 2))

    ours, theirs = partial(gradient, jax.vmap), partial(gradient, looped)
    agree(each_rule(ours), oracle(theirs), *map(batched, layer.arguments(), in_axes))


def test_grad_of_vmap_over_kernels_agrees() -> None:
    """An ensemble: every kernel has its own gradient, and the input one from all of them."""
    in_axes = (None, 0, 0, 0)

    def gradient(mapping: Callable[..., Any], rules: str) -> Callable[..., Any]:
        return jax.grad(lambda *a: mapping(loss(GROUPED, rules), in_axes)(*a).sum(), (0, 1, 2))

    agree(gradient(jax.vmap, "fast"), gradient(looped, "autodiff"), *map(batched, GROUPED.arguments(), in_axes))


def test_vmap_of_jvp_agrees() -> None:
    """Many tangents at one point: what `jax.jacfwd` does."""
    in_axes = (None, None, 0, 0)

    def push(rules: str) -> Callable[..., Any]:
        return lambda x, w, dx, dw: jax.jvp(partial(GROUPED, rules=rules), (x, w), (dx, dw))

    x, w, *_ = GROUPED.arguments()
    agree(jax.vmap(push("fast"), in_axes), looped(push("autodiff"), in_axes), x, w, batched(x), batched(w))


def test_vmap_of_hessian_agrees() -> None:
    def hessian(rules: str) -> Callable[..., Any]:
        return jax.hessian(loss(TINY, rules), 1)

    agree(jax.vmap(hessian("fast")), looped(hessian("autodiff")), *map(batched, TINY.arguments()))
