"""Is this gradient right? `check` asks in many ways, and says where it is not and what may be wrong."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck import evidence
from jaxconv.gradcheck.evidence import Trial, first_line
from jaxconv.gradcheck.report import Evidence, Finding, Report
from jaxconv.gradcheck.yardstick import SAMPLES, Problem, Yardstick, gradient, problem
from jaxconv.transforms import Program, trace

__all__ = ["KINDS", "Evidence", "Finding", "Report", "check"]

KINDS: dict[str, Callable[[Trial], Evidence]] = {
    "structure": evidence.structure,
    "forward": evidence.forward,
    "automatic": evidence.truth,
    "adjoint": evidence.adjoint,
    "differences": evidence.differences,
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

    No tolerance is set by hand. An entry may err eight times as much as automatic differentiation itself errs at the
    function's own precision, as measured against float64 (`gradcheck/yardstick.py` derives it), so that a bfloat16 rule
    is held to what bfloat16 can do and a float64 one to what float64 can. Where the gradient jumps, as at ReLU's zero
    or a tie of a max pool, any convention has a point: the verdict is "kink" and names the entry. A kink does not fail.

    Args:
      f: a function of pytrees of arrays to a pytree of arrays. Its floating arguments are differentiated, integers
        are held. Whatever is not an array is bound by a closure. It is traced and run many times, so no side effects.
      args: where to differentiate. All finite; any shape, empty included.
      reference: a plain function that computes what f should: it, instead of f's own forward computation, is
        differentiated automatically and in float64. Hand-written rules inside it are removed too.
      order: 2 examines the gradient of the gradient as well, in all arguments and the cotangent.
      seed: of the cotangents, directions and coordinates.
      skip: kinds of evidence to leave out.

    Returns:
      A `Report`: `.ok`, `.raise_if_failed()`, `.to_dict()`, `report["adjoint"]`, and a table when printed. What is
      wrong comes with argument, entry, both values, the bound, the error in bounds and in ulps, and a hint if a usual
      mistake (sign, factor, flip, transposition, roll, missing sum over the batch, dropped rows, …) explains all.

    Raises:
      TypeError: f has no floating argument or no floating result, has side effects, or cannot be differentiated even
        without its rules.
      ValueError: f(*args) fails or is not finite, or an option has no meaning.
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
    p = prepare("check", f, args, reference)
    try:
        return _examine(p, order, seed, skip)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"check: {p.name} and its gradient do not fit into memory. {_SMALLER}") from error


_SMALLER = "Smaller arguments show the same mistakes: a batch of 2, a few channels."


def _examine(p: Problem, order: int, seed: int, skip: Sequence[str]) -> Report:
    report = Report(p.name, tuple(f"{path} {x.dtype}{list(x.shape)}" for path, x in zip(p.paths, p.xs, strict=True)))
    rng = np.random.default_rng(seed)
    try:
        reverse = differentiable("check", p)
    except _WrongRule as wrong:
        return report.with_evidence(Evidence("structure", "wrong", str(wrong)))
    finite("check", p)
    t = Trial(p, Yardstick(p, rng, reverse), rng)
    report = report.with_evidence(*(ask(t) for name, ask in KINDS.items() if name not in skip))
    return report if order == 1 else report.with_evidence(_second_order(p, t.gs[0], rng))


class _WrongRule(Exception):
    """The function can be differentiated without its own rules only."""


def prepare(function: str, f: Callable[..., Any], args: tuple[Any, ...], reference: Any = None) -> Problem:
    """f and its example arguments as a problem, or an error that says why there is none."""
    name = getattr(f, "__name__", type(f).__name__)
    program = _traced(function, name, f, args)
    _has_gradient(function, name, program)
    plain = program
    if reference is not None:
        plain = _traced(function, "reference", reference, args)
        if [(a.shape, a.dtype) for a in plain.closed.out_avals] != [
            (a.shape, a.dtype) for a in program.closed.out_avals
        ]:
            raise ValueError(
                f"{function}: reference must return what {name} returns, but {_shapes(plain)} != {_shapes(program)}."
            )
    structure = jax.tree.structure(args)
    return problem(name, lambda *leaves: f(*jax.tree.unflatten(structure, leaves)), program, plain)


def _traced(function: str, name: str, f: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    try:
        return trace(function, f, *args)
    except Exception as error:
        if str(error).startswith(f"{function}: "):
            raise
        raise ValueError(f"{function}: {name} fails on these arguments. {first_line(error)}") from error


def _shapes(program: Program) -> str:
    return ", ".join(f"{a.dtype}{list(a.shape)}" for a in program.closed.out_avals) or "nothing"


def _has_gradient(function: str, name: str, program: Program) -> None:
    arguments, results = [x.dtype for x in program.leaves], [a.dtype for a in program.closed.out_avals]
    if any(jnp.issubdtype(d, jnp.complexfloating) for d in [*arguments, *results]):
        raise TypeError(
            f"{function}: {name} is complex. Split what it takes and returns into real and imaginary parts."
        )
    if not any(jnp.issubdtype(d, jnp.floating) for d in arguments):
        listed = ", ".join(map(str, arguments)) or "no arguments at all"
        raise TypeError(f"{function}: {name} has no floating argument to differentiate, but {listed}.")
    if not any(jnp.issubdtype(d, jnp.floating) for d in results):
        raise TypeError(
            f"{function}: {name} returns {_shapes(program)}, and integers have no gradient. "
            f"Return the floats that they come from."
        )
    if program.closed.effects:
        raise TypeError(
            f"{function}: {name} has side effects ({', '.join(sorted(map(str, program.closed.effects)))}), which would "
            f"be repeated dozens of times. Take its prints and callbacks out."
        )


def finite(function: str, p: Problem) -> None:
    """Raise unless the arguments and the results are finite."""
    named = [*zip(p.paths, p.xs, strict=True), *((f"{p.name}(*args)", y) for y in jax.jit(p.f)(p.xs))]
    for path, x in named:
        if not bool(jnp.isfinite(x).all()):
            count = int((~jnp.isfinite(x)).sum())
            raise ValueError(f"{function}: {path} must be finite, but {count} of {x.size} entries are not.")


def differentiable(function: str, p: Problem) -> bool:
    """Whether JAX alone has a reverse mode of p; raises if f has none either, or none that fits into memory."""
    plain = _failure(gradient(p.plain), p.xs, p.ys)
    own = _failure(gradient(p.f), p.xs, p.ys)
    if own is not None and plain is not None:
        raise TypeError(f"{function}: {p.name} cannot be differentiated in reverse mode. {first_line(own)}") from own
    if own is not None:
        raise _WrongRule(f"f's rule fails where automatic differentiation does not. {first_line(own)}") from own
    _fits(function, p, p.plain if plain is None else p.f)
    return plain is None


def _failure(function: Callable[..., Any], *args: Any) -> Exception | None:
    try:
        jax.eval_shape(function, *args)
    except Exception as error:
        return error
    return None


def _fits(function: str, p: Problem, call: Callable[..., Any]) -> None:
    residuals = jax.eval_shape(lambda xs: jax.vjp(lambda *xs: call(xs), *xs)[1], p.xs)
    kept = sum(a.size for a in jax.tree.leaves(residuals) if hasattr(a, "size"))
    sampled = sum(x.size for x in p.xs) + sum(y.size for y in p.ys)
    need, free = 8 * (2 * kept + 2 * SAMPLES * sampled), _free_memory()
    if need > free:
        raise MemoryError(
            f"{function}: {p.name} in float64 and {SAMPLES} samples of its gradient need {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free. {_SMALLER}"
        )


def _free_memory() -> float:
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


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
    )
    try:
        reverse = differentiable("check", gradients)
    except (TypeError, _WrongRule) as error:
        return Evidence("second order", "skipped", first_line(error))
    t = Trial(gradients, Yardstick(gradients, rng, reverse), rng)
    found = [evidence.truth(t), evidence.differences(t)]
    verdicts = [e.verdict for e in found]
    verdict = next(v for v in ("wrong", "kink", "ok", "skipped") if v in verdicts)
    findings = tuple(f for e in found if e.verdict == verdict for f in e.findings)
    about = "the gradient's gradient, entry by entry and by differences"
    return Evidence("second order", verdict, about, max(e.ratio for e in found), findings)
