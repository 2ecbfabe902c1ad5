"""What a race found: what each gradient costs, and how far it is from float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.gradcheck.report import plain, table

# What decides the cost of a gradient, in the optimised program; library calls are named after what they compute.
OPERATIONS = ("convolution", "dot", "reduce-window", "select-and-scatter", "scatter")


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
        return all(c.worst.bounds <= 1 for c in self.contestants)

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
        first = self.contestants[0]
        head = ("gradient", "time", "quartiles", "ratio", "compile", "FLOPs", "accessed", "temporary", "residuals")
        rows = []
        for c in self.contestants:
            low, high = c.quartiles
            rows.append(
                (
                    c.name,
                    _time(c.seconds),
                    f"{_time(low)} to {_time(high)}",
                    f"{c.seconds / first.seconds:.2f}",
                    _time(c.compile_seconds),
                    _count(c.flops),
                    *(_count(n, "B") for n in (c.bytes_accessed, c.temporary_bytes, c.residual_bytes)),
                )
            )
        lines = [f"compare({self.function}) on {self.machine}.    {', '.join(self.arguments)}", *table(head, rows), ""]
        used = [o for o in OPERATIONS if any(c.operations[o] for c in self.contestants)]
        lines += table(
            ("gradient", *used, *(f"error in {path}" for path in first.agreement)),
            [
                (
                    c.name,
                    *(str(c.operations[o]) for o in used),
                    *(f"{a.ulps:.2g} ulps, {a.bounds:.2g} bounds" for a in c.agreement.values()),
                )
                for c in self.contestants
            ],
        )
        return "\n".join(lines)

    def figure(self, path: str | Path) -> None:
        """Write one PNG: time and memory as bars, and where the worst argument of each gradient errs by how much.

        Raises:
          ModuleNotFoundError: without matplotlib, which `pip install jaxconv[experiments]` brings.
        """
        from jaxconv.comparison.drawing import draw

        draw(self, path)


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
