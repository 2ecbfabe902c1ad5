"""Normalisations backwards: which calls the kernel of `csrc/norms.cc` takes, and what it is told."""

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
    first = next((axis for axis, n in enumerate(scaled) if n != 1), len(shape))
    if scaled[first:] != shape[first:] or math.prod(shape[first:]) < _FEWEST_CHANNELS:
        return f"it computes {_FEWEST_CHANNELS} channels or more at once, which have to lie side by side"
    rows, channels = [axis in axes for axis in range(first)], [axis in axes for axis in range(first, len(shape))]
    if sorted(rows) != rows or sorted(channels) != channels:
        return "it takes statistics over the inner positions and the inner channels"
    outer, inner = (
        math.prod(n for n, one in zip(shape, rows, strict=False) if one is which) for which in (False, True)
    )
    groups, members = (
        math.prod(n for n, one in zip(shape[first:], channels, strict=True) if one is which) for which in (False, True)
    )
    by_rows = inner == 1 and groups == 1
    return Native(TARGET, {"norm": np.array([batch, outer, inner, groups, members, by_rows, centred], np.int64)})
