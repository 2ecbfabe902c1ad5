"""Noise in place of rounding: its size, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.gradcheck.rounding import rounded
from jaxconv.gradcheck.yardstick import in_float64

DRAWS = 400


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def noise(f: Callable[..., Any], *args: Any, amplitude: float = 1.0, draws: int = DRAWS) -> np.ndarray:
    """How far `draws` noisy runs of f are from its exact value."""
    args = tuple(map(np.asarray, args))
    noisy = in_float64(rounded(f, *args))
    wide = [a.astype(np.float64) for a in args]
    exact = noisy(0.0, np.uint64(0), *wide)
    keys = np.random.default_rng(0).integers(2**64, size=draws, dtype=np.uint64)
    return np.stack([noisy(amplitude, key, *wide) - exact for key in keys])


def rms(a: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(a**2, axis=0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_one_rounding_is_half_an_epsilon(dtype: Any) -> None:
    x = (1.01 + abs(normal(50))).astype(dtype)
    relative = rms(noise(jnp.exp, x)) / np.exp(x.astype(np.float64)) / (float(jnp.finfo(dtype).eps) / 2)
    assert (abs(relative - 1) < 0.2).all(), "at 400 draws the root mean square is known to 4 %"


def test_the_amplitude_is_a_factor() -> None:
    x = normal(50)
    assert np.allclose(noise(jnp.sin, x, amplitude=8.0, draws=5), 8 * noise(jnp.sin, x, draws=5), rtol=1e-3)


@pytest.mark.parametrize("terms", [2, 100, 3000])
def test_a_sum_errs_as_one_term_after_the_other(terms: int) -> None:
    """Against sums in float32 in that order, over many vectors; both know their root mean square to some per cent."""
    x, w = normal(terms, DRAWS), normal(terms, seed=1)
    one_by_one = np.zeros(DRAWS, np.float32)
    for column, weight in zip(x, w, strict=True):
        one_by_one = one_by_one + column * weight
    error = one_by_one - w.astype(np.float64) @ x.astype(np.float64)
    predicted = noise(lambda x, w: w @ x, x, w, draws=60)
    assert 1 < np.sqrt(np.mean(predicted**2)) / np.sqrt(np.mean(error**2)) < 3


PRODUCTS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
    "dot": (lambda x, w: jnp.einsum("bik,bkj->bij", x, w), (normal(2, 3, 50), normal(2, 50, 4)), 50),
    "conv": (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (normal(1, 6, 6, 8), normal(3, 3, 8, 2)),
        72,
    ),
    "jaxconv.conv": (lambda x, w: jaxconv.conv(x, w, padding=0), (normal(1, 6, 6, 8), normal(3, 3, 8, 2)), 72),
    "sum": (lambda x, w: (x * w).sum(0), (normal(60, 5), normal(60, 5, seed=1)), 60),
    "window": (lambda x: lax.reduce_window(x, 0.0, lax.add, (64,), (1,), "VALID"), (normal(200),), 64),
    "cumulative": (lambda x: jnp.cumsum(x)[-5:], (normal(200),), 200),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_sum_is_known_by_its_length(name: str) -> None:
    f, args, terms = PRODUCTS[name]
    size = np.sqrt(np.mean(np.asarray(f(*args), np.float64) ** 2))
    relative = np.sqrt(np.mean(noise(f, *args, draws=60) ** 2)) / size / 2.0**-24
    assert 0.5 < relative / np.sqrt(terms / 2) < 2


EXACT: dict[str, Callable[..., Any]] = {
    "copies": lambda x: jnp.concatenate([x[::-1], -x, jnp.pad(x, 2)]).reshape(2, -1).T,
    "choices": lambda x: jnp.maximum(jnp.sort(x), x.max()) * 1.0,
    "a wider type": lambda x: x.astype(jnp.float32),
    "powers of two": lambda x: 0.25 * x,
    "small integers": lambda x: jnp.round(x) * jnp.round(2 * x),
    "a saturated tanh": lambda x: jnp.tanh(100 * jnp.sign(x)),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_no_rounding_touches_has_no_noise(name: str) -> None:
    x = normal(8, dtype=np.float16)
    assert abs(noise(EXACT[name], x, draws=5)).max() < 1e-13, "that of float64 at most"


def test_what_is_equal_stays_equal() -> None:
    """Windows that read the same numbers, and rows of the same numbers, tie in every run."""
    image = np.tile(normal(1, 4, 4, 3), (1, 2, 2, 1))
    y = noise(lambda x, w: jnp.tanh(jaxconv.conv(x, w, stride=4, padding=0)), image, normal(3, 3, 3, 5), draws=5)
    assert y.any() and (y == y[:, :, :1, :1]).all()


def program(name: str) -> Callable[..., Any]:
    def step(c: Any, t: Any) -> Any:
        return jnp.sin(c) + t, jnp.cos(c)

    return {
        "jit": jax.jit(lambda x: jnp.sin(jnp.sin(x))),
        "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
        "scan": lambda x: jnp.stack([*lax.scan(step, x[0], x)]) if x.ndim > 1 else lax.scan(step, x[0], x)[1],
        "scan in reverse": lambda x: lax.scan(step, x[0], x, reverse=True)[1],
        "while": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1],
        "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        "custom rules": lambda x: jax.nn.relu(jax.nn.silu(x)),
        "a primitive of ours": lambda x: jaxconv.avg_pool(x[None, :, None], 2),
        "complex numbers": lambda x: jnp.abs(jnp.fft.rfft(x)),
        "gradients of all": jax.grad(lambda x: jnp.sin(lax.scan(step, x[0], x)[0]) + jaxconv.gelu(x).sum()),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("jit", "checkpoint", "scan", "scan in reverse", "while", "cond", "custom rules", "a primitive of ours"),
        *("complex numbers", "gradients of all"),
    ],
)
def test_programs_within_programs(name: str) -> None:
    """Without noise, float64's own value; with it, some noise in every entry, and not the same in two runs."""
    f, x = program(name), np.abs(normal(8))
    quiet = in_float64(rounded(f, x))(0.0, np.uint64(0), x.astype(np.float64))
    with jax.enable_x64(True):
        assert np.allclose(quiet, f(x.astype(np.float64)), rtol=1e-6, atol=1e-7)
    found = noise(f, x, draws=3)
    assert (found[0] != found[1]).mean() > 0.7 and (abs(found) < 1e-5).all()


def test_each_pass_of_a_loop_has_noise_of_its_own() -> None:
    """√n times one pass's noise for independent ones; n times if all were the same."""
    n = 400

    def f(x: Any) -> Any:
        return lax.scan(lambda c, _: (c + (jnp.sqrt(x * x + 0.1)), None), jnp.float32(0), length=n)[0]

    once = rms(noise(lambda x: jnp.sqrt(x * x + 0.1), np.float32(0.7), draws=100))
    partial_sums = np.sqrt(n / 3) * n * np.sqrt(0.59) * 2.0**-24
    assert (
        rms(noise(f, np.float32(0.7), draws=100)) < 1.5 * np.hypot(partial_sums, 2 * np.sqrt(n) * once) + n * once / 4
    )
