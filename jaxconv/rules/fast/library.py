"""XLA's own convolution, through `lax`: what runs where nothing that was tried is faster. The formulas of `rotated`.

Arrays are in any layout, kernels flipped or not.
"""

from __future__ import annotations

import jax

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.rules import rotated
from jaxconv.rules.fast.formulation import Call, Formulation, Maps


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return forward.conv(x, w, geometry, preferred_element_type=maps.dtype, precision=maps.precision)


def input_grad(g: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return rotated.input_grad(g, w, geometry, preferred_element_type=maps.dtype, precision=maps.precision)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return rotated.kernel_grad(x, g, geometry, preferred_element_type=maps.dtype, precision=maps.precision)


COMPUTE = {"conv": conv, "input_grad": input_grad, "kernel_grad": kernel_grad}


def offer(call: Call, why: str) -> Formulation:
    """Of any call, for want of a better one."""
    return Formulation("lax", COMPUTE[call.map], why, any_layout=True)
