"""Dropout: the derivative passes through the mask that was drawn, which is its own transpose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxconv.ops.arguments import Rules, check_rules, floating, number
from jaxconv.ops.binding import linear, linear_pair


def _drop(x: jax.Array, mask: jax.Array, static: float) -> jax.Array:
    """`static` is the share that is kept."""
    return jnp.where(mask, x / jnp.asarray(static, x.dtype), 0)


_DROPOUT = linear_pair("dropout", _drop, _drop)


def check_rate(function: str, rate: Any) -> float:
    rate = number(function, "rate", rate)
    if not 0 <= rate < 1:
        raise ValueError(f"{function}: rate must satisfy 0 <= rate < 1, but is {rate:g}.")
    return rate


def _check_key(function: str, key: Any) -> None:
    """One key, of the new kind or of the old (two words of 32 bits)."""
    new = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim == 1
    if not (old or new):
        raise TypeError(f"{function}: key must be a jax.random key, but is {key!r}. Make one: jax.random.key(seed).")
    if new and key.ndim:
        raise ValueError(f"{function}: key must be one key, but has shape {key.shape}. Take one of them, or vmap.")


def dropout(x: ArrayLike, rate: float, key: jax.Array, *, rules: Rules = "fast") -> jax.Array:
    """Set each element to 0 with probability `rate` and divide the others by 1 − rate.

    The gradient passes through the same mask. For inference, do not call it.

    Args:
      x: any shape, floating.
      rate: probability of dropping, 0 ≤ rate < 1.
      key: a `jax.random` key; the same key draws the same mask.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype, with x's expectation.

    Raises:
      ValueError, TypeError: when the rate is not a probability or the key is not a key.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> sorted(set(jaxconv.dropout(jnp.ones(100), 0.5, jax.random.key(0)).tolist()))
      [0.0, 2.0]

    Source: multiplication by a constant diagonal matrix, its own transpose.
    """
    function = "dropout"
    x = floating(function, "x", x)
    check_rules(function, rules)
    rate = check_rate(function, rate)
    _check_key(function, key)
    if rate == 0:
        return x
    mask = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)
    return linear(rules, _DROPOUT, 1 - rate, x, mask)
