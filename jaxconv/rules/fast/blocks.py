"""Grouped convolution as a few dense ones: neighbouring groups share a block-diagonal kernel.

A group of a few channels is too narrow for a matrix product, and one convolution over all groups multiplies mostly
zeros. In between, m groups at a time are a dense convolution whose kernel holds their kernels on its diagonal,

    W[k, (i, c), (j, o)] = [i = j] · w[k, c, (j, o)],        i, j < m,

wide enough for the fast path and m times the arithmetic. The kernel gradient is the diagonal of the dense one.
A scan runs over the blocks, so compile time does not depend on their number: this is also how a batch of
kernels (`vmap`), whose examples arrive as groups, is computed.

Measured: 32 groups of 8, kernel gradient 301, input gradient 3.0. Tried for the forward pass, where this takes 4 (4.3
as `shifts`): a batch of products over patches 0.7, the blocks written out instead of scanned 4.5, `lax` on the merged
groups 1.1. Four groups of 32: 2.4.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o), y and g (n, *out, o).
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry, largest_divisor
from jaxconv.rules.fast.formulation import Call, Formulation, Maps

# Channels of one block. Measured with 4, 8 and 32 channels per group.
WIDTH = 16


def groups_per_block(geometry: Geometry, channels: int) -> int:
    """How many groups of so many channels make a block: a divisor of the groups."""
    return largest_divisor(geometry.groups, max(WIDTH // channels, 1))


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """One dense convolution per block of groups, each written into its channels of y."""
    (*_, inputs, outputs), m = w.shape, groups_per_block(geometry, w.shape[-2])
    blocks = geometry.groups // m
    kernels = jnp.moveaxis(w.reshape(*w.shape[:-1], blocks, m, -1), -3, 0)  # (block, *taps, c, j, o)
    diagonal = jnp.eye(m, dtype=w.dtype).reshape(*(1,) * (1 + geometry.rank), m, 1, m, 1)
    kernels = kernels[..., None, :, :, :] * diagonal  # (block, *taps, i, c, j, o)
    kernels = kernels.reshape(blocks, *geometry.taps, m * inputs, outputs // blocks)
    one = geometry.with_groups(1)

    def step(y: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, kernel = block
        part = lax.dynamic_slice_in_dim(x, index * m * inputs, m * inputs, -1)
        return lax.dynamic_update_slice_in_dim(y, maps.conv(part, kernel, one), index * kernel.shape[-1], -1), None

    y = jnp.zeros((x.shape[0], *geometry.out, outputs), maps.dtype)
    return lax.scan(step, y, (jnp.arange(blocks), kernels))[0]


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """The diagonal of one dense kernel gradient per block of groups."""
    m = groups_per_block(geometry, max(x.shape[-1], g.shape[-1]) // geometry.groups)
    blocks = geometry.groups // m
    one = geometry.with_groups(1)
    dw = lax.map(lambda block: maps.kernel_grad(block[0], block[1], one), (_split(x, blocks), _split(g, blocks)))
    dw = dw.reshape(*dw.shape[:-2], m, dw.shape[-2] // m, m, dw.shape[-1] // m)  # (block, *taps, i, c, j, o)
    dw = jnp.moveaxis(jnp.diagonal(dw, axis1=-4, axis2=-2), -1, -2)  # (block, *taps, c, i, o)
    return _joined(dw.reshape(*dw.shape[:-2], -1))


def _split(a: jax.Array, blocks: int) -> jax.Array:
    """The last axis cut into blocks, which come first."""
    return jnp.moveaxis(a.reshape(*a.shape[:-1], blocks, -1), -2, 0)


def _joined(a: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    a = jnp.moveaxis(a, 0, -2)
    return a.reshape(*a.shape[:-2], -1)


def offers(call: Call) -> Iterator[Formulation]:
    """Of several groups, whatever their width."""
    if call.geometry.groups == 1:
        return
    # Row "8×28², 256→256, 3/1, 32 groups": input_grad 3.0, EPYC 4.1; kernel_grad 301, EPYC 355. No other row has groups
    # of several channels.
    match call.map:
        case "conv":
            why, holds = "a few groups at a time make a dense convolution", "one block of x and of y"
            yield Formulation("blocks", conv, why, holds, pays=not call.dilated)
        case "kernel_grad":
            why, holds = "a few groups at a time make a dense kernel gradient", "x and δ block by block"
            yield Formulation("blocks", kernel_grad, why, holds, pays=not call.dilated)
