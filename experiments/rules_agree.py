"""Train the same network four times, once per rule set, and lay the loss curves over each other.

    python -m experiments.rules_agree

The backward pass is a value: `textbook`, `rotated`, `fast` and `autodiff` start from the same weights, see the
same batches, and must take the same steps to rounding. Rounding differences grow along a trajectory, so the
bound grows too: a step's relative difference may be at most GROWTH^step times 10 rounding errors. The
program says by how much the curves differ, draws them, and exits with 1 if they do not agree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import data, plots
from experiments.config import Config, UsageError, check
from experiments.divergence import DivergedError, Watch
from experiments.train import precision
from experiments.trainer import Trainer

RULES: tuple[Literal["autodiff", "textbook", "rotated", "fast"], ...] = ("autodiff", "textbook", "rotated", "fast")
# A factor per step by which two trajectories may drift apart.
GROWTH = 1.05


@dataclass(frozen=True)
class Options:
    """Train once per rule set from the same seed and compare the loss curves."""

    data: Literal["digits", "mnist", "fashion-mnist", "cifar10"] = "digits"
    """Real images."""
    data_dir: Path | None = None
    """Where the original files are or go; by default $JAXCONV_DATA, else a user cache."""
    model: Literal["article", "cnn", "lenet5", "vgg", "resnet18", "mobilenet_v2", "convnext"] = "cnn"
    """The network."""
    steps: int = 110
    """Steps of the optimiser."""
    batch_size: int = 64
    """Examples a step."""
    optimizer: Literal["sgd", "momentum"] = "momentum"
    """Adam and its kin divide by the size of the gradient, and so would hide a wrong factor."""
    learning_rate: float = 0.01
    """Learning rate."""
    seed: int = 0
    """Seed of weights, batches and dropout."""
    dtype: Literal["float32", "float64"] = "float64"
    """In float64 agreement to rounding is beyond doubt; in float32 it is what training sees."""
    out: Path = Path("rules_agree.png")
    """The picture."""


def losses(
    options: Options, dataset: data.Dataset, rules: Literal["autodiff", "textbook", "rotated", "fast"]
) -> list[float]:
    """The training loss of every step under one rule set."""
    size = len(dataset.train_labels) // options.batch_size
    config = Config(
        data=options.data, model=options.model, rules=rules, epochs=-(-options.steps // size),
        batch_size=options.batch_size, seed=options.seed, dtype=options.dtype,
        optimizer=options.optimizer, learning_rate=options.learning_rate, schedule="constant",
    ).resolved()  # fmt: skip
    trainer, rng = Trainer(config, dataset), np.random.default_rng(options.seed)
    # Without numbers to compare with there is no verdict; rules that alone leave all bounds disagree.
    watch = (
        Watch(f"a lower --learning-rate (now {options.learning_rate:g})")
        if rules == "autodiff"
        else lambda loss, where: None
    )
    curve: list[float] = []
    while True:
        for rows in data.batches(len(dataset.train_labels), options.batch_size, rng, drop_last=True):
            if len(curve) == options.steps:
                return curve
            curve.append(trainer.train_batch(rows))
            watch(curve[-1], f"step {trainer.step}")


def bound(steps: int, dtype: str) -> np.ndarray:
    """The largest relative difference that rounding may explain, step by step."""
    return 10 * np.finfo(dtype).eps * GROWTH ** np.arange(steps)


def run(options: Options, console: Console) -> dict[str, float]:
    """Compare all rule sets; the largest difference of each from `autodiff`, in units of the bound."""
    if options.steps < 1:
        raise UsageError(f"--steps must be at least 1, but {options.steps} < 1.")
    dataset = data.load(options.data, options.data_dir)
    check(
        Config(data=options.data, batch_size=options.batch_size, seed=options.seed).resolved(),
        len(dataset.train_labels),
    )
    curves = {}
    for rules in RULES:
        console.print(f"training {options.steps} steps with rules={rules}", highlight=False)
        with precision(options.dtype):
            curves[rules] = losses(options, dataset, rules)
    exact = np.asarray(curves["autodiff"])
    table = Table("rules", "first loss", "last loss", "largest relative difference", "in bounds")
    worst: dict[str, float] = {}
    for rules, curve in curves.items():
        difference = np.nan_to_num(np.abs(np.asarray(curve) - exact) / np.abs(exact), nan=np.inf)
        worst[rules] = float(np.max(difference / bound(options.steps, options.dtype)))
        table.add_row(rules, f"{curve[0]:.6f}", f"{curve[-1]:.6f}", f"{difference.max():.1e}", f"{worst[rules]:.3f}")
    console.print(table)
    plots.agreement({name: list(curve) for name, curve in curves.items()}, "autodiff", options.out)
    console.print(f"{options.out}: four curves", highlight=False)
    return worst


def main() -> int:
    console = Console()
    options = tyro.cli(Options, description=__doc__)
    try:
        worst = run(options, console)
    except (UsageError, data.DataError, DivergedError, ValueError, OSError) as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 2
    return 0 if max(worst.values()) <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
