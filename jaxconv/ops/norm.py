"""Layer, RMS, group and instance normalisation, which keep no statistics."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

from jaxconv.geometry import Layout, check_layout, integer, spatial_rank
from jaxconv.ops.arguments import Rules, check_rules, floating
from jaxconv.ops.standardise import Over, check_eps, check_nonempty, normalise, scale_and_bias


def _channel_axis(function: str, x: jax.Array, axis: Any) -> int:
    axis = integer(function, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis must name an axis of x, but {axis} is not in [{-x.ndim}, {x.ndim}).")
    return axis % x.ndim


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    rules: Rules = "fast",
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

    Source: the projection of `jaxconv.ops.standardise`.
    """
    return _channel_norm("layer_norm", x, scale, bias, eps, axis, rules, centred=True)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    rules: Rules = "fast",
) -> jax.Array:
    """Divide by the root mean square over the channels, each position on its own, then scale and shift.

    Args, Returns and Raises are those of `layer_norm`; there is no mean to subtract.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.rms_norm(jnp.array([3.0, 3.0]), eps=0)
      Array([1., 1.], dtype=float32)

    Source: the projection of `jaxconv.ops.standardise` without its 1.
    """
    return _channel_norm("rms_norm", x, scale, bias, eps, axis, rules, centred=False)


def _channel_norm(
    function: str, x: Any, scale: Any, bias: Any, eps: Any, axis: Any, rules: Any, centred: bool
) -> jax.Array:
    x = floating(function, "x", x)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    channel = _channel_axis(function, x, axis)
    check_nonempty(function, x.shape, (channel,))
    parameters = scale_and_bias(function, x, channel, scale, bias)
    return normalise(x, Over((channel,), eps, centred), parameters, rules)


def group_norm(
    x: ArrayLike,
    groups: int,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "NHWC",
    rules: Rules = "fast",
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

    Source: the projection of `jaxconv.ops.standardise`.
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
    check_nonempty(function, split, axes)
    parameters = scale_and_bias(function, x, channel, scale, bias)
    if parameters is not None:
        each = [1] * len(split)
        each[channel : channel + 2] = split[channel : channel + 2]
        parameters = parameters[0].reshape(each), parameters[1].reshape(each)
    return normalise(x.reshape(split), Over(axes, eps), parameters, rules).reshape(x.shape)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """Standardise each channel of each example over its positions, then scale and shift.

    Args, Returns and Raises are those of `group_norm`, with as many groups as channels.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.instance_norm(jnp.array([1.0, 3.0]).reshape(1, 2, 1), eps=0)[0, :, 0]
      Array([-1.,  1.], dtype=float32)

    Source: the projection of `jaxconv.ops.standardise`.
    """
    function = "instance_norm"
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    check_rules(function, rules)
    eps = check_eps(function, eps)
    place = Layout.of(layout, spatial_rank(function, "x", x.shape, layout))
    check_nonempty(function, x.shape, place.x[2:])
    parameters = scale_and_bias(function, x, place.x[1], scale, bias)
    return normalise(x, Over(place.x[2:], eps), parameters, rules)
