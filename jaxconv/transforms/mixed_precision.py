"""Gradients in 16 bits for weights in 32: what is carried in which dtype, and a loss that is scaled where it has to be.

float16 ends at 65504, and has no number between 0 and 6e-8. The gradient of a mean loss is mostly smaller than that, so
the loss is multiplied by a power of two S before it is differentiated, and the gradient, which is linear in it, divided
by S afterwards, in float32. S starts large. Whenever a gradient overflows, the step is skipped and S halved; after
`interval` steps without that, S is doubled. bfloat16 has float32's range, and needs no scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxconv.geometry import integer
from jaxconv.ops.arguments import number

# Gradients of a mean over millions of pixels want no more, and a scale that never overflows must end somewhere.
LARGEST = 2.0**24
# float16's smallest normal number. A loss that is scaled by less has hardly a gradient; by 0, none ever again.
SMALLEST = 2.0**-14


class LossScale(NamedTuple):
    """S, and how many steps ago it was last changed."""

    scale: jax.Array
    calm: jax.Array


@dataclass(frozen=True)
class MixedPrecision:
    """A policy: parameters stay as they are, float32, and a network computes in `dtype`.

    The networks of `jaxconv.layers` take the dtype, `apply(..., dtype=policy.dtype)`, and keep norms in float32 by
    themselves. A function of your own casts the kernels and images that it uses with `cast`, and no parameters of
    norms. Losses of 16-bit logits are float32. Gradients have the dtype of the parameters.

    Args:
      dtype: of activations and of their gradients; floating.
      scale: the first factor in front of a float16 loss, a power of two, at least 1. Other dtypes have none.
      interval: how many steps without an overflow double it.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> policy = jaxconv.MixedPrecision(jnp.float16)
      >>> w, x = jnp.full((3, 3, 1, 2), 1e-4), jnp.ones((1, 8, 8, 1))
      >>> def loss(w):
      ...     y = jaxconv.conv(policy.cast(x), policy.cast(w))  # float16
      ...     return 1e-4 * y.astype(jnp.float32).mean()
      >>> step = jax.jit(policy.value_and_grad(loss))
      >>> value, grad, scaling, finite = step(policy.init(), w)
      >>> grad.dtype, f"{grad[1, 1, 0, 0]:.3g}", bool(finite), float(scaling.scale)
      (dtype('float32'), '5e-05', True, 32768.0)

    Source: Micikevicius et al., Mixed Precision Training (2018).
    """

    dtype: Any = jnp.bfloat16
    scale: float = 2.0**15
    interval: int = 2000

    def __post_init__(self) -> None:
        _check_floating(self.dtype)
        scale = number("MixedPrecision", "scale", self.scale)
        if not 1 <= scale <= LARGEST:
            raise ValueError(f"MixedPrecision: scale must satisfy 1 <= scale <= {LARGEST:g}, but is {scale:g}.")
        mantissa, exponent = math.frexp(scale)
        if mantissa != 0.5:
            raise ValueError(
                "MixedPrecision: scale must be a power of two, since a division by anything else rounds, "
                f"but is {scale:.10g}. Take {2.0 ** (exponent - 1):.10g} or {2.0**exponent:.10g}."
            )
        integer("MixedPrecision", "interval", self.interval, 1)

    def init(self) -> LossScale | None:
        """What is carried from step to step; None where nothing is scaled."""
        if jnp.dtype(self.dtype) != jnp.float16:
            return None
        return LossScale(jnp.full((), self.scale, jnp.float32), jnp.zeros((), jnp.int32))

    def cast(self, tree: Any) -> Any:
        """Every floating array of a pytree in `dtype`; integers, booleans and keys as they are."""

        def one(a: Any) -> Any:
            return jnp.asarray(a, self.dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a

        return jax.tree.map(one, tree)

    def value_and_grad(
        self, loss: Callable[..., Any], *, has_aux: bool = False, axis_name: Any = None
    ) -> Callable[..., Any]:
        """`jax.value_and_grad(loss)` in the first argument, by a scaled loss.

        Args:
          loss: (params, *args, **options) -> a scalar, or (a scalar, aux) if `has_aux`.
          axis_name: mesh or vmap axes whose devices skip a step together. For where each has gradients of its own, as
            inside `jax.shard_map(..., check_vma=False)` before their mean is taken: some may overflow and others not.

        Returns:
          A function (scaling, params, *args, **options) -> (value, grads, new scaling, finite). `value` is (value, aux)
          if `has_aux`; `finite` says whether all gradients are numbers, in every dtype, and with `axis_name` on all of
          its devices. If not, skip the step: where the loss is scaled, `accept` does.
        """

        def graded(
            scaling: LossScale | None, params: Any, /, *args: Any, **options: Any
        ) -> tuple[Any, Any, LossScale | None, jax.Array]:
            def scaled(params: Any) -> tuple[jax.Array, Any]:
                out = loss(params, *args, **options)
                value = out[0] if has_aux else out
                return value if scaling is None else jnp.asarray(value, jnp.float32) * scaling.scale, out

            grads, out = jax.grad(scaled, has_aux=True)(params)
            if scaling is not None:
                grads = jax.tree.map(lambda g: (g.astype(jnp.float32) / scaling.scale).astype(g.dtype), grads)
            finite = _finite(grads, axis_name)
            return out, grads, None if scaling is None else self._moved(scaling, finite), finite

        return graded

    def accept(self, finite: jax.Array, new: Any, old: Any) -> Any:
        """`new` after a step whose gradients were finite, `old` after one that is skipped: pytrees alike.

        Only where the loss is scaled, since a smaller scale may mend the next step: in other dtypes it is always `new`.
        """
        if jnp.dtype(self.dtype) != jnp.float16:
            return new
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    def _moved(self, old: LossScale, finite: jax.Array) -> LossScale:
        calm = jnp.where(finite, old.calm + 1, 0)
        doubled = jnp.where(calm >= self.interval, jnp.minimum(2 * old.scale, LARGEST), old.scale)
        halved = jnp.maximum(old.scale / 2, SMALLEST)
        return LossScale(jnp.where(finite, doubled, halved), jnp.where(calm >= self.interval, 0, calm))


def _finite(grads: Any, axis_name: Any) -> jax.Array:
    """Whether all of them are numbers, on all devices of `axis_name`."""
    each = jax.tree.map(lambda g: jnp.isfinite(g).all(), grads)
    finite = jax.tree.reduce(jnp.logical_and, each, jnp.ones((), bool))
    return finite if axis_name is None else lax.pmin(finite.astype(jnp.int32), axis_name) == 1


def _check_floating(dtype: DTypeLike) -> None:
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(f"MixedPrecision: dtype must be floating, such as jnp.bfloat16, but is {dtype!r}.")
