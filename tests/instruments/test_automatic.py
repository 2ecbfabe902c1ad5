"""`automatic(f)`: no hand-written rule survives, wherever it is, and nothing else changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxconv
from jaxconv.transforms.automatic import has_rules
from jaxconv.transforms.precision import run
from jaxconv.transforms.program import trace
from tests.support.devices import cpu_mesh

X = np.array([0.3, -0.2, 0.8, 1.1])


# Two functions that are sin, but whose rules say 7 instead of cos.


@jax.custom_vjp
def by_vjp(x: Any) -> Any:
    return jnp.sin(x)


by_vjp.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (7 * g,))


@jax.custom_jvp
def by_jvp(x: Any) -> Any:
    return jnp.sin(x)


by_jvp.defjvp(lambda x, t: (jnp.sin(x[0]), 7 * t[0]))


def by_transpose(x: Any) -> Any:
    """A linear map whose transpose is wrong, after a sine."""
    y = jnp.sin(x)
    return jax.custom_derivatives.linear_call(lambda r, x: r * x, lambda r, g: 7 * g, jnp.ones_like(y), y)


MESH = cpu_mesh(AxisType.Auto, i=2)


def sharded(s: Callable[..., Any], x: Any) -> Any:
    def local(x: Any) -> Any:
        x, _ = lax.scan(lambda x, _: (s(x), None), x, None, length=2)
        return lax.psum(x, "i")

    return jax.shard_map(local, mesh=MESH, in_specs=PartitionSpec("i"), out_specs=PartitionSpec())(x)


# Where a rule may hide: (s, x) -> y, s the function that carries it.
PLACES: dict[str, Callable[..., Any]] = {
    "here": lambda s, x: s(x),
    "jit": lambda s, x: jax.jit(lambda x: 2 * s(x))(x),
    "jit of jit": lambda s, x: jax.jit(lambda x: jax.jit(s)(x) + 1)(x),
    "checkpoint": lambda s, x: jax.checkpoint(lambda x: s(s(x)))(x),
    "scan": lambda s, x: lax.scan(lambda c, a: (s(c) * a, c), x, jnp.arange(3.0) + 1)[0],
    "scan of checkpoint of jit": lambda s, x: lax.scan(
        lambda c, _: (jax.checkpoint(jax.jit(s))(c), None), x, None, length=2
    )[0],
    "cond": lambda s, x: lax.cond(x.sum() > 0, s, jnp.cos, x),
    "switch": lambda s, x: lax.switch(1, [jnp.cos, lambda x: s(s(x)), s], x),
    "fori_loop": lambda s, x: lax.fori_loop(0, 3, lambda _, c: s(c) + 1, x),
    "vmap": lambda s, x: jax.vmap(lambda a: s(a) * x)(x),
    "vmap of scan": lambda s, x: jax.vmap(lambda a: lax.scan(lambda c, _: (s(c), None), a, None, length=2)[0])(x),
    "shard_map": sharded,
    "a linear solve": lambda s, x: jnp.linalg.solve(3 * jnp.eye(4) + jnp.outer(s(x), x), x),
    "a custom rule": lambda s, x: jax.nn.softmax(s(x)),
}


@pytest.mark.parametrize("rule", [by_vjp, by_jvp, by_transpose], ids=["custom_vjp", "custom_jvp", "linear_call"])
@pytest.mark.parametrize("place", PLACES)
def test_no_rule_survives(place: str, rule: Callable[..., Any]) -> None:
    if rule is by_transpose and "vmap" in place:
        pytest.skip("JAX has no vmap of linear_call")
    f = functools.partial(PLACES[place], rule)
    plain = functools.partial(PLACES[place], jnp.sin)

    def weighted(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: jnp.sum(f(x) * jnp.cos(jnp.arange(f(x).size, dtype=x.dtype).reshape(f(x).shape)))

    assert has_rules(trace("test", f, X).closed.jaxpr)
    assert not has_rules(trace("test", jaxconv.automatic(f), X).closed.jaxpr) or place == "a custom rule"
    np.testing.assert_allclose(jaxconv.automatic(f)(X), plain(X), rtol=1e-14)
    got, want = (jax.jit(jax.grad(weighted(g)))(X) for g in (jaxconv.automatic(f), plain))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert not np.allclose(jax.jit(jax.grad(weighted(f)))(X), want), "the rule is wrong, so it would show"


@pytest.mark.parametrize("place", ["here", "scan of checkpoint of jit", "shard_map", "checkpoint", "fori_loop"])
def test_floats_can_be_carried_in_another_precision(place: str) -> None:
    """The bfloat16 function, exactly: what it computes in float64 at the same bfloat16 arguments."""
    low = jnp.asarray(X, jnp.bfloat16)

    def f(x: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return PLACES[place](by_vjp, x)

    traced = trace("test", f, low)
    x = np.asarray(low, np.float64)
    (got,) = jax.jit(lambda x: run(traced, [x], jnp.float64))(x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, PLACES[place](jnp.sin, x), rtol=1e-13)


def test_random_numbers_and_rounding_are_the_same_in_another_precision() -> None:
    def f(x: Any) -> Any:
        noise = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
        return (x * noise).astype(jnp.bfloat16).astype(x.dtype) + lax.reduce_precision(x, 8, 7)

    x = jnp.asarray(X, jnp.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(0), x.shape, x.dtype), np.float64)
    (got,) = run(trace("test", f, x), [np.asarray(x, np.float64)], jnp.float64)
    np.testing.assert_allclose(got, np.asarray(x, np.float64) * (noise + 1), rtol=4 * np.finfo(np.float32).eps)


def test_our_layers_are_left_to_jax() -> None:
    """No primitive of ours in the gradient, no rule: a convolution, and JAX's own pool gradient."""
    x, w = np.ones((2, 6, 6, 2)), np.ones((3, 3, 2, 2))

    def f(x: Any, w: Any) -> Any:
        y = jaxconv.max_pool(jaxconv.relu(jaxconv.conv(x, w, np.ones(2))), 2)
        y, _ = jaxconv.batch_norm(y, None, None, {"mean": np.zeros(2), "var": np.ones(2)}, train=True)
        return jaxconv.global_avg_pool(jaxconv.avg_pool(jaxconv.pad(y, 1, mode="reflect"), 2)).sum()

    assert "jaxconv_" in str(jax.make_jaxpr(jax.grad(f))(x, w))
    gradient = str(jax.make_jaxpr(jax.grad(jaxconv.automatic(f)))(x, w))
    assert "jaxconv_" not in gradient and "custom_" not in gradient and "select_and_scatter_add" in gradient


@pytest.mark.parametrize("rules", ["fast", "rotated", "textbook"])
def test_it_is_what_rules_autodiff_says(rules: str) -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(2, 7, 6, 4)), random.normal(size=(3, 2, 2, 6))

    def f(x: Any, w: Any, rules: str) -> Any:
        return jnp.sum(jaxconv.conv(x, w, stride=2, groups=2, dilation=(1, 2), rules=rules) ** 3)

    got = jax.jit(jax.grad(jaxconv.automatic(functools.partial(f, rules=rules)), (0, 1)))(x, w)
    want = jax.jit(jax.grad(functools.partial(f, rules="autodiff"), (0, 1)))(x, w)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max())


def test_it_goes_through_library_code_and_composes_with_every_transformation() -> None:
    model = linen.Sequential(
        [linen.Dense(3, param_dtype=jnp.float64), jax.nn.relu, linen.Dense(2, param_dtype=jnp.float64)]
    )
    x, labels = np.linspace(-1, 1, 8).reshape(2, 4), np.array([0, 1])
    params = model.init(jax.random.key(0), x)

    def loss(params: Any, x: Any, *, labels: Any) -> Any:
        logits = jax.nn.log_softmax(model.apply(params, jaxconv.gelu(x)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    plain = jaxconv.automatic(loss)
    assert not has_rules(trace("test", plain, params, x, labels=labels).closed.jaxpr)
    want = jax.jit(jax.grad(loss))(params, x, labels=labels)
    got = jax.jit(jax.grad(plain))(params, x, labels=labels)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got, want)
    each = jax.vmap(lambda x, y: plain(params, x[None], labels=y[None]))
    np.testing.assert_allclose(jax.jit(each)(x, labels).sum(), loss(params, x, labels=labels), rtol=1e-12)
    jax.jit(jax.hessian(lambda x: plain(params, x, labels=labels)))(x)
    outer = jax.grad(lambda x: jaxconv.automatic(lambda y: by_vjp(x) * y)(2.0))(0.5)  # closes over a tracer
    np.testing.assert_allclose(outer, 2 * np.cos(0.5), rtol=1e-12)


def test_arguments_that_are_no_arrays_are_handed_through() -> None:
    plain = jaxconv.automatic(lambda x, options: by_vjp(x) * options["k"][0] if options["mode"] == "same" else x)
    np.testing.assert_allclose(jax.grad(lambda x: plain(x, {"k": [2.0, "a"], "mode": "same"}).sum())(X), 2 * np.cos(X))


def test_paths_are_those_of_the_signature() -> None:
    def f(params: Any, *xs: Any, scale: Any) -> Any:
        return params["w"] * xs[0] * xs[1] * scale

    traced = trace("test", f, {"w": X}, X, X, scale=X)
    assert traced.paths == ["params['w']", "xs[0]", "xs[1]", "scale"]
