"""Convolutions whose windows do not overlap: one matrix product each.

When the stride reaches the span, an input belongs to at most one window, and cutting x into windows is a reshape:

    y[n·p, o] = Σ_{k·c} X[n·p, k·c] · W[k·c, o]        dX = g · Wᵀ        dWᵀ = gᵀ · X

1×1 kernels with any stride, patchify layers (stride = taps), kernels as large as their input and layers without
spatial axes (dense ones) are all of this kind. Inputs that no tap reads are left out of X, and are zero in dx.

Groups are a batch of products.

Measured: kernel gradient of 1×1 layers 3.5 to 9.3, of patchify layers 3.0 to 3.9; input gradient 1.9 and 1.2 to 1.3.
On the EPYC, 1×1 layers with a stride: forward 1.0 to 1.5 in two dimensions (0.8 where the stride is 3) and 1.4 to 2.3
in three, input gradient 1.0 to 1.6 and 24 to 68; without a stride, forward 1.0 to 2.4. Tried and left to `lax`: the
forward pass of patchify layers (1.3 for 3 channels, 0.7 for 96), of 1×1 layers along one axis (0.6 to 1.0) and, without
a stride, in three dimensions (0.7 to 1.2), the kernel gradient by chunks of rows (0.6 to 1.1 of the whole product).

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o), y and g (n, *out, o).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Axis, Geometry
from jaxconv.rules.fast.formulation import Call, Formulation, Maps

# The fewest channels, of x and of y, that make a product of a forward pass. EPYC: 3→16 0.3, 64→3 with a stride 0.7,
# 16→16 with a stride 1.2. No row of one tap has fewer than 64.
FEWEST = 16


def disjoint(geometry: Geometry) -> bool:
    """Whether no input is read by two windows, along any axis."""
    return all((a.stride >= a.span or a.out == 1) and a.input_dilation == 1 for a in geometry.axes)


def gapless(geometry: Geometry) -> bool:
    """Whether disjoint windows also leave no input between them."""
    return all(a.stride == a.span or a.out == 1 for a in geometry.axes)


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """y = X · W."""
    y = _product(windows(x, geometry), _grouped(w, geometry), (2, 1), maps)
    return jnp.moveaxis(y, 0, 1).reshape(x.shape[0], *geometry.out, w.shape[-1])


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dX = g · Wᵀ, put back where X was cut out."""
    dx = _product(_grouped(g, geometry), _grouped(w, geometry), (2, 2), maps)
    dx = jnp.moveaxis(dx.reshape(*dx.shape[:2], *geometry.taps, -1), 0, -2)
    return _assembled(dx.reshape(g.shape[0], *geometry.out, *geometry.taps, -1), geometry)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dW = Xᵀ · g, or dWᵀ = gᵀ · X where positions outnumber the columns of X: the faster orientation then.

    Without spatial axes it is Xᵀ · g in any case, as JAX has it: the other took 1.0 to 1.2 times as long on the EPYC.
    """
    patches, delta = windows(x, geometry), _grouped(g, geometry)
    if geometry.rank and patches.shape[1] > patches.shape[2]:
        dw = _product(delta, patches, (1, 1), maps).swapaxes(1, 2)
    else:
        dw = _product(patches, delta, (1, 1), maps)
    dw = jnp.moveaxis(dw, 1, 0)  # (k·c, group, o)
    return dw.reshape(*geometry.taps, x.shape[-1] // geometry.groups, g.shape[-1])


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int], maps: Maps) -> jax.Array:
    """One product per group; a single group is a plain product, which some backends run faster than a batch of one."""
    options = {"precision": maps.precision, "preferred_element_type": maps.dtype}
    if a.shape[0] == 1:
        i, j = contract
        return lax.dot_general(a[0], b[0], (((i - 1,), (j - 1,)), ((), ())), **options)[None]
    return lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0,), (0,))), **options)


def _grouped(a: jax.Array, geometry: Geometry) -> jax.Array:
    """g (n, *out, o) as (group, n·p, o), or w (*taps, c, o) as (group, k·c, o)."""
    return jnp.moveaxis(a.reshape(-1, geometry.groups, a.shape[-1] // geometry.groups), 1, 0)


def _pitch(a: Axis) -> int:
    """How many inputs belong to one window and the gap behind it."""
    return a.stride if a.out > 1 else a.span


def windows(x: jax.Array, geometry: Geometry) -> jax.Array:
    """X, (group, n·p, k·c): x cropped or padded to whole blocks, each axis split in two, taps beside channels."""
    n, rank, c = x.shape[0], geometry.rank, x.shape[-1]
    config = [(a.lo, a.out * _pitch(a) - a.n - a.lo, 0) for a in geometry.axes]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    x = x.reshape(n, *(size for a in geometry.axes for size in (a.out, _pitch(a))), c)
    for a, axis in zip(geometry.axes, range(2, 2 * rank + 1, 2), strict=True):
        x = lax.slice_in_dim(x, 0, a.span, a.dilation, axis)
    x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    x = x.reshape(n * math.prod(geometry.out), math.prod(geometry.taps), geometry.groups, c // geometry.groups)
    return jnp.moveaxis(x, 2, 0).reshape(geometry.groups, x.shape[0], -1)


def _assembled(dx: jax.Array, geometry: Geometry) -> jax.Array:
    """The transpose of `windows`, from (n, *out, *taps, c) to (n, *spatial, c)."""
    n, rank, c = dx.shape[0], geometry.rank, dx.shape[-1]
    gaps = [(0, _pitch(a) - a.span, a.dilation - 1) for a in geometry.axes]
    dx = lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0)] * (1 + rank) + [*gaps, (0, 0, 0)])
    dx = dx.transpose(0, *(axis for i in range(rank) for axis in (1 + i, 1 + rank + i)), 2 * rank + 1)
    dx = dx.reshape(n, *(a.out * _pitch(a) for a in geometry.axes), c)
    config = [(-a.lo, a.n + a.lo - a.out * _pitch(a), 0) for a in geometry.axes]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def offers(call: Call) -> Iterator[Formulation]:
    """Where windows do not overlap."""
    if not disjoint(call.geometry):
        return
    if call.geometry.rank == 0:
        compute = {"conv": conv, "input_grad": input_grad, "kernel_grad": kernel_grad}[call.map]
        yield Formulation("product", compute, "no spatial axes: a matrix product")
        return
    one_group, one_tap = call.geometry.groups == 1, math.prod(call.geometry.taps) == 1
    match call.map:
        case "conv":
            # Rows "8×56², 256→64, 1/1", "8×56², 256→512, 1/2" and "32×32², 64→128, 1/2", EPYC alone: 1.8, 1.4 and 1.2.
            rank, wide = call.geometry.rank, min(call.inputs, call.outputs) >= FEWEST
            pays = one_group and one_tap and wide and (rank == 2 or (rank > 2 and not gapless(call.geometry)))
            why = "one tap: a product of the inputs that it reads" if one_tap else "windows do not overlap"
            yield Formulation("product", conv, why, "x once more", pays)
        case "input_grad":
            # Rows "8×56², 256→64, 1/1", "8×224², 3→96, 4/4", "8×56², 96→192, 2/2": 1.2 to 1.9, EPYC 1.1 to 1.4. None of
            # them has groups. With gaps, "8×56², 256→512, 1/2" and "32×32², 64→128, 1/2", EPYC alone: 1.0 and 1.3.
            why = "windows tile x: δ · Wᵀ is a reshaped dx"
            if one_tap and not gapless(call.geometry):
                why = "one tap: δ · Wᵀ is what of dx it reads"
            # Gapless of one tap along one axis or three: EPYC 0.9 and 0.6.
            pays = one_group and (
                call.geometry.rank == 2 or not gapless(call.geometry) if one_tap else gapless(call.geometry)
            )
            yield Formulation("product", input_grad, why, "dx once more", pays)
        case "kernel_grad":
            # All five of these rows: 3.0 to 9.3, EPYC 1.6 to 4.9.
            why = "windows do not overlap: x cut into them is the matrix of patches"
            yield Formulation("product", kernel_grad, why, "x once more", one_group)
