"""Layers that standardise, and those that only scale.

Whatever dtype a network computes in, statistics, scale and bias are float32, or float64 for float64. What scale and
bias start at, 1 and 0 by default, is a number or an initialiser, such as those of `jax.nn.initializers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxconv.geometry import integer
from jaxconv.layers.base import Layer, Params, Shape, State, built, constant, layer
from jaxconv.layers.initial import Initializer, check_initial, start
from jaxconv.ops.batch_norm import batch_norm, check_momentum
from jaxconv.ops.norm import group_norm, instance_norm, layer_norm, rms_norm
from jaxconv.ops.standardise import check_eps
from jaxconv.windows import accumulator


def _started(function: str, key: jax.Array, shape: Shape, **initial: Initializer) -> dict[str, jax.Array]:
    """One number per channel under each name."""
    made = start(function, key, **{f"{name}_init": (init, shape[-1:]) for name, init in initial.items()})
    return dict(zip(initial, made.values(), strict=True))


@built
def BatchNorm(
    *,
    momentum: float = 0.9,
    eps: float = 1e-5,
    scale_init: Initializer = 1.0,
    bias_init: Initializer = 0.0,
    axis_name: Any = None,
) -> Layer:
    """`jaxconv.batch_norm`; a scale that starts at 0 makes a residual branch start silent."""
    momentum, eps = check_momentum("BatchNorm", momentum), check_eps("BatchNorm", eps)
    initial = _check_initial("BatchNorm", scale=scale_init, bias=bias_init)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        state = {"mean": constant(shape[-1], 0), "var": constant(shape[-1], 1)}
        return _started("BatchNorm", key, shape, **initial), state, shape

    def compute(
        params: Params, state: State, x: jax.Array, *, train: bool, rules: Any, **_: Any
    ) -> tuple[jax.Array, State]:
        return batch_norm(
            x, params["scale"], params["bias"], state, train=train, momentum=momentum, eps=eps, axis_name=axis_name,
            rules=rules,
        )  # fmt: skip

    return layer(init, compute, held_in=accumulator)


def _check_initial(function: str, **initial: Any) -> dict[str, Initializer]:
    """What each parameter starts at."""
    return {name: check_initial(function, f"{name}_init", value) for name, value in initial.items()}


def _norm(
    function: str, op: Callable[..., jax.Array], eps: Any, *, check: Callable[[Shape], Any] = len, **initial: Any
) -> Layer:
    """A normalisation without running statistics; `initial` names its parameters, `check` judges the input's shape."""
    eps, initial = check_eps(function, eps), _check_initial(function, **initial)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        check(shape)
        return _started(function, key, shape, **initial), {}, shape

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        return op(x, **params, eps=eps, rules=rules), state

    return layer(init, compute, held_in=accumulator)


@built
def LayerNorm(*, eps: float = 1e-6, scale_init: Initializer = 1.0, bias_init: Initializer = 0.0) -> Layer:
    """`jaxconv.layer_norm` over the channels."""
    return _norm("LayerNorm", layer_norm, eps, scale=scale_init, bias=bias_init)


@built
def RMSNorm(*, eps: float = 1e-6, scale_init: Initializer = 1.0) -> Layer:
    """`jaxconv.rms_norm` over the channels, with a scale and no bias."""
    return _norm("RMSNorm", rms_norm, eps, scale=scale_init)


@built
def GroupNorm(groups: int, *, eps: float = 1e-6, scale_init: Initializer = 1.0, bias_init: Initializer = 0.0) -> Layer:
    """`jaxconv.group_norm`: the channels in `groups` parts, each with the positions of its example."""
    groups = integer("GroupNorm", "groups", groups, 1)

    def check(shape: Shape) -> None:
        if shape[-1] % groups:
            raise ValueError(
                f"GroupNorm: groups must divide the channels, but {shape[-1]} % {groups} = {shape[-1] % groups}."
            )

    def op(x: jax.Array, **options: Any) -> jax.Array:
        return group_norm(x, groups, **options)

    return _norm("GroupNorm", op, eps, check=check, scale=scale_init, bias=bias_init)


@built
def InstanceNorm(*, eps: float = 1e-6, scale_init: Initializer = 1.0, bias_init: Initializer = 0.0) -> Layer:
    """`jaxconv.instance_norm`: each channel with the positions of its example."""
    return _norm("InstanceNorm", instance_norm, eps, scale=scale_init, bias=bias_init)


@built
def LayerScale(initial: Initializer) -> Layer:
    """One learned factor per channel, as at the end of a ConvNeXt block."""
    initial = check_initial("LayerScale", "initial", initial)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        return {"scale": start("LayerScale", key, initial=(initial, shape[-1:]))["initial"]}, {}, shape

    def compute(params: Params, state: State, x: jax.Array, **_: Any) -> tuple[jax.Array, State]:
        return x * params["scale"].reshape((1,) * (x.ndim - 1) + (-1,)), state

    return layer(init, compute)
