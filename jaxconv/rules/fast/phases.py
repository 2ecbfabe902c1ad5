"""Convolution of a dilated input without its zeros: one small dense convolution per residue class.

Let e be the input dilation. Output q of a convolution with stride 1 reads the dilated input at q + d·k − lo, and only
multiples of e hold anything. So the outputs q = e·u + r of one residue class r meet only the taps with

    d·k ≡ lo − r  (mod e),        that is every (e / gcd(d, e))-th tap k = k₀ + t·e/gcd(d, e), or none,

and at those they read x itself, at u + (r + d·k₀ − lo)/e + t·d/gcd(d, e): an ordinary convolution with a part of the
kernel. The e results are interleaved. Along several axes the classes multiply.

This is the input gradient of a strided layer, and so the transposed convolution: e is the layer's stride.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o) -> (n, *out, o).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Axis, Geometry


class Phase(NamedTuple):
    """One residue class along one axis: the taps it meets, and the convolution they make."""

    first: int
    step: int
    taps: int
    dilation: int
    lo: int
    hi: int


def phase(a: Axis, residue: int) -> Phase | None:
    """The phase of outputs e·u + residue, all of them ⌈out / e⌉ long; None where no tap meets them."""
    common = math.gcd(a.dilation, a.input_dilation)
    step, dilation = a.input_dilation // common, a.dilation // common
    first = next((k for k in range(min(step, a.k)) if (a.dilation * k + residue - a.lo) % a.input_dilation == 0), None)
    if first is None:
        return None
    taps = -(-(a.k - first) // step)
    lo = (a.lo - residue - a.dilation * first) // a.input_dilation
    length = -(-a.out // a.input_dilation)
    return Phase(first, step, taps, dilation, lo, length - 1 + dilation * (taps - 1) + 1 - a.n - lo)


def phases(geometry: Geometry) -> list[tuple[Phase | None, ...]]:
    """Every combination of residues, in row-major order."""
    return list(itertools.product(*([phase(a, r) for r in range(a.input_dilation)] for a in geometry.axes)))


def part(which: tuple[Phase, ...], geometry: Geometry) -> Geometry:
    """The dense convolution of one phase."""
    return replace(
        geometry,
        taps=tuple(p.taps for p in which),
        padding=tuple((p.lo, p.hi) for p in which),
        dilation=tuple(p.dilation for p in which),
        input_dilation=(1,) * geometry.rank,
    )


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, dense: Callable[[jax.Array, jax.Array, Geometry], jax.Array]
) -> jax.Array:
    """The phases of y, each computed by `dense`, interleaved."""
    rank, lengths = geometry.rank, [-(-a.out // a.input_dilation) for a in geometry.axes]
    results = []
    for which in phases(geometry):
        met = [p for p in which if p is not None]
        if len(met) < rank:
            results.append(None)
            continue
        kernel = w[tuple(slice(p.first, None, p.step) for p in met)]
        results.append(dense(x, kernel, part(tuple(met), geometry)))
    dtype = next((y.dtype for y in results if y is not None), jnp.result_type(x, w))
    zeros = jnp.zeros((x.shape[0], *lengths, w.shape[-1]), dtype)
    y = jnp.stack([zeros if y is None else y for y in results])
    y = y.reshape(*geometry.input_dilation, *zeros.shape)
    # (*residues, n, *lengths, o) -> (n, *(length, residue), o)
    y = y.transpose(rank, *(axis for i in range(rank) for axis in (rank + 1 + i, i)), 2 * rank + 1)
    y = y.reshape(x.shape[0], *(length * e for length, e in zip(lengths, geometry.input_dilation, strict=True)), -1)
    return lax.slice(y, [0] * y.ndim, [x.shape[0], *geometry.out, w.shape[-1]])
