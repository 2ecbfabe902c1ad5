"""Kernels: what an engine computes where XLA is slow, as a primitive that is plain JAX everywhere else.

A kernel has no derivative of its own. It stands in the functions of an op's `Derivative`, which says what the op's
derivative is; whoever differentiates these functions in their turn differentiates the kernel's plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.interpreters import ad

from jaxconv.primitives.define import PLAIN, bound, mapped_primitive
from jaxconv.primitives.native import Takes, lower_natively

Plain = Callable[..., tuple[jax.Array, ...]]


def kernel(name: str, plain: Plain, native: Takes) -> Callable[..., Sequence[jax.Array]]:
    """A function (*operands, static) -> results that an engine computes where it can.

    Args:
      name: what it is called in a jaxpr: `jaxconv_<name>`.
      plain: (*operands, static) -> a tuple of arrays, in plain JAX.
      native: the call of the engine, or in words why it does not take these operands.
    """
    primitive = mapped_primitive(name, plain, multiple_results=True)
    lower_natively(primitive, native)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, PLAIN[primitive])
    return functools.partial(bound, primitive)


def _jvp(compute: Plain, primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[Any, Any]:
    return jax.jvp(functools.partial(compute, **static), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))
