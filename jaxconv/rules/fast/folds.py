"""The input gradient of a layer with few input channels: multiply first, then add where windows overlap.

The full convolution of δ sums over taps and output channels at once, one narrow product for each of few channels.
The same sum in the other order is a wide product and a few shifted additions,

    Z[n, p, k, c] = Σ_o g[n, p, o] · w[k, c, o]        dx[n, s·p + d·k − lo, c] += Z[n, p, k, c],

with nothing multiplied twice. Z is k·c / o times as large as δ.

Measured: for one channel 3.2, on the EPYC 2.3 to 5.2 with any stride; for three channels on it 1.6 to 14 without a
stride, but 0.8 to 0.95 with one. Tried: eight channels and more 0.85 to 1.1 there; 0.95 where k·c = 4·o.

Arrays are channels-last: g (n, *out, o), w (*taps, c, o) -> (n, *spatial, c); one group.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator

import jax
from jax import lax

from jaxconv.geometry import Geometry
from jaxconv.rules.fast import products
from jaxconv.rules.fast.formulation import Call, Formulation, Maps
from jaxconv.windows import at_tap, taps

# The most columns of Z per column of δ. Row "128×28², 1→32, 3/1 input_grad" has 9 / 32: 3.2, EPYC 4.3. The next, with
# 147 / 64, is "8×224², 3→64, 7/2" and not taken; no row lies in between, 2 is from the races above.
COLUMNS = 2
# The most channels of x, without a stride; with one, a single channel.
FEW = 4


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """dx = Σ_k shift_k(Z[k])."""
    z = lax.dot_general(
        g, w.reshape(-1, w.shape[-1]), (((g.ndim - 1,), (1,)), ((), ())), precision=maps.precision,
        preferred_element_type=maps.dtype,
    ).reshape(*g.shape[:-1], *w.shape[:-1])  # fmt: skip
    every = (slice(None),) * (g.ndim - 1)
    return functools.reduce(operator.add, (at_tap(z[*every, *tap], tap, geometry) for tap in taps(geometry)))


def offers(call: Call) -> Iterator[Formulation]:
    """Of one group; where windows do not overlap there is nothing to add."""
    if call.map != "input_grad" or call.geometry.groups > 1 or call.dilated:
        return
    columns, outputs = math.prod(call.geometry.taps) * call.inputs, call.outputs
    why = f"{columns} columns of Wᵀ <= {COLUMNS} · {outputs} of δ: multiply, then add where windows overlap"
    few = call.inputs <= (1 if math.prod(call.geometry.stride) > 1 else FEW)
    pays = few and not products.disjoint(call.geometry) and columns <= COLUMNS * outputs
    yield Formulation("fold", input_grad, why, f"the products, {columns} / {outputs} times δ", pays)
