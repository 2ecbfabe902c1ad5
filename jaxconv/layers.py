"""Layers as pairs of pure functions over plain pytrees, and three ways to put them together.

A layer is `init(key, shape) -> (params, state, shape)` and `apply(params, state, x) -> (y, state)`. Shapes
include the batch axis, whose size does not matter. `params` is what an optimiser updates, `state` what the
forward pass updates (running statistics); both are nested dicts and lists of arrays, empty where a layer has
none. `apply` also takes `train`, a `key` for randomness and the `rules` that every op in it will use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv.geometry import conv_geometry, hung_over, window_geometry
from jaxconv.ops.conv import conv
from jaxconv.ops.dense import dense, dropout
from jaxconv.ops.max_pool import max_pool
from jaxconv.ops.norm import batch_norm, layer_norm
from jaxconv.ops.pool import avg_pool, global_avg_pool

Params = Any
State = Any
Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A pair of pure functions; see the module's head for their contract.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import layers
      >>> net = layers.serial(layers.Conv(8, 3), layers.Activation(jax.nn.relu), layers.Flatten(), layers.Dense(10))
      >>> params, state, shape = net.init(jax.random.key(0), (1, 8, 8, 1))
      >>> y, state = net.apply(params, state, jnp.ones((4, 8, 8, 1)), rules="rotated")
      >>> shape, y.shape
      ((1, 10), (4, 10))
    """

    init: Callable[[jax.Array, Shape], tuple[Params, State, Shape]]
    apply: Callable[..., tuple[jax.Array, State]]


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


def _stateless(function: Callable[..., jax.Array], out: Callable[[Shape], Shape]) -> Layer:
    """A layer without parameters from an op that takes `rules`."""

    def apply(params: Params, state: State, x: jax.Array, *, rules: Any = "fast", **_: Any) -> tuple[jax.Array, State]:
        return function(x, rules=rules), state

    return Layer(lambda key, shape: ({}, {}, out(shape)), apply)


def Activation(function: Callable[..., jax.Array]) -> Layer:
    """An elementwise function; those of this library get the network's `rules`."""
    ours = function.__module__.startswith("jaxconv.")
    return _stateless(lambda x, rules: function(x, rules=rules) if ours else function(x), lambda shape: shape)


def _pool(op: Callable[..., Any], window: int | Sequence[int], stride: Any, padding: Any, ceil_mode: bool) -> Layer:
    def out(shape: Shape) -> Shape:
        step = window if stride is None else stride
        geometry = window_geometry(op.__name__, shape[1:-1], window, stride=step, padding=padding)
        geometry = hung_over(op.__name__, geometry, ceil_mode)
        if 0 in geometry.out:
            raise ValueError(
                f"{op.__name__}: the input is too small: spatial {geometry.spatial} leaves nothing for a window of "
                f"{geometry.taps}. Use larger images or another model."
            )
        return (shape[0], *geometry.out, shape[-1])

    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return _stateless(lambda x, rules: op(x, window, rules=rules, **options), out)


def MaxPool(
    window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID", ceil_mode: bool = False
) -> Layer:
    """`jaxconv.max_pool`."""
    return _pool(max_pool, window, stride, padding, ceil_mode)


def AvgPool(
    window: int | Sequence[int], *, stride: Any = None, padding: Any = "VALID", ceil_mode: bool = False
) -> Layer:
    """`jaxconv.avg_pool`."""
    return _pool(avg_pool, window, stride, padding, ceil_mode)


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


def serial(*layers: Layer) -> Layer:
    """One layer after the other; params and state are lists."""

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        params, state = [], []
        for i, layer in enumerate(layers):
            p, s, shape = layer.init(jax.random.fold_in(key, i), shape)
            params.append(p)
            state.append(s)
        return params, state, shape

    def apply(
        params: Params, state: State, x: jax.Array, *, train: bool = False, key: Any = None, rules: Any = "fast"
    ) -> tuple[jax.Array, State]:
        new = []
        for i, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
            own = None if key is None else jax.random.fold_in(key, i)
            x, s = layer.apply(p, s, x, train=train, key=own, rules=rules)
            new.append(s)
        return x, new

    return Layer(init, apply)


def residual(body: Layer, shortcut: Layer | None = None) -> Layer:
    """body(x) + shortcut(x); without a shortcut, + x. δ goes down both ways and adds up."""
    branches = {"body": body, **({} if shortcut is None else {"shortcut": shortcut})}

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        made = {name: b.init(jax.random.fold_in(key, i), shape) for i, (name, b) in enumerate(branches.items())}
        out = made["body"][2]
        other = made["shortcut"][2] if "shortcut" in made else shape
        if out != other:
            raise ValueError(f"residual: the two branches must agree in shape, but {out} != {other}. Add a shortcut.")
        return {n: m[0] for n, m in made.items()}, {n: m[1] for n, m in made.items()}, out

    def apply(
        params: Params, state: State, x: jax.Array, *, train: bool = False, key: Any = None, rules: Any = "fast"
    ) -> tuple[jax.Array, State]:
        total: Any = None if shortcut is not None else x
        new = {}
        for i, (name, branch) in enumerate(branches.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            y, new[name] = branch.apply(params[name], state[name], x, train=train, key=own, rules=rules)
            total = y if total is None else total + y
        return total, new

    return Layer(init, apply)
