"""What the tests of `check` judge: right functions, and rules that change their gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COSTLY = ("vmap", "jit")  # kinds that cost a compilation each and are not the point of most tests


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def ruled(primal: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """`primal` with a rule that changes its right cotangents."""

    @jax.custom_vjp
    def f(*args: Any) -> Any:
        return primal(*args)

    f.defvjp(lambda *args: (primal(*args), args), lambda args, g: change(*jax.vjp(primal, *args)[1](g)))
    return f


def square(x: Any) -> Any:
    return x * x
