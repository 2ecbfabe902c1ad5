"""Is this gradient right? `check` asks in many ways, and says where it is not and what may be wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck import evidence
from jaxconv.gradcheck.differences import differences
from jaxconv.gradcheck.evidence import Trial
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
from jaxconv.gradcheck.report import Argument, Evidence, Finding, Report
from jaxconv.gradcheck.yardstick import SAMPLES, Yardstick, large

__all__ = ["KINDS", "Argument", "Evidence", "Finding", "Report", "check"]

KINDS: dict[str, Callable[[Trial], Evidence]] = {
    "structure": evidence.structure,
    "forward": evidence.forward,
    "automatic": evidence.truth,
    "adjoint": evidence.adjoint,
    "differences": differences,
    "linearity": evidence.linearity,
    "zeros": evidence.zeros,
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
) -> Report:
    """Whether f's gradient at `args` is right, on evidence of ten kinds. Any JAX function, with or without rules.

    | evidence | what it compares |
    |---|---|
    | structure | the shape and dtype of each cotangent with those of its argument |
    | forward | the value that the rule's forward pass gives with that of f |
    | automatic | every entry, for random cotangents, with `automatic(f)` (or the reference) in float64 |
    | adjoint | ⟨v, J u⟩ with ⟨Jᵀv, u⟩ |
    | differences | the slope of f in float64 along random directions, along x + t and (1 + t)·x, and at coordinates |
    | linearity | B(g₁ + g₂) with B(g₁) + B(g₂), and B(−2g) with −2B(g), B the backward pass |
    | zeros | B(0) with 0; each result and each argument differentiated alone with all at once |
    | vmap | vmap(grad) with grad of each example; grad(vmap) with the sum of vmap(grad) |
    | jit | compiled with eager |
    | determinism | two runs, bit by bit |

    No tolerance is set by hand. An entry may err sixteen times as much as automatic differentiation itself errs at
    the function's own precision, as measured against float64 (`gradcheck/yardstick.py` derives it), so that a bfloat16
    rule is held to what bfloat16 can do and a float64 one to what float64 can. Where the gradient jumps, as at ReLU's
    zero or a tie of a max pool, any convention has a point: the verdict is "kink" and names it, and is no failure.
    Entries far smaller than the array's median (by eps) are below what the bound can tell. A solver that stops at a
    tolerance has a slope of its own, not that of its solution: give it a reference.

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
    with examination("check", p.name):
        return _examine(p, order, seed, skip)


def _examine(p: Problem, order: int, seed: int, skip: Sequence[str]) -> Report:
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
    report = report.with_evidence(*(ask(t) for name, ask in KINDS.items() if name not in skip))
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
    )
    try:
        reverse = differentiable("check", gradients)
    except (TypeError, WrongRule) as error:
        return Evidence("second order", "skipped", said(error))
    t = Trial(gradients, Yardstick(gradients, rng, finite("check", gradients), reverse), rng)
    found = [evidence.truth(t), differences(t)]
    verdicts = [e.verdict for e in found]
    verdict = next(v for v in ("wrong", "kink", "ok", "skipped") if v in verdicts)
    findings = tuple(f for e in found if e.verdict == verdict for f in e.findings)
    about = "the gradient's gradient, entry by entry and by differences"
    return Evidence("second order", verdict, about, max(e.ratio for e in found), findings)
