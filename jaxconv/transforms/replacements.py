"""What stands in for which equation: the table of `manual`.

An equation of a traced program is described by its primitive, its parameters and the shapes it meets, and that is all a
decision depends on: `decide` says what is put in its place, or in words why it stays. `decisions` does so for a program
and `holds` says which programs within are read too. `manual` computes by them and its report prints them (`met`), so
they cannot disagree.

What is not in the table stays as it is. The gradient of a product of two matrices is two such products, which is what
JAX makes of it; but where the rows of one are several axes, as in a dense layer on images, JAX contracts all of them in
the kernel's gradient, and XLA on a CPU copies x to do so. A norm is many equations, of which `norms` makes one first.
Activations are left on purpose: XLA computes their gradient together with what stands around them.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.extend.core import primitives as known

from jaxconv import primitives
from jaxconv.ops import conv_general_dilated, reduce_window
from jaxconv.ops.arguments import Rules
from jaxconv.ops.dense import product, product_chosen
from jaxconv.ops.plan import Choice
from jaxconv.ops.standardise import Over, computed_by, normalise_at
from jaxconv.rules import CONV
from jaxconv.rules.fast import choice
from jaxconv.transforms.automatic import ruled
from jaxconv.transforms.norms import NORMALISATION, grouped
from jaxconv.transforms.program import equations, is_differentiated, is_on_explicit_axes, is_transposed, programs

# (rules, engine, *operands) -> results
Compute = Callable[..., list[Any]]
# (rules, engine, platform) -> what computes it and each of its gradients, by name
Plans = Callable[[Rules, str, str], dict[str, Choice]]


class Replacement(NamedTuple):
    """What stands in for an equation: an op of this library by its name.

    Attributes:
      op: the name.
      compute: the same results, of the equation's operands.
      plan: what computes them and their gradients.
    """

    op: str
    compute: Compute
    plan: Plans


Decision = Replacement | str


def decide(eqn: JaxprEqn) -> Decision | None:
    """What stands in for an equation, or why it stays; None for one that no rule of ours is about."""
    about = _TABLE.get(eqn.primitive)
    if about is None:
        return None
    x: Any = eqn.invars[0].aval
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return f"{x.dtype} has no gradient" if not jnp.issubdtype(x.dtype, jnp.inexact) else f"it is {x.dtype}"
    results: list[Any] = [v.aval for v in eqn.outvars]
    if any(y.weak_type for y in results):
        return WEAK
    return TAKEN if is_transposed(eqn) else about(eqn, x)


WEAK = "its result is weakly typed, which those of this library are not"
MESH = "a reshape would lose how its axes lie on a mesh with explicit axes"
TAKEN = "it belongs to a gradient that JAX has taken already"
OWN = "it has a derivative of its own, which stays"
CLOSED = "manual does not read the programs that this equation holds"


# Equations that run the programs they hold and no other: none brings a derivative of its own.
_RUN = {
    *(known.jit_p, known.closed_call_p, known.remat_p),
    *(known.scan_p, known.while_p, known.cond_p),
    *("shard_map", "core_call", "xla_pmap"),
}


def decisions(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, Decision]]:
    """What is said of each equation here that a rule of ours is about; not of those in the programs within.

    A norm is one equation: those of `grouped`.
    """
    fixed: set[Any] = set()
    for eqn in grouped(jaxpr).eqns:
        constant = all(isinstance(v, Literal) or v in fixed for v in eqn.invars) and not eqn.effects
        if constant:
            fixed.update(eqn.outvars)
        decision = decide(eqn)
        if decision is not None:
            yield eqn, "it is computed from constants alone" if constant else decision


def holds(eqn: JaxprEqn) -> bool:
    """Whether the programs of an equation are read too: one of a gradient is left whole."""
    return (eqn.primitive in _RUN or eqn.primitive.name in _RUN) and not is_transposed(eqn)


# Whether something is replaced in a program, which is asked again at every level above it.
_REPLACES: weakref.WeakKeyDictionary[Jaxpr, dict[bool, bool]] = weakref.WeakKeyDictionary()


def replaces(jaxpr: Jaxpr, before_gradients: bool = False) -> bool:
    """Whether something is replaced here or in a program within; if asked, beside the gradients JAX has taken."""
    known = _REPLACES.setdefault(jaxpr, {})
    if before_gradients not in known:
        known[before_gradients] = any(
            isinstance(decision, Replacement) for eqn, decision in decisions(jaxpr) if _counts(eqn, before_gradients)
        ) or any(
            replaces(inner, before_gradients)
            for eqn in jaxpr.eqns
            if holds(eqn) and _counts(eqn, before_gradients)
            for inner in programs(eqn)
        )
    return known[before_gradients]


def _counts(eqn: JaxprEqn, before_gradients: bool) -> bool:
    return not (before_gradients and is_differentiated(eqn))


def met(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, Replacement | str, tuple[tuple[str, int], ...]]]:
    """What is said of equations here and within; of one that is left whole also what would be replaced inside it."""
    said = {id(eqn): decision for eqn, decision in decisions(jaxpr)}
    for eqn in grouped(jaxpr).eqns:
        if id(eqn) in said:
            yield eqn, said[id(eqn)], ()
        elif holds(eqn):
            for inner in programs(eqn):
                yield from met(inner)
        elif is_transposed(eqn):
            for inner in programs(eqn):
                yield from ((e, TAKEN, ()) for e in equations(inner) if isinstance(decide(e), Replacement | str))
        elif found := _inside(eqn):
            yield eqn, OWN if ruled(eqn) is not None else CLOSED, tuple(found.items())


def _inside(eqn: JaxprEqn) -> Counter[str]:
    """What would be replaced, were it not inside this equation."""
    within = (e for program in programs(eqn) for e in equations(program))
    return Counter(e.primitive.name for e in within if isinstance(decide(e), Replacement))


def _convolution(eqn: JaxprEqn, x: Any) -> Decision:
    w: Any = eqn.invars[1].aval
    if not all(isinstance(n, int) for n in (*x.shape, *w.shape)):
        return choice.UNKNOWN
    if eqn.params["batch_group_count"] > 1 and any(map(is_on_explicit_axes, eqn.invars)):
        return MESH

    def compute(rules: Rules, engine: str, lhs: jax.Array, rhs: jax.Array) -> list[Any]:
        return [conv_general_dilated.rebound(lhs, rhs, eqn.params, rules, engine)]

    def plan(rules: Rules, engine: str, platform: str) -> dict[str, Choice]:
        return conv_general_dilated.chosen(x, w, eqn.params, rules, engine, platform)._asdict()

    return Replacement("conv_general_dilated", compute, plan)


class _Pool(NamedTuple):
    """A pool: what it is called, how it is computed, what it asks of an engine, and how a start value enters."""

    op: str
    compute: Callable[..., jax.Array]
    kinds: tuple[str, str]
    combine: Callable[[jax.Array, jax.Array], jax.Array]


# By the primitive of the reduction's body.
_POOLS = {
    known.max_p: _Pool("max_pool", reduce_window.maximum, reduce_window.MAXIMUM, lax.max),
    known.min_p: _Pool("−max_pool(−x)", reduce_window.minimum, reduce_window.MAXIMUM, lax.min),
    known.add_p: _Pool("sum over windows", reduce_window.total, reduce_window.TOTAL, lax.add),
}


def _pool(pool: _Pool, eqn: JaxprEqn, x: Any) -> Decision:
    found = reduce_window.windows(x, eqn.params)
    if isinstance(found, str):
        return found
    if found.given != x.shape and any(map(is_on_explicit_axes, eqn.invars)):
        return MESH
    if pool.kinds == reduce_window.MAXIMUM and np.isnan(np.asarray(-np.inf, x.dtype)):
        return f"{x.dtype} has no −∞ for padding to be"

    def compute(rules: Rules, engine: str, x: jax.Array, *start: jax.Array) -> list[Any]:
        return [functools.reduce(pool.combine, start, pool.compute(rules, found, x))]

    def plan(rules: Rules, engine: str, platform: str) -> dict[str, Choice]:
        return reduce_window.chosen(pool.kinds, rules, found, platform, x.dtype)

    return Replacement(pool.op, compute, plan)


def _product(eqn: JaxprEqn, x: Any) -> Decision:
    w: Any = eqn.invars[1].aval
    pairs, batches = eqn.params["dimension_numbers"]
    depth = len(pairs[0])
    last, first = tuple(range(x.ndim - depth, x.ndim)), tuple(range(depth))
    if any(batches):
        return "it is a batch of products, none of whose operands is a kernel"
    if x.dtype != w.dtype:
        return f"its operands are {x.dtype} and {w.dtype}"
    if depth == 0:
        return "nothing is summed in it"
    if sorted(zip(*pairs, strict=True)) != list(zip(last, first, strict=True)) or x.ndim - depth < 2:
        return "it is a product of two matrices, and its gradient two such products"
    if not all(isinstance(n, int) for n in (*x.shape, *w.shape)):
        return choice.UNKNOWN
    if any(map(is_on_explicit_axes, eqn.invars)):
        return MESH
    precision, dtype = eqn.params["precision"], eqn.params["preferred_element_type"]
    outer, inner = x.shape[: x.ndim - depth], w.shape[depth:]

    def compute(rules: Rules, engine: str, x: jax.Array, w: jax.Array) -> list[Any]:
        count = math.prod(w.shape[:depth])
        rows, columns = x.reshape(math.prod(outer), count), w.reshape(count, math.prod(inner))
        y = product(rows, columns, rules, engine=engine, precision=precision, dtype=dtype)
        return [y.reshape(*outer, *inner)]

    def plan(rules: Rules, engine: str, platform: str) -> dict[str, Choice]:
        shape = math.prod(outer), math.prod(w.shape[:depth]), math.prod(inner)
        return product_chosen(shape, rules, engine, platform, x.dtype, dtype or x.dtype)._asdict()

    return Replacement("dense", compute, plan)


def _normalisation(eqn: JaxprEqn, x: Any) -> Decision:
    norm = eqn.params["norm"]
    over = Over(norm.axes, norm.eps, norm.centred)

    def compute(rules: Rules, engine: str, *operands: jax.Array) -> list[Any]:
        x, mu, inverse, scale, shift = norm.operands(*operands)
        return [normalise_at(x, mu, inverse, scale, shift, over, rules)]

    def plan(rules: Rules, engine: str, platform: str) -> dict[str, Choice]:
        return computed_by(rules, over, platform, *jax.eval_shape(norm.operands, *(v.aval for v in eqn.invars)))

    return Replacement(f"norm over axes {', '.join(map(str, norm.axes))}", compute, plan)


def _generic(eqn: JaxprEqn, x: Any) -> Decision:
    """A reduction given as a function: pooling, if that is one equation on its two arguments and nothing else."""
    body = eqn.params["jaxpr"]
    pool = _POOLS.get(body.eqns[0].primitive) if len(body.eqns) == 1 else None
    plain = len(body.invars) == 2 and len(body.outvars) == 1
    if not (plain and pool and {*body.eqns[0].invars} == {*body.invars} and body.outvars == body.eqns[0].outvars):
        return "its windows are reduced by a function of its own"
    start = eqn.invars[1]
    if pool.combine is lax.add and not (isinstance(start, Literal) and start.val == 0):
        return "its sums start from a value that padding has too"
    return _pool(pool, eqn, x)


_TABLE: dict[Any, Callable[[JaxprEqn, Any], Decision]] = {
    known.conv_general_dilated_p: _convolution,
    known.dot_general_p: _product,
    known.reduce_window_max_p: functools.partial(_pool, _POOLS[known.max_p]),
    known.reduce_window_min_p: functools.partial(_pool, _POOLS[known.min_p]),
    known.reduce_window_sum_p: functools.partial(_pool, _POOLS[known.add_p]),
    known.reduce_window_p: _generic,
    NORMALISATION: _normalisation,
    known.select_and_scatter_add_p: lambda *_: TAKEN,
    known.select_and_gather_add_p: lambda *_: TAKEN,
}


# The way back: what a primitive of this library is called where its replacement is asked about as lax's.


def in_lax(primitive: Any, avals: Sequence[Any], params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The primitive of lax that a primitive of ours stands for, and its parameters; any other as it is."""
    if primitive is primitives.PRIMITIVES[CONV]:
        said = {"precision": params["precision"], "preferred_element_type": params["dtype"]}
        geometry = params["geometry"]
        if geometry.rank == 0:
            several = geometry.groups > 1 or params["depth"] > 0
            rows = (((2,), (1,)), ((0,), (0,))) if several else (((1,), (0,)), ((), ()))
            return known.dot_general_p, {"dimension_numbers": rows, "out_sharding": None} | said
        numbers = lax.ConvDimensionNumbers(geometry.layout.x, geometry.layout.w, geometry.layout.y)
        return known.conv_general_dilated_p, said | {
            "window_strides": geometry.stride, "padding": geometry.padding, "lhs_dilation": geometry.input_dilation,
            "rhs_dilation": geometry.dilation, "dimension_numbers": numbers, "feature_group_count": geometry.groups,
            "batch_group_count": 1,
        }  # fmt: skip
    pool = _POOLED.get(primitive.name)
    if pool is None:
        return primitive, params
    geometry, depth, rank = params["static"], params["depth"], avals[0].ndim

    def each(values: Sequence[Any], otherwise: Any) -> tuple[Any, ...]:
        whole = [otherwise] * rank
        for axis, value in zip(geometry.layout.x[2:], values, strict=True):
            whole[depth + axis] = value
        return tuple(whole)

    return pool, {
        "window_dimensions": each(geometry.taps, 1), "window_strides": each(geometry.stride, 1),
        "padding": each(geometry.padding, (0, 0)), "base_dilation": (1,) * rank,
        "window_dilation": each(geometry.dilation, 1),
    }  # fmt: skip


_POOLED = {
    "jaxconv_remember_winner": known.reduce_window_max_p,
    "jaxconv_max_pool": known.reduce_window_max_p,
    "jaxconv_window_sum": known.reduce_window_sum_p,
}
