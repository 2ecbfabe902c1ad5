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
from jax import lax

from jaxconv.geometry import Geometry
from jaxconv.windows import at_tap, taps


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, *, dtype: Any, precision: Any) -> jax.Array:
    """dx = Σ_k shift_k(Z[k])."""
    z = lax.dot_general(
        g, w.reshape(-1, w.shape[-1]), (((g.ndim - 1,), (1,)), ((), ())), precision=precision,
        preferred_element_type=dtype,
    ).reshape(*g.shape[:-1], *w.shape[:-1])  # fmt: skip
    every = (slice(None),) * (g.ndim - 1)
    return functools.reduce(operator.add, (at_tap(z[*every, *tap], tap, geometry) for tap in taps(geometry)))
