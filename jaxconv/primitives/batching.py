"""`vmap` of the trio: a batch folds into an axis that the map does not sum over, or into the groups."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from jaxconv.geometry import Geometry
from jaxconv.primitives.trio import FAST, _conv, _input_grad, _kernel_grad, _Map


def _fold(a: jax.Array, batch: int, axis: int, groups: int = 1) -> jax.Array:
    """Merge the batch axis into `axis` (counted without it), inside each of `groups` blocks."""
    a = jnp.moveaxis(a, batch, 0)
    size, shape = a.shape[0], a.shape[1:]
    a = a.reshape(size, *shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    a = jnp.moveaxis(a, 0, axis + 1)
    return a.reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def _unfold(a: jax.Array, size: int, axis: int, groups: int = 1) -> jax.Array:
    """The inverse of `_fold`; the batch axis comes first."""
    shape = a.shape
    a = a.reshape(*shape[:axis], groups, size, shape[axis] // (groups * size), *shape[axis + 1 :])
    a = jnp.moveaxis(a, axis + 1, 0)
    return a.reshape(size, *shape[:axis], shape[axis] // size, *shape[axis + 1 :])


class _Folding(NamedTuple):
    """Where a batch goes: into which axis (batch or channel) of the operand and of the result.

    `inside` says that the axis holds all groups, so the batch has to be folded inside each of them.
    """

    operand: int
    result: int
    inside_operand: bool = False
    inside_result: bool = False


_BATCH, _CHANNEL = 0, 1  # positions in a layout's spec; for a kernel these are (out, in)

# What a batch on the first operand alone, or on the second alone, folds into.
_FOLDINGS = {
    "xwy": (_Folding(_BATCH, _BATCH), _Folding(0, _CHANNEL, True, True)),
    "ywx": (_Folding(_BATCH, _BATCH), _Folding(1, _CHANNEL, False, True)),
    "xyw": (_Folding(_CHANNEL, 1, True, False), _Folding(_CHANNEL, 0, True, True)),
}
# The axis that carries the groups of each array.
_GROUP_AXIS = {"x": _CHANNEL, "y": _CHANNEL, "w": 0}


def _batching(of: _Map, arrays: str) -> None:
    """Register `vmap`: fold a batch into an axis that the map does not sum over, or into the groups.

    A written rule need not know of groups: a batch on both operands stays one, in `depth` leading axes.
    """

    def rule(operands: Sequence[jax.Array], dims: Sequence[int | None], **static: Any) -> tuple[jax.Array, int]:
        geometry: Geometry = static["geometry"]
        depth: int = static["depth"]
        place = {array: [depth + axis for axis in spec] for array, spec in geometry.layout._asdict().items()}
        (a, b), (i, j) = operands, dims
        if 0 in (operand.shape[dim] for operand, dim in zip(operands, dims, strict=True) if dim is not None):
            single = [
                jax.ShapeDtypeStruct(a.shape if d is None else a.shape[:d] + a.shape[d + 1 :], a.dtype)
                for a, d in zip(operands, dims, strict=True)
            ]
            out = jax.eval_shape(functools.partial(of.bind, **static), *single)
            return jnp.zeros((0, *out.shape), out.dtype), 0
        if i is not None and j is not None and static["rules"] != FAST:
            a, b = jnp.moveaxis(a, i, 0), jnp.moveaxis(b, j, 0)
            return of.bind(a, b, **{**static, "depth": depth + 1}), 0
        if i is not None and j is not None:
            size = a.shape[i]
            a = _fold(a, i, place[arrays[0]][_GROUP_AXIS[arrays[0]]])
            b = _fold(b, j, place[arrays[1]][_GROUP_AXIS[arrays[1]]])
            out = of.bind(a, b, **{**static, "geometry": geometry.with_groups(geometry.groups * size)})
            return _unfold(out, size, place[arrays[2]][_GROUP_AXIS[arrays[2]]]), 0
        which = 0 if i is not None else 1
        folding, groups = _FOLDINGS[arrays][which], geometry.groups
        pair, dim = [a, b], i if i is not None else j
        assert dim is not None
        size = pair[which].shape[dim]
        axis = place[arrays[which]][folding.operand]
        pair[which] = _fold(pair[which], dim, axis, groups if folding.inside_operand else 1)
        out = of.bind(*pair, **static)
        axis = place[arrays[2]][folding.result]
        return _unfold(out, size, axis, groups if folding.inside_result else 1), 0

    batching.primitive_batchers[of.primitive] = rule


_batching(_conv, "xwy")
_batching(_input_grad, "ywx")
_batching(_kernel_grad, "xyw")
