"""The three maps, each by the formulation that `choice` hands out.

Formulations work channels-last and on unflipped kernels; other layouts are transposed here, as XLA's CPU backend does
for its own convolutions, unless the formulation takes any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.geometry import Geometry, channels_last_order, inverse, taps_first_order
from jaxconv.rules import rotated
from jaxconv.rules.fast import choice
from jaxconv.rules.fast.formulation import Call
from jaxconv.rules.fast.table import Table
from jaxconv.windows import accumulator


@dataclass(frozen=True)
class ChannelsLast:
    """The maps on channels-last arrays, which are the `Maps` that formulations build on each other with.

    Attributes:
      platform: as a `Call` has it.
      dtype: of the result; None for what `lax` makes of the operands'.
      precision: of products, as `lax` takes it.
      engine: who may compute, as a `Call` has it.
      table: what was measured, if anything was.
      turned_kernels: whether the kernels that `conv` meets have been turned around.
    """

    platform: str | None
    dtype: Any
    precision: Any
    engine: str = "xla"
    table: Table | None = None
    turned_kernels: bool = False

    def conv(self, x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
        sizes = x.shape[0], x.shape[-1], w.shape[-1]
        call = Call("conv", self.platform, x.dtype, geometry, *sizes, self.turned_kernels, self.engine, self.dtype)
        return choice.chosen(call, self.table).compute(x, w, geometry, self)

    def kernel_grad(self, x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
        sizes = x.shape[0], x.shape[-1], g.shape[-1]
        call = Call("kernel_grad", self.platform, x.dtype, geometry, *sizes, engine=self.engine, result=self.dtype)
        return choice.chosen(call, self.table).compute(x, g, geometry, self)

    def turned(self) -> ChannelsLast:
        return replace(self, turned_kernels=True)

    def carrying(self, dtype: Any) -> ChannelsLast:
        """The same for operands of a dtype, sums carried in float32 or wider and at least as wide as the result."""
        with jax.numpy_dtype_promotion("standard"):
            carried = jnp.promote_types(*map(accumulator, (dtype, self.dtype or dtype)))
        return replace(self, dtype=carried)


def call_of(
    of: str, a: tuple[int, ...], b: tuple[int, ...], dtype: Any, geometry: Geometry, platform: str | None, engine: str,
    result: Any,
) -> Call:  # fmt: skip
    """What a map is asked for, from the shapes of its operands and their dtype."""
    layout = geometry.layout
    match of:
        case "conv":
            sizes = a[layout.x[0]], a[layout.x[1]], b[layout.w[0]]
        case "input_grad":
            sizes = a[layout.y[0]], b[layout.w[1]] * geometry.groups, a[layout.y[1]]
        case _:
            sizes = a[layout.x[0]], a[layout.x[1]], b[layout.y[1]]
    return Call(of, platform, dtype, geometry, *sizes, engine=engine, result=result)


def _data(a: jax.Array, spec: tuple[int, ...]) -> jax.Array:
    """x, y or g as (n, *spatial, channel)."""
    return a.transpose(channels_last_order(spec))


def _kernel(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w as (*taps, in, out), unflipped."""
    return (rotated.rot180(w, geometry) if geometry.flip_kernel else w).transpose(taps_first_order(geometry.layout.w))


def _restored(a: jax.Array, order: tuple[int, ...], dtype: Any) -> jax.Array:
    """The inverse of a transposition by `order`."""
    return a.transpose(inverse(order)).astype(dtype)


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, *, platform: str | None = None, engine: str = "xla",
    table: Table | None = None, precision: Any = None, preferred_element_type: Any = None,
) -> jax.Array:  # fmt: skip
    """∂T/∂g; see `forward.conv`, whose options it takes. Without a platform: what every platform runs well."""
    layout, maps = geometry.layout, ChannelsLast(platform, preferred_element_type, precision, engine, table)
    call = call_of("conv", x.shape, w.shape, x.dtype, geometry, platform, engine, preferred_element_type)
    chosen = choice.chosen(call, table)
    if chosen.any_layout:
        return chosen.compute(x, w, geometry, maps)
    x_last, w_last = _data(x, layout.x), _kernel(w, geometry)
    y = chosen.compute(x_last, w_last, geometry.channels_last(), maps.carrying(x.dtype))
    return _restored(y, channels_last_order(layout.y), preferred_element_type or x.dtype)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, platform: str | None = None, engine: str = "xla",
    table: Table | None = None, precision: Any = None, preferred_element_type: Any = None,
) -> jax.Array:  # fmt: skip
    """∂T/∂x; see `rotated.input_grad`."""
    layout, maps = geometry.layout, ChannelsLast(platform, preferred_element_type, precision, engine, table)
    call = call_of("input_grad", g.shape, w.shape, g.dtype, geometry, platform, engine, preferred_element_type)
    chosen = choice.chosen(call, table)
    if chosen.any_layout:
        return chosen.compute(g, w, geometry, maps)
    g_last, w_last = _data(g, layout.y), _kernel(w, geometry)
    dx = chosen.compute(g_last, w_last, geometry.channels_last(), maps.carrying(g.dtype))
    return _restored(dx, channels_last_order(layout.x), preferred_element_type or g.dtype)


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, platform: str | None = None, engine: str = "xla",
    table: Table | None = None, precision: Any = None, preferred_element_type: Any = None,
) -> jax.Array:  # fmt: skip
    """∂T/∂w; see `rotated.kernel_grad`."""
    layout, maps = geometry.layout, ChannelsLast(platform, preferred_element_type, precision, engine, table)
    call = call_of("kernel_grad", x.shape, g.shape, x.dtype, geometry, platform, engine, preferred_element_type)
    chosen = choice.chosen(call, table)
    if chosen.any_layout:
        return chosen.compute(x, g, geometry, maps)
    x_last, g_last = _data(x, layout.x), _data(g, layout.y)
    dw = chosen.compute(x_last, g_last, geometry.channels_last(), maps.carrying(x.dtype))
    dw = _restored(dw, taps_first_order(layout.w), preferred_element_type or x.dtype)
    return rotated.rot180(dw, geometry) if geometry.flip_kernel else dw


_MAPS = {"conv": conv, "input_grad": input_grad, "kernel_grad": kernel_grad}


@dataclass(frozen=True)
class Measured:
    """One of the maps, by what a table says is fastest, as a rule."""

    of: str
    table: Table

    def __call__(self, a: jax.Array, b: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
        return _MAPS[self.of](a, b, geometry, table=self.table, **options)
