"""A function and example arguments, made ready to be differentiated; or a sentence that says why they cannot be."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jaxconv.transforms.automatic import has_rules
from jaxconv.transforms.precision import is_opaque, run
from jaxconv.transforms.program import Program, contains, trace

SMALLER = "Smaller arguments show the same mistakes: a batch of 2, a few channels."


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def gradient(call: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """(xs, gs) -> the values of `call` and its cotangents, in reverse mode."""

    def both(xs: Sequence[Any], gs: Sequence[Any]) -> tuple[Any, Any]:
        ys, back = jax.vjp(lambda *xs: call(xs), *xs)
        return list(ys), list(back(tuple(map(jnp.asarray, gs))))

    return both


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, compiled apart from the arrays it closes over.

    So the programs of one network are those of its twin with other data, and JAX's compilation cache has them; nor does
    XLA fold constants as large as a data set.
    """
    programs: dict[Any, tuple[Callable[..., Any], Sequence[Any], Any]] = {}

    def call(*operands: Any) -> Any:
        leaves, tree = jax.tree.flatten(operands)
        key = (tree, *((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves))
        if key not in programs:
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*operands)
            apart = closed.jaxpr.replace(constvars=[], invars=[*closed.jaxpr.constvars, *closed.jaxpr.invars])
            programs[key] = jax.jit(jaxpr_as_fun(ClosedJaxpr(apart, ()))), closed.consts, jax.tree.structure(shapes)
        program, consts, results = programs[key]
        return jax.tree.unflatten(results, program(*consts, *leaves))

    return call


class Problem(NamedTuple):
    """A function of float arrays, twice: as it is, and as what it computes.

    Attributes:
      name: what the function is called.
      f: (xs) -> ys, with its own rules.
      plain: (xs, floats) -> ys, without any; `floats` is the dtype to carry, or None for its own.
      xs: the point.
      paths: what each x is called.
      ys: the shape and dtype of each result.
      stopped: whether it stops gradients somewhere, so that its slope is not its gradient.
      opaque: whether part of it can only be computed at its own precision.
      jaxpr: the equations of what it computes.
      ruled: whether f is differentiated in another way than `plain`.
    """

    name: str
    f: Callable[..., tuple[Any, ...]]
    plain: Callable[..., tuple[Any, ...]]
    xs: list[jax.Array]
    paths: list[str]
    ys: list[jax.ShapeDtypeStruct]
    stopped: bool
    opaque: bool
    jaxpr: Jaxpr
    ruled: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Each x as `path dtype[shape]`."""
        return tuple(f"{path} {x.dtype}{list(x.shape)}" for path, x in zip(self.paths, self.xs, strict=True))

    def cotangents(self, rng: np.random.Generator, where: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Random ones, in the dtypes of the results; 0 where a result is infinite and has no slope."""
        return [(rng.standard_normal(y.shape) * w).astype(y.dtype) for y, w in zip(self.ys, where, strict=True)]

    def moved(self, rng: np.random.Generator, by: float | None = None, dtype: Any = None) -> list[np.ndarray]:
        """A point near x: every entry multiplied by 1 or 1 ± `by` (by default one ulp), which keeps zeros and signs."""

        def move(x: np.ndarray) -> np.ndarray:
            to = dtype or x.dtype
            step = float(jnp.finfo(to).eps) if by is None else by
            return (wide(x) * (1 + step * rng.integers(-1, 2, x.shape))).astype(to)

        return [move(np.asarray(x)) for x in self.xs]


def _problem(name: str, program: Program, plain: Program) -> Problem:
    """Restrict f and what it computes to their float arguments and results."""
    leaves, results = program.leaves, program.closed.out_avals
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    outputs = [i for i, aval in enumerate(results) if jnp.issubdtype(aval.dtype, jnp.floating)]

    def placed(xs: Sequence[Any]) -> list[Any]:
        full = list(leaves)
        for i, x in zip(floats, xs, strict=True):
            full[i] = x
        return full

    def own(xs: Sequence[Any]) -> tuple[Any, ...]:
        ys = program.call(placed(xs))
        return tuple(ys[i] for i in outputs)

    def plainly(xs: Sequence[Any], floats: Any = None) -> tuple[Any, ...]:
        ys = run(plain, placed(xs), floats)
        return tuple(ys[i] for i in outputs)

    return Problem(
        name,
        own,
        plainly,
        [leaves[i] for i in floats],
        [program.paths[i] for i in floats],
        [jax.ShapeDtypeStruct(results[i].shape, results[i].dtype) for i in outputs],
        contains(plain.closed.jaxpr, lambda eqn: eqn.primitive.name == "stop_gradient"),
        contains(plain.closed.jaxpr, is_opaque),
        plain.closed.jaxpr,
        plain is not program or has_rules(program.closed.jaxpr),
    )


class WrongRule(ValueError):
    """The function can be differentiated without its own rules only."""


@contextlib.contextmanager
def examination(function: str, name: str) -> Iterator[None]:
    """Whatever the caller's settings, values that are no numbers are looked at, and results fetched; all in memory."""
    try:
        with jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"), np.errstate(all="ignore"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{function}: {name} and its gradient do not fit into memory. {SMALLER}") from error


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
    for path, leaf in zip(program.paths, program.leaves, strict=True):
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(f"{function}: {path} is being traced. Call {function} outside of jit, grad and vmap.")
        if jax.sharding.AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types:
            raise TypeError(
                f"{function}: {path} is sharded over a mesh with explicit axes. Pass arrays of one device: "
                f"jax.device_get({path}), or a mesh with AxisType.Auto."
            )
    return _problem(name, program, plain)


def _traced(function: str, name: str, f: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    try:
        return trace(function, f, *args)
    except Exception as error:
        if str(error).startswith(f"{function}: "):
            raise
        again = (
            f" Hand the module over: {function}(f, model, ...)." if type(error).__name__ == "TraceContextError" else ""
        )
        raise ValueError(f"{function}: {name} fails on these arguments. {said(error)}{again}") from error


def _shapes(program: Program) -> str:
    return ", ".join(f"{a.dtype}{list(a.shape)}" for a in program.closed.out_avals) or "nothing"


def _has_gradient(function: str, name: str, program: Program) -> None:
    arguments, results = [x.dtype for x in program.leaves], [a.dtype for a in program.closed.out_avals]
    if any(jnp.issubdtype(d, jnp.complexfloating) for d in [*arguments, *results]):
        raise TypeError(
            f"{function}: {name} is complex. Split what it takes and returns into real and imaginary parts."
        )
    if not any(jnp.issubdtype(d, jnp.floating) for d in arguments):
        held = [f"{path} ({type(leaf).__name__})" for path, leaf in program.held.items()]
        listed = ", ".join([*map(str, arguments), *held]) or "no arguments at all"
        raise TypeError(f"{function}: {name} has no floating argument to differentiate, but {listed}.")
    if not results:
        raise TypeError(f"{function}: {name} returns nothing. Return what is to be differentiated.")
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


def finite(function: str, p: Problem) -> list[np.ndarray]:
    """Which results are finite. Raise if one is no number or an argument is not finite."""
    for path, x in zip(p.paths, p.xs, strict=True):
        if count := int((~np.isfinite(wide(x))).sum()):
            raise ValueError(f"{function}: {path} must be finite, but {count} of {x.size} entries are not.")
    ys = list(map(wide, compiled(p.f)(p.xs)))
    if count := sum(int(np.isnan(y).sum()) for y in ys):
        raise ValueError(f"{function}: {p.name}(*args) must be a number everywhere, but {count} entries are NaN.")
    return [np.isfinite(y) for y in ys]


def differentiable(function: str, p: Problem) -> bool:
    """Whether JAX alone has a reverse mode of p; raises if f has none either."""
    plain = _failure(gradient(p.plain), p.xs, p.ys)
    own = _failure(gradient(p.f), p.xs, p.ys)
    if own is not None and plain is not None:
        raise TypeError(f"{function}: {p.name} cannot be differentiated in reverse mode. {said(own)}") from own
    if own is not None:
        raise WrongRule(f"{p.name}'s rule fails where automatic differentiation does not. {said(own)}") from own
    return plain is None


def _failure(function: Callable[..., Any], *args: Any) -> Exception | None:
    try:
        jax.eval_shape(function, *args)
    except Exception as error:
        return error
    return None


def fits(function: str, p: Problem, call: Callable[..., Any], samples: int) -> None:
    """Raise unless `call`'s gradient in float64, and as many samples of it, fit into memory."""
    residuals = jax.eval_shape(lambda xs: jax.vjp(lambda *xs: call(xs), *xs)[1], p.xs)
    kept = sum(a.size for a in jax.tree.leaves(residuals) if hasattr(a, "size"))
    sampled = sum(x.size for x in p.xs) + sum(y.size for y in p.ys)
    need, free = 8 * (2 * kept + 2 * samples * sampled), _free_memory()
    if need > free:
        raise MemoryError(
            f"{function}: {p.name} in float64 and {samples} samples of its gradient need {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free. {SMALLER}"
        )


def overflow(function: str, p: Problem, where: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> None:
    """Raise if a result is infinite for want of range, not because it is."""
    for y, ok, value in zip(p.ys, where, exact, strict=True):
        if (~ok & np.isfinite(value)).any():
            raise ValueError(
                f"{function}: {p.name}(*args) overflows {y.dtype}: a result is infinite, but "
                f"{value[~ok & np.isfinite(value)][0]:.4g} in float64. Scale the arguments down."
            )


def _free_memory() -> float:
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def said(error: BaseException) -> str:
    """What an error says, up to its first empty line; without addresses, which say nothing."""
    paragraph = str(error).strip().partition("\n\n")[0]
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(paragraph.split()))
    return f"{type(error).__name__}: {text}"
