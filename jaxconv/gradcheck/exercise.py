"""What random arguments do not meet: ties and zeros, where gradients jump, and strides that leave a remainder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxconv import primitives
from jaxconv.geometry import Axis
from jaxconv.gradcheck import suspects
from jaxconv.gradcheck.problem import Problem, wide
from jaxconv.gradcheck.report import Evidence, in_bounds
from jaxconv.gradcheck.trial import Trial, finding_of
from jaxconv.gradcheck.yardstick import CONVENTION, Arrays, all_alike, along, magnitude
from jaxconv.transforms.program import contains, equations

# Equations that choose by comparing floats: at a tie, or at the number compared with, the gradient may jump.
_CHOICES = {
    *("abs", "argmax", "argmin", "clamp", "cummax", "cummin", "eq", "ge", "gt", "le", "lt", "max", "min", "ne"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "select_and_gather_add", "sign"),
    *("sort", "top_k"),
}
# To what part of their size arguments are rounded, so that many are equal and many zero.
_COARSE = (1.0, 1 / 8)


def ties(t: Trial) -> Evidence:
    """Where arguments are equal or zero, a gradient may be any convention's, but must not be paid twice.

    Arguments are rounded to a few values. Along directions that move all entries of an argument alike or in proportion,
    ties stay ties, and the slope is what all who share one receive together. A direction that undoes ties crosses
    kinks, whose jumps may cancel in the sum of all.
    """
    name, skipped = "ties", "f makes no choice that rounded arguments could tie"
    if not any(_chooses(eqn) for eqn in _spelt_out(t.problem)):
        return Evidence(name, "skipped", skipped)
    if any(map(_asks_floats, _spelt_out(t.problem))):
        return Evidence(name, "skipped", "f has a loop that may not end at rounded arguments")
    point = _rounded(t)
    if point is None:
        return Evidence(name, "skipped", "f is not finite at rounded arguments")
    at, jumps, gs = list(map(wide, point)), t.yardstick.kinks(point, t.gs[0], t.rng), t.gs[0]
    if not any(j.any() for j in jumps):
        return Evidence(name, "skipped", "no tie came of rounded arguments")
    got = list(map(wide, t.gradient(gs, point)))
    noise = t.yardstick.noise_at(point, gs)
    worst, findings, count = 0.0, [], 0
    for where, i, us in _keeping(t, at):
        value, bound, count = along(got, us), t.yardstick.along(us, noise), count + 1
        slope, error, sides = t.slopes(at, gs, us, bound, value)
        bound += 4 * error
        if not math.isfinite(slope + bound):
            continue
        if sides and abs(sides[0] - sides[1]) >= 0.1 * abs(value - slope):
            # A kink along this direction too: any convention lies between its sides.
            slope = float(np.clip(value, min(sides), max(sides)))
            bound += all_alike(jumps, us)
        if (ratio := in_bounds(abs(value - slope), bound)) > 1:
            crossed = CONVENTION * t.yardstick.crossed(at, gs, us)
            ratio = in_bounds(max(0.0, abs(value - slope) - crossed), bound)
        worst = max(worst, ratio)
        if ratio > 1:
            hint = "All that share a tie receive together what one of them would."
            hint = suspects.paid_twice(t, i, got[i], gs, point) or hint
            found = replace(finding_of(where, value, slope, bound, t.xs[i].dtype), hint=hint)
            exact = t.yardstick.exact(point, gs)[1]
            findings.append(t.located(i, found, np.abs(got[i] - exact[i]) > t.yardstick.bounds(exact)[i]))
    about = f"slopes along {count} directions that keep ties, with arguments rounded to a few values"
    return Evidence(name, "wrong" if findings else "ok", about, worst, tuple(findings[:3]))


def _spelt_out(problem: Problem) -> Iterator[JaxprEqn]:
    """Every equation, and those of the plain form of a primitive of this library's, which may hide a choice."""
    yield from equations(problem.jaxpr)
    if contains(problem.jaxpr, lambda eqn: eqn.primitive in primitives.PLAIN):
        yield from equations(jax.make_jaxpr(problem.plain)(problem.xs).jaxpr)


def _chooses(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in _CHOICES and any(
        jnp.issubdtype(getattr(v.aval, "dtype", np.int32), jnp.floating) for v in eqn.invars
    )


def _asks_floats(eqn: JaxprEqn) -> bool:
    """Whether it is a loop whose length depends on floats."""
    return eqn.primitive.name == "while" and any(
        jnp.issubdtype(cast(Any, v.aval).dtype, jnp.floating)
        for test in eqn.params["cond_jaxpr"].jaxpr.eqns
        for v in test.invars
    )


def _rounded(t: Trial) -> list[np.ndarray] | None:
    """The arguments rounded to multiples of a power of two, where f and its gradient are finite."""
    for part in _COARSE:
        point = []
        for x in t.xs:
            step = 2.0 ** round(math.log2(magnitude(wide(x)) * part))
            point.append((step * np.round(wide(x) / step)).astype(x.dtype))
        ys, dxs = t.yardstick.exact(point, t.gs[0])
        own = jax.tree.leaves(t.compiled(point, t.gs[0]))
        if all(np.isfinite(wide(a)).all() for a in (*ys, *dxs, *own)):
            return point
    return None


def _keeping(t: Trial, xs: Arrays) -> Iterator[tuple[str, int, Arrays]]:
    """(name, argument, direction): those that keep ties within an argument."""
    for i in t.few():
        path, x = t.problem.paths[i], xs[i]
        for name, u in ((f"along {path} + t", np.ones_like(x)), (f"along (1 + t)·{path}", x)):
            if u.any():
                us = [u if j == i else np.zeros_like(other) for j, other in enumerate(xs)]
                yield f"where entries tie, {name},", i, us


def untried(t: Trial, evidence: Sequence[Evidence]) -> Iterator[str]:
    """What of f was not put to the test at these arguments."""
    tied = next((e for e in evidence if e.name == "ties"), None)
    if tied is not None and tied.verdict == "skipped" and any(map(_chooses, _spelt_out(t.problem))):
        yield f"ties and zeros, where the gradient may jump: {tied.about}."
    strided = _remainders(t.problem)
    if strided and not any(strided):
        yield "a stride that leaves a remainder: each one here divides what it strides over; other sizes leave one."
    for path, x, hidden in zip(t.problem.paths, t.xs, t.yardstick.uncertain, strict=True):
        if hidden > x.size / 10:
            yield f"{hidden} of {x.size} entries of {path}, of which rounding leaves less than a digit."
    for path, dx in zip(t.problem.paths, t.yardstick.truth[0][1], strict=True):
        if dx.size and not dx.any():
            yield f"a factor on {path}'s gradient, which is 0 here."


def _remainders(problem: Problem) -> list[int]:
    """For each axis that is strided over, how many elements no window reads."""
    axes = (axis for eqn in _spelt_out(problem) for axis in _axes(eqn))
    return [axis.unread for axis in axes if axis.stride > 1 and axis.out]


def _axes(eqn: JaxprEqn) -> Iterator[Axis]:
    """The axes that a convolution or a pool moves its window along."""
    params, avals = eqn.params, [cast(Any, v.aval) for v in eqn.invars]
    if geometry := params.get("geometry"):
        yield from geometry.axes
        return
    if eqn.primitive.name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        sizes = [avals[0].shape[a] for a in numbers.lhs_spec[2:]]
        taps = [avals[1].shape[a] for a in numbers.rhs_spec[2:]]
        dilation, input_dilation = params["rhs_dilation"], params["lhs_dilation"]
    elif eqn.primitive.name.startswith("reduce_window") and "window_strides" in params:
        sizes, taps = avals[0].shape, params["window_dimensions"]
        dilation, input_dilation = params["window_dilation"], params["base_dilation"]
    else:
        return
    moves = zip(params["window_strides"], dilation, input_dilation, params["padding"], strict=True)
    for n, k, (stride, d, input_d, (lo, hi)) in zip(sizes, taps, moves, strict=True):
        yield Axis(n, k, stride, d, input_d, lo, hi)
