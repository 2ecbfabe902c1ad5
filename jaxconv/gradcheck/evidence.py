"""The kinds of evidence. Each is independent of how the others could be fooled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import compiled, gradient, said, wide
from jaxconv.gradcheck.report import Evidence, Finding, in_bounds
from jaxconv.gradcheck.trial import MANY, Comparison, Trial, finding_of
from jaxconv.gradcheck.yardstick import CONVENTION, all_alike, in_float64, inner, known, least, magnitude, ratios

# How far apart the examples of a batch are, relative to the arguments.
_APART = 2.0**-4


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
        ("alone", compiled(t.problem.f)(t.xs)),
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
    if not findings and any(map(_hidden, exact, bounds, (y.dtype for y in t.problem.ys))):
        about += ": rounding or overflow leaves a result without a digit"
        return Evidence("forward", "undecided", about, float(worst))
    return Evidence("forward", "wrong" if findings else "ok", about, float(worst), tuple(findings))


def _hidden(exact: np.ndarray, bound: np.ndarray, dtype: Any) -> bool:
    """Whether no entry that the dtype has room for can be told from zero."""
    there = known(exact, dtype) & (np.abs(exact) > least(dtype))
    return bool(there.any() and (bound[there] >= np.abs(exact[there])).all())


def truth(t: Trial) -> Evidence:
    """Against the plain function's automatic gradient in float64, with random cotangents."""
    if not t.yardstick.reverse:
        return Evidence(
            "automatic", "skipped", "JAX alone has no reverse mode here: differences and the adjoint decide"
        )
    comparisons = [
        Comparison(t.gradient(gs), dxs, [(t.xs, gs)]) for gs, (_, dxs) in zip(t.gs, t.yardstick.truth, strict=True)
    ]
    unknown = sum(int((~np.isfinite(w)).sum()) for w in comparisons[0].want)
    about = f"automatic differentiation in float64, {len(comparisons)} random cotangents"
    if unknown:
        about += f"; {unknown} entries have no finite truth"
    if uncertain := sum(t.yardstick.uncertain):
        about += f"; rounding leaves {uncertain} of {sum(x.size for x in t.xs)} entries without a digit"
    entries = t.judge("automatic", about, comparisons, hints=True)
    if entries.verdict == "wrong":
        return entries
    whole = [found for i in range(len(t.xs)) for found in _as_a_whole(t, i, comparisons)]
    if whole:
        return replace(entries, verdict="wrong", ratio=max(f.ratio for f in whole), findings=tuple(whole))
    if hidden := [path for path, smallest in t.resolution.items() if smallest >= 1]:
        about = f"{about}: {', '.join(hidden)} might as well be 0"
        return replace(entries, verdict="undecided", about=about, arguments=tuple(hidden))
    return entries


def _as_a_whole(t: Trial, i: int, comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """What is too small to see in any entry of an argument's gradient may be seen in all of them together."""
    for k, comparison in enumerate(comparisons):
        want = np.where(known(comparison.want[i], t.xs[i].dtype), comparison.want[i], 0)
        if not want.any():
            continue
        unit = want / np.abs(want).max()
        off = inner(wide(comparison.got[i]) - want, unit) / inner(want, unit)
        if abs(off) <= t.yardstick.as_a_whole(i, want):
            continue
        jumps = inner(t.yardstick.kinks(t.xs, t.gs[k], t.rng)[i], np.abs(unit)) / inner(want, unit)
        bound = t.yardstick.as_a_whole(i, want, t.gs[k]) + CONVENTION * jumps
        if not abs(off) <= bound:
            path, size = t.problem.paths[i], t.xs[i].size
            where = f"all of {path}, as a multiple of what it should be,"
            found = finding_of(where, 1 + off, 1.0, bound, t.xs[i].dtype)
            yield replace(found, argument=path, wrong=size, size=size, place="everywhere")
            return


def adjoint(t: Trial) -> Evidence:
    """⟨v, J u⟩ = ⟨Jᵀ v, u⟩ with f's own J if it has one, which a `custom_vjp` has not, else the exact one."""

    def forward_mode(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda xs, us: jax.jvp(lambda *xs: call(xs), tuple(xs), tuple(us))[1]

    us = [(magnitude(wide(x)) * t.rng.standard_normal(x.shape)).astype(x.dtype) for x in t.xs]
    try:
        along, whose = compiled(forward_mode(t.problem.f))(list(t.xs), us), "f's own forward mode"
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
    jump = all_alike(t.yardstick.kinks(t.xs, t.gs[0], t.rng), us)
    found = finding_of("⟨Jᵀv, u⟩", right, left, bound, t.xs[0].dtype)
    if abs(left - right) <= bound + jump:
        found = replace(found, kink=True, hint=f"Around it, ⟨Jᵀv, u⟩ jumps by up to {jump:.6g}.")
    return Evidence("adjoint", "kink" if found.kink else "wrong", about, 0 if found.kink else ratio, (found,))


def linearity(t: Trial) -> Evidence:
    """The backward pass is linear: a cotangent may be split, and scaled by −2, exactly."""
    gs, at = t.gs[0], [(t.xs, t.gs[0])]
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
    comparisons = [
        Comparison([a + b for a, b in zip(some, rest, strict=True)], whole, at, times=2, own=True),
        Comparison(twice, [-2 * a for a in whole], at, times=4, own=True),
    ]
    return t.judge("linearity", "B(g·m) + B(g·(1−m)) = B(g), B(−2g) = −2B(g)", comparisons)


def zeros(t: Trial) -> Evidence:
    """No cotangent, no gradient; and what is not asked for does not change what is."""
    gs, (_, dxs) = t.gs[0], t.yardstick.truth[0]
    nothing = [np.zeros_like(g) for g in gs]
    none = [np.where(there, 0, np.nan) for there in t.yardstick.known]
    comparisons = [Comparison(t.gradient(nothing), none, [(t.xs, nothing)], times=0)]
    outputs = t.few() if len(gs) > MANY else range(len(gs))
    for k in outputs if len(gs) > 1 else ():  # the other results' cotangents are symbolic zeros
        part = compiled(gradient(lambda xs, k=k: (t.problem.f(xs)[k],)))(t.xs, [gs[k]])[1]
        alone = [g if i == k else np.zeros_like(g) for i, g in enumerate(gs)]
        _, exact = t.yardstick.exact(t.xs, alone)
        comparisons.append(Comparison(part, exact, [(t.xs, alone)]))
    if len(t.xs) > 1:  # the other arguments are constants

        def one(i: int, xs: Any) -> Any:
            def of(x: Any) -> Any:
                return t.problem.f([x if j == i else other for j, other in enumerate(xs)])

            return gradient(lambda x: of(*x))([xs[i]], gs)[1][0]

        few = t.few()
        parts = compiled(lambda xs: [one(i, xs) for i in few])(t.xs)
        got = [parts[few.index(i)] if i in few else dx for i, dx in enumerate(dxs)]
        comparisons.append(Comparison(got, dxs, [(t.xs, gs)]))
    return t.judge("zeros", "zero cotangents; each result, and each argument, differentiated alone", comparisons)


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
        together = compiled(jax.vmap(gradient(t.problem.f)))(stacked, cotangents)[1]
        got = compiled(gradient(batched))(shared, cotangents)[1] if shared else []
    except Exception as error:
        return Evidence("vmap", "skipped", f"f has no vmap: {said(error)}")
    at = list(zip(points, t.gs, strict=False))
    comparisons = [
        Comparison([np.asarray(a)[k] for a in together], singly[k], [at[k]], times=2, own=True) for k in range(2)
    ]
    about = "vmap(grad) of 2 examples = grad of each"
    if shared:
        alone = ([there[0], *shared], t.gs[1])
        one, other = singly[0], t.gradient(alone[1], alone[0])
        want = [wide(a) + wide(b) for a, b in zip(one, other, strict=True)]
        none = [np.zeros(first.shape)]
        comparisons.append(Comparison([*none, *got], [*none, *want[1:]], [at[0], alone], times=2, own=True))
        about += "; grad(vmap) = Σ vmap(grad)"
    return t.judge("vmap", about, comparisons)


def eager(t: Trial) -> Evidence:
    """Traced and compiled, or one operation at a time."""
    got = gradient(t.problem.f)([jnp.array(x) for x in t.xs], t.gs[0])[1]  # copies, for f may donate them
    comparison = Comparison(got, t.gradient(t.gs[0]), [(t.xs, t.gs[0])], times=2, own=True)
    return t.judge("jit", "jit = eager", [comparison])


def determinism(t: Trial) -> Evidence:
    """The same call gives the same bits."""
    first, second = t.gradient(t.gs[0]), t.gradient(t.gs[0])
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    return Evidence("determinism", "ok" if same else "wrong", "two runs, the same bits")
