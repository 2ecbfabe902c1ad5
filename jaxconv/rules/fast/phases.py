"""Convolution of a dilated input without its zeros: one small dense convolution per residue class.

Let e be the input dilation. Output q of a convolution with stride 1 reads the dilated input at q + d·k − lo, and only
multiples of e hold anything. So the outputs q = e·u + r of one residue class r meet only the taps with

    d·k ≡ lo − r  (mod e),        that is every (e / gcd(d, e))-th tap k = k₀ + t·e/gcd(d, e), or none,

and at those they read x itself, at u + (r + d·k₀ − lo)/e + t·d/gcd(d, e): an ordinary convolution with a part of the
kernel. The e results are interleaved. Along several axes the classes multiply.

This is the input gradient of a strided layer, and so the transposed convolution: e is the layer's stride.

Measured: depthwise, stride 2, 229; merged, 7×7 to 3 channels, 2.8. Tried for dense kernels, which are `lax`'s: 0.8 to
1.3 with 3 taps and stride 2, 1.0 to 1.2 with 4 taps, merged 0.6 to 0.9: XLA's CPU convolution skips the zeros itself.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o) -> (n, *out, o).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.geometry import Axis, Geometry
from jaxconv.rules.fast.formulation import Call, Formulation, Maps

# A product of so few columns runs far below the speed of a wide one. Row "8×224², 3→64, 7/2 input_grad" has 3: 2.8,
# EPYC 3.4. The next, "8×28², 128→64, 3/2, transposed forward" with 64, is `lax`'s; no row lies in between.
NARROW = 4
# And the fewest taps, in two dimensions: to 3 channels, on the EPYC, 7×7 3.3 (2.1 with memory in large pages), 6×6 1.4
# (1.7), 5×5 0.9 (0.8), 4×4 0.6 (0.4).
MANY_TAPS = 36


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


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """The phases of y, interleaved."""
    lengths = [-(-a.out // a.input_dilation) for a in geometry.axes]
    results = []
    for which in phases(geometry):
        met = tuple(p for p in which if p is not None)
        if len(met) == geometry.rank:
            kernel = w[tuple(slice(p.first, None, p.step) for p in met)]
            results.append(maps.conv(x, kernel, part(met, geometry)))
        else:
            results.append(jnp.zeros((x.shape[0], *lengths, w.shape[-1]), maps.dtype))
    return _interleaved(jnp.stack(results), geometry)


def merged(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """All phases as one convolution, their kernels side by side as output channels.

    Every phase gets the taps that any of them meets, zeros where it does not. For a product too narrow to be fast,
    the few outputs of a phase, that is cheaper than being narrow. One group.
    """
    taps: list[int] = []
    padding: list[tuple[int, int]] = []
    dilations: list[int] = []
    for axis, a in enumerate(geometry.axes):
        every = [phase(a, r) for r in range(a.input_dilation)]
        met = [p for p in every if p is not None]
        dilation, lo = met[0].dilation, max(p.lo for p in met)
        count = max((lo - p.lo) // dilation + p.taps for p in met)
        # Of each phase and tap the entry of w, or a.k for none: read behind the end, a zero.
        table = np.full((a.input_dilation, count), a.k)
        for row, p in zip(table, every, strict=True):
            if p is not None:
                at = (lo - p.lo) // dilation
                row[at : at + p.taps] = np.arange(p.first, a.k, p.step)
        w = jnp.take(w, table.ravel(), axis, mode="fill", fill_value=0)
        length = -(-a.out // a.input_dilation)
        taps, dilations = [*taps, count], [*dilations, dilation]
        padding.append((lo, length - 1 + dilation * (count - 1) + 1 - a.n - lo))
    rank, phases = geometry.rank, geometry.input_dilation
    w = w.reshape(*(size for pair in zip(phases, taps, strict=True) for size in pair), *w.shape[-2:])
    w = w.transpose(*range(1, 2 * rank, 2), 2 * rank, *range(0, 2 * rank, 2), 2 * rank + 1)
    kernel = w.reshape(*taps, w.shape[rank], -1)
    y = maps.conv(x, kernel, replace(
        geometry, taps=tuple(taps), padding=tuple(padding), dilation=tuple(dilations), input_dilation=(1,) * rank
    ))  # fmt: skip
    y = jnp.moveaxis(y.reshape(*y.shape[:-1], math.prod(phases), -1), -2, 0)
    return _interleaved(y, geometry)


def _interleaved(y: jax.Array, geometry: Geometry) -> jax.Array:
    """(phase, n, *lengths, o) as (n, *out, o): residue r of position u is output e·u + r."""
    rank, (_, n, *lengths, o) = geometry.rank, y.shape
    y = y.reshape(*geometry.input_dilation, n, *lengths, o)
    y = y.transpose(rank, *(axis for i in range(rank) for axis in (rank + 1 + i, i)), 2 * rank + 1)
    y = y.reshape(n, *(length * e for length, e in zip(lengths, geometry.input_dilation, strict=True)), o)
    return lax.slice(y, [0] * y.ndim, [n, *geometry.out, o])


def offers(call: Call) -> Iterator[Formulation]:
    """Of dilated inputs, stride 1: the phases one by one, and of one group merged where their taps line up."""
    geometry, outputs = call.geometry, call.outputs
    if call.map != "conv" or not call.dilated or max(geometry.stride) > 1:
        return
    # Row "8×56², 96, 3/2, depthwise input_grad": 229, EPYC 235. Of one group, see above.
    why = "one convolution per residue class of the input dilation"
    yield Formulation("phases", conv, why, "the classes of y", pays=geometry.groups > 1)
    if geometry.groups == 1 and all(a.input_dilation % a.dilation == 0 for a in geometry.axes):
        why = f"{outputs} <= {NARROW} output channels: the residue classes side by side make a wider product"
        pays = outputs <= NARROW and (geometry.rank > 2 or math.prod(geometry.taps) >= MANY_TAPS)
        yield Formulation("merged phases", merged, why, "the classes of y", pays)
