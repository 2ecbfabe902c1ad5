"""Layers without parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxconv.geometry import window_geometry
from jaxconv.layers.base import Layer, Params, Shape, State
from jaxconv.ops.dense import dropout
from jaxconv.ops.max_pool import max_pool
from jaxconv.ops.pool import avg_pool, global_avg_pool


def _stateless(function: Callable[..., jax.Array], out: Callable[[Shape], Shape]) -> Layer:
    """A layer without parameters from an op that takes `rules`."""

    def apply(params: Params, state: State, x: jax.Array, *, rules: Any = "fast", **_: Any) -> tuple[jax.Array, State]:
        return function(x, rules=rules), state

    return Layer(lambda key, shape: ({}, {}, out(shape)), apply)


def Activation(function: Callable[..., jax.Array]) -> Layer:
    """An elementwise function; those of this library get the network's `rules`."""
    ours = function.__module__.startswith("jaxconv.")
    return _stateless(lambda x, rules: function(x, rules=rules) if ours else function(x), lambda shape: shape)


def _pool(op: Callable[..., Any], window: int | Sequence[int], stride: Any, padding: Any) -> Layer:
    def out(shape: Shape) -> Shape:
        step = window if stride is None else stride
        geometry = window_geometry(op.__name__, shape[1:-1], window, stride=step, padding=padding)
        if 0 in geometry.out:
            raise ValueError(
                f"{op.__name__}: the input is too small: spatial {geometry.spatial} leaves nothing for a window of "
                f"{geometry.taps}. Use larger images or another model."
            )
        return (shape[0], *geometry.out, shape[-1])

    return _stateless(lambda x, rules: op(x, window, stride=stride, padding=padding, rules=rules), out)


def MaxPool(window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID") -> Layer:
    """`jaxconv.max_pool`."""
    return _pool(max_pool, window, stride, padding)


def AvgPool(window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID") -> Layer:
    """`jaxconv.avg_pool`."""
    return _pool(avg_pool, window, stride, padding)


def GlobalAvgPool() -> Layer:
    """`jaxconv.global_avg_pool`."""
    return _stateless(lambda x, rules: global_avg_pool(x, rules=rules), lambda shape: (shape[0], shape[-1]))


def Flatten() -> Layer:
    """All axes but the batch in one."""
    return _stateless(
        lambda x, rules: x.reshape(x.shape[0], math.prod(x.shape[1:])), lambda shape: (shape[0], math.prod(shape[1:]))
    )


def Dropout(rate: float) -> Layer:
    """`jaxconv.dropout` in training, the identity otherwise."""

    def apply(
        params: Params, state: State, x: jax.Array, *, train: bool = False, key: Any = None, rules: Any = "fast"
    ) -> tuple[jax.Array, State]:
        return (dropout(x, rate, key, rules=rules) if train else x), state

    return Layer(lambda key, shape: ({}, {}, shape), apply)
