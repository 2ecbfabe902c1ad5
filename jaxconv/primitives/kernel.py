"""Kernels: what an engine computes where XLA is slow, as a primitive that is plain JAX everywhere else.

A kernel has no derivative of its own. It stands in the functions of an op's `Derivative`, which says what the op's
derivative is; whoever differentiates these functions in their turn differentiates the kernel's plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxconv.primitives import mesh
from jaxconv.primitives.define import define, mapped, traced
from jaxconv.primitives.native import Takes, lower_natively

Plain = Callable[..., tuple[jax.Array, ...]]


def kernel(name: str, plain: Plain, native: Takes) -> Callable[..., list[jax.Array]]:
    """A function (*operands, static) -> results that an engine computes where it can.

    Args:
      name: what it is called in a jaxpr: `jaxconv_<name>`.
      plain: (*operands, static) -> a tuple of arrays, in plain JAX.
      native: the call of the engine, or in words why it does not take these operands.
    """
    compute = functools.partial(_computed, plain)
    primitive = define(name, compute, compute, functools.partial(traced, compute), multiple_results=True)
    lower_natively(primitive, native)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, compute)
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)

    def called(*operands: jax.Array, static: Any) -> list[jax.Array]:
        if mesh.explicit(operands):  # there JAX follows the axes of a mesh from operation to operation
            return list(plain(*operands, static=static))
        return primitive.bind(*mesh.alike(*operands), static=static, depth=0)

    return called


def _computed(plain: Plain, *operands: jax.Array, static: Any, depth: int) -> tuple[jax.Array, ...]:
    return mapped(functools.partial(plain, static=static), depth)(*operands)


def _jvp(compute: Plain, primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[Any, Any]:
    return jax.jvp(functools.partial(compute, **static), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batched(
    primitive: Primitive, operands: Sequence[Any], dims: Sequence[Any], *, depth: int, static: Any
) -> tuple[list[jax.Array], list[int]]:
    size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    operands = [batching.bdim_at_front(a, d, size) for a, d in zip(operands, dims, strict=True)]
    results = primitive.bind(*operands, depth=depth + 1, static=static)
    return results, [0] * len(results)
