"""A function that was written in `lax`, and what `manual` makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxconv.transforms.program import equations

NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: Any, w: Any) -> Any:
    """A convolution of images that keeps their size."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)


def max_pool(x: Any, window: tuple[int, ...] = (1, 2, 2, 1), padding: Any = "VALID") -> Any:
    return lax.reduce_window(x, -np.inf, lax.max, window, window, padding)


def random(*shape: int, dtype: Any = np.float64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def program(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[JaxprEqn]:
    """The equations of f and of the programs within."""
    return equations(jax.make_jaxpr(f)(*args, **kwargs).jaxpr)


def primitives(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Counter[str]:
    """How often which primitive is in f's program."""
    return Counter(eqn.primitive.name for eqn in program(f, *args, **kwargs))


def weighted(f: Callable[..., Any]) -> Callable[..., Any]:
    """The sum of what f returns, each entry by a number of its own: a loss whose cotangent is no constant."""

    def loss(*args: Any) -> Any:
        leaves = [y for y in jax.tree.leaves(f(*args)) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum((y * np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype)).sum() for y in leaves)

    return loss


def assert_close(got: Any, want: Any, rtol: float = 1e-11) -> None:
    """Equal but for rounding, in structure, dtype and every entry as measured by the largest."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a), np.asarray(b)
        wide = np.complex128 if np.iscomplexobj(b) else np.float64
        a, b = a.astype(wide), b.astype(wide)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(initial=0))
