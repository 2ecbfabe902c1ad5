"""One function under examination: what is compiled once, and how two gradients of it are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck import suspects
from jaxconv.gradcheck.laboratory import Laboratory
from jaxconv.gradcheck.problem import Problem, compiled, gradient, wide
from jaxconv.gradcheck.report import Evidence, Finding
from jaxconv.gradcheck.slope import differentiator
from jaxconv.gradcheck.where import where as place
from jaxconv.gradcheck.yardstick import Arrays, Yardstick, at_kink, known, least, ratios

# More arguments than this are examined together, and a sample of them one by one.
MANY = 6


class Comparison(NamedTuple):
    """A gradient, what it should be, and what rounding may make of the difference.

    Attributes:
      got: one array for each argument.
      want: likewise.
      points: the (xs, gs) at which the gradients were taken that `want` is the sum of.
      times: by what both were multiplied, or how many of them err.
      own: whether both come from f's own rule, whose rounding then counts, right or wrong.
    """

    got: Sequence[Any]
    want: Sequence[Any]
    points: Sequence[tuple[Any, Any]]
    times: float = 1.0
    own: bool = False

    def bounds(self, yardstick: Yardstick, sharper: bool = False) -> Arrays:
        values = list(map(wide, self.want))
        each = [
            yardstick.sharper(values, xs, gs, self.own) if sharper else yardstick.bounds(values)
            for xs, gs in self.points
        ]
        return [self.times * np.sum(b, axis=0) for b in zip(*each, strict=True)]


class Trial:
    """One function under examination: what is compiled once and used by several kinds of evidence."""

    def __init__(self, problem: Problem, yardstick: Yardstick, rng: np.random.Generator) -> None:
        self.problem, self.yardstick, self.rng = problem, yardstick, rng
        self.compiled = compiled(gradient(problem.f))
        self.xs, self.gs = problem.xs, yardstick.gs
        self.slopes = differentiator(problem)
        self.suspects: set[tuple[int, tuple[int, ...]]] = set()

    def gradient(self, gs: Sequence[Any], xs: Any = None) -> Arrays:
        return list(map(np.asarray, self.compiled(list(xs or self.xs), list(gs))[1]))

    def few(self) -> list[int]:
        """Which arguments are examined one by one."""
        count = len(self.xs)
        return list(range(count)) if count <= MANY else sorted(self.rng.choice(count, MANY, replace=False))

    @functools.cached_property
    def laboratory(self) -> Laboratory:
        """The function with a backward pass that can be told to make mistakes, to find the one that was made."""
        return Laboratory(self.problem)

    @functools.cached_property
    def resolution(self) -> dict[str, float]:
        """By what part each argument's gradient could be off as a whole, and be seen; 0 where it should be 0."""
        smallest: dict[str, float] = {}
        for i, (path, bound) in enumerate(zip(self.problem.paths, self.yardstick.first, strict=True)):
            exact = self.yardstick.truth[0][1][i]
            exact = np.where(known(exact, self.xs[i].dtype), exact, 0)
            if self.yardstick.is_zero(i, exact):
                smallest[path] = 0.0
                continue
            there = np.abs(exact) > least(self.xs[i].dtype)
            entry = float((bound[there] / np.abs(exact[there])).min(initial=np.inf))
            smallest[path] = min(entry, self.yardstick.as_a_whole(i, exact)) if there.any() else np.inf
        return smallest

    def judge(self, name: str, about: str, comparisons: Sequence[Comparison], hints: bool = False) -> Evidence:
        """Compare gradients entry by entry. What is beyond its bound is compared again with a sharper one."""
        worst = 0.0
        findings: dict[int, Finding] = {}
        kinks: dict[int, Finding] = {}
        shown: dict[int, suspects.Wrong] = {}
        tied: dict[int, suspects.Wrong] = {}
        masks: dict[tuple[int, bool], np.ndarray] = {}
        for k, comparison in enumerate(comparisons):
            got, want = list(map(wide, comparison.got)), list(map(wide, comparison.want))
            dtypes = [x.dtype for x in self.xs]
            bounds = comparison.bounds(self.yardstick)
            found = list(map(ratios, got, want, bounds, dtypes))
            if any(ratio.max(initial=0) > 1 for ratio in found):
                bounds = comparison.bounds(self.yardstick, sharper=True)
                found = list(map(ratios, got, want, bounds, dtypes))
            jumps: Any = None
            for i, (a, w, b, ratio) in enumerate(zip(got, want, bounds, found, strict=True)):
                if not ratio.max(initial=0) > 1:
                    worst = max(worst, ratio.max(initial=0))
                    continue
                jumps = jumps or self.yardstick.kinks(*comparison.points[0], self.rng)
                kink = (ratio > 1) & at_kink(a, w, jumps[i])
                for where, out in ((kink, kinks), (~kink, findings)):
                    chosen = np.where(where, ratio, 0)
                    masks[i, out is kinks] = masks.get((i, out is kinks), False) | (chosen > 1)
                    if chosen.max() > 1 and (i not in out or chosen.max() > out[i].ratio):
                        index = tuple(map(int, np.unravel_index(chosen.argmax(), a.shape)))
                        jump = f"Around it, the gradient jumps by {jumps[i][index]:.6g}." if out is kinks else ""
                        out[i] = replace(self.finding(i, index, a, w, b, jump), kink=out is kinks)
                        self.suspects.add((i, index))
                        (shown if out is findings else tied)[i] = suspects.Wrong(a, w, b, k)
                worst = max(worst, np.where(kink, 0, ratio).max())
        if hints:
            explained = suspects.explain(self, shown)
            findings = {i: replace(f, hint=explained[i]) for i, f in findings.items()}
            paid = {i: suspects.paid_twice(self, i, tied[i].got, self.gs[tied[i].k]) for i in kinks}
            kinks = {i: replace(f, hint=f"{f.hint} {paid[i]}".strip()) for i, f in kinks.items()}
        verdict = "wrong" if findings else "kink" if kinks else "ok"
        shown_best = [self.located(i, f, masks[i, f.kink]) for i, f in (findings or kinks).items()]
        return Evidence(name, verdict, about, float(worst), tuple(shown_best))

    def located(self, i: int, finding: Finding, mask: np.ndarray) -> Finding:
        """A finding, and of which and how many entries it is the worst."""
        path, count = self.problem.paths[i], int(mask.sum())
        return replace(finding, argument=path, wrong=count, size=mask.size, place=place(mask))

    def finding(self, i: int, index: tuple[int, ...], got: Any, want: Any, bound: Any, text: str) -> Finding:
        value, expected, allowed = (float(a[index]) for a in (got, want, bound))
        return finding_of(entry_name(self.problem.paths[i], index), value, expected, allowed, self.xs[i].dtype, text)


def finding_of(where: str, value: float, expected: float, bound: float, dtype: Any, text: str = "") -> Finding:
    info, ulps = jnp.finfo(dtype), math.nan
    if bound < abs(expected) < math.inf:
        ulp = max(2.0 ** math.floor(math.log2(abs(expected))), float(info.tiny)) * float(info.eps)
        ulps = abs(value - expected) / ulp
    return Finding(where, value, expected, bound, ulps, text)


def entry_name(path: str, index: Sequence[int]) -> str:
    return f"{path}[{', '.join(map(str, index))}]" if index else path
