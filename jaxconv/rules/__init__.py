"""Backward rules as values: the same two maps, written three independent ways.

A rule set is a pair of plain functions,

    input_grad(g, w, geometry)  -> dx
    kernel_grad(x, g, geometry) -> dw

and what a function takes is what the forward pass must remember for it. The keyword arguments `precision`
and `preferred_element_type` are passed on only when the caller set them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import jax

from jaxconv import forward
from jaxconv.rules import fast, rotated, textbook

__all__ = ["NAMED", "ConvRules", "fast", "rotated", "textbook"]


@dataclass(frozen=True)
class ConvRules:
    """A hand-written backward pass for convolution, to be passed as `rules=` to an op or to a whole network.

    Every op with a kernel (`conv`, `conv_transpose`, `dense`) takes its gradients from it; an op without one is what it
    is by default, "fast". A rule returns an array of the shape below, in its operands' dtype or a wider one, which is
    then rounded once; anything else is an error that names the op and the rule.

    Args:
      input_grad: (g, w, geometry) -> dx, with dx.shape = geometry.x_shape(batch, channels).
      kernel_grad: (x, g, geometry) -> dw, with dw.shape = geometry.w_shape(channels // groups, outputs).
      conv: the map the two are gradients of; the input gradient of a transposed convolution is this one.
    """

    input_grad: Callable[..., jax.Array]
    kernel_grad: Callable[..., jax.Array]
    conv: Callable[..., jax.Array] = forward.conv

    def __post_init__(self) -> None:
        for field in fields(self):
            rule = getattr(self, field.name)
            if not callable(rule):
                raise TypeError(f"ConvRules: {field.name} must be a function, but is {rule!r}.")


NAMED = {
    "textbook": ConvRules(textbook.input_grad, textbook.kernel_grad, textbook.conv),
    "rotated": ConvRules(rotated.input_grad, rotated.kernel_grad, rotated.conv),
    "fast": ConvRules(fast.input_grad, fast.kernel_grad, fast.conv),
}
