"""What the page cannot find out by itself: the sums that a wrong rule makes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxconv.explanation.reading import Index, Product
from jaxconv.explanation.verification import Arrays, Trial, differ

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation

# What the page calls the arrays.
SYMBOLS = {"g": "delta"}


def told(e: Explanation) -> dict[str, Any] | None:
    """For JSON: the verdict, the numbers that the page starts from, and every wrong entry.

    None where there is nothing to tell: the rules are right, and any numbers will do. The page draws one example: its
    numbers are those of the first, and the others have no δ.
    """
    if not e.verdict and e.layer is None:
        return None
    given = {**e.shown.given}
    others = [slice(None)] * given["g"].ndim
    others[e.geometry.layout.y[0]] = slice(1, None)
    given["g"] = given["g"].copy()
    given["g"][tuple(others)] = 0
    trial = Trial(e, given)
    return {
        "verdict": e.verdict,
        "given": {SYMBOLS.get(name, name): _by_key(e, name, given) for name in given},
        "wrong": {name: dict(_wrong(e, name, trial.made, trial.right)) for name in e.recipes},
    }


def _by_key(e: Explanation, name: str, arrays: Arrays) -> dict[str, float]:
    """The first example of an array, or a kernel, by the page's keys."""
    found = {}
    for index in np.ndindex(*e.shape(name)):
        if _drawn(e, name, index):
            found[_key(e, name, index)] = float(arrays[name][index])
    return found


def _wrong(e: Explanation, name: str, made: Arrays, right: Arrays) -> Any:
    """Each wrong entry that is drawn: what the rule gives, and the products that it adds up."""
    factors = e.recipes[name].factors
    for place in np.argwhere(e.wrong[name]):
        entry = tuple(map(int, place))
        if not _drawn(e, name, entry):
            continue
        (q,) = e.read(name, [entry])
        ours, meant = ([p for p in products if _counts(e, factors, p)] for products in (q.products, q.right))
        value = float(made[name][entry])
        if sorted(ours) != sorted(meant) or differ(value, right[name][entry], e.dtype):
            sums = [[p.coefficient, *(_key(e, f, i) for f, i in zip(factors, p[1:], strict=True))] for p in ours]
            yield _key(e, name, entry), {"value": value if math.isfinite(value) else "NaN", "products": sums}


def _drawn(e: Explanation, name: str, index: Index) -> bool:
    return name in ("w", "dw") or index[e.recipes["y"].layout(name)[0]] == 0


def _counts(e: Explanation, factors: tuple[str, str], p: Product) -> bool:
    """Whether a product is of an example that has a δ."""
    return all(f != "g" or _drawn(e, f, i) for f, i in zip(factors, p[1:], strict=True))


def _key(e: Explanation, name: str, index: Index) -> str:
    """NHWC or HWIO, joined by commas."""
    first, second, *spatial = (index[axis] for axis in e.recipes["y"].layout(name))
    order = (*spatial, second, first) if name in ("w", "dw") else (first, *spatial, second)
    return ",".join(map(str, order))
