"""The kernel gradient as a matrix product over patches, a few examples at a time.

Write the inputs that window p reads as one row of a matrix X, (n·p) × (k·c). Then

    dw[k, c, o] = Σ_{n, p} x[n, s·p + d·k − lo, c] · g[n, p, o]        is        dWᵀ = gᵀ · X,

a product in which only the small axes survive. X is k times as large as x, so it is never written whole: a scan
builds the rows of a few examples, small enough for the second-level cache, and adds their product to dWᵀ.

Arrays are channels-last: x (n, *spatial, c), g (n, *out, o) -> (*taps, c, o); one group.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.forward import padded, tap_slice, taps
from jaxconv.geometry import Geometry

# Elements of the patches that one step writes. Measured flat from 2^17 to 2^20.
STEP = 2**19


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, *, dtype: Any, precision: Any) -> jax.Array:
    """dWᵀ += gᵀ · X for the patches X of a few examples at a time."""
    n, columns = x.shape[0], math.prod(geometry.taps) * x.shape[-1]
    examples = _divisor(n, max(STEP // (math.prod(geometry.out) * columns), 1))
    read = padded(x, geometry).reshape(n // examples, examples, *(a.length + a.lo + a.hi for a in geometry.axes), -1)

    def step(dw: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, g = block
        rows = jnp.concatenate([tap_slice(x, tap, geometry) for tap in taps(geometry)], -1).reshape(-1, columns)
        product = lax.dot_general(
            g.reshape(-1, g.shape[-1]), rows, (((0,), (0,)), ((), ())), precision=precision,
            preferred_element_type=dtype,
        )  # fmt: skip
        return dw + product, None

    blocks = (read, g.reshape(n // examples, examples, *g.shape[1:]))
    dw, _ = lax.scan(step, jnp.zeros((g.shape[-1], columns), dtype), blocks)
    return dw.T.reshape(*geometry.taps, x.shape[-1], g.shape[-1])


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)
