"""Convolution and its three gradients, as public functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.geometry import Geometry, Layout, check_layout, integer, per_axis, placed, spatial_rank
from jaxconv.ops.arguments import (
    Rules,
    check_bias,
    check_cotangent,
    check_groups,
    check_preferred,
    convolution,
    floating,
    operands,
    placement,
)
from jaxconv.ops.binding import bilinear, gradients_of, linear, linear_pair, rule_set
from jaxconv.rules import CONV
from jaxconv.windows import widened


def _bias_grad(g: jax.Array, static: tuple[tuple[int, ...], int]) -> jax.Array:
    """db[o] = Σ_n Σ_p g[n, p, o]: a bias is read at every position of every example."""
    _, channel = static
    return widened(g).sum(tuple(axis for axis in range(g.ndim) if axis != channel)).astype(g.dtype)


_bias = linear_pair("bias", lambda b, static: forward.bias(b, *static), _bias_grad)

# The gradients of `conv` in x and in w: the other two of the trio.
_IN_X, _IN_W = CONV.transposes


# Shared by every op on kernels


def convolve(
    x: jax.Array, w: jax.Array, geometry: Geometry, rules: Rules, engine: str, precision: Any, dtype: Any = None
) -> jax.Array:
    """`conv` on a resolved geometry: a rule set says what the gradients are; y is `lax`'s for all but "fast"."""
    return bilinear(gradients_of(rules), CONV, geometry, x, w, engine=engine, precision=precision, dtype=dtype)


def add_bias(y: jax.Array, b: jax.Array, channel: int, rules: Rules) -> jax.Array:
    """y with b added along its channel axis. A bias belongs to a kernel, and has the modes that a kernel has."""
    return y + linear(rule_set(rules), _bias, (y.shape, channel), b.astype(y.dtype))


# The public functions


def conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Convolution over any number of spatial axes, with hand-written gradients.

    y[n, p, o] = Σ_{k, c} x[n, s·p + d·k − lo, c] · w[k, c, o] + b[o]

    As in every framework this is the cross-correlation; `flip_kernel=True` gives the true convolution of
    mathematics, w[K−1−k] in place of w[k]. The gradients are convolutions too: with respect to x, the dilated
    δ with the kernel rotated by 180° and its channels exchanged; with respect to w, x with δ as the kernel,
    stride and dilation having changed places; with respect to b, the sum of δ.

    Args:
      x: (n, *spatial, c) for layout "NHWC", (n, c, *spatial) for "NCHW"; floating.
      w: (*taps, c // groups, o) for "NHWC" (HWIO), (o, c // groups, *taps) for "NCHW" (OIHW); x's dtype.
      b: (o,), or None.
      stride: step of the window, an int or one per spatial axis.
      padding: "SAME" (out = ⌈n / s⌉, the odd element at the end), "SAME_LOWER" (at the start), "VALID",
        "CAUSAL" (one spatial axis, all padding before it), an int, one per axis, or (lo, hi) pairs. Negative
        padding crops.
      dilation: distance between taps.
      input_dilation: input elements are moved this far apart, zeros between them.
      groups: channels of x and w are split into this many independent convolutions.
      flip_kernel: whether to rotate the kernel first.
      layout: "NHWC" or "NCHW", for any number of spatial axes.
      rules: whose gradients: "fast", "textbook", "rotated", "autodiff" (JAX's own), or your own `ConvRules`. The
        forward pass is `lax`'s under all but "fast", which takes the formulation that `plan` names: `textbook.conv` is
        there to be read, and runs where a convolution is a gradient, that of `conv_transpose`. The transformations are
        the same: all of JAX's.
      engine: who computes the fast maps: "xla"; "onednn", the native engine for CPUs, or a ValueError that says what
        it does not take; "auto", the engine where there is one and nothing inside XLA was measured to be faster.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default that of x. Sums are carried in float32 or wider
        either way: XLA accumulates 16-bit products in float32.

    Returns:
      y: (n, *out, o) or (n, o, *out), out = (n + lo + hi − d·(k−1) − 1) // s + 1, 0 if the window does not fit.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x, w = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((2, 2, 1, 1))
      >>> jaxconv.conv(x, w, padding="VALID")[0, ..., 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)
      >>> jax.grad(lambda w: jaxconv.conv(x, w, padding="VALID").sum())(w)[..., 0, 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)

    Source: the trilinear form in `jaxconv.rules.textbook` and its derivation in `jaxconv.rules.rotated`.
    """
    function = "conv"
    (x, w), rules = operands(function, rules, engine, x=x, w=w)
    geometry = convolution(
        function, x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip
    bias = None if b is None else check_bias(function, b, w.shape[geometry.layout.w[0]], x)
    dtype = check_preferred(function, preferred_element_type, x)
    y = convolve(x, w, geometry, rules, engine, precision, dtype)
    return y if bias is None else add_bias(y, bias, geometry.layout.y[1], rules)


def conv_input_grad(
    g: ArrayLike,
    w: ArrayLike,
    spatial_shape: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv` in its input: full convolution of δ with the rotated kernel.

    dx[n, q, c] = Σ_{p, k, o : s·p + d·k − lo = q} g[n, p, o] · w[k, c, o]

    Args:
      g: δ, the cotangent of y, with y's shape and w's dtype.
      w: the kernel of the forward pass.
      spatial_shape: spatial sizes of x; a stride makes them ambiguous, so they have to be said.

      The other arguments are those of `conv`, with the forward pass's values.

    Returns:
      dx, with the shape of x and the dtype of g.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> g, w = jnp.ones((1, 2, 2, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)
      >>> jaxconv.conv_input_grad(g, w, (3, 3), padding="VALID")[0, ..., 0]
      Array([[0., 1., 1.],
             [2., 6., 4.],
             [2., 5., 3.]], dtype=float32)

    Source: `jaxconv.rules.rotated`.
    """
    function = "conv_input_grad"
    (g, w), rules = operands(function, rules, engine, g=g, w=w)
    place, rank = placement(function, layout, g=g, w=w)
    channels = w.shape[place.w[1]] * integer(function, "groups", groups, 1)
    x_shape = placed(
        place.x, g.shape[place.y[0]], channels, per_axis(function, "spatial_shape", spatial_shape, rank, 0)
    )
    geometry = convolution(
        function, x_shape, w.shape, stride=stride, padding=padding, dilation=dilation,
        input_dilation=input_dilation, groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip
    check_cotangent(function, g.shape, geometry.conv_shape(x_shape, w.shape), geometry.spatial, geometry.out)
    return bilinear(rules, _IN_X, geometry, g, w, engine=engine, precision=precision)


def conv_kernel_grad(
    x: ArrayLike,
    g: ArrayLike,
    kernel_shape: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv` in its kernel: convolution of the input with δ.

    dw[k, c, o] = Σ_{n, p} x[n, s·p + d·k − lo, c] · g[n, p, o]

    Args:
      x: the input of the forward pass.
      g: δ, the cotangent of y, with y's shape and x's dtype.
      kernel_shape: the number of taps per spatial axis.

      The other arguments are those of `conv`, with the forward pass's values.

    Returns:
      dw, with the shape of w and the dtype of x.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, g = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((1, 2, 2, 1))
      >>> jaxconv.conv_kernel_grad(x, g, (2, 2), padding="VALID")[..., 0, 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)

    Source: `jaxconv.rules.rotated`.
    """
    function = "conv_kernel_grad"
    (x, g), rules = operands(function, rules, engine, x=x, g=g)
    place, rank = placement(function, layout, x=x, g=g)
    per_group = check_groups(function, "x", x.shape[place.x[1]], groups)
    taps = per_axis(function, "kernel_shape", kernel_shape, rank, 1)
    w_shape = placed(place.w, g.shape[place.y[1]], per_group, taps)
    geometry = convolution(
        function, x.shape, w_shape, stride=stride, padding=padding, dilation=dilation,
        input_dilation=input_dilation, groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip
    check_cotangent(function, g.shape, geometry.conv_shape(x.shape, w_shape), geometry.spatial, geometry.out)
    return bilinear(rules, _IN_W, geometry, x, g, engine=engine, precision=precision)


def conv_bias_grad(g: ArrayLike, *, layout: str = "NHWC") -> jax.Array:
    """The gradient of `conv` in its bias: db[o] = Σ_{n, p} g[n, p, o].

    Args:
      g: δ, the cotangent of y; (n, *spatial, o) or (n, o, *spatial) after `layout`.
      layout: "NHWC" or "NCHW".

    Returns:
      db: (o,), in g's dtype; sums are carried in float32 or wider.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.conv_bias_grad(jnp.ones((2, 3, 3, 1)))
      Array([18.], dtype=float32)

    Source: a bias per filter is read once for every example and position.
    """
    function = "conv_bias_grad"
    g = floating(function, "g", g)
    layout = check_layout(function, layout)
    channel = Layout.of(layout, spatial_rank(function, "g", g.shape, layout)).y[1]
    return _bias.transpose(g, static=(g.shape, channel))
