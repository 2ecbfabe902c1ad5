"""Backward rules as values: the same two maps, written three independent ways.

A rule set is a pair of plain functions,

    input_grad(g, w, geometry)  -> dx
    kernel_grad(x, g, geometry) -> dw

and what a function takes is what the forward pass must remember for it. The keyword arguments `precision`
and `preferred_element_type` are passed on only when the caller set them.

A rule set is carried by primitives, which know of the three maps what no single function shows: that they are each
other's derivatives, and that a batch of convolutions is a convolution (`jaxconv.primitives`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxconv import forward
from jaxconv.rules import fast, rotated, textbook

__all__ = ["NAMED", "ConvRules", "fast", "rotated", "textbook"]


@dataclass(frozen=True)
class ConvRules:
    """A hand-written backward pass for convolution, to be passed as `rules=`.

    Every transformation of JAX applies. A rule is called, not looked into: its own derivatives are the other maps of
    the set, and a batch from `vmap` reaches it as one larger call, folded into the examples of x and g or into the
    channels of what they meet, so `grad(vmap(f))` computes one kernel gradient. Only a batch on both operands, which
    is what gradients per example ask for, is mapped over the rule with `vmap`. Outside of `jit` and of that a rule
    gets arrays with values in them, and may be written in NumPy. It is to be bilinear, as the maps are.

    Args:
      input_grad: (g, w, geometry) -> dx, with dx.shape = geometry.x_shape(batch, channels).
      kernel_grad: (x, g, geometry) -> dw, with dw.shape = geometry.w_shape(channels // groups, outputs).
      conv: the map the two are gradients of; the input gradient of a transposed convolution is this one.
    """

    input_grad: Callable[..., jax.Array]
    kernel_grad: Callable[..., jax.Array]
    conv: Callable[..., jax.Array] = forward.conv


NAMED = {
    "textbook": ConvRules(textbook.input_grad, textbook.kernel_grad, textbook.conv),
    "rotated": ConvRules(rotated.input_grad, rotated.kernel_grad, rotated.conv),
    "fast": ConvRules(fast.input_grad, fast.kernel_grad, fast.conv),
}
