"""The three maps, each by the formulation that `choice` hands out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.rules import rotated
from jaxconv.rules.fast import blocks, choice, folds, patches, phases, products, shifts


@dataclass(frozen=True)
class _Maps:
    """The three maps on channels-last arrays, results in `dtype`: what the formulations build on each other with."""

    platform: str | None
    dtype: Any
    precision: Any

    @property
    def options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "precision": self.precision}

    @property
    def lax_options(self) -> dict[str, Any]:
        return {"preferred_element_type": self.dtype, "precision": self.precision}

    def conv(self, x: jax.Array, w: jax.Array, geometry: Geometry, turned: bool = False) -> jax.Array:
        sizes = x.shape[0], x.shape[-1], w.shape[-1]
        match choice.conv(self.platform, x.dtype, geometry, *sizes, turned=turned).formulation:
            case "product":
                return products.conv(x, w, geometry, **self.options)
            case "shifts":
                return shifts.conv(x, w, geometry, **self.options)
            case "blocks":
                return blocks.conv(x, w, geometry, self.conv, self.dtype)
            case "phases":
                return phases.conv(x, w, geometry, partial(self.conv, turned=turned), self.dtype)
            case "merged phases":
                return phases.merged(x, w, geometry, self.conv)
        return forward.conv(x, w, geometry, **self.lax_options)

    def input_grad(self, g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
        inputs = w.shape[-2] * geometry.groups
        match choice.input_grad(self.platform, g.dtype, geometry, g.shape[0], inputs, g.shape[-1]).formulation:
            case "product":
                return products.input_grad(g, w, geometry, **self.options)
            case "fold":
                return folds.input_grad(g, w, geometry, **self.options)
            case "full":
                kernel = rotated.channel_transposed(rotated.rot180(w, geometry), geometry)
                return self.conv(g, kernel, geometry.full(), turned=True)
        return rotated.input_grad(g, w, geometry, **self.lax_options)

    def kernel_grad(self, x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
        match choice.kernel_grad(self.platform, x.dtype, geometry, x.shape[0], x.shape[-1], g.shape[-1]).formulation:
            case "product":
                return products.kernel_grad(x, g, geometry, **self.options)
            case "shifts":
                return shifts.kernel_grad(x, g, geometry, **self.options)
            case "blocks":
                return blocks.kernel_grad(x, g, geometry, self.kernel_grad)
            case "patches":
                return patches.kernel_grad(x, g, geometry, **self.options)
        return rotated.kernel_grad(x, g, geometry, **self.lax_options)


def _maps(
    platform: str | None, dtype: Any, precision: Any = None, preferred_element_type: Any = None
) -> tuple[_Maps, Any]:
    """The maps, whose sums are carried in float32 or wider and at least as wide as the result, and its dtype."""
    wanted = preferred_element_type or dtype
    with jax.numpy_dtype_promotion("standard"):
        carried = jnp.promote_types(*map(forward.accumulator, (dtype, wanted)))
    return _Maps(platform, carried, precision), wanted


def _data(a: jax.Array, spec: tuple[int, ...]) -> jax.Array:
    """x, y or g as (n, *spatial, channel)."""
    return a.transpose(spec[0], *spec[2:], spec[1])


def _kernel(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w as (*taps, in, out), unflipped."""
    outputs, inputs, *taps = geometry.layout.w
    return (rotated.rot180(w, geometry) if geometry.flip_kernel else w).transpose(*taps, inputs, outputs)


def _restored(a: jax.Array, order: tuple[int, ...], dtype: Any) -> jax.Array:
    """The inverse of a transposition by `order`."""
    return a.transpose([order.index(axis) for axis in range(a.ndim)]).astype(dtype)


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, *, platform: str | None = None, **options: Any) -> jax.Array:
    """∂T/∂g; see `forward.conv`, whose options it takes. Without a platform: what every platform runs well."""
    layout = geometry.layout
    sizes = x.shape[layout.x[0]], x.shape[layout.x[1]], w.shape[layout.w[0]]
    if choice.conv(platform, x.dtype, geometry, *sizes).formulation == "lax":
        return forward.conv(x, w, geometry, **options)
    maps, dtype = _maps(platform, x.dtype, **options)
    y = maps.conv(_data(x, layout.x), _kernel(w, geometry), geometry.channels_last())
    n, o, *spatial = layout.y
    return _restored(y, (n, *spatial, o), dtype)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, platform: str | None = None, **options: Any
) -> jax.Array:
    """∂T/∂x; see `rotated.input_grad`."""
    layout = geometry.layout
    sizes = g.shape[layout.y[0]], w.shape[layout.w[1]] * geometry.groups, g.shape[layout.y[1]]
    if choice.input_grad(platform, g.dtype, geometry, *sizes).formulation == "lax":
        return rotated.input_grad(g, w, geometry, **options)
    maps, dtype = _maps(platform, g.dtype, **options)
    dx = maps.input_grad(_data(g, layout.y), _kernel(w, geometry), geometry.channels_last())
    n, c, *spatial = layout.x
    return _restored(dx, (n, *spatial, c), dtype)


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, platform: str | None = None, **options: Any
) -> jax.Array:
    """∂T/∂w; see `rotated.kernel_grad`."""
    layout = geometry.layout
    sizes = x.shape[layout.x[0]], x.shape[layout.x[1]], g.shape[layout.y[1]]
    if choice.kernel_grad(platform, x.dtype, geometry, *sizes).formulation == "lax":
        return rotated.kernel_grad(x, g, geometry, **options)
    maps, dtype = _maps(platform, x.dtype, **options)
    dw = maps.kernel_grad(_data(x, layout.x), _data(g, layout.y), geometry.channels_last())
    o, c, *taps = layout.w
    dw = _restored(dw, (*taps, c, o), dtype)
    return rotated.rot180(dw, geometry) if geometry.flip_kernel else dw
