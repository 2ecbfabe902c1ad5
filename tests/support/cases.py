"""The one table of geometries. Every test of a convolution runs over it; ids derive from the data.

The table is the bug farm of hand-written convolution gradients: groups × stride × dilation × input dilation ×
asymmetric or negative padding × a stride that does not divide × sizes 0 and 1, in 1-D, 2-D and 3-D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A convolution: shapes in NHWC/HWIO and the options of `jaxconv.conv`."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        shapes = "x".join(map(str, self.x)) + "*" + "x".join(map(str, self.w))
        return "-".join([shapes, *(f"{k}={v}" for k, v in self.options.items())]).replace(" ", "")


CASES = [
    # 1-D
    Case((2, 7, 2), (3, 2, 4), {}),
    Case((2, 8, 3), (3, 3, 2), {"padding": "CAUSAL", "dilation": 2}),
    Case((1, 9, 4), (4, 2, 6), {"stride": 3, "groups": 2, "padding": ((2, -1),)}),
    Case((2, 5, 2), (3, 2, 2), {"input_dilation": 3, "stride": 2, "padding": ((1, 2),)}),
    Case((2, 1, 1), (1, 1, 1), {"padding": 0}),
    Case((2, 6, 3), (2, 1, 6), {"groups": 3, "flip_kernel": True, "padding": "VALID"}),
    # 2-D
    Case((2, 5, 6, 3), (3, 3, 3, 4), {}),
    Case((2, 5, 6, 3), (3, 2, 3, 4), {"padding": "VALID"}),
    Case((2, 6, 7, 2), (3, 3, 2, 3), {"stride": 2}),
    Case((1, 7, 8, 2), (2, 3, 2, 3), {"stride": (2, 3), "padding": "VALID"}),  # the stride does not divide
    Case((2, 6, 5, 4), (3, 3, 1, 4), {"groups": 4}),  # depthwise
    Case((2, 6, 5, 2), (3, 3, 1, 6), {"groups": 2, "stride": 2}),  # depthwise, channel multiplier 3
    Case((2, 7, 7, 4), (3, 2, 2, 6), {"groups": 2, "dilation": (2, 1), "stride": (1, 2), "padding": "SAME_LOWER"}),
    Case((2, 6, 6, 2), (3, 3, 2, 3), {"padding": ((2, 0), (-1, 3))}),
    Case((2, 7, 7, 2), (3, 3, 2, 3), {"padding": ((-1, -2), (-2, 0)), "stride": 2}),
    Case((2, 4, 5, 2), (3, 3, 2, 3), {"input_dilation": (2, 3), "padding": ((1, 2), (0, 1))}),
    Case((1, 4, 4, 4), (2, 3, 2, 4), {"input_dilation": 2, "stride": 3, "dilation": 2, "groups": 2, "padding": 2}),
    Case((2, 6, 6, 3), (1, 1, 3, 5), {"stride": 2, "padding": 0}),  # 1×1, strided
    Case((2, 6, 6, 3), (3, 3, 3, 2), {"stride": 3, "padding": "VALID"}),  # patchify
    Case((2, 5, 5, 2), (3, 3, 2, 3), {"flip_kernel": True, "stride": 2}),
    Case((2, 5, 5, 2), (3, 2, 2, 3), {"stride": 4, "padding": 1}),  # a stride wider than the window
    # 3-D
    Case((1, 4, 5, 3, 2), (2, 3, 2, 2, 2), {"stride": (1, 2, 1)}),
    Case((1, 5, 4, 4, 2), (2, 2, 2, 1, 4), {"groups": 2, "dilation": (2, 1, 1), "padding": ((0, 1), (1, -1), (0, 0))}),
    # sizes 0 and 1
    Case((0, 5, 5, 2), (3, 3, 2, 3), {}),
    Case((2, 0, 5, 2), (3, 3, 2, 3), {"padding": 2}),
    Case((2, 2, 2, 2), (3, 3, 2, 3), {"padding": "VALID"}),  # the window does not fit: no output
    Case((1, 1, 1, 1), (3, 3, 1, 1), {}),
]

# A handful that between them use every option: for transformations, which compile slowly.
FEW = [CASES[i] for i in (2, 3, 12, 14, 16, 22)]


def in_layout(case: Case, layout: str) -> Case:
    """The same convolution with its arrays laid out as NHWC or NCHW."""
    if layout == "NHWC":
        return case
    n, *spatial, c = case.x
    *taps, i, o = case.w
    return Case((n, c, *spatial), (o, i, *taps), {**case.options, "layout": layout})


def arrays(case: Case, dtype: Any = np.float64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random x and w of a case, standard normal."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(case.x).astype(dtype), rng.standard_normal(case.w).astype(dtype)


def cotangent(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 1) -> np.ndarray:
    """A random δ: all-ones cotangents accept most wrong rules."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
