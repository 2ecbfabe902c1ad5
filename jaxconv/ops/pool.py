"""Average, p-norm and global pooling: sums over windows, and δ spread back over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxconv import forward, primitives
from jaxconv.engines.onednn.windows import average, window
from jaxconv.geometry import Geometry, Layout, check_layout, hung_over, spatial_rank, window_geometry
from jaxconv.ops.arguments import Rules, boolean, check_rules, floating, number
from jaxconv.ops.binding import Derivative, apply, linear
from jaxconv.windows import accumulator, from_tiles, per_tile, tap_shape, tiles, widened, window_counts

# Sums over windows


def _window_sum(x: jax.Array, static: Geometry) -> jax.Array:
    return forward.window_sum(x, static)


def _spread(g: jax.Array, static: Geometry) -> jax.Array:
    """The transpose of a window sum: the full window sum of the dilated δ; side by side, each δ all over its window."""
    if tiles(static):
        each = per_tile(g, static)
        return from_tiles(jnp.broadcast_to(each, np.broadcast_shapes(each.shape, tap_shape(static))), static)
    config = [(0, 0, 0)] * g.ndim
    for axis, a in zip(static.layout.y[2:], static.axes, strict=True):
        # Without an output there is nothing to spread: the padding alone makes up the input.
        lo, hi = a.input_grad_padding if a.out else (a.span - 1, a.n)
        config[axis] = (lo, hi, a.stride - 1)
    padded = lax.pad(widened(g), jnp.zeros((), accumulator(g.dtype)), config)
    window, dilation = [1] * g.ndim, [1] * g.ndim
    for axis, a in zip(static.layout.y[2:], static.axes, strict=True):
        window[axis], dilation[axis] = a.k, a.dilation
    zero = np.zeros((), padded.dtype)
    spread = lax.reduce_window(padded, zero, lax.add, window, [1] * g.ndim, "VALID", window_dilation=dilation)
    return spread.astype(g.dtype)


WINDOW_SUM = primitives.linear_pair(
    "window_sum", _window_sum, _spread, native=(functools.partial(window, "sum"), functools.partial(window, "spread"))
)


_Average = tuple[Geometry, tuple[tuple[int, int], ...]]  # and the padding that counts


def _average(x: jax.Array, static: _Average) -> jax.Array:
    return forward.avg_pool(x, *static)


def _share(g: jax.Array, static: _Average) -> jax.Array:
    """The transpose of an average: each δ, divided by the elements that count, all over its window."""
    weight = 1 / np.maximum(window_counts(*static), 1)
    return _spread(widened(g) * weight.astype(accumulator(g.dtype)), static[0]).astype(g.dtype)


_averages = primitives.linear_pair(
    "average", _average, _share, native=(functools.partial(average, "average"), functools.partial(average, "share"))
)


def _lp_slopes(p: float, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """∂y/∂x = y^(1−p) · |x|^(p−1) sign x, as a factor per window and one per element; 0 at 0."""
    x, y = widened(x), widened(y)
    some, nonzero = y != 0, x != 0
    outer = jnp.where(some, jnp.where(some, y, 1) ** (1 - p), 0)
    inner = jnp.where(nonzero, jnp.sign(x) * jnp.abs(jnp.where(nonzero, x, 1)) ** (p - 1), 0)
    return outer, inner


def _lp_forward(static: tuple[Geometry, float], x: jax.Array) -> Any:
    y = forward.lp_pool(x, *static)
    return y, (x, y)


def _lp_tangent(static: tuple[Geometry, float], saved: Any, t: jax.Array) -> jax.Array:
    outer, inner = _lp_slopes(static[1], *saved)
    return outer * WINDOW_SUM.apply(inner * widened(t), static=static[0])


def _lp_cotangent(static: tuple[Geometry, float], saved: Any, g: jax.Array) -> tuple[jax.Array]:
    outer, inner = _lp_slopes(static[1], *saved)
    return (inner * WINDOW_SUM.transpose(outer * widened(g), static=static[0]),)


_LP_POOL = Derivative(
    primal=lambda static, x: forward.lp_pool(x, *static),
    forward=_lp_forward,
    tangent=_lp_tangent,
    cotangent=_lp_cotangent,
)


def _global_tangent(axes: tuple[int, ...], _: Any, t: jax.Array) -> jax.Array:
    return widened(t).mean(axes)


def _global_cotangent(axes: tuple[int, ...], shape: tuple[int, ...], g: jax.Array) -> tuple[jax.Array]:
    count = math.prod(shape[axis] for axis in axes)
    return (jnp.broadcast_to(jnp.expand_dims(widened(g) / count, axes), shape),)


_GLOBAL_AVG_POOL = Derivative(
    primal=lambda axes, x: forward.global_avg_pool(x, axes),
    forward=lambda axes, x: (forward.global_avg_pool(x, axes), x.shape),
    tangent=_global_tangent,
    cotangent=_global_cotangent,
)


# The public functions


def pool_geometry(
    function: str, x: Any, window: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, layout: Any
) -> tuple[jax.Array, Geometry, tuple[tuple[int, int], ...]]:
    """Validate what all pools share; x as an array, the geometry of its windows, and the padding that was asked for."""
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    spatial = tuple(x.shape[axis] for axis in Layout.of(layout, spatial_rank(function, "x", x.shape, layout)).x[2:])
    return x, *pool_windows(function, spatial, window, stride, padding, dilation, ceil_mode, layout)


def pool_windows(
    function: str, spatial: Sequence[int], window: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
    layout: str,
) -> tuple[Geometry, tuple[tuple[int, int], ...]]:  # fmt: skip
    """The geometry of the windows of a pool over so many elements, and the padding that was asked for."""
    geometry = window_geometry(
        function, spatial, window, stride=window if stride is None else stride, padding=padding, dilation=dilation,
        layout=layout,
    )  # fmt: skip
    return hung_over(function, geometry, boolean(function, "ceil_mode", ceil_mode)), geometry.padding


def check_power(function: str, p: Any) -> float:
    p = number(function, "p", p)
    if not 1 <= p < math.inf:
        raise ValueError(f"{function}: p must satisfy 1 <= p < inf, but is {p}. For p = inf, take max_pool(abs(x)).")
    return p


def avg_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    count_padding: bool = False,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """The mean of each window.

    y[n, p, c] = (1 / m_p) Σ_k x[n, s·p + d·k − lo, c]

    m_p counts the real elements of window p; with `count_padding`, those of the padding too. The gradient spreads
    each δ, divided by m_p, evenly over its window. A window of nothing but padding gives 0. On a CPU the native engine
    computes both, where it is, in two or three dimensions with eight channels or more that come last.

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating. Sums are carried in float32 or wider.
      window, stride, padding, dilation, ceil_mode, layout, rules: as in `max_pool`.
      count_padding: whether padding counts as elements of value 0 (`count_include_pad` in PyTorch, where it is the
        default). What hangs over the padding under `ceil_mode` never counts.

    Returns:
      y, in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.avg_pool(jnp.arange(4.0).reshape(1, 4, 1), 3, stride=1, padding="SAME")[0, :, 0]
      Array([0.5, 1. , 2. , 2.5], dtype=float32)
      >>> jaxconv.avg_pool(jnp.arange(5.0).reshape(1, 5, 1), 2, ceil_mode=True)[0, :, 0]
      Array([0.5, 2.5, 4. ], dtype=float32)

    Source: a depthwise convolution with a constant kernel; its transpose is the full window sum of δ.
    """
    z, geometry, padded = pool_geometry("avg_pool", x, window, stride, padding, dilation, ceil_mode, layout)
    check_rules("avg_pool", rules)
    counted = padded if boolean("avg_pool", "count_padding", count_padding) else ((0, 0),) * geometry.rank
    return linear(rules, _averages, (geometry, counted), z)


def lp_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    p: float,
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """The p-norm of each window.

    y[n, q, c] = (Σ_k |x[n, s·q + d·k − lo, c]|^p)^(1/p)

    The gradient is δ · y^(1−p) · |x|^(p−1) · sign x. It is 0, never NaN, where x or the whole window is 0.

    The powers are computed as written: |x|^p must lie in the range of float32 (float64 for float64).

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating. Sums are carried in float32 or wider.
      p: a finite number ≥ 1; p = 1 sums absolute values, and large p approaches a max pool of them.
      window, stride, padding, dilation, ceil_mode, layout, rules: as in `max_pool`. A window that hangs over has the
        norm of what it holds (PyTorch scales it up by (taps / taps inside)^(1/p)).

    Returns:
      y, in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x = jnp.array([3.0, 4.0, 0.0, 0.0]).reshape(1, 4, 1)
      >>> jaxconv.lp_pool(x, 2, 2)[0, :, 0]
      Array([5., 0.], dtype=float32)
      >>> jax.grad(lambda x: jaxconv.lp_pool(x, 2, 2).sum())(x)[0, :, 0]
      Array([0.6, 0.8, 0. , 0. ], dtype=float32)

    Source: the chain rule on the p-norm, with the subgradient 0 at 0.
    """
    z, geometry, _ = pool_geometry("lp_pool", x, window, stride, padding, dilation, ceil_mode, layout)
    check_rules("lp_pool", rules)
    return apply(rules, _LP_POOL, (geometry, check_power("lp_pool", p)), z)


def global_avg_pool(x: ArrayLike, *, layout: str = "NHWC", rules: Rules = "fast") -> jax.Array:
    """The mean over all spatial positions.

    y[n, c] = (1 / m) Σ_q x[n, q, c]; the gradient gives every position δ / m.

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating. Sums are carried in float32 or wider.
      layout: "NHWC" or "NCHW".
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      y: (n, c), in x's dtype.

    Raises:
      ValueError: when there is no position to average over.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.global_avg_pool(jnp.arange(8.0).reshape(1, 2, 2, 2))
      Array([[3., 4.]], dtype=float32)

    Source: an average pool whose window is the input.
    """
    function = "global_avg_pool"
    x = floating(function, "x", x)
    layout = check_layout(function, layout)
    check_rules(function, rules)
    axes = Layout.of(layout, spatial_rank(function, "x", x.shape, layout)).x[2:]
    if 0 in (x.shape[axis] for axis in axes):
        raise ValueError(f"{function}: every spatial size must be at least 1, but x.shape = {x.shape}.")
    return apply(rules, _GLOBAL_AVG_POOL, axes, x)
