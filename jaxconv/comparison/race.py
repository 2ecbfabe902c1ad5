"""The race between gradients of the same function: do they agree, and what does each cost?"""

from __future__ import annotations

import functools
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxconv.comparison.report import OPERATIONS, Agreement, Comparison, Contestant
from jaxconv.gradcheck.problem import (
    Problem,
    differentiable,
    examination,
    finite,
    fits,
    gradient,
    overflow,
    prepare,
    wide,
)
from jaxconv.gradcheck.yardstick import SAMPLES, Yardstick, at_kink, large, magnitude, ratios
from jaxconv.transforms.automatic import automatic

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?\S+ = (?:\(.*?\)|\S+) ([a-z][a-z-]*)\((?:.*custom_call_target=\"([^\"]*)\")?", re.M
)
_LIBRARY = {"convolution": re.compile("conv", re.I), "dot": re.compile("matmul|gemm|dot", re.I)}


def compare(
    f: Callable[..., Any] | Mapping[str, Callable[..., Any]], *args: Any, seconds: float = 2.0, seed: int = 0
) -> Comparison:
    """The race between f's gradient and `automatic(f)`'s, or among several named functions: agreement and cost.

    What is timed is the compiled program of values and gradient in all floating arguments, for a random cotangent.
    The contestants take turns within one process, in changing order, so that a machine that slows down slows all.

    Args:
      f: a function as `check` takes it; or a dict of such functions by name, which compute the same.
      args: where to differentiate.
      seconds: how long to time, for all contestants together and after compilation; but at least three calls of each.
      seed: of the cotangents.

    Returns:
      A `Comparison`: a table of 80 columns when printed, `.to_dict()` for JSON, `.figure(path)` for one PNG. Per
      contestant: compile time (s), run time (s; median and quartiles), FLOPs, bytes accessed and temporary bytes as XLA
      counts them, bytes of residuals that the forward pass leaves for the backward, and how many convolutions, dots,
      reduce-windows, select-and-scatters and scatters the optimised program has. Per contestant and argument: the worst
      error against float64, in bounds (as `check` derives them; at most 1 is right, more says WRONG) and in units in
      the last place. The arguments that any gradient errs most in are printed, with the maximum over the others.

    Raises:
      TypeError, ValueError, MemoryError: as `check` does, and for contestants whose results differ in shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x = jnp.sin(jnp.arange(2 * 8 * 8 * 3.0)).reshape(2, 8, 8, 3)
      >>> report = jaxconv.compare(lambda x: jaxconv.max_pool(x, 2), x, seconds=0.1)
      >>> report["automatic"].operations["select-and-scatter"] + report["automatic"].operations["scatter"] > 0
      True
      >>> report["<lambda>"].operations["scatter"], report.ok
      (0, True)

    Source: counts are those of XLA's `cost_analysis` and `memory_analysis`; the truth is that of `check`.
    """
    if isinstance(f, Mapping):
        if not f:
            raise ValueError("compare: f must name at least one function, but is empty.")
        title, functions = ", ".join(map(str, f)), {str(name): _named(str(name), g) for name, g in f.items()}
    else:
        title = name = getattr(f, "__name__", type(f).__name__)
        functions = {name if name != "automatic" else "f": f, "automatic": automatic(f)}
    if not seconds > 0:
        raise ValueError(f"compare: seconds must be positive, but is {seconds}.")
    problems = {name: prepare("compare", function, args) for name, function in functions.items()}
    first = next(iter(problems.values()))
    with examination("compare", first.name):
        return _compare(title, problems, first, seconds, seed)


def _named(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """f under the name that the caller chose, with f's own names for its arguments."""
    call = functools.update_wrapper(lambda *args: f(*args), f, assigned=(), updated=())
    call.__name__ = name
    return call


def _compare(title: str, problems: dict[str, Problem], first: Problem, seconds: float, seed: int) -> Comparison:
    for name, p in problems.items():
        if [(y.shape, y.dtype) for y in p.ys] != [(y.shape, y.dtype) for y in first.ys]:
            listed = (", ".join(f"{y.dtype}{list(y.shape)}" for y in q.ys) for q in (p, first))
            raise ValueError(
                f"compare: {name} must return what {next(iter(problems))} returns, but {' != '.join(listed)}."
            )
        if not differentiable("compare", p):
            raise TypeError(
                f"compare: {p.name} has no automatic gradient to race against: JAX has no reverse mode for its loop. "
                f"Check it with jaxconv.check."
            )
    fits("compare", first, first.plain, SAMPLES[large(first)])
    where = finite("compare", first)
    yardstick = Yardstick(first, np.random.default_rng(seed), where)
    overflow("compare", first, where, yardstick.truth[0][0])
    gs = [jax.numpy.asarray(g) for g in yardstick.gs[0]]
    compiled, entries = {}, {}
    for name, p in problems.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(gradient(p.f)).lower(p.xs, gs).compile()
        compile_seconds = time.perf_counter() - start
        entries[name] = compile_seconds, _agreement(p, yardstick, compiled[name](p.xs, gs)[1])
    times = race({name: functools.partial(c, first.xs, gs) for name, c in compiled.items()}, seconds)
    return Comparison(
        title,
        first.arguments,
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        tuple(_contestant(name, problems[name], compiled[name], times[name], *entries[name]) for name in problems),
    )


def _agreement(p: Problem, yardstick: Yardstick, dxs: Any) -> dict[str, Agreement]:
    exact, found, jumps = yardstick.truth[0][1], {}, None
    for i, (path, x, dx, want) in enumerate(zip(p.paths, p.xs, map(wide, dxs), exact, strict=True)):
        bounds = ratios(dx, want, yardstick.first[i], x.dtype)
        if bounds.max(initial=0) > 1:
            jumps = jumps or yardstick.kinks(p.xs, yardstick.gs[0], np.random.default_rng(0))
            bounds = np.where(at_kink(dx, want, jumps[i]), 0, bounds)
        ulp = float(jax.numpy.finfo(x.dtype).eps) * 2.0 ** math.floor(math.log2(magnitude(want)))
        error = np.where(bounds > 0, np.abs(dx - want), 0)
        found[path] = Agreement(float(error.max(initial=0)) / ulp, float(bounds.max(initial=0)), bounds)
    return found


def race(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call, measured in turns; short calls are repeated until a clock can time them."""

    def timed(name: str, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            out = calls[name]()
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name in calls:
        once = timed(name, 1)
        repeats[name] = 1 if once > 5e-3 else max(1, min(1000, round(5e-4 / max(timed(name, 3), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, end = list(calls), time.perf_counter() + seconds
    while len(times[order[0]]) < 3 or (time.perf_counter() < end and len(times[order[0]]) < 1000):
        for name in order:
            times[name].append(timed(name, repeats[name]))
        order.reverse()
    return times


def _contestant(
    name: str, p: Problem, compiled: Any, times: list[float], compile_seconds: float, agreement: dict[str, Agreement]
) -> Contestant:
    low, median, high = statistics.quantiles(times, n=4)
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    residuals = jax.tree.leaves(jax.eval_shape(lambda xs: jax.vjp(lambda *xs: p.f(xs), *xs)[1], p.xs))
    found: Counter[str] = Counter()
    for opcode, target in _INSTRUCTION.findall(compiled.as_text() or ""):
        called = next(
            (o for o, pattern in _LIBRARY.items() if opcode == "custom-call" and pattern.search(target)), None
        )
        found[called or opcode] += 1
    return Contestant(
        name,
        compile_seconds,
        median,
        (low, high),
        float(cost.get("flops", math.nan)),
        float(cost.get("bytes accessed", math.nan)),
        float(memory.temp_size_in_bytes) if memory else math.nan,
        float(sum(a.size * a.dtype.itemsize for a in residuals if hasattr(a, "dtype"))),
        {o: found[o] for o in OPERATIONS},
        agreement,
    )
