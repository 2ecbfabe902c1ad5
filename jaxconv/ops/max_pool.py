"""Max pooling: remember the winning tap; the derivative takes from it, the transpose puts back on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxconv import forward, primitives
from jaxconv.engines.onednn.windows import window as native
from jaxconv.geometry import Geometry, check_layout, per_axis, spatial_rank
from jaxconv.ops.arguments import Rules, boolean, check_rules, floating, integer_array, known
from jaxconv.ops.binding import Derivative, apply, linear
from jaxconv.ops.pool import pool_geometry, pool_windows
from jaxconv.windows import along, at_tap, from_tiles, padded, per_tile, tap_shape, tap_slice, taps, tiles, widened


def _remember(x: jax.Array, static: Geometry) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window and the row-major number of the first tap that holds it; NaN beats all."""
    read = padded(x, static, -np.inf)
    every = taps(static)
    # The first tap on a real element holds the place, so that δ of a window of −∞ does not go to padding.
    first = np.zeros((1,) * x.ndim, int)
    for number, tap in reversed(list(enumerate(every))):
        first = np.where(_tap_positions(static, tap)[1], number, first)
    best = jnp.full_like(tap_slice(read, every[0], static), -jnp.inf)
    counter = np.min_scalar_type(len(every) - 1)
    winner = jnp.zeros_like(best, counter) + jnp.asarray(first, counter)
    for number, tap in enumerate(every):
        value = tap_slice(read, tap, static)
        wins = (value > best) | (jnp.isnan(value) & ~jnp.isnan(best))
        best = jnp.where(wins, value, best)
        winner = jnp.where(wins, jnp.asarray(number, winner.dtype), winner)
    return best, winner


def _take(x: jax.Array, winner: jax.Array, static: Geometry) -> jax.Array:
    """y[n, p, c] = x at the remembered tap of window p; 0 where that tap lies on padding."""
    read = padded(x, static)
    y = jnp.zeros(winner.shape, x.dtype)
    for number, tap in enumerate(taps(static)):
        y = jnp.where(winner == number, tap_slice(read, tap, static), y)
    return y


def _put(g: jax.Array, winner: jax.Array, static: Geometry) -> jax.Array:
    """dx[n, s·p + d·k − lo, c] += g[n, p, c] where window p remembers tap k: masks and padding, no scatter.

    Windows side by side share no input: one mask over (window, tap), and a reshape.
    """
    if tiles(static):
        every = np.arange(math.prod(static.taps), dtype=winner.dtype).reshape(tap_shape(static))
        return from_tiles(jnp.where(per_tile(winner, static) == every, per_tile(g, static), 0), static)
    dx = None
    for number, tap in enumerate(taps(static)):
        own = jnp.where(winner == number, widened(g), 0)
        placed = at_tap(own, tap, static)
        dx = placed if dx is None else dx + placed
    assert dx is not None
    return dx.astype(g.dtype)


def _maximum(x: jax.Array, static: Geometry) -> tuple[jax.Array]:
    return (forward.max_pool(x, static),)


AT_WINNER = primitives.linear_pair(
    "take_winner", _take, _put, native=(functools.partial(native, "take"), functools.partial(native, "put"))
)
REMEMBERED = primitives.kernel("remember_winner", _remember, functools.partial(native, "remember"))
_largest = primitives.kernel("max_pool", _maximum, functools.partial(native, "maximum"))


def _max_pool_forward(static: Geometry, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, winner = REMEMBERED(x, static=static)
    return y, winner


def _max_pool_tangent(static: Geometry, winner: jax.Array, t: jax.Array) -> jax.Array:
    return AT_WINNER.apply(t, winner, static=static)


MAX_POOL = Derivative(
    primal=lambda static, x: forward.max_pool(x, static),
    forward=_max_pool_forward,
    tangent=_max_pool_tangent,
    cotangent=lambda static, winner, g: (AT_WINNER.transpose(g, winner, static=static),),
    value=lambda static, x: _largest(x, static=static)[0],
)


# The public functions


def max_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    return_indices: bool = False,
    rules: Rules = "fast",
) -> Any:
    """The largest element of each window.

    y[n, p, c] = max_k x[n, s·p + d·k − lo, c]

    A differentiated call remembers which tap won, in the smallest unsigned integer that can count the taps;
    the gradient puts each δ back on that tap by masks and interior padding, without a scatter, so it is
    deterministic. An undifferentiated call is a plain `reduce_window`. On a CPU, where the native engine is, in two or
    three dimensions with eight channels or more that come last, all of it is one pass over memory by kernels of our
    own.

    At a tie the first tap in row-major order gets all of δ. A NaN in the window is the result, and the first
    NaN gets δ. Padding counts as −∞; a window of nothing but padding gives −∞ and passes no gradient.

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      window: taps, an int or one per spatial axis.
      stride: step of the window; None means `window`.
      padding, dilation, layout: as in `jaxconv.conv`.
      ceil_mode: read what the last stride leaves unread by one more window along that axis, which hangs over the
        end: ⌈(n + lo + hi − span) / stride⌉ + 1 windows instead of ⌊…⌋ + 1, where span = dilation · (window − 1) + 1.
        One that would start in the high padding is left out, as in PyTorch. padding="SAME" leaves nothing unread.
      return_indices: also return where each maximum stands, for `max_unpool`.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      y, in x's dtype; with `return_indices`, (y, indices): int32 row-major positions in the spatial axes of x,
      −1 where the window holds only padding.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x = jnp.array([1.0, 3.0, 3.0, 2.0]).reshape(1, 4, 1)
      >>> jaxconv.max_pool(x, 2)[0, :, 0]
      Array([3., 3.], dtype=float32)
      >>> jax.grad(lambda x: jaxconv.max_pool(x, 4).sum())(x)[0, :, 0]
      Array([0., 1., 0., 0.], dtype=float32)
      >>> jaxconv.max_pool(x[:, :3], 2, ceil_mode=True)[0, :, 0]
      Array([3., 3.], dtype=float32)

    Source: the pooling layer with remembered positions of A. Saraswat's article, without its loops.
    """
    z, geometry, _ = pool_geometry("max_pool", x, window, stride, padding, dilation, ceil_mode, layout)
    check_rules("max_pool", rules)
    return_indices = boolean("max_pool", "return_indices", return_indices)
    y = apply(rules, MAX_POOL, geometry, z)
    if not return_indices:
        return y
    _, winner = REMEMBERED(lax.stop_gradient(z), static=geometry)
    return y, _positions(winner, geometry)


def _tap_positions(geometry: Geometry, tap: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where `tap` reads, as row-major input positions over the outputs, and whether it reads a real element."""
    flat = np.zeros((1,) * (geometry.rank + 2), np.int32)
    real = np.ones_like(flat, bool)
    for axis, j, a in zip(geometry.layout.y[2:], tap, geometry.axes, strict=True):
        position = along(np.arange(a.out, dtype=np.int32) * a.stride + j * a.dilation - a.lo, axis, flat.ndim)
        flat = flat * a.n + position
        real = real & (position >= 0) & (position < a.n)
    return flat, real


def _positions(winner: jax.Array, geometry: Geometry) -> jax.Array:
    indices = jnp.full(winner.shape, -1, jnp.int32)
    for number, tap in enumerate(taps(geometry)):
        flat, real = _tap_positions(geometry, tap)
        indices = jnp.where((winner == number) & real, flat, indices)
    return indices


def _misplaced(indices: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Where an index is not a position that its own window reads."""
    wrong, rest = np.full(indices.shape, 0 in geometry.spatial), indices
    for axis, a in reversed([*zip(geometry.layout.y[2:], geometry.axes, strict=True)]):
        rest, position = np.divmod(rest, max(a.n, 1))
        offset = position.astype(np.int64) + a.lo - along(np.arange(a.out) * a.stride, axis, indices.ndim)
        wrong |= (offset < 0) | (offset >= a.span) | (offset % a.dilation != 0)
    return wrong | (rest != 0)


def _check_indices(function: str, indices: jax.Array, geometry: Geometry) -> None:
    """Known indices are checked at once; traced ones cannot be, and put nothing where they are wrong."""
    values = known(indices)
    if values is None or not (wrong := _misplaced(values, geometry) & (values != -1)).any():
        return
    first = tuple(int(i[0]) for i in np.nonzero(wrong))
    starts = [first[axis] * a.stride - a.lo for axis, a in zip(geometry.layout.y[2:], geometry.axes, strict=True)]
    spans = ", ".join(f"{lo}:{lo + a.span}" for lo, a in zip(starts, geometry.axes, strict=True))
    positions, channels = math.prod(geometry.spatial), indices.shape[geometry.layout.y[1]]
    remedy = (
        "Were they made for another shape, or with another window, stride, padding, dilation or ceil_mode? "
        "Take those of max_pool(..., return_indices=True)."
    )
    foreign = {
        f"They count over channels or examples first: pass indices % {positions}.": values,
        f"They count channels last, as TensorFlow does: pass indices // {channels} % {positions}.": values // channels,
    }
    for convention, spatial in foreign.items():
        if positions and not _misplaced(spatial % positions, geometry).any():
            remedy = convention
            break
    raise ValueError(
        f"{function}: indices must be row-major positions in spatial_shape = {geometry.spatial}, for each example and "
        f"channel on its own, that lie in their window (or -1, nowhere), but {wrong.sum()} of {wrong.size} do not: "
        f"indices[{', '.join(map(str, first))}] = {values[first]}, and the window there is [{spans}]. {remedy}"
    )


def max_unpool(
    y: ArrayLike,
    indices: ArrayLike,
    window: int | Sequence[int],
    spatial_shape: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """Put each element of y back where `max_pool` found it; all other positions are 0.

    The transpose of taking the remembered elements: where windows overlap and two of them remember the same
    position, their values add up.

    Args:
      y: (n, *out, c) or (n, c, *out) after `layout`; floating.
      indices: integers of y's shape, as `max_pool(..., return_indices=True)` returns them: for each example and
        channel on its own, row-major positions in the spatial axes (PyTorch's convention too); −1 is nowhere. An
        index that its window does not read raises; inside `jit`, or mapped by `vmap`, where values are unknown, its
        element is put nowhere. TensorFlow's count channels too: pass indices // c % (number of positions).
      window, stride, padding, dilation, ceil_mode, layout: those of the `max_pool`.
      spatial_shape: spatial sizes of the result.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      x: (n, *spatial_shape, c) or (n, c, *spatial_shape), in y's dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x = jnp.array([1.0, 3.0, 5.0, 2.0]).reshape(1, 4, 1)
      >>> y, indices = jaxconv.max_pool(x, 2, return_indices=True)
      >>> jaxconv.max_unpool(y, indices, 2, 4)[0, :, 0]
      Array([0., 3., 5., 0.], dtype=float32)

    Source: `max_pool`'s gradient, as a layer.
    """
    function = "max_unpool"
    y, indices = floating(function, "y", y), integer_array(function, "indices", indices)
    check_rules(function, rules)
    layout = check_layout(function, layout)
    rank = spatial_rank(function, "y", y.shape, layout)
    spatial = per_axis(function, "spatial_shape", spatial_shape, rank, 0)
    geometry, _ = pool_windows(function, spatial, window, stride, padding, dilation, ceil_mode, layout)
    place = geometry.layout.y
    expected = geometry.y_shape(y.shape[place[0]], y.shape[place[1]])
    for name, shape in (("y", y.shape), ("indices", indices.shape)):
        if shape != expected:
            raise ValueError(
                f"{function}: {name}.shape must be what max_pool gives for spatial {spatial}, "
                f"but {shape} != {expected}. Pass the window, stride, padding, dilation and ceil_mode of the max_pool."
            )
    indices = indices if indices.dtype.itemsize >= 4 else indices.astype(jnp.int32)  # 8 bits cannot meet position 300
    _check_indices(function, indices, geometry)
    every = taps(geometry)
    nobody = len(every)  # a number no tap has: such a δ is put nowhere
    winner = jnp.full(indices.shape, nobody, np.min_scalar_type(nobody))
    for number, tap in enumerate(every):
        flat, real = _tap_positions(geometry, tap)
        winner = jnp.where((indices == flat.astype(indices.dtype)) & real, jnp.asarray(number, winner.dtype), winner)
    return linear(rules, AT_WINNER.transposed, geometry, y, winner)
