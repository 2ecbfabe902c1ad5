"""The compiled programs of one training, and the arrays that they update.

A step is a pure function of what is carried and of its number: the order of the examples of an epoch, their
augmentation and dropout are drawn from the seed and from numbers of epochs and steps, never from what was drawn before.
So a training may be cut anywhere, and continued, and ends with the same bits.

`train_steps` is what a run calls, for which the host waits once and not once a step: a loop over the steps, compiled
once for any number of them, which takes its batches from the images on the device; or, without `--loop`, the same step
begun again before the one before it has ended. Images that do not fit are streamed to one step after the other.
`train_batch` is one step on examples of the caller's choice. In the order of `order`, all of them compute the same.

On a CPU there is no loop unless it is asked for: inside one XLA does not call its fast convolutions. Measured, CPU time
of a step of `cnn` on 128 digits, one by one and in a loop, 2 cores of an AMD EPYC, jax 0.10.2, 2026-11-26: by the fast
rules 4.4 and 3.9 ms, in float64 12.4 and 12.6; by `autodiff`, which is XLA's own convolution, 7.3 and 118. And the
host has little to wait for: with 128 images of MNIST a step, 4,449 images/s when it waits for each, 4,519 begun ahead,
4,616 in a loop (medians of 11 rounds of 20 steps that took turns, the rounds between 3,287 and 5,620).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import data
from experiments.augmentation import augmented
from experiments.config import OPTIMIZERS, Config, learning_rate, rules_of
from experiments.devices import Devices
from experiments.streaming import fits, prefetched
from jaxconv import MixedPrecision, softmax_cross_entropy
from jaxconv.layers import Layer
from jaxconv.models import MODELS
from jaxconv.transforms.mixed_precision import LossScale


class Carry(NamedTuple):
    """All that changes from step to step."""

    params: Any
    state: Any
    opt_state: Any
    scaling: LossScale | None
    step: jax.Array


class Trainer:
    """One training from its first step to its last."""

    def __init__(self, config: Config, dataset: data.Dataset) -> None:
        assert config.epochs is not None and config.batch_size is not None and config.weight_decay is not None
        self.config, self.dataset, self.batch_size = config, dataset, config.batch_size
        self.rules = rules_of(config)
        self.net: Layer = MODELS[config.model](len(dataset.classes))
        self.policy = MixedPrecision(jnp.dtype(config.dtype))
        self.wide = jnp.dtype(jnp.float64 if config.dtype == "float64" else jnp.float32)
        self.data_on = config.data_on or ("device" if fits(dataset, jax.local_devices()[0]) else "host")
        key, self.dropout_key, self.order_key, self.augment_key = jax.random.split(jax.random.key(config.seed), 4)
        self.per_epoch = len(dataset.train_labels) // config.batch_size
        self.steps = config.epochs * self.per_epoch
        self.schedule = learning_rate(config, self.steps)
        self.optimizer = OPTIMIZERS[config.optimizer].make(self.schedule, config.weight_decay)
        if config.clip is not None:  # of the loss's gradient, before weights decay
            self.optimizer = optax.chain(optax.clip_by_global_norm(config.clip), self.optimizer)
        params, state, _ = self.net.init(key, (config.batch_size, *dataset.train_images.shape[1:]))
        params = jax.tree.map(lambda a: a.astype(self.wide), params)
        begun = Carry(params, state, self.optimizer.init(params), self.policy.init(), jnp.zeros((), jnp.int32))
        self.devices = Devices(config.devices)
        self.carry: Carry = self.devices.put(begun)
        everywhere = self.devices.everywhere
        self._resident: dict[str, tuple[jax.Array, jax.Array]] = {}
        self._order = jax.jit(self._permutation, out_shardings=everywhere)
        self._ordered: tuple[int, jax.Array] | None = None
        self._step = jax.jit(self._train_step, donate_argnums=0, out_shardings=everywhere)
        self._step_at = jax.jit(self._train_step_at, donate_argnums=0, out_shardings=everywhere)
        self._loop = jax.jit(self._train_steps, donate_argnums=0, out_shardings=everywhere)
        self._count = jax.jit(self._count_batch, out_shardings=everywhere)
        self._count_at = jax.jit(self._count_rows, out_shardings=everywhere)
        self._count_all = jax.jit(self._count_batches, out_shardings=everywhere)

    @property
    def params(self) -> Any:
        return self.carry.params

    @property
    def state(self) -> Any:
        return self.carry.state

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.carry.step)

    @property
    def loss_scale(self) -> float | None:
        return None if self.carry.scaling is None else float(self.carry.scaling.scale)

    def images(self, pixels: jax.Array) -> jax.Array:
        """Bytes to standardised numbers, inside the compiled program."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.dataset.mean, self.dataset.std))
        pixels = self.devices.split(pixels)
        return (pixels.astype(jnp.float32) / self.dataset.scale - mean) / std

    def logits(self, params: Any, state: Any, images: jax.Array, **mode: Any) -> tuple[jax.Array, Any]:
        return self.net.apply(params, state, images, rules=self.rules, dtype=self.policy.dtype, **mode)

    def _train_step(self, carry: Carry, pixels: jax.Array, labels: jax.Array) -> tuple[Carry, jax.Array]:
        """One step of the optimiser, and the loss before it."""
        params, state, opt_state, scaling, step = carry
        images = self.images(pixels)
        if self.config.augment:
            images = augmented(jax.random.fold_in(self.augment_key, step), images, self.config.augment)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            key = jax.random.fold_in(self.dropout_key, step)
            logits, new_state = self.logits(params, state, images, train=True, key=key)
            losses = softmax_cross_entropy(
                logits, labels, label_smoothing=self.config.label_smoothing, rules=self.rules
            )
            return losses.mean(), new_state

        graded = self.policy.value_and_grad(objective, has_aux=True)
        (loss, new_state), grads, scaling, finite = graded(scaling, params)
        updates, moments = self.optimizer.update(grads, opt_state, params)
        moved = (optax.apply_updates(params, updates), new_state, moments)
        params, state, opt_state = self.policy.accept(finite, moved, (params, state, opt_state))
        return Carry(params, state, opt_state, scaling, step + 1), loss

    def train_batch(self, rows: np.ndarray) -> float:
        """One step of the optimiser on these rows of the training part; the loss before the step."""
        pixels, labels = self.dataset.train_images[rows], self.dataset.train_labels[rows]
        self.carry, loss = self._step(self.carry, pixels, labels)
        return float(loss)

    def _permutation(self, epoch: int) -> jax.Array:
        examples = jnp.arange(len(self.dataset.train_labels), dtype=jnp.int32)
        return jax.random.permutation(jax.random.fold_in(self.order_key, epoch), examples)

    def order(self, epoch: int) -> jax.Array:
        """The training examples as epoch 0, 1, … meets them; those that fill no batch are at the end."""
        if self._ordered is None or self._ordered[0] != epoch:
            self._ordered = epoch, self._order(epoch)
        return self._ordered[1]

    def _train_step_at(
        self, carry: Carry, images: jax.Array, labels: jax.Array, order: jax.Array, i: jax.Array
    ) -> tuple[Carry, jax.Array]:
        """Step i of an epoch."""
        rows = lax.dynamic_slice_in_dim(order, i * self.batch_size, self.batch_size)
        return self._train_step(carry, images[rows], labels[rows])

    def _train_steps(
        self, carry: Carry, images: jax.Array, labels: jax.Array, order: jax.Array, first: int, count: int
    ) -> tuple[Carry, jax.Array]:
        """Steps first, …, first + count − 1 of an epoch, and their losses; neither is known to the compiler."""

        def step(i: jax.Array, carried: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            carry, losses = carried
            carry, loss = self._train_step_at(carry, images, labels, order, i)
            return carry, losses.at[i].set(loss)

        return lax.fori_loop(first, first + count, step, (carry, jnp.zeros(self.per_epoch, self.wide)))

    def train_steps(self, count: int) -> np.ndarray:
        """The next `count` steps, all of one epoch; the loss before each."""
        epoch, first = divmod(self.step, self.per_epoch)
        order = self.order(epoch)
        if self.data_on == "device" and self.config.loop:
            self.carry, losses = self._loop(self.carry, *self.resident("train"), order, first, count)
            return np.asarray(losses)[first : first + count]
        begun = []
        if self.data_on == "device":
            for i in range(first, first + count):
                self.carry, loss = self._step_at(self.carry, *self.resident("train"), order, np.int32(i))
                begun.append(loss)
        else:
            rows = np.asarray(order)[first * self.batch_size : (first + count) * self.batch_size]
            for batch in prefetched(self.batches("train", rows.reshape(count, -1))):
                self.carry, loss = self._step(self.carry, *batch)
                begun.append(loss)
        return np.asarray(jax.device_get(begun))

    def batches(self, part: str, rows: np.ndarray) -> Iterator[tuple[jax.Array, jax.Array]]:
        """These rows of a part, a batch at a time, on their way to the device."""
        images, labels = self._held(part)
        return (self.devices.put_batch((images[batch], labels[batch])) for batch in rows)

    def resident(self, part: str) -> tuple[jax.Array, jax.Array]:
        """Images and labels of a part, on the device from the first use on."""
        if part not in self._resident:
            images, labels = self._held(part)
            self._resident[part] = self.devices.put(images), self.devices.put(labels)
        return self._resident[part]

    def _held(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a part, on the host."""
        return getattr(self.dataset, f"{part}_images"), getattr(self.dataset, f"{part}_labels")

    def _count_batch(
        self, params: Any, state: Any, pixels: jax.Array, labels: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The sum of the losses, and how many answers are right, over the examples that are real."""
        logits, _ = self.logits(params, state, self.images(pixels))
        losses = softmax_cross_entropy(logits, labels, rules=self.rules)
        return jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real & (logits.argmax(-1) == labels))

    def _count_rows(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array, rows: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return self._count_batch(params, state, images[rows], labels[rows], real)

    def _count_batches(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array, rows: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return lax.map(lambda batch: self._count_rows(params, state, images, labels, *batch), (rows, real))

    def evaluate(self, batch_size: int = 500) -> tuple[float, float]:
        """Mean loss and accuracy over the whole test part, every example exactly once."""
        count = len(self.dataset.test_labels)
        size = -(-min(batch_size, count) // self.devices.count) * self.devices.count
        # The last batch is filled up with examples that do not count, so that one program serves all.
        places = np.arange(-(-count // size) * size).reshape(-1, size)
        rows, real = places % count, places < count
        weights = self.params, self.state
        if self.data_on == "device" and self.config.loop:
            losses, hits = self._count_all(*weights, *self.resident("test"), rows, real)
        else:
            if self.data_on == "device":
                resident = self.resident("test")
                begun = [self._count_at(*weights, *resident, *batch) for batch in zip(rows, real, strict=True)]
            else:
                batches = zip(prefetched(self.batches("test", rows)), real, strict=True)
                begun = [self._count(*weights, *batch, counts) for batch, counts in batches]
            losses, hits = zip(*begun, strict=True)
        losses, hits = jax.device_get((losses, hits))
        return float(np.sum(losses, dtype=float)) / count, int(np.sum(hits)) / count
