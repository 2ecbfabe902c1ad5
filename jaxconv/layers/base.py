"""What a layer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
State = Any
Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A pair of pure functions; see the module's head for their contract.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import layers
      >>> net = layers.serial(layers.Conv(8, 3), layers.Activation(jax.nn.relu), layers.Flatten(), layers.Dense(10))
      >>> params, state, shape = net.init(jax.random.key(0), (1, 8, 8, 1))
      >>> y, state = net.apply(params, state, jnp.ones((4, 8, 8, 1)), rules="rotated")
      >>> shape, y.shape
      ((1, 10), (4, 10))
    """

    init: Callable[[jax.Array, Shape], tuple[Params, State, Shape]]
    apply: Callable[..., tuple[jax.Array, State]]
