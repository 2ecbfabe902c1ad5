"""The kinds of evidence. Each is independent of how the others could be fooled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck import suspects
from jaxconv.gradcheck.laboratory import Laboratory
from jaxconv.gradcheck.problem import Problem, gradient, said, wide
from jaxconv.gradcheck.report import Evidence, Finding, in_bounds
from jaxconv.gradcheck.where import where as place
from jaxconv.gradcheck.yardstick import Arrays, Yardstick, at_kink, in_float64, inner, least, ratios, size

# How far apart the examples of a batch are, relative to the arguments.
_APART = 2.0**-4
# More arguments than this are examined together, and a sample of them one by one.
_MANY = 6


class Trial:
    """One function under examination: what is compiled once and used by several kinds of evidence."""

    def __init__(self, problem: Problem, yardstick: Yardstick, rng: np.random.Generator) -> None:
        self.problem, self.yardstick, self.rng = problem, yardstick, rng
        self.compiled = jax.jit(gradient(problem.f))
        self.xs, self.gs = problem.xs, yardstick.gs
        self.suspects: set[tuple[int, tuple[int, ...]]] = set()

    @functools.cached_property
    def laboratory(self) -> Laboratory:
        """The function with a backward pass that can be told to make mistakes, to find the one that was made."""
        return Laboratory(self.problem)

    def gradient(self, gs: Sequence[Any], xs: Any = None) -> Arrays:
        return list(map(np.asarray, self.compiled(list(xs or self.xs), list(gs))[1]))

    def few(self) -> list[int]:
        """Which arguments are examined one by one."""
        count = len(self.xs)
        return list(range(count)) if count <= _MANY else sorted(self.rng.choice(count, _MANY, replace=False))

    def judge(
        self,
        name: str,
        about: str,
        comparisons: Sequence[tuple[Sequence[Any], Sequence[np.ndarray], Sequence[np.ndarray]]],
        at: Callable[[int], tuple[Any, Any]],
        hints: bool = False,
    ) -> Evidence:
        """Compare gradients (got, wanted, bounds) entry by entry; `at` says where the k-th was taken."""
        worst = 0.0
        findings: dict[int, Finding] = {}
        kinks: dict[int, Finding] = {}
        shown: dict[int, suspects.Wrong] = {}
        tied: dict[int, suspects.Wrong] = {}
        masks: dict[tuple[int, bool], np.ndarray] = {}
        for k, (got, want, bounds) in enumerate(comparisons):
            jumps: Any = None
            for i, (a, w, b) in enumerate(zip(map(wide, got), want, bounds, strict=True)):
                ratio = ratios(a, w, b, self.xs[i].dtype)
                if not ratio.max(initial=0) > 1:
                    worst = max(worst, ratio.max(initial=0))
                    continue
                jumps = jumps or self.yardstick.kinks(*at(k), self.rng)
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
            kinks = {
                i: replace(f, hint=f"{f.hint} {suspects.paid_twice(self, i, tied[i])}".strip())
                for i, f in kinks.items()
            }
        verdict = "wrong" if findings else "kink" if kinks else "ok"
        found = [self._located(i, f, masks[i, f.kink]) for i, f in (findings or kinks).items()]
        return Evidence(name, verdict, about, float(worst), tuple(found))

    def _located(self, i: int, finding: Finding, mask: np.ndarray) -> Finding:
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


def _times(arrays: Sequence[np.ndarray], factor: float) -> Arrays:
    return [factor * a for a in arrays]


# The kinds


def structure(t: Trial) -> Evidence:
    """Shapes and dtypes of the cotangents are those of the arguments."""
    _, dxs = jax.eval_shape(gradient(t.problem.f), t.xs, t.gs[0])
    findings = {
        path: f"{path}: {dx.dtype}{list(dx.shape)} instead of {x.dtype}{list(x.shape)}"
        for path, x, dx in zip(t.problem.paths, t.xs, dxs, strict=True)
        if (dx.shape, dx.dtype) != (x.shape, x.dtype)
    }
    about = "; ".join(findings.values()) or "each cotangent has its argument's shape and dtype"
    return Evidence("structure", "wrong" if findings else "ok", about, arguments=tuple(findings))


def forward(t: Trial) -> Evidence:
    """The values under differentiation, and without it, are those that f computes."""
    exact = t.yardstick.truth[0][0]
    bounds = t.yardstick.bounds(exact, of="values")
    worst, findings = 0.0, []
    for how, ys in (
        ("under differentiation", t.compiled(t.xs, t.gs[0])[0]),
        ("alone", jax.jit(t.problem.f)(t.xs)),
    ):
        for i, (y, want, bound) in enumerate(zip(map(wide, ys), exact, bounds, strict=True)):
            ratio = ratios(y, want, bound, t.problem.ys[i].dtype)
            worst = max(worst, ratio.max(initial=0))
            if ratio.max(initial=0) > 1:
                index = np.unravel_index(ratio.argmax(), ratio.shape)
                where = f"result {i}, entry {tuple(map(int, index))}, {how},"
                findings.append(
                    finding_of(where, y[index], want[index], bound[index], t.problem.ys[i].dtype, "Does f use state?")
                )
    about = "values with and without differentiation, against float64"
    return Evidence("forward", "wrong" if findings else "ok", about, float(worst), tuple(findings))


def truth(t: Trial) -> Evidence:
    """Against the plain function's automatic gradient in float64, with random cotangents."""
    if not t.yardstick.reverse:
        return Evidence(
            "automatic", "skipped", "JAX alone has no reverse mode here: differences and the adjoint decide"
        )
    comparisons = [
        (t.gradient(gs), dxs, t.yardstick.bounds(dxs)) for gs, (_, dxs) in zip(t.gs, t.yardstick.truth, strict=False)
    ]
    unknown = sum(int((~np.isfinite(w)).sum()) for w in comparisons[0][1])
    about = f"automatic differentiation in float64, {len(comparisons)} random cotangents"
    if unknown:
        about += f"; {unknown} entries have no finite truth"
    if uncertain := t.yardstick.uncertain():
        about += f"; rounding leaves {uncertain} of {sum(x.size for x in t.xs)} entries without a digit"
    return t.judge("automatic", about, comparisons, lambda k: (t.xs, t.gs[k]), hints=True)


def adjoint(t: Trial) -> Evidence:
    """⟨v, J u⟩ = ⟨Jᵀ v, u⟩ with f's own J if it has one, which a `custom_vjp` has not, else the exact one."""

    def forward_mode(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda xs, us: jax.jvp(lambda *xs: call(xs), tuple(xs), tuple(us))[1]

    us = [(size(wide(x)) * t.rng.standard_normal(x.shape)).astype(x.dtype) for x in t.xs]
    try:
        along, whose = jax.jit(forward_mode(t.problem.f))(list(t.xs), us), "f's own forward mode"
    except Exception:
        exact = in_float64(forward_mode(functools.partial(t.problem.plain, floats=jnp.float64)))
        try:
            along, whose = exact([wide(x) for x in t.xs], [wide(u) for u in us]), "the exact J: f has no forward mode"
        except Exception as error:
            return Evidence("adjoint", "skipped", f"no forward mode, with f's rules or without: {said(error)}")
    tiny = sum(least(a.dtype) * float(np.abs(wide(a)).sum()) for a in (*us, *t.gs[0]))
    along, us, vs = list(map(wide, along)), list(map(wide, us)), list(map(wide, t.gs[0]))
    left = sum(float(np.sum(np.where(v == 0, 0, v * a))) for v, a in zip(vs, along, strict=True))
    right = sum(inner(wide(dx), u) for dx, u in zip(t.gradient(t.gs[0]), us, strict=True))
    bound = t.yardstick.along(us) + tiny
    if whose.startswith("f"):  # it rounds as well
        bound = 2 * bound + t.yardstick.relative() * float(
            np.sqrt(sum(np.sum((v * a) ** 2) for v, a in zip(vs, along, strict=True))) + abs(left)
        )
    if not math.isfinite(left + bound):
        return Evidence("adjoint", "skipped", "the derivative along u is not finite")
    about = f"⟨v, J u⟩ = ⟨Jᵀ v, u⟩, with {whose}"
    ratio = in_bounds(abs(left - right), bound)
    if ratio <= 1:
        return Evidence("adjoint", "ok", about, ratio)
    jumps = t.yardstick.kinks(t.xs, t.gs[0], t.rng)
    jump = sum(float(np.sum(j * np.abs(u))) for j, u in zip(jumps, us, strict=True))
    found = finding_of("⟨Jᵀv, u⟩", right, left, bound, t.xs[0].dtype)
    if abs(left - right) <= bound + jump:
        found = replace(found, kink=True, hint=f"Around it, ⟨Jᵀv, u⟩ jumps by up to {jump:.6g}.")
    return Evidence("adjoint", "kink" if found.kink else "wrong", about, 0 if found.kink else ratio, (found,))


def linearity(t: Trial) -> Evidence:
    """The backward pass is linear: a cotangent may be split, and scaled by −2, exactly."""
    gs, (_, dxs) = t.gs[0], t.yardstick.truth[0]
    keep = [t.rng.integers(0, 2, g.shape).astype(bool) for g in gs]
    whole, some, rest, twice = (
        list(map(wide, t.gradient(g)))
        for g in (
            gs,
            [np.where(k, g, 0).astype(g.dtype) for g, k in zip(gs, keep, strict=True)],
            [np.where(k, 0, g).astype(g.dtype) for g, k in zip(gs, keep, strict=True)],
            [-2 * g for g in gs],
        )
    )
    bounds = _times(t.yardstick.bounds(dxs), 2)
    comparisons = [
        ([a + b for a, b in zip(some, rest, strict=True)], whole, bounds),
        (twice, _times(whole, -2), _times(bounds, 2)),
    ]
    return t.judge("linearity", "B(g·m) + B(g·(1−m)) = B(g), B(−2g) = −2B(g)", comparisons, lambda _: (t.xs, gs))


def zeros(t: Trial) -> Evidence:
    """No cotangent, no gradient; and what is not asked for does not change what is."""
    gs, (_, dxs) = t.gs[0], t.yardstick.truth[0]
    nothing = [np.zeros_like(g) for g in gs]
    none = [np.where(there, 0, np.nan) for there in t.yardstick.known]
    comparisons: list[tuple[Any, Any, Any]] = [(t.gradient(nothing), none, none)]
    at = [nothing]
    outputs = t.few() if len(gs) > _MANY else range(len(gs))
    for k in outputs if len(gs) > 1 else ():  # the other results' cotangents are symbolic zeros
        part = jax.jit(gradient(lambda xs, k=k: (t.problem.f(xs)[k],)))(t.xs, [gs[k]])[1]
        alone = [g if i == k else np.zeros_like(g) for i, g in enumerate(gs)]
        _, exact = t.yardstick.exact(t.xs, alone)
        comparisons.append((part, exact, t.yardstick.bounds(exact)))
        at.append(alone)
    if len(t.xs) > 1:  # the other arguments are constants

        def one(i: int, xs: Any) -> Any:
            def of(x: Any) -> Any:
                return t.problem.f([x if j == i else other for j, other in enumerate(xs)])

            return gradient(lambda x: of(*x))([xs[i]], gs)[1][0]

        few = t.few()
        parts = jax.jit(lambda xs: [one(i, xs) for i in few])(t.xs)
        got = [parts[few.index(i)] if i in few else dx for i, dx in enumerate(dxs)]
        comparisons.append((got, dxs, t.yardstick.bounds(dxs)))
        at.append(gs)
    about = "zero cotangents; each result, and each argument, differentiated alone"
    return t.judge("zeros", about, comparisons, lambda k: (t.xs, at[k]))


def vmap(t: Trial) -> Evidence:
    """The gradient of each of two examples is the same under `vmap`, and that of what they share is the sum."""
    there = t.problem.moved(t.rng, _APART)
    points = [list(map(np.asarray, t.xs)), there]
    singly = [t.gradient(gs, xs) for gs, xs in zip(t.gs, points, strict=False)]
    stacked = [np.stack(pair) for pair in zip(*points, strict=True)]
    cotangents = [np.stack(pair) for pair in zip(*t.gs[:2], strict=True)]
    (first, *shared), pair = t.xs, jnp.asarray(stacked[0])

    def batched(shared: Any) -> Any:
        return jax.vmap(lambda x: t.problem.f([x, *shared]))(pair)

    try:
        together = jax.jit(jax.vmap(gradient(t.problem.f)))(stacked, cotangents)[1]
        got = jax.jit(gradient(batched))(shared, cotangents)[1] if shared else []
    except Exception as error:
        return Evidence("vmap", "skipped", f"f has no vmap: {said(error)}")
    comparisons = []
    for k in range(2):
        want = list(map(wide, singly[k]))
        comparisons.append(([np.asarray(a)[k] for a in together], want, _times(t.yardstick.bounds(want), 2)))
    at: list[tuple[Any, Any]] = [(points[0], t.gs[0]), (points[1], t.gs[1])]
    about = "vmap(grad) of 2 examples = grad of each"
    if shared:
        one, other = singly[0], t.gradient(t.gs[1], [there[0], *shared])
        want = [wide(a) + wide(b) for a, b in zip(one, other, strict=True)]
        bounds = [a + b for a, b in zip(*(t.yardstick.bounds(list(map(wide, s))) for s in (one, other)), strict=True)]
        comparisons.append(([wide(first) * 0, *got], [want[0] * 0, *want[1:]], _times(bounds, 2)))
        at.append((t.xs, t.gs[0]))
        about += "; grad(vmap) = Σ vmap(grad)"
    return t.judge("vmap", about, comparisons, lambda k: at[k])


def eager(t: Trial) -> Evidence:
    """Traced and compiled, or one operation at a time."""
    got = gradient(t.problem.f)([jnp.array(x) for x in t.xs], t.gs[0])[1]  # copies, for f may donate them
    want = list(map(wide, t.gradient(t.gs[0])))
    bounds = _times(t.yardstick.bounds(want), 2)
    return t.judge("jit", "jit = eager", [(got, want, bounds)], lambda _: (t.xs, t.gs[0]))


def determinism(t: Trial) -> Evidence:
    """The same call gives the same bits."""
    first, second = t.gradient(t.gs[0]), t.gradient(t.gs[0])
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    return Evidence("determinism", "ok" if same else "wrong", "two runs, the same bits")
