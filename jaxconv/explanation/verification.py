"""Whether an explanation is true: its recipes and equations against the gradient that really runs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxconv.explanation.equations import Equation

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation

# Entries of a map that are examined beside those that are written out.
SAMPLE = 16
# and fewer, where these would have more products.
PRODUCTS = 100_000
# Random whole numbers are as large as this, either sign: small ones to be looked at, larger ones that no two wrong
# products have in common by chance.
SIZES = (5, 50)

Arrays = dict[str, np.ndarray]


class Trial:
    """The three maps on one choice of numbers.

    Attributes:
      given: x, w and g.
      made: the y, dx and dw that differentiation makes of them.
      right: those that the recipes make.
    """

    def __init__(self, e: Explanation, given: Arrays) -> None:
        self.given, self._recipes, self._dtype = given, e.recipes, e.dtype
        with jax.enable_x64(True):
            results = e.run(*(jax.numpy.asarray(given[name], e.dtype) for name in ("x", "w", "g")))
            made = [np.asarray(a, np.float64) for a in results]
        self.made: Arrays = dict(zip(e.recipes, made, strict=True))

    @functools.cached_property
    def right(self) -> Arrays:
        return {name: r.follow(*(self.given[f] for f in r.factors)) for name, r in self._recipes.items()}

    def wrong(self, name: str) -> np.ndarray:
        """Which entries of y, dx or dw are not what they should be."""
        return differ(self.made[name], self.right[name], self._dtype)


def trials(e: Explanation) -> tuple[Trial, ...]:
    """Random whole numbers, on which every sum is exact."""
    rng = np.random.default_rng(0)
    shapes = {name: e.shape(name) for name in ("x", "w", "g")}

    def drawn(most: int) -> Arrays:
        return {name: rng.integers(1, most + 1, n) * rng.choice((-1.0, 1.0), n) for name, n in shapes.items()}

    return tuple(Trial(e, drawn(most)) for most in SIZES)


def faults(e: Explanation) -> Iterator[str]:
    """What does not agree, one sentence each.

    The recipe and the equations must both give what `jax.vjp` gives; and an equation's products must be those whose
    indices meet, i·q = s·p + d·k − lo, once each.
    """
    for name in e.recipes:
        each = max(1, int(e.total(name)) // max(1, e.entries(name)))
        sample = max(1, min(SAMPLE, PRODUCTS // each))
        differing = ((t, tuple(map(int, place))) for t in e.trials for place in np.argwhere(t.wrong(name)))
        for trial, index in itertools.islice(differing, 1):
            right, made = trial.right[name][index], trial.made[name][index]
            yield f"{name}{list(index)}: the recipe gives {right:g}, the rule {made:g}."
        for q in (*e.equations[name], *e.more(name, sample)):
            if not adds_up(e, q):
                total, actual = _sums(e, q)
                yield f"{name}{list(q.entry)}: the products sum to {total:g}, the rule gives {actual:g}."
            elif q.wrong:
                ours, meant = q.sums()
                yield f"{name}{list(q.entry)}: the rule adds up {ours}, but what meets is {meant}."


def adds_up(e: Explanation, q: Equation) -> bool:
    """Whether an entry is the sum of the products that were read off the rule."""
    return not differ(*_sums(e, q), e.dtype)


def _sums(e: Explanation, q: Equation) -> tuple[float, float]:
    """The sum of an entry's products, and the entry."""
    trial = e.trials[0]
    return q.evaluate(*(trial.given[factor] for factor in q.factors)), float(trial.made[q.result][q.entry])


def verdict(e: Explanation) -> str:
    """One sentence that says how much is wrong, or "" where nothing is."""
    if not (found := e.faults()):
        return ""
    wrong = [f"{mask.sum():,} of {mask.size:,} entries of {name}" for name, mask in e.wrong.items() if mask.any()]
    who = "the rules miscompute" if e.layer is None else f"{e.layer.name} miscomputes"
    return f"WRONG: {who} {' and '.join(wrong)}." if wrong else f"WRONG: {found[0]}"


def differ(a: np.ndarray | float, b: np.ndarray | float, dtype: Any = np.float64) -> np.ndarray:
    """Whole numbers are exact; this forgives an engine that adds fractions of them, but not a NaN."""
    forgiven = float(np.finfo(dtype).eps) ** 0.6  # 4e-10 in float64, 7e-5 in float32
    with np.errstate(invalid="ignore"):
        return ~(np.abs(np.asarray(a) - b) <= forgiven * (1 + np.abs(b)))
