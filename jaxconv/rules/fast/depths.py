"""A convolution in three dimensions as a sum over the taps of its first axis, each a convolution in two.

Fix a tap k along the depth and what is left is a convolution of slices, all depths of all examples at once:

    y[n, p, q, o]  = Σ_k conv(x[n, s·p + d·k − lo], w[k])[q, o]
    dw[k]          = kernel_grad of the slices x[n, s·p + d·k − lo] and g[n, p]

Measured: how many times longer `lax` takes, on 2 cores of an AMD EPYC with AVX-512, jax 0.10.2, float32, 2026-11-26:
2×16×32², 16→32, 3×3×3: forward 2.1, input gradient 3.8 (as the full convolution), kernel gradient 3.7, which `patches`
has too; 32→32: 2.3, 2.5 and 1.2, where `patches` has 1.9; 4×32×32², 1→32, 5×5×5 with stride 2, forward 9.5. Nothing is
known of other CPUs, so this is taken only where it was measured.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o), y and g (n, *out, o).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry, Layout
from jaxconv.rules.fast.formulation import Call, Formulation, Maps


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """y = Σ_k conv(slices that tap k reads, w[k])."""
    flat = _flat(geometry)
    parts = (maps.conv(part, w[k], flat) for k, part in enumerate(_slices(x, geometry)))
    y = functools.reduce(operator.add, parts)
    return y.reshape(x.shape[0], geometry.out[0], *y.shape[1:])


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dw[k] = kernel_grad(slices that tap k reads, the slices of g)."""
    flat, delta = _flat(geometry), g.reshape(-1, *g.shape[2:])
    return jnp.stack([maps.kernel_grad(part, delta, flat) for part in _slices(x, geometry)])


def _flat(geometry: Geometry) -> Geometry:
    """The convolution of one slice."""
    return replace(
        geometry, spatial=geometry.spatial[1:], taps=geometry.taps[1:], stride=geometry.stride[1:],
        padding=geometry.padding[1:], dilation=geometry.dilation[1:], input_dilation=geometry.input_dilation[1:],
        layout=Layout.of("NHWC", geometry.rank - 1),
    )  # fmt: skip


def _slices(x: jax.Array, geometry: Geometry) -> Iterator[jax.Array]:
    """For each tap along the depth the slices that it reads, those of all examples in one batch."""
    a = geometry.axes[0]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (a.lo, a.hi, a.input_dilation - 1), *[(0, 0, 0)] * (x.ndim - 2)])
    for k in range(a.k):
        first = k * a.dilation
        part = lax.slice_in_dim(x, first, first + (a.out - 1) * a.stride + 1, a.stride, 1)
        yield part.reshape(-1, *part.shape[2:])


def offers(call: Call) -> Iterator[Formulation]:
    """In three dimensions."""
    compute = {"conv": conv, "kernel_grad": kernel_grad}.get(call.map)
    if call.geometry.rank == 3 and compute:
        why = "taps along the depth one by one, each in two dimensions"
        yield Formulation("depths", compute, why, "x, padded, for each tap along the depth", pays=False)
