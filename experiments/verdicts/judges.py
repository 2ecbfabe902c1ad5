"""Three judges of a gradient: `jaxconv.check`, `jax.test_util.check_grads`, and comparison for a cotangent of ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import jaxconv
from experiments.verdicts.case import Case

# What people write into np.testing.assert_allclose for gradients of each dtype.
_CLOSE = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


# Whether a verdict of `jaxconv.check` accepts a gradient.
SAID = {"right": True, "wrong": False, "undecided": None}


@contextlib.contextmanager
def setting(dtype: str) -> Iterator[None]:
    """What a user of that dtype would have set."""
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def by_check(case: Case, dtype: str) -> bool | None:
    """Whether `jaxconv.check` accepts the gradient; None if it is undecided."""
    return SAID[jaxconv.check(case.function, *case.arguments(dtype)).verdict]


def by_check_grads(case: Case, dtype: str) -> bool:
    """Whether `jax.test_util.check_grads` does, in reverse mode with its own step and tolerance."""
    function, floats = _of_floats(case, dtype)
    try:  # compiled, because it hands rules NumPy arrays
        check_grads(jax.jit(function), tuple(floats), order=1, modes=("rev",))
    except AssertionError:
        return False
    return True


def by_ones(case: Case, dtype: str) -> bool:
    """Whether the gradient of the sum of all results is close to the automatic one."""
    function, floats = _of_floats(case, dtype)

    def total(of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *xs: sum(jnp.sum(y.astype(jnp.float32)) for y in of(*xs))

    ours, theirs = (
        jax.jit(jax.grad(total(f), tuple(range(len(floats)))))(*floats) for f in (function, jaxconv.automatic(function))
    )
    close = _CLOSE[dtype]
    return all(
        np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=close, atol=close)
        for a, b in zip(ours, theirs, strict=True)
    )


JUDGES: dict[str, Callable[[Case, str], bool | None]] = {
    "jaxconv.check": by_check,
    "jax.test_util.check_grads": by_check_grads,
    "all-ones cotangent": by_ones,
}


def _of_floats(case: Case, dtype: str) -> tuple[Callable[..., Any], list[jax.Array]]:
    """The case as a function of its floating arrays to its floating results."""
    leaves, tree = jax.tree.flatten(case.arguments(dtype))
    where = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def function(*xs: Any) -> list[Any]:
        full = list(leaves)
        for i, x in zip(where, xs, strict=True):
            full[i] = x
        results = jax.tree.leaves(case.function(*jax.tree.unflatten(tree, full)))
        return [y for y in results if jnp.issubdtype(y.dtype, jnp.floating)]

    return function, [leaves[i] for i in where]
