"""Layers that standardise, and those that only scale."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.layers.base import Layer, Params, Shape, State
from jaxconv.ops.norm import batch_norm, layer_norm


def BatchNorm(*, momentum: float = 0.9, eps: float = 1e-5, scale: float = 1.0, axis_name: Any = None) -> Layer:
    """`jaxconv.batch_norm`; `scale` is the initial value, 0 makes a residual branch start silent."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        c = shape[-1]
        params = {"scale": jnp.full(c, scale, jnp.float32), "bias": jnp.zeros(c, jnp.float32)}
        return params, {"mean": jnp.zeros(c, jnp.float32), "var": jnp.ones(c, jnp.float32)}, shape

    def apply(
        params: Params, state: State, x: jax.Array, *, train: bool = False, rules: Any = "fast", **_: Any
    ) -> tuple[jax.Array, State]:
        return batch_norm(
            x, params["scale"], params["bias"], state, train=train, momentum=momentum, eps=eps, axis_name=axis_name,
            rules=rules,
        )  # fmt: skip

    return Layer(init, apply)


def LayerNorm(*, eps: float = 1e-6) -> Layer:
    """`jaxconv.layer_norm` over the channels."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        return {"scale": jnp.ones(shape[-1], jnp.float32), "bias": jnp.zeros(shape[-1], jnp.float32)}, {}, shape

    def apply(params: Params, state: State, x: jax.Array, *, rules: Any = "fast", **_: Any) -> tuple[jax.Array, State]:
        return layer_norm(x, params["scale"], params["bias"], eps=eps, rules=rules), state

    return Layer(init, apply)


def LayerScale(initial: float) -> Layer:
    """One learned factor per channel, as at the end of a ConvNeXt block."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        return {"scale": jnp.full(shape[-1], initial, jnp.float32)}, {}, shape

    def apply(params: Params, state: State, x: jax.Array, **_: Any) -> tuple[jax.Array, State]:
        return x * params["scale"].reshape((1,) * (x.ndim - 1) + (-1,)), state

    return Layer(init, apply)
