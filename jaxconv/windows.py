"""Windows: what one tap reads and where it writes, windows side by side as tiles, and the dtype of their sums.

Shapes are already validated and resolved: see `geometry.Geometry`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.geometry import Axis, Geometry

# Sums


def accumulator(dtype: Any) -> Any:
    """The dtype sums are carried in: float32 for the floats of 16 bits and fewer, else the dtype itself."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.float32 if narrow else dtype


def widened(x: jax.Array) -> jax.Array:
    """x in the dtype in which its sums are carried."""
    return x.astype(accumulator(x.dtype))


# One tap


def taps(geometry: Geometry) -> list[tuple[int, ...]]:
    """All tap positions of the window, in row-major order."""
    return list(itertools.product(*map(range, geometry.taps)))


def padded(x: jax.Array, geometry: Geometry, fill: float = 0.0) -> jax.Array:
    """x, dilated and padded (or cropped) so that every window lies inside."""
    config = [(0, 0, 0)] * x.ndim
    for axis, n in zip(geometry.layout.x[2:], geometry.axes, strict=True):
        config[axis] = (n.lo, n.hi, n.input_dilation - 1)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def tap_slice(x: jax.Array, tap: Sequence[int], geometry: Geometry) -> jax.Array:
    """What `tap` reads of a padded x, at every output position."""
    start, limit, stride = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for axis, j, n in zip(geometry.layout.x[2:], tap, geometry.axes, strict=True):
        start[axis] = min(j * n.dilation, x.shape[axis])
        limit[axis] = start[axis] + (n.out - 1) * n.stride + 1 if n.out else start[axis]
        stride[axis] = n.stride
    return lax.slice(x, start, limit, stride)


def at_tap(g: jax.Array, tap: Sequence[int], geometry: Geometry) -> jax.Array:
    """The transpose of reading one tap: g[p] placed at input position s·p + d·k − lo."""
    config = [(0, 0, 0)] * g.ndim
    for axis, j, a in zip(geometry.layout.x[2:], tap, geometry.axes, strict=True):
        low = j * a.dilation - a.lo
        reach = (a.out - 1) * a.stride + 1 if a.out else 0
        config[axis] = (low, a.n - low - reach, a.stride - 1)
    return lax.pad(g, jnp.zeros((), g.dtype), config)


# All taps of a window


def along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """One number per entry of an axis, to broadcast against arrays of `ndim` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


@functools.lru_cache(maxsize=256)
def axis_counts(axis: Axis, counted: tuple[int, int]) -> np.ndarray:
    """How many elements each window of one axis averages over, those of the padding `counted` included."""
    positions = np.arange(axis.out)[:, None] * axis.stride + np.arange(axis.k) * axis.dilation - axis.lo
    lo, hi = counted
    return ((positions >= -lo) & (positions < axis.n + hi)).sum(1)


def window_counts(geometry: Geometry, counted: tuple[tuple[int, int], ...]) -> np.ndarray:
    """How many elements each window averages over, those of the padding `counted` included; to broadcast against y."""
    count = np.ones((1,) * (geometry.rank + 2))
    for axis, n, pair in zip(geometry.layout.y[2:], geometry.axes, counted, strict=True):
        count = count * along(axis_counts(n, pair), axis, count.ndim)
    return count


# Windows side by side


def tiles(geometry: Geometry) -> bool:
    """Whether the windows lie side by side, so that giving each its part of the input is a reshape."""
    return geometry.stride == geometry.taps and max(geometry.dilation, default=1) == 1


def per_tile(a: jax.Array, geometry: Geometry) -> jax.Array:
    """One element per window with an axis of size 1 behind each spatial axis, to broadcast over the window's taps."""
    return lax.expand_dims(a, [axis + i + 1 for i, axis in enumerate(geometry.layout.y[2:])])


def tap_shape(geometry: Geometry) -> list[int]:
    """The shape of something that depends on the tap alone, to broadcast against `per_tile`."""
    shape = [1] * (2 + 2 * geometry.rank)
    shape[geometry.layout.y[2] + 1 : geometry.layout.y[2] + 2 * geometry.rank : 2] = geometry.taps
    return shape


def from_tiles(a: jax.Array, geometry: Geometry) -> jax.Array:
    """Windows side by side, (window, tap) for each spatial axis, as the input they were cut from."""
    first = geometry.layout.y[2]
    pairs = [(first + 2 * i, n) for i, n in enumerate(geometry.axes)]
    shape = [*a.shape[:first], *(n.out * n.k for _, n in pairs), *a.shape[first + 2 * len(pairs) :]]
    config = [(0, 0, 0)] * len(shape)
    for axis, n in zip(geometry.layout.x[2:], geometry.axes, strict=True):
        config[axis] = (-n.lo, n.n + n.lo - n.out * n.k, 0)
    return lax.pad(a.reshape(shape), jnp.zeros((), a.dtype), config)
