"""Layers with a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.geometry import conv_geometry
from jaxconv.layers.base import Layer, Params, Shape, State
from jaxconv.ops.conv import conv
from jaxconv.ops.dense import dense


def _he_normal(key: jax.Array, shape: Shape, fan_in: int) -> jax.Array:
    """He et al. (2015): variance 2 / fan_in keeps the scale of activations through a ReLU."""
    if fan_in == 0:
        raise ValueError(f"init: a layer needs at least one input to each output, but its kernel has shape {shape}.")
    return jax.random.normal(key, shape, jnp.float32) * math.sqrt(2 / fan_in)


def Conv(
    features: int,
    taps: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int | None = 1,
    bias: bool = True,
) -> Layer:
    """`jaxconv.conv` in NHWC with a He-initialised kernel. `groups=None` is depthwise: a group per channel."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        *_, channels = shape
        size = (taps,) * (len(shape) - 2) if isinstance(taps, int) else tuple(taps)
        kernel = (*size, channels // (groups or channels), features)
        geometry = conv_geometry(
            "Conv", shape, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups or channels
        )
        if 0 in geometry.out:
            raise ValueError(
                f"Conv: the input is too small: spatial {geometry.spatial} leaves nothing for a window of span "
                f"{geometry.span} with padding {geometry.padding}. Use larger images or another model."
            )
        params = {"w": _he_normal(key, kernel, math.prod(kernel[:-1]))}
        if bias:
            params["b"] = jnp.zeros(features, jnp.float32)
        return params, {}, (shape[0], *geometry.out, features)

    def apply(params: Params, state: State, x: jax.Array, *, rules: Any = "fast", **_: Any) -> tuple[jax.Array, State]:
        y = conv(
            x, params["w"], params.get("b"), stride=stride, padding=padding, dilation=dilation,
            groups=groups or x.shape[-1], rules=rules,
        )  # fmt: skip
        return y, state

    return Layer(init, apply)


def Dense(features: int, *, bias: bool = True) -> Layer:
    """`jaxconv.dense` with a He-initialised kernel."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        params = {"w": _he_normal(key, (shape[-1], features), shape[-1])}
        if bias:
            params["b"] = jnp.zeros(features, jnp.float32)
        return params, {}, (*shape[:-1], features)

    def apply(params: Params, state: State, x: jax.Array, *, rules: Any = "fast", **_: Any) -> tuple[jax.Array, State]:
        return dense(x, params["w"], params.get("b"), rules=rules), state

    return Layer(init, apply)
