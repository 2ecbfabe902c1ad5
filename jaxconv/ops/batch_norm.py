"""Batch normalisation: what is standardised over the batch in training has running statistics for inference.

They are explicit state. The gradient is that of `jaxconv.ops.standardise`; in inference the layer is affine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike

from jaxconv.forward import inverse_root, mean
from jaxconv.geometry import Layout, check_layout, spatial_rank
from jaxconv.ops.arguments import Rules, boolean, check_rules, floating, number
from jaxconv.ops.standardise import Over, affine, check_eps, check_nonempty, normalise, scale_and_bias
from jaxconv.windows import accumulator, widened


def check_momentum(function: str, momentum: Any) -> float:
    momentum = number(function, "momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"{function}: momentum must satisfy 0 <= momentum <= 1, but is {momentum:g}.")
    return momentum


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
    rules: Rules = "fast",
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

    Source: the projection of `jaxconv.ops.standardise`.
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
    running = _checked(function, state, x.shape[channel])
    if train:
        check_nonempty(function, x.shape, axes)
    parameters = scale_and_bias(function, x, channel, scale, bias)
    if not train:
        y = affine(affine(widened(x), _at_rest(running, eps, channel, x), rules), parameters, rules)
        return y.astype(x.dtype), {name: lax.stop_gradient(value) for name, value in running.items()}
    y = normalise(x, Over(axes, eps, True, axis_name), parameters, rules)
    return y, _moved(running, lax.stop_gradient(widened(x)), axes, axis_name, momentum)


def _checked(function: str, state: Any, channels: int) -> dict[str, jax.Array]:
    """The running statistics as arrays."""
    if not isinstance(state, Mapping) or set(state) != {"mean", "var"}:
        keys = sorted(state) if isinstance(state, Mapping) else state
        raise ValueError(f'{function}: state must be {{"mean": (c,), "var": (c,)}}, but has {keys}.')
    running = {name: floating(function, f'state["{name}"]', state[name]) for name in ("mean", "var")}
    for name, value in running.items():
        if value.shape != (channels,):
            raise ValueError(
                f'{function}: state["{name}"] must hold one number per channel, '
                f"but its shape {value.shape} != ({channels},)."
            )
    return running


def _at_rest(running: dict[str, jax.Array], eps: float, channel: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1/σ and −μ/σ of the running statistics, shaped to broadcast against x and in the dtype of its sums."""
    inverse = inverse_root(widened(running["var"]) + eps)
    shape, dtype = [1] * x.ndim, accumulator(x.dtype)
    shape[channel] = x.shape[channel]
    shift = -widened(running["mean"]) * inverse
    return inverse.reshape(shape).astype(dtype), shift.reshape(shape).astype(dtype)


def _moved(
    running: dict[str, jax.Array], x: jax.Array, axes: tuple[int, ...], axis_name: Any, momentum: float
) -> dict[str, jax.Array]:
    """The running statistics, moved towards those of x; no gradient flows through them."""
    mu = mean(x, axes, axis_name)
    batch = {"mean": mu.ravel(), "var": mean((x - mu) ** 2, axes, axis_name).ravel()}
    return {
        name: (momentum * lax.stop_gradient(old) + (1 - momentum) * batch[name].astype(old.dtype)).astype(old.dtype)
        for name, old in running.items()
    }
