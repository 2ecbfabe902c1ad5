"""What parameters start at: a number, or what an initialiser draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.layers.base import Shape, constant
from jaxconv.ops.arguments import number

# (key, shape, dtype) -> an array of that shape and dtype, as those that jax.nn.initializers makes; or a number for all.
Initializer = Callable[..., Any] | float


def check_initial(function: str, name: str, value: Any) -> Initializer:
    """An initialiser, as far as it can be judged before there is a shape."""
    if callable(value):
        return value
    if isinstance(value, str) or not np.isscalar(value):
        raise TypeError(
            f"{function}: {name} must be a number or an initialiser, such as jax.nn.initializers.he_normal(), "
            f"but is {value!r}."
        )
    return number(function, name, value)


def start(function: str, key: jax.Array, **parameters: tuple[Initializer, Shape]) -> dict[str, jax.Array]:
    """Parameters by the name of their option: each from a key of its own, the first from that of the layer."""
    made = {}
    for i, (name, (init, shape)) in enumerate(parameters.items()):
        if callable(init):
            made[name] = _drawn(function, name, init, jax.random.fold_in(key, i) if i else key, shape)
        else:
            made[name] = constant(shape, init)
    return made


def _drawn(function: str, name: str, init: Callable[..., Any], key: jax.Array, shape: Shape) -> jax.Array:
    """What an initialiser returns, held to what it was asked for."""
    try:
        value = init(key, shape, jnp.float32)
    except Exception as error:
        error.add_note(f"{function}: {name} was called with a key, the shape {shape} and the dtype float32.")
        raise
    if not isinstance(value, jax.Array | np.ndarray):
        remedy = " Is it he_normal where he_normal() was meant?" if callable(value) else ""
        raise TypeError(f"{function}: {name} must return an array, but returns a {type(value).__name__}.{remedy}")
    if value.shape != shape or value.dtype != jnp.float32:
        raise ValueError(
            f"{function}: {name} must return what it is asked for, float32{list(shape)}, but returns "
            f"{value.dtype}{list(value.shape)}. It is called with a key, a shape and a dtype."
        )
    return jnp.asarray(value, jnp.float32)  # a value that Python's numbers were made of would yield to other dtypes
