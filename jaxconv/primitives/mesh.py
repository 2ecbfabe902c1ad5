"""Operands on several devices: marked alike under `shard_map`, bound under a mesh with explicit axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec


def alike(*operands: Any) -> list[Any]:
    """Operands marked as varying over the same axes of a `shard_map`; the transpose of the mark is a `psum`."""
    union = frozenset().union(*(_varying(jax.typeof(a)) for a in operands))
    return [varying(a, union) for a in operands]


def varying(x: Any, names: Iterable[Any]) -> Any:
    """x marked as varying over these axes too."""
    missing = set(names) - _varying(jax.typeof(x))
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def bind(primitive: Primitive, spec: Callable[..., tuple[Any, ...]], *operands: Any, **static: Any) -> Any:
    """Bind under any mesh. Under an explicit one the partitioner works inside and `spec` names the outcome.

    `spec` is called as the primitive is, with the operands' own specs in their place, one entry per axis.
    """
    operands = tuple(alike(*operands))
    mesh = explicit(operands)
    if mesh is None:
        return primitive.bind(*operands, **static)
    out = NamedSharding(mesh, PartitionSpec(*spec(*(_spec(a) for a in operands), **static)))
    inner = jax.sharding.auto_axes(lambda *a: primitive.bind(*a, **static), out_sharding=out)
    return inner(*operands)


def split(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA splits the program over several devices: a loop over examples, or an engine, would gather them.

    Under `shard_map` nobody splits anything, if all axes of its mesh are manual.
    """
    where: Any = ctx.module_context.axis_context
    mesh = getattr(where, "mesh", None)
    if mesh is None:
        return getattr(where, "num_devices", 1) != 1
    return any(size > 1 and axis not in where.manual_axes for axis, size in mesh.shape.items())


def local(ctx: mlir.LoweringRuleContext) -> mlir.LoweringRuleContext:
    """The same for a function that knows nothing of meshes, such as one with loops: its operands are arrays of here."""
    avals: Any = ctx.avals_in
    return ctx.replace(avals_in=[jax.core.ShapedArray(a.shape, a.dtype) for a in avals])


def exported(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the program is to run elsewhere, by `jax.export`: there may be no engine there."""
    return ctx.module_context.lowering_parameters.for_export


def _varying(aval: Any) -> frozenset[Any]:
    """The manual mesh axes over which a value differs, under `shard_map`."""
    known = getattr(aval, "vma", None)
    return known if known is not None else aval.manual_axis_type.varying


def explicit(operands: Sequence[Any]) -> Any:
    """The mesh whose axes are part of the operands' types ("explicit sharding"), if there is one."""
    for a in operands:
        mesh = jax.typeof(a).sharding.mesh
        if not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def _spec(a: Any) -> tuple[Any, ...]:
    aval = jax.typeof(a)
    return (*aval.sharding.spec, *[None] * (aval.ndim - len(aval.sharding.spec)))
