"""The halo of a shard: the elements of its neighbours that the windows at its border read; backwards, δ sent home."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxconv import primitives
from jaxconv.geometry import Halo, Layout, check_layout, check_split, pieces, resolve_padding, spatial_rank
from jaxconv.ops.arguments import Rules, check_rules, floating
from jaxconv.ops.binding import linear, linear_pair
from jaxconv.windows import widened

Halos = tuple[tuple[int, Halo], ...]  # by array axis, in the order in which they are fetched

# The halo


def _numbers(of: Halo) -> tuple[tuple[Hashable, ...], list[int]]:
    """The mesh axes in the mesh's order, in which `ppermute` counts whatever it is given, and each shard's number."""
    names = tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name in of.names)
    by_mesh = np.arange(of.parts).reshape([lax.axis_size(name) for name in names])
    return names, by_mesh.transpose([names.index(name) for name in of.names]).ravel().tolist()


def _from(x: jax.Array, distance: int, of: Halo, fill: float) -> jax.Array:
    """The x of the shard that lies `distance` places on; `fill` beyond the ends of the image."""
    if distance == 0:
        return x
    if abs(distance) >= of.parts:
        return jnp.full_like(x, fill)
    names, number = _numbers(of)
    pairs = [(number[i + distance], number[i]) for i in range(of.parts) if 0 <= i + distance < of.parts]
    received = lax.ppermute(x, names, pairs)  # 0 where nobody sends
    if fill == 0:
        return received
    sender = lax.axis_index(of.names) + distance
    return jnp.where((sender >= 0) & (sender < of.parts), received, jnp.asarray(fill, x.dtype))


def extend(x: jax.Array, static: Halos, fill: float = 0.0) -> jax.Array:
    """A shard with its halo. The halo of a later axis has that of the earlier ones, so that corners arrive too."""
    for axis, of in static:
        cuts = pieces(x.shape[axis], of.lo, of.hi)
        parts = [_from(lax.slice_in_dim(x, start, stop, axis=axis), j, of, fill) for j, start, stop in cuts]
        x = lax.concatenate(parts, axis)
    return x


def _send_home(g: jax.Array, static: Halos) -> jax.Array:
    """The transpose: every piece of δ goes back to the shard that it was cut from, and is added at its place there."""
    dx = widened(g)
    for axis, of in reversed(static):
        m, at, total = dx.shape[axis] - of.lo - of.hi, 0, None
        for j, start, stop in pieces(m, of.lo, of.hi):
            piece = lax.slice_in_dim(dx, at, at + stop - start, axis=axis)
            if j:  # travels in the dtype of g
                piece = widened(_from(piece.astype(g.dtype), -j, of, 0))
            widths = [(start, m - stop, 0) if i == axis else (0, 0, 0) for i in range(dx.ndim)]
            home = lax.pad(piece, jnp.zeros((), dx.dtype), widths)
            total = home if total is None else total + home
            at += stop - start
        assert total is not None
        dx = total
    return dx.astype(g.dtype)


HALO = linear_pair("halo", lambda x, static: extend(x, static), _send_home)


# What a shard is part of


class Shard(NamedTuple):
    """This device's part of an image.

    Attributes:
      x: the part, as an array that differs between the devices.
      place: where its axes live.
      axes: the mesh axes over which each spatial axis is split.
      parts: in how many shards.
      spatial: the spatial sizes of the whole image.
    """

    x: jax.Array
    place: Layout
    axes: tuple[tuple[Hashable, ...], ...]
    parts: tuple[int, ...]
    spatial: tuple[int, ...]


def shard(function: str, x: jax.Array, split: Any, layout: Any) -> Shard:
    """x as the part of an image that `split` says it is."""
    layout = check_layout(function, layout)
    rank = spatial_rank(function, "x", x.shape, layout)
    axes = check_split(function, split, rank)
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    for name in (name for names in axes for name in names):
        if name not in mapped:
            here = ", ".join(map(repr, mapped)) or "none"
            raise ValueError(
                f"{function}: split must name axes that jax.shard_map maps over, but {name!r} is none of these "
                f"(here: {here}). Call it within the function given to shard_map. For an image that is whole there is "
                f"jaxconv.{function.removeprefix('sharded.').replace('halo', 'pad')}."
            )
    place = Layout.of(layout, rank)
    parts = tuple(math.prod(lax.axis_size(name) for name in names) for names in axes)
    spatial = tuple(x.shape[axis] * count for axis, count in zip(place.x[2:], parts, strict=True))
    return Shard(primitives.varying(x, [name for names in axes for name in names]), place, axes, parts, spatial)


def fetched(place: Layout, halos: Sequence[Halo]) -> Halos:
    """The halos that there are, by array axis."""
    return tuple((axis, of) for axis, of in zip(place.x[2:], halos, strict=True) if of.lo or of.hi)


def index(of: Halo) -> Any:
    """Which shard this is, along one axis."""
    return lax.axis_index(of.names) if of.parts > 1 else 0


# The public function


def halo(
    x: ArrayLike,
    padding: int | Sequence[Any],
    *,
    split: Sequence[Any],
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """A shard extended by the elements of its neighbours: what any op with windows needs. Inside `jax.shard_map`.

    Shard i of m elements becomes elements i·m − lo to (i + 1)·m + hi of the whole image, 0 beyond its ends. A halo
    wider than a shard comes from as many shards as it takes. The gradient sends each δ of the halo home, to the shard
    that its element came from, and adds it there.

    Args:
      x: this device's shard, (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      padding: elements before and after, as in `jaxconv.pad`: an int, one per spatial axis, or (lo, hi)
        pairs. A negative width leaves out elements of the shard's own.
      split: how the image is split, one entry per spatial axis, as in a `PartitionSpec`: the name of the mesh axis,
        a tuple of names, or None where each device has all of the axis. There a halo is a border of zeros.
      layout: "NHWC" or "NCHW".
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      The extended shard, in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices("cpu")[:2])
      >>> def extended(x):
      ...     return jaxconv.sharded.halo(x, 1, split=("w",))
      >>> x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
      >>> jax.shard_map(extended, mesh=mesh, in_specs=P(None, "w"), out_specs=P(None, "w"))(x)[0, :, 0]
      Array([0., 1., 2., 3., 2., 3., 4., 0.], dtype=float32)

    Source: the exchange of ghost cells between the parts of a grid, and its transpose.
    """
    function = "sharded.halo"
    x, place, axes, parts, _ = shard(function, floating(function, "x", x), split, layout)
    check_rules(function, rules)
    if isinstance(padding, str):
        raise ValueError(f"{function}: padding must be an int, one int per axis or (lo, hi) pairs, but is {padding!r}.")
    sizes = [x.shape[axis] for axis in place.x[2:]]
    if 0 in sizes:
        raise ValueError(f"{function}: every spatial size of a shard must be at least 1, but x.shape = {x.shape}.")
    ones = [1] * len(sizes)
    pairs = resolve_padding(function, padding, sizes, ones, ones)
    halos = [Halo(names, count, *pair) for names, count, pair in zip(axes, parts, pairs, strict=True)]
    return linear(rules, HALO, fetched(place, halos), x)
