"""Backward rules as values: the same two maps, written tap by tap, as two convolutions, and in the fastest order.

A rule set is a pair of plain functions,

    input_grad(g, w, geometry)  -> dx
    kernel_grad(x, g, geometry) -> dw

and what a function takes is what the forward pass must remember for it. The keyword arguments `precision`
and `preferred_element_type` are passed on only when the caller set them.

A rule set is carried by primitives, which know of the three maps what no single function shows: that they are each
other's derivatives, and that a batch of convolutions is a convolution (`jaxconv.primitives`). `Map` says both, once:

    map                   transposed in its 1st operand   transposed in its 2nd operand
    conv(x, w)            input_grad(ct, w)               kernel_grad(x, ct)
    input_grad(g, w)      conv(ct, w)                     kernel_grad(ct, g)
    kernel_grad(x, g)     input_grad(g, ct)               conv(x, ct)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax

from jaxconv import forward
from jaxconv.geometry import INDICES, Geometry
from jaxconv.rules import fast, rotated, textbook
from jaxconv.rules.backward import InputGrad, KernelGrad, options_of

__all__ = [
    "CONV",
    "FAST",
    "INPUT_GRAD",
    "KERNEL_GRAD",
    "RULE_SETS",
    "TRIO",
    "ConvRules",
    "Map",
    "fast",
    "is_fast",
    "rotated",
    "textbook",
]


class Map(NamedTuple):
    """One of the three partial gradients of T(x, w, g): it takes two of the arrays and makes the third.

    What a map takes another map makes, and that one is its transpose there: the three are closed under differentiation.
    Of n, c and o, the indices that are no positions and no taps, a map sums over the one that its operands share; the
    others pass from an operand to the result, and that is where a batch of the operand can go.

    Attributes:
      name: what a `ConvRules` calls it.
      takes: its operands, "y" being δ here.
      makes: its result.
      shape: (geometry, shape, shape) -> the shape of the result, from those of the operands.
    """

    name: str
    takes: tuple[str, str]
    makes: str
    shape: Callable[..., tuple[int, ...]]

    @property
    def transposes(self) -> tuple[Map, Map]:
        """The maps that are its transposes in its first operand and in its second."""
        first, second = (next(of for of in TRIO if of.makes == array) for array in self.takes)
        return first, second

    def kept(self, array: str) -> str:
        """Which index of an operand is one of the result, too."""
        return next(index for index in INDICES[array] if index in INDICES[self.makes])


CONV = Map("conv", ("x", "w"), "y", Geometry.conv_shape)
INPUT_GRAD = Map("input_grad", ("y", "w"), "x", Geometry.input_grad_shape)
KERNEL_GRAD = Map("kernel_grad", ("x", "y"), "w", Geometry.kernel_grad_shape)
TRIO = (CONV, INPUT_GRAD, KERNEL_GRAD)


@dataclass(frozen=True)
class ConvRules:
    """A hand-written backward pass for convolution, to be passed as `rules=` to an op or to a whole network.

    Every op with a kernel (`conv`, `conv_transpose`, `dense`) takes its gradients from it; an op without one is what it
    is by default, "fast". A rule returns an array of the shape below, in its operands' dtype or a wider one, which is
    then rounded once; anything else is an error that names the op and the rule.

    Every transformation of JAX applies. A rule is called, not looked into: its own derivatives are the other maps of
    the set, and a batch from `vmap` reaches it as one larger call, folded into the examples of x and g or into the
    channels of what they meet, so `grad(vmap(f))` computes one kernel gradient. Only a batch on both operands, which
    is what gradients per example ask for, is mapped over the rule with `vmap`. Outside of `jit` and of that a rule
    gets arrays with values in them, and may be written in NumPy. It is to be bilinear, as the maps are.

    Args:
      input_grad: (g, w, geometry) -> dx, with dx.shape = geometry.x_shape(batch, channels).
      kernel_grad: (x, g, geometry) -> dw, with dw.shape = geometry.w_shape(channels // groups, outputs).
      conv: the map the two are gradients of. It is what the input gradient of a transposed convolution runs; a forward
        pass of `conv` does not, since it is `lax`'s under all rules but "fast".
    """

    input_grad: Callable[..., jax.Array]
    kernel_grad: Callable[..., jax.Array]
    conv: Callable[..., jax.Array] = forward.conv

    def __post_init__(self) -> None:
        for field in fields(self):
            rule = getattr(self, field.name)
            if not callable(rule):
                raise TypeError(f"ConvRules: {field.name} must be a function, but is {rule!r}.")

    @classmethod
    def from_backward(cls, backward: Callable[..., tuple[jax.Array, jax.Array]]) -> ConvRules:
        """The rules of one function that returns both gradients, as a backward pass is written by hand.

        A rule is given what its gradient depends on, and δ and w are all that dx does: where dx is asked for, x is
        zeros of its shape, and w where dw is. A `jit` leaves the other gradient out; an eager call computes both twice.

        Args:
          backward: (x, w, g) -> (dx, dw), g being δ, shapes and dtypes as in `conv`. If it has parameters called
            stride, padding, dilation, input_dilation, groups, flip_kernel or geometry, they are passed by name, from
            the `Geometry` of the call: tuples with one entry per spatial axis, for padding (lo, hi) pairs. Whatever
            else it needs, it has closed over.

        Returns:
          The rules; equal for equal functions, so that nothing is compiled twice.

        Raises:
          TypeError: for a function of other parameters; when called, for results that are not two.
          ValueError: when called, for a gradient that has not its argument's shape.

        Example:
          >>> import jax, jax.numpy as jnp, jaxconv
          >>> def backward(x, w, g, stride):  # one axis, padding="VALID"
          ...     (s,), reach = stride, stride[0] * (g.shape[1] - 1) + 1
          ...     read = [slice(k, k + reach, s) for k in range(w.shape[0])]  # what tap k reads
          ...     dx = sum(jnp.zeros_like(x).at[:, r].add(g @ w[k].T) for k, r in enumerate(read))
          ...     return dx, jnp.stack([jnp.einsum("npc,npo->co", x[:, r], g) for r in read])
          >>> rules = jaxconv.ConvRules.from_backward(backward)
          >>> jaxconv.explain((1, 7, 2), (3, 2, 4), stride=2, padding="VALID", rules=rules).verify()
          True
        """
        options = options_of(backward)
        return cls(InputGrad(backward, options), KernelGrad(backward, options))


FAST = ConvRules(fast.input_grad, fast.kernel_grad, fast.conv)
RULE_SETS = {
    "textbook": ConvRules(textbook.input_grad, textbook.kernel_grad, textbook.conv),
    "rotated": ConvRules(rotated.input_grad, rotated.kernel_grad, rotated.conv),
    "fast": FAST,
}


def is_fast(rules: ConvRules) -> bool:
    """Whether a rule set chooses how to compute, by what is measured here or by a table: it is told who may compute.

    Such a rule knows of groups, so that a batch on both operands folds into them.
    """
    return rules == FAST or all(isinstance(getattr(rules, field.name), fast.Measured) for field in fields(rules))
