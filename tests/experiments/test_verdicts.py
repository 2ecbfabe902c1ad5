"""The bench of `check`: every wrong gradient is rejected, no right one is, whatever the dtype.

By default every fourth wrong gradient is judged, in float32, and every seventh right one; with `-m thorough` the rest.
The costliest kinds of evidence are left out where others decide. `python -m experiments.verdicts` leaves nothing out,
and lets two other judges have their say.
"""

from __future__ import annotations

import itertools
from collections import Counter

import jax
import pytest

import jaxconv
from experiments.verdicts.bench import Verdict, confusion
from experiments.verdicts.case import Case
from experiments.verdicts.judges import JUDGES, setting
from experiments.verdicts.right import RIGHT
from experiments.verdicts.wrong import WRONG
from tests.support.sampling import thorough

COSTLY = ("adjoint", "zeros", "vmap", "jit")
# Dealt in turn, so that each dtype and each rule set gets its share of the full examination, and of the default run.
SOUND = list(zip(RIGHT, itertools.cycle(((), COSTLY, COSTLY, COSTLY, COSTLY)), strict=False))


@pytest.fixture(autouse=True)
def _as_users_are():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.name}-{dtype}", marks=thorough(dtype == "float32" and i % 4 == 0))
        for i, case in enumerate(WRONG)
        for dtype in case.dtypes
    ],
)
def test_a_wrong_gradient_is_rejected(case: Case, dtype: str) -> None:
    with setting(dtype):
        assert jaxconv.check(case.function, *case.arguments(dtype), skip=COSTLY).verdict == "wrong"


@pytest.mark.parametrize(
    ("case", "skip"),
    [pytest.param(case, skip, id=case.name, marks=thorough(i % 7 == 0)) for i, (case, skip) in enumerate(SOUND)],
)
def test_a_right_gradient_is_accepted(case: Case, skip: tuple[str, ...]) -> None:
    (dtype,) = case.dtypes
    with setting(dtype):
        jaxconv.check(case.function, *case.arguments(dtype), skip=skip).raise_if_failed()


def test_the_bench_is_as_large_as_it_says() -> None:
    names = [case.name for case in (*WRONG, *RIGHT)]
    assert len(set(names)) == len(names)
    assert len(WRONG) >= 150 and len(RIGHT) >= 290
    assert Counter(dtype for case in RIGHT for dtype in case.dtypes).keys() == {
        "float64", "float32", "bfloat16", "float16",
    }  # fmt: skip


def test_the_other_judges_judge() -> None:
    """Each accepts what is right and rejects a wrong sign; the confusion table counts them."""
    right = next(case for case in RIGHT if case.name.startswith("jax.nn.silu"))
    wrong = next(case for case in WRONG if case.name == "conv: the sign of dx")
    found = []
    for judge, ask in JUDGES.items():
        for case, sound in ((right, True), (wrong, False)):
            with setting("float32"):
                accepted = ask(case, "float32")
            assert accepted is sound, judge
            found.append(Verdict(case.name, "float32", sound, judge, accepted, 0.0))
    rows = [row for row in confusion(found) if row["dtypes"] == "float32, float64"]
    assert all(r["wrong rejected"] == r["wrong"] == r["right accepted"] == r["right"] == 1 for r in rows)
    assert [row["judge"] for row in rows] == list(JUDGES)
