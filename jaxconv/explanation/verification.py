"""Whether an explanation is true: its recipes and equations against the gradient that really runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxconv.explanation.meetings import meetings
from jaxconv.ops.conv import convolve

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation

# Entries of a map that are examined beside those that are written out.
SAMPLE = 16


def faults(e: Explanation) -> Iterator[str]:
    """What does not agree, one sentence each.

    On random whole numbers, where every sum is exact, the recipe and the equations must both give what `jax.vjp`
    gives; and an equation's products must be those whose indices meet, i·q = s·p + d·k − lo, once each.
    """
    for name, recipe in e.recipes.items():
        left, right = (e.example[factor] for factor in recipe.factors)
        actual, followed = e.example[name], recipe.follow(left, right)
        if followed.shape != actual.shape:
            yield f"{name}: the recipe's result has shape {followed.shape}, the rule's {actual.shape}."
            continue
        for place in np.argwhere(_differ(followed, actual))[:1]:
            index = tuple(map(int, place))
            yield f"{name}{list(index)}: the recipe gives {followed[index]:g}, the rule {actual[index]:g}."
        for q in (*e.equations[name], *e.more(name, SAMPLE)):
            total = q.evaluate(left, right)
            if _differ(total, actual[q.entry]):
                yield f"{name}{list(q.entry)}: the products sum to {total:g}, the rule gives {actual[q.entry]:g}."
            elif sorted(q.products) != sorted((1.0, *pair) for pair in meetings(e, q)):
                yield f"the rule computes {q}, but the indices that meet are others."


def example(e: Explanation) -> dict[str, np.ndarray]:
    """Random whole numbers x, w and g, from 1 to 5 with either sign, and what differentiating `conv` makes of them."""
    rng = np.random.default_rng(0)
    sizes = {name: e.shape(name) for name in ("x", "w", "g")}
    chosen = {name: rng.integers(1, 6, shape) * rng.choice((-1.0, 1.0), shape) for name, shape in sizes.items()}

    def run(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, backward = jax.vjp(lambda x, w: convolve(x, w, e.geometry, e.rules, e.engine, None), x, w)
        return y, *backward(g)

    with jax.enable_x64(True):
        results = jax.jit(run)(*(jax.numpy.asarray(a) for a in chosen.values()))
    return {**chosen, **dict(zip(("y", "dx", "dw"), map(np.asarray, results), strict=True))}


def _differ(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Whole numbers are exact in float64; this forgives an engine that adds fractions of them."""
    return np.abs(np.asarray(a) - b) > 1e-9 * (1 + np.abs(b))
