"""The engine's pools: what plain JAX computes, to the last bit or, where it is a sum, within the bound."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.engines import Native
from jaxconv.engines.onednn import loading
from jaxconv.engines.onednn.windows import window
from jaxconv.geometry import Geometry, window_geometry
from jaxconv.ops import max_pool, pool
from jaxconv.windows import tiles, window_counts
from tests.support.tolerance import assert_within_bound

why_off = loading.why_off()
pytestmark = pytest.mark.skipif(why_off is not None, reason=f"the native engine is off: {why_off}")
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)


class Drawn(NamedTuple):
    geometry: Geometry
    counted: tuple[tuple[int, int], ...]
    x: jax.Array
    g: jax.Array


def drawn(seed: int) -> Drawn:
    """A geometry of any rank, its x full of ties, NaN, ±∞ and −0, and a δ."""
    rng = np.random.default_rng(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(low, high + 1, rank)))

    while True:
        rank = int(rng.integers(1, 4))
        spatial, taps, tiled = some(0, 12 // rank + 2), some(1, 4), rng.random() < 0.2
        counted = tuple(zip(some(0, 2), some(0, 2), strict=True))
        padding = counted if rng.random() < 0.5 else tuple(zip(some(-2, 2), some(-2, 2), strict=True))
        try:
            geometry = window_geometry(
                "f", spatial, taps, stride=taps if tiled else some(1, 3), padding=padding,
                dilation=1 if tiled else some(1, 3), layout="NHWC",
            )  # fmt: skip
            break
        except ValueError:
            continue
    batch, channels = int(rng.integers(0, 3)), int(rng.choice([8, 11, 16, 19, 33, 64, 70, 129]))
    dtype = DTYPES[seed % len(DTYPES)]
    x = rng.integers(-2, 3, (batch, *spatial, channels)).astype(np.float32)
    x *= np.where(rng.random(x.shape) < 0.5, 1, -1)  # some zeros are −0
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.04] = value
    x[rng.random(x.shape) < rng.choice([0, 0.7])] = -np.inf
    g = rng.standard_normal((batch, *geometry.out, channels)).astype(np.float32)
    g[rng.random(g.shape) < 0.1] = -0.0
    return Drawn(geometry, counted, jnp.asarray(x, dtype), jnp.asarray(g, dtype))


def places(geometry: Geometry, tap: tuple[int, ...]) -> tuple[Any, Any]:
    """Where windows and the inputs that they read at a tap lie, as indices of arrays, of those that are no padding."""
    windows, inputs = [], []
    for j, a in zip(tap, geometry.axes, strict=True):
        at = np.arange(a.out) * a.stride + j * a.dilation - a.lo
        windows.append(np.flatnonzero((at >= 0) & (at < a.n)))
        inputs.append(at[windows[-1]])
    return np.ix_(*windows), np.ix_(*inputs)


def every(geometry: Geometry) -> Any:
    return enumerate(itertools.product(*map(range, geometry.taps)))


def moved(a: Any) -> np.ndarray:
    """The spatial axes in front, where `places` are indices; floats of 16 bits as float32, which has them all."""
    a = np.asarray(a)
    a = a if a.dtype.itemsize > 2 or a.dtype == np.uint8 else a.astype(np.float32)
    return np.moveaxis(a, 0, -2)


def remembered(x: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((*geometry.out, *x.shape[-2:]), -np.inf, x.dtype)
    winner = np.full(best.shape, -1)
    for number, tap in every(geometry):
        at, there = places(geometry, tap)
        value, old = x[there], best[at]
        wins = (value > old) | (np.isnan(value) & ~np.isnan(old))
        best[at] = np.where(wins, value, old)
        winner[at] = np.where(wins | (winner[at] < 0), number, winner[at])
    return best, np.maximum(winner, 0)


def put(g: np.ndarray, winner: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The sum over all taps of what each puts into zeros, in their order."""
    total: Any = None
    for number, tap in every(geometry):
        at, there = places(geometry, tap)
        placed = np.zeros((*geometry.spatial, *g.shape[-2:]), g.dtype)
        placed[there] = np.where(winner == number, g, 0)[at]
        total = placed if total is None else total + placed
    return total


def spread(g: np.ndarray, geometry: Geometry) -> np.ndarray:
    total = np.zeros((*geometry.spatial, *g.shape[-2:]))
    for _, tap in every(geometry):
        at, there = places(geometry, tap)
        total[there] += g[at]
    return total


def gathered(x: np.ndarray, geometry: Geometry) -> np.ndarray:
    total = np.zeros((*geometry.out, *x.shape[-2:]))
    for _, tap in every(geometry):
        at, there = places(geometry, tap)
        total[at] += x[there]
    return total


def same_bits(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    np.testing.assert_array_equal(actual, expected, what)
    np.testing.assert_array_equal(np.signbit(actual) & ~np.isnan(actual), np.signbit(expected) & ~np.isnan(expected))


@pytest.mark.parametrize("seed", range(0, 120, 20))
def test_max_pools_are_the_plain_ones_to_the_last_bit(seed: int) -> None:
    for d in map(drawn, range(seed, seed + 20)):

        @jax.jit
        def native(x: Any, g: Any, geometry: Geometry = d.geometry) -> Any:
            y, winner = max_pool.REMEMBERED(x, static=geometry)
            (largest,) = max_pool._largest(x, static=geometry)
            pair = max_pool.AT_WINNER
            taken = pair.apply(x, winner, static=geometry)
            return y, winner, largest, taken, pair.transpose(g, winner, static=geometry)

        y, winner, largest, taken, dx = native(d.x, d.g)
        best, first = remembered(moved(d.x), d.geometry)
        same_bits(moved(y), best, f"{d.geometry}: y")
        np.testing.assert_array_equal(moved(winner), first, f"{d.geometry}: taps")
        np.testing.assert_array_equal(moved(largest), best, f"{d.geometry}: maximum")
        nowhere = gathered(np.ones_like(moved(d.x)), d.geometry) == 0
        np.testing.assert_array_equal(moved(taken), np.where(nowhere, 0, best), f"{d.geometry}: taken")
        narrow = put(moved(d.g), first, d.geometry).astype(d.x.dtype).astype(moved(d.g).dtype)
        zero = 0.0 if tiles(d.geometry) else -0.0  # what is put is not added to anything there, and keeps its sign
        same_bits(moved(dx) + zero, narrow + zero, f"{d.geometry}: dx")


@pytest.mark.parametrize("seed", range(1000, 1060, 20))
def test_sums_and_averages_are_within_the_bound(seed: int) -> None:
    for d in map(drawn, range(seed, seed + 20)):
        x, static = jnp.where(jnp.isfinite(d.x), d.x, 1), (d.geometry, d.counted)

        @jax.jit
        def native(x: Any, g: Any, static: Any = static) -> Any:
            sums, averages = pool.WINDOW_SUM, pool._averages
            forwards = sums.apply(x, static=static[0]), averages.apply(x, static=static)
            return *forwards, sums.transpose(g, static=static[0]), averages.transpose(g, static=static)

        total, mean, shared_out, shared = native(x, d.g)
        z, g = moved(x).astype(np.float64), moved(d.g).astype(np.float64)
        counts = np.moveaxis(np.maximum(window_counts(*static), 1), 0, -2)
        taps = math.prod(d.geometry.taps) + 2  # a division, a rounded weight
        for what, actual, exact, size in (
            ("sum", total, gathered(z, d.geometry), gathered(abs(z), d.geometry)),
            ("average", mean, gathered(z, d.geometry) / counts, gathered(abs(z), d.geometry) / counts),
            ("spread", shared_out, spread(g, d.geometry), spread(abs(g), d.geometry)),
            ("share", shared, spread(g / counts, d.geometry), spread(abs(g / counts), d.geometry)),
        ):
            actual = np.moveaxis(np.asarray(actual), 0, -2)
            assert_within_bound(actual, exact, taps, size, what=f"{d.geometry}: {what}")


def taken_by(kind: str, geometry: Geometry, shape: tuple[int, ...], dtype: Any = jnp.float32) -> bool:
    return isinstance(window(kind, geometry, 0, jax.ShapeDtypeStruct(shape, dtype)), Native)


def test_most_of_what_is_drawn_is_computed_by_the_engine() -> None:
    draws = [d for d in map(drawn, range(0, 200)) if d.geometry.rank > 1]
    for kind in ("remember", "maximum", "take", "put", "sum", "spread"):
        assert sum(taken_by(kind, d.geometry, d.x.shape, d.x.dtype) for d in draws) > 100, kind


def test_what_is_left_to_xla() -> None:
    def refusal(kind: str, layout: str, channels: int, stride: int = 1, dtype: Any = jnp.float32) -> Any:
        geometry = window_geometry("f", (9, 9), 3, stride=stride, padding="VALID", dilation=1, layout=layout)
        shape = (2, 9, 9, channels) if layout == "NHWC" else (2, channels, 9, 9)
        return window(kind, geometry, 0, jax.ShapeDtypeStruct(shape, dtype))

    assert isinstance(refusal("put", "NHWC", 8), Native)
    assert "side by side" in refusal("put", "NCHW", 8) and "8 channels" in refusal("put", "NHWC", 7)
    assert "reshape" in refusal("put", "NHWC", 8, stride=3)
    assert "float8_e4m3fn" in refusal("remember", "NHWC", 8, dtype=jnp.float8_e4m3fn)


@pytest.mark.parametrize(
    ("spatial", "taps", "why"),
    [((9,), 3, "2 or 3 axes"), ((9,) * 4, 2, "2 or 3 axes"), ((4, 1 << 14), (1, 65), "too large")],
)
def test_windows_that_are_left_to_xla(spatial: tuple[int, ...], taps: Any, why: str) -> None:
    geometry = window_geometry("f", spatial, taps, stride=1, padding="VALID", dilation=1, layout="NHWC")
    assert why in window("maximum", geometry, 0, jax.ShapeDtypeStruct((1, *spatial, 8), jnp.float32))


# The handler


RIGHT = [0, 0, 2, 8, *(5, 2, 3, 2, 1, 0, 0, 0)]  # x (2, 5, 8) to windows of 3, 2 apart


def called(description: Any, x: Any, *results: Any) -> Any:
    shapes = [jax.ShapeDtypeStruct(*result) for result in results]
    call = jax.ffi.ffi_call("jaxconv_windows", shapes)
    return jax.block_until_ready(call(x, window=np.asarray(description, np.int64)))


def test_the_handler_computes_what_it_is_told() -> None:
    x = jnp.arange(80, dtype=jnp.float32).reshape(2, 5, 8)
    y, winner = called(RIGHT, x, ((2, 2, 8), "float32"), ((2, 2, 8), "uint8"))
    np.testing.assert_array_equal(y, np.asarray(x)[:, 2::2])
    assert (winner == 2).all()


@pytest.mark.parametrize("value", [-1, 0, 1, 3, 9, 2**31, 2**62, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("entry", range(len(RIGHT)))
def test_the_handler_reads_and_writes_only_what_it_was_given(entry: int, value: int) -> None:
    """Each number changed: either the arrays still have the sizes that it speaks of, or it is refused."""
    description = [*RIGHT]
    description[entry] = value
    x, y = jnp.ones((2, 5, 8), jnp.float32), ((2, 2, 8), "float32")
    sizes = description[2:6]
    outcome = ""
    try:
        called(description, x, y, ((2, 2, 8), "uint8"))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        outcome = str(error)
    assert outcome == "" if description == RIGHT else sizes == RIGHT[2:6] or "jaxconv: a window" in outcome


@pytest.mark.parametrize(
    "results",
    [
        [((2, 2, 8), "float32")],
        [((2, 2, 8), "float32"), ((2, 2, 8), "int8")],
        [((2, 2, 8), "float32"), ((2, 2, 7), "uint8")],
        [((2, 3, 8), "float32"), ((2, 2, 8), "uint8")],
        [((2, 2, 8), "bfloat16"), ((2, 2, 8), "uint8")],
        [((2, 2, 8), "float32"), ((2, 2, 8), "uint8"), ((1,), "uint8")],
    ],
)
def test_the_handler_refuses_other_arrays(results: Any) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxconv: a window"):
        called(RIGHT, jnp.ones((2, 5, 8), jnp.float32), *results)
