"""All judges on all cases, and how often each is right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

from experiments.verdicts.judges import JUDGES, setting
from experiments.verdicts.right import RIGHT
from experiments.verdicts.wrong import WRONG

# What a judge does with a gradient that it accepts, or not, or cannot judge.
WORDS = {True: "accepted", False: "rejected", None: "no verdict"}


class Verdict(NamedTuple):
    """What one judge says of one case."""

    case: str
    dtype: str
    right: bool
    judge: str
    accepted: bool | None
    seconds: float


def verdicts(task: tuple[str, str, bool]) -> list[Verdict]:
    """All judges on one case; None where a judge could not say."""
    name, dtype, right = task
    case = next(c for c in (RIGHT if right else WRONG) if c.name == name)
    found = []
    with setting(dtype):
        for judge, ask in JUDGES.items():
            start = time.perf_counter()
            try:
                accepted = ask(case, dtype)
            except Exception as error:
                print(f"{judge} on {name}, {dtype}: {type(error).__name__}: {str(error)[:200]}")
                accepted = None
            found.append(Verdict(name, dtype, right, judge, accepted, round(time.perf_counter() - start, 3)))
    jax.clear_caches()
    return found


class Judged(Protocol):
    """What a judge said of a gradient: of a single function, or of a network."""

    @property
    def judge(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def right(self) -> bool: ...
    @property
    def accepted(self) -> bool | None: ...


def confusion(found: Sequence[Judged], wide: Sequence[str] = ("float32", "float64")) -> list[dict[str, Any]]:
    """For each judge and class of dtypes: how many wrong gradients were rejected, and right ones accepted."""
    rows = []
    for judge in dict.fromkeys(v.judge for v in found):
        for name, dtypes in ((", ".join(wide), wide), ("16 bits", ("bfloat16", "float16"))):
            own = [v for v in found if v.judge == judge and v.dtype in dtypes]
            wrong, right = [v for v in own if not v.right], [v for v in own if v.right]
            rows.append(
                {
                    "judge": judge,
                    "dtypes": name,
                    "wrong": len(wrong),
                    "wrong rejected": sum(v.accepted is False for v in wrong),
                    "right": len(right),
                    "right accepted": sum(v.accepted is True for v in right),
                    "no verdict": sum(v.accepted is None for v in own),
                }
            )
    return rows


def mistakes(found: list[Verdict]) -> dict[str, list[str]]:
    """For each judge the right gradients that it rejected, the wrong ones it accepted, and those it had no word on."""
    return {
        judge: [
            f"{'right' if v.right else 'wrong'}, {WORDS[v.accepted]}: {v.case}, {v.dtype}"
            for v in found
            if v.judge == judge and v.accepted is not v.right
        ]
        for judge in JUDGES
    }


def seconds(found: list[Verdict]) -> dict[str, float]:
    """The median time of a verdict, compilation included."""
    return {judge: round(statistics.median(v.seconds for v in found if v.judge == judge), 2) for judge in JUDGES}
