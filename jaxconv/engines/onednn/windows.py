"""Pools: which calls the kernels of `csrc/windows.cc` take, and what they are told.

Processor time of forward and backward pass, ours and in plain JAX, and PyTorch's on one thread (2 cores of an AMD EPYC
9004, other work beside, jax and jaxlib 0.10.2, PyTorch 2.13.0, float32, 2026-11-26):

    max pool 2/2, 128×24²×64            3.1 ms     5.6 ms    5.2 ms
    max pool 3/2, 8×112²×64, SAME       5.1       53.9       6.7
    average pool 2/2, 128×24²×64        2.5        2.9       4.5
    average pool 3/1, 8×56²×64, SAME    2.6       11.3       4.1

In 16 bits the factors are larger: what XLA computes there is converted at every tap. Left to XLA are channels-first
arrays and those of few channels, where neighbours in memory belong to windows that overlap and nothing was gained, the
gradients of windows side by side, which are a reshape, and a single spatial axis, which XLA walks as fast and together
with what is around it (8×4000×64, 3/2: 0.5 ms each alone, but 5.3 and 1.0 as the gradient of Σ y²; a single example of
200,000×8, 4/1, a row that no two threads can share, 11 and 0.9).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxconv.engines import Native
from jaxconv.geometry import Geometry
from jaxconv.windows import tiles

Counted = tuple[tuple[int, int], ...]

TARGET = "jaxconv_windows"
# What the C++ calls the kinds, and whether they go from windows back to their inputs.
_KINDS = {
    "remember": (0, False),
    "maximum": (1, False),
    "take": (2, False),
    "put": (3, True),
    "sum": (4, False),
    "spread": (4, True),
    "average": (5, False),
    "share": (5, True),
}
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_FEWEST_CHANNELS = 8
# As in the C++; the walk keeps 24 bytes for each meeting along an axis.
_MOST_TAPS, _MOST_MEETINGS = 1 << 15, 1 << 20


def average(kind: str, static: tuple[Geometry, Counted], depth: int, *arrays: Any) -> Native | str:
    """The same for an average, in which so much padding counts."""
    return window(kind, static[0], depth, *arrays, counted=static[1])


def window(kind: str, geometry: Geometry, depth: int, *arrays: Any, counted: Counted | None = None) -> Native | str:
    """The call that computes a pool on arrays with `depth` leading axes of a batch, or why there is none."""
    x = arrays[0]
    if x.dtype not in _DTYPES:
        return f"it computes in {', '.join(_DTYPES)}, not in {x.dtype}"
    if not 2 <= geometry.rank <= 3:
        return f"it has windows of 2 or 3 axes, not of {geometry.rank}"
    if kind in ("put", "spread", "share") and tiles(geometry):
        return "windows side by side are a reshape, which XLA computes as fast and together with what is around it"
    taps = math.prod(geometry.taps)
    if taps > _MOST_TAPS or any(max(a.n, a.out) * a.k > _MOST_MEETINGS for a in geometry.axes):
        return f"a window of {taps} taps is too large"
    if geometry.layout.x[1] == 1 or x.shape[-1] < _FEWEST_CHANNELS:
        return f"it computes {_FEWEST_CHANNELS} channels or more at once, which have to lie side by side"
    batch, lanes = math.prod(x.shape[: depth + 1]), x.shape[-1]
    axes = [
        (a.n, a.out, a.k, a.stride, a.dilation, a.lo, *pair)
        for a, pair in zip(geometry.axes, counted or [(0, 0)] * geometry.rank, strict=True)
    ]
    number, transposed = _KINDS[kind]
    return Native(TARGET, {"window": np.array([number, transposed, batch, lanes, *sum(axes, ())], np.int64)})
