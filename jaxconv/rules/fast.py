"""The maps that production runs: the same names and signatures, the formulation chosen for speed.

Each choice is a pure function of the static geometry. Today the convolutions are those of `rotated`, which
XLA knows how to run; a convolution without spatial axes (a dense layer) is a matrix product and says so.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.rules import rotated


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int], options: dict[str, Any]) -> jax.Array:
    return lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), **options)


def _is_product(geometry: Geometry) -> bool:
    """No spatial axes and one group: T(x, w, g) = Σ g[n, o] · x[n, c] · w[c, o]."""
    return geometry.rank == 0 and geometry.groups == 1


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
    """∂T/∂g; see `forward.conv`."""
    if _is_product(geometry):
        y = _product(x, w, (geometry.layout.x[1], geometry.layout.w[1]), options)
        return jnp.moveaxis(y, (0, 1), geometry.layout.y)
    return forward.conv(x, w, geometry, **options)


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
    """∂T/∂x; see `rotated.input_grad`."""
    if _is_product(geometry):
        dx = _product(g, w, (geometry.layout.y[1], geometry.layout.w[0]), options)
        return jnp.moveaxis(dx, (0, 1), geometry.layout.x)
    return rotated.input_grad(g, w, geometry, **options)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
    """∂T/∂w; see `rotated.kernel_grad`."""
    if _is_product(geometry):
        dw = _product(x, g, (geometry.layout.x[0], geometry.layout.y[0]), options)
        return jnp.moveaxis(dw, (1, 0), geometry.layout.w[:2])
    return rotated.kernel_grad(x, g, geometry, **options)
