"""`lax.reduce_window` over any axes of an array, as the pools of this library: with their gradients.

`lax` has windows on every axis, examples and channels included; a pool has them on the axes between. So the axes before
the first window that does something are the examples of a pool, those behind the last are its channels, and both are
reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxconv.engines.onednn import loading
from jaxconv.engines.onednn.windows import window
from jaxconv.geometry import Geometry, Layout
from jaxconv.ops.arguments import Rules
from jaxconv.ops.binding import apply, linear
from jaxconv.ops.max_pool import MAX_POOL
from jaxconv.ops.plan import BY_JAX, Choice
from jaxconv.ops.pool import WINDOW_SUM
from jaxconv.rules.fast import choice

# A pool in plain XLA is a few operations for each tap.
MOST_TAPS = 256


class Windows(NamedTuple):
    """A call of `lax.reduce_window` as a pool.

    Attributes:
      geometry: of the pool.
      given: the shape of the pool's x.
      result: the shape of what `lax` returns, which has as many elements as what the pool does.
    """

    geometry: Geometry
    given: tuple[int, ...]
    result: tuple[int, ...]


def windows(x: Any, params: dict[str, Any]) -> Windows | str:
    """What the parameters of `lax`'s primitive say of x, or why no pool of this library does that."""
    shape, taps = tuple(x.shape), params["window_dimensions"]
    strides, padding, dilation = params["window_strides"], params["padding"], params["window_dilation"]
    if not all(isinstance(n, int) for n in shape):
        return choice.UNKNOWN
    if any(d != 1 for d in params["base_dilation"]):
        return "its input is dilated"
    used = [
        axis
        for axis, (k, s, pair) in enumerate(zip(taps, strides, padding, strict=True))
        if k > 1 or s > 1 or tuple(pair) != (0, 0)
    ]
    if not used:
        return "every window is one element"
    if 0 in shape:
        return choice.EMPTY
    if math.prod(taps) > MOST_TAPS:
        return f"a window of {math.prod(taps)} taps takes {math.prod(taps)} operations"
    first, last = used[0], used[-1] + 1
    rank = last - first
    if last < len(shape):
        lead, trail, layout = [math.prod(shape[:first])], [math.prod(shape[last:])], "NHWC"
    else:  # what comes before the windows are examples, and channels if there are two such axes
        examples = shape[: max(first - 1, 0)]
        lead, trail, layout = [math.prod(examples), math.prod(shape[len(examples) : first])], [], "NCHW"
    place = slice(first, last)
    geometry = Geometry(
        spatial=shape[place], taps=tuple(taps[place]), stride=tuple(strides[place]),
        padding=tuple((int(lo), int(hi)) for lo, hi in padding[place]), dilation=tuple(dilation[place]),
        input_dilation=(1,) * rank, groups=1, layout=Layout.of(layout, rank),
    )  # fmt: skip
    if 0 in geometry.out:
        return choice.EMPTY
    return Windows(geometry, (*lead, *shape[place], *trail), (*shape[:first], *geometry.out, *shape[last:]))


def maximum(rules: Rules, of: Windows, x: jax.Array) -> jax.Array:
    return _pooled(lambda z: apply(rules, MAX_POOL, of.geometry, z), of, x)


def minimum(rules: Rules, of: Windows, x: jax.Array) -> jax.Array:
    return -maximum(rules, of, -x)


def total(rules: Rules, of: Windows, x: jax.Array) -> jax.Array:
    return _pooled(lambda z: linear(rules, WINDOW_SUM, of.geometry, z), of, x)


# What a pool asks of an engine, by what it is: the value where nobody differentiates, or the value and its gradient.
MAXIMUM = ("remember", "put")
TOTAL = ("sum", "spread")


def chosen(kinds: tuple[str, str], rules: Rules, of: Windows, platform: str, dtype: Any) -> dict[str, Choice]:
    """What computes a pool and its gradient, as the lowering of its primitives chooses."""
    if rules == "autodiff":
        return dict.fromkeys(("pool", "gradient"), BY_JAX)
    off = loading.why_not_on(platform)
    layout = of.geometry.layout
    y = of.geometry.y_shape(of.given[layout.x[0]], of.given[layout.x[1]])
    holds = ("the winning tap of each window" if kinds == MAXIMUM else "nothing", "nothing")
    found = {}
    for name, kind, shape, held in zip(("pool", "gradient"), kinds, (of.given, y), holds, strict=True):
        taken = off or window(kind, of.geometry, 0, jax.ShapeDtypeStruct(shape, dtype))
        why = taken if isinstance(taken, str) else "one walk over memory, all taps of a window at once"
        found[name] = Choice("XLA" if isinstance(taken, str) else "native", why, held)
    return found


def _pooled(pool: Callable[[jax.Array], jax.Array], of: Windows, x: jax.Array) -> jax.Array:
    return pool(x.reshape(of.given)).reshape(of.result)
