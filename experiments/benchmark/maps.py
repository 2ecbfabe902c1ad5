"""Layers as functions: jaxconv's, and the same written plainly with `jax.lax`; and what is measured of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

import jaxconv
from experiments.benchmark.layers import Conv, Pool

Function = Callable[..., Any]

# What is measured of a layer f. Nobody reads the primal results, so XLA drops them and what only they need.
CONV_PROGRAMS: dict[str, Callable[[Function], Function]] = {
    "forward": lambda f: lambda x, w, g: f(x, w),
    "input_grad": lambda f: lambda x, w, g: jax.vjp(lambda x: f(x, w), x)[1](g)[0],
    "kernel_grad": lambda f: lambda x, w, g: jax.vjp(lambda w: f(x, w), w)[1](g)[0],
}
# A pool's backward pass is given what the forward pass left for it.
POOL_PROGRAMS: dict[str, Callable[[Function], Function]] = {
    "forward": lambda f: lambda x, g: f(x),
    "backward": lambda f: lambda pullback, g: pullback(g)[0],
    "forward+backward": lambda f: lambda x, g: _both(f, x, g),
}


def _both(f: Function, x: jax.Array, g: jax.Array) -> tuple[Any, Any]:
    y, pullback = jax.vjp(f, x)
    return y, pullback(g)[0]


def pullback(f: Function, x: jax.Array) -> Any:
    """What the forward pass of f leaves for the backward pass, as a function of g."""
    return jax.jit(lambda x: jax.vjp(f, x)[1])(x)


def jaxconv_conv(layer: Conv, engine: str) -> Function:
    if layer.rank == 0:
        return jaxconv.dense
    options: dict[str, Any] = {
        "stride": layer.stride, "padding": layer.border, "dilation": layer.dilation, "groups": layer.groups,
        "engine": engine,
    }  # fmt: skip
    if layer.transposed:
        return lambda x, w: jaxconv.conv_transpose(x, w, output_padding=layer.output_padding, **options)
    return lambda x, w: jaxconv.conv(x, w, **options)


def lax_conv(layer: Conv) -> Function:
    if layer.rank == 0:
        return lambda x, w: x @ w
    space = "DHW"[-layer.rank :]
    numbers = f"N{space}C", f"{space}IO", f"N{space}C"
    stride, dilation = (layer.stride,) * layer.rank, (layer.dilation,) * layer.rank
    if layer.transposed:
        low = layer.span - 1 - layer.border
        around = [(low, low + layer.output_padding)] * layer.rank
        return lambda x, w: lax.conv_transpose(
            x, w, stride, around, rhs_dilation=dilation, dimension_numbers=numbers, transpose_kernel=True
        )
    return lambda x, w: lax.conv_general_dilated(
        x, w, stride, [(layer.border,) * 2] * layer.rank, rhs_dilation=dilation, dimension_numbers=numbers,
        feature_group_count=layer.groups,
    )  # fmt: skip


def jaxconv_pool(pool: Pool) -> Function:
    op = jaxconv.max_pool if pool.kind == "max" else jaxconv.avg_pool
    return lambda x: op(x, pool.window, stride=pool.stride, padding=pool.padding)


def lax_pool(pool: Pool) -> Function:
    window, stride = (1, pool.window, pool.window, 1), (1, pool.stride, pool.stride, 1)
    if pool.kind == "max":
        return lambda x: lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, stride, pool.padding)

    def window_sum(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, np.asarray(0, x.dtype), lax.add, window, stride, pool.padding)

    return lambda x: window_sum(x) / window_sum(jax.numpy.ones((1, *x.shape[1:3], 1), x.dtype))
