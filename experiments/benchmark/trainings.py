"""Whole trainings on real images, from bytes to a measured accuracy, as several programs run them.

What takes turns here is not a step but all of it: the order of the examples, standardising, every step, and the test
part after each epoch. All programs have the same network, start alike, and follow the same recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from experiments import data
from experiments.benchmark.race import Contestant
from experiments.config import Config, check, dataset_of
from experiments.train import epochs
from experiments.trainer import Trainer

# A training: the accuracy on the test part, an epoch at a time.
Program = Callable[[Config, data.Dataset], Iterator[float]]
ENDLESS = 1000  # epochs
TRIES = 10  # trainings, for each that is to reach a goal


def ours(config: Config, dataset: data.Dataset) -> Iterator[float]:
    """As `python -m experiments.train` runs."""
    return (row["test_accuracy"] for row in epochs(Trainer(config, dataset), lambda step, loss: None))


def waiting(config: Config, dataset: data.Dataset) -> Iterator[float]:
    """The loop that scripts begin with: batches are gathered on the host, which waits for the loss of each step."""
    assert config.epochs is not None and config.batch_size is not None
    trainer, rng = Trainer(config, dataset), np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        for rows in data.batches(len(dataset.train_labels), config.batch_size, rng, drop_last=True):
            trainer.train_batch(rows)
        yield trainer.evaluate()[1]


@dataclass(frozen=True)
class Training:
    """A recipe, and how good it is to become.

    Attributes:
      rounds: how often each program trains.
      goal: the accuracy on the test part at which a training ends; None to measure single epochs.
    """

    title: str
    config: Config
    rounds: int
    goal: float | None = None

    @property
    def name(self) -> str:
        return f"{self.title} epoch" if self.goal is None else f"{self.title} to {self.goal:.1%}".replace("%", " %")

    def enlarged(self, times: int) -> Self:
        """With batches so many times as large."""
        batch_size = self.config.resolved().batch_size
        assert batch_size is not None
        return dataclasses.replace(self, config=dataclasses.replace(self.config, batch_size=times * batch_size))

    def contestant(self, program: Program, **options: Any) -> Contestant:
        """One epoch a call, the first of which is over; or one training a call, from nothing: it compiles, too."""
        config, goal = dataclasses.replace(self.config, **options).resolved(), self.goal
        dataset = dataset_of(config)
        check(config, len(dataset.train_labels))
        if goal is not None:
            seeds = iter(range(config.seed, config.seed + self.rounds * TRIES))
            return Contestant(lambda: reached(goal, program, config, dataset, seeds), _no_wait, None)
        endless = program(dataclasses.replace(config, epochs=ENDLESS, schedule="constant"), dataset)
        return Contestant(lambda: next(endless), _no_wait, {"accuracy": np.array(next(endless))})


def reached(goal: float, program: Program, config: Config, dataset: data.Dataset, seeds: Iterator[int]) -> float:
    """Train until the goal is reached; begin again from the next seed where a whole training does not reach it."""
    for seed in seeds:
        for accuracy in program(dataclasses.replace(config, seed=seed), dataset):
            if accuracy >= goal:
                return accuracy
    raise ValueError(f"{goal:.1%} of the test images was not reached from any of the seeds.")


def _no_wait(accuracy: float) -> None:
    """It is a number already."""


MNIST = Config(data="mnist", epochs=5)
TRAININGS = (Training("MNIST", MNIST, rounds=5), Training("MNIST", MNIST, rounds=3, goal=0.99))
