"""Borders: zeros, or the input's own elements again; the transpose folds the border back onto them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.geometry import Layout, check_layout, resolve_padding, spatial_rank
from jaxconv.ops.arguments import Rules, check_rules, floating
from jaxconv.ops.binding import linear, linear_pair
from jaxconv.windows import accumulator, widened

Widths = tuple[tuple[int, int], ...]
MODES = ("zero", "circular", "reflect", "edge")


def _slice(g: jax.Array, axis: int, start: int, stop: int) -> jax.Array:
    return lax.slice_in_dim(g, start, stop, axis=axis)


def _at(g: jax.Array, axis: int, start: int, n: int) -> jax.Array:
    """g placed from `start` on in an axis of n zeros."""
    config = [(0, 0, 0)] * g.ndim
    config[axis] = (start, n - start - g.shape[axis], 0)
    return lax.pad(g, jnp.zeros((), g.dtype), config)


def _fold_axis(g: jax.Array, axis: int, lo: int, hi: int, mode: str) -> jax.Array:
    """The transpose of a border of `lo` and `hi` along one axis: δ of a copy goes to the original."""
    n = g.shape[axis] - lo - hi
    low, body, high = _slice(g, axis, 0, lo), _slice(g, axis, lo, lo + n), _slice(g, axis, lo + n, lo + n + hi)
    if mode == "circular":  # the low border holds the last elements, the high border the first
        return body + _at(low, axis, n - lo, n) + _at(high, axis, 0, n)
    if mode == "reflect":  # mirrored about the end elements, which are not repeated
        return body + _at(lax.rev(low, (axis,)), axis, 1, n) + _at(lax.rev(high, (axis,)), axis, n - 1 - hi, n)
    total_low, total_high = (part.sum(axis, keepdims=True) for part in (low, high))
    return body + _at(total_low, axis, 0, n) + _at(total_high, axis, n - 1, n)


def _fold(g: jax.Array, static: tuple[Widths, str]) -> jax.Array:
    """The transpose of `forward.pad`: undo the crops, then fold every border back, axis by axis."""
    widths, mode = static
    if mode == "zero":
        return lax.pad(g, jnp.zeros((), g.dtype), [(-lo, -hi, 0) for lo, hi in widths])
    dx = lax.pad(widened(g), jnp.zeros((), accumulator(g.dtype)),
                 [(max(-lo, 0), max(-hi, 0), 0) for lo, hi in widths])  # fmt: skip
    for axis, (lo, hi) in enumerate(widths):
        if lo > 0 or hi > 0:
            dx = _fold_axis(dx, axis, max(lo, 0), max(hi, 0), mode)
    return dx.astype(g.dtype)


_border = linear_pair("pad", lambda x, static: forward.pad(x, *static), _fold)


def check_border(function: str, padding: Any, mode: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"{function}: mode must be one of {', '.join(MODES)}, but is {mode!r}.")
    if isinstance(padding, str):
        raise ValueError(f"{function}: padding must be an int, one int per axis or (lo, hi) pairs, but is {padding!r}.")


def pad(
    x: ArrayLike,
    padding: int | Sequence[Any],
    *,
    mode: str = "zero",
    layout: str = "NHWC",
    rules: Rules = "fast",
) -> jax.Array:
    """Surround the spatial axes with a border; negative widths crop.

    The gradient keeps δ of the inside and adds δ of the border to the elements that it copies: nothing for
    "zero", the opposite end for "circular", the mirror image for "reflect", the end element for "edge".

    Args:
      x: (n, *spatial, c) or (n, c, *spatial) after `layout`; floating.
      padding: an int, one per spatial axis, or (lo, hi) pairs.
      mode: "zero", "circular" (needs lo, hi ≤ n), "reflect" (needs lo, hi ≤ n − 1) or "edge" (needs n ≥ 1).
      layout: "NHWC" or "NCHW".
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      The padded array in x's dtype. With a negative width on one side and a border on the other, the border
      copies from the uncropped x.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x = jnp.arange(3.0).reshape(1, 3, 1)
      >>> jaxconv.pad(x, ((2, 1),), mode="reflect")[0, :, 0]
      Array([2., 1., 0., 1., 2., 1.], dtype=float32)
      >>> jax.grad(lambda x: jaxconv.pad(x, ((2, 1),), mode="reflect").sum())(x)[0, :, 0]
      Array([1., 3., 2.], dtype=float32)

    Source: a border is a gather of x; its transpose adds each copy's δ to the original.
    """
    x = floating("pad", "x", x)
    layout = check_layout("pad", layout)
    check_rules("pad", rules)
    check_border("pad", padding, mode)
    rank = spatial_rank("pad", "x", x.shape, layout)
    place = Layout.of(layout, rank)
    sizes = [x.shape[axis] for axis in place.x[2:]]
    pairs = resolve_padding("pad", padding, sizes, [1] * rank, [1] * rank)
    for n, pair, i in zip(sizes, pairs, range(rank), strict=True):
        most = {"zero": max(pair), "circular": n, "reflect": max(n - 1, 0), "edge": max(pair) if n else 0}[mode]
        if max(pair) > most:
            raise ValueError(
                f'pad: mode "{mode}" can add at most {most} elements to spatial axis {i} of size {n}, '
                f"but padding[{i}] = {pair}. Pad twice, or take another mode."
            )
    widths = [(0, 0)] * x.ndim
    for axis, pair in zip(place.x[2:], pairs, strict=True):
        widths[axis] = pair
    return linear(rules, _border, (tuple(widths), mode), x)
