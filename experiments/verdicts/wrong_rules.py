"""Wrong rules of a convolution: the right one with one line of the derivation broken, as others have broken it before.

All return the right shapes and dtypes; only the numbers are wrong. The bench of `check` judges some, the tests all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry

Rule = Callable[..., jax.Array]

# The right rules, every part of them replaceable


def fitted(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Cropped or zero-padded at the end: a wrong rule still has to return the right shape."""
    return lax.pad(a, jnp.zeros((), a.dtype), [(0, want - have, 0) for have, want in zip(a.shape, shape, strict=True)])


def rotated(w: jax.Array, axes: tuple[int, ...] = (0, 1)) -> jax.Array:
    return lax.rev(w, axes)


def exchanged(w: jax.Array, groups: int, order: int = 1) -> jax.Array:
    """(c, g·o) to (o, g·c); `order` = −1 takes the groups from the last to the first."""
    blocks = w.reshape(*w.shape[:3], groups, w.shape[3] // groups)[..., ::order, :].swapaxes(2, 4)
    return blocks.reshape(*blocks.shape[:3], groups * w.shape[2])


def input_grad(
    g: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    *,
    rotate: Rule = rotated,
    exchange: Rule = exchanged,
    padding: Any = lambda lo, hi, unread: (lo, hi),
    dilate: bool = True,
    **replaced: Any,
) -> jax.Array:
    kernel = exchange(w if geometry.flip_kernel else rotate(w), geometry.groups)
    pads = zip(geometry.input_grad_padding, geometry.unread, strict=True)
    options: dict[str, Any] = {
        "window_strides": geometry.input_dilation,
        "padding": [padding(*pair, unread) for pair, unread in pads],
        "lhs_dilation": geometry.stride if dilate else (1, 1),
        "rhs_dilation": geometry.dilation,
        "feature_group_count": geometry.groups,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    dx = lax.conv_general_dilated(g, kernel, **options | replaced)
    return fitted(dx, geometry.x_shape(g.shape[0], w.shape[2] * geometry.groups))


def kernel_grad(
    x: jax.Array,
    g: jax.Array,
    geometry: Geometry,
    *,
    padding: Any = lambda lo, hi, unread: (lo, hi),
    **replaced: Any,
) -> jax.Array:
    pads = zip(geometry.kernel_grad_padding, geometry.unread, strict=True)
    options: dict[str, Any] = {
        "window_strides": geometry.dilation,
        "padding": [padding(*pair, unread) for pair, unread in pads],
        "lhs_dilation": geometry.input_dilation,
        "rhs_dilation": geometry.stride,
        "batch_group_count": geometry.groups,
        "dimension_numbers": ("CHWN", "IHWO", "HWNC"),
    }
    dw = lax.conv_general_dilated(x, g, **options | replaced)
    dw = fitted(dw, geometry.w_shape(x.shape[3] // geometry.groups, g.shape[3]))
    return rotated(dw) if geometry.flip_kernel else dw


def bias_grad(g: jax.Array) -> jax.Array:
    return g.sum((0, 1, 2))


def wrapped(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel gradient of a circular border, where the border was of zeros."""
    pads = geometry.kernel_grad_padding
    if min(min(pads)) < 0 or max(geometry.input_dilation) > 1:
        return kernel_grad(x, g, geometry)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="wrap")
    return kernel_grad(x, g, geometry, padding=lambda *_: (0, 0))


# The lists. A lambda takes the operands and the geometry, z; all have two axes, in NHWC.

WRONG_INPUT_GRADS: dict[str, Rule] = {
    "the kernel is not rotated": lambda g, w, z: input_grad(g, w, z, rotate=lambda w: w),
    "one axis is rotated, not both": lambda g, w, z: input_grad(g, w, z, rotate=lambda w: rotated(w, (0,))),
    "the taps are transposed": lambda g, w, z: input_grad(g, w.swapaxes(0, 1), z),
    "the channels are not exchanged": lambda g, w, z: input_grad(g, w, z, exchange=lambda w, _: w),
    "the groups are in the wrong order": lambda g, w, z: input_grad(g, w, z, exchange=lambda w, n: exchanged(w, n, -1)),
    "δ is not dilated by the stride": lambda g, w, z: input_grad(g, w, z, dilate=False),
    "the stride's remainder is ignored": lambda g, w, z: input_grad(
        g, w, z, padding=lambda lo, hi, unread: (lo, hi - unread)
    ),
    "the stride's remainder is at the wrong end": lambda g, w, z: input_grad(
        g, w, z, padding=lambda lo, hi, unread: (lo + unread, hi - unread)
    ),
    "padding low and high are exchanged": lambda g, w, z: input_grad(g, w, z, padding=lambda lo, hi, _: (hi, lo)),
    "the padding is off by one": lambda g, w, z: input_grad(g, w, z, padding=lambda lo, hi, _: (lo + 1, hi - 1)),
    "a true convolution's kernel is rotated": lambda g, w, z: input_grad(g, w, replace(z, flip_kernel=False)),
    "the stride's axes are exchanged": lambda g, w, z: input_grad(g, w, z, lhs_dilation=z.stride[::-1]),
    "the dilation is ignored": lambda g, w, z: input_grad(g, w, z, rhs_dilation=(1, 1)),
    "the input dilation is ignored": lambda g, w, z: input_grad(g, w, z, window_strides=(1, 1)),
    "the last row of δ is dropped": lambda g, w, z: input_grad(g.at[:, -1].set(0), w, z),
    "the last column of dx is forgotten": lambda g, w, z: input_grad(g, w, z).at[:, :, -1].set(0),
    "the batch is rolled by one": lambda g, w, z: jnp.roll(input_grad(g, w, z), 1, 0),
    "every example is the first": lambda g, w, z: input_grad(jnp.broadcast_to(g[:1], g.shape), w, z),
    "the sign is wrong": lambda g, w, z: -input_grad(g, w, z),
    "all is scaled by 1.001": lambda g, w, z: 1.001 * input_grad(g, w, z),
    "one tap is off by 1 %": lambda g, w, z: input_grad(g, w.at[1, 0].multiply(1.01), z),
}

WRONG_KERNEL_GRADS: dict[str, Rule] = {
    "stride and dilation are not exchanged": lambda x, g, z: kernel_grad(
        x, g, z, window_strides=z.stride, rhs_dilation=z.dilation
    ),
    "the stride's remainder is cropped at the wrong end": lambda x, g, z: kernel_grad(
        x, g, z, padding=lambda lo, hi, unread: (lo - unread, hi + unread)
    ),
    "padding low and high are exchanged": lambda x, g, z: kernel_grad(x, g, z, padding=lambda lo, hi, _: (hi, lo)),
    "the padding is off by one": lambda x, g, z: kernel_grad(x, g, z, padding=lambda lo, hi, _: (lo + 1, hi - 1)),
    "the border is circular": wrapped,
    "the input dilation is ignored": lambda x, g, z: kernel_grad(x, g, z, lhs_dilation=(1, 1)),
    "a true convolution's result is not rotated": lambda x, g, z: kernel_grad(x, g, replace(z, flip_kernel=False)),
    "the dilation is ignored": lambda x, g, z: kernel_grad(x, g, z, window_strides=(1, 1)),
    "the result is rotated": lambda x, g, z: rotated(kernel_grad(x, g, z)),
    "the taps are transposed": lambda x, g, z: kernel_grad(x, g, z).swapaxes(0, 1),
    "the channels are exchanged": lambda x, g, z: exchanged(kernel_grad(x, g, z), z.groups),
    "the groups are in the wrong order": lambda x, g, z: jnp.roll(kernel_grad(x, g, z), g.shape[3] // z.groups, 3),
    "the last row of δ is dropped": lambda x, g, z: kernel_grad(x, g.at[:, -1].set(0), z),
    "the batch of δ is rolled by one": lambda x, g, z: kernel_grad(x, jnp.roll(g, 1, 0), z),
    "only the first example counts": lambda x, g, z: kernel_grad(x[:1], g[:1], z),
    "the batch is averaged": lambda x, g, z: kernel_grad(x, g, z) / x.shape[0],
    "the positions are averaged": lambda x, g, z: kernel_grad(x, g, z) / (g.shape[1] * g.shape[2]),
    "the sign is wrong": lambda x, g, z: -kernel_grad(x, g, z),
    "all is scaled by 1.001": lambda x, g, z: 1.001 * kernel_grad(x, g, z),
    "one tap is off by 1 %": lambda x, g, z: kernel_grad(x, g, z).at[1, 0].multiply(1.01),
}

WRONG_BIAS_GRADS: dict[str, Rule] = {
    "only the first example counts": lambda g: bias_grad(g[:1]),
    "only the first position counts": lambda g: g[:, 0, 0].sum(0),
    "the batch is averaged": lambda g: bias_grad(g) / g.shape[0],
    "the last row of δ is dropped": lambda g: bias_grad(g[:, :-1]),
}
