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
    """One entry and its products; text when printed, and where they are wrong, the right ones in a second line.

    Attributes:
      result: "y", "dx" or "dw".
      entry: its index, in array order.
      factors: which arrays are multiplied: ("x", "w"), ("g", "w") or ("x", "g"); g is δ.
      products: (coefficient, index into the first factor, index into the second), as the rule multiplies.
      right: the same, as the trilinear form does.
    """

    result: str
    entry: Index
    factors: tuple[str, str]
    products: tuple[Product, ...]
    right: tuple[Product, ...]

    @property
    def wrong(self) -> bool:
        """Whether the rule multiplies something else than what meets."""
        return sorted(self.products) != sorted(self.right)

    def telling(self) -> tuple[list[Product], list[Product]]:
        """The rule's products and the right ones, those that only one of the two has in front."""
        ours, right = set(self.products), set(self.right)
        return sorted(self.products, key=right.__contains__), sorted(self.right, key=ours.__contains__)

    def evaluate(self, left: np.ndarray, right: np.ndarray) -> float:
        """The sum, for these numbers."""
        return float(sum(p.coefficient * left[p.left] * right[p.right] for p in self.products))

    def __str__(self) -> str:
        """dx[0,1,1,0] = δ[0,0,0,0]·w[1,1,0,0] + …, with a count when there are many products."""
        head, (ours, right) = _entry(self.result, self.entry), self.sums()
        return f"WRONG {head} = {ours}\nright {head} = {right}" if self.wrong else f"{head} = {ours}"

    def sums(self) -> tuple[str, str]:
        """The right-hand side as the rule computes it, and as it should be."""
        ours, right = (self._sum(products, _entry, "·", "…", MOST) for products in self.telling())
        return ours, right

    def latex(self, most: int | None = None) -> str:
        """A line of an `align` environment; of more than `most` products the rest is counted."""
        ours, right = (
            self._sum(products, _latex_entry, r"\,", r"\cdots", most).replace("−", "-") for products in self.telling()
        )
        line = f"{_latex_entry(self.result, self.entry)} &= {ours}"
        return rf"{line} \qquad \text{{WRONG; right is }} {right}" if self.wrong else line

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        first, second = self.factors

        def listed(products: Sequence[Product]) -> list[dict[str, Any]]:
            return [{"coefficient": p.coefficient, first: list(p.left), second: list(p.right)} for p in products]

        known = {"entry": list(self.entry), "products": listed(self.products)}
        return {**known, "right": listed(self.right)} if self.wrong else known

    def _sum(
        self, products: Sequence[Product], entry: Callable[[str, Index], str], times: str, dots: str, most: int | None
    ) -> str:
        """The right-hand side; coefficients other than 1, which only wrong rules have, are written out."""
        first, second = self.factors
        text = ""
        for p in products[:most]:
            sign = "−" if p.coefficient < 0 else "+"
            factor = "" if abs(p.coefficient) == 1 else f"{number(abs(p.coefficient))}{times}"
            text += f" {sign} {factor}{entry(first, p.left)}{times}{entry(second, p.right)}"
        if most is not None and len(products) > most:
            text += f" + {dots} ({len(products):,} products)"
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
