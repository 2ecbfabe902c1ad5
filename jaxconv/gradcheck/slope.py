"""The slope of a function along a direction, in float64, from its values alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import Problem, wide
from jaxconv.gradcheck.yardstick import SPREAD, Arrays, in_float64, magnitude

# Steps of finite differences, as parts of the arguments' size; and so much shorter where a kink may be near.
_STEPS = 2.0**-4 * 8.0 ** -np.arange(6)
_CLOSER = 2.0**-15


def differentiator(problem: Problem) -> Callable[..., Any]:
    """(xs, gs, direction, bound, value) -> slope, its error, both slopes at a kink.

    The middle of the ladder of steps comes first. The whole of it is taken if that errs by more than a bound, or if the
    slope is not the value that is expected. Steps are in proportion to the arguments that the direction moves. If the
    slope is still another, a kink may lie within the steps: the ladder is taken again closer to x, and counts if it
    errs by less.
    """
    plain = functools.partial(problem.plain, floats=jnp.float64)

    def quotients(xs: Sequence[Any], us: Sequence[Any], gs: Sequence[Any], steps: Any) -> Any:
        here = plain(xs)

        def rise(step: Any) -> Any:  # the difference first, so that results that do not change do not round
            there = plain([x + step * u for x, u in zip(xs, us, strict=True)])
            rises: Any = 0.0
            moved: Any = 0.0
            still: Any = 0.0
            for g, a, b in zip(gs, here, there, strict=True):
                square = jnp.where(g == 0, 0, jnp.square(g * b))
                rises += jnp.sum(jnp.where(g == 0, 0, g * (b - a)))
                moved += jnp.sum(jnp.where(a == b, 0, square))
                still += jnp.sum(jnp.where(a == b, square, 0))
            return rises, moved, still

        rises, *squares = jax.lax.map(rise, jnp.concatenate([steps, -steps]))
        ahead, behind = rises.reshape(2, -1)
        moved, still = (jnp.sqrt(jnp.where(jnp.isfinite(s), s, 0)) for s in squares)
        absorbed = SPREAD * still[0] / steps[0]  # of what no step changes, so much may be lost on the way to it
        return ahead / steps, -behind / steps, moved.max(), absorbed

    compiled = in_float64(quotients)
    eps = float(jnp.finfo(jnp.float32 if problem.opaque else jnp.float64).eps)

    def slope_along(xs: Arrays, gs: Arrays, us: Arrays, bound: float, value: float) -> tuple[float, float, Any]:
        longest = max(np.abs(u).max(initial=0) for u in us)
        reach = next((magnitude(x) for x, u in zip(xs, us, strict=True) if u.any()), 1.0)
        gs = [wide(g) for g in gs]
        unit = reach / longest if longest else 1.0
        ahead, behind, norms, absorbed = compiled(xs, us, gs, unit * _STEPS[1:4])
        slope, error, sides = _slope(_STEPS[1:4], ahead, behind, norms / unit, eps)
        error += eps * float(absorbed)
        if error <= bound / 8 and abs(slope - value) <= bound:
            return slope, error, sides
        parts = [compiled(xs, us, gs, unit * steps) for steps in (_STEPS[:3], _STEPS[3:])]
        ahead, behind, norms, absorbed = (np.ravel(part) for part in zip(*parts, strict=True))
        slope, error, sides = _slope(_STEPS, ahead, behind, norms.max() / unit, eps)
        error += eps * float(absorbed[0])
        if (error <= bound / 8 and abs(slope - value) <= bound) or not math.isfinite(slope):
            return slope, error, sides
        ahead, behind, norms, _ = compiled(xs, us, gs, unit * _CLOSER * _STEPS[:3])
        closer, its_error, its_sides = _slope(_CLOSER * _STEPS[:3], ahead, behind, norms / unit, eps)
        its_error += eps * float(absorbed[0])
        return (closer, its_error, its_sides) if its_error < max(error, bound / 8) else (slope, error, sides)

    return slope_along


def _slope(
    steps: np.ndarray, ahead: np.ndarray, behind: np.ndarray, values: float, eps: float
) -> tuple[float, float, tuple[float, float] | None]:
    """The slope at 0 and its error, from difference quotients over a ladder of steps; both slopes at a kink.

    Central quotients err by h²; from two of them, h and h/8, (64·D(h/8) − D(h))/63 errs by h⁴. Of all such pairs the
    one that agrees best with its neighbours is taken: longer steps see the curvature, shorter ones the rounding, which
    is at least that of the step and of the values (their norm over the step's unit is `values`). The two one-sided
    quotients differ by h on a smooth function, and by as much at any h across a kink.
    """
    central = (ahead + behind) / 2
    better = (64 * central[1:] - central[:-1]) / 63
    gaps = np.abs(np.diff(better))
    errors = np.maximum(gaps[1:], gaps[:-1]) if len(gaps) > 1 else gaps  # two may agree by chance, three will not
    if not np.isfinite(errors).any():
        return math.nan, math.inf, None
    k = int(np.nanargmin(errors))
    far, near = np.abs(ahead - behind)[k + 1 : k + 3]
    rounding = eps / float(steps[k + 2]) * (abs(float(better[k + 1])) + values)
    sides = (float(ahead[k + 2]), float(behind[k + 2])) if near > max(far / 2, 4 * rounding) else None
    return float(better[k + 1]), float(errors[k]) + rounding, sides
