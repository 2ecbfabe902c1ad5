"""The classical backward pass: two convolutions, each one call of `lax.conv_general_dilated`.

The forward map reads x at s·p + d·k − lo. Solve that for the other two indices:

* **∂x.** Input q is read by every pair (p, k) with s·p = q + lo − d·k. Summing over k, δ is read *backwards*
  (− d·k): a convolution with the kernel rotated by 180°. Only multiples of s carry a δ: the stride has become
  a dilation of δ. Output channels are summed, input channels remain: the kernel's channels change places.
  δ is padded by span − 1 − lo, so a "valid" forward pass turns into the "full" convolution.

* **∂w.** Tap k is met at s·p + d·k − lo, summed over p: the input is convolved with δ as the kernel. Now p is
  the summed index and k the free one, so the stride s becomes the dilation and the dilation d the stride. The
  `unread` elements at the end, which a stride that does not divide leaves over, are cropped.

Source: δ^l = δ^{l+1} ∗ ROT180(w) · σ′(z), as in G. Gwardys' derivation, carried to stride, dilation,
padding, input dilation and groups by the index equation above.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv import forward
from jaxconv.geometry import Geometry

conv = forward.conv


def rot180(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w with every tap axis reversed."""
    return lax.rev(w, geometry.layout.w[2:])


def regrouped(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w with its groups moved from the output to the input channels: (c, g·o) becomes (g·c, o)."""
    if geometry.groups == 1:
        return w
    outputs, inputs = geometry.layout.w[:2]
    shape = list(w.shape)
    shape[outputs] //= geometry.groups
    split = w.reshape(*shape[:outputs], geometry.groups, *shape[outputs:])
    shape[inputs] *= geometry.groups
    return jnp.moveaxis(split, outputs, inputs).reshape(shape)


def channel_transposed(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w with input and output channels exchanged within each group: (c, g·o) becomes (o, g·c)."""
    return regrouped(w, geometry).swapaxes(*geometry.layout.w[:2])


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """∂T/∂x: full convolution of the dilated δ with the rotated, channel-transposed kernel.

    The channels are transposed by exchanging their names, and the rotation comes last: that is how XLA recognises a
    gradient on a GPU, and calls cuDNN's rather than a convolution over the zeros of δ.
    """
    layout = geometry.layout
    outputs, inputs, *taps = layout.w
    if g.size == 0:
        return jnp.zeros(geometry.input_grad_shape(g.shape, w.shape), preferred_element_type or g.dtype)
    kernel = regrouped(w, geometry)
    return forward.conv_general_dilated(
        g,
        kernel if geometry.flip_kernel else rot180(kernel, geometry),
        window_strides=geometry.input_dilation,
        padding=geometry.input_grad_padding,
        lhs_dilation=geometry.stride,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(layout.y, (inputs, outputs, *taps), layout.x),
        feature_group_count=geometry.groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """∂T/∂w: convolution of the input with δ; channels act as the batch and the batch is summed."""
    layout = geometry.layout
    if x.size == 0 or g.size == 0:
        return jnp.zeros(geometry.kernel_grad_shape(x.shape, g.shape), preferred_element_type or g.dtype)
    swapped = [(spec[1], spec[0], *spec[2:]) for spec in (layout.x, layout.y, layout.w)]
    dw = forward.conv_general_dilated(
        x,
        g,
        window_strides=geometry.dilation,
        padding=geometry.kernel_grad_padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.stride,
        dimension_numbers=lax.ConvDimensionNumbers(*swapped),
        batch_group_count=geometry.groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return rot180(dw, geometry) if geometry.flip_kernel else dw
