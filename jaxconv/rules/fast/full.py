"""The input gradient as the convolution it is: δ with the rotated kernel, by any formulation of a convolution.

    dx[n, q, c] = Σ_{k, o} δ[n, q + d·k − (span − 1 − lo), o] · w[taps − 1 − k, c, o],    δ dilated by the stride

So the formulations of `conv` meet inputs that are dilated and kernels that have been turned around.

Arrays are channels-last: g (n, *out, o), w (*taps, c // groups, o) -> (n, *spatial, c).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax

from jaxconv.geometry import Geometry
from jaxconv.rules import rotated
from jaxconv.rules.fast import products
from jaxconv.rules.fast.formulation import Call, Formulation, Maps


@dataclass(frozen=True)
class Full:
    """dx = δ ∗ ROT180(w), the convolution by `inner`."""

    inner: Formulation

    def __call__(self, g: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
        kernel = rotated.channel_transposed(rotated.rot180(w, geometry), geometry)
        return self.inner.compute(g, kernel, geometry.full(), maps.turned())


def offers(call: Call, convolutions: Iterable[Formulation]) -> Iterator[Formulation]:
    """One for each of the `convolutions` that compute `call.full()`."""
    gaps = call.geometry.groups == 1 and products.disjoint(call.geometry)  # the rows named in `products`
    for inner in convolutions:
        why = f"the full convolution of δ, by {inner.name}: {inner.why}"
        yield Formulation("full", Full(inner), why, inner.holds, pays=inner.pays and not gaps, variant=inner.label)
