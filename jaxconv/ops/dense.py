"""Dense layers. A dense layer is a convolution without spatial axes, and uses the same trio."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.geometry import Geometry, Layout
from jaxconv.ops.arguments import Rules, check_bias, check_kernel_rules, floating, same_dtype
from jaxconv.ops.conv import add_bias, convolve
from jaxconv.ops.plan import Plan, planned

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
    y = product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), w, rules, precision=precision)
    y = y if b is None else add_bias(y, b, 1, rules)
    return y.reshape(*x.shape[:-1], w.shape[1])


def product(
    x: jax.Array, w: jax.Array, rules: Rules, *, engine: str = "auto", precision: Any = None, dtype: Any = None
) -> jax.Array:
    """A matrix product x w whose gradients are those of `rules`."""
    return convolve(x, w, _PRODUCT, rules, engine, precision, dtype)


def product_chosen(
    shape: tuple[int, int, int], rules: Rules, engine: str, platform: str, dtype: Any, result: Any
) -> Plan:
    """What computes the maps of a product of (rows, depth) and (depth, columns), as `product` binds it."""
    rows, depth, columns = shape
    return planned(_PRODUCT, (rows, depth, columns), rules, engine, platform, dtype, result)
