"""Finite differences in float64: the one evidence that no derivative of anybody's has a part in."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import wide
from jaxconv.gradcheck.report import Evidence, in_bounds
from jaxconv.gradcheck.trial import Trial, entry_name, finding_of
from jaxconv.gradcheck.yardstick import CONVENTION, Arrays, all_alike, along, magnitude


def differences(t: Trial, cuts: Collection[str] = ()) -> Evidence:
    """Finite differences in float64, along directions and at coordinates; no derivative but the one in question.

    Where f stops gradients, automatic differentiation itself does not say that the gradient is the slope: a cut, of
    which nobody but its author can tell whether it is meant. `cuts` names the arguments whose gradient is meant to be
    cut.
    """
    xs, got = [wide(x) for x in t.xs], [wide(a) for a in t.gradient(t.gs[0])]
    worst, findings, kinks, count = 0.0, [], [], 0
    cut: list[int | None] = []
    stopped, lost = t.problem.stopped or t.problem.opaque, 0
    for where, i, us in _directions(t, xs):
        value, bound, count = along(got, us), t.yardstick.along(us), count + 1
        slope, error, sides = t.slopes(xs, t.gs[0], us, bound, value)
        allowed = bound + 4 * error
        ratio, kinked = in_bounds(abs(value - slope), allowed), sides and abs(sides[0] - sides[1])
        alone: dict[str, Any] = {} if i is None else {"argument": t.problem.paths[i], "size": xs[i].size}
        unlike = abs(along(t.yardstick.truth[0][1], us) - slope) if t.yardstick.reverse else 0.0
        if stopped and unlike > max(allowed, 10 * (kinked or 0)):
            cut.append(i)
        elif ratio <= 1 or not math.isfinite(slope + allowed):
            worst = max(worst, ratio if ratio <= 1 else 0)
            lost += 16 * error < abs(slope) < 10 * unlike < math.inf and not kinked
        elif text := _kink(t, us, sides, abs(value - slope)):
            found = finding_of(where, value, slope, allowed, t.xs[i or 0].dtype, text)
            kinks.append(replace(found, kink=True, **alone))
        else:
            worst = max(worst, ratio)
            findings.append(replace(finding_of(where, value, slope, allowed, t.xs[i or 0].dtype), **alone))
    verdict = "wrong" if findings else "kink" if kinks else "ok"
    shown = tuple(sorted(findings or kinks, key=lambda f: -f.ratio)[:3])
    about = f"finite differences in float64 along {count} directions and coordinates"
    if cut:
        about += f"; along {len(cut)} of them {_cut(t, cuts, cut)}"
        meant = bool(cuts) and not _unmeant(t, cuts, cut)
        if verdict != "wrong":
            verdict = ("skipped" if len(cut) == count else verdict) if meant else "undecided"
    if lost:
        about += f"; along {lost} of them automatic differentiation has no digit, even in float64: its terms cancel"
        verdict = "wrong" if verdict == "wrong" else "undecided"
    undecided = tuple(_unmeant(t, cuts, cut)) if verdict == "undecided" else ()
    return Evidence("differences", verdict, about, worst, shown, undecided)


def _kink(t: Trial, us: Arrays, sides: tuple[float, float] | None, error: float) -> str:
    """What jumps, if an error along a direction may be a convention's at a kink; nothing if it may not.

    The jumps of many entries may cancel in the sum of all, and the slope is then the same to both sides.
    """
    if sides and abs(sides[0] - sides[1]) >= 0.1 * error:
        return f"One-sided differences are {sides[0]:.6g} and {sides[1]:.6g}."
    if not t.yardstick.reverse:
        return ""
    jumps = all_alike(t.yardstick.kinks(t.xs, t.gs[0], t.rng), us)
    return f"Around it, the gradients of the entries jump by {jumps:.6g} in all." if CONVENTION * jumps >= error else ""


def _unmeant(t: Trial, cuts: Collection[str], cut: Sequence[int | None]) -> list[str]:
    """The arguments along which the gradient is cut, but not named in `cuts`."""
    names = dict.fromkeys(t.problem.paths[i] for i in cut if i is not None)
    return [name for name in names if name not in cuts]


def _cut(t: Trial, cuts: Collection[str], cut: Sequence[int | None]) -> str:
    """What is to be said of directions along which automatic differentiation does not give the slope."""
    why = "f has a stop_gradient" if t.problem.stopped else "f has foreign code with a gradient of its own"
    text = f"the gradient is not the slope, for {why}"
    names = _unmeant(t, cuts, cut)
    if cuts and not names:
        return f"{text}, which is meant"
    where, asked = (f" at {', '.join(names)}", f"cuts={names}") if names else ("", "cuts=True")
    return f"{text}: cut{where}, cannot tell. If that is meant, say check(..., {asked})"


def _directions(t: Trial, xs: Arrays) -> Iterator[tuple[str, int | None, Arrays]]:
    """(name, its one argument, direction): at random, all entries alike, in proportion (both keep ties), one by one."""
    zeros = [np.zeros_like(x) for x in xs]

    def only(i: int, u: np.ndarray) -> Arrays:
        return [u if j == i else zero for j, zero in enumerate(zeros)]

    def known(us: Arrays) -> Arrays:  # an infinite slope is in no sum
        return [np.where(there, u, 0) for there, u in zip(t.yardstick.known, us, strict=True)]

    for _ in range(1 if t.yardstick.large else 2):
        yield (
            "along a random direction: ⟨Jᵀv, u⟩",
            None,
            known([magnitude(x) * t.rng.standard_normal(x.shape) for x in xs]),
        )
    yield "along (1 + t)·x, x all arguments: ⟨Jᵀv, x⟩", None, known(xs)
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
