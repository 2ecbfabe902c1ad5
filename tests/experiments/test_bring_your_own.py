"""A Flax user's script, with `manual` and without it: the same training, and a clear refusal of what cannot run."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from experiments import bring_your_own
from experiments.bring_your_own import Config, Training, run, summarised
from experiments.config import UsageError
from tests.support.sampling import chosen

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("engine", chosen(["auto", "xla"], ["auto"]))
def test_both_trainings_are_the_same(engine: str) -> None:
    console = Console(record=True, width=200)
    summary = run(Config(epochs=2, engine=engine), console)
    assert summary["steps"] == 2 * (1438 // 128)
    assert summary["apart_at_first"] <= summary["apart"] < 1e-4
    assert summary["accuracy"]["with manual"] == pytest.approx(summary["accuracy"]["without manual"], abs=3 / 359)
    assert summary["accuracy"]["with manual"] > 0.5  # 10 classes
    printed = console.export_text()
    assert "epoch  2   with manual" in printed and "times faster with manual" in printed


def test_what_is_measured_of_two_trainings() -> None:
    """The first epoch compiles, and does not count."""
    trainings = {
        "without manual": Training(None, lambda: None, [3.0, 2.0, 1.0, 0.5], [9.0, 2.0]),
        "with manual": Training(None, lambda: None, [3.0, 2.25, 1.0, 1.0], [5.0, 1.0]),
    }
    summary = summarised(trainings, 2, {"without manual": 0.9, "with manual": 0.8})
    assert summary["faster"] == 2.0 and summary["seconds"] == {"without manual": 2.0, "with manual": 1.0}
    assert (summary["steps"], summary["apart"], summary["apart_at_first"]) == (4, 0.5, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, but 0 < 1"),
        ({"batch_size": 2000}, "1 <= batch size <= training examples, but is 2000 for 1438 examples of digits"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive and finite, but is 0.0"),
        ({"seed": -1}, "--seed must be at least 0, but -1 < 0"),
    ],
)
def test_a_run_that_cannot_start_says_why(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(dataclasses.replace(Config(), **changes), Console(quiet=True))


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bring_your_own", "--epochs", "0"])
    assert bring_your_own.main() == 2
    assert "--epochs must be at least 1" in capsys.readouterr().out
