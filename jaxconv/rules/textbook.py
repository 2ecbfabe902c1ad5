"""The sums of the derivation, transcribed: one strided slice and one contraction per kernel tap.

Start from the trilinear form, of which a convolution is the gradient in g:

    T(x, w, g) = Σ_{n,p,k,c,o}  g[n, p, o] · x[n, s·p + d·k − lo, c] · w[k, c, o]

Fix a tap k and everything else is a matrix product over the positions p. So each of the three maps is a
loop over taps: read the inputs that tap k touches, contract, and put the result where it belongs. There is
no rotation, no dilated δ and no padding arithmetic here; that these tap sums equal the convolutions of
`rotated` is what the derivation proves and the tests check.

Written to be read. For speed, take `rules="fast"`.

Source: the weight and input gradients term by term, as in M. Agarwal's and A. Saraswat's articles on
convolution backpropagation, extended to stride, dilation, padding, groups and any number of axes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry, channels_last_order, inverse
from jaxconv.windows import accumulator, padded, tap_slice, taps, widened


def _channels_last(a: jax.Array, spec: tuple[int, ...]) -> jax.Array:
    """(batch, *spatial, channel) from any layout; for kernels (out, *taps, in). In the dtype of their sums."""
    # A GPU may round a product of two floats of 16 bits to 16 bits, whatever the dtype in which their sum is asked for.
    return widened(a.transpose(channels_last_order(spec)))


def _restored(a: jax.Array, spec: tuple[int, ...]) -> jax.Array:
    """The inverse of `_channels_last`."""
    return a.transpose(inverse(channels_last_order(spec)))


def _tap_of(tap: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """The kernel entry that meets `tap`: itself, or its mirror image in a true convolution."""
    return tuple(k - 1 - j for j, k in zip(tap, geometry.taps, strict=True)) if geometry.flip_kernel else tap


def _kernel_at(kernel: jax.Array, tap: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """w[k] as one (out, in) matrix per group."""
    outputs, inputs = kernel.shape[0], kernel.shape[-1]
    return kernel[:, *_tap_of(tap, geometry)].reshape(geometry.groups, outputs // geometry.groups, inputs)


def _merged(a: jax.Array) -> jax.Array:
    """The inverse of `_grouped`."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _grouped(a: jax.Array, groups: int) -> jax.Array:
    """Split the last axis into (group, channel of the group)."""
    return a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """∂T/∂g: tap k adds what it reads, times w[k]. The gradient of a transposed convolution; a forward pass is `lax`'s.

    y[n, p, o] = Σ_k Σ_c x[n, s·p + d·k − lo, c] · w[k, c, o]
    """
    flat, dtype = geometry.channels_last(), preferred_element_type or jnp.result_type(x, w)
    x, kernel = _channels_last(x, geometry.layout.x), _channels_last(w, geometry.layout.w)
    read = _grouped(padded(x, flat), geometry.groups)
    y = jnp.zeros((x.shape[0], *geometry.out, geometry.groups, kernel.shape[0] // geometry.groups), accumulator(dtype))
    for tap in taps(geometry):
        w_k = _kernel_at(kernel, tap, geometry)
        y += jnp.einsum("n...gc,goc->n...go", tap_slice(read, tap, flat), w_k,
                        precision=precision, preferred_element_type=y.dtype)  # fmt: skip
    return _restored(_merged(y), geometry.layout.y).astype(dtype)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """∂T/∂x: every δ sends w[k]·δ back to each input that tap k read.

    dx[n, s·p + d·k − lo, c] += Σ_o g[n, p, o] · w[k, c, o]
    """
    flat, dtype = geometry.channels_last(), preferred_element_type or jnp.result_type(g, w)
    g, kernel = _channels_last(g, geometry.layout.y), _channels_last(w, geometry.layout.w)
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.spatial, kernel.shape[-1] * geometry.groups), accumulator(dtype))
    delta = _grouped(g, geometry.groups)
    dx = jnp.zeros(jax.eval_shape(lambda x: padded(x, flat), x).shape, x.dtype)
    for tap in taps(geometry):
        w_k = _kernel_at(kernel, tap, geometry)
        sent = jnp.einsum("n...go,goc->n...gc", delta, w_k, precision=precision, preferred_element_type=x.dtype)
        where = tuple(
            slice(j * a.dilation, j * a.dilation + max(a.out * a.stride - a.stride + 1, 0), a.stride)
            for j, a in zip(tap, geometry.axes, strict=True)
        )
        dx = dx.at[:, *where].add(_merged(sent))
    return _restored(_unpadded(dx, geometry), geometry.layout.x).astype(dtype)


def _unpadded(dx: jax.Array, geometry: Geometry) -> jax.Array:
    """Drop what fell on padding and on the zeros of an input dilation; cropped inputs were never read."""
    dx = lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *((-a.lo, -a.hi, 0) for a in geometry.axes), (0, 0, 0)])
    return dx[:, *(slice(None, None, i) for i in geometry.input_dilation)]


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """∂T/∂w: tap k collects δ times the input it met, over all positions and examples.

    dw[k, c, o] = Σ_n Σ_p x[n, s·p + d·k − lo, c] · g[n, p, o]
    """
    flat, dtype = geometry.channels_last(), preferred_element_type or jnp.result_type(x, g)
    x, g = _channels_last(x, geometry.layout.x), _channels_last(g, geometry.layout.y)
    read, delta = _grouped(padded(x, flat), geometry.groups), _grouped(g, geometry.groups)
    dw = jnp.zeros((g.shape[-1], *geometry.taps, x.shape[-1] // geometry.groups), accumulator(dtype))
    for tap in taps(geometry):
        dw_k = jnp.einsum("n...gc,n...go->goc", tap_slice(read, tap, flat), delta,
                          precision=precision, preferred_element_type=dw.dtype)  # fmt: skip
        dw = dw.at[:, *_tap_of(tap, geometry)].set(dw_k.reshape(dw.shape[0], dw.shape[-1]))
    return _restored(dw, geometry.layout.w).astype(dtype)
