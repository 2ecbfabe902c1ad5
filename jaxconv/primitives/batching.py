"""`vmap` of the trio: a batch folds into an axis that the map does not sum over, or into the groups.

A written rule need not know of groups: a batch on both operands stays one for it, in `depth` leading axes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from jaxconv.geometry import Geometry
from jaxconv.primitives.trio import PRIMITIVES, bind, result
from jaxconv.rules import TRIO, Map, is_fast

# The index that counts the channels of all groups: where a batch of both operands goes, each example a group.
_GROUPED = {"x": "c", "w": "o", "y": "o"}


def _batched(
    of: Map, operands: Sequence[jax.Array], dims: Sequence[int | None], *, geometry: Geometry, **static: Any
) -> tuple[jax.Array, int]:
    on_first, on_second = (dim is not None for dim in dims)
    sizes = {a.shape[dim] for a, dim in zip(operands, dims, strict=True) if dim is not None}
    if 0 in sizes:
        return _none(of, operands, dims, geometry=geometry, **static), 0
    if on_first and on_second and is_fast(static["rules"]):
        return _grouped(of, operands, dims, geometry=geometry, **static), 0
    if on_first and on_second:
        return _deeper(of, operands, dims, geometry=geometry, **static), 0
    return _folded(of, operands, dims, 0 if on_first else 1, geometry=geometry, **static), 0


def _none(of: Map, operands: Sequence[jax.Array], dims: Sequence[int | None], **static: Any) -> jax.Array:
    """A batch of no examples."""
    single = [
        jax.ShapeDtypeStruct([n for axis, n in enumerate(a.shape) if axis != dim], a.dtype)
        for a, dim in zip(operands, dims, strict=True)
    ]
    out = result(of, *single, **static)
    return jnp.zeros((0, *out.shape), out.dtype)


def _folded(
    of: Map, operands: Sequence[jax.Array], dims: Sequence[Any], which: int, *, geometry: Geometry, depth: int,
    **static: Any,
) -> jax.Array:  # fmt: skip
    """A batch on one operand, folded into the axis that it shares with the result."""
    array, arrays, dim = of.takes[which], list(operands), dims[which]
    index, size = of.kept(array), operands[which].shape[dim]
    axis = depth + geometry.layout.axis(array, index)
    arrays[which] = _fold(arrays[which], dim, axis, _blocks(array, index, geometry))
    out = bind(of, *arrays, geometry=geometry, depth=depth, **static)
    axis = depth + geometry.layout.axis(of.makes, index)
    return _unfold(out, size, axis, _blocks(of.makes, index, geometry))


def _grouped(
    of: Map, operands: Sequence[jax.Array], dims: Sequence[Any], *, geometry: Geometry, depth: int, **static: Any
) -> jax.Array:
    """A batch on both operands: as many times the groups."""

    def axis(array: str) -> int:
        return depth + geometry.layout.axis(array, _GROUPED[array])

    size = operands[0].shape[dims[0]]
    arrays = [_fold(a, dim, axis(array)) for a, dim, array in zip(operands, dims, of.takes, strict=True)]
    out = bind(of, *arrays, geometry=geometry.with_groups(geometry.groups * size), depth=depth, **static)
    return _unfold(out, size, axis(of.makes))


def _deeper(of: Map, operands: Sequence[jax.Array], dims: Sequence[Any], *, depth: int, **static: Any) -> jax.Array:
    """A batch on both operands, left for `vmap` of the rule."""
    return bind(
        of, *(jnp.moveaxis(a, dim, 0) for a, dim in zip(operands, dims, strict=True)), depth=depth + 1, **static
    )


def _blocks(array: str, index: str, geometry: Geometry) -> int:
    """Into how many blocks groups divide an axis, in each of which a batch has to be folded. w's c is of one group."""
    return geometry.groups if index == _GROUPED[array] else 1


def _fold(a: jax.Array, batch: int, axis: int, blocks: int = 1) -> jax.Array:
    """Merge the batch axis into `axis` (counted without it), inside each of its blocks."""
    a = jnp.moveaxis(a, batch, 0)
    size, shape = a.shape[0], a.shape[1:]
    a = a.reshape(size, *shape[:axis], blocks, shape[axis] // blocks, *shape[axis + 1 :])
    a = jnp.moveaxis(a, 0, axis + 1)
    return a.reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def _unfold(a: jax.Array, size: int, axis: int, blocks: int = 1) -> jax.Array:
    """The inverse of `_fold`; the batch axis comes first."""
    shape = a.shape
    a = a.reshape(*shape[:axis], blocks, size, shape[axis] // (blocks * size), *shape[axis + 1 :])
    a = jnp.moveaxis(a, axis + 1, 0)
    return a.reshape(size, *shape[:axis], shape[axis] // size, *shape[axis + 1 :])


for _of in TRIO:
    batching.primitive_batchers[PRIMITIVES[_of]] = functools.partial(_batched, _of)
