"""By an engine: code that was written for this platform, where there is some that takes the call.

Measured: how many times longer the best formulation inside XLA takes than oneDNN 3.2, on 2 cores of an AMD EPYC with
AVX-512, jax 0.10.2, float32, 2026-11-25 and 26. Dense layers 1.1 to 5 (forward), 1.2 to 3 (input gradient), 1.2 to 5
(kernel gradient), in three dimensions 3 to 28; with groups 2 to 4; depthwise kernel gradients of 3×3 taps 2.2 to 5.7.
oneDNN comes second, behind a formulation and before `lax`, where `beaten` says so.

Tried and left: gradients in three dimensions as a sum over the taps of one axis of calls in two, whose batch holds that
axis, 0.3 to 1.0 of oneDNN's own (nine layers of VoxNets, 3-D U-Nets and videos); oneDNN's blocked formats, to which x
and δ are copied, for channels last, 0.8 to 1.1; kernels reordered by one thread, which wakes no other, 0.9 to 1.4 of a
layer but the same step of a MobileNet.

Depthwise kernel gradients for which oneDNN has no kernel of that kind have one of our own: 3.0 for 96 channels of 7×7
taps, 3.2 for 240 of 5×5, 4.5 for 31 taps in one dimension, 5.1 for 3×3×3.

Arrays are in any layout, kernels flipped or not; for our own kernel they are channels-last and unflipped.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxconv.engines.onednn import convolution, depthwise, loading
from jaxconv.engines.onednn.convolution import Layer
from jaxconv.geometry import Geometry
from jaxconv.rules.fast import products
from jaxconv.rules.fast.formulation import Call, Formulation, Maps

PLATFORM = "cpu"
# The channels that oneDNN computes at once: those that are missing to so many are computed for nothing.
LANES = 16
# Shifted copies of so many taps are faster than oneDNN's strided depthwise kernels, also on an Intel Xeon (1.0 to 1.7).
# Without a stride they are too, by 1.2, but a MobileNet is 1.1 times slower with them.
FEW = 9
# What the names of oneDNN's depthwise kernels have in them.
DEPTHWISE = "dw"


def beaten(call: Call, implementation: str) -> str:
    """Why a formulation inside XLA is faster than this implementation of oneDNN's; empty where none is."""
    geometry, taps = call.geometry, math.prod(call.geometry.taps)
    if geometry.groups > 1 and geometry.groups == call.inputs == call.outputs:
        if DEPTHWISE not in implementation:  # 96 of 7×7 0.46, 240 of 5×5 0.68, 3-D 0.16 to 1.1, 1-D 0.08 to 0.48
            return f"oneDNN has no depthwise kernel for this, but {implementation}"
        strided = max(geometry.stride) > 1 or call.turned  # turned: what a strided input gradient is made of
        if call.map != "kernel_grad" and strided and taps <= FEW:  # 96 channels of 3×3 0.7 and 0.35
            return f"depthwise and strided, with {taps} taps"
    elif call.map == "input_grad" and geometry.groups == 1:
        if call.inputs <= LANES:  # 3→64 of 3×3 0.39, of 7×7 0.46, 3→96 of 4×4 0.31; 16→96 of 1×1 0.8
            return f"{call.inputs} input channels, of which oneDNN computes {LANES} at once"
        if taps > 1 and products.disjoint(geometry) and products.gapless(geometry):  # 96→192 of 2×2 0.8
            return "windows tile x: δ · Wᵀ is a reshaped dx"
    elif call.map == "kernel_grad" and taps == 1 and call.outputs % LANES:  # 96→24 0.45, where 96→384 has 1.1
        return f"{call.outputs} output channels, which {LANES} does not divide"
    return ""


def offer(call: Call) -> Formulation | str:
    """What the engine of a call's platform makes of it, or why it does not take it."""
    if call.engine == "xla":
        return "XLA was asked for"
    if call.platform != PLATFORM:
        return "oneDNN computes on CPUs, in programs that XLA does not split over devices"
    if off := loading.why_not_on(call.platform):
        return off
    layer = Layer(call.batch, call.inputs, call.outputs)
    taken, said = convolution.answer(call.map, call.dtype, call.result, call.geometry, layer)
    if call.map == "kernel_grad" and not (taken and DEPTHWISE in said) and _own_takes(call):
        why = "one channel per group: one walk over x and δ, a row for all taps at once"
        return Formulation("depthwise", _depthwise, why, "64 partial sums of dw")
    if not taken:
        return said
    if call.engine == "auto" and not convolution.optimised(said):
        return f"oneDNN has nothing better than {said}"
    single = math.prod(call.geometry.taps) == 1 < max(call.geometry.stride) and call.map != "kernel_grad"
    if call.engine == "auto" and single and jnp.dtype(call.dtype).itemsize >= 4:
        # The product's time over oneDNN's: 256→512 1.2 and 1.1, 64→128 0.8 and 0.7, 1024→2048 0.8 and 0.7, in three
        # dimensions 0.5 to 1.6; along one axis `lax` is as fast. In 16 bits XLA is slower still.
        return "one tap with a stride is oneDNN's on some CPUs and XLA's on others"
    compute, holds = functools.partial(_compute, call.map), "reordered kernels, and oneDNN's own scratch"
    layout, last = call.geometry.layout, call.geometry.channels_last().layout
    if (layout.x, layout.y) != (last.x, last.y):
        holds = f"x and y channels-last, {holds}"
    why_not = beaten(call, said)
    return Formulation("onednn", compute, f"oneDNN's {said}", holds, not why_not, why_not, any_layout=True)


def _own_takes(call: Call) -> bool:
    return depthwise.refusal(call.dtype, call.result, call.geometry, call.inputs, call.outputs) is None


def _compute(map: str, a: jax.Array, b: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return convolution.compute(map, a, b, geometry, maps.dtype)


def _depthwise(x: jax.Array, g: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    return depthwise.kernel_grad(x, g, geometry).astype(maps.dtype or x.dtype)
