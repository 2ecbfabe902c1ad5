"""The bench of `check` on whole networks: none without a fault is called wrong, every wrong rule inside one is found.

A few small ones of each family by default, more with `-m thorough`; `python -m experiments.verdicts --networks` judges
all of them, from many seeds.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from experiments.verdicts.judges import setting
from experiments.verdicts.networks import table
from experiments.verdicts.networks.network import Network, breaking, sound
from experiments.verdicts.networks.right import RIGHT
from experiments.verdicts.networks.trial import Gain, Outcome, examined, gain, trial
from experiments.verdicts.networks.wrong import WRONG
from jaxconv.gradcheck import Evidence, Report
from tests.support.sampling import thorough

# One dtype each.
SOUND = {
    "mlp 8-4, batch 1, relu, cross-entropy": "float16",
    "mlp 8-16-16-4, batch 5, tanh, mse": "bfloat16",
    "mlp with dead units": "float32",
    "mlp with tied weights": "float16",
    "cnn with batch norm": "bfloat16",
    "embedding, most rows unread": "float16",
    "model article, fast, fresh": "float32",
    "nnx MLP": "float16",
}
BROKEN = {
    "mlp 8-16-16-4, batch 5, tanh, mse: dense 1, dw transposed": "float16",
    "mlp with dead units: relu 0, slope 1.002": "float32",
    "mlp vmapped over examples: relu 0, passes all": "bfloat16",
    "cnn all convolutional: conv 2, one tap of dw 2 % too large": "float32",
    "attention causal, four heads, batch 4, length 9, 16 features: softmax, times 1.002": "float32",
    "rnn vanilla, last, batch 3, length 5, 4-16: state, dx is missing": "bfloat16",
    "embedding, most rows unread: embedding, rows one off": "float32",
    "model article, rotated: 0/w, one row 2 % too large": "float32",
}


# Finite differences and the adjoint identity cost most; here the truth is JAX's own, and every fourth network gets all.
COSTLY = ("adjoint", "differences")


def cases(networks: list[Network], quick: dict[str, str], step: int) -> list[Any]:
    """The quick ones, and with `-m thorough` every `step`-th of the others."""
    every = [(network, dtype) for network in networks for dtype in network.dtypes]
    chosen = [(n, d) for n, d in every if quick.get(n.name) == d]
    assert len(chosen) == len(quick), quick.keys() - {n.name for n, _ in chosen}
    more = [case for case in every if case not in chosen][::step]
    return [pytest.param(n, d, id=f"{n.name} {d}", marks=thorough((n, d) in chosen)) for n, d in (*chosen, *more)]


@pytest.fixture(autouse=True)
def _as_users_are():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.clear_caches()


@pytest.mark.parametrize(("network", "dtype"), cases(RIGHT, SOUND, 12))
def test_a_right_network_is_accepted(network: Network, dtype: str) -> None:
    with setting(dtype):
        f, arguments = network.build(0, dtype)
        skip = COSTLY if zlib.crc32(network.name.encode()) % 4 else ()
        report = jaxconv.check(f, *arguments, skip=skip)
    # A deep network's gradient may have no digit in 16 bits: then nothing can be said of it.
    report.raise_if_failed(undecided=dtype == "float32")


@pytest.mark.parametrize(("network", "dtype"), cases(WRONG, BROKEN, 15))
def test_a_wrong_rule_inside_is_found(network: Network, dtype: str) -> None:
    with setting(dtype):
        f, arguments = network.build(0, dtype)
        report = jaxconv.check(f, *arguments, skip=(*COSTLY, "zeros", "vmap", "jit", "determinism"))
    assert report.verdict == "wrong"


def test_the_bench_is_as_large_as_it_says() -> None:
    names = [network.name for network in (*RIGHT, *WRONG)]
    assert len(set(names)) == len(names)
    assert sum(len(network.dtypes) for network in RIGHT) >= 300
    assert len(WRONG) >= 150
    assert all(network.op is sound for network in RIGHT) and all(network.op is not sound for network in WRONG)


def leaves(network: Network, seed: int, dtype: str) -> list[np.ndarray]:
    with setting(dtype):
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(network.build(seed, dtype)[1])]


@pytest.mark.parametrize("name", ["mlp with tied weights", "model article, fast, fresh", "equinox MLP", "haiku MLP"])
def test_numbers_depend_on_the_seed_and_not_on_the_dtype(name: str) -> None:
    network = next(n for n in RIGHT if n.name == name)
    again, other, half = leaves(network, 3, "float32"), leaves(network, 4, "float32"), leaves(network, 3, "bfloat16")
    for a, b, c, d in zip(leaves(network, 3, "float32"), again, other, half, strict=True):
        assert np.array_equal(a, b) and (not np.array_equal(a, c) or not a.any())
        np.testing.assert_allclose(a, d, rtol=2**-8)


def test_a_fault_is_as_large_as_it_says() -> None:
    """A factor of 1.002 at one kernel is 0.002 of its gradient, and 16 bits drown it; a dead network has no fault."""
    right = next(n for n in RIGHT if n.name == "mlp 64-10, batch 64, relu, cross-entropy")
    wrong = next(n for n in WRONG if n.name == f"{right.name}: dense 0, dw times 1.002")
    found = gain(wrong, "float32", 0)
    assert found is not None and found.where == "[0][0][0]"
    np.testing.assert_allclose(found.fault, 0.002, rtol=1e-6)
    assert found.rounding < 1e-5 and found.excess > 1000 and found.entries > 0.9
    assert gain(wrong, "bfloat16", 0) is None
    assert gain(right._replace(op=breaking("nowhere", lambda function: lambda a, g, true: true)), "float32", 0) is None
    assert trial(wrong, "bfloat16", 0, False, ("jaxconv.check",)) == []


def test_the_table_counts_mistakes_and_says_how_near_they_were() -> None:
    judge, size = "jaxconv.check", Gain("[0]", 0.5, 0.01, 20.0, 1.0)
    found = [
        Outcome("a", "float32", 0, True, judge, True, 1.0, {"vmap": ("ok", 0.5)}, "", None),
        Outcome("b", "float32", 0, True, judge, False, 1.0, {"vmap": ("wrong", 2.0)}, "vmap: x", None),
        Outcome("c", "float16", 1, False, judge, False, 3.0, {"vmap": ("wrong", 7.0), "jit": ("ok", 0.1)}, "", size),
        Outcome("d", "float16", 1, False, judge, True, 3.0, {"vmap": ("ok", 0.9)}, "automatic: y", size),
        Outcome("e", "float32", 0, True, judge, None, 3.0, {}, "TypeError: no", None),
    ]
    report = table.summary(found)
    assert [(r["right"], r["right accepted"], r["wrong"], r["wrong rejected"]) for r in report["confusion"]] == [
        (3, 1, 0, 0), (0, 0, 2, 1),
    ]  # fmt: skip
    assert report["margins"]["right, at most"] == {"vmap": [2.0, "b, float32, seed 0"]}
    assert report["margins"]["wrong, at least"] == [0.9, "d, float16, seed 1"]
    assert report["seeds"] == [
        {"network": "a", "dtype": "float32", "right": True, "accepted": [0]},
        {"network": "b", "dtype": "float32", "right": True, "rejected": [0]},
        {"network": "e", "dtype": "float32", "right": True, "no verdict": [0]},
        {"network": "c", "dtype": "float16", "right": False, "rejected": [1]},
        {"network": "d", "dtype": "float16", "right": False, "accepted": [1]},
    ]
    assert report["mistakes"][judge] == [
        "right, no verdict: e, float32, seed 0: TypeError: no",
        "right, rejected: b, float32, seed 0: vmap: x",
        "wrong, accepted: d, float16, seed 1 (fault 0.5, 20 × rounding): automatic: y",
    ]


def test_a_report_is_right_wrong_or_neither() -> None:
    def judged(*verdicts: str) -> Any:
        return examined(Report("f", (), tuple(Evidence(v, v, "") for v in verdicts)))[0]

    assert judged("ok", "kink") is True
    assert judged("ok", "wrong") is False and judged("undecided", "wrong") is False
    assert judged("ok", "undecided") is None and judged("skipped") is None


def test_what_is_written_is_json() -> None:
    outcome = Outcome(
        "a", "float32", 0, True, "j", True, 1.0, {"vmap": ("ok", math.nan)}, "", Gain("", 0.5, 0, math.inf, 1)
    )
    written = table.plain(outcome._asdict())
    assert written["kinds"] == {"vmap": ["ok", "nan"]} and written["gain"]["excess"] == "inf"
    assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_tasks_are_filtered_by_name_and_dtype() -> None:
    assert [t[:4] for t in table.tasks("linen LSTM float16", [0, 1], [True], ())] == [
        ("linen LSTM", "float16", 0, True), ("linen LSTM", "float16", 1, True),
    ]  # fmt: skip
    assert table.tasks("no such network", [0], [True, False], ()) == []


def test_a_run_goes_on_where_its_log_ends(tmp_path: Path) -> None:
    log, judge = tmp_path / "log.jsonl", "jaxconv.check"
    gain = Gain("w", 0.5, 0.0, math.inf, 1.0)
    done = [
        Outcome(
            "a network", "float32", 0, True, judge, True, 1.0, {"vmap": ("ok", 0.5), "jit": ("ok", math.inf)}, "", None
        ),
        Outcome("a network: broken", "float32", 3, False, judge, None, 2.0, {}, "fails", gain),
    ]
    log.write_text("".join(json.dumps(table.plain(o._asdict())) + "\n" for o in done))
    todo = [(o.name, o.dtype, o.seed, o.right, (judge,)) for o in done]
    assert [o for found in table.outcomes(todo, 1, log) for o in found] == done
    assert len(log.read_text().splitlines()) == 2, "nothing was tried again"
