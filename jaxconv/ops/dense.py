"""Dense layers and dropout. A dense layer is a convolution without spatial axes, and uses the same trio."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.geometry import Geometry, Layout
from jaxconv.ops.arguments import Rules, check_bias, check_kernel_rules, check_rules, floating, number, same_dtype
from jaxconv.ops.binding import Rule, apply
from jaxconv.ops.conv import add_bias, convolve

# T(x, w, g) = Σ_{n,c,o} g[n, o] · x[n, c] · w[c, o]: the trilinear form with no positions and one tap.
_PRODUCT = Geometry((), (), (), (), (), (), 1, Layout.of("NHWC", 0))


def dense(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    rules: Rules = "fast",
    precision: Any = None,
) -> jax.Array:
    """A matrix product with the last axis: y[..., o] = Σ_c x[..., c] · w[c, o] + b[o].

    The gradients are products too: dx = δ wᵀ, dw = xᵀ δ, db = Σ δ.

    Args:
      x: (..., c); floating.
      w: (c, o), of x's dtype.
      b: (o,), or None.
      rules: "fast", "textbook", "rotated", "autodiff" or a `ConvRules`, which sees a geometry of rank 0.
      precision: as in `jax.lax.dot`.

    Returns:
      y: (..., o), in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x, w = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> jax.grad(lambda w: jaxconv.dense(x, w)[0, 1])(w)
      Array([[0., 1.],
             [0., 2.]], dtype=float32)

    Source: the trio of `jaxconv.primitives` at spatial rank 0.
    """
    function = "dense"
    x, w = floating(function, "x", x), floating(function, "w", w)
    same_dtype(function, x=x, w=w)
    rules = check_kernel_rules(function, rules)
    if w.ndim != 2:
        raise ValueError(f"{function}: w must be a (c, o) matrix, but w.shape = {w.shape} has {w.ndim} != 2 axes.")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{function}: x.shape[-1] must equal w.shape[0], but x.shape = {x.shape} and w.shape = {w.shape}. "
            "Did you forget to flatten? x.reshape(x.shape[0], -1)."
        )
    b = None if b is None else check_bias(function, b, w.shape[1], x)
    if rules == "autodiff":
        y = forward.dense(x, w, precision=precision)
        return y if b is None else y + forward.bias(b, y.shape, y.ndim - 1)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = convolve(rows, w, _PRODUCT, rules, "auto", precision)
    y = y if b is None else add_bias(y, b, 1, rules)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _drop(keep: float, x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)


_DROPOUT = Rule(
    primal=_drop,
    forward=lambda keep, x, mask: (_drop(keep, x, mask), mask),
    tangent=lambda keep, mask, t, _: _drop(keep, t, mask),
    cotangent=lambda keep, mask, g: (_drop(keep, g, mask), None),
)


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


def dropout(x: ArrayLike, rate: float, key: jax.Array, *, rules: str = "fast") -> jax.Array:
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
    return apply(rules, _DROPOUT, 1 - rate, x, mask)
