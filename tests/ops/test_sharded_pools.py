"""Pools of an image spread over several devices: the numbers, ties and borders are those of one that is whole."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv import sharded
from tests.support.devices import cpu_mesh
from tests.support.rule_sets import RULES

FOUR = {"rows": 4}
SQUARE = {"rows": 2, "columns": 2}


class Pool(NamedTuple):
    """A pool over x's spatial axes on a mesh."""

    x: tuple[int, ...]
    window: Any
    options: dict[str, Any]
    mesh: dict[str, int]
    split: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.x}/{self.window}-{self.options}-{self.split}".replace(" ", "")

    @property
    def spec(self) -> P:
        """How x, y and δ are split."""
        return P(None, None, *self.split) if "layout" in self.options else P(None, *self.split)


POOLS = [
    Pool((2, 8, 6, 8), 3, {"stride": 2, "padding": 1}, FOUR, ("rows", None)),  # channels for the native engine
    Pool((1, 16, 6, 2), 3, {"stride": 2, "ceil_mode": True}, FOUR, ("rows", None)),
    Pool((1, 8, 8, 2), (3, 2), {"stride": (1, 2), "padding": "SAME", "dilation": (2, 1)}, SQUARE, ("rows", "columns")),
    Pool((1, 4, 8, 4, 1), 2, {"stride": (1, 2, 1), "padding": "SAME"}, SQUARE, ("rows", "columns", None)),
    Pool((1, 8, 2), 2, {"stride": 1, "padding": ((3, -2),)}, FOUR, ("rows",)),  # windows of nothing but padding
    Pool((1, 8, 2), 7, {"stride": 1, "padding": "SAME"}, FOUR, ("rows",)),  # a halo wider than a shard
]
MORE_POOLS = [
    Pool((2, 8, 6, 3), 2, {}, FOUR, ("rows", None)),  # no halo
    Pool((1, 8, 2), 3, {"stride": 1, "padding": ((2, 0),)}, FOUR, ("rows",)),
    Pool((1, 8, 2), 3, {"stride": 1, "padding": ((-1, 3),)}, FOUR, ("rows",)),
    Pool((1, 12, 2), 2, {"stride": 3}, FOUR, ("rows",)),
    Pool((2, 3, 8, 4), (3, 3), {"stride": 1, "padding": 1, "layout": "NCHW"}, SQUARE, ("columns", "rows")),
    Pool((1, 4, 8, 4, 8), 3, {"stride": 2, "padding": 1}, SQUARE, (None, ("columns", "rows"), None)),
]
EVERY = pytest.mark.parametrize(
    "pool", [*POOLS, *(pytest.param(p, marks=pytest.mark.thorough) for p in MORE_POOLS)], ids=str
)


def whole_numbers(shape: tuple[int, ...], most: int, seed: int) -> np.ndarray:
    """Sums of them are exact, and many are alike."""
    return np.random.default_rng(seed).integers(-most, most, shape).astype(np.float64)


def programs(name: str, pool: Pool, rules: str = "fast", **options: Any) -> tuple[Any, ...]:
    """x -> (y, its derivative along a tangent, dx), of the image on the mesh and of the image as a whole."""
    options |= pool.options
    whole = partial(getattr(jaxconv, name), window=pool.window, **options)
    spread = partial(getattr(sharded, name), window=pool.window, split=pool.split, rules=rules, **options)
    x = jax.ShapeDtypeStruct(pool.x, np.float64)
    tangent, delta = whole_numbers(x.shape, 5, 1), whole_numbers(jax.eval_shape(whole, x).shape, 5, 2)

    def all_of(op: Any, x: Any, tangent: Any, delta: Any) -> Any:
        y, pullback = jax.vjp(op, x)
        along = [jax.jvp(op, (x,), (tangent,))[1]] if rules in ("fast", "autodiff") else []
        return y, *along, *pullback(delta)

    mesh, cut = cpu_mesh(AxisType.Auto, **pool.mesh), pool.spec
    ours = jax.shard_map(partial(all_of, spread), mesh=mesh, in_specs=cut, out_specs=cut)
    theirs = partial(all_of, whole)
    return tuple(jax.jit(lambda x, f=f: f(x, tangent, delta)) for f in (ours, theirs))


def assert_close(got: Any, want: Any) -> None:
    """But for the order of a sum."""
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)


@EVERY
def test_ties_and_windows_without_a_number_are_those_of_the_whole_to_the_last_bit(pool: Pool) -> None:
    """The first of equal elements has the gradient, whichever shard it lies in, and padding never has it."""
    ties = whole_numbers(pool.x, 2, 0)
    nothing = np.where(np.random.default_rng(3).random(pool.x) < 0.5, -np.inf, ties)
    axis = next(i for i, names in enumerate(pool.spec) if names)
    nothing.swapaxes(0, axis)[: pool.x[axis] // 2] = -np.inf  # half of the shards, and the padding before them
    nothing.swapaxes(0, axis)[-2] = np.nan
    ours, theirs = programs("max_pool", pool)
    for x in (ties, nothing):
        for a, b in zip(ours(x), theirs(x), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rules", ["fast", "autodiff"])
@pytest.mark.parametrize("pool", [POOLS[0], POOLS[4]], ids=str)
def test_padding_is_less_than_any_number_where_nothing_is_differentiated(pool: Pool, rules: str) -> None:
    x = -1 - np.abs(whole_numbers(pool.x, 5, 0))
    spread = partial(sharded.max_pool, window=pool.window, split=pool.split, rules=rules, **pool.options)
    mesh, cut = cpu_mesh(AxisType.Auto, **pool.mesh), pool.spec
    y = jax.jit(jax.shard_map(spread, mesh=mesh, in_specs=cut, out_specs=cut))(x)
    assert y.max() < 0
    np.testing.assert_array_equal(y, jaxconv.max_pool(x, pool.window, rules=rules, **pool.options))


@EVERY
@pytest.mark.parametrize("count_padding", [False, True])
def test_an_average_counts_padding_only_at_the_ends_of_the_image(pool: Pool, count_padding: bool) -> None:
    ours, theirs = programs("avg_pool", pool, count_padding=count_padding)
    x = whole_numbers(pool.x, 5, 0)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("rules", [r for r in RULES if r != "fast"])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_every_rule_set_is_spread(op: str, rules: str) -> None:
    pool = POOLS[-1]
    x = np.random.default_rng(0).permutation(np.arange(16.0)).reshape(pool.x)  # no ties: JAX breaks them otherwise
    ours, theirs = programs(op, pool, rules)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_second_derivatives_and_batches_of_images(op: str) -> None:
    pool = POOLS[-1]

    def energy(pool_of: Any, x: Any) -> jax.Array:
        return jnp.sum(pool_of(x * x, pool.window, **pool.options) ** 2)

    def twice(pool_of: Any, xs: Any) -> Any:
        return jax.vmap(lambda x: jax.jvp(jax.grad(partial(energy, pool_of)), (x,), (x,))[1])(xs)

    xs = np.random.default_rng(0).permutation(np.arange(48.0)).reshape(3, *pool.x)
    spread, cut = partial(getattr(sharded, op), split=pool.split), P(None, *pool.spec)
    mesh = cpu_mesh(AxisType.Auto, **pool.mesh)
    got = jax.jit(jax.shard_map(partial(twice, spread), mesh=mesh, in_specs=cut, out_specs=cut))(xs)
    np.testing.assert_allclose(got, jax.jit(partial(twice, getattr(jaxconv, op)))(xs), rtol=1e-13)
