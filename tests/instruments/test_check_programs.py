"""check on what real programs are made of: counts, loops that end by a tolerance, exact steps, far tails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

import jaxconv
from tests.support.judged import normal

FAST = ("vmap", "jit", "determinism", "linearity")


@jax.custom_vjp
def root(a: Any) -> Any:
    """Newton's iteration, as long as it moves."""

    def step(c: Any) -> Any:
        return c[1], 0.5 * (c[1] + a / c[1])

    return lax.while_loop(lambda c: jnp.max(jnp.abs(c[1] - c[0])) > 3e-7, step, (jnp.zeros_like(a), a + 1))[1]


root.defvjp(lambda a: (root(a), root(a)), lambda y, g: (g / (2 * y),))


def in_a_kernel(f: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(source: Any, target: Any) -> None:
        target[...] = f(source[...])

    return lambda x: pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


@jax.custom_vjp
def sine(x: Any) -> Any:
    return in_a_kernel(jnp.sin)(x)


sine.defvjp(lambda x: (sine(x), x), lambda x, g: (g * in_a_kernel(jnp.cos)(x),))


def positions() -> Any:
    """1 1 2 2 3 3, by way of numbers that a float holds exactly and half a rounding would turn into others."""
    return (1 + jnp.floor(jnp.arange(6, dtype=jnp.float32) / 2))[None]


RIGHT: dict[str, tuple[Callable[..., Any], tuple[jax.Array, ...]]] = {
    "a masked mean": (lambda x: jnp.sum(jnp.tanh(x)) / (x > 0).sum().astype(x.dtype), (normal(4, 6),)),
    "a count beside a loss": (lambda x: (jax.nn.softmax(x), (x.argmax(1) == 0).sum()), (normal(4, 6),)),
    "a product of integers": (
        lambda x: x * (jnp.arange(6).reshape(2, 3) @ jnp.arange(3)).sum().astype(x.dtype), (normal(4),)
    ),
    "a reduction of one's own": (
        lambda x: jnp.tanh(x) * lax.reduce(jnp.arange(6, dtype=jnp.int32), np.int32(0), lambda a, b: a * 2 + b, (0,))
        .astype(x.dtype),
        (normal(4),),
    ),
    "a loop that ends by a tolerance": (root, (jnp.abs(normal(24)) + 0.5,)),
    "exact steps": (lambda x: jnp.tanh(x) * positions(), (normal(4, 6),)),
    "nearest neighbours": (lambda x: jnp.tanh(jax.image.resize(x, (2, 3), "nearest")), (normal(4, 6),)),
    "probabilities of nearly one": (
        lambda x: jaxconv.softmax_cross_entropy(60 * x, jnp.array([0, 1, 2, 3])), (normal(4, 6),)
    ),
    "a log of a sum of exponentials": (lambda x: jnp.log(jnp.exp(x).sum(1)), (30 * normal(4, 6),)),
    "a saturated sigmoid": (jaxconv.sigmoid, (jnp.array([0.5, 20, 30, 50, -80], jnp.float32),)),
    "nothing that rounds, and something": (lambda x, y: (x + 0, jnp.tanh(y)), (normal(3), normal(3, seed=1))),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_users_are():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_right(name: str) -> None:
    f, args = RIGHT[name]
    jaxconv.check(f, *args, skip=FAST).raise_if_failed()


def test_a_kernel_in_the_program() -> None:
    jaxconv.check(sine, normal(8), reference=jnp.sin, skip=("vmap", "zeros", "linearity")).raise_if_failed()


def wrong(f: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, ct: (change(jax.vjp(f, x)[1](ct)[0]),))
    return g


@pytest.mark.parametrize("columns", [[2, 4], [0], [5]])
def test_beside_exact_steps_a_wrong_rule_is_wrong(columns: list[int]) -> None:
    f = wrong(lambda x: jnp.tanh(x) * positions(), lambda d: d.at[:, jnp.array(columns)].multiply(1.001))
    report = jaxconv.check(f, normal(4, 6), skip=FAST)
    assert report.verdict == "wrong" and report.by_argument["x"].wrong >= 4


def test_the_adjoint_is_held_to_what_rounds() -> None:
    """Beside a result that does not round at all, it is as sharp as it was."""
    c = normal(5, seed=2)
    f = wrong(lambda x: jnp.stack([c * x, x]), lambda d: 1.001 * d)
    others = [kind for kind in jaxconv.gradcheck.KINDS if kind != "adjoint"]
    assert jaxconv.check(f, normal(5), skip=others).verdict == "wrong"


def test_a_gradient_too_small_to_square() -> None:
    with jax.enable_x64(True):
        x = jnp.array(20.0, jnp.float64)
        assert jaxconv.check(lambda x: jnp.exp(-x * x), x, skip=FAST).ok
        assert jaxconv.check(wrong(lambda x: jnp.exp(-x * x), lambda d: 1.001 * d), x, skip=FAST).verdict == "wrong"


def test_a_gradient_too_small_for_its_dtype_is_undecided() -> None:
    report = jaxconv.check(wrong(lambda x: jnp.exp(-x * x), lambda d: 0 * d), jnp.array(20.0, jnp.float32), skip=FAST)
    assert report.verdict == "undecided" and report.resolution["x"] == np.inf
