"""By an engine: code that was written for this platform, where there is some that takes the call.

Arrays are in any layout, kernels flipped or not.
"""

from __future__ import annotations

import functools

import jax

from jaxconv.engines.onednn import convolution
from jaxconv.engines.onednn.convolution import Layer
from jaxconv.geometry import Geometry
from jaxconv.rules.fast.formulation import Call, Formulation, Maps

PLATFORM = "cpu"


def _compute(map: str, a: jax.Array, b: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return convolution.compute(map, a, b, geometry, maps.dtype)


def offer(call: Call) -> Formulation | str:
    """What the engine of a call's platform makes of it, or why it does not take it."""
    if call.engine == "xla":
        return "XLA was asked for"
    if call.platform != PLATFORM:
        return "on this platform, or split over several devices by XLA, there is no engine but XLA"
    layer = Layer(call.batch, call.inputs, call.outputs)
    if why_not := convolution.refusal(call.map, call.dtype, call.geometry, layer):
        return why_not
    name = convolution.implementation(call.map, call.dtype, call.geometry, layer)
    return Formulation(
        "onednn", functools.partial(_compute, call.map), f"oneDNN has {name}", "what oneDNN needs beside the arrays",
        any_layout=True,
    )  # fmt: skip
