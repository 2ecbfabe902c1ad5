"""Convolution and pooling of one image that is spread over several devices.

Inside `jax.shard_map` each device holds a part of the image, its shard, and the windows at the shard's border read
elements of its neighbours: the *halo*. `halo` fetches it, a message to each neighbour; then every op is the op of one
device, on a shard that has all it reads. When the windows of all shards are alike, and what halo they have, is worked
out in `jaxconv.geometry.shards`.

The halo is a linear map, so backwards its transpose runs: the halo of δ goes home, to the shard that its elements came
from, and is added there. The gradient of a kernel, which all shards use, is the sum over the shards; `jax.shard_map`
takes it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxconv.geometry import Geometry, Halo, placed, shard_geometry
from jaxconv.ops.arguments import (
    Rules,
    boolean,
    check_bias,
    check_preferred,
    check_rules,
    convolution,
    floating,
    operands,
)
from jaxconv.ops.binding import Derivative, apply, linear
from jaxconv.ops.conv import add_bias, convolve
from jaxconv.ops.halo import HALO, extend, fetched, halo, index, shard
from jaxconv.ops.max_pool import AT_WINNER, MAX_POOL, REMEMBERED
from jaxconv.ops.pool import WINDOW_SUM, pool_windows
from jaxconv.windows import accumulator, along, axis_counts, widened

__all__ = ["avg_pool", "conv", "halo", "max_pool"]

# Pools


_Pool = tuple[Geometry, Geometry, tuple[Halo, ...]]  # of the whole, of the shard, and what lies between


def _first_real(whole: Geometry, own: Geometry, halos: Sequence[Halo]) -> jax.Array:
    """The number of the first tap of each window that lies in the image: the smallest j with s·p + d·j − lo ≥ 0."""
    number: Any = jnp.zeros((1,) * (whole.rank + 2), jnp.int32)
    for axis, a, q, of in zip(whole.layout.y[2:], whole.axes, own.out, halos, strict=True):
        first = (index(of) * q + jnp.arange(q, dtype=jnp.int32)) * a.stride - a.lo
        tap = jnp.clip(-(first // a.dilation), 0, a.k - 1)
        number = number * a.k + lax.expand_dims(tap, [i for i in range(number.ndim) if i != axis])
    return number


def _max_forward(static: _Pool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    whole, own, halos = static
    y, winner = REMEMBERED(extend(x, fetched(own.layout, halos), -np.inf), static=own)
    # To a shard its halo is as real as the rest: a window of nothing but −∞ must not give δ to padding.
    return y, jnp.where(y == -jnp.inf, _first_real(whole, own, halos).astype(winner.dtype), winner)


def _max_tangent(static: _Pool, winner: jax.Array, t: jax.Array) -> jax.Array:
    _, own, halos = static
    return AT_WINNER.apply(HALO.apply(t, static=fetched(own.layout, halos)), winner, static=own)


def _max_cotangent(static: _Pool, winner: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    _, own, halos = static
    return (HALO.transpose(AT_WINNER.transpose(g, winner, static=own), static=fetched(own.layout, halos)),)


def _max_of(compute: Any, static: _Pool, x: jax.Array) -> jax.Array:
    _, own, halos = static
    return compute(own, extend(x, fetched(own.layout, halos), -np.inf))


_MAX_POOL = Derivative(
    primal=functools.partial(_max_of, MAX_POOL.primal),
    forward=_max_forward,
    tangent=_max_tangent,
    cotangent=_max_cotangent,
    value=functools.partial(_max_of, MAX_POOL.value),
)


def _counts(whole: Geometry, own: Geometry, halos: Sequence[Halo], counted: Any, dtype: Any) -> jax.Array:
    """How many elements each window of this shard averages over."""
    total: Any = jnp.ones((1,) * (whole.rank + 2), dtype)
    for axis, a, q, of, pair in zip(whole.layout.y[2:], whole.axes, own.out, halos, counted, strict=True):
        count = jnp.asarray(along(axis_counts(a, pair), axis, total.ndim), dtype)
        total = total * lax.dynamic_slice_in_dim(count, index(of) * q, q, axis)
    return jnp.maximum(total, 1)


# The public functions


def conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    split: Sequence[Any],
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jaxconv.conv` of an image that is split over several devices, inside `jax.shard_map`.

    The shards of y are those of the y of the whole image. Each device fetches the halo of its shard and convolves what
    it then has, without padding along the split axes; backwards, the halo of dx goes home and is added there.
    Parameters are the same on all devices; dw and db are sums over the shards, which `jax.shard_map` takes under
    `check_vma=True`, its default. Without it every device keeps its own part, and `lax.psum` is yours.

    Along a split axis all shards must begin where a window does, and those of y must lie over those of x: the stride
    divides the size m of a shard, and the n elements of all shards have n / stride outputs, which is
    span − stride ≤ lo + hi < span with span = dilation · (taps − 1) + 1. So it is for "SAME", and for "VALID" where
    windows do not overlap. Anything else is an error. A halo may be wider than a shard.

    Args:
      x: this device's shard, (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      w, b: as in `jaxconv.conv`, whole on every device.
      split: how the image is split, one entry per spatial axis, as in a `PartitionSpec`: the name of the mesh axis,
        a tuple of names, or None where each device has all of the axis.
      padding: as in `jaxconv.conv`, of the whole image: there is none between shards.
      stride, dilation, groups, flip_kernel, layout, rules, engine, precision, preferred_element_type: as in
        `jaxconv.conv`.

    Returns:
      This device's shard of y.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices("cpu")[:2])
      >>> def blurred(x, w):
      ...     return jaxconv.sharded.conv(x, w, split=("w",))
      >>> whole = jax.shard_map(blurred, mesh=mesh, in_specs=(P(None, "w"), P()), out_specs=P(None, "w"))
      >>> x, w = jnp.arange(1.0, 5.0).reshape(1, 4, 1), jnp.ones((3, 1, 1))
      >>> whole(x, w)[0, :, 0]
      Array([3., 6., 9., 7.], dtype=float32)
      >>> jax.grad(lambda w: whole(x, w).sum())(w)[:, 0, 0]
      Array([ 6., 10.,  9.], dtype=float32)

    Source: `jaxconv.geometry.shards` for the halo, `jaxconv.rules` for the rest.
    """
    function = "sharded.conv"
    (x, w), rules = operands(function, rules, engine, x=x, w=w)
    x, place, axes, parts, spatial = shard(function, x, split, layout)
    batch, channel = (x.shape[axis] for axis in place.x[:2])
    whole = convolution(
        function, placed(place.x, batch, channel, spatial), w.shape, stride=stride, padding=padding, dilation=dilation,
        groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip
    own, halos = shard_geometry(function, whole, axes, parts)
    bias = None if b is None else check_bias(function, b, w.shape[place.w[0]], x)
    dtype = check_preferred(function, preferred_element_type, x)
    z = linear(rules, HALO, fetched(place, halos), x)
    y = convolve(z, w, own, rules, engine, precision, dtype)
    return y if bias is None else add_bias(y, bias, place.y[1], rules)


def max_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    split: Sequence[Any],
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """`jaxconv.max_pool` of an image that is split over several devices, inside `jax.shard_map`.

    The shards of y, and of dx, are those of the whole image's, with its conventions: at a tie the first tap in
    row-major order gets all of δ, whichever shard it lies in; a NaN is the result and gets δ; padding counts as −∞
    and never gets δ, not even from a window of nothing but −∞.

    Args:
      x: this device's shard, (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      split: as in `conv`, and when a split is possible too.
      padding: of the whole image: there is none between shards.
      window, stride, dilation, ceil_mode, layout, rules: as in `jaxconv.max_pool`.

    Returns:
      This device's shard of y, in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices("cpu")[:2])
      >>> def largest(x):
      ...     return jaxconv.sharded.max_pool(x, 3, stride=1, padding="SAME", split=("w",))
      >>> whole = jax.shard_map(largest, mesh=mesh, in_specs=P(None, "w"), out_specs=P(None, "w"))
      >>> x = jnp.array([1.0, 3.0, 2.0, 0.0]).reshape(1, 4, 1)
      >>> whole(x)[0, :, 0], jax.grad(lambda x: whole(x).sum())(x)[0, :, 0]
      (Array([3., 3., 3., 2.], dtype=float32), Array([0., 3., 1., 0.], dtype=float32))

    Source: `jaxconv.max_pool`, on shards with their halo.
    """
    function = "sharded.max_pool"
    x, _, axes, parts, spatial = shard(function, floating(function, "x", x), split, layout)
    check_rules(function, rules)
    whole, _ = pool_windows(function, spatial, window, stride, padding, dilation, ceil_mode, layout)
    return apply(rules, _MAX_POOL, (whole, *shard_geometry(function, whole, axes, parts)), x)


def avg_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    split: Sequence[Any],
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    count_padding: bool = False,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """`jaxconv.avg_pool` of an image that is split over several devices, inside `jax.shard_map`.

    The shards of y, and of dx, are those of the whole image's. The elements of a neighbour are real elements; padding,
    counted or not, is what lies beyond the ends of the image.

    Args:
      x: this device's shard, (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      split: as in `conv`, and when a split is possible too.
      padding: of the whole image: there is none between shards.
      window, stride, dilation, count_padding, ceil_mode, layout, rules: as in `jaxconv.avg_pool`.

    Returns:
      This device's shard of y, in x's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices("cpu")[:2])
      >>> def mean(x):
      ...     return jaxconv.sharded.avg_pool(x, 3, stride=1, padding="SAME", split=("w",))
      >>> whole = jax.shard_map(mean, mesh=mesh, in_specs=P(None, "w"), out_specs=P(None, "w"))
      >>> whole(jnp.arange(4.0).reshape(1, 4, 1))[0, :, 0]
      Array([0.5, 1. , 2. , 2.5], dtype=float32)

    Source: `jaxconv.avg_pool`, on shards with their halo.
    """
    function = "sharded.avg_pool"
    x, place, axes, parts, spatial = shard(function, floating(function, "x", x), split, layout)
    check_rules(function, rules)
    whole, padded = pool_windows(function, spatial, window, stride, padding, dilation, ceil_mode, layout)
    counted = padded if boolean(function, "count_padding", count_padding) else ((0, 0),) * whole.rank
    own, halos = shard_geometry(function, whole, axes, parts)
    total = linear(rules, WINDOW_SUM, own, widened(linear(rules, HALO, fetched(place, halos), x)))
    return (total / _counts(whole, own, halos, counted, accumulator(x.dtype))).astype(x.dtype)
