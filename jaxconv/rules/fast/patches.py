"""The kernel gradient as a matrix product over patches, a few examples at a time.

Write the inputs that window p reads as one row of a matrix X, (n·p) × (k·c). Then

    dw[k, c, o] = Σ_{n, p} x[n, s·p + d·k − lo, c] · g[n, p, o]        is        dWᵀ = gᵀ · X,

a product in which only the small axes survive. X is k times as large as x, so it is never written whole: a scan builds
the patches of a few rows of outputs, or of a few examples, small enough for the caches, and adds their product to dWᵀ.

How many times as long `lax` takes depends on the CPU, and this is taken where it wins on both that are known. On 2
cores of an AMD EPYC with AVX-512 (jax 0.10.2, float32, 2026-11-26, nothing beside): in three dimensions 1.5 to 7.2; of
64 examples and more with 32 outputs and more, with memory in pages of 4 KiB and of 2 MiB, of 1 to 3 inputs 1.4 to 3.0,
and from 4 million patch elements on, unpadded 1.4 to 3.4, padded and 3×3 1.0 to 2.2. On an Intel Xeon the rows of these
kinds take 2.4 to 3.4.

Left to `lax`: unpadded layers of fewer examples (on the EPYC 2×126², 64→64 takes 2.5 in small pages, 0.7 in large
ones), or with fewer elements (0.7 to 1.2); few inputs with 6 or 8 outputs (0.6 to 0.9) or fewer examples (0.6 to 1.2);
padded layers of few examples (EPYC 0.55 to 1.4, Xeon 1.4 and 1.5) or 5×5 (0.8); those with a stride (EPYC 0.9 to 1.3,
Xeon 1.4 and 2.2), transposed ones (EPYC 0.4 to 1.1) and 512→512 on 7² (EPYC 0.9, Xeon 1.4).

Tried on the Xeon on 8×56², 64→64, 3×3, where this takes 1.6: all patches at once 0.7, one product per tap 0.9, a plain
convolution of x and δ transposed 0.5, Xᵀ · g for gᵀ · X 1.4. Along one axis, 32×1024, 64→64, 9 taps: 0.5.

Arrays are channels-last: x (n, *spatial, c), g (n, *out, o) -> (*taps, c, o); one group, at least one spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.geometry import Geometry, largest_divisor
from jaxconv.rules.fast.formulation import Call, Formulation, Maps
from jaxconv.windows import padded, tap_slice, taps

# Elements of X that are written at once: all of them up to WHOLE, else a quarter of x within these bounds.
WHOLE = 2**21
LEAST, MOST = 2**17, 2**20
# Where this was faster on an Intel Xeon and on an AMD EPYC, in pages of either size: of so many examples and outputs,
# if there are few inputs; or so many patch elements, without a stride, and no padding or few taps.
BATCH, OUTPUTS, FEW_INPUTS, MANY, FEW_TAPS = 64, 32, 4, 2**22, 9


def whole(geometry: Geometry, batch: int, inputs: int) -> bool:
    """Whether X is small enough to be written at once."""
    return batch * math.prod(geometry.out) * math.prod(geometry.taps) * inputs <= WHOLE


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dWᵀ += gᵀ · X for the patches X of a few rows or examples at a time."""
    (n, *_, c), outputs, first = x.shape, g.shape[-1], geometry.out[0]
    columns = math.prod(geometry.taps) * c
    examples, rows = _step(x, geometry)
    blocks = -(-first // rows)

    # Rows that fill up the last block have g = 0.
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), (0, blocks * rows - first, 0), *[(0, 0, 0)] * (g.ndim - 2)])
    read = padded(x, geometry)
    reach = (blocks * rows - 1) * geometry.stride[0] + geometry.span[0]
    read = lax.pad(
        read, jnp.zeros((), x.dtype), [(0, 0, 0), (0, reach - read.shape[1], 0), *[(0, 0, 0)] * (x.ndim - 2)]
    )
    high = (rows - 1) * geometry.stride[0] + geometry.span[0]
    one_step = replace(geometry, spatial=(high, *read.shape[2:-1]), padding=((0, 0),) * geometry.rank)

    def step(dw: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        example, row = index // blocks * examples, index % blocks * rows
        zeros = (0,) * (x.ndim - 2)
        part = lax.dynamic_slice(read, (example, row * geometry.stride[0], *zeros), (examples, high, *read.shape[2:]))
        delta = lax.dynamic_slice(g, (example, row, *zeros), (examples, rows, *g.shape[2:]))
        patches = jnp.concatenate([tap_slice(part, tap, one_step) for tap in taps(geometry)], -1)
        product = lax.dot_general(
            delta.reshape(-1, outputs), patches.reshape(-1, columns), (((0,), (0,)), ((), ())),
            precision=maps.precision, preferred_element_type=maps.dtype,
        )  # fmt: skip
        return dw + product, None

    dw, _ = lax.scan(step, jnp.zeros((outputs, columns), maps.dtype), jnp.arange(n // examples * blocks))
    return dw.T.reshape(*geometry.taps, c, outputs)


def _step(x: jax.Array, geometry: Geometry) -> tuple[int, int]:
    """How many examples, or else how many rows of one example, make a step."""
    n, c, first = x.shape[0], x.shape[-1], geometry.out[0]
    most = n * math.prod(geometry.out) * math.prod(geometry.taps) * c
    if not whole(geometry, n, c):
        most = min(max(x.size // 4, LEAST), MOST)
    row = math.prod(geometry.out[1:]) * math.prod(geometry.taps) * c
    if row * first > most:
        rows = max(most // row, 1)
        even = largest_divisor(first, rows)  # needs no rows to fill up the last block
        return 1, even if 2 * even > rows else -(-first // -(-first // rows))
    return largest_divisor(n, most // (row * first)), first


def offers(call: Call) -> Iterator[Formulation]:
    """Of one group with spatial axes."""
    geometry, inputs, outputs = call.geometry, call.inputs, call.outputs
    if call.map != "kernel_grad" or geometry.rank == 0 or geometry.groups > 1 or call.dilated:
        return
    elements = call.batch * math.prod(geometry.out) * math.prod(geometry.taps) * inputs
    tight = math.prod(geometry.taps) <= FEW_TAPS or not any(sum(geometry.padding, ()))
    slow = inputs <= FEW_INPUTS or (math.prod(geometry.stride) == 1 and tight and elements >= MANY)
    pays = geometry.rank > 2 or (geometry.rank == 2 and call.batch >= BATCH and outputs >= OUTPUTS and slow)
    why, holds = "gᵀ · X for the patches X of a few rows at a time", "a padded copy of x, and one step's patches"
    why_not = "" if pays else "products of patches are faster in three dimensions and of many examples"
    yield Formulation("patches", kernel_grad, why, holds, pays, why_not)
