"""The three maps of a convolution by oneDNN: which calls it takes, and the call.

A call reaches C++ as integers: which map, the dtypes, the sizes, and where each axis of x, w and y lies in memory. So
XLA transposes nothing; oneDNN itself copies data that are not channels-last into that order. By what implementation it
would compute it says before anything is computed.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.engines.onednn import loading
from jaxconv.geometry import Axis, Geometry

# The first operand, the second, the result.
MAPS = {"conv": ("x", "w", "y"), "input_grad": ("y", "w", "x"), "kernel_grad": ("x", "y", "w")}
# As XLA numbers them: `PrimitiveType` in its xla_data.proto.
DTYPES = {jnp.dtype("float16"): 10, jnp.dtype("float32"): 11, jnp.dtype("bfloat16"): 16}


class Layer(NamedTuple):
    """The sizes of a convolution that its arrays bring: examples, channels of x, channels of y."""

    batch: int
    inputs: int
    outputs: int


class Answer(NamedTuple):
    """Whether oneDNN takes a call, and what it calls that which computes it, or why not."""

    taken: bool
    text: str


def answer(map: str, dtype: Any, result: Any, geometry: Geometry, layer: Layer) -> Answer:
    """Whether oneDNN takes a call, where the engine is on; `result` is the dtype of the result, None for `dtype`."""
    if why_not := _refusal(map, dtype, result, geometry):
        return Answer(False, why_not)
    return _asked(_described(map, dtype, result or dtype, geometry, layer))


def _refusal(map: str, dtype: Any, result: Any, geometry: Geometry) -> str | None:
    """Why a call is none that oneDNN could be asked about."""
    if jnp.dtype(dtype) not in DTYPES:
        return f"oneDNN computes in float32, bfloat16 and float16, not in {jnp.dtype(dtype)}"
    if result is not None and jnp.dtype(result) not in (jnp.dtype(dtype), jnp.dtype("float32")):
        return f"oneDNN sums in float32, which is not {jnp.dtype(result)}"
    if not 1 <= geometry.rank <= 3:
        return f"oneDNN has 1 to 3 spatial axes, not {geometry.rank}"
    if any(e > 1 for e in geometry.input_dilation):
        return "oneDNN has no input dilation"
    if any(lo < 0 or hi < 0 for lo, hi in geometry.padding):
        return "oneDNN has no negative padding"
    if map == "kernel_grad" and any(_idle(axis, tap) for axis in geometry.axes for tap in range(axis.k)):
        return "oneDNN leaves unwritten what belongs to a tap that reads nothing but padding"
    return None


def optimised(implementation: str) -> bool:
    """Whether it is a kernel for convolutions, not loops or one product after another."""
    return not any(word in implementation for word in ("ref", "gemm"))


def compute(map: str, a: jax.Array, b: jax.Array, geometry: Geometry, dtype: Any = None) -> jax.Array:
    """A map of its operands, in their layout; `dtype` is that of the result, theirs or float32."""
    result = jnp.dtype(dtype or a.dtype)
    of, layout = MAPS[map], geometry.layout
    shapes = dict(zip(of, (a.shape, b.shape), strict=False))
    shapes[of[2]] = {
        "conv": geometry.conv_shape, "input_grad": geometry.input_grad_shape, "kernel_grad": geometry.kernel_grad_shape
    }[map](a.shape, b.shape)  # fmt: skip
    layer = Layer(shapes["x"][layout.x[0]], shapes["x"][layout.x[1]], shapes["w"][layout.w[0]])
    turned = layout.w[2:] if geometry.flip_kernel else ()
    if of[1] == "w":
        b = lax.rev(b, turned)
    description = np.array(_described(map, a.dtype, result, geometry, layer), np.int64)
    out = jax.ffi.ffi_call(loading.CONVOLUTION, jax.ShapeDtypeStruct(shapes[of[2]], result))(
        a, b, convolution=description
    )
    return lax.rev(out, turned) if of[2] == "w" else out


def _idle(axis: Axis, tap: int) -> bool:
    """Whether a tap reads nothing but padding: where it first could read an input there is no window, or no input."""
    offset = tap * axis.dilation - axis.lo
    first = max(0, -(offset // axis.stride))
    return first >= axis.out or first * axis.stride + offset >= axis.n


def _described(map: str, dtype: Any, result: Any, geometry: Geometry, layer: Layer) -> tuple[int, ...]:
    """What `Description` in csrc/convolution.cc says of these numbers."""
    codes = list(MAPS).index(map), DTYPES[jnp.dtype(dtype)], DTYPES[jnp.dtype(result)]
    layouts = [axis for array in geometry.layout for axis in array]
    axes = [n for a in geometry.axes for n in (a.n, a.out, a.k, a.stride, a.dilation, a.lo, a.hi)]
    return (*codes, geometry.groups, *layer, _threads(), *layouts, *axes)


def _threads() -> int:
    """How many threads XLA computes with; a handler asks XLA itself."""
    return len(os.sched_getaffinity(0))


@functools.lru_cache(maxsize=1 << 14)
def _asked(description: tuple[int, ...]) -> Answer:
    numbers = (ctypes.c_int64 * len(description))(*description)
    text = ctypes.create_string_buffer(1024)
    probe = loading.library().jaxconv_onednn_probe
    failed = probe(numbers, ctypes.c_int64(len(description)), text, ctypes.c_int64(len(text)))
    said = text.value.decode(errors="replace")
    return Answer(False, f"oneDNN says: {said}") if failed else Answer(True, said)
