"""The kernel gradient of a depthwise convolution by a kernel of our own: which calls it takes, and what it is told.

oneDNN 3.2 has none for kernels of more than a few taps, nor for other than two axes; XLA's formulation reads x and δ
once more for each tap, in a program that grows with them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import Geometry

TARGET = "jaxconv_depthwise_kernel_grad"
_DTYPES = ("float32", "bfloat16", "float16")
_MOST_AXES = 4
# Those that are computed at once; fewer leave lanes idle.
_FEWEST_CHANNELS = 16


def refusal(dtype: Any, result: Any, geometry: Geometry, inputs: int, outputs: int) -> str | None:
    """Why the kernel does not take a kernel gradient; None if it does."""
    if not geometry.groups == inputs == outputs:
        return "it has one channel per group"
    if inputs < _FEWEST_CHANNELS or not 1 <= geometry.rank <= _MOST_AXES:
        return f"it has {_FEWEST_CHANNELS} channels or more, and 1 to {_MOST_AXES} spatial axes"
    if jnp.dtype(dtype) not in _DTYPES or jnp.dtype(result or dtype) not in (dtype, "float32"):
        return f"it takes {', '.join(_DTYPES)}, and sums in float32"
    if any(e > 1 for e in geometry.input_dilation):
        return "it has no input dilation"
    return None


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """dw (*taps, 1, c) in float32, of x (n, *spatial, c) and g (n, *out, c)."""
    axes = [n for a in geometry.axes for n in (a.n, a.out, a.k, a.stride, a.dilation, a.lo)]
    sizes = np.array([x.shape[0], x.shape[-1], *axes], np.int64)
    shape = jax.ShapeDtypeStruct((*geometry.taps, 1, x.shape[-1]), jnp.float32)
    return jax.ffi.ffi_call(TARGET, shape)(x, g, depthwise=sizes)
