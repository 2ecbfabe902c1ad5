"""Layers that standardise, and those that only scale.

Whatever dtype a network computes in, statistics, scale and bias are float32, or float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxconv.geometry import integer
from jaxconv.layers.base import Layer, Params, Shape, State, constant, layer
from jaxconv.ops.arguments import number
from jaxconv.ops.batch_norm import batch_norm, check_momentum
from jaxconv.ops.norm import group_norm, instance_norm, layer_norm, rms_norm
from jaxconv.ops.standardise import check_eps
from jaxconv.windows import accumulator


def _constant(shape: Shape, **values: float) -> dict[str, jax.Array]:
    """One number per channel under each name."""
    return {name: constant(shape[-1], value) for name, value in values.items()}


def BatchNorm(*, momentum: float = 0.9, eps: float = 1e-5, scale: float = 1.0, axis_name: Any = None) -> Layer:
    """`jaxconv.batch_norm`; `scale` is the initial value, 0 makes a residual branch start silent."""
    momentum, eps = check_momentum("BatchNorm", momentum), check_eps("BatchNorm", eps)
    scale = number("BatchNorm", "scale", scale)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        return _constant(shape, scale=scale, bias=0), _constant(shape, mean=0, var=1), shape

    def compute(
        params: Params, state: State, x: jax.Array, *, train: bool, rules: Any, **_: Any
    ) -> tuple[jax.Array, State]:
        return batch_norm(
            x, params["scale"], params["bias"], state, train=train, momentum=momentum, eps=eps, axis_name=axis_name,
            rules=rules,
        )  # fmt: skip

    return layer(init, compute, held_in=accumulator)


def _norm(op: Callable[..., jax.Array], eps: float, *, check: Callable[[Shape], Any] = len, **initial: float) -> Layer:
    """A normalisation without running statistics; `initial` names its parameters, `check` judges the input's shape."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        check(shape)
        return _constant(shape, **initial), {}, shape

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        return op(x, **params, eps=eps, rules=rules), state

    return layer(init, compute, held_in=accumulator)


def LayerNorm(*, eps: float = 1e-6) -> Layer:
    """`jaxconv.layer_norm` over the channels."""
    return _norm(layer_norm, check_eps("LayerNorm", eps), scale=1, bias=0)


def RMSNorm(*, eps: float = 1e-6) -> Layer:
    """`jaxconv.rms_norm` over the channels, with a scale and no bias."""
    return _norm(rms_norm, check_eps("RMSNorm", eps), scale=1)


def GroupNorm(groups: int, *, eps: float = 1e-6) -> Layer:
    """`jaxconv.group_norm`: the channels in `groups` parts, each with the positions of its example."""
    groups = integer("GroupNorm", "groups", groups, 1)

    def check(shape: Shape) -> None:
        if shape[-1] % groups:
            raise ValueError(
                f"GroupNorm: groups must divide the channels, but {shape[-1]} % {groups} = {shape[-1] % groups}."
            )

    def op(x: jax.Array, **options: Any) -> jax.Array:
        return group_norm(x, groups, **options)

    return _norm(op, check_eps("GroupNorm", eps), check=check, scale=1, bias=0)


def InstanceNorm(*, eps: float = 1e-6) -> Layer:
    """`jaxconv.instance_norm`: each channel with the positions of its example."""
    return _norm(instance_norm, check_eps("InstanceNorm", eps), scale=1, bias=0)


def LayerScale(initial: float) -> Layer:
    """One learned factor per channel, as at the end of a ConvNeXt block."""
    initial = number("LayerScale", "initial", initial)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        return _constant(shape, scale=initial), {}, shape

    def compute(params: Params, state: State, x: jax.Array, **_: Any) -> tuple[jax.Array, State]:
        return x * params["scale"].reshape((1,) * (x.ndim - 1) + (-1,)), state

    return layer(init, compute)
