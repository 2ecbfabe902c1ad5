"""Whole training steps: forward, backward and optimiser, as a program would run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.maps import Function
from experiments.benchmark.race import Contestant, compiled
from jaxconv import softmax_cross_entropy
from jaxconv.layers import Layer
from jaxconv.models import MODELS
from jaxconv.ops.arguments import Rules

RATES = {"adam": 1e-4, "momentum": 1e-4}
# (expansion, channels, repeats, stride) of each stage of the MobileNet
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 2, 2), (6, 64, 3, 2), (6, 96, 2, 1))


@dataclass(frozen=True)
class Network:
    """A network of `jaxconv.models`, and a batch for it."""

    title: str
    net: str
    batch: int
    image: tuple[int, int, int]
    optimizer: Literal["adam", "momentum"] = "momentum"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        height, _, channels = self.image
        return f"{self.title}, {self.batch}×{height}²×{channels}"

    def layer(self) -> Layer:
        return MODELS[self.net](**self.options)

    def arrays(self) -> tuple[Any, Any, np.ndarray, np.ndarray]:
        """Parameters, state, images and labels."""
        params, state, _ = self.layer().init(jax.random.key(0), (self.batch, *self.image))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.image), np.float32)
        return params, state, x, rng.integers(10, size=self.batch)

    def shrunk(self) -> Self:
        """The same kind of network, for a test; odd sizes, which a stride of 2 treats alike everywhere."""
        small: dict[str, dict[str, Any]] = {
            "cnn": {},
            "resnet18": {"width": 4},
            "mobilenet_v2": {"stages": ((1, 4, 1, 1), (2, 6, 2, 2)), "stem": 4, "head": 8},
            "convnext": {"widths": (4, 6), "depth": 1, "patch": 2},
        }
        size = 8 if self.net in ("cnn", "convnext") else 9
        return dataclasses.replace(self, batch=3, image=(size, size, self.image[-1]), options=small[self.net])


STEPS = (
    Network("MNIST CNN", "cnn", 128, (28, 28, 1), "adam"),
    Network("ResNet-18", "resnet18", 32, (32, 32, 3)),
    Network("MobileNet-V2-like", "mobilenet_v2", 32, (32, 32, 3), options={"stages": STAGES}),
    Network("two ConvNeXt blocks", "convnext", 8, (224, 224, 3), options={"widths": (96,), "depth": 2, "patch": 4}),
)
PER_EXAMPLE = Network("MNIST CNN", "cnn", 64, (28, 28, 1))


def objective(layer: Layer, rules: Rules, *, train: bool = True) -> Function:
    """The loss of a batch, and the new state. A sum, not a mean, whose gradients 16 bits can hold."""

    def loss(params: Any, state: Any, x: Any, labels: Any, key: Any) -> tuple[Any, Any]:
        logits, new = layer.apply(params, state, x, train=train, key=key, rules=rules)
        return softmax_cross_entropy(logits, labels, rules=rules).sum(), new

    return loss


def _like(params: Any, x: jax.Array) -> Any:
    """Parameters in the dtype of the images; an optimiser keeps them in float32."""
    return jax.tree.map(lambda a: a.astype(x.dtype), params)


def training(
    loss: Function, optimizer: str, params: Any, state: Any, x: np.ndarray, labels: Any, dtype: str
) -> Contestant:
    """A training step that updates its parameters, state and optimiser state in place."""
    rate = RATES[optimizer]
    update = optax.adam(rate) if optimizer == "adam" else optax.sgd(rate, momentum=0.9)

    def step(params: Any, state: Any, opt_state: Any, x: Any, labels: Any, key: Any) -> tuple[Any, Any, Any, Any]:
        def value(params: Any) -> tuple[Any, Any]:
            return loss(_like(params, x), state, x, labels, key)

        (total, new), grads = jax.value_and_grad(value, has_aux=True)(params)
        updates, opt_state = update.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state, total

    carry = jax.tree.map(jnp.array, (params, state, update.init(params)))  # copies: the step consumes them
    fixed = (jnp.asarray(x, dtype), jnp.asarray(labels), jax.random.key(1))
    program, seconds, size = compiled(step, *carry, *fixed, donate=(0, 1, 2))

    def call() -> Any:
        nonlocal carry
        *carry, total = program(*carry, *fixed)
        return total

    first = call()
    # What an optimiser remembers of its first step is the gradient, scaled.
    gradient = optax.tree_utils.tree_get(carry[2], "mu" if optimizer == "adam" else "trace")
    result = {"loss": first, "gradient": jax.device_get(gradient)}  # on the host: the next step consumes it
    return Contestant(call, jax.block_until_ready, result, seconds, size)


def per_example(loss: Function) -> Function:
    """The gradient of every example's own loss."""

    def gradients(params: Any, state: Any, x: Any, labels: Any) -> Any:
        def one(params: Any, image: Any, label: Any) -> Any:
            return loss(_like(params, x), state, image[None], label[None], None)[0]

        return jax.vmap(jax.grad(one), (None, 0, 0))(params, x, labels)

    return gradients
