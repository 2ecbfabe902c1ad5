"""The rows of whole trainings: what a call is, when one ends, and who has one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

from experiments import data
from experiments.benchmark import __main__ as command
from experiments.benchmark import rows, trainings
from experiments.benchmark.race import Budget, Contestant
from experiments.benchmark.rows import Row, Setting, measure, training_row
from experiments.benchmark.trainings import TRAININGS, Training, reached
from experiments.config import Config, UsageError

pytestmark = pytest.mark.usefixtures("as_a_user")

DIGITS = data.load("digits")
QUICK = Training("digits", Config(data="digits", model="article", learning_rate=0.02, epochs=2), rounds=2)


def test_the_table_has_an_epoch_and_the_way_to_a_goal() -> None:
    assert [row.name for row in rows.TABLES["trainings"].of(1)] == ["MNIST epoch", "MNIST to 99.0 %"]
    assert [training.enlarged(8).config.batch_size for training in TRAININGS] == [1024, 1024]


def test_a_row_of_epochs() -> None:
    """Each program has gone through one before the race, and is as good by then as the others."""
    outcome = measure(training_row(QUICK), Setting(), ("waiting", "flax"), Budget(0, 9, 9))
    assert not outcome["failed"] and outcome["rounds"] == 2
    assert measure(training_row(dataclasses.replace(QUICK, rounds=9)), Setting(), (), Budget(0, 1, 9))["rounds"] == 1
    assert outcome["ratio"].keys() == {"jax.grad", "waiting"} and outcome["temporary_ratio"] is None
    assert command.summary([outcome])["worst"] == "digits epoch"


def test_a_training_that_learns_less_is_no_contestant() -> None:
    """Accuracies after one epoch differ with the order of the examples, but not by more than that."""
    accuracy = {"jaxconv": 0.98, "jax.grad": 0.97, "waiting": 0.93, "torch": 0.91}

    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        return {"": Contestant(lambda: 0.0, lambda _: None, {"accuracy": np.array(accuracy[column])})}

    outcome = measure(Row("an epoch", "training", build, 1), Setting(), ("waiting", "torch"), Budget(0, 9, 9))
    assert outcome["ms"].keys() == {"jaxconv", "jax.grad", "waiting"}
    assert outcome["failed"]["torch"].startswith("Disagreement: torch computes something else: accuracy differs")


def test_a_goal_ends_a_training_and_a_training_that_misses_it_begins_again() -> None:
    seen: list[tuple[int, int]] = []

    def program(config: Config, dataset: data.Dataset) -> Iterator[float]:
        for epoch, accuracy in enumerate((0.5, 0.9, 0.8 if config.seed < 2 else 0.99)):
            seen.append((config.seed, epoch))
            yield accuracy

    assert reached(0.95, program, Config(), DIGITS, itertools.count(1)) == 0.99
    assert seen == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    seen.clear()
    one = dataclasses.replace(QUICK, goal=0.9).contestant(program)
    assert [one.call(), one.call()] == [0.9, 0.9] and seen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match=r"99.9% of the test images was not reached from any of the seeds"):
        reached(0.999, program, Config(), DIGITS, iter(range(3)))


def test_a_batch_must_fit_into_an_epoch() -> None:
    with pytest.raises(UsageError, match=r"1 <= batch size <= training examples, but is 64000 for 1438 examples"):
        QUICK.enlarged(1000).contestant(trainings.ours)


def test_what_compiles_on_the_clock_has_no_column_without_the_engine() -> None:
    assert training_row(dataclasses.replace(QUICK, goal=0.5)).build(rows.WITHOUT, Setting()) == {}


def test_a_column_without_a_row_in_a_table() -> None:
    options = command.Options(columns=("waiting",), list=True)
    with pytest.raises(
        UsageError, match="--columns waiting: has no row in --table main, of which there are xla, flax,"
    ):
        command.run(options, Console(quiet=True))
    assert command.run(dataclasses.replace(options, table="trainings"), Console(quiet=True)) == 0


def test_the_loop_that_waits_takes_every_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[np.ndarray] = []

    class Trainer:
        def __init__(self, *given: object) -> None:
            pass

        def train_batch(self, examples: np.ndarray) -> float:
            met.append(examples)
            return 0.0

        def evaluate(self) -> tuple[float, float]:
            return 0.0, 1.0

    monkeypatch.setattr(trainings, "Trainer", Trainer)
    assert list(trainings.waiting(QUICK.config.resolved(), DIGITS)) == [1.0, 1.0]
    first, second = (np.concatenate(met[at : at + 22]) for at in (0, 22))
    assert len(met) == 44 and len(set(first.tolist())) == len(set(second.tolist())) == 22 * 64
    assert first.tolist() != second.tolist()


def test_torch_starts_and_learns_alike() -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmark import nets_torch, trainings_torch

    torch.manual_seed(0)
    module = trainings_torch.started(nets_torch.cnn((28, 28, 1)))
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        assert float(parameter.detach().std()) == pytest.approx(np.sqrt(2 / fan_in) if fan_in else 0.0, rel=0.1)
    config = Config(data="digits", epochs=8).resolved()
    ours, theirs = (list(program(config, DIGITS)) for program in (trainings.ours, trainings_torch.training))
    assert theirs[-1] == pytest.approx(ours[-1], abs=0.05) and theirs[-1] > 0.9
