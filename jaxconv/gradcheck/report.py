"""What a check found: one line of evidence each, and for every wrong one the entry that shows it best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
      ulps: the error in units in the last place of `expected`, in the gradient's own dtype; NaN where rounding may make
        of `expected` a zero or of a zero `expected`, which has no last place.
      hint: what mistake would explain the whole array, if one does; at a kink, what is around it.
      kink: whether it is at a kink, where no one value is the right one.
      argument: the path of the argument whose gradient it is an entry of; "" if it is of several.
      wrong: how many entries of that gradient are wrong (at a kink: differ), as far as this evidence looked.
      size: how many entries it has.
      place: where they are, such as "everywhere" or "the last of 5 along axis 1"; "" if only some were looked at.
    """

    where: str
    value: float
    expected: float
    bound: float
    ulps: float
    hint: str = ""
    kink: bool = False
    argument: str = ""
    wrong: int = 1
    size: int = 1
    place: str = ""

    @property
    def ratio(self) -> float:
        """The error in units of the bound."""
        return in_bounds(abs(self.value - self.expected), self.bound)

    def __str__(self) -> str:
        if self.kink:
            return f"{self.where} is {self.value:.9g}, and by other means {self.expected:.9g}: a kink. {self.hint}"
        if not math.isfinite(self.value):
            return f"{self.where} is {self.value}, but should be {self.expected:.9g}."
        text = f"{self.where} is {self.value:.9g}, but should be {self.expected + 0.0:.9g}"
        if self.expected == 0 and self.bound < _NOTHING * abs(self.value):
            text += " exactly."
        else:
            ulps = "" if math.isnan(self.ulps) else f" ({self.ulps:.3g} ulps)"
            text += f" ± {self.bound:.2g}: off by {self.ratio:.3g} bounds{ulps}."
        return f"{text} {self.hint}" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        known = {name: plain(value) for name, value in vars(self).items()}
        return known | {"ratio": plain(self.ratio), "ulps": None if math.isnan(self.ulps) else plain(self.ulps)}


# The kinds that look at every entry of every argument.
_ENTRYWISE = ("automatic", "linearity", "vmap", "jit")
# More right arguments than this share a line.
_LISTED = 8
# A bound so much smaller than the error says that nothing rounds there.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence and its verdict.

    Attributes:
      name: which kind.
      verdict: "ok", "wrong", "kink" (wrong only where one-sided derivatives disagree), "undecided" (what was compared
        cannot tell a right gradient from a wrong one) or "skipped".
      about: what was compared, or why not.
      ratio: the worst error in units of its bound; at most 1 when all is well; NaN where nothing is measured.
      findings: the worst entry of each wrong argument, or of each argument at a kink.
      arguments: the paths of arguments that are wrong as a whole, in shape or dtype, or that it cannot decide on.
    """

    name: str
    verdict: str
    about: str
    ratio: float = math.nan
    findings: tuple[Finding, ...] = ()
    arguments: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "about": self.about,
            "ratio": plain(self.ratio),
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class Argument:
    """The verdict on the gradient in one argument.

    Attributes:
      path: what it is called, such as `params['w']`.
      verdict: "ok", "wrong", "kink" (differs where any convention has a point) or "undecided" (no evidence could tell,
        or none looked at its entries).
      wrong: how many entries are wrong, or differ at a kink, by the evidence that found most.
      size: of how many.
      where: where these are: "everywhere", "the last of 5 along axis 1", "every 2nd from index 0 of 8 along axis 2",
        …; "" if none is, or if only some entries were looked at.
      evidence: the kinds that found it wrong.
    """

    path: str
    verdict: str
    wrong: int
    size: int
    where: str = ""
    evidence: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"evidence": list(self.evidence)}


@dataclass(frozen=True)
class Report:
    """The verdict on a gradient. `print` it for a table.

    Attributes:
      function: the name of what was checked.
      arguments: its floating arguments, each as `path dtype[shape]`.
      evidence: one entry for each kind.
      resolution: how small an error could have been seen: by which part each argument's gradient could be off as a
        whole before it is called wrong (0.01 is one per cent); 0 where the gradient is 0, and any other would be seen.
      untried: what of the function was not put to the test, a sentence each.
      sizes: how many entries each argument has, by its path.
    """

    function: str
    arguments: tuple[str, ...]
    evidence: tuple[Evidence, ...] = field(default=())
    resolution: Mapping[str, float] = field(default_factory=dict)
    untried: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ "right", "wrong", or "undecided" where a wrong gradient would have passed as well.

        A kink is not wrong: there, every convention has a point.
        """
        verdicts = {e.verdict for e in self.evidence}
        if "wrong" in verdicts:
            return "wrong"
        return "undecided" if "undecided" in verdicts or not verdicts & {"ok", "kink"} else "right"

    @property
    def ok(self) -> bool:
        """Whether the gradient is right: something was compared, and nothing is wrong or undecided."""
        return self.verdict == "right"

    @property
    def by_argument(self) -> dict[str, Argument]:
        """Each argument's own verdict, by its path."""
        return {path: self._argument(path, size) for path, size in self.sizes.items()}

    def _argument(self, path: str, size: int) -> Argument:
        of = [(e, f) for e in self.evidence for f in e.findings if f.argument == path]
        wrong = [(e.name, f) for e, f in of if e.verdict == "wrong" and not f.kink]
        kinks = [(e.name, f) for e, f in of if f.kink]
        whole = [e.name for e in self.evidence if e.verdict == "wrong" and path in e.arguments]
        if wrong or whole:
            located = [f for _, f in wrong if f.place] or [f for _, f in (*kinks, *wrong)]
            found = max(located, key=lambda f: f.wrong, default=None)
            count, where = (found.wrong, found.place) if found else (size, "everywhere")
            return Argument(path, "wrong", count, size, where, tuple(dict.fromkeys([*whole, *(n for n, _ in wrong)])))
        if kinks:
            found = max((f for _, f in kinks), key=lambda f: f.wrong)
            return Argument(path, "kink", found.wrong, size, found.place)
        hidden = any(e.verdict == "undecided" and path in e.arguments for e in self.evidence)
        seen = any(e.name in _ENTRYWISE and e.verdict != "skipped" for e in self.evidence)
        return Argument(path, "ok" if seen and not hidden else "undecided", 0, size)

    def with_evidence(self, *more: Evidence) -> Report:
        return replace(self, evidence=(*self.evidence, *more))

    def __getitem__(self, name: str) -> Evidence:
        """The evidence of that name."""
        for e in self.evidence:
            if e.name == name:
                return e
        raise KeyError(f"no evidence is called {name!r}; there is {', '.join(e.name for e in self.evidence)}.")

    def raise_if_failed(self, *, undecided: bool = True) -> None:
        """Raise AssertionError with the whole report unless `ok`; with `undecided=False`, only if it is wrong."""
        if self.verdict == "wrong" or (undecided and not self.ok):
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; what is not finite becomes a string."""
        return {
            "function": self.function,
            "ok": self.ok,
            "verdict": self.verdict,
            "arguments": list(self.arguments),
            "by_argument": [a.to_dict() for a in self.by_argument.values()],
            "resolution": {path: plain(smallest) for path, smallest in self.resolution.items()},
            "untried": list(self.untried),
            "evidence": [e.to_dict() for e in self.evidence],
        }

    def __str__(self) -> str:
        said = {"right": "right", "wrong": "WRONG", "undecided": "UNDECIDED"}
        lines = [f"check({self.function}): the gradient is {said[self.verdict]}.    {', '.join(self.arguments)}"]
        rows = [
            (e.name, e.verdict.upper() if e.verdict in ("wrong", "undecided") else e.verdict, _number(e.ratio), e.about)
            for e in self.evidence
        ]
        lines += table(("evidence", "verdict", "error/bound", "what was compared"), rows)
        if any(a.verdict != "ok" for a in self.by_argument.values()):
            lines += self._arguments()
        for e in self.evidence:
            lines += [f"{e.name}: {finding}" for finding in e.findings]
        if seen := [f"{path} {_percent(smallest)}" for path, smallest in self.resolution.items() if smallest]:
            lines.append(f"An error of the whole would have been seen from: {', '.join(seen)}.")
        lines += [f"Not tried: {sentence}" for sentence in self.untried]
        return "\n".join(lines)

    def _arguments(self) -> list[str]:
        """A line for each argument, the wrong ones first; those that are right together if they are many."""
        order = ("wrong", "kink", "undecided", "ok")
        listed = sorted(self.by_argument.values(), key=lambda a: order.index(a.verdict))
        right = [a for a in listed if a.verdict == "ok"]
        rows = [
            (a.path, a.verdict.upper() if a.verdict in ("wrong", "undecided") else a.verdict, _part(a), a.where)
            for a in (listed if len(right) <= _LISTED else listed[: -len(right)])
        ]
        if len(right) > _LISTED:
            rows.append((f"{len(right)} others", "ok", "", ""))
        return table(("argument", "verdict", "wrong entries", "where"), rows)


def _part(a: Argument) -> str:
    return f"{a.wrong} of {a.size}" if a.verdict in ("wrong", "kink") else ""


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


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part < 1 else "no error that could be seen"


def plain(x: Any) -> Any:
    """A value as JSON takes it."""
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
