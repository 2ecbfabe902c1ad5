"""Wrong gradients of convolutions, broken as hand-written gradients have been broken before."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxconv
from experiments.verdicts.broken import Backward, case, on, seeing, with_gradient
from experiments.verdicts.case import Case
from experiments.verdicts.wrong_rules import WRONG_INPUT_GRADS, WRONG_KERNEL_GRADS
from jaxconv.rules import ConvRules, rotated

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


# The same through `rules=`

STRIDED: Any = ((2, 6, 8, 2), (3, 3, 2, 2), {"stride": (2, 3), "padding": 1})  # one row and one column unread
DILATED: Any = ((2, 7, 8, 2), (3, 3, 2, 2), {"dilation": 2})
GROUPED: Any = ((2, 5, 5, 4), (3, 3, 2, 4), {"groups": 2})
LOPSIDED: Any = ((2, 5, 6, 2), (3, 3, 2, 2), {"padding": ((2, 0), (0, 1))})
UPSAMPLED: Any = ((2, 4, 5, 2), (3, 3, 2, 2), {"input_dilation": 2, "padding": 1})
FLIPPED: Any = ((2, 5, 6, 2), (3, 3, 2, 2), {"flip_kernel": True})
PLAIN: Any = (X, W, {})

# The name of a case seeds its arguments: (setting, name of the rule).
INPUT_GRADS: dict[str, tuple[Any, str]] = {
    "the kernel is not rotated": (PLAIN, "the kernel is not rotated"),
    "one axis of the kernel is rotated": (PLAIN, "one axis is rotated, not both"),
    "the kernel's channels are not exchanged": (PLAIN, "the channels are not exchanged"),
    "one tap of the kernel off by 1 %": (PLAIN, "one tap is off by 1 %"),
    "a true convolution's kernel is rotated": (FLIPPED, "a true convolution's kernel is rotated"),
    "the groups' order": (GROUPED, "the groups are in the wrong order"),
    "the stride's remainder ignored": (STRIDED, "the stride's remainder is ignored"),
    "the stride's remainder at the low end": (STRIDED, "the stride's remainder is at the wrong end"),
    "the stride's axes exchanged": (STRIDED, "the stride's axes are exchanged"),
    "the dilation ignored": (DILATED, "the dilation is ignored"),
    "the padding's ends exchanged": (LOPSIDED, "padding low and high are exchanged"),
    "the padding off by one": (PLAIN, "the padding is off by one"),
    "the input dilation ignored": (UPSAMPLED, "the input dilation is ignored"),
}
KERNEL_GRADS: dict[str, tuple[Any, str]] = {
    "only the first example": (PLAIN, "only the first example counts"),
    "the batch of g rolled": (PLAIN, "the batch of δ is rolled by one"),
    "a circular border": (PLAIN, "the border is circular"),
    "a true convolution's result is not rotated": (FLIPPED, "a true convolution's result is not rotated"),
    "the groups' order": (GROUPED, "the groups are in the wrong order"),
    "stride and dilation not exchanged": (STRIDED, "stride and dilation are not exchanged"),
    "the stride's remainder at the low end": (STRIDED, "the stride's remainder is cropped at the wrong end"),
    "the dilation ignored": (DILATED, "the dilation is ignored"),
    "the padding's ends exchanged": (LOPSIDED, "padding low and high are exchanged"),
    "the input dilation ignored": (UPSAMPLED, "the input dilation is ignored"),
}


def ruled(name: str, setting: Any, rules: ConvRules, op: Any = jaxconv.conv) -> Case:
    x, w, options = setting
    return case(name, partial(op, **options, rules=rules), x, w, gain=3e-3 if "1 %" in name else math.inf)


CONVOLUTIONS: list[Case] = [
    *(case(f"conv: {k}", with_gradient(conv, b), X, W, gain=gain) for k, (b, gain) in PLAINLY.items()),
    *(
        ruled(f"input_grad: {k}", s, ConvRules(WRONG_INPUT_GRADS[r], rotated.kernel_grad))
        for k, (s, r) in INPUT_GRADS.items()
    ),
    *(
        ruled(f"kernel_grad: {k}", s, ConvRules(rotated.input_grad, WRONG_KERNEL_GRADS[r]))
        for k, (s, r) in KERNEL_GRADS.items()
    ),
    ruled(
        "kernel_grad: x and g in each other's place",
        PLAIN,
        ConvRules(rotated.input_grad, lambda x, g, z: rotated.kernel_grad(g, x, z)),
    ),
    ruled(
        "conv_transpose: dx by the rotated kernel",
        ((2, 4, 4, 2), (3, 3, 2, 2), {"stride": 2}),
        ConvRules(rotated.input_grad, rotated.kernel_grad, lambda x, w, z, **_: rotated.conv(x, w[::-1, ::-1], z)),
        jaxconv.conv_transpose,
    ),
]
