"""What the scripts share: claims, each tried on numbers, and the table of those that hold and those that fail.

Convolution is (bi)linear, so most claims are tried on distinct small integers: every sum is then exact in float64,
"equal" means equal to the last bit, and no symmetry of the numbers hides an exchanged index.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxconv import ConvRules

Rules = str | ConvRules
Pairs = list[tuple[np.ndarray, np.ndarray]]
Prove = Callable[["Claims", Rules, np.random.Generator], None]
# Equations as data. Entries are named as printed, row and column from 1: 12 is row 1, column 2.
Equations = Mapping[int, Iterable[tuple[int, int]]]


@dataclass(frozen=True)
class Claim:
    section: str
    text: str
    holds: bool | None  # None: a measured figure, nothing that could be false
    evidence: str


@dataclass
class Claims:
    """What a script claims, section by section; nothing stops at a failure, and nothing hides it."""

    made: list[Claim] = field(default_factory=list)
    title: str = ""

    def section(self, title: str) -> None:
        self.title = title
        self.working(title)

    def working(self, on: str) -> None:
        """The table comes at the end; until then, what is being worked on goes to stderr."""
        print(on, file=sys.stderr, flush=True)

    def figure(self, text: str, value: str) -> None:
        """A measured figure."""
        self.made.append(Claim(self.title, text, None, value))

    def holds(self, text: str, truth: object, evidence: str = "") -> None:
        self.made.append(Claim(self.title, text, bool(truth), evidence))

    def equal(self, text: str, actual: Any, expected: Any) -> None:
        """The same numbers to the last bit, in all arrays of two trees; and they are not all zero."""

        def judge(pairs: Pairs) -> tuple[bool, str]:
            count, same = agreement(pairs)
            return same == count and any(np.any(b) for _, b in pairs), f"{same} of {count} numbers equal"

        self._compare(text, actual, expected, judge)

    def differ(self, text: str, actual: Any, expected: Any) -> None:
        """Not the same numbers."""

        def judge(pairs: Pairs) -> tuple[bool, str]:
            count, same = agreement(pairs)
            return same < count, f"{count - same} of {count} numbers differ"

        self._compare(text, actual, expected, judge)

    def close(self, text: str, actual: Any, expected: Any, roundings: float) -> None:
        """‖actual − expected‖ ≤ roundings · eps · ‖expected‖ for every array, eps that of `actual`'s dtype."""

        def judge(pairs: Pairs) -> tuple[bool, str]:
            distance = apart(pairs)
            return distance <= roundings, f"{distance:.2g} eps apart, {roundings:.2g} allowed"

        self._compare(text, actual, expected, judge)

    def _compare(self, text: str, actual: Any, expected: Any, judge: Callable[[Pairs], tuple[bool, str]]) -> None:
        pairs = paired(actual, expected)
        if wrong := next(((a.shape, b.shape) for a, b in pairs if a.shape != b.shape), None):
            self.holds(text, False, f"shape {wrong[0]} ≠ {wrong[1]}")
        else:
            self.holds(text, *judge(pairs))

    def raises(self, text: str, error: type[Exception], run: Callable[[], object]) -> None:
        try:
            run()
        except error as raised:
            self.holds(text, True, f"{type(raised).__name__}: {raised}")
        else:
            self.holds(text, False, f"no {error.__name__}")

    @property
    def failed(self) -> list[Claim]:
        return [claim for claim in self.made if claim.holds is False]

    def report(self, console: Console) -> int:
        """Print the table and every failure; the exit status."""
        table = Table("claim", "evidence", "")
        section = ""
        for claim in self.made:
            if claim.section != section:
                section = claim.section
                table.add_section()
                table.add_row(f"[bold]{escape(section)}")
            mark = {True: "[green]✓", False: "[red]✗", None: ""}[claim.holds]
            table.add_row(escape(claim.text), escape(claim.evidence), mark)
        console.print(table, highlight=False)
        for claim in self.failed:
            line = f"claim failed: {claim.section}: {claim.text} ({claim.evidence})"
            console.print(line, style="red", soft_wrap=True, highlight=False, markup=False)
        count = sum(claim.holds is not None for claim in self.made)
        console.print(f"{count - len(self.failed)} of {count} claims hold", highlight=False)
        return 1 if self.failed or not count else 0


def paired(actual: Any, expected: Any) -> Pairs:
    """The arrays of two trees, side by side."""
    ours, theirs = (map(np.asarray, jax.tree.leaves(tree)) for tree in (actual, expected))
    return list(zip(ours, theirs, strict=True))


def agreement(pairs: Pairs) -> tuple[int, int]:
    """How many numbers there are, and how many of them are equal."""
    return sum(b.size for _, b in pairs), sum(int(np.sum(a == b)) for a, b in pairs)


def apart(pairs: Pairs) -> float:
    """The largest ‖a − b‖ / ‖b‖, in eps of a's dtype."""
    apart = [np.linalg.norm(a - b.astype(float)) / np.linalg.norm(b) / np.finfo(a.dtype).eps for a, b in pairs]
    return float(np.max(apart))  # NaN stays NaN, and is close to nothing


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small integers in float64, no two alike and none 0."""
    below_zero, above = np.arange(-(np.prod(shape) // 2), 0), np.arange(1, (np.prod(shape) + 1) // 2 + 1)
    return rng.permutation(np.concatenate([below_zero, above])).reshape(shape).astype(np.float64)


def terms(bilinear: Callable[[Any, Any], Any], a: np.ndarray, b: np.ndarray) -> dict[int, dict[tuple[int, int], float]]:
    """The products that every entry of bilinear(a, b) adds up, found by running it on one unit of each at a time."""
    found: dict[int, dict[tuple[int, int], float]] = {}
    for i in np.ndindex(a.shape):
        for j in np.ndindex(b.shape):
            result = np.asarray(bilinear(unit(a.shape, i), unit(b.shape, j)))
            for entry in np.argwhere(result):
                found.setdefault(printed(entry), {})[printed(i), printed(j)] = float(result[tuple(entry)])
    return found


def unit(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape)
    array[index] = 1
    return array


def printed(index: Iterable[int]) -> int:
    """(0, 1) is printed 12."""
    row, column = index
    return 10 * (int(row) + 1) + int(column) + 1


def misprints(equations: Equations, true: Mapping[int, Mapping[tuple[int, int], float]]) -> list[int]:
    """The entries whose printed sum is not the true one."""
    return [entry for entry, pairs in equations.items() if Counter(pairs) != true.get(entry)]


def summed(equations: Equations, a: np.ndarray, b: np.ndarray) -> dict[int, float]:
    """The equations on numbers."""

    def at(array: np.ndarray, entry: int) -> float:
        return float(array[entry // 10 - 1, entry % 10 - 1])

    return {entry: sum(at(a, i) * at(b, j) for i, j in pairs) for entry, pairs in equations.items()}


@dataclass(frozen=True)
class Options:
    """Whose gradients stand trial, and on which numbers."""

    rules: Literal["fast", "rotated", "textbook", "autodiff"] = "fast"
    """Who computes jaxconv's side."""
    seed: int = 0
    """Seed of the numbers."""


def main(prove: Prove, description: str | None) -> int:
    """The command line of a script whose claims need no data."""
    options = tyro.cli(Options, description=description)
    claims = Claims()
    with jax.enable_x64(True):
        prove(claims, options.rules, np.random.default_rng(options.seed))
    return claims.report(Console())
