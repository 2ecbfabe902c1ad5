"""The model you already have: a training script as users of Flax write theirs, with `jaxconv.manual` and without it.

    python -m experiments.bring_your_own                   # 8×8 digits, in a few seconds
    python -m experiments.bring_your_own --data mnist      # 60,000 digits

Nothing in the model, the step or the loop knows of jaxconv but the line that says `manual`. Both trainings start from
the same parameters, meet the same batches and drop the same neurons; they take turns, an epoch each.

Measured on 2 cores of an AMD EPYC, jax 0.10.2, Flax 0.12.8, float32, the native engine on, 2026-11-26. An epoch of
`--data mnist` takes 35 to 39 s without `manual` (seven of them) and 12 to 14 s with it (four, each the first of its
run, which compiles). After `--data mnist --epochs 2` the accuracy is 98.91 % without and 98.81 % with: rounding grows
over the steps, and the losses of one batch among 936 are 0.055 apart; the mean losses of the epochs are 0.2201 and
0.2199, 0.0659 and 0.0658. After `--epochs 12` on the digits it is 98.33 % in both, the losses of 132 steps 7.3e-07
apart at most.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from flax.training.train_state import TrainState
from rich.console import Console

import jaxconv
from experiments import data
from experiments.config import UsageError, check_loop
from experiments.machine import machine
from experiments.memory import in_large_pages
from experiments.stopping import raise_on_signals, received

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Config:
    """Train a Flax model twice, without and with `jaxconv.manual`."""

    data: Literal["digits", "mnist", "fashion-mnist"] = "digits"
    """Real images: the 8×8 digits that scikit-learn ships, or an original data set."""
    data_dir: Path | None = None
    """Where the original files are or go; by default $JAXCONV_DATA, else a user cache."""
    epochs: int = 3
    """Passes over the training part, by each of both."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Of the initial weights, the order of the examples and dropout."""
    engine: Literal["auto", "xla", "onednn"] = "auto"
    """Who computes the convolutions under `manual`."""


# What a user of Flax has


class CNN(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(32, (3, 3))(x)
        x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = nn.Conv(64, (3, 3))(x)
        x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def create_state(model: nn.Module, image: Any, learning_rate: float, seed: int) -> TrainState:
    params = model.init(jax.random.key(seed), image[None], train=False)["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(learning_rate))


def train_step(wrap: Wrap, state: TrainState, images: Any, labels: Any, key: Any) -> tuple[TrainState, Any]:
    def loss_fn(params: Any) -> Any:
        dropout = jax.random.fold_in(key, state.step)
        logits = state.apply_fn({"params": params}, images, train=True, rngs={"dropout": dropout})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(wrap(loss_fn))(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def correct(state: TrainState, images: Any, labels: Any) -> Any:
    logits = state.apply_fn({"params": state.params}, images, train=False)
    return jnp.sum(logits.argmax(-1) == labels)


# What is measured of it


@dataclass
class Training:
    """A run: its state, and what it has measured so far."""

    state: TrainState
    step: Callable[..., tuple[TrainState, Any]]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def epoch(self, dataset: data.Dataset, batches: list[np.ndarray], key: Any) -> None:
        started = time.perf_counter()
        losses = []
        for rows in batches:
            images, labels = images_of(dataset, dataset.train_images[rows]), dataset.train_labels[rows]
            self.state, loss = self.step(self.state, images, labels, key)
            losses.append(float(loss))
        self.losses += losses
        self.seconds.append(time.perf_counter() - started)

    def accuracy(self, dataset: data.Dataset, size: int = 1000) -> float:
        parts = data.batches(len(dataset.test_labels), size)
        hits = [
            int(correct(self.state, images_of(dataset, dataset.test_images[rows]), dataset.test_labels[rows]))
            for rows in parts
        ]
        return sum(hits) / len(dataset.test_labels)


def images_of(dataset: data.Dataset, pixels: np.ndarray) -> np.ndarray:
    """Bytes as standardised numbers."""
    mean, std = (np.asarray(v, np.float32) for v in (dataset.mean, dataset.std))
    return (pixels.astype(np.float32) / dataset.scale - mean) / std


def run(config: Config, console: Console) -> dict[str, Any]:
    """Train twice as `config` says; what was measured of both, and how far their losses are apart."""
    dataset = data.load(config.data, config.data_dir)
    check_loop(config, len(dataset.train_labels))
    found = machine("jaxconv", "jax", "jaxlib", "flax")
    console.print(f"{config.data}: {len(dataset.train_labels):,} images, batches of {config.batch_size}")
    console.print(", ".join(f"{name} {value}" for name, value in found.items()), soft_wrap=True, highlight=False)
    model = CNN(len(dataset.classes))
    wraps: dict[str, Wrap] = {
        "without manual": lambda f: f,
        "with manual": functools.partial(jaxconv.manual, engine=config.engine),
    }
    trainings = {
        name: Training(
            create_state(model, images_of(dataset, dataset.train_images[0]), config.learning_rate, config.seed),
            jax.jit(functools.partial(train_step, wrap), donate_argnums=0),
        )
        for name, wrap in wraps.items()
    }
    key, rng = jax.random.key(config.seed + 1), np.random.default_rng(config.seed)
    for epoch in range(1, config.epochs + 1):
        batches = list(data.batches(len(dataset.train_labels), config.batch_size, rng, drop_last=True))
        for name, training in trainings.items():
            training.epoch(dataset, batches, key)
            mean, seconds = float(np.mean(training.losses[-len(batches) :])), training.seconds[-1]
            console.print(f"epoch {epoch:2d}   {name:14}   loss {mean:.4f}   {seconds:6.2f} s", highlight=False)
    summary = summarised(trainings, len(batches), {name: t.accuracy(dataset) for name, t in trainings.items()})
    for name, seconds in summary["seconds"].items():
        accuracy = summary["accuracy"][name]
        console.print(f"{name:14}   {seconds:6.2f} s an epoch   test accuracy {accuracy:.2%}", highlight=False)
    console.print(
        f"{summary['faster']:.2f} times faster with manual; the losses of {summary['steps']:,} steps differ by at most "
        f"{summary['apart']:.1e}, those of the first {len(batches):,} by {summary['apart_at_first']:.1e}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    return summary


def summarised(trainings: dict[str, Training], steps: int, accuracy: dict[str, float]) -> dict[str, Any]:
    """Seconds an epoch, and how far the losses are apart: of all steps, and of the first epoch with so many steps."""
    without, with_manual = trainings.values()
    # The first epoch compiles; a run of one epoch has no other.
    seconds = {name: statistics.median(t.seconds[1:] or t.seconds) for name, t in trainings.items()}
    apart = np.abs(np.subtract(with_manual.losses, without.losses))
    slow, fast = seconds.values()
    return {
        "seconds": seconds,
        "accuracy": accuracy,
        "faster": slow / fast,
        "steps": len(apart),
        "apart": float(apart.max()),
        "apart_at_first": float(apart[:steps].max()),
    }


def main() -> int:
    console = Console()
    config = tyro.cli(Config, description=__doc__)
    raise_on_signals()
    try:
        run(config, console)
    except (UsageError, data.DataError, OSError) as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt as interrupt:
        console.print("[yellow]interrupted[/]")
        return 128 + received(interrupt)
    return 0


if __name__ == "__main__":
    in_large_pages()
    sys.exit(main())
