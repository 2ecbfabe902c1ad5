"""What a check found: one line of evidence each, and for every wrong one the entry that shows it best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One number that is not what it should be.

    Attributes:
      where: the argument's path and the entry, such as `w[0, 2, 1, 3]`, or a direction.
      value: what f's gradient says.
      expected: what it should say.
      bound: how far rounding may take the one from the other.
      ulps: the error in units in the last place of `expected`, in the gradient's own dtype.
      hint: what mistake would explain the whole array, if one does; at a kink, what is around it.
      kink: whether it is at a kink, where no one value is the right one.
    """

    where: str
    value: float
    expected: float
    bound: float
    ulps: float
    hint: str = ""
    kink: bool = False

    @property
    def ratio(self) -> float:
        """The error in units of the bound."""
        return in_bounds(abs(self.value - self.expected), self.bound)

    def __str__(self) -> str:
        if self.kink:
            return f"{self.where} is {self.value:.9g}, and by other means {self.expected:.9g}: a kink. {self.hint}"
        if not math.isfinite(self.value):
            return f"{self.where} is {self.value}, but should be {self.expected:.9g}."
        text = (
            f"{self.where} is {self.value:.9g}, but should be {self.expected:.9g} ± {self.bound:.2g}: "
            f"off by {self.ratio:.3g} bounds ({self.ulps:.3g} ulps)."
        )
        return f"{text} {self.hint}" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        names = ("where", "value", "expected", "bound", "ulps", "hint", "kink")
        return {name: plain(getattr(self, name)) for name in names} | {"ratio": plain(self.ratio)}


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence and its verdict.

    Attributes:
      name: which kind.
      verdict: "ok", "wrong", "kink" (wrong only where one-sided derivatives disagree) or "skipped".
      about: what was compared, or why not.
      ratio: the worst error in units of its bound; at most 1 when all is well; NaN where nothing is measured.
      findings: the worst entry of each wrong argument, or of each argument at a kink.
    """

    name: str
    verdict: str
    about: str
    ratio: float = math.nan
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "about": self.about,
            "ratio": plain(self.ratio),
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class Report:
    """The verdict on a gradient. `print` it for a table.

    Attributes:
      function: the name of what was checked.
      arguments: its floating arguments, each as `path dtype[shape]`.
      evidence: one entry for each kind.
    """

    function: str
    arguments: tuple[str, ...]
    evidence: tuple[Evidence, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. A kink is not wrong: there, every convention has a point."""
        return all(e.verdict != "wrong" for e in self.evidence)

    def with_evidence(self, *more: Evidence) -> Report:
        return replace(self, evidence=(*self.evidence, *more))

    def __getitem__(self, name: str) -> Evidence:
        """The evidence of that name."""
        for e in self.evidence:
            if e.name == name:
                return e
        raise KeyError(f"no evidence is called {name!r}; there is {', '.join(e.name for e in self.evidence)}.")

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the whole report unless `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; what is not finite becomes a string."""
        return {
            "function": self.function,
            "ok": self.ok,
            "arguments": list(self.arguments),
            "evidence": [e.to_dict() for e in self.evidence],
        }

    def __str__(self) -> str:
        verdict = "the gradient is right" if self.ok else "the gradient is WRONG"
        lines = [f"check({self.function}): {verdict}.    {', '.join(self.arguments)}"]
        rows = [
            (e.name, "WRONG" if e.verdict == "wrong" else e.verdict, _number(e.ratio), e.about) for e in self.evidence
        ]
        lines += table(("evidence", "verdict", "error/bound", "what was compared"), rows)
        for e in self.evidence:
            lines += [f"{e.name}: {finding}" for finding in e.findings]
        return "\n".join(lines)


def in_bounds(error: float, bound: float) -> float:
    """An error in units of its bound; ∞ where there should be none, or where it is no number."""
    if error == 0:
        return 0.0
    return math.inf if math.isnan(error) or bound == 0 else error / bound


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned, the last one left as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2g}"


def plain(x: Any) -> Any:
    """A value as JSON takes it."""
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
