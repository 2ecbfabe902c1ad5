"""Layers without parameters."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.layers.base import Layer, Params, Shape, State, built, check_large_enough, check_windows, layer
from jaxconv.ops.arguments import boolean
from jaxconv.ops.dropout import check_rate, dropout
from jaxconv.ops.max_pool import max_pool
from jaxconv.ops.pad import check_border, pad
from jaxconv.ops.pool import avg_pool, check_power, global_avg_pool, lp_pool


def _plain(function: Callable[..., jax.Array], check: Callable[[Shape, Any], None]) -> Layer:
    """A layer from a function of x and `rules`; `check` judges what it makes of a shape."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        out = jax.eval_shape(lambda x: function(x, rules="fast"), jax.ShapeDtypeStruct(shape, jnp.float32))
        check(shape, out)
        return {}, {}, out.shape

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        return function(x, rules=rules), state

    return layer(init, compute)


@built
def Activation(function: Callable[..., jax.Array]) -> Layer:
    """An elementwise function. One that takes `rules`, as this library's do, gets the network's."""
    if not callable(function):
        raise TypeError(f"Activation: function must be a function, but is {function!r}.")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name, ruled = getattr(inner, "__name__", type(inner).__name__), _takes_rules(function)

    def check(shape: Shape, out: Any) -> None:
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise TypeError(f"Activation: `{name}` must return one array, but returns a {type(out).__name__}.")
        if out.shape != shape or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(
                f"Activation: `{name}` must be elementwise, but maps float32{list(shape)} to "
                f"{out.dtype}{list(out.shape)}. For another kind of map, write a Layer(init, apply)."
            )

    return _plain(lambda x, rules: function(x, rules=rules) if ruled else function(x), check)


def _takes_rules(function: Callable[..., Any]) -> bool:
    try:
        return "rules" in inspect.signature(function).parameters
    except ValueError:  # some builtins do not say what they take
        return False


def _windowed(name: str, function: Callable[..., jax.Array]) -> Layer:
    def check(shape: Shape, out: Any) -> None:
        check_large_enough(name, shape[1:-1], out.shape[1:-1])

    return _plain(function, check)


def _pool(name: str, op: Callable[..., Any], window: Any, stride: Any, padding: Any, ceil_mode: bool) -> Layer:
    check_windows(name, padding, window=(window, 1), stride=(window if stride is None else stride, 1))
    options = {"stride": stride, "padding": padding, "ceil_mode": boolean(name, "ceil_mode", ceil_mode)}
    return _windowed(name, lambda x, rules: op(x, window, rules=rules, **options))


@built
def MaxPool(
    window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID", ceil_mode: bool = False
) -> Layer:
    """`jaxconv.max_pool`."""
    return _pool("MaxPool", max_pool, window, stride, padding, ceil_mode)


@built
def AvgPool(
    window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID", ceil_mode: bool = False
) -> Layer:
    """`jaxconv.avg_pool`."""
    return _pool("AvgPool", avg_pool, window, stride, padding, ceil_mode)


@built
def LpPool(
    window: int | Sequence[int], p: float, *, stride: Any = None, padding: Any = "VALID", ceil_mode: bool = False
) -> Layer:
    """`jaxconv.lp_pool`: the p-norm of each window."""
    op = functools.partial(lp_pool, p=check_power("LpPool", p))
    return _pool("LpPool", op, window, stride, padding, ceil_mode)


@built
def GlobalAvgPool() -> Layer:
    """`jaxconv.global_avg_pool`."""
    return _plain(global_avg_pool, lambda shape, out: None)


@built
def Pad(padding: int | Sequence[Any], *, mode: str = "zero") -> Layer:
    """`jaxconv.pad`: a border of zeros, or of the image's own elements; negative widths crop."""
    check_border("Pad", padding, mode)
    check_windows("Pad", padding)
    return _windowed("Pad", lambda x, rules: pad(x, padding, mode=mode, rules=rules))


@built
def Flatten() -> Layer:
    """All axes but the batch in one."""
    return _plain(lambda x, rules: x.reshape(x.shape[0], math.prod(x.shape[1:])), lambda shape, out: None)


@built
def Dropout(rate: float) -> Layer:
    """`jaxconv.dropout` in training, the identity otherwise."""
    rate = check_rate("Dropout", rate)

    def compute(
        params: Params, state: State, x: jax.Array, *, train: bool, key: Any, rules: Any
    ) -> tuple[jax.Array, State]:
        return (dropout(x, rate, key, rules=rules) if train else x), state

    return layer(lambda key, shape: ({}, {}, shape), compute)
