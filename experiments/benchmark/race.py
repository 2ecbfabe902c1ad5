"""Who is faster: contestants take turns in one process, and every round gives one ratio."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

# The threads of OpenMP go on spinning for some milliseconds after a call, at the expense of whoever runs next.
SETTLE_SECONDS = 0.02
# Shorter calls are repeated until a turn takes so long.
TURN_SECONDS = 0.01


@dataclass(frozen=True)
class Contestant:
    """Something to time, warmed up.

    Attributes:
      call: one run of it.
      wait: returns when the result of a call is there.
      result: what all contestants must agree on, a dict of trees of arrays; None if there is no such thing.
      compile_seconds: tracing, lowering and compiling; None where nothing is compiled.
      temporary_bytes: as XLA counts them; None where XLA does not.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    result: dict[str, Any] | None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def compiled(function: Callable[..., Any], *args: Any, donate: Sequence[int] = ()) -> tuple[Any, float, int | None]:
    """A function compiled for these arguments, the seconds that took and the temporary bytes of the program."""
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    return program, seconds, memory.temp_size_in_bytes if memory else None


def contestant(function: Callable[..., Any], *args: Any) -> Contestant:
    """A JAX function at these arguments."""
    program, seconds, size = compiled(function, *args)
    call = functools.partial(program, *args)
    return Contestant(call, jax.block_until_ready, {"result": call()}, seconds, size)


class Disagreement(ArithmeticError):
    """Two columns of a row that do not compute the same."""


def distance(a: Any, b: Any) -> float:
    """The largest ‖a − b‖ / ‖b‖ among the arrays of two trees; an array that hardly counts is held to 1/1000 of all."""
    ours, theirs = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    if [x.shape for x in ours] != [y.shape for y in theirs]:
        return math.inf
    apart = np.array([np.linalg.norm(x - y) for x, y in zip(ours, theirs, strict=True)])
    sizes = np.array([np.linalg.norm(y) for y in theirs])
    sizes = np.maximum(sizes, max(1e-3 * float(np.linalg.norm(sizes)), float(np.finfo(np.float64).tiny)))
    return float(np.max(apart / sizes))


def agree(name: str, result: dict[str, Any] | None, reference: dict[str, Any] | None, tolerance: float) -> None:
    """Raise a `Disagreement` unless every part of the result is as near to the reference's as `tolerance` says."""
    for part in (result or {}).keys() & (reference or {}).keys():
        assert result is not None and reference is not None
        apart = distance(result[part], reference[part])
        if not apart <= tolerance:  # so that NaN is a disagreement
            raise Disagreement(f"{name} computes something else: {part} differs by {apart:.1e} > {tolerance:.0e}")


class Budget(NamedTuple):
    """When a race ends: after `seconds`, but within these numbers of rounds; a turn of `single` ones is one call."""

    seconds: float
    least: int
    most: int
    single: bool = False


def race(
    contestants: Mapping[str, Contestant],
    budget: Budget,
    *,
    pipelined: bool,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, list[float]]:
    """Seconds per call, one number per contestant and round.

    Args:
      contestants: by name.
      budget: when to stop.
      pipelined: whether the calls of one turn may be under way together, as on an accelerator with one queue. On a
        CPU they would run beside each other.
      clock, sleep: of the time module.
    """

    def turn(c: Contestant, repeats: int) -> float:
        if not pipelined:
            sleep(SETTLE_SECONDS)
        if repeats > 1:
            c.wait(c.call())
        start = clock()
        for _ in range(repeats):
            out = c.call()
            if not pipelined:
                c.wait(out)
        c.wait(out)
        return (clock() - start) / repeats

    repeats = dict.fromkeys(contestants, 1)
    # Calls that are under way together take less each than one alone.
    for _ in range(0 if budget.single else 2 if pipelined else 1):
        for name, c in contestants.items():
            repeats[name] = max(1, min(1000, math.ceil(TURN_SECONDS / max(turn(c, repeats[name]), 1e-9))))
    names, end = list(contestants), clock() + budget.seconds
    times: dict[str, list[float]] = {name: [] for name in names}
    played = 0
    while played < budget.least or (played < budget.most and clock() < end):
        first, backwards = played % len(names), played // len(names) % 2
        order = names[first:] + names[:first]
        for name in reversed(order) if backwards else order:
            times[name].append(turn(contestants[name], repeats[name]))
        played += 1
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    p10, median, p90 = (float(p) for p in np.percentile(values, (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as long they take: the spread over the rounds."""
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])
