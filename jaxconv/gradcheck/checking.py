"""`check`: one function under every kind of evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck import evidence
from jaxconv.gradcheck.differences import differences
from jaxconv.gradcheck.exercise import ties, untried
from jaxconv.gradcheck.problem import (
    Problem,
    WrongRule,
    differentiable,
    examination,
    finite,
    fits,
    gradient,
    overflow,
    prepare,
    said,
)
from jaxconv.gradcheck.report import Evidence, Report
from jaxconv.gradcheck.trial import Trial
from jaxconv.gradcheck.yardstick import SAMPLES, Yardstick, large

KINDS: dict[str, Callable[[Trial], Evidence]] = {
    "structure": evidence.structure,
    "forward": evidence.forward,
    "automatic": evidence.truth,
    "adjoint": evidence.adjoint,
    "differences": differences,
    "linearity": evidence.linearity,
    "zeros": evidence.zeros,
    "ties": ties,
    "vmap": evidence.vmap,
    "jit": evidence.eager,
    "determinism": evidence.determinism,
}


def check(
    f: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    order: int = 1,
    seed: int = 0,
    skip: Sequence[str] = (),
    cuts: Collection[str] | bool = (),
) -> Report:
    """Whether f's gradient at `args` is right, on evidence of eleven kinds. Any JAX function, with or without rules.

    | evidence | what it compares |
    |---|---|
    | structure | the shape and dtype of each cotangent with those of its argument |
    | forward | the value that the rule's forward pass gives with that of f |
    | automatic | every entry, for random cotangents, with `automatic(f)` (or the reference) in float64 |
    | adjoint | ⟨v, J u⟩ with ⟨Jᵀv, u⟩ |
    | differences | the slope of f in float64 along random directions, along x + t and (1 + t)·x, and at coordinates |
    | linearity | B(g₁ + g₂) with B(g₁) + B(g₂), and B(−2g) with −2B(g), B the backward pass |
    | zeros | B(0) with 0; each result and each argument differentiated alone with all at once |
    | ties | slopes at arguments rounded to a few values: who share a tie receive together what one of them would |
    | vmap | vmap(grad) with grad of each example; grad(vmap) with the sum of vmap(grad) |
    | jit | compiled with eager |
    | determinism | two runs, bit by bit |

    No tolerance is asked for. How far rounding may take an entry is a property of the computation at this point: it
    is measured by running automatic differentiation with noise in place of each rounding, and calibrated by what
    automatic differentiation errs by on this machine (`gradcheck/yardstick.py` derives it), so that a bfloat16 rule is
    held to what bfloat16 can do and a float64 one to what float64 can. Where the gradient jumps, as at ReLU's zero or a
    tie of a max pool, any convention has a point: the verdict is "kink" and names it, and is no failure. Entries far
    smaller than their array's rounding are below what the bound can tell. A solver that stops at a tolerance has a
    slope of its own, not that of its solution: give it a reference.

    "Right" needs evidence. Where a wrong gradient would have passed as well, the verdict is "undecided": a float16 norm
    that overflows inside, an argument whose gradient rounding hides, a gradient that `stop_gradient` cuts off from the
    slope (which may be meant, as in a straight-through estimator: then say `cuts`). The report says for each argument
    how small an error it could have seen, and what was not put to the test.

    Args:
      f: a function of pytrees to a pytree. It is traced and run many times, so no side effects.
      args: where to differentiate: arrays of any shape, empty included, dicts of them, modules of Equinox or Flax.
        Floating arrays, all finite, are differentiated. What else there is, is held: integers, keys, functions, words,
        numbers of Python that are integers, booleans, or attributes of a module.
      reference: a plain function that computes what f should: it, instead of f's own forward computation, is
        differentiated automatically and in float64. Hand-written rules inside it are removed too.
      order: 2 examines the gradient of the gradient as well, in all arguments and the cotangent.
      seed: of the cotangents, directions and coordinates.
      skip: kinds of evidence to leave out.
      cuts: the arguments (by the names that the report gives them) whose gradient is meant not to be the slope, or True
        for all.

    Returns:
      A `Report`: `.ok`, `.raise_if_failed()`, `.to_dict()`, `report["adjoint"]`, and a table when printed. What is
      wrong comes with argument, entry, both values, the bound, the error in bounds and in ulps, and a hint if a usual
      mistake (sign, factor, flip, transposition, shift, missing sum over the batch, dropped rows, …) explains all.
      `report.by_argument["w"]` is the verdict on one argument: how many of its entries are wrong, and where.

    Raises:
      TypeError: f has no floating argument or no floating result, has side effects, or cannot be differentiated even
        without its rules; or an argument is an object that is no pytree and has arrays: the message says how to hand
        them over.
      ValueError: f(*args) fails, overflows or is NaN, an argument is not finite, or an option has no meaning.
      MemoryError: the float64 gradient would not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> square.defvjp(lambda x: (x * x, x), lambda x, g: (-2 * x * g,))
      >>> report = jaxconv.check(square, jnp.arange(1.0, 5.0))
      >>> report.ok, report["automatic"].findings[0].hint
      (False, 'The sign is wrong.')
      >>> jaxconv.check(jnp.square, jnp.arange(1.0, 5.0)).raise_if_failed()

    Source: the adjoint test is in A. Griewank and A. Walther, Evaluating Derivatives (2008), section 3; rounding errors
      as random variables in N. J. Higham and T. Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J.
      Sci. Comput. 41 (2019); extrapolated differences in L. F. Richardson, Phil. Trans. R. Soc. A 210 (1911).
    """
    if unknown := sorted(set(skip) - set(KINDS)):
        raise ValueError(f"check: skip may name {', '.join(KINDS)}, but names {', '.join(unknown)}.")
    if order not in (1, 2):
        raise ValueError(f"check: order must be 1 or 2, but is {order!r}.")
    if set(skip) >= set(KINDS):
        raise ValueError("check: skip leaves no evidence.")
    p = prepare("check", f, args, reference)
    if isinstance(cuts, str):
        raise ValueError(f"check: cuts must be a list of names, but is {cuts!r}. Say cuts=[{cuts!r}].")
    meant = p.paths if cuts is True else cuts or ()
    if unknown := [name for name in meant if name not in p.paths]:
        raise ValueError(
            f"check: cuts must name arguments, but {', '.join(unknown)} is not one of {', '.join(p.paths)}."
        )
    with examination("check", p.name):
        return _examine(p, order, seed, skip, meant)


def _examine(p: Problem, order: int, seed: int, skip: Sequence[str], cuts: Collection[str]) -> Report:
    report = Report(p.name, p.arguments, sizes={path: x.size for path, x in zip(p.paths, p.xs, strict=True)})
    rng = np.random.default_rng(seed)
    try:
        reverse = differentiable("check", p)
    except WrongRule as wrong:
        return report.with_evidence(Evidence("structure", "wrong", str(wrong)))
    fits("check", p, p.plain if reverse else p.f, SAMPLES[large(p)])
    where = finite("check", p)
    t = Trial(p, Yardstick(p, rng, where, reverse), rng)
    overflow("check", p, where, t.yardstick.truth[0][0])
    kinds = KINDS | {"differences": functools.partial(differences, cuts=cuts)}
    report = report.with_evidence(*(ask(t) for name, ask in kinds.items() if name not in skip))
    report = replace(report, resolution=t.resolution, untried=tuple(untried(t, report.evidence)))
    return report if order == 1 else report.with_evidence(_second_order(p, t.gs[0], rng))


def _second_order(p: Problem, gs: Sequence[Any], rng: np.random.Generator) -> Evidence:
    """The gradient itself as a function, of the point and of the cotangent, under the same examination."""
    count = len(p.xs)

    def derived(call: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        return lambda xs: tuple(gradient(call)(xs[:count], xs[count:])[1])

    deltas = ["δ"] if len(gs) == 1 else [f"δ[{i}]" for i in range(len(gs))]
    gradients = Problem(
        f"the gradient of {p.name}",
        derived(p.f),
        lambda xs, floats=None: derived(functools.partial(p.plain, floats=floats))(xs),
        [*p.xs, *map(jnp.asarray, gs)],
        [*p.paths, *deltas],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in p.xs],
        p.stopped,
        p.opaque,
        p.jaxpr,
        p.ruled,
    )
    try:
        reverse = differentiable("check", gradients)
    except (TypeError, WrongRule) as error:
        return Evidence("second order", "skipped", said(error))
    t = Trial(gradients, Yardstick(gradients, rng, finite("check", gradients), reverse), rng)
    found = [evidence.truth(t), differences(t)]
    verdicts = [e.verdict for e in found]
    verdict = next(v for v in ("wrong", "undecided", "kink", "ok", "skipped") if v in verdicts)
    findings = tuple(f for e in found if e.verdict == verdict for f in e.findings)
    about = "the gradient's gradient, entry by entry and by differences"
    return Evidence("second order", verdict, about, max(e.ratio for e in found), findings)
