"""Linear maps of several arrays to one, and their hand-written transposes: what the derivative of a norm is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from jaxconv.primitives.define import PLAIN, bound, mapped_primitive
from jaxconv.primitives.native import Takes, lower_natively


class SeveralPair(NamedTuple):
    """A linear map and its transpose.

    Args:
      apply: (*tangents, *residuals, static) -> y, as many tangents as the map has arrays.
      transpose: (g, *residuals, static) -> one array for each of these.
    """

    apply: Callable[..., jax.Array]
    transpose: Callable[..., Sequence[jax.Array]]


def several_pair(
    name: str, arity: int, apply: Callable[..., jax.Array], transpose: Callable[..., tuple[jax.Array, ...]],
    native_transpose: Takes,
) -> SeveralPair:  # fmt: skip
    """Two primitives from two functions in plain JAX; an engine may compute the transpose on a CPU.

    Residuals have derivatives: those of the functions as plain JAX.
    """
    there, back = mapped_primitive(name, apply), mapped_primitive(f"{name}_transpose", transpose, True)
    lower_natively(back, native_transpose)
    for primitive, linear in ((there, arity), (back, 1)):
        ad.primitive_jvps[primitive] = functools.partial(_jvp, primitive, linear)
    ad.primitive_transposes[there] = functools.partial(_transposed, back, arity)
    ad.primitive_transposes[back] = functools.partial(_transposed_back, there)
    return SeveralPair(functools.partial(bound, there), functools.partial(bound, back))


def _jvp(
    primitive: Primitive, linear: int, primals: Sequence[Any], tangents: Sequence[Any], **static: Any
) -> tuple[Any, Any]:
    """The map of the tangents of what it is linear in, and for those of its residuals the derivative of plain JAX."""
    point, moves, parts = primals[linear:], tangents[linear:], []
    if any(type(t) is not ad.Zero for t in tangents[:linear]):
        parts.append(primitive.bind(*map(ad.instantiate_zeros, tangents[:linear]), *point, **static))
    if any(type(move) is not ad.Zero for move in moves):
        of_point = functools.partial(PLAIN[primitive], *primals[:linear], **static)
        parts.append(jax.jvp(of_point, tuple(point), tuple(map(ad.instantiate_zeros, moves)))[1])
    total = parts[0]
    for part in parts[1:]:
        total = [*map(jnp.add, total, part)] if primitive.multiple_results else total + part
    return primitive.bind(*primals, **static), total


def _transposed(back: Primitive, arity: int, ct: Any, *operands: Any, **static: Any) -> list[Any]:
    tangents, residuals = operands[:arity], operands[arity:]
    if type(ct) is ad.Zero:
        return [None] * len(operands)
    gradients = back.bind(ct, *residuals, **static)
    wanted = [d if ad.is_undefined_primal(t) else None for d, t in zip(gradients, tangents, strict=True)]
    return [*wanted, *[None] * len(residuals)]


def _transposed_back(there: Primitive, cts: Sequence[Any], g: Any, *residuals: Any, **static: Any) -> list[Any]:
    ct = there.bind(*map(ad.instantiate_zeros, cts), *residuals, **static)
    return [ct, *[None] * len(residuals)]
