"""One entry of a result and the products that it is the sum of: as data, text and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxconv.explanation.reading import Index, Product

LETTERS = {"x": "x", "w": "w", "g": "δ", "y": "y", "dx": "dx", "dw": "dw"}
LATEX = {
    "x": "x", "w": "w", "g": r"\delta", "y": "y",
    "dx": r"\frac{\partial L}{\partial x}", "dw": r"\frac{\partial L}{\partial w}",
}  # fmt: skip
# Products that a line of text shows.
MOST = 6


class Equation(NamedTuple):
    """One entry and its products; text when printed.

    Attributes:
      result: "y", "dx" or "dw".
      entry: its index, in array order.
      factors: which arrays are multiplied: ("x", "w"), ("g", "w") or ("x", "g"); g is δ.
      products: (coefficient, index into the first factor, index into the second).
    """

    result: str
    entry: Index
    factors: tuple[str, str]
    products: tuple[Product, ...]

    def evaluate(self, left: np.ndarray, right: np.ndarray) -> float:
        """The sum, for these numbers."""
        return float(sum(p.coefficient * left[p.left] * right[p.right] for p in self.products))

    def __str__(self) -> str:
        """dx[0,1,1,0] = δ[0,0,0,0]·w[1,1,0,0] + …, with a count when there are many products."""
        return f"{_entry(self.result, self.entry)} = {self._sum(_entry, '·', '…', MOST)}"

    def latex(self, most: int | None = None) -> str:
        """A line of an `align` environment; of more than `most` products the rest is counted."""
        total = self._sum(_latex_entry, r"\,", r"\cdots", most).replace("−", "-")
        return f"{_latex_entry(self.result, self.entry)} &= {total}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        first, second = self.factors
        return {
            "entry": list(self.entry),
            "products": [
                {"coefficient": p.coefficient, first: list(p.left), second: list(p.right)} for p in self.products
            ],
        }

    def _sum(self, entry: Callable[[str, Index], str], times: str, dots: str, most: int | None) -> str:
        """The right-hand side; coefficients other than 1, which only wrong rules have, are written out."""
        first, second = self.factors
        text = ""
        for p in self.products[:most]:
            sign = "−" if p.coefficient < 0 else "+"
            factor = "" if abs(p.coefficient) == 1 else f"{number(abs(p.coefficient))}{times}"
            text += f" {sign} {factor}{entry(first, p.left)}{times}{entry(second, p.right)}"
        if most is not None and len(self.products) > most:
            text += f" + {dots} ({len(self.products):,} products)"
        return text.removeprefix(" + ").strip() or "0"


def number(value: float) -> str:
    """A whole number with its thousands apart, or nine digits."""
    return f"{int(value):,}" if value == int(value) else f"{value:.9g}"


def _entry(name: str, index: Sequence[int]) -> str:
    return f"{LETTERS[name]}[{','.join(map(str, index))}]"


def _latex_entry(name: str, index: Sequence[int]) -> str:
    places = ",".join(map(str, index))
    if name in ("dx", "dw"):
        return rf"\frac{{\partial L}}{{\partial {name[1]}_{{{places}}}}}"
    return f"{LATEX[name]}_{{{places}}}"
