"""The input gradient of a layer with few input channels: multiply first, then add where windows overlap.

The full convolution of δ sums over taps and output channels at once, one narrow product for each of few channels.
The same sum in the other order is a wide product and a few shifted additions,

    Z[n, p, k, c] = Σ_o g[n, p, o] · w[k, c, o]        dx[n, s·p + d·k − lo, c] += Z[n, p, k, c],

with nothing multiplied twice. Z is k·c / o times as large as δ.

Measured: 3.2 for one channel. Tried: 1.8 for three channels and 1.7 for eight at 32×32², 3×3; 0.95 where k·c = 4·o.

Arrays are channels-last: g (n, *out, o), w (*taps, c, o) -> (n, *spatial, c); one group.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.forward import taps
from jaxconv.geometry import Geometry


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, *, dtype: Any, precision: Any) -> jax.Array:
    """dx = Σ_k shift_k(Z[k])."""
    z = lax.dot_general(
        g, w.reshape(-1, w.shape[-1]), (((g.ndim - 1,), (1,)), ((), ())), precision=precision,
        preferred_element_type=dtype,
    ).reshape(*g.shape[:-1], *w.shape[:-1])  # fmt: skip
    every = (slice(None),) * (g.ndim - 1)
    return functools.reduce(operator.add, (_placed(z[*every, *tap], tap, geometry) for tap in taps(geometry)))


def _placed(z: jax.Array, tap: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """z[p] at input position s·p + d·k − lo, zeros elsewhere."""
    around = []
    for j, a in zip(tap, geometry.axes, strict=True):
        low = j * a.dilation - a.lo
        around.append((low, a.n - low - (a.out - 1) * a.stride - 1, a.stride - 1))
    return lax.pad(z, jnp.zeros((), z.dtype), [(0, 0, 0), *around, (0, 0, 0)])
