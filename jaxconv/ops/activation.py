"""Activations: the derivative is multiplication by σ′(z), which is its own transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.ops.arguments import Rules, boolean, check_rules, floating, number
from jaxconv.ops.binding import Derivative, apply
from jaxconv.windows import widened


def _pointwise(function: Callable[..., jax.Array], slope: Callable[..., jax.Array]) -> Derivative:
    """The derivative of an elementwise function: `slope` is σ′, taking what `function` takes."""

    def primal(static: tuple[Any, ...], z: jax.Array) -> jax.Array:
        return function(widened(z), *static).astype(z.dtype)

    def multiply(static: tuple[Any, ...], z: jax.Array, t: jax.Array) -> jax.Array:
        return widened(t) * slope(widened(z), *static)

    return Derivative(
        primal=primal,
        forward=lambda static, z: (primal(static, z), z),
        tangent=multiply,
        cotangent=lambda static, z, g: (multiply(static, z, g),),
    )


def _one(z: jax.Array, condition: jax.Array) -> jax.Array:
    """1 where `condition` holds, else 0; NaN stays NaN, so that a broken value shows in its gradient."""
    return jnp.where(jnp.isnan(z), z, condition.astype(z.dtype))


def _sigmoid_slope(z: jax.Array) -> jax.Array:
    s = lax.logistic(z)
    return s * lax.logistic(-z)  # 1 − s cancels for large z


def _tanh_slope(z: jax.Array) -> jax.Array:
    return 4 * lax.logistic(2 * z) * lax.logistic(-2 * z)  # 1 − tanh² cancels for large z


def _silu_slope(z: jax.Array) -> jax.Array:
    z = jnp.clip(z, -1e4, 1e4)  # beyond, the slope is 0 or 1 in every dtype; ∞ · 0 would be neither
    s = lax.logistic(z)
    return s + z * s * lax.logistic(-z)


def _gelu_slope(z: jax.Array, approximate: bool) -> jax.Array:
    z = jnp.clip(z, -100, 100)  # beyond, the slope is 0 or 1 in every dtype
    if not approximate:  # Φ(z) + z φ(z)
        return 0.5 * lax.erfc(-z / math.sqrt(2)) + z * jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    c = math.sqrt(2 / math.pi)
    inner, inner_slope = c * (z + 0.044715 * z**3), c * (1 + 3 * 0.044715 * z * z)
    return lax.logistic(2 * inner) + 0.5 * z * _tanh_slope(inner) * inner_slope


_RELU = _pointwise(forward.relu, lambda z: _one(z, z > 0))
_LEAKY_RELU = _pointwise(forward.leaky_relu, lambda z, a: _one(z, z > 0) + a * _one(z, z <= 0))
_RELU6 = _pointwise(forward.relu6, lambda z: _one(z, (z > 0) & (z < 6)))
_ELU = _pointwise(forward.elu, lambda z, a: jnp.where(z > 0, 1, a * jnp.exp(jnp.where(z > 0, 0, z))))
_SIGMOID = _pointwise(forward.sigmoid, _sigmoid_slope)
_TANH = _pointwise(forward.tanh, _tanh_slope)
_SOFTPLUS = _pointwise(forward.softplus, lax.logistic)
_SILU = _pointwise(forward.silu, _silu_slope)
_GELU = _pointwise(forward.gelu, _gelu_slope)


def _activate(name: str, derivative: Derivative, z: ArrayLike, rules: Rules, *static: Any) -> jax.Array:
    check_rules(name, rules)
    return apply(rules, derivative, static, floating(name, "x", z))


def relu(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """max(x, 0), with relu′(x) = 1 for x > 0 and 0 for x ≤ 0; so relu′(0) = 0.

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype. NaN stays NaN.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(lambda x: jaxconv.relu(x).sum())(jnp.array([-1.0, 0.0, 2.0]))
      Array([0., 0., 1.], dtype=float32)

    Source: the ReLU layer of A. Saraswat's article: δ passes where the input is positive.
    """
    return _activate("relu", _RELU, x, rules)


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01, *, rules: Rules = "fast") -> jax.Array:
    """x for x > 0, else negative_slope · x; the derivative at 0 is `negative_slope`.

    Args:
      x: any shape, floating.
      negative_slope: the slope for x ≤ 0.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when an argument is not of its kind.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(lambda x: jaxconv.leaky_relu(x, 0.5).sum())(jnp.array([-1.0, 0.0, 2.0]))
      Array([0.5, 0.5, 1. ], dtype=float32)

    Source: piecewise linear; the kink belongs to the left piece, as for `relu`.
    """
    return _activate("leaky_relu", _LEAKY_RELU, x, rules, number("leaky_relu", "negative_slope", negative_slope))


def relu6(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """min(max(x, 0), 6), with derivative 1 inside (0, 6) and 0 elsewhere, both kinks included.

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.relu6(jnp.array([-1.0, 3.0, 7.0]))
      Array([0., 3., 6.], dtype=float32)

    Source: `relu`, capped.
    """
    return _activate("relu6", _RELU6, x, rules)


def elu(x: ArrayLike, alpha: float = 1.0, *, rules: Rules = "fast") -> jax.Array:
    """x for x > 0, else alpha · (eˣ − 1); the derivative at 0 is `alpha`.

    Args:
      x: any shape, floating.
      alpha: scale of the negative part.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when an argument is not of its kind.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(jaxconv.elu)(0.0)
      Array(1., dtype=float32, weak_type=True)

    Source: elu′(x) = alpha · eˣ on the left, 1 on the right.
    """
    return _activate("elu", _ELU, x, rules, number("elu", "alpha", alpha))


def sigmoid(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """1 / (1 + e⁻ˣ), with derivative σ(x) σ(−x).

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.sigmoid(jnp.zeros(1))
      Array([0.5], dtype=float32)

    Source: σ′ = σ (1 − σ), and 1 − σ(x) = σ(−x).
    """
    return _activate("sigmoid", _SIGMOID, x, rules)


def tanh(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """tanh x, with derivative 1 − tanh² x = 4 σ(2x) σ(−2x).

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.tanh(jnp.zeros(1))
      Array([0.], dtype=float32)

    Source: tanh x = 2 σ(2x) − 1; the product form does not cancel for large x.
    """
    return _activate("tanh", _TANH, x, rules)


def softplus(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """log(1 + eˣ), with derivative σ(x).

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(lambda x: jaxconv.softplus(x).sum())(jnp.array([-1000.0, 0.0, 1000.0]))
      Array([0. , 0.5, 1. ], dtype=float32)

    Source: max(x, 0) + log(1 + e^−|x|), which never overflows.
    """
    return _activate("softplus", _SOFTPLUS, x, rules)


def silu(x: ArrayLike, *, rules: Rules = "fast") -> jax.Array:
    """x · σ(x), with derivative σ(x) + x σ(x) σ(−x).

    Args:
      x: any shape, floating.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(lambda x: jaxconv.silu(x).sum())(jnp.zeros(1))
      Array([0.5], dtype=float32)

    Source: the product rule.
    """
    return _activate("silu", _SILU, x, rules)


def gelu(x: ArrayLike, *, approximate: bool = True, rules: Rules = "fast") -> jax.Array:
    """x · Φ(x), Φ the normal distribution function; with `approximate`, its tanh approximation.

    Args:
      x: any shape, floating.
      approximate: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))) instead of ½ x (1 + erf(x / √2)).
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError: when x is not floating, or `rules` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> jax.grad(lambda x: jaxconv.gelu(x).sum())(jnp.zeros(1))
      Array([0.5], dtype=float32)

    Source: exact, Φ(x) + x φ(x); approximate, the product rule.
    """
    return _activate("gelu", _GELU, x, rules, boolean("gelu", "approximate", approximate))
