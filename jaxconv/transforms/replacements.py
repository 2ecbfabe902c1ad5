"""What stands in for which equation: the table of `manual`.

An equation of a traced program is described by its primitive, its parameters and the shapes it meets, and that is all a
decision depends on: `decide` says what is put in its place, or in words why it stays. `manual` computes by it and its
report prints it, so they cannot disagree.

What is not in the table stays as it is. The gradient of a product of two matrices is two such products, which is what
JAX makes of it; but where the rows of one are several axes, as in a dense layer on images, JAX contracts all of them in
the kernel's gradient, and XLA on a CPU copies x to do so. Activations are left on purpose: XLA computes their gradient
together with what stands around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as known

from jaxconv.ops import conv_general_dilated, reduce_window
from jaxconv.ops.arguments import Rules
from jaxconv.ops.dense import product

# (rules, engine, *operands) -> results
Compute = Callable[..., list[Any]]


class Replacement(NamedTuple):
    """What stands in for an equation: an op of this library by its name, and how it computes the same results."""

    op: str
    compute: Compute


Decision = Replacement | str


def decide(eqn: JaxprEqn) -> Decision | None:
    """What stands in for an equation, or why it stays; None for one that no rule of ours is about."""
    about = _TABLE.get(eqn.primitive)
    if about is None:
        return None
    x: Any = eqn.invars[0].aval
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return f"{x.dtype} has no gradient" if not jnp.issubdtype(x.dtype, jnp.inexact) else f"it is {x.dtype}"
    return TAKEN if is_transposed(eqn) else about(eqn, x)


SYMBOLIC = "a size is symbolic"
TAKEN = "it belongs to a gradient that JAX has taken already"


def is_transposed(eqn: JaxprEqn) -> bool:
    """Whether reverse mode made an equation."""
    return "transpose(" in str(eqn.source_info.name_stack)


def _convolution(eqn: JaxprEqn, x: Any) -> Decision:
    w: Any = eqn.invars[1].aval
    if not all(isinstance(n, int) for n in (*x.shape, *w.shape)):
        return SYMBOLIC

    def compute(rules: Rules, engine: str, lhs: jax.Array, rhs: jax.Array) -> list[Any]:
        return [conv_general_dilated.rebound(lhs, rhs, eqn.params, rules, engine)]

    return Replacement("conv_general_dilated", compute)


def _pool(op: str, pool: Callable[..., jax.Array]) -> Callable[[JaxprEqn, Any], Decision]:
    def about(eqn: JaxprEqn, x: Any) -> Decision:
        found = reduce_window.windows(x, eqn.params)
        if isinstance(found, str):
            return found
        return Replacement(op, lambda rules, engine, x: [pool(rules, found, x)])

    return about


def _product(eqn: JaxprEqn, x: Any) -> Decision:
    w: Any = eqn.invars[1].aval
    (contracted, rows), batches = eqn.params["dimension_numbers"]
    depth = len(contracted)
    last, first = tuple(range(x.ndim - depth, x.ndim)), tuple(range(depth))
    if any(batches):
        return "it is a batch of products, none of whose operands is a kernel"
    if x.dtype != w.dtype:
        return f"its operands are {x.dtype} and {w.dtype}"
    if tuple(contracted) != last or tuple(rows) != first or x.ndim - depth < 2:
        return "it is a product of two matrices, and its gradient two such products"
    if not all(isinstance(n, int) for n in (*x.shape, *w.shape)):
        return SYMBOLIC
    precision, dtype = eqn.params["precision"], eqn.params["preferred_element_type"]
    outer, inner = x.shape[: x.ndim - depth], w.shape[depth:]

    def compute(rules: Rules, engine: str, x: jax.Array, w: jax.Array) -> list[Any]:
        count = math.prod(w.shape[:depth])
        rows, columns = x.reshape(math.prod(outer), count), w.reshape(count, math.prod(inner))
        y = product(rows, columns, rules, engine=engine, precision=precision, dtype=dtype)
        return [y.reshape(*outer, *inner)]

    return Replacement("dense", compute)


# The reductions that a `reduce_window` may be given, as the primitive of its body: which pool, and how it starts.
_REDUCTIONS = {
    known.max_p: ("max_pool", reduce_window.maximum, lax.max),
    known.min_p: ("−max_pool(−x)", reduce_window.minimum, lax.min),
    known.add_p: ("sum over windows", reduce_window.total, lax.add),
}


def _generic(eqn: JaxprEqn, x: Any) -> Decision:
    """A reduction given as a function: pooling, if that is one equation on its two arguments and nothing else."""
    body = eqn.params["jaxpr"]
    reduction = _REDUCTIONS.get(body.eqns[0].primitive) if len(body.eqns) == 1 else None
    plain = len(body.invars) == 2 and len(body.outvars) == 1
    if not (plain and reduction and {*body.eqns[0].invars} == {*body.invars} and body.outvars == body.eqns[0].outvars):
        return "its windows are reduced by a function of its own"
    op, pool, combine = reduction
    start = eqn.invars[1]
    if combine is lax.add and not (isinstance(start, Literal) and start.val == 0):
        return "its sums start from a value that padding has too"
    found = reduce_window.windows(x, eqn.params)
    if isinstance(found, str):
        return found
    return Replacement(op, lambda rules, engine, x, start: [combine(pool(rules, found, x), start)])


_TABLE: dict[Any, Callable[[JaxprEqn, Any], Decision]] = {
    known.conv_general_dilated_p: _convolution,
    known.dot_general_p: _product,
    known.reduce_window_max_p: _pool(*_REDUCTIONS[known.max_p][:2]),
    known.reduce_window_min_p: _pool(*_REDUCTIONS[known.min_p][:2]),
    known.reduce_window_sum_p: _pool(*_REDUCTIONS[known.add_p][:2]),
    known.reduce_window_p: _generic,
    known.select_and_scatter_add_p: lambda *_: TAKEN,
    known.select_and_gather_add_p: lambda *_: TAKEN,
}
