"""Transposed convolution and its gradients: the same trio, entered by the middle door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxconv.geometry import conv_transpose_geometry, per_axis, placed
from jaxconv.ops.arguments import Rules, check_bias, check_cotangent, check_groups, operands, placement
from jaxconv.ops.binding import bilinear
from jaxconv.ops.conv import add_bias, conv_bias_grad
from jaxconv.rules import INPUT_GRAD

# The layer is the middle map of the trio; its gradients in x and in w are the other two. It has the places of x and y
# exchanged: its input stands where the convolution that it transposes has δ.
_IN_X, _IN_W = INPUT_GRAD.transposes


def conv_transpose(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
) -> jax.Array:
    """Transposed ("fractionally strided") convolution: the input gradient of `conv`, as a layer.

    y[n, s·p + d·k − lo, c] += Σ_o x[n, p, o] · w[k, c, o] + b[c]

    The kernel is the one of the convolution that this layer transposes, as in PyTorch and TensorFlow: with
    the same `w`, `stride` and `padding`, `conv_transpose` is the adjoint of `conv`. So its own input gradient
    is `conv`, and its kernel gradient is `conv`'s with the roles of x and δ exchanged.

    Args:
      x: (n, *spatial, o) or (n, o, *spatial); floating.
      w: (*taps, c // groups, o) or (o, c // groups, *taps): I is the number of output channels here.
      b: (c,), or None.
      stride: how far apart the inputs' contributions land.
      padding: what `conv` would pad and this crops: "SAME" gives out = n·s, "VALID" or 0 out = (n−1)·s + span;
        an int, one per axis or (lo, hi) pairs give out = (n−1)·s + span − lo − hi.
      output_padding: added to the size at the high end, smaller than the stride or the dilation.
      dilation, groups, layout, rules, engine, precision: as in `conv`.

    Returns:
      y: (n, *out, c) or (n, c, *out) in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, w = jnp.ones((1, 2, 1)), jnp.arange(3.0).reshape(3, 1, 1)
      >>> jaxconv.conv_transpose(x, w, stride=2, padding="VALID")[0, :, 0]
      Array([0., 1., 2., 1., 2.], dtype=float32)

    Source: the middle row of the trio, `jaxconv.primitives`.
    """
    function = "conv_transpose"
    (x, w), rules = operands(function, rules, engine, x=x, w=w)
    geometry = conv_transpose_geometry(
        function, x.shape, w.shape, stride=stride, padding=padding, output_padding=output_padding,
        dilation=dilation, groups=groups, layout=layout,
    )  # fmt: skip
    bias = None if b is None else check_bias(function, b, w.shape[geometry.layout.w[1]] * geometry.groups, x)
    y = bilinear(rules, INPUT_GRAD, geometry, x, w, engine=engine, precision=precision)
    return y if bias is None else add_bias(y, bias, geometry.layout.x[1], rules)


def conv_transpose_input_grad(
    g: ArrayLike,
    w: ArrayLike,
    spatial_shape: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv_transpose` in its input, which is `conv(g, w)`.

    Args:
      g: δ, the cotangent of y, with y's shape and w's dtype.
      w: the kernel of the forward pass.
      spatial_shape: spatial sizes of x.

      The other arguments are those of `conv_transpose`, with the forward pass's values.

    Returns:
      dx, with the shape of x and the dtype of g.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> g, w = jnp.ones((1, 5, 1)), jnp.arange(3.0).reshape(3, 1, 1)
      >>> jaxconv.conv_transpose_input_grad(g, w, (2,), stride=2, padding="VALID")[0, :, 0]
      Array([3., 3.], dtype=float32)

    Source: the transposes of the trio, `jaxconv.primitives`.
    """
    function = "conv_transpose_input_grad"
    (g, w), rules = operands(function, rules, engine, g=g, w=w)
    place, rank = placement(function, layout, g=g, w=w)
    spatial = per_axis(function, "spatial_shape", spatial_shape, rank, 0)
    geometry = conv_transpose_geometry(
        function, placed(place.y, g.shape[place.x[0]], w.shape[place.w[0]], spatial), w.shape, stride=stride,
        padding=padding, output_padding=output_padding, dilation=dilation, groups=groups, layout=layout,
    )  # fmt: skip
    channels = w.shape[place.w[1]] * geometry.groups
    check_cotangent(function, g.shape, geometry.x_shape(g.shape[place.x[0]], channels), geometry.out, geometry.spatial)
    return bilinear(rules, _IN_X, geometry, g, w, engine=engine, precision=precision)


def conv_transpose_kernel_grad(
    x: ArrayLike,
    g: ArrayLike,
    kernel_shape: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv_transpose` in its kernel: `conv`'s, with x and δ in each other's place.

    dw[k, c, o] = Σ_{n, p} g[n, s·p + d·k − lo, c] · x[n, p, o]

    Args:
      x: the input of the forward pass.
      g: δ, the cotangent of y, with y's shape and x's dtype.
      kernel_shape: the number of taps per spatial axis.

      The other arguments are those of `conv_transpose`, with the forward pass's values.

    Returns:
      dw, with the shape of w and the dtype of x.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, g = jnp.ones((1, 2, 1)), jnp.arange(5.0).reshape(1, 5, 1)
      >>> jaxconv.conv_transpose_kernel_grad(x, g, 3, stride=2, padding="VALID")[:, 0, 0]
      Array([2., 4., 6.], dtype=float32)

    Source: the transposes of the trio, `jaxconv.primitives`.
    """
    function = "conv_transpose_kernel_grad"
    (x, g), rules = operands(function, rules, engine, x=x, g=g)
    place, rank = placement(function, layout, x=x, g=g)
    per_group = check_groups(function, "g", g.shape[place.x[1]], groups)
    taps = per_axis(function, "kernel_shape", kernel_shape, rank, 1)
    geometry = conv_transpose_geometry(
        function, x.shape, placed(place.w, x.shape[place.y[1]], per_group, taps), stride=stride,
        padding=padding, output_padding=output_padding, dilation=dilation, groups=groups, layout=layout,
    )  # fmt: skip
    expected = geometry.x_shape(x.shape[place.y[0]], per_group * geometry.groups)
    check_cotangent(function, g.shape, expected, geometry.out, geometry.spatial)
    return bilinear(rules, _IN_W, geometry, g, x, engine=engine, precision=precision)


conv_transpose_bias_grad = conv_bias_grad
