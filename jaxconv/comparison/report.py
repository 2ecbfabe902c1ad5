"""What a race found: what each gradient costs, and how far it is from float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.gradcheck.report import plain, table

# What decides the cost of a gradient, in the optimised program; library calls are named after what they compute.
OPERATIONS = ("convolution", "dot", "reduce-window", "select-and-scatter", "scatter")

# How wide a report is, how much of it what is measured may take, and how many arguments have a row of their own.
WIDTH = 80
LABEL = 30
SHOWN = 10
Names = tuple[str, ...]  # of one thing, the longest first


@dataclass(frozen=True)
class Agreement:
    """How far one gradient is from float64 at its worst entry.

    Attributes:
      ulps: in units in the last place of the gradient's root mean square.
      bounds: in units of how far rounding may take it.
      errors: of every entry, in bounds; 0 at kinks.
    """

    ulps: float
    bounds: float
    errors: np.ndarray

    @property
    def ok(self) -> bool:
        """Whether no entry errs by more than rounding explains."""
        return self.bounds <= 1

    def __str__(self) -> str:
        return f"{'' if self.ok else 'WRONG '}{self.bounds:.2g}"


@dataclass(frozen=True)
class Contestant:
    """One gradient: what it costs, and how well each argument's agrees. Times in seconds, sizes in bytes.

    A count that the platform does not report is NaN.
    """

    name: str
    compile_seconds: float
    seconds: float
    quartiles: tuple[float, float]
    flops: float
    bytes_accessed: float
    temporary_bytes: float
    residual_bytes: float
    operations: dict[str, int]
    agreement: dict[str, Agreement]

    @property
    def worst(self) -> Agreement:
        """The agreement of the argument that is furthest off."""
        return max(self.agreement.values(), key=lambda a: a.bounds)

    def to_dict(self) -> dict[str, Any]:
        named = {k: v for k, v in vars(self).items() if k not in ("agreement", "quartiles")}
        exact = {path: {"ulps": plain(a.ulps), "bounds": plain(a.bounds)} for path, a in self.agreement.items()}
        return {k: plain(v) for k, v in named.items()} | {"quartiles": list(self.quartiles), "agreement": exact}


@dataclass(frozen=True)
class Comparison:
    """The outcome of a race. `print` it for a table."""

    function: str
    arguments: tuple[str, ...]
    machine: str
    contestants: tuple[Contestant, ...]

    @property
    def ok(self) -> bool:
        """Whether every gradient is right: no entry errs by more than rounding explains."""
        return all(c.worst.ok for c in self.contestants)

    @property
    def order(self) -> list[int]:
        """The arguments by number, the one that any gradient errs most in first."""
        rows = list(zip(*(c.agreement.values() for c in self.contestants), strict=True))
        return sorted(range(len(rows)), key=lambda i: -max(a.bounds for a in rows[i]))

    def __getitem__(self, name: str) -> Contestant:
        for c in self.contestants:
            if c.name == name:
                return c
        raise KeyError(f"no contestant is called {name!r}; there is {', '.join(c.name for c in self.contestants)}.")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; what is not finite becomes a string."""
        return {
            "function": self.function,
            "arguments": list(self.arguments),
            "machine": self.machine,
            "ok": self.ok,
            "contestants": [c.to_dict() for c in self.contestants],
        }

    def __str__(self) -> str:
        wrong = sum(not c.worst.ok for c in self.contestants)
        verdict = f"{wrong} of {len(self.contestants)} gradients WRONG" if wrong else "every gradient is right"
        function = shortened(self.function, WIDTH - len(f"compare(): {verdict}"))
        lines = [f"compare({function}): {verdict}", shortened(f"on {self.machine}", WIDTH)]
        for labels, columns in (self._costs(), self._errors()):
            for block in _blocks(columns):
                space = WIDTH - sum(2 + _width(column) for column in block)
                named = [next((t for t in names if len(t) <= space), shortened(names[-1], space)) for names in labels]
                rows = list(zip(named, *block, strict=True))
                lines += ["", *table(rows[0], rows[1:])]
        return "\n".join(lines)

    def _costs(self) -> tuple[list[Names], list[list[str]]]:
        """What was measured, and a column of it for each contestant."""
        used, reference = [o for o in OPERATIONS if any(c.operations[o] for c in self.contestants)], self.contestants[0]
        labels = ["", "gradient", "worst error in bounds", "in ulps", "run time", "quartiles"]
        labels += [f"over {shortened(reference.name, 20)}'s", "compile time", "FLOPs"]
        labels += ["memory accessed", "temporary memory", "residuals", *used]
        columns = []
        for c in self.contestants:
            column = [shortened(c.name, 22), "right" if c.worst.ok else "WRONG"]
            column += [f"{c.worst.bounds:.2g}", f"{c.worst.ulps:.2g}"]
            column += [_time(c.seconds), " to ".join(map(_time, c.quartiles)), f"{c.seconds / reference.seconds:.2f}"]
            column += [_time(c.compile_seconds), _count(c.flops)]
            column += [_count(n, "B") for n in (c.bytes_accessed, c.temporary_bytes, c.residual_bytes)]
            columns.append([*column, *(str(c.operations[o]) for o in used)])
        return [(label,) for label in labels], columns

    def _errors(self) -> tuple[list[Names], list[list[str]]]:
        """The arguments that any gradient errs most in, the rest in one row, and a column of it for each contestant."""
        shown, rest = self.order[:SHOWN], self.order[SHOWN:]
        paths, columns = list(self.contestants[0].agreement), []
        labels: list[Names] = [("error in bounds",), *((self.arguments[i], paths[i]) for i in shown)]
        for c in self.contestants:
            agreement = list(c.agreement.values())
            columns.append([shortened(c.name, 16), *(str(agreement[i]) for i in shown)])
            if rest:
                columns[-1].append(str(max((agreement[i] for i in rest), key=lambda a: a.bounds)))
        return labels + [(f"{len(rest)} more, at most",)] * bool(rest), columns

    def figure(self, path: str | Path) -> None:
        """Write one PNG: time and memory as bars, and where each gradient errs in the worst argument, by how much.

        The argument is the same for all, the one that any gradient errs most in, and so is the scale: grey and linear
        up to the bound, red and logarithmic beyond.

        Raises:
          ModuleNotFoundError: without matplotlib, which `pip install jaxconv[experiments]` brings.
        """
        from jaxconv.comparison.drawing import draw

        draw(self, path)


def shortened(text: str, width: int) -> str:
    """At most `width` characters: the beginning and, twice as long, the end, which tells names apart."""
    if len(text) <= width:
        return text
    tail = 2 * (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _blocks(columns: Sequence[list[str]]) -> Iterator[list[list[str]]]:
    """As many columns at a time as fit beside what they measure."""
    block: list[list[str]] = []
    for column in columns:
        if block and LABEL + sum(2 + _width(c) for c in [*block, column]) > WIDTH:
            yield block
            block = []
        block.append(column)
    yield block


def _time(s: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if s >= unit:
            return f"{s / unit:.3g} {name}"
    return f"{s / 1e-6:.3g} µs"


def _count(n: float, unit: str = "") -> str:
    if math.isnan(n):
        return "unknown"
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= scale:
            return f"{n / scale:.3g} {prefix}{unit}"
    return f"{n:.0f} {unit}".rstrip()
