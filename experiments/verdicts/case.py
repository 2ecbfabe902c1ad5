"""What a case is: a function, arguments for it in any dtype, and the dtypes it is judged in."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """A gradient to judge.

    Attributes:
      name: unique; it seeds the arguments.
      function: of the arguments, differentiable in every floating one.
      arguments: dtype -> a tuple of arrays (or trees of them) of that dtype; integers stay integers.
      dtypes: where a wrong gradient must be rejected, or the one in which a right gradient is to be accepted.
      gain: the size of a wrong gradient's error relative to the gradient; ∞ where nothing of it is right.
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[[Any], tuple[Any, ...]]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    gain: float = math.inf


def generator(name: str) -> np.random.Generator:
    """The same random numbers for the same name, on every machine."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def arrays(name: str, dtype: Any, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Standard normal arrays."""
    random = generator(name)
    return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)


def normal(name: str, *shapes: tuple[int, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """`arrays`, as the arguments of a case."""
    return lambda dtype: arrays(name, dtype, *shapes)


def integers(name: str, below: int, shape: tuple[int, ...]) -> jax.Array:
    """Integers from 0 to `below` − 1."""
    return jnp.asarray(generator(name).integers(0, below, shape), jnp.int32)
