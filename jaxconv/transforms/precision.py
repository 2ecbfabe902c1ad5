"""A program with every float carried in another precision, and every hand-written rule taken out.

This is how a function that was written, traced and is used in bfloat16 has an exact value and an exact gradient to be
judged by.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core import primitives as known

from jaxconv import primitives
from jaxconv.transforms.automatic import plainly, unruled
from jaxconv.transforms.program import Program, Step, bind, by_table, interpret, within

# Equations that mean something only at the precision they were traced in: they look at bits, or at foreign code.
_OPAQUE = {
    *(known.bitcast_convert_type_p, known.nextafter_p, known.random_gamma_p),
    *("ffi_call", "pallas_call", "pure_callback", "io_callback"),
    *("custom_partitioning", "tpu_custom_call", "triton_kernel_call"),
}


def run(program: Program, leaves: Sequence[Any], floats: Any = None) -> list[Any]:
    """The results of a program at `leaves`, without hand-written rules; with `floats`, every float in that dtype."""
    return plainly(program.closed, leaves) if floats is None else _read(program.closed, leaves, floats)


def is_opaque(eqn: JaxprEqn) -> bool:
    """Whether an equation computes from floats, but not at any other precision than its own."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    foreign = eqn.primitive in _OPAQUE or eqn.primitive.name in _OPAQUE
    return foreign and any(jnp.issubdtype(a.dtype, jnp.floating) for a in avals)


def carried(x: Any, floats: Any) -> Any:
    """A value at the precision that floats are carried in."""
    own = jax.typeof(x).dtype
    dtype = _carried_dtype(own, floats)
    if dtype == own:
        return x
    with np.errstate(over="ignore"):  # the least float64 is −∞ in float32
        return jnp.asarray(x, dtype)


def evaluate(eqn: JaxprEqn, operands: list[Any], floats: Any) -> list[Any]:
    """One equation's results, its rule removed and its floats carried in `floats`."""
    return _evaluation(floats)(eqn, operands)


@functools.cache
def _evaluation(floats: Any) -> Step:
    table: dict[Any, Step] = {
        **unruled(functools.partial(_read, floats=floats)),
        **dict.fromkeys(_OPAQUE, functools.partial(_at_own_precision, floats=floats)),
        known.reduce_precision_p: lambda _, operands: operands,
    }
    return by_table(table, functools.partial(_carrying, floats=floats))


def _read(closed: ClosedJaxpr, operands: Sequence[Any], floats: Any) -> list[Any]:
    as_floats = functools.partial(carried, floats=floats)
    return interpret(closed.jaxpr, [*map(as_floats, closed.consts)], operands, _evaluation(floats), as_floats)


def _carrying(eqn: JaxprEqn, operands: list[Any], floats: Any) -> list[Any]:
    """An equation's results at the dtypes that it names, changed."""
    params = {k: _carried_dtype(v, floats) if isinstance(v, np.dtype) else v for k, v in eqn.params.items()}
    if "precision" in params:
        params["precision"] = None  # a recipe for narrower floats
    if eqn.primitive in primitives.PLAIN:
        return primitives.plainly(eqn.primitive, *operands, **params)

    def like(aval: Any) -> Any:
        return aval.update(dtype=_carried_dtype(aval.dtype, floats))

    ys = within(eqn, operands, params, functools.partial(_read, floats=floats), like)
    return [carried(y, floats) for y in ys]


def _at_own_precision(eqn: JaxprEqn, operands: Sequence[Any], floats: Any) -> list[Any]:
    avals: list[Any] = [v.aval for v in eqn.invars]
    own = [x if jax.typeof(x).dtype == a.dtype else x.astype(a.dtype) for x, a in zip(operands, avals, strict=True)]
    return [carried(y, floats) for y in bind(eqn, own, eqn.params)]


def _carried_dtype(dtype: Any, floats: Any) -> Any:
    """The dtype in which a dtype is carried: floats as `floats`, complex numbers as two of them, others as they are."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex64 if np.dtype(floats).itemsize == 4 else np.complex128)
    return np.dtype(floats)
