"""The primal mathematics, through `jax.lax` alone and without a single gradient rule.

Plain automatic differentiation of these functions is the oracle (`rules="autodiff"`), so nothing here may
carry a rule of its own: no `custom_vjp`, no `custom_jvp`, no `jax.nn` function that hides one. Where a
function has a kink, it is written so that JAX's derivative at the kink is the documented one.

Shapes are already validated and resolved: see `geometry.Geometry`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.geometry import Geometry
from jaxconv.windows import accumulator, padded, tap_slice, taps, widened, window_counts

# Bound once, for all files: somebody may put this library's drop-in where `lax` keeps its own.
conv_general_dilated = lax.conv_general_dilated


# Convolution


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """y[n, p, o] = Σ_{k, c} x[n, s·p + d·k − lo, c] · w[k, c, o]."""
    layout = geometry.layout
    if geometry.flip_kernel:
        w = lax.rev(w, layout.w[2:])
    return conv_general_dilated(
        x,
        w,
        window_strides=geometry.stride,
        padding=geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(layout.x, layout.w, layout.y),
        feature_group_count=geometry.groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any = None) -> jax.Array:
    """The transpose of `conv` in its input, as JAX itself derives it. Also the transposed convolution."""
    layout = geometry.layout
    shape = geometry.x_shape(g.shape[layout.y[0]], w.shape[layout.w[1]] * geometry.groups)
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    (dx,) = jax.linear_transpose(lambda x: conv(x, w, geometry, precision=precision), x)(g)
    return dx


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, *, precision: Any = None) -> jax.Array:
    """The transpose of `conv` in its kernel, as JAX itself derives it."""
    layout = geometry.layout
    shape = geometry.w_shape(x.shape[layout.x[1]] // geometry.groups, g.shape[layout.y[1]])
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    (dw,) = jax.linear_transpose(lambda w: conv(x, w, geometry, precision=precision), w)(g)
    return dw


def bias(b: jax.Array, shape: Sequence[int], channel: int) -> jax.Array:
    """b[o] at every example and position."""
    return lax.broadcast_in_dim(b, shape, (channel,))


def dense(x: jax.Array, w: jax.Array, *, precision: Any = None) -> jax.Array:
    """y[..., o] = Σ_c x[..., c] · w[c, o]."""
    return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


# Windows


def reduce_window(x: jax.Array, geometry: Geometry, fill: Any, op: Any) -> jax.Array:
    def full(values: Sequence[Any], rest: Any) -> tuple[Any, ...]:
        result = [rest] * x.ndim
        for axis, value in zip(geometry.layout.x[2:], values, strict=True):
            result[axis] = value
        return tuple(result)

    return lax.reduce_window(
        x,
        fill,
        op,
        window_dimensions=full(geometry.taps, 1),
        window_strides=full(geometry.stride, 1),
        padding=full(geometry.padding, (0, 0)),
        window_dilation=full(geometry.dilation, 1),
    )


def max_pool(x: jax.Array, geometry: Geometry) -> jax.Array:
    """y[n, p, c] = max_k x[n, s·p + d·k − lo, c]; padding is −∞."""
    if max(geometry.dilation) > 1 or any(lo < 0 or hi < 0 for lo, hi in geometry.padding):
        # JAX has no gradient for a dilated or cropping reduce_window.
        read = padded(x, geometry, -np.inf)
        first, *rest = (tap_slice(read, tap, geometry) for tap in taps(geometry))
        return functools.reduce(lambda a, b: jnp.where((b > a) | (jnp.isnan(b) & ~jnp.isnan(a)), b, a), rest, first)
    return reduce_window(x, geometry, np.asarray(-np.inf, x.dtype), lax.max)


def window_sum(x: jax.Array, geometry: Geometry) -> jax.Array:
    """y[n, p, c] = Σ_k x[n, s·p + d·k − lo, c]."""
    return reduce_window(widened(x), geometry, np.asarray(0, accumulator(x.dtype)), lax.add).astype(x.dtype)


def avg_pool(x: jax.Array, geometry: Geometry, counted: tuple[tuple[int, int], ...]) -> jax.Array:
    """The mean of each window; 0 where there is nothing to count."""
    count = np.maximum(window_counts(geometry, counted), 1).astype(accumulator(x.dtype))
    return (window_sum(widened(x), geometry) / count).astype(x.dtype)


def lp_pool(x: jax.Array, geometry: Geometry, p: float) -> jax.Array:
    """(Σ |x|^p)^(1/p) over each window, with gradient 0 where the window is all zero."""
    z = widened(x)
    nonzero = z != 0
    total = window_sum(jnp.where(nonzero, jnp.abs(jnp.where(nonzero, z, 1)) ** p, 0), geometry)
    empty = total == 0
    return jnp.where(empty, 0, jnp.where(empty, 1, total) ** (1 / p)).astype(x.dtype)


def global_avg_pool(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return widened(x).mean(axes).astype(x.dtype)


def pad(x: jax.Array, widths: tuple[tuple[int, int], ...], mode: str) -> jax.Array:
    """x with a border of zeros or of its own elements; negative widths crop."""
    if mode == "zero":
        return lax.pad(x, jnp.zeros((), x.dtype), [(lo, hi, 0) for lo, hi in widths])
    grown = [(max(lo, 0), max(hi, 0)) for lo, hi in widths]
    y = jnp.pad(x, grown, mode={"circular": "wrap"}.get(mode, mode))
    return lax.pad(y, jnp.zeros((), x.dtype), [(min(lo, 0), min(hi, 0), 0) for lo, hi in widths])


# Activations. `where` rather than max and abs, so that automatic derivatives at 0 are the stated ones.


def relu(z: jax.Array) -> jax.Array:
    return jnp.where(z > 0, z, jnp.where(jnp.isnan(z), z, 0))


def leaky_relu(z: jax.Array, negative_slope: float) -> jax.Array:
    return jnp.where(z > 0, z, negative_slope * z)


def relu6(z: jax.Array) -> jax.Array:
    return jnp.where((z > 0) & (z < 6), z, jnp.where(jnp.isnan(z), z, jnp.where(z > 0, 6, 0)))


def elu(z: jax.Array, alpha: float) -> jax.Array:
    return jnp.where(z > 0, z, alpha * jnp.expm1(jnp.where(z > 0, 0, z)))


def sigmoid(z: jax.Array) -> jax.Array:
    return lax.logistic(z)


def tanh(z: jax.Array) -> jax.Array:
    return lax.tanh(z)


def softplus(z: jax.Array) -> jax.Array:
    return jnp.where(z > 0, z, 0) + jnp.log1p(jnp.exp(jnp.where(z > 0, -z, z)))


def _gated(z: jax.Array, gate: Callable[[jax.Array], jax.Array], bound: float) -> jax.Array:
    """z · gate(z), which beyond `bound` is 0 or z in every dtype, where 0 · ∞ would be neither."""
    inside = jnp.abs(z) < bound
    lively = jnp.where(inside, z, 0)
    return jnp.where(inside, lively * gate(lively), jnp.where(z < 0, 0, z))


def silu(z: jax.Array) -> jax.Array:
    return _gated(z, lax.logistic, 1e4)


def gelu(z: jax.Array, approximate: bool) -> jax.Array:
    # σ(2u) = ½ (1 + tanh u) and ½ erfc(−u) = ½ (1 + erf u), without the cancellation in the lower tail.
    if approximate:
        return _gated(z, lambda z: lax.logistic(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)), 100)
    return _gated(z, lambda z: 0.5 * lax.erfc(-z / math.sqrt(2)), 100)


# Normalisation


def mean(x: jax.Array, axes: tuple[int, ...], axis_name: Any = None) -> jax.Array:
    """The mean over `axes`, kept as size 1, and over the devices of `axis_name`."""
    local = x.mean(axes, keepdims=True)
    return local if axis_name is None else lax.pmean(local, axis_name)


def inverse_root(square: jax.Array) -> jax.Array:
    """1 / √square, and 0 at 0: where nothing varies, x̂ = 0/0 is 0."""
    none = square == 0
    return jnp.where(none, 0, lax.rsqrt(jnp.where(none, 1, square)))


def standardise(x: jax.Array, axes: tuple[int, ...], eps: float, centred: bool, axis_name: Any = None) -> jax.Array:
    """(x − μ) / √(variance + eps); without `centred`, x / √(mean square + eps). Biased variance."""
    if centred:
        x = x - mean(x, axes, axis_name)
    return x * inverse_root(mean(x * x, axes, axis_name) + eps)


def affine(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """x · scale + shift, with scale and shift shaped to broadcast against x."""
    return x * scale + shift


# Losses


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_c t_c log softmax(z)_c over the last axis; classes masked by z_c = −∞ take no part, not even if all are."""
    present = ~jnp.isneginf(logits)
    peak = lax.stop_gradient(logits.max(-1, keepdims=True))
    shifted = jnp.where(present, logits - peak, 0)
    total = jnp.sum(jnp.where(present, jnp.exp(shifted), 0), -1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    impossible = jnp.where(~present & (targets != 0), jnp.asarray(jnp.inf, logits.dtype), 0)
    return jnp.sum(jnp.where(present, targets * (jnp.log(total) - shifted), impossible), -1)


def mean_squared_error(predictions: jax.Array, targets: jax.Array, count: jax.Array) -> jax.Array:
    return jnp.sum((predictions - targets) ** 2) / count
