"""Wrong gradients of convolutions, broken as hand-written gradients have been broken before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxconv
from experiments.verdicts.broken import Backward, case, on, seeing, with_gradient
from experiments.verdicts.case import Case
from jaxconv.geometry import Geometry
from jaxconv.rules import ConvRules, rotated

Rule = Callable[[jax.Array, jax.Array, Geometry], jax.Array]

# Convolution: the cotangents of y = conv(x, w) with as many outputs as inputs

X, W = (3, 6, 7, 4), (3, 3, 4, 4)
conv = partial(jaxconv.conv, rules="autodiff")


def half(d: jax.Array) -> jax.Array:
    return d.astype(jnp.bfloat16).astype(d.dtype)


PLAINLY: dict[str, tuple[Backward, float]] = {
    "dx scaled by 1.001": (on(0, lambda d: 1.001 * d), 1e-3),
    "dw scaled by 1.001": (on(1, lambda d: 1.001 * d), 1e-3),
    "dx cast through bfloat16": (on(0, half), 2**-9),
    "one tap of dw off by 1 %": (on(1, lambda d: d.at[1, 0].multiply(1.01)), 3e-3),
    "one output channel of dw off by 10 %": (on(1, lambda d: d.at[..., 2].multiply(1.1)), 0.05),
    "a weight decay in dw": (lambda a, g, true: (true[0], true[1] + 0.01 * a[1]), 1e-3),
    "the corner of dx is 0": (on(0, lambda d: d.at[:, 0, 0].set(0)), 0.1),
    "the sign of dx": (on(0, jnp.negative), math.inf),
    "dx is missing": (on(0, jnp.zeros_like), math.inf),
    "dw is missing": (on(1, jnp.zeros_like), math.inf),
    "one example of dx rolled": (on(0, lambda d: d.at[0].set(jnp.roll(d[0], 1, 0))), math.inf),
    "the batch of dx rolled": (on(0, lambda d: jnp.roll(d, 1, 0)), math.inf),
    "the last row of dx dropped": (on(0, lambda d: d.at[:, -1].set(0)), 0.3),
    "the last column of dx dropped": (on(0, lambda d: d.at[:, :, -1].set(0)), 0.3),
    "dx off by one row": (on(0, lambda d: jnp.pad(d[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))), math.inf),
    "the channels of dx reversed": (on(0, lambda d: d[..., ::-1]), math.inf),
    "dw with h and w transposed": (on(1, lambda d: d.swapaxes(0, 1)), math.inf),
    "dw with its channels transposed": (on(1, lambda d: d.swapaxes(2, 3)), math.inf),
    "dw rotated": (on(1, lambda d: d[::-1, ::-1]), math.inf),
    "dw divided by the batch": (on(1, lambda d: d / 3), math.inf),
    "dw clipped to a norm of 1": (on(1, lambda d: d / jnp.linalg.norm(d.ravel())), math.inf),
    "g clipped to ±1": (seeing(lambda g: g.clip(-1, 1), conv), 0.3),
    "the sign of g": (seeing(jnp.sign, conv), 0.3),
    "g taken for ones": (seeing(jnp.ones_like, conv), math.inf),
    "the last row of g dropped": (seeing(lambda g: g.at[:, -1].set(0), conv), 0.3),
    "dw from a stale x": (lambda a, g, true: (true[0], jax.vjp(conv, jnp.ones_like(a[0]), a[1])[1](g)[1]), math.inf),
    "dx from a stale w": (lambda a, g, true: (jax.vjp(conv, a[0], jnp.ones_like(a[1]))[1](g)[0], true[1]), math.inf),
}


# The same through `rules=`: parts of the two rotated rules replaced


def fitted(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Cropped or zero-padded at the end: a wrong rule still has to return the right shape."""
    return lax.pad(a, jnp.zeros((), a.dtype), [(0, want - have, 0) for have, want in zip(a.shape, shape, strict=True)])


def input_grad(g: jax.Array, w: jax.Array, z: Geometry, **changes: Any) -> jax.Array:
    """The right rule, for a geometry with `changes`."""
    dx = rotated.input_grad(g, w, replace(z, **changes))
    return fitted(dx, z.x_shape(g.shape[0], w.shape[2] * z.groups))


def kernel_grad(x: jax.Array, g: jax.Array, z: Geometry, **changes: Any) -> jax.Array:
    """The right rule, for a geometry with `changes`."""
    return fitted(rotated.kernel_grad(x, g, replace(z, **changes)), z.w_shape(x.shape[3] // z.groups, g.shape[3]))


def exchanged(padding: Any) -> Any:
    return tuple((hi, lo) for lo, hi in padding)


def circular(x: jax.Array, g: jax.Array, z: Geometry) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *z.padding, (0, 0)), mode="wrap")
    return rotated.kernel_grad(x, g, replace(z, spatial=x.shape[1:3], padding=((0, 0), (0, 0))))


def remainder_at_the_low_end(g: jax.Array, w: jax.Array, z: Geometry) -> jax.Array:
    pads = tuple((lo - u, hi + u) for (lo, hi), u in zip(z.padding, z.unread, strict=True))
    return input_grad(g, w, z, padding=pads)


STRIDED: Any = ((2, 6, 8, 2), (3, 3, 2, 2), {"stride": (2, 3), "padding": 1})  # one row and one column unread
DILATED: Any = ((2, 7, 8, 2), (3, 3, 2, 2), {"dilation": 2})
GROUPED: Any = ((2, 5, 5, 4), (3, 3, 2, 4), {"groups": 2})
LOPSIDED: Any = ((2, 5, 6, 2), (3, 3, 2, 2), {"padding": ((2, 0), (0, 1))})
UPSAMPLED: Any = ((2, 4, 5, 2), (3, 3, 2, 2), {"input_dilation": 2, "padding": 1})
FLIPPED: Any = ((2, 5, 6, 2), (3, 3, 2, 2), {"flip_kernel": True})
PLAIN: Any = (X, W, {})

INPUT_GRADS: dict[str, tuple[Any, Rule]] = {
    "the kernel is not rotated": (PLAIN, lambda g, w, z: input_grad(g, w[::-1, ::-1], z)),
    "one axis of the kernel is rotated": (PLAIN, lambda g, w, z: input_grad(g, w[:, ::-1], z)),
    "the kernel's channels are not exchanged": (PLAIN, lambda g, w, z: input_grad(g, w.swapaxes(2, 3), z)),
    "one tap of the kernel off by 1 %": (PLAIN, lambda g, w, z: input_grad(g, w.at[1, 0].multiply(1.01), z)),
    "a true convolution's kernel is rotated": (FLIPPED, lambda g, w, z: input_grad(g, w, z, flip_kernel=False)),
    "the groups' order": (GROUPED, lambda g, w, z: input_grad(g, jnp.roll(w, 2, 3), z)),
    "the stride's remainder ignored": (STRIDED, lambda g, w, z: input_grad(g, w, z, padding=((1, 2), (1, 2)))),
    "the stride's remainder at the low end": (STRIDED, remainder_at_the_low_end),
    "the stride's axes exchanged": (STRIDED, lambda g, w, z: input_grad(g, w, z, stride=z.stride[::-1])),
    "the dilation ignored": (DILATED, lambda g, w, z: input_grad(g, w, z, dilation=(1, 1))),
    "the padding's ends exchanged": (LOPSIDED, lambda g, w, z: input_grad(g, w, z, padding=exchanged(z.padding))),
    "the padding off by one row": (PLAIN, lambda g, w, z: input_grad(g, w, z, padding=((0, 2), (1, 1)))),
    "the input dilation ignored": (UPSAMPLED, lambda g, w, z: input_grad(g, w, z, input_dilation=(1, 1))),
}
KERNEL_GRADS: dict[str, tuple[Any, Rule]] = {
    "only the first example": (PLAIN, lambda x, g, z: kernel_grad(x[:1], g[:1], z)),
    "the batch of g rolled": (PLAIN, lambda x, g, z: kernel_grad(x, jnp.roll(g, 1, 0), z)),
    "x and g in each other's place": (PLAIN, lambda x, g, z: kernel_grad(g, x, z)),
    "a circular border": (PLAIN, circular),
    "a true convolution's result is not rotated": (FLIPPED, lambda x, g, z: kernel_grad(x, g, z, flip_kernel=False)),
    "the groups' order": (GROUPED, lambda x, g, z: jnp.roll(kernel_grad(x, g, z), 2, 3)),
    "stride and dilation not exchanged": (
        STRIDED,
        lambda x, g, z: kernel_grad(x, g, z, stride=z.dilation, dilation=z.stride),
    ),
    "the stride's remainder at the low end": (STRIDED, lambda x, g, z: kernel_grad(x, g, z, padding=((0, 2), (0, 2)))),
    "the dilation ignored": (DILATED, lambda x, g, z: kernel_grad(x, g, z, dilation=(1, 1))),
    "the padding's ends exchanged": (LOPSIDED, lambda x, g, z: kernel_grad(x, g, z, padding=exchanged(z.padding))),
    "the input dilation ignored": (UPSAMPLED, lambda x, g, z: kernel_grad(x, g, z, input_dilation=(1, 1))),
}


def ruled(name: str, setting: Any, rules: ConvRules, op: Any = jaxconv.conv) -> Case:
    x, w, options = setting
    return case(name, partial(op, **options, rules=rules), x, w, gain=3e-3 if "1 %" in name else math.inf)


CONVOLUTIONS: list[Case] = [
    *(case(f"conv: {k}", with_gradient(conv, b), X, W, gain=gain) for k, (b, gain) in PLAINLY.items()),
    *(ruled(f"input_grad: {k}", s, ConvRules(r, rotated.kernel_grad)) for k, (s, r) in INPUT_GRADS.items()),
    *(ruled(f"kernel_grad: {k}", s, ConvRules(rotated.input_grad, r)) for k, (s, r) in KERNEL_GRADS.items()),
    ruled(
        "conv_transpose: dx by the rotated kernel",
        ((2, 4, 4, 2), (3, 3, 2, 2), {"stride": 2}),
        ConvRules(rotated.input_grad, rotated.kernel_grad, lambda x, w, z, **_: rotated.conv(x, w[::-1, ::-1], z)),
        jaxconv.conv_transpose,
    ),
]
