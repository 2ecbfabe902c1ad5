"""Finite differences in float64: the one evidence that no derivative of anybody's has a part in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.evidence import Trial, entry_name, finding_of
from jaxconv.gradcheck.problem import Problem, wide
from jaxconv.gradcheck.report import Evidence, in_bounds
from jaxconv.gradcheck.yardstick import Arrays, in_float64, inner, size

# Steps of finite differences, as parts of the arguments' size.
_STEPS = 2.0**-4 * 8.0 ** -np.arange(6)


def differences(t: Trial) -> Evidence:
    """Finite differences in float64, along directions and at coordinates; no derivative but the one in question."""
    xs, gs, got = [wide(x) for x in t.xs], [wide(g) for g in t.gs[0]], [wide(a) for a in t.gradient(t.gs[0])]
    slope_along = _differentiator(t.problem, xs, gs)
    worst, findings, kinks, count, stopped = 0.0, [], [], 0, 0
    special = t.problem.stopped or t.problem.opaque
    for where, i, us in _directions(t, xs):
        value, bound, count = _along(got, us), t.yardstick.along(us), count + 1
        slope, error, sides = slope_along(us, size(xs[i]), bound, value)
        bound += 4 * error
        ratio = in_bounds(abs(value - slope), bound)
        alone = not any(u.any() for j, u in enumerate(us) if j != i)
        only: dict[str, Any] = {"argument": t.problem.paths[i], "size": xs[i].size} if alone else {}
        if special and t.yardstick.reverse and abs(_along(t.yardstick.truth[0][1], us) - slope) > bound:
            stopped += 1
        elif ratio <= 1 or not math.isfinite(slope + bound):
            worst = max(worst, ratio if ratio <= 1 else 0)
        elif sides and abs(sides[0] - sides[1]) >= 0.1 * abs(value - slope):
            text = f"One-sided differences are {sides[0]:.6g} and {sides[1]:.6g}."
            kinks.append(replace(finding_of(where, value, slope, bound, t.xs[i].dtype, text), kink=True, **only))
        else:
            worst = max(worst, ratio)
            findings.append(replace(finding_of(where, value, slope, bound, t.xs[i].dtype), **only))
    verdict = "wrong" if findings else "kink" if kinks else "ok"
    found = sorted(findings or kinks, key=lambda f: -f.ratio)[:3]
    about = f"finite differences in float64 along {count} directions and coordinates"
    if stopped:  # automatic differentiation does not say either that the gradient is the slope
        about += f", {stopped} of them not slopes: f has a stop_gradient, or foreign code with a gradient of its own"
        verdict = "skipped" if stopped == count else verdict
    return Evidence("differences", verdict, about, worst, tuple(found))


def _differentiator(problem: Problem, xs: Arrays, gs: Arrays) -> Callable[..., Any]:
    """(direction, how far to go along it, bound, value) -> slope, its error, both slopes at a kink.

    The middle of the ladder of steps comes first. The whole of it is taken if that errs by more than a bound, or if the
    slope is not the value that is expected.
    """
    plain = functools.partial(problem.plain, floats=jnp.float64)

    def quotients(xs: Sequence[Any], us: Sequence[Any], gs: Sequence[Any], steps: Any) -> Any:
        here = plain(xs)

        def rise(step: Any) -> Any:  # the difference first, so that results that do not change do not round
            there = plain([x + step * u for x, u in zip(xs, us, strict=True)])
            rises = [
                (jnp.where(g == 0, 0, g * (b - a)), jnp.where((a == b) | (g == 0), 0, g * b))
                for g, a, b in zip(gs, here, there, strict=True)
            ]
            return sum(jnp.sum(r) for r, _ in rises), sum(jnp.sum(jnp.square(y)) for _, y in rises)

        rises, squares = jax.lax.map(rise, jnp.concatenate([steps, -steps]))
        ahead, behind = rises.reshape(2, -1)
        return ahead / steps, -behind / steps, jnp.sqrt(jnp.where(jnp.isfinite(squares), squares, 0).max())

    compiled = in_float64(quotients)
    eps = float(jnp.finfo(jnp.float32 if problem.opaque else jnp.float64).eps)

    def slope_along(us: Arrays, reach: float, bound: float, value: float) -> tuple[float, float, Any]:
        longest = max(np.abs(u).max(initial=0) for u in us)
        unit = reach / longest if longest else 1.0
        ahead, behind, norms = compiled(xs, us, gs, unit * _STEPS[1:4])
        slope, error, sides = _slope(_STEPS[1:4], ahead, behind, norms / unit, eps)
        if error <= bound / 8 and abs(slope - value) <= bound:
            return slope, error, sides
        parts = [compiled(xs, us, gs, unit * steps) for steps in (_STEPS[:3], _STEPS[3:])]
        ahead, behind, norms = (np.ravel(part) for part in zip(*parts, strict=True))
        return _slope(_STEPS, ahead, behind, norms.max() / unit, eps)

    return slope_along


def _along(dxs: Arrays, us: Arrays) -> float:
    return sum(inner(dx, u) for dx, u in zip(dxs, us, strict=True))


def _directions(t: Trial, xs: Arrays) -> Iterator[tuple[str, int, Arrays]]:
    """(name, argument, direction): at random, all entries alike, in proportion (both keep ties), and one by one."""
    zeros = [np.zeros_like(x) for x in xs]

    def only(i: int, u: np.ndarray) -> Arrays:
        return [u if j == i else zero for j, zero in enumerate(zeros)]

    def known(us: Arrays) -> Arrays:  # an infinite slope is in no sum
        return [np.where(there, u, 0) for there, u in zip(t.yardstick.known, us, strict=True)]

    for _ in range(1 if t.yardstick.large else 2):
        yield "along a random direction: ⟨Jᵀv, u⟩", 0, known([size(x) * t.rng.standard_normal(x.shape) for x in xs])
    yield "along (1 + t)·x, x all arguments: ⟨Jᵀv, x⟩", 0, known(xs)
    coordinates = set(t.suspects)
    for i in t.few():
        path, x = t.problem.paths[i], xs[i]
        if not x.size:
            continue
        yield f"the sum of {path}'s gradient, along {path} + t", i, known(only(i, np.ones_like(x)))
        ends = set() if t.yardstick.large else {0, x.size - 1}
        flat = {*ends, *map(int, t.rng.integers(x.size, size=1 if t.yardstick.large else 2))}
        coordinates |= {(i, tuple(map(int, np.unravel_index(k, x.shape)))) for k in flat}
    for i, index in sorted(coordinates):
        if np.abs(t.yardstick.truth[0][1][i][index]) > float(jnp.finfo(t.xs[i].dtype).max):
            continue  # an infinite slope
        u = np.zeros_like(xs[i])
        u[index] = 1
        yield entry_name(t.problem.paths[i], index), i, only(i, u)


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
    sides = (float(ahead[k + 2]), float(behind[k + 2])) if near > far / 2 else None
    rounding = eps / float(steps[k + 2]) * (abs(float(better[k + 1])) + values)
    return float(better[k + 1]), float(errors[k]) + rounding, sides
