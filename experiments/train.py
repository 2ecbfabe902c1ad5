"""Train a CNN with hand-written gradients on real images, and write down what happened.

    python -m experiments.train                            # 8×8 digits, under a minute on two cores
    python -m experiments.train --data mnist --epochs 5    # 60,000 digits
    python -m experiments.train --rules textbook           # the same run by the articles' sums

With `--out DIR` a run leaves `metrics.jsonl` (a line an epoch), `summary.json`, `curve.png` and `filters.png`. It keeps
what it has measured when it ends early: by Ctrl-C or SIGTERM, or because the loss left all bounds.

Exit status: 0 when it has finished, 1 when it diverged, 2 when it could not run, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from experiments import data, plots
from experiments.divergence import DivergedError, Watch
from experiments.files import write_atomically
from experiments.machine import version
from experiments.memory import in_large_pages
from experiments.progress import Tick, progress
from experiments.stopping import between_steps, raise_on_signals, received
from jaxconv import load_rules, softmax_cross_entropy
from jaxconv.layers import Layer
from jaxconv.models import MODELS

FILES = ("metrics.jsonl", "summary.json", "curve.png", "filters.png")

# A dtype of 16 bits loses small gradients of a mean loss; a power of two in front of it costs nothing.
LOSS_SCALE = {"float16": 1024.0}

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (optax.sgd, 0.1),
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.05),
    "rmsprop": (optax.rmsprop, 1e-3),
    "adam": (optax.adam, 1e-3),
    "adamw": (lambda rate: optax.adamw(rate, weight_decay=0.01), 1e-3),
    "lion": (optax.lion, 1e-4),
}


@dataclass(frozen=True)
class Config:
    """Train a CNN with hand-written gradients."""

    data: Literal["digits", "mnist", "fashion-mnist", "cifar10"] = "digits"
    """Real images: the 8×8 digits that scikit-learn ships, or an original data set."""
    data_dir: Path | None = None
    """Where the original files are or go; by default $JAXCONV_DATA, else a user cache."""
    model: Literal["article", "cnn", "lenet5", "vgg", "resnet18", "mobilenet_v2", "convnext"] = "cnn"
    """The network, from `jaxconv.models`."""
    rules: Literal["fast", "rotated", "textbook", "autodiff"] | Path = "fast"
    """Who computes the gradients; or a file of what was measured, as `python -m jaxconv tune` writes it."""
    epochs: int | None = None
    """Passes over the training part; by default 20 for digits and 5 for the others."""
    batch_size: int | None = None
    """Examples a step; by default 64 for digits and 128 for the others."""
    optimizer: Literal["sgd", "momentum", "rmsprop", "adam", "adamw", "lion"] = "adam"
    """From optax."""
    learning_rate: float | None = None
    """Peak learning rate; the default depends on the optimizer."""
    clip: float | None = None
    """The longest gradient, over all weights, that a step may follow; a longer one is scaled down to it."""
    schedule: Literal["constant", "cosine", "warmup-cosine", "linear"] = "cosine"
    """How the learning rate changes from step to step."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    seed: int = 0
    """Seed of the initial weights, the order of the examples and dropout."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of activations and gradients; weights stay float32 (float64 for float64)."""
    out: Path | None = None
    """Folder for metrics, summary and pictures."""
    overwrite: bool = False
    """Allow `--out` to name a folder that holds a run."""

    def resolved(self) -> Config:
        """The same run with nothing left to default."""
        small = self.data == "digits"
        return dataclasses.replace(
            self,
            epochs=(20 if small else 5) if self.epochs is None else self.epochs,
            batch_size=(64 if small else 128) if self.batch_size is None else self.batch_size,
            learning_rate=OPTIMIZERS[self.optimizer][1] if self.learning_rate is None else self.learning_rate,
        )


class UsageError(ValueError):
    """A run that cannot start; the message says what to change."""


def check_loop(config: Any, examples: int) -> None:
    """Refuse what no training loop can run: epochs, batch size, learning rate and seed."""
    if config.epochs < 1:
        raise UsageError(f"--epochs must be at least 1, but {config.epochs} < 1.")
    if not 1 <= config.batch_size <= examples:
        raise UsageError(
            f"--batch-size must satisfy 1 <= batch size <= training examples, "
            f"but is {config.batch_size} for {examples} examples of {config.data}."
        )
    if not 0 < config.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate must be positive and finite, but is {config.learning_rate}.")
    if config.seed < 0:
        raise UsageError(f"--seed must be at least 0, but {config.seed} < 0.")


def check(config: Config, examples: int) -> None:
    """Refuse a run that cannot work, before any work."""
    check_loop(config, examples)
    if config.clip is not None and not 0 < config.clip < float("inf"):
        raise UsageError(f"--clip must be positive and finite, but is {config.clip}.")
    if not 0 <= config.label_smoothing < 1:
        raise UsageError(f"--label-smoothing must satisfy 0 <= ε < 1, but is {config.label_smoothing}.")


def rules_of(config: Config) -> Any:
    """The rules that `--rules` names, or those that a file of that name holds."""
    if not isinstance(config.rules, Path):
        return config.rules
    try:
        return load_rules(config.rules)
    except (OSError, ValueError) as error:
        raise UsageError(f"--rules: {error}") from error


def prepare_folder(config: Config) -> None:
    if config.out is None:
        return
    held = [name for name in FILES if (config.out / name).exists()]
    if held and not config.overwrite:
        raise UsageError(
            f"--out {config.out} holds a run already ({', '.join(held)}). Name another folder, or say --overwrite."
        )
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_atomically(config.out / "metrics.jsonl", "")
    except OSError as error:
        raise UsageError(f"--out {config.out} cannot be written: {error.strerror}.") from error
    for name in FILES[1:]:
        (config.out / name).unlink(missing_ok=True)


def learning_rate(config: Config, steps: int) -> Any:
    peak = config.learning_rate
    assert peak is not None
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    if config.schedule == "linear":
        return optax.linear_schedule(peak, 0.0, steps)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 10, 1), steps)


class Trainer:
    """The compiled programs of one run and the arrays that they update."""

    def __init__(self, config: Config, dataset: data.Dataset) -> None:
        assert config.epochs is not None and config.batch_size is not None
        self.config, self.dataset = config, dataset
        self.rules = rules_of(config)
        self.net: Layer = MODELS[config.model](len(dataset.classes))
        self.dtype = jnp.dtype(config.dtype)
        self.weights = jnp.float64 if config.dtype == "float64" else jnp.float32
        key, self.dropout_key = jax.random.split(jax.random.key(config.seed))
        shape = (config.batch_size, *dataset.train_images.shape[1:])
        params, self.state, _ = self.net.init(key, shape)
        self.params = jax.tree.map(lambda a: a.astype(self.weights), params)
        self.steps = config.epochs * (len(dataset.train_labels) // config.batch_size)
        self.schedule = learning_rate(config, self.steps)
        self.optimizer = OPTIMIZERS[config.optimizer][0](self.schedule)
        if config.clip is not None:
            self.optimizer = optax.chain(optax.clip_by_global_norm(config.clip), self.optimizer)
        self.opt_state = self.optimizer.init(self.params)
        self.step = 0
        self._train = jax.jit(self._train_step, donate_argnums=(0, 1, 2))
        self._evaluate = jax.jit(self._count)

    def images(self, pixels: jax.Array) -> jax.Array:
        """Bytes to standardised numbers, inside the compiled program."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.dataset.mean, self.dataset.std))
        return ((pixels.astype(jnp.float32) / self.dataset.scale - mean) / std).astype(self.dtype)

    def logits(self, params: Any, state: Any, pixels: jax.Array, **mode: Any) -> tuple[jax.Array, Any]:
        params = jax.tree.map(lambda a: a.astype(self.dtype), params)
        return self.net.apply(params, state, self.images(pixels), rules=self.rules, **mode)

    def _train_step(
        self, params: Any, state: Any, opt_state: Any, pixels: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[Any, Any, Any, jax.Array]:
        scale = LOSS_SCALE.get(self.config.dtype, 1.0)

        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, new_state = self.logits(params, state, pixels, train=True, key=key)
            losses = softmax_cross_entropy(
                logits, labels, label_smoothing=self.config.label_smoothing, rules=self.rules
            )
            loss = losses.mean()
            return loss * scale, (loss, new_state)

        grads, (loss, state) = jax.grad(objective, has_aux=True)(params)
        if scale != 1.0:
            grads = jax.tree.map(lambda g: g / scale, grads)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    def train_batch(self, rows: np.ndarray) -> float:
        """One step of the optimiser on these rows of the training part; the loss before the step."""
        pixels, labels = self.dataset.train_images[rows], self.dataset.train_labels[rows]
        key = jax.random.fold_in(self.dropout_key, self.step)
        self.params, self.state, self.opt_state, loss = self._train(
            self.params, self.state, self.opt_state, pixels, labels, key
        )
        self.step += 1
        return float(loss)

    def _count(
        self, params: Any, state: Any, pixels: jax.Array, labels: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits, _ = self.logits(params, state, pixels)
        losses = softmax_cross_entropy(logits, labels, rules=self.rules)
        return jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real & (logits.argmax(-1) == labels))

    def evaluate(self, batch_size: int = 500) -> tuple[float, float]:
        """Mean loss and accuracy over the whole test part, every example exactly once."""
        images, labels = self.dataset.test_images, self.dataset.test_labels
        size = min(batch_size, len(labels))
        total, correct = 0.0, 0
        for rows in data.batches(len(labels), size):
            # The last batch is filled up with examples that do not count, so that one program serves all.
            filled, real = np.resize(rows, size), np.arange(size) < len(rows)
            loss, hits = self._evaluate(self.params, self.state, images[filled], labels[filled], real)
            total, correct = total + float(loss), correct + int(hits)
        return total / len(labels), correct / len(labels)


def remedies(config: Config) -> str:
    """What to change when a training diverges."""
    rate = f"a lower --learning-rate (now {config.learning_rate:g})"
    clip = "--clip 1 against long gradients" if config.clip is None else f"a lower --clip (now {config.clip:g})"
    return f"{rate} or {clip}" + (", or --dtype bfloat16" if config.dtype == "float16" else "")


def epochs(trainer: Trainer, tick: Tick) -> Iterator[dict[str, Any]]:
    """Train; yield what each epoch measured. `tick(step, loss)` is called after every step.

    Raises:
      DivergedError: when a loss leaves all bounds. What has been yielded stands.
    """
    config, dataset = trainer.config, trainer.dataset
    assert config.epochs is not None and config.batch_size is not None
    rng, watch = np.random.default_rng(config.seed), Watch(remedies(config))
    for epoch in range(1, config.epochs + 1):
        started, losses = time.perf_counter(), []
        for rows in data.batches(len(dataset.train_labels), config.batch_size, rng, drop_last=True):
            losses.append(trainer.train_batch(rows))
            watch(losses[-1], f"step {trainer.step:,} of {trainer.steps:,}")
            tick(trainer.step, losses[-1])
        seconds = time.perf_counter() - started
        test_loss, test_accuracy = trainer.evaluate()
        watch(test_loss, f"the test images after step {trainer.step:,}")
        yield {
            "epoch": epoch,
            "train_loss": float(np.mean(losses)),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": float(trainer.schedule(trainer.step - 1)),
            "seconds": seconds,
            "examples_per_second": len(losses) * config.batch_size / seconds,
        }


def environment() -> dict[str, Any]:
    """What a reader needs to know to believe a number."""
    device = jax.devices()[0]
    packages = ("jaxconv", "jax", "jaxlib", "optax", "numpy")
    return {
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "cpu_count": os.cpu_count(),
    }


def run(config: Config, console: Console) -> dict[str, Any]:
    """Train as `config` says; return the summary, which is also written to `config.out`."""
    started = time.perf_counter()
    config = config.resolved()
    with precision(config.dtype):
        return _run(config, console, started)


def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """JAX has float64 only while x64 is enabled."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def _run(config: Config, console: Console, started: float) -> dict[str, Any]:
    dataset = data.load(config.data, config.data_dir)
    check(config, len(dataset.train_labels))
    trainer = Trainer(config, dataset)
    prepare_folder(config)
    size = sum(a.size for a in jax.tree.leaves(trainer.params))
    console.print(
        f"[bold]{config.model}[/] with {size:,} parameters on {len(dataset.train_labels):,} images of {config.data}, "
        f"rules={config.rules}, {jax.devices()[0].platform}"
    )
    metrics: list[dict[str, Any]] = []
    summary: dict[str, Any] = {
        "status": "interrupted",
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
        **environment(),
        "parameters": size,
    }
    try:
        with between_steps() as stop, progress(console, trainer.steps) as show:

            def tick(step: int, loss: float) -> None:
                show(step, loss)
                stop()

            for row in epochs(trainer, tick):
                metrics.append(row)
                if config.out is not None:
                    write_atomically(config.out / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in metrics))
                console.print(
                    f"epoch {row['epoch']:3d}   train loss {row['train_loss']:.4f}   test loss {row['test_loss']:.4f}"
                    f"   accuracy {row['test_accuracy']:.2%}   {row['examples_per_second']:,.0f} images/s",
                    soft_wrap=True,
                    highlight=False,
                )
        summary["status"] = "finished"
    except KeyboardInterrupt as interrupt:
        summary["signal"] = received(interrupt).name
        console.print("[yellow]interrupted[/]: keeping what the finished epochs measured")
    except DivergedError as error:
        summary |= {"status": "diverged", "reason": str(error)}
        console.print(f"[red]stopped:[/] {error}", soft_wrap=True, highlight=False)
    last = metrics[-1] if metrics else {}
    # The first epoch compiles; a run of one epoch has no other.
    timed = metrics[1:] or metrics
    examples = sum(m["examples_per_second"] * m["seconds"] for m in timed)
    summary |= {
        "epochs_finished": len(metrics),
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        "seconds": time.perf_counter() - started,
        "examples_per_second": examples / sum(m["seconds"] for m in timed) if timed else None,
    }
    if config.out is not None:
        write_atomically(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")
        if summary["status"] != "diverged":
            plots.filters(jax.device_get(trainer.params), config.out / "filters.png")
        if metrics:
            plots.curve(metrics, config.out / "curve.png")
    return summary


def main() -> int:
    console = Console()
    config = tyro.cli(Config, description=__doc__)
    raise_on_signals()
    try:
        summary = run(config, console)
    except (UsageError, data.DataError, ValueError, OSError) as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt as interrupt:  # before the first step, or while pictures were drawn
        console.print("[yellow]interrupted[/]")
        return 128 + received(interrupt)
    if summary["status"] == "interrupted":
        return 128 + signal.Signals[summary["signal"]]
    if summary["status"] == "diverged":
        return 1
    console.print(
        f"test accuracy [bold]{summary['test_accuracy']:.2%}[/], test loss {summary['test_loss']:.4f}, "
        f"{summary['seconds']:.1f} s in all"
    )
    return 0


if __name__ == "__main__":
    in_large_pages()
    sys.exit(main())
