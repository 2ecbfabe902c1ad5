"""What a run of `experiments.train` is told, what follows from it, and what cannot work."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments import augmentation, data, own_data
from experiments.devices import differing
from jaxconv import load_rules
from jaxconv.rules import RULE_SETS


class Optimizer(NamedTuple):
    """How optax makes it from a learning rate and a weight decay, and what these are unless others are named."""

    make: Callable[[Any, float], optax.GradientTransformation]
    learning_rate: float
    weight_decay: float = 0.0


def kernels(params: Any) -> Any:
    """Which arrays decay: those of two or more axes, and so no bias, and no scale or shift of a norm."""
    return jax.tree.map(lambda a: a.ndim > 1, params)


def penalised(make: Callable[[Any], optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Weight decay as it was first meant: the optimizer sees the gradient of the loss + decay / 2 · ‖kernels‖²."""

    def made(rate: Any, decay: float) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(decay, kernels), make(rate)) if decay else make(rate)

    return made


# The last two add the decay to the step instead.
OPTIMIZERS = {
    "sgd": Optimizer(penalised(optax.sgd), 0.1),
    "momentum": Optimizer(penalised(partial(optax.sgd, momentum=0.9, nesterov=True)), 0.05),
    "rmsprop": Optimizer(penalised(optax.rmsprop), 1e-3),
    "adam": Optimizer(penalised(optax.adam), 1e-3),
    "adamw": Optimizer(lambda rate, decay: optax.adamw(rate, weight_decay=decay, mask=kernels), 1e-3, 0.01),
    "lion": Optimizer(lambda rate, decay: optax.lion(rate, weight_decay=decay, mask=kernels), 1e-4, 0.001),
}


@dataclass(frozen=True)
class Config:
    """Train a CNN with hand-written gradients."""

    data: Literal["digits", "mnist", "fashion-mnist", "cifar10"] | Path = "digits"
    """Real images: the 8×8 digits that scikit-learn ships, an original data set, or a folder of yours (see above)."""
    data_dir: Path | None = None
    """Where the original files are or go; by default $JAXCONV_DATA, else a user cache."""
    data_on: Literal["device", "host"] | None = None
    """Where the images are while they train; by default on the device if they take at most half of its memory."""
    examples: int | None = None
    """Use only the first so many of each part, to try something out; by default all."""
    augment: tuple[augmentation.Name, ...] | None = None
    """What is done to training images, in this order; by default crop flip cutout for cifar10, nothing for others."""
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
    weight_decay: float | None = None
    """So much of each kernel is added to its gradient, by default 0; to the step of adamw (0.01) and lion (0.001)."""
    clip: float | None = None
    """The longest gradient, over all weights, that a step may follow; a longer one is scaled down to it."""
    schedule: Literal["constant", "cosine", "warmup-cosine", "linear"] = "cosine"
    """How the learning rate changes from step to step."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    seed: int = 0
    """Seed of the initial weights, the order of the examples, their augmentation and dropout."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of activations and their gradients; weights, norms and losses stay float32 (float64 for float64)."""
    steps_per_call: int | None = None
    """Steps after which the host looks: at the loss, at signals. By default as many as take about a second."""
    loop: bool | None = None
    """Compile the steps of a call into one loop; by default except on a CPU, where a loop has slow convolutions."""
    devices: int = 1
    """Devices that share each batch; of each process, if there are several."""
    distributed: bool = False
    """Train together with other processes, as Slurm, Open MPI or a TPU pod says, or the next three options."""
    coordinator: str | None = None
    """host:port of process 0, where the processes meet."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    out: Path | None = None
    """Folder for metrics, summary, pictures and checkpoints."""
    checkpoint_every: int | None = None
    """Write a checkpoint every so many steps, and not only after every epoch."""
    keep: int = 2
    """How many checkpoints to keep; the oldest go first."""
    resume: bool = False
    """Continue the run that `--out` holds from its last checkpoint; begin, if it holds none."""
    overwrite: bool = False
    """Allow `--out` to name a folder that holds a run, which is deleted."""
    evaluate: Path | None = None
    """Train nothing: load the last checkpoint in this folder and say how good it is on the test part."""

    def resolved(self) -> Config:
        """The same run with nothing left to default."""
        small, optimizer = self.data == "digits", OPTIMIZERS[self.optimizer]
        return dataclasses.replace(
            self,
            data=Path(os.path.abspath(self.data.expanduser())) if isinstance(self.data, Path) else self.data,
            loop=jax.default_backend() != "cpu" if self.loop is None else self.loop,
            augment=augmentation.USUAL.get(self.data, ()) if self.augment is None else self.augment,
            epochs=(20 if small else 5) if self.epochs is None else self.epochs,
            batch_size=(64 if small else 128) if self.batch_size is None else self.batch_size,
            learning_rate=optimizer.learning_rate if self.learning_rate is None else self.learning_rate,
            weight_decay=optimizer.weight_decay if self.weight_decay is None else self.weight_decay,
        )

    def to_json(self) -> dict[str, Any]:
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}


# These change when and where a run computes, not what.
CIRCUMSTANCES = (
    *("data_dir", "data_on", "steps_per_call", "loop", "devices", "distributed", "coordinator", "processes", "process"),
    *("out", "checkpoint_every", "keep", "resume", "overwrite", "evaluate"),
)
# What may differ between processes that train together.
OF_A_PROCESS = ("data_dir", "coordinator", "process")


class UsageError(ValueError):
    """A run that cannot start; the message says what to change."""


def from_json(content: dict[str, Any]) -> Config:
    """The configuration that `to_json` wrote.

    Raises:
      KeyError, TypeError: it was written by another version, which has other options.
    """
    paths = {"data_dir", "out", "evaluate"}
    paths |= {option for option, names in (("data", data.NAMES), ("rules", RULE_SETS)) if content[option] not in names}
    options: dict[str, Any] = {
        k: Path(v) if k in paths and v is not None else tuple(v) if isinstance(v, list) else v
        for k, v in content.items()
    }
    if missing := {field.name for field in dataclasses.fields(Config)} - options.keys():
        raise KeyError(*sorted(missing))
    return Config(**options)


def flag(name: str, value: Any) -> str:
    """An option as the command line says it."""
    words = value if isinstance(value, tuple | list) else [value]
    return " ".join([f"--{name.replace('_', '-')}", *map(str, words)])


def check_same(config: Config, held: Config, folder: Path) -> None:
    """Refuse to continue a run as another one. Where the learning rate is constant it may become a longer one."""
    constant = config.schedule == held.schedule == "constant"
    longer = config.epochs is not None and held.epochs is not None and config.epochs > held.epochs
    moved = isinstance(config.data, Path) and isinstance(held.data, Path)  # what it holds is compared by itself
    free = (*CIRCUMSTANCES, *["epochs"] * (constant and longer), *["data"] * moved)
    for field in dataclasses.fields(Config):
        now, then = getattr(config, field.name), getattr(held, field.name)
        if field.name not in free and now != then:
            why = f" (the {held.schedule} schedule depends on it)" if field.name == "epochs" and not constant else ""
            raise UsageError(
                f"--resume: the run in {folder} was started with {flag(field.name, then)}, but this one says "
                f"{flag(field.name, now)}{why}. Say {flag(field.name, then)}, or name another folder for another run."
            )


def check_evaluate(config: Config) -> None:
    """Refuse options of which an evaluation makes nothing."""
    usual = Config()
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        moved = field.name == "data" and isinstance(value, Path)
        if field.name not in ("evaluate", "data_dir") and not moved and value != getattr(usual, field.name):
            raise UsageError(
                f"--evaluate takes the run as it is, but {flag(field.name, value)} says something else. Leave it out; "
                "only --data-dir, or the FOLDER that --data names, may have moved."
            )


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse processes that would train something else each, or wait for each other for ever."""
    for name in differing({name: str(value) for name, value in options.items() if name not in OF_A_PROCESS}):
        raise UsageError(
            f"--{name.replace('_', '-')} must be the same in all processes, but is not: process {jax.process_index()} "
            f"of {jax.process_count()} has {options[name]}."
        )


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
    if config.examples is not None and config.batch_size is not None and config.examples < config.batch_size:
        raise UsageError(f"--examples must be at least --batch-size, but {config.examples} < {config.batch_size}.")
    check_loop(config, examples)
    if config.weight_decay is not None and not 0 <= config.weight_decay < float("inf"):
        raise UsageError(f"--weight-decay must be at least 0 and finite, but is {config.weight_decay}.")
    if config.clip is not None and not 0 < config.clip < float("inf"):
        raise UsageError(f"--clip must be positive and finite, but is {config.clip}.")
    if not 0 <= config.label_smoothing < 1:
        raise UsageError(f"--label-smoothing must satisfy 0 <= ε < 1, but is {config.label_smoothing}.")
    for name in ("steps_per_call", "checkpoint_every", "keep"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UsageError(f"{flag(name, '').strip()} must be at least 1, but {value} < 1.")
    devices, processes = jax.local_device_count(), jax.process_count()
    if not 1 <= config.devices <= devices:
        raise UsageError(
            f"--devices must satisfy 1 <= devices <= {devices}, those that JAX finds here, but is {config.devices}."
        )
    if config.batch_size is not None and config.batch_size % (config.devices * processes):
        raise UsageError(
            f"--batch-size must be a multiple of all devices, but {config.batch_size} % {config.devices * processes} = "
            f"{config.batch_size % (config.devices * processes)}. Each takes the same part of a batch."
        )
    if config.out is None and (config.resume or config.checkpoint_every is not None):
        raise UsageError(
            f"{'--resume' if config.resume else '--checkpoint-every'} needs a folder for checkpoints. Say --out DIR."
        )
    if config.resume and config.overwrite:
        raise UsageError("--resume continues a run and --overwrite deletes it. Say one of them.")


def dataset_of(config: Config) -> data.Dataset:
    """The images that `--data` names, of each part the first `--examples`."""
    named = config.data
    dataset = own_data.load(named) if isinstance(named, Path) else data.load(named, config.data_dir)
    if config.examples is None:
        return dataset
    held = len(dataset.train_labels)
    if not 1 <= config.examples <= held:
        raise UsageError(
            f"--examples must satisfy 1 <= examples <= {held}, the training examples of {config.data}, "
            f"but is {config.examples}."
        )
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return dataset._replace(**{part: getattr(dataset, part)[: config.examples] for part in parts})


def fingerprint(dataset: data.Dataset) -> int:
    """What tells a data set from another: labels, sizes, and what standardises it, which depends on every pixel."""
    sizes = (dataset.train_images.shape, dataset.test_images.shape, dataset.mean, dataset.std, dataset.scale)
    total = zlib.crc32(repr(sizes).encode())
    for labels in (dataset.train_labels, dataset.test_labels):
        total = zlib.crc32(np.asarray(labels, np.int32).tobytes(), total)
    return total


def check_data(dataset: data.Dataset, held: Any, config: Config) -> None:
    """Refuse to go on with other images than a run was begun with."""
    if fingerprint(dataset) != held:
        raise UsageError(
            f"{config.data} holds other images or labels than those that the run was begun with. Put these back, or "
            "name another folder for another run."
        )


def rules_of(config: Config) -> Any:
    """The rules that `--rules` names, or those that a file of that name holds."""
    if not isinstance(config.rules, Path):
        return config.rules
    try:
        return load_rules(config.rules)
    except (OSError, ValueError) as error:
        raise UsageError(f"--rules: {error}") from error


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


def remedies(config: Config) -> str:
    """What to change when a training diverges."""
    rate = f"a lower --learning-rate (now {config.learning_rate:g})"
    clip = "--clip 1 against long gradients" if config.clip is None else f"a lower --clip (now {config.clip:g})"
    return f"{rate} or {clip}" + (", or --dtype bfloat16" if config.dtype == "float16" else "")
