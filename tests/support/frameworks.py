"""What the tests of frameworks share: what is in a program, and what it means that two trainings are the same."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv
from jaxconv.engines.onednn import loading
from tests.support.replaced import primitives

# What JAX's own gradient of a convolution or of a pool is made of.
JAX_GRADIENTS = {"conv_general_dilated", "select_and_scatter_add", "select_and_gather_add"}
NATIVE = loading.why_off() is None
STEPS = 20
DEPTH = 20


def ours(found: Counter[str]) -> set[str]:
    return {name for name in found if name.startswith("jaxconv_")}


def cast(tree: Any, dtype: Any) -> Any:
    """A tree with its floating arrays in another dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


class Training(NamedTuple):
    """What is compared of a training of `STEPS` steps."""

    grads: Any
    after_a_step: Any
    losses: Any


def training(step: Callable[..., Any], carried: Any, keys: Any) -> Training:
    """What step, (*carried, key) -> carried, loss, gradient, does with each of the keys."""
    carried, value, grads = step(*carried, keys[0])
    first, losses = carried, [value]
    for key in keys[1:]:
        carried, value, _ = step(*carried, key)
        losses.append(value)
    return Training(grads, first, jnp.stack(losses))


def trained(loss: Callable[..., Any], params: Any, state: Any, x: Any) -> Training:
    """A training of parameters by a loss (params, state, x, key) -> value, new state."""
    optimizer = optax.sgd(0.05, momentum=0.9)

    @jax.jit
    def step(params: Any, state: Any, memory: Any, key: Any) -> Any:
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x, key)
        updates, memory = optimizer.update(grads, memory)
        return (optax.apply_updates(params, updates), state, memory), value, grads

    return training(step, (params, state, optimizer.init(params)), jax.random.split(jax.random.key(1), STEPS))


def assert_same(got: Any, want: Any) -> None:
    """Norm-wise, array by array, to 1e-11: thousands of float64 roundings; integers, dtypes and structure exactly."""
    for path, a, b in pairs(got, want):
        size = float(np.linalg.norm(b))
        error = float(np.linalg.norm(a - b))
        assert error <= 1e-11 * max(size, 1e-3), f"{path}: {error:.1e} of {size:.1e}"


def assert_near(got: Any, exact: Any, eps: float = float(np.finfo(np.float32).eps)) -> None:
    """`got`, whose numbers are rounded to `eps`, is `exact` but for that: norm-wise, array by array.

    The nets are some twenty maps deep, forth and back, and each adds an eps. What is small because it cancels is
    rounded like what it is the rest of: an array counts as a hundredth of the largest entry of all at least.
    """
    found = pairs(got, exact, dtypes=False)
    least = 1e-2 * max(float(np.abs(b).max(initial=0)) for _, _, b in found)
    for path, a, b in found:
        size = float(np.linalg.norm(b))
        error = float(np.linalg.norm(a - b))
        assert error <= 2 * DEPTH * eps * max(size, least), f"{path}: {error:.1e} of {size:.1e}"


def pairs(got: Any, want: Any, *, dtypes: bool = True) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The floating arrays of two trees by their paths, in float64, once all else is known to be equal."""
    got, want = ([(p, jnp.asarray(a)) for p, a in jax.tree.leaves_with_path(tree)] for tree in (got, want))
    assert [path for path, _ in got] == [path for path, _ in want]
    assert [a.shape for _, a in got] == [b.shape for _, b in want]
    assert not dtypes or [a.dtype for _, a in got] == [b.dtype for _, b in want]
    both = [(jax.tree_util.keystr(path), _numbers(a), _numbers(b)) for (path, a), (_, b) in zip(got, want, strict=True)]
    floating = [np.issubdtype(b.dtype, np.floating) for _, _, b in both]
    for (path, a, b), inexact in zip(both, floating, strict=True):
        assert inexact or (a == b).all(), f"{path}: {a} != {b}"
    return [(path, a.ravel(), b.ravel()) for (path, a, b), inexact in zip(both, floating, strict=True) if inexact]


def _numbers(a: jax.Array) -> np.ndarray:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(a))
    return np.asarray(a).astype(np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else np.asarray(a)


def assert_layer(
    layer: Callable[..., Any], *args: Any, rules: bool = True, close: Callable[[Any, Any], None] = assert_same
) -> None:
    """A layer and its gradients through `manual` are its own; `rules` says whether any of ours is in them."""

    def results(layer: Callable[..., Any], *args: Any) -> Any:
        y, transposed = jax.vjp(layer, *args)
        return y, transposed(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with warnings.catch_warnings():
        warnings.simplefilter("error" if rules else "ignore")  # that nothing is replaced
        got = functools.partial(results, jaxconv.manual(layer))
        found = primitives(got, *args)
        assert bool(ours(found)) == rules, found
        assert not rules or not JAX_GRADIENTS & found.keys(), found
        close(jax.jit(got)(*args), jax.jit(functools.partial(results, layer))(*args))
