"""Normalisations backwards: which calls the kernel of `csrc/norms.cc` takes, and what it is told.

Forwards XLA is as fast as anybody. Backwards it has to add up along two different sets of axes at once, and reads its
arrays once more for each. Processor time of forward and backward pass, ours and in plain JAX, and PyTorch's on one
thread (2 cores of an AMD EPYC 9004, other work beside, jax and jaxlib 0.10.2, PyTorch 2.13.0, float32, 2026-11-26):

    batch norm, 32×32²×64          3.6 ms     9.5 ms    3.2 ms
    batch norm, 128×28²×32         5.2       25.4
    batch norm, 32×8²×256          0.7        1.3       0.7
    layer norm, 8×56²×96           3.1       19.5       3.5
    group norm (8), 8×56²×96       5.3       10.2
    instance norm, 8×56²×96        4.2        7.1
    RMS norm, 8×56²×96             2.0        7.8

Channels first is left to XLA, and so are float64 and fewer than 16 channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxconv.engines import Native

TARGET = "jaxconv_norm_gradient"
_DTYPES = ("float32", "bfloat16", "float16")
_FEWEST_CHANNELS = 16


def gradient(axes: tuple[int, ...], centred: bool, depth: int, *arrays: Any) -> Native | str:
    """The call for (g, x, mean, inverse, scale) with `depth` leading axes of a batch, or why there is none.

    `axes` are those of the statistics, without the batch; scale is shaped to broadcast against x.
    """
    _, x, _, _, scale = arrays
    if x.dtype not in _DTYPES or scale.dtype != np.float32:
        return f"it takes {', '.join(_DTYPES)} with a scale of float32, not {x.dtype} with {scale.dtype}"
    batch, shape, scaled = math.prod(x.shape[:depth]), x.shape[depth:], scale.shape[depth:]
    longer = [axis for axis, n in enumerate(shape) if n != 1]
    first = next((i for i, axis in enumerate(longer) if scaled[axis] != 1), len(longer))
    rows, channels = longer[:first], longer[first:]
    if any(scaled[axis] == 1 for axis in channels) or math.prod(shape[axis] for axis in channels) < _FEWEST_CHANNELS:
        return f"it computes {_FEWEST_CHANNELS} channels or more at once, which have to lie side by side"

    def sizes(those: list[int]) -> tuple[int, int]:
        """Of the axes that are kept and of those that are summed over."""
        kept, summed = ([shape[axis] for axis in those if (axis in axes) is which] for which in (False, True))
        return math.prod(kept), math.prod(summed)

    if any([axis in axes for axis in those] != sorted(axis in axes for axis in those) for those in (rows, channels)):
        return "it takes statistics over the inner positions and the inner channels"
    (outer, inner), (groups, members) = sizes(rows), sizes(channels)
    by_rows = inner == 1 and groups == 1
    return Native(TARGET, {"norm": np.array([batch, outer, inner, groups, members, by_rows, centred], np.int64)})
