"""Normalisation: the derivative of a standardisation is one symmetric matrix, hence its own transpose.

With m elements standardised together, x̂ = (x − μ) / σ and σ² = variance + ε,

    ∂x̂/∂x = (1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m)

The 1 belongs to the mean and the x̂ to the variance; RMS normalisation has no mean and so no 1. Symmetric
means that the tangent map and the backward pass are the same line of code. Batch, layer, group and instance
normalisation differ in which axes they standardise over, and in nothing else. Where σ = 0, which only ε = 0
allows (in the dtype of the statistics), nothing varies: x̂ is 0 there, not 0/0, and passes no gradient.

Source: the batch-normalisation gradient of Ioffe and Szegedy (2015), collected into one projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.forward import accumulator, inverse_root, mean, wide
from jaxconv.geometry import Layout, check_layout, integer, spatial_rank
from jaxconv.ops.arguments import boolean, check_rules, floating, number, same_dtype
from jaxconv.ops.binding import Rule, apply


class _Over(NamedTuple):
    """What is standardised together."""

    axes: tuple[int, ...]
    eps: float
    centred: bool = True
    axis_name: Any = None


def _standardise(over: _Over, x: jax.Array) -> jax.Array:
    return forward.standardise(wide(x), *over).astype(x.dtype)


def _remember(over: _Over, x: jax.Array) -> Any:
    z = wide(x)
    if over.centred:
        z = z - mean(z, over.axes, over.axis_name)
    inverse = inverse_root(mean(z * z, over.axes, over.axis_name) + over.eps)
    normal = z * inverse
    return normal.astype(x.dtype), (normal, inverse)


def _project(over: _Over, saved: Any, t: jax.Array) -> jax.Array:
    """(1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m) t."""
    normal, inverse = saved
    t = wide(t)
    along_one = mean(t, over.axes, over.axis_name) if over.centred else 0
    along_normal = normal * mean(normal * t, over.axes, over.axis_name)
    return inverse * (t - along_one - along_normal)


_STANDARDISE = Rule(
    primal=_standardise,
    forward=_remember,
    tangent=_project,
    cotangent=lambda over, saved, g: (_project(over, saved, g),),
)


def _affine(_: None, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return forward.affine(wide(x), wide(scale), wide(shift)).astype(x.dtype)


def _affine_tangent(_: None, saved: Any, dx: Any, dscale: Any, dshift: Any) -> jax.Array:
    x, scale = saved
    parts = [
        None if dx is None else wide(dx) * wide(scale),
        None if dscale is None else wide(x) * wide(dscale),
        None if dshift is None else jnp.broadcast_to(wide(dshift), x.shape),
    ]
    total = None
    for part in parts:
        total = part if total is None else total if part is None else total + part
    assert total is not None  # a derivative is asked for only if some tangent is not zero
    return total


def _affine_cotangent(_: None, saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    """dx = g · scale; dscale = Σ g · x and dshift = Σ g over all that share one scale."""
    x, scale = saved
    g = wide(g)
    shared = tuple(axis for axis, n in enumerate(scale.shape) if n == 1)
    return g * wide(scale), (g * wide(x)).sum(shared, keepdims=True), g.sum(shared, keepdims=True)


_AFFINE = Rule(
    primal=_affine,
    forward=lambda _, x, scale, shift: (_affine(None, x, scale, shift), (x, scale)),
    tangent=_affine_tangent,
    cotangent=_affine_cotangent,
)


def check_eps(function: str, eps: Any) -> float:
    eps = number(function, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{function}: eps must be at least 0, but {eps} < 0.")
    return eps


def check_momentum(function: str, momentum: Any) -> float:
    momentum = number(function, "momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"{function}: momentum must satisfy 0 <= momentum <= 1, but is {momentum:g}.")
    return momentum


def _check_nonempty(function: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    if any(shape[axis] == 0 for axis in axes):
        raise ValueError(f"{function}: there is nothing to normalise over: axes {axes} of x.shape = {shape}.")


def _parameters(
    function: str, x: jax.Array, channel: int, scale: Any, bias: Any, rules: str
) -> tuple[jax.Array, jax.Array] | None:
    """scale and bias, validated and shaped to broadcast; a missing one is its neutral element."""
    shape = [1] * x.ndim
    shape[channel] = x.shape[channel]
    given = {}
    for name, value in (("scale", scale), ("bias", bias)):
        if value is None:
            continue
        value = floating(function, name, value)
        if value.shape != (x.shape[channel],):
            raise ValueError(
                f"{function}: {name} must hold one number per channel, "
                f"but {name}.shape = {value.shape} != ({x.shape[channel]},)."
            )
        if accumulator(value.dtype) != accumulator(x.dtype):
            raise TypeError(
                f"{function}: {name}.dtype must be x.dtype or {jnp.dtype(accumulator(x.dtype))}, "
                f"but {value.dtype} does not go with {x.dtype}. Convert it: {name}.astype(x.dtype)."
            )
        given[name] = value.reshape(shape)
    if not given:
        return None
    dtype = next(iter(given.values())).dtype
    if len(given) == 2:
        same_dtype(function, **given)
    return given.get("scale", jnp.ones(shape, dtype)), given.get("bias", jnp.zeros(shape, dtype))


def _normalise(function: str, x: jax.Array, channel: int, over: _Over, scale: Any, bias: Any, rules: str) -> jax.Array:
    parameters = _parameters(function, x, channel, scale, bias, rules)
    y = apply(rules, _STANDARDISE, over, x)
    return y if parameters is None else apply(rules, _AFFINE, None, y, *parameters)


def _channel_axis(function: str, x: jax.Array, axis: Any) -> int:
    axis = integer(function, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis must name an axis of x, but {axis} is not in [{-x.ndim}, {x.ndim}).")
    return axis % x.ndim


def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    state: Mapping[str, jax.Array],
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
    axis_name: Any = None,
    layout: str = "NHWC",
    rules: str = "fast",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Standardise each channel over batch and positions; running statistics are explicit state.

    y = (x − μ) / √(variance + eps) · scale + bias

    In training μ and the (biased) variance are the batch's, and δ flows through both. In inference they are
    the state's constants, and the layer is affine.

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`, or (n, c); floating.
      scale, bias: (c,), or None for 1 and 0.
      state: {"mean": (c,), "var": (c,)}, floating, float32 or wider; start with zeros and ones.
      train: whether to use and record the batch's statistics.
      momentum: running ← momentum · running + (1 − momentum) · batch.
      eps: added to the variance.
      axis_name: mesh or vmap axes whose devices share their statistics ("synchronised" batch norm).
      layout: "NHWC" or "NCHW".
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      (y, state): y in x's dtype, and the new state, through which no gradient flows.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, state = jnp.array([[1.0], [3.0]]), {"mean": jnp.zeros(1), "var": jnp.ones(1)}
      >>> y, state = jaxconv.batch_norm(x, jnp.ones(1), jnp.zeros(1), state, train=True, eps=0)
      >>> y[:, 0], state["mean"]
      (Array([-1.,  1.], dtype=float32), Array([0.2], dtype=float32))

    Source: see the module's head for the gradient.
    """
    function = "batch_norm"
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    train, momentum = boolean(function, "train", train), check_momentum(function, momentum)
    rank = spatial_rank(function, "x", x.shape, layout, least=0)
    channel = Layout.of(layout, rank).x[1]
    axes = tuple(axis for axis in range(x.ndim) if axis != channel)
    if not isinstance(state, Mapping) or set(state) != {"mean", "var"}:
        keys = sorted(state) if isinstance(state, Mapping) else state
        raise ValueError(f'{function}: state must be {{"mean": (c,), "var": (c,)}}, but has {keys}.')
    running = {name: floating(function, f'state["{name}"]', state[name]) for name in ("mean", "var")}
    for name, value in running.items():
        if value.shape != (x.shape[channel],):
            raise ValueError(
                f'{function}: state["{name}"] must hold one number per channel, '
                f"but its shape {value.shape} != ({x.shape[channel]},)."
            )
    if not train:
        shape = [1] * x.ndim
        shape[channel] = x.shape[channel]
        inverse = inverse_root(wide(running["var"]) + eps)
        z = wide(x)
        parameters = _parameters(function, x, channel, scale, bias, rules)
        shift = (-wide(running["mean"]) * inverse).reshape(shape).astype(z.dtype)
        y = apply(rules, _AFFINE, None, z, inverse.reshape(shape).astype(z.dtype), shift)
        if parameters is not None:
            y = apply(rules, _AFFINE, None, y, *parameters)
        return y.astype(x.dtype), {name: lax.stop_gradient(value) for name, value in running.items()}
    _check_nonempty(function, x.shape, axes)
    y = _normalise(function, x, channel, _Over(axes, eps, True, axis_name), scale, bias, rules)
    z = lax.stop_gradient(wide(x))
    mu = mean(z, axes, axis_name)
    batch = {"mean": mu.ravel(), "var": mean((z - mu) ** 2, axes, axis_name).ravel()}
    new = {
        name: (momentum * lax.stop_gradient(old) + (1 - momentum) * batch[name].astype(old.dtype)).astype(old.dtype)
        for name, old in running.items()
    }
    return y, new


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    rules: str = "fast",
) -> jax.Array:
    """Standardise over the channels, each position on its own, then scale and shift.

    Args:
      x: any shape of at least one axis; floating.
      scale, bias: (c,), or None.
      eps: added to the variance.
      axis: the channel axis; 1 for NCHW.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype; statistics are float32 or wider.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.layer_norm(jnp.array([1.0, 3.0]), eps=0)
      Array([-1.,  1.], dtype=float32)

    Source: see the module's head for the gradient.
    """
    return _channel_norm("layer_norm", x, scale, bias, eps, axis, rules, centred=True)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    rules: str = "fast",
) -> jax.Array:
    """Divide by the root mean square over the channels, each position on its own, then scale and shift.

    Args, Returns and Raises are those of `layer_norm`; there is no mean to subtract.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.rms_norm(jnp.array([3.0, 3.0]), eps=0)
      Array([1., 1.], dtype=float32)

    Source: the projection of the module's head without its 1.
    """
    return _channel_norm("rms_norm", x, scale, bias, eps, axis, rules, centred=False)


def _channel_norm(
    function: str, x: Any, scale: Any, bias: Any, eps: Any, axis: Any, rules: Any, centred: bool
) -> jax.Array:
    x = floating(function, "x", x)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    channel = _channel_axis(function, x, axis)
    _check_nonempty(function, x.shape, (channel,))
    return _normalise(function, x, channel, _Over((channel,), eps, centred), scale, bias, rules)


def group_norm(
    x: ArrayLike,
    groups: int,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "NHWC",
    rules: str = "fast",
) -> jax.Array:
    """Standardise each group of channels of each example over its positions, then scale and shift.

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      groups: how many groups; must divide c.
      scale, bias: (c,), or None.
      eps: added to the variance.
      layout: "NHWC" or "NCHW".
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype; statistics are float32 or wider.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.group_norm(jnp.array([[[1.0, 3.0, 5.0, 7.0]]]), 2, eps=0)[0, 0]
      Array([-1.,  1., -1.,  1.], dtype=float32)

    Source: see the module's head for the gradient.
    """
    function = "group_norm"
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    rank = spatial_rank(function, "x", x.shape, layout)
    groups = integer(function, "groups", groups, 1)
    channel = Layout.of(layout, rank).x[1]
    size = x.shape[channel]
    if size % groups:
        raise ValueError(
            f"{function}: groups must divide the channels, but {size} % {groups} = {size % groups} (x is {layout})."
        )
    split = (*x.shape[:channel], groups, size // groups, *x.shape[channel + 1 :])
    axes = tuple(axis for axis in range(1, x.ndim + 1) if axis != channel)
    _check_nonempty(function, split, axes)
    parameters = _parameters(function, x, channel, scale, bias, rules)
    y = apply(rules, _STANDARDISE, _Over(axes, eps), x.reshape(split)).reshape(x.shape)
    return y if parameters is None else apply(rules, _AFFINE, None, y, *parameters)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "NHWC",
    rules: str = "fast",
) -> jax.Array:
    """Standardise each channel of each example over its positions, then scale and shift.

    Args, Returns and Raises are those of `group_norm`, with as many groups as channels.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.instance_norm(jnp.array([1.0, 3.0]).reshape(1, 2, 1), eps=0)[0, :, 0]
      Array([-1.,  1.], dtype=float32)

    Source: see the module's head for the gradient.
    """
    function = "instance_norm"
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    place = Layout.of(layout, spatial_rank(function, "x", x.shape, layout))
    _check_nonempty(function, x.shape, place.x[2:])
    return _normalise(function, x, place.x[1], _Over(place.x[2:], eps), scale, bias, rules)
