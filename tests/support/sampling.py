"""Which cases of a table the default run takes, which has twelve minutes; `-m thorough` runs the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thorough(default: bool) -> Any:
    """The marks of a case that runs by default, or does not."""
    return () if default else pytest.mark.thorough


def chosen(cases: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """Cases as parameters: the chosen ones by default."""
    every = list(cases)
    assert set(default) <= set(every), set(default) - set(every)
    return [pytest.param(case, id=str(case), marks=thorough(case in default)) for case in every]


def sampled(cases: dict[str, Any], every: int = 8) -> list[Any]:
    """The cases of a table as parameters: the first and each `every`-th after it by default."""
    return [pytest.param(case, id=name, marks=thorough(i % every == 0)) for i, (name, case) in enumerate(cases.items())]
