"""What a network of the bench is: a builder of (loss, arguments) from a seed, a dtype and the functions it is made of.

A network calls its functions through `op(site, function)`. `sound` hands each one back; `breaking(site, fault)` hands
back the one at that site with a gradient that is wrong. So every right network is also a place for wrong rules, and a
wrong network differs from its right twin in one rule and in nothing else.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.verdicts.broken import Backward, with_gradient

Function = Callable[..., Any]
Op = Callable[[str, Function], Function]
Fault = Callable[[Function], Backward]
Built = tuple[Callable[..., jax.Array], tuple[Any, ...]]

HALF = ("bfloat16", "float16")
DTYPES = ("float32", *HALF)


class Draw:
    """Random arrays of one dtype; the same numbers in each.

    Attributes:
      seed: as given, and what the numbers depend on beside the name of the network.
      dtype: of what is drawn, integers excepted.
    """

    def __init__(self, name: str, seed: int, dtype: Any) -> None:
        self.seed, self.dtype = seed, jnp.dtype(dtype)
        self.random = np.random.default_rng([zlib.crc32(name.encode()), seed])

    def normal(self, *shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * self.random.standard_normal(shape), self.dtype)

    def kernel(self, *shape: int, gain: float = 1.0) -> jax.Array:
        """Weights that keep the scale: the last axis counts the outputs, the others are summed over."""
        return self.normal(*shape, scale=math.sqrt(gain / math.prod(shape[:-1])))

    def affine(self, inputs: int, outputs: int, gain: float = 1.0) -> list[jax.Array]:
        """Weights and biases of a dense layer, none of them exactly 0."""
        return [self.kernel(inputs, outputs, gain=gain), self.normal(outputs, scale=0.1)]

    def scaling(self, features: int) -> list[jax.Array]:
        """Scale and bias of a norm, none of them exactly 1 or 0."""
        return [1 + self.normal(features, scale=0.1), self.normal(features, scale=0.1)]

    def integers(self, below: int, *shape: int) -> jax.Array:
        return jnp.asarray(self.random.integers(0, below, shape), jnp.int32)

    def cast(self, tree: Any) -> Any:
        """The floating leaves of a tree in this dtype."""
        return jax.tree.map(lambda a: a.astype(self.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def sound(site: str, function: Function) -> Function:
    """Every function with its own gradient."""
    return function


class Network(NamedTuple):
    """A network whose gradient is to be judged.

    Attributes:
      name: unique; its first word is the family, and it seeds the numbers.
      make: (draw, op) -> a scalar loss and the arguments it is differentiated in. Data is bound by a closure.
      dtypes: in which it is judged.
      seeded: what seeds the numbers; a wrong network has those of its right twin.
      op: `sound`, or the one fault.
    """

    name: str
    make: Callable[[Draw, Op], Built]
    dtypes: tuple[str, ...] = DTYPES
    seeded: str = ""
    op: Op = sound

    def build(self, seed: int, dtype: Any, op: Op | None = None) -> Built:
        """The loss and its arguments, of numbers that depend on name and seed alone."""
        return self.make(Draw(self.seeded or self.name, seed, dtype), op or self.op)

    def broken(self, site: str, kind: str, fault: Fault, dtypes: tuple[str, ...]) -> Network:
        """This network with a wrong rule at one site."""
        name = f"{self.name}: {site}, {kind}"
        return Network(name, self.make, dtypes, self.seeded or self.name, breaking(site, fault))


def breaking(site: str, fault: Fault) -> Op:
    """A wrong gradient at one site."""
    return lambda at, function: with_gradient(function, fault(function)) if at == site else function


def through(op: Op, params: Any) -> Any:
    """The parameters, each through a site named after its path: what a fault there breaks is their gradient."""
    return jax.tree_util.tree_map_with_path(
        lambda at, a: op(jax.tree_util.keystr(at, simple=True, separator="/"), _same)(a), params
    )


def _same(a: jax.Array) -> jax.Array:
    return a
