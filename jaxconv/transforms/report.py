"""What `manual` does to a function: what was replaced by what, what was left, and why.

The rows are made of the decisions that `manual` evaluates by (`replacements`), and what computes a
row is asked of the functions that the lowering asks, as `plan` does.
"""

from __future__ import annotations

import sysconfig
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.extend.source_info_util import summarize

from jaxconv.ops.arguments import Rules
from jaxconv.ops.plan import Choice
from jaxconv.rules import is_fast
from jaxconv.transforms.replacements import Replacement, met

# Where packages are installed: Python's own, others and this one.
INSTALLED = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))

WIDTH = 80
# Rows of one reason that are printed, of what is left.
SHOWN = 3

Names = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What became of equations that are alike.

    Attributes:
      equation: the primitive's name.
      operands, results: their types, such as "f32[8,28,28,1]".
      source: the line, and the function it stands in: the user's, where a package's layer is called.
      op: what stands in for the equation; "" if it is left.
      plan: what computes that and its gradients, by name, and why.
      why: why the equation is left; "" if it is replaced.
      inside: the equations that would be replaced, were they not inside this one, by name and number.
      count: how many are alike. An equation of a loop's body is one.
    """

    equation: str
    operands: Names
    results: Names
    source: str
    op: str = ""
    plan: tuple[tuple[str, Choice], ...] = ()
    why: str = ""
    inside: tuple[tuple[str, int], ...] = ()
    count: int = 1

    @property
    def shapes(self) -> str:
        return f"{' '.join(self.operands)} → {' '.join(self.results)}"

    def to_dict(self) -> dict[str, Any]:
        """What there is to say, as JSON takes it."""
        known = asdict(self) | {"operands": list(self.operands), "results": list(self.results)}
        known |= {"plan": {name: choice._asdict() for name, choice in self.plan}, "inside": dict(self.inside)}
        return {name: value for name, value in known.items() if value not in ("", {})}


@dataclass(frozen=True)
class Report:
    """What `manual` does to a function: a table when printed. `manual(f).report` makes it.

    Attributes:
      function: f's name.
      rules, engine, platform: what it is said of.
      replaced, left: the rows, in the program's order.
      warning: what a call of `manual(f)` warns of, such as that nothing is replaced; "" for nothing.
    """

    function: str
    rules: str
    engine: str
    platform: str
    replaced: tuple[Row, ...]
    left: tuple[Row, ...]
    warning: str = ""

    @property
    def counts(self) -> dict[str, Any]:
        """How many equations of which primitive are replaced, and left for which reason."""
        reasons = dict.fromkeys(row.why for row in self.left)
        return {
            "replaced": _counted(self.replaced),
            "left": {why: _counted([row for row in self.left if row.why == why]) for why in reasons},
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        about = {name: getattr(self, name) for name in ("function", "rules", "engine", "platform", "warning")}
        rows = {name: [row.to_dict() for row in getattr(self, name)] for name in ("replaced", "left")}
        return about | rows | {"counts": self.counts}

    def __str__(self) -> str:
        replaced, left = (sum(row.count for row in rows) for rows in (self.replaced, self.left))
        lines = _wrapped(
            f"manual({self.function}): equations replaced {replaced}, left {left}; rules {self.rules}, "
            f"engine {self.engine}, on {self.platform}"
        )
        lines += _wrapped(self.warning) if self.warning else []
        for row in self.replaced:
            width = max(len(choice.formulation) for _, choice in row.plan)
            lines += ["", *_head(row), *_wrapped(_listed(f"by {row.op}", row.source), 4)]
            for name, choice in row.plan:
                lead = f"    {name:<11}  {choice.formulation:<{width}}  "
                lines += _wrapped(choice.why + f"; holds {choice.holds}" * (choice.holds != "nothing"), lead=lead)
        for why in self.counts["left"]:
            rows = [row for row in self.left if row.why == why]
            lines += ["", *_wrapped(f"left: {why}")]
            for row in rows[:SHOWN]:
                inside = [f"{n} × {name} in it" for name, n in row.inside]
                lines += [*_head(row), *_wrapped(_listed(row.source, *inside), 4)]
            more = _counted(rows[SHOWN:])
            lines += _wrapped(_listed(*(f"{n} × {name}" for name, n in more.items()), "elsewhere"), 2) if more else []
        return "\n".join(lines)


def report(name: str, jaxpr: Jaxpr, rules: Rules, engine: str, warning: str) -> Report:
    """What becomes of a program."""
    platform = jax.default_backend()
    merged: dict[Row, int] = {}
    for eqn, decision, inside in met(jaxpr):
        if isinstance(decision, Replacement):
            row = _row(eqn, op=decision.op, plan=tuple(decision.plan(rules, engine, platform).items()))
        else:
            row = _row(eqn, why=decision, inside=inside)
        merged[row] = merged.get(row, 0) + 1
    rows = [replace(row, count=count) for row, count in merged.items()]
    said = rules if isinstance(rules, str) else "tuned" if is_fast(rules) else "own"
    replaced, left = (tuple(row for row in rows if bool(row.op) == there) for there in (True, False))
    return Report(name, said, engine, platform, replaced, left, warning)


def _row(eqn: JaxprEqn, **said: Any) -> Row:
    operands, results = (tuple(v.aval.str_short(short_dtypes=True) for v in vs) for vs in (eqn.invars, eqn.outvars))
    return Row(eqn.primitive.name, operands, results, _source(eqn), **said)


def _source(eqn: JaxprEqn) -> str:
    """The line of a model that calls a layer rather than that of the layer, where that is an installed package's."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    for frame in frames:
        if frame.line_num and not frame.file_name.startswith(INSTALLED):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return summarize(eqn.source_info)


def _counted(rows: Sequence[Row]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row.equation] += row.count
    return dict(counted)


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _head(row: Row) -> list[str]:
    return _wrapped(row.shapes, lead=f"  {row.count} × {row.equation}  ", hang=6)


def _wrapped(text: str, indent: int = 0, lead: str = "", hang: int | None = None) -> list[str]:
    """Lines of at most WIDTH characters, after `lead`; a word that is longer keeps its end, which tells files apart."""
    lead = lead or " " * indent
    hanging = " " * (len(lead) if hang is None else hang)
    room = WIDTH - max(len(lead), len(hanging))
    words = [word if len(word) <= room else f"…{word[1 - room :]}" for word in text.split(" ")]
    together = " ".join(words).replace(" × ", "\u00a0×\u00a0")  # which are not parted
    wrapped = textwrap.wrap(
        together, WIDTH, initial_indent=lead, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace("\u00a0", " ") for line in wrapped]
