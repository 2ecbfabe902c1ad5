"""Which formulation each map takes: pure functions of platform, dtype and sizes.

Every choice other than "lax" was measured against it; the figures are those of `experiments/results/benchmark.json`.
They are the CPU's: on any other platform only what is exact there and no slower, a product for a layer without
spatial axes, replaces `lax`.
"""

from __future__ import annotations

import math
from typing import Any

from jaxconv.geometry import Geometry
from jaxconv.rules.fast import patches, products


def conv(platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int) -> str:
    """The formulation of `conv` on `batch` examples of `inputs` channels: "lax", "product", "shifts", ..."""
    del dtype
    if 0 in (batch, inputs, outputs, *geometry.spatial, *geometry.out):
        return "lax"
    if geometry.rank == 0:
        return "product"
    if platform != "cpu":
        return "lax"
    dilated = max(geometry.input_dilation) > 1
    if dilated and max(geometry.stride) > 1:
        return "lax"
    if geometry.groups > 1:
        if dilated:
            return "phases"
        narrow = inputs == geometry.groups or inputs // geometry.groups * math.prod(geometry.taps) <= 80
        return "shifts" if narrow else "blocks"
    aligned = all(a.input_dilation % a.dilation == 0 for a in geometry.axes)
    return "merged phases" if dilated and aligned and outputs <= 4 else "lax"


def input_grad(platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int) -> str:
    """The formulation of `input_grad`; "full" is the full convolution, by the formulation that `conv` takes for it."""
    if 0 in (batch, inputs, outputs, *geometry.spatial, *geometry.out):
        return "lax"
    if geometry.rank == 0:
        return "product"
    if platform != "cpu":
        return "lax"
    if products.disjoint(geometry) and geometry.groups == 1:
        return "product"
    if geometry.groups == 1 and max(geometry.input_dilation) == 1 and math.prod(geometry.taps) * inputs <= 2 * outputs:
        return "fold"
    return "lax" if conv(platform, dtype, geometry.full(), batch, outputs, inputs) == "lax" else "full"


def kernel_grad(platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int) -> str:
    """The formulation of `kernel_grad`."""
    del dtype
    if 0 in (batch, inputs, outputs, *geometry.spatial, *geometry.out):
        return "lax"
    if geometry.rank == 0:
        return "product"
    if platform != "cpu" or max(geometry.input_dilation) > 1:
        return "lax"
    if geometry.groups > 1:
        return "shifts" if inputs == geometry.groups and outputs <= 4 * inputs else "blocks"
    if products.disjoint(geometry):
        return "product"
    # XLA's own is faster along a single axis, and where adding to dw costs more than multiplying.
    large = outputs * inputs * math.prod(geometry.taps) > 2**20 and not patches.whole(geometry, batch, inputs)
    return "lax" if geometry.rank == 1 or large else "patches"
