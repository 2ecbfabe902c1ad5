"""What networks are made of, in plain `lax` and `jax.numpy`, as users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dense(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return x @ w + b


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def conv(stride: int = 1, padding: str = "SAME", groups: int = 1, dilation: int = 1) -> Callable[..., jax.Array]:
    """NHWC, HWIO."""

    def apply(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (stride,) * 2, padding, rhs_dilation=(dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    return apply


def add_bias(x: jax.Array, b: jax.Array) -> jax.Array:
    return x + b


def max_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def avg_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def global_avg_pool(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


Statistic = Callable[[jax.Array], jax.Array]


def standardise(x: jax.Array, axes: Any, mean: Statistic = lambda m: m, var: Statistic = lambda v: v) -> jax.Array:
    """(x − mean) / σ; `mean` and `var` see the statistics on their way in."""
    centre = mean(x.mean(axes, keepdims=True))
    return (x - centre) * lax.rsqrt(var(x.var(axes, keepdims=True)) + 1e-5)


def norm(axes: Any, **statistics: Statistic) -> Callable[..., jax.Array]:
    """Layer norm over (-1,), batch norm over all axes but the last, instance norm over (1, 2)."""
    return lambda x, scale, bias: standardise(x, axes, **statistics) * scale + bias


def group_norm(groups: int) -> Callable[..., jax.Array]:
    def apply(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        split = x.reshape(*x.shape[:3], groups, -1)
        return standardise(split, (1, 2, 4)).reshape(x.shape) * scale + bias

    return apply


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


def softmax(x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x, -1)


# Losses: of outputs and targets


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1))


def squared_error(y: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean((y - t) ** 2)


def total(y: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sum(y * t)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross-entropy": cross_entropy,
    "mse": squared_error,
    "sum": total,
}

ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    name: getattr(jax.nn, name)
    for name in ("relu", "tanh", "gelu", "silu", "sigmoid", "softplus", "elu", "leaky_relu", "relu6", "mish")
}
