"""Depthwise and narrow grouped convolution as sums of shifted copies: too few channels to multiply as matrices.

With one input channel per group, the trilinear form has no sum over c:

    y[n, p, o]  = Σ_k x[n, s·p + d·k − lo, o // m] · w[k, o]
    dw[k, o]    = Σ_{n, p} x[n, s·p + d·k − lo, o // m] · g[n, p, o]

The first is one fused multiply-add per tap. A few channels per group are that many depthwise convolutions, added up:
the first channel of every group, the second, and so on. The kernel gradient is the same product as the first, summed
over positions rather than taps; what decides its speed is that the sums stay vectors along (w, o) until the very end.

Measured: depthwise forward 35 to 203, input gradient 33 to 287, kernel gradient 4.9 to 37; 32 groups of 8 forward
4.3. Tried for the kernel gradient of 8×56²×96, 7×7, where this takes 29 to 37: one reduction per tap 4.3 (every
product is written: 441 MB), example by example 6.4, a product of patches per channel 5.7.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o), y and g (n, *out, o); m = o // groups.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry
from jaxconv.rules.fast.formulation import Call, Formulation, Maps
from jaxconv.windows import padded, tap_slice, taps

# The most terms per output that are worth adding up one by one rather than multiplied as matrices, where there are
# channels to sum. Row "8×28², 256→256, 3/1, 32 groups forward" has 72: 4.2, EPYC 6. No row has more.
TERMS = 80
# The same where the kernel has been turned around, as it is for an input gradient: XLA turns it again for each term.
# The input_grad of that row, 72 terms again, is for `blocks`; no row has fewer.
TURNED_TERMS = 40
# The most outputs per channel for which products of shifted copies are worth summing into a kernel gradient. All rows
# that say "depthwise" have one: 4.9 to 37, EPYC 3.1 to 16. No row has more.
MULTIPLIER = 4
# XLA's CPU fusion leaves a buffer outside a loop that reads it at more than 15 places; below that it computes the
# slice again at every element.
READS = 16
# Outputs of one tile along a single spatial axis: its products should stay in the first-level cache.
TILE = 4096
# Taps whose sums are written out in one program; more of them are visited row by row.
UNROLLED = 64


def few_taps(geometry: Geometry) -> bool:
    """Whether there are so few taps that leaving the border out of each costs less than padding x.

    Of the rows that say "depthwise", 3/1 and 3/2 in two dimensions have; 7/1, 31/1 and 3/1 in three have not.
    """
    return geometry.taps[-1] <= 3 and math.prod(geometry.taps) <= 9


def _repeated(x: jax.Array, outputs: int) -> jax.Array:
    """x with every channel repeated for each output of its group."""
    multiplier = outputs // x.shape[-1]
    return x if multiplier == 1 else jnp.repeat(x, multiplier, -1)


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """y = Σ_c Σ_k shift_k(x_c) · w[k, c], one row of taps at a time; x_c is channel c of every group."""
    dtype, (inputs, outputs) = maps.dtype, w.shape[-2:]
    inside = inputs == 1 and few_taps(geometry)
    read = x if inside else padded(x, geometry)
    rows: dict[tuple[int, ...], list[jax.Array]] = {}
    for channel in range(inputs):
        part = _repeated(read[..., channel::inputs], outputs)
        for tap in taps(geometry):
            reads, around = _inside(part, tap, geometry) if inside else (tap_slice(part, tap, geometry), None)
            term = reads.astype(dtype) * lax.expand_dims(w[*tap, channel].astype(dtype), range(x.ndim - 1))
            if around is not None:  # after the product: padding it costs less than multiplying what was padded
                term = lax.pad(term, jnp.zeros((), dtype), around)
            rows.setdefault((channel, *tap[:-1]), []).append(term)
    return functools.reduce(operator.add, (functools.reduce(operator.add, row) for row in rows.values()))


def _inside(x: jax.Array, tap: tuple[int, ...], geometry: Geometry) -> tuple[jax.Array, list[tuple[int, int, int]]]:
    """What `tap` reads of an unpadded x, at the outputs where it lies inside x, and how many outputs lie around."""
    start, limit, around = [0], [x.shape[0]], [(0, 0, 0)]
    for j, a in zip(tap, geometry.axes, strict=True):
        at = j * a.dilation - a.lo  # output p reads s·p + at
        first = min(max(-(at // a.stride), 0), a.out)
        last = max(min((a.n - 1 - at) // a.stride + 1, a.out), first)
        start, limit = [*start, first * a.stride + at], [*limit, (last - 1) * a.stride + at + 1]
        if first == last:
            start[-1] = limit[-1] = 0
        around.append((first, a.out - last, 0))
    return lax.slice(x, [*start, 0], [*limit, x.shape[-1]], [1, *geometry.stride, 1]), [*around, (0, 0, 0)]


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dw[k] = Σ_{n, p} x at tap k · g, accumulated as vectors over (last axis, o) for many rows of p at once."""
    return _Rows(x, g, geometry, maps.dtype).kernel_grad()


def _divisor(n: int, least: int) -> int | None:
    """A divisor of n not far above `least`: steps of that size need nothing to fill up the last one."""
    return next((d for d in range(least, 3 * least) if n % d == 0), None)


class _Rows:
    """The sum over (n, p), cut into steps of at least `READS` rows that share one accumulator per tap.

    A row is a line of outputs along the last spatial axis; with a single spatial axis, `unit` outputs of it.
    Steps go over examples, over the leading spatial axes, and over blocks of rows; a step too short takes several
    examples. Rows and examples that pad the last step have g = 0.
    """

    def __init__(self, x: jax.Array, g: jax.Array, geometry: Geometry, dtype: Any) -> None:
        self.geometry, self.dtype, self.channels = geometry, dtype, g.shape[-1]
        out, last = geometry.out, geometry.rank - 1
        self.axis = max(last - 1, 0)  # the axis whose rows are unrolled
        self.unit = 1 if last else min(out[0], max(TILE // self.channels, 1))
        rows = -(-out[self.axis] // self.unit)
        even = _divisor(rows, READS)
        self.blocks = max(rows // READS, 1) if even is None else rows // even
        self.rows = -(-rows // self.blocks)
        enough = -(-READS // self.rows)
        self.examples = _divisor(x.shape[0], enough) or min(x.shape[0], enough)
        batches = -(-x.shape[0] // self.examples)
        self.grid = (batches, *out[: self.axis], self.blocks)

        high = [0] * g.ndim
        high[0] = batches * self.examples - x.shape[0]
        high[1 + self.axis] = self.blocks * self.rows * self.unit - out[self.axis]
        self.g = lax.pad(g, jnp.zeros((), g.dtype), [(0, h, 0) for h in high])
        read = _repeated(padded(x, geometry), self.channels)
        need = (self.g.shape[1 + self.axis] - 1) * geometry.stride[self.axis] + geometry.span[self.axis]
        high[1 + self.axis] = need - read.shape[1 + self.axis]
        self.read = lax.pad(read, jnp.zeros((), x.dtype), [(0, h, 0) for h in high])

    def kernel_grad(self) -> jax.Array:
        geometry = self.geometry
        if math.prod(geometry.taps) <= UNROLLED or geometry.rank == 1:
            sums = self._sums(taps(geometry), (0,) * geometry.rank)
        else:  # the same program for every row of taps

            def row(tap: jax.Array) -> jax.Array:
                start = jnp.unravel_index(tap, geometry.taps[:-1])
                return self._sums([(0,) * (geometry.rank - 1) + (j,) for j in range(geometry.taps[-1])], (*start, 0))

            sums = lax.map(row, jnp.arange(math.prod(geometry.taps[:-1])))
        return sums.reshape(*geometry.taps, 1, self.channels)

    def _sums(self, every: list[tuple[int, ...]], first: tuple[Any, ...]) -> jax.Array:
        """The sums of the taps `first` + each of `every`, one row of the result for each."""
        wide = self.geometry.out[-1] if self.axis < self.geometry.rank - 1 else self.unit

        def step(sums: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], None]:
            x, g = self._reads(jnp.unravel_index(index, self.grid), first, every)
            return [
                functools.reduce(operator.add, self._products(x, g, tap), s) for tap, s in zip(every, sums, strict=True)
            ], None

        zeros = [jnp.zeros((wide, self.channels), self.dtype)] * len(every)
        sums, _ = lax.scan(step, zeros, jnp.arange(math.prod(self.grid)))
        return jnp.stack([s.sum(0) for s in sums])

    def _reads(self, index: Any, first: tuple[Any, ...], every: list[tuple[int, ...]]) -> tuple[jax.Array, jax.Array]:
        """What one step reads of x and of g."""
        geometry, (n, *outer, block) = self.geometry, index
        start, size = [n * self.examples], [self.examples]
        g_start, g_size = list(start), list(size)
        for a, (stride, dilation) in enumerate(zip(geometry.stride, geometry.dilation, strict=True)):
            count = 1 if a < self.axis else self.rows * self.unit if a == self.axis else geometry.out[a]
            at = outer[a] if a < self.axis else block * count if a == self.axis else 0
            reach = max(tap[a] for tap in every) * dilation + (count - 1) * stride + 1
            start, size = [*start, at * stride + first[a] * dilation], [*size, reach]
            g_start, g_size = [*g_start, at], [*g_size, count]
        x = lax.dynamic_slice(self.read, [*start, 0], [*size, self.channels])
        return x, lax.dynamic_slice(self.g, [*g_start, 0], [*g_size, self.channels])

    def _products(self, x: jax.Array, g: jax.Array, tap: tuple[int, ...]) -> list[jax.Array]:
        """x at one tap times g, for every row of a step."""
        geometry, products = self.geometry, []
        for example in range(self.examples):
            for row in range(self.rows):
                start, limit, stride = [example], [example + 1], [1]
                g_start, g_limit = [example], [example + 1]
                for a, (s, d) in enumerate(zip(geometry.stride, geometry.dilation, strict=True)):
                    count = 1 if a < self.axis else self.unit if a == self.axis else geometry.out[a]
                    at = row * count if a == self.axis else 0
                    start, stride = [*start, at * s + tap[a] * d], [*stride, s]
                    limit = [*limit, start[-1] + (count - 1) * s + 1]
                    g_start, g_limit = [*g_start, at], [*g_limit, at + count]
                read = lax.slice(x, [*start, 0], [*limit, self.channels], [*stride, 1])
                delta = lax.slice(g, [*g_start, 0], [*g_limit, self.channels])
                products.append((read.astype(self.dtype) * delta.astype(self.dtype)).reshape(-1, self.channels))
        return products


def offers(call: Call) -> Iterator[Formulation]:
    """Of any groups; the kernel gradient of one channel per group."""
    geometry, padded_x = call.geometry, "a padded copy of x"
    if geometry.rank == 0 or call.dilated:
        return
    per_group, several = call.inputs // geometry.groups, geometry.groups > 1
    if call.map == "conv" and per_group == 1:
        why = "one channel per group: there is no sum over channels"
        yield Formulation("shifts", conv, why, "nothing" if few_taps(geometry) else padded_x, several)
    elif call.map == "conv":
        terms, most = per_group * math.prod(geometry.taps), TURNED_TERMS if call.turned else TERMS
        why = f"{terms} <= {most} terms per output are faster added than multiplied"
        yield Formulation("shifts", conv, why, padded_x, several and terms <= most)
    elif call.map == "kernel_grad" and per_group == 1:
        why = "one channel per group: products of shifted copies, summed over rows"
        pays = several and call.outputs <= MULTIPLIER * call.inputs
        yield Formulation("shifts", kernel_grad, why, padded_x, pays)
