"""Which equations `manual` takes for a norm: all ways to write one, and nothing that is none."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxconv
from jaxconv.transforms import polynomials
from jaxconv.transforms.norms import NORMALISATION, grouped
from jaxconv.transforms.polynomials import Atom
from jaxconv.transforms.program import programs
from tests.support.replaced import assert_close, random, weighted

X, S, B = random(3, 4, 5), random(5, seed=1), random(5, seed=2)
SQUARE = random(4, 4, seed=3)
EPS = 1e-2
mean = functools.partial(jnp.mean, keepdims=True)
var = functools.partial(jnp.var, keepdims=True)


@pytest.fixture(autouse=True)
def _promotion() -> Any:
    with jax.numpy_rank_promotion("allow"):
        yield


def count(f: Callable[..., Any], *args: Any) -> int:
    """How many norms f's program has, with those of the programs within."""

    def within(jaxpr: Any) -> int:
        here = sum(eqn.primitive is NORMALISATION for eqn in grouped(jaxpr).eqns)
        return here + sum(within(inner) for eqn in jaxpr.eqns for inner in programs(eqn))

    return within(jax.make_jaxpr(f)(*args).jaxpr)


def inverse(x: Any, axes: Any = -1, eps: float = EPS) -> Any:
    return lax.rsqrt(var(x, axes) + eps)


def norm(x: Any, axes: Any = -1, eps: float = EPS) -> Any:
    return (x - mean(x, axes)) * inverse(x, axes, eps)


def fast(x: Any, axes: Any = -1) -> Any:
    return mean(x * x, axes) - jnp.square(mean(x, axes))


def of_shift(x: Any, s: Any, b: Any) -> Any:
    factor = inverse(x, (0, 1)) * s
    return x * factor + (b - mean(x, (0, 1)) * factor)


def with_statistics(x: Any, s: Any, b: Any) -> Any:
    mu, variance = x.mean((0, 1)), jnp.maximum(mean(x * x, (0, 1)) - mean(x, (0, 1)) ** 2, 0)
    return (x - mu) * (lax.rsqrt(variance + EPS) * s) + b, 0.9 * s + 0.1 * mu, 0.9 * b + 0.1 * variance[0, 0]


def every_intermediate(x: Any, s: Any, b: Any) -> Any:
    mu, root = mean(x, -1), inverse(x)
    centred = x - mu
    normal = centred * root
    return mu, root, centred, normal, normal * s, normal * s + b, x


def rms(x: Any) -> Any:
    return x * lax.rsqrt(mean(x * x, -1) + EPS)


# name: (f of x, s, b, how many norms are in it)
WAYS: dict[str, tuple[Callable[..., Any], int]] = {
    "nothing but": (lambda x, s, b: norm(x), 1),
    "scale and shift": (lambda x, s, b: norm(x) * s + b, 1),
    "the scale in 1/σ": (lambda x, s, b: (x - mean(x, -1)) * (inverse(x) * s) + b, 1),
    "one factor and a shift": (of_shift, 1),
    "divided by σ": (lambda x, s, b: (x - mean(x, -1)) / jnp.sqrt(var(x, -1) + EPS), 1),
    "scaled before it is divided": (lambda x, s, b: s * (x - mean(x, -1)) / jnp.sqrt(var(x, -1) + EPS), 1),
    "a power": (lambda x, s, b: (x - mean(x, -1)) * (var(x, -1) + EPS) ** -0.5, 1),
    "the mean of squares": (lambda x, s, b: (x - mean(x, -1)) * lax.rsqrt(fast(x) + EPS), 1),
    "at least 0": (lambda x, s, b: (x - mean(x, -1)) * lax.rsqrt(jnp.maximum(0, fast(x)) + EPS), 1),
    "n times 1/n": (lambda x, s, b: (x - x.sum(-1, keepdims=True) * (1 / 5)) * inverse(x), 1),
    "a mean of means": (lambda x, s, b: (x - mean(mean(x, 0), 1)) * inverse(x, (0, 1)), 1),
    "axes in the middle": (lambda x, s, b: norm(x, 1) * s, 1),
    "numbers": (lambda x, s, b: 3 * norm(x) + 1, 1),
    "minus": (lambda x, s, b: 1 - norm(x) * s, 1),
    "transposed back": (lambda x, s, b: norm(x.T, 0).T * s, 1),
    "transposed": (lambda x, s, b: norm(x.T, (0, 2)) * s[:, None, None] + b[:4, None], 1),
    "squares of the scale": (lambda x, s, b: norm(x) * s * s, 1),
    "a root mean square": (lambda x, s, b: rms(x) * s, 1),
    "that of what is centred": (lambda x, s, b: rms(x - mean(x, -1)) * s, 1),
    "a number of Python and of NumPy": (lambda x, s, b: norm(x, eps=np.float64(EPS)) * np.ones(5), 1),
    "running statistics": (with_statistics, 1),
    "what is made on the way": (every_intermediate, 1),
    "a norm of a norm": (lambda x, s, b: norm(norm(x) * s, 0), 2),
    "two of one": (lambda x, s, b: norm(x) * s + norm(x, eps=0.1), 2),
    "one beside the other": (lambda x, s, b: norm(x) * s + norm(jnp.sin(x)) * b, 2),
    "a residual": (lambda x, s, b: norm(x) * s + x, 1),
    "its own gate": (lambda x, s, b: norm(x) * jax.nn.sigmoid(norm(x) * s), 2),
    "a gate of x": (lambda x, s, b: norm(x) * jnp.exp(mean(x, 1)), 1),
    "its own moments as parameters": (lambda x, s, b: norm(x) * mean(x, -1) + inverse(x), 1),
    "of a batch of one": (lambda x, s, b: norm(x[:1], (0, 1)) * s, 1),
    "of a vector": (lambda x, s, b: norm(x[0, 0], 0) * s, 1),
    "of no rows": (lambda x, s, b: norm(x[:0]) * s, 1),
    "in programs within": (lambda x, s, b: jax.jit(lambda x: jax.jit(norm)(x) * s)(x) + b, 1),
    "a checkpoint": (jax.checkpoint(lambda x, s, b: norm(x) * s), 1),
    "a loop": (lambda x, s, b: lax.scan(lambda x, s: (norm(x, 1) * s, None), x, jnp.stack([s, b]))[0], 1),
    "a branch": (lambda x, s, b: lax.cond(s[0] > 0, lambda: norm(x) * s, lambda: x), 1),
    "a batch of them": (lambda x, s, b: jax.vmap(norm)(x) * s, 1),
    "a batch on the last axis": (lambda x, s, b: jax.vmap(functools.partial(norm, axes=0), -1, -1)(x), 1),
    "a named batch": (jax.vmap(lambda x, s, b: named(x) * s, (0, None, None), axis_name="i"), 1),
    "an activation after it": (lambda x, s, b: jax.nn.relu(norm(x) * s), 1),
    "that of what has no gradient": (lambda x, s, b: norm(lax.stop_gradient(x)) * s + x, 1),
    "one divided by σ once more": (lambda x, s, b: norm(x) * inverse(x), 1),
    "that nobody reads": (lambda x, s, b: (norm(x), x)[1], 1),
}


def named(x: Any) -> Any:
    mu, square = lax.pmean(x.mean(0), "i"), lax.pmean((x * x).mean(0), "i")
    return (x - mu) * lax.rsqrt(square - mu * mu + EPS)


def test_every_way_to_write_one() -> None:
    """All in one program, which compiles faster; each by a function of its own, so that none has another's moments."""
    assert {name: count(f, X, S, B) for name, (f, _) in WAYS.items()} == {name: n for name, (_, n) in WAYS.items()}

    def all_of(wrap: Callable[..., Any]) -> Any:
        def f(operands: Any) -> Any:
            return {name: wrap(way)(*operands[name]) for name, (way, _) in WAYS.items()}

        return f, jax.grad(weighted(f))

    operands = dict.fromkeys(WAYS, (X, S, B))
    got, want = ([jax.jit(f)(operands) for f in all_of(wrap)] for wrap in (jaxconv.manual, lambda f: f))
    assert_close(got, want)


stop = lax.stop_gradient

# name: (f, its operands): a norm but for one thing
MISSES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "no gradient of the mean": (lambda x: (x - stop(mean(x, -1))) * inverse(x), (X,)),
    "no gradient of the variance": (lambda x: (x - mean(x, -1)) * lax.rsqrt(stop(var(x, -1)) + EPS), (X,)),
    "no gradient of 1/σ": (lambda x: (x - mean(x, -1)) * stop(inverse(x)), (X,)),
    "no gradient of x": (lambda x: (stop(x) - mean(x, -1)) * inverse(x), (X,)),
    "one degree of freedom": (lambda x: (x - mean(x, -1)) * lax.rsqrt(var(x, -1, ddof=1) + EPS), (X,)),
    "a variance of many, by one less": (lambda x: (x - mean(x, -1)) * lax.rsqrt(var(x, -1) * (1 + 5e-7) + EPS), (X,)),
    "a mask": (lambda x: (x - mean(x, -1, where=x > -9)) * lax.rsqrt(var(x, -1, where=x > -9) + EPS), (X,)),
    "the mean of another": (lambda x, y: (x - mean(y, -1)) * inverse(x), (X, X[::-1])),
    "the variance of another": (lambda x, y: (x - mean(x, -1)) * inverse(y), (X, X[::-1])),
    "the mean over other axes": (lambda x: (x - mean(x, (1, 2))) * inverse(x), (X,)),
    "the squares of other means": (
        lambda x: (x - mean(x, 0)) * lax.rsqrt(mean(x * x, 0) - mean(x, 0) * mean(x, 1) + EPS),
        (SQUARE,),
    ),
    "moments along another axis": (lambda x: (x - x.mean(0)[:, None]) * lax.rsqrt(x.var(0)[:, None] + EPS), (SQUARE,)),
    "rows less columns": (lambda x: (x - mean(x, 0)) * inverse(x, 1), (SQUARE,)),
    "x transposed": (lambda x: (x.T - mean(x, 1)) * inverse(x, 1), (SQUARE,)),
    "ε beside σ": (lambda x: (x - mean(x, -1)) / (jnp.sqrt(var(x, -1)) + EPS), (X,)),
    "no ε": (lambda x: norm(x, eps=0), (X,)),
    "ε below 0": (lambda x: norm(x, eps=-1e-3), (X,)),
    "a larger mean": (lambda x: (x - 1.5 * mean(x, -1)) * inverse(x), (X,)),
    "the mean added": (lambda x: (x + mean(x, -1)) * inverse(x), (X,)),
    "the mean scaled, x not": (lambda x, s: (x - s * mean(x, -1)) * inverse(x), (X, S)),
    "no mean": (lambda x: x * inverse(x), (X,)),
    "centred by the mean, over the mean square": (lambda x: (x - mean(x, -1)) * lax.rsqrt(mean(x * x, -1) + EPS), (X,)),
    "half the square of the mean": (
        lambda x: (x - mean(x, -1)) * lax.rsqrt(mean(x * x, -1) - 0.5 * mean(x, -1) ** 2 + EPS),
        (X,),
    ),
    "a third root": (lambda x: (x - mean(x, -1)) * (var(x, -1) + EPS) ** (-1 / 3), (X,)),
    "at least ε": (lambda x: (x - mean(x, -1)) * lax.rsqrt(jnp.maximum(var(x, -1), EPS) + EPS), (X,)),
    "times σ": (lambda x: (x - mean(x, -1)) * jnp.sqrt(var(x, -1) + EPS), (X,)),
    "of constants": (lambda x: norm(np.ones((3, 4)) + np.arange(4.0)) * x.sum(), (X,)),
    "moments spread over x": (
        lambda x: (
            (x - jnp.broadcast_to(x.sum(-1, keepdims=True), x.shape) / 5)
            * lax.rsqrt(jnp.broadcast_to(var(x, -1), x.shape) + EPS)
        ),
        (X,),
    ),
    "one entry": (lambda x: norm(x[..., :1]), (X,)),
    "a scalar": (lambda x: norm(x[0, 0, 0], ()), (X,)),
    "whole numbers": (lambda x: norm(jnp.round(x).astype(jnp.int32) @ np.eye(5, dtype=np.int32), 0, 1).sum(), (X[0],)),
    "complex numbers": (lambda x: norm(x * (1 + 2j)).real, (X,)),
    "moments in another dtype": (
        lambda x: norm(x).astype(jnp.bfloat16),
        (jnp.asarray(X, jnp.bfloat16),),
    ),
    "its gradient": (jax.grad(weighted(norm)), (X,)),
    "its derivative": (lambda x: jax.jvp(norm, (x,), (x,))[1], (X,)),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_is_none_is_left_exactly_as_it_was(name: str) -> None:
    f, args = MISSES[name]
    with jax.numpy_dtype_promotion("standard"):
        args = tuple(map(jnp.asarray, args))
        before = str(jax.make_jaxpr(f)(*args))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert str(jax.make_jaxpr(jaxconv.manual(f))(*args)) == before
        assert count(f, *args) == 0


def wrapped(x: Any, n: Any) -> Any:
    """7 // 2 and the sum of 200 ones in eight bits."""
    halves = lax.div(lax.full_like(n, 7), lax.full_like(n, 2))
    ones = lax.reduce(lax.full((200,), 1, jnp.int8), np.int8(0), lax.add, (0,))
    return norm(x) * halves.astype(x.dtype), norm(x) * ones.astype(x.dtype)


def rounded_to_integers(x: Any) -> Any:
    big = 1.5 * 2.0**52
    large = x[0, :1] * big
    return norm(x) * 3 + big - big, norm(x) + large - large


def twice_in_sixteen_bits(x: Any) -> Any:
    return 3 * norm(norm(x.astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32), 0)


VALUES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float]] = {
    "integers that wrap around": (wrapped, (X, np.int32(1)), 1e-11),
    "an array rounded by a large number": (rounded_to_integers, (X,), 1e-11),
    "a norm rounded, and the norm of that": (twice_in_sixteen_bits, (X,), 1e-5),
    "a factor of almost 1": (lambda x: norm(x) * (1 + 5e-7) + norm(x, 0) * 1.0, (X,), 1e-11),
    "0 times NaN": (lambda x: norm(x) + 0 * jnp.log(jnp.minimum(x[0, :1, :1], -1)), (X,), 1e-11),
    "NaN less NaN": (lambda x: norm(x) + (lambda z: z - z)(jnp.log(jnp.minimum(x[0, :1], -1))), (X,), 1e-11),
    "NaN and ∞ in x": (lambda x: norm(x) * 2, (np.where(X > 1, np.nan, np.where(X < -1.5, np.inf, X)),), 1e-11),
    "a constant along its axes": (lambda x: norm(x), (np.ones((3, 4)),), 1e-11),
    "a number that 16 bits do not have": (
        lambda x: norm(x) * (jnp.minimum(x[:1], 0) * 0 + lax.convert_element_type(jnp.float16(0.3), jnp.float64)),
        (X,),
        1e-11,
    ),
    "a number made narrow": (lambda x: norm(x) * jax.jit(narrow)().astype(x.dtype), (X,), 1e-11),
}


def narrow() -> Any:
    return lax.convert_element_type(lax.convert_element_type(0.3, jnp.float64), jnp.bfloat16)


def test_values_do_not_change() -> None:
    with jax.numpy_dtype_promotion("standard"):
        for f, args, rtol in VALUES.values():
            assert count(f, *args) > 0
            got, want = (
                jax.jit(lambda *a, g=g: (g(*a), jax.grad(weighted(g))(*a)))(*args) for g in (jaxconv.manual(f), f)
            )
            missing = [jax.tree.map(jnp.isnan, both) for both in (got, want)]
            assert_close(*missing)
            assert_close(*(jax.tree.map(jnp.nan_to_num, both) for both in (got, want)), rtol)


def test_every_order_of_derivative_and_batches() -> None:
    def f(x: Any, s: Any, b: Any) -> Any:
        return norm(x, 0) * s + norm(x, -1) * b + rms(x) * s

    ours, args = jaxconv.manual(f), (X[0], S, B)

    def all_of(f: Callable[..., Any]) -> Any:
        each = jnp.stack([X[0], X[1] + 1])
        return (
            jax.jacfwd(f, (0, 1))(*args),
            jax.hessian(weighted(f), (0, 1))(*args),
            jax.vmap(jax.grad(weighted(f), (0, 1, 2)), (0, None, None))(each, S, B),
            jax.vmap(jax.grad(weighted(f), (0, 1)), (None, 0, None))(X[0], jnp.stack([S, B]), B),
        )

    assert_close(jax.jit(lambda: all_of(ours))(), jax.jit(lambda: all_of(f))())


@pytest.mark.parametrize("rules", ["textbook", "rotated", "autodiff", "own"])
def test_other_rules(rules: str) -> None:
    rotated = jaxconv.rules.RULE_SETS["rotated"]
    given: Any = jaxconv.ConvRules(rotated.input_grad, rotated.kernel_grad) if rules == "own" else rules

    def f(x: Any, s: Any, b: Any) -> Any:
        return norm(x) * s + b

    got, want = (jax.jit(jax.grad(weighted(g), (0, 1, 2)))(X, S, B) for g in (jaxconv.manual(f, rules=given), f))
    assert_close(got, want)


def test_floats_of_every_size() -> None:
    """The moments of 16 bits are taken in 32, as the libraries take them."""

    def f(x: Any, s: Any, b: Any) -> Any:
        wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        normal = (wide - mean(wide, -1)) * lax.rsqrt(var(wide, -1) + jnp.asarray(EPS, wide.dtype))
        return (normal.astype(x.dtype) * s + b) * 2 + 1

    def loss(f: Callable[..., Any]) -> Any:
        return lambda *args: weighted(lambda *args: f(*args).astype(jnp.float64))(*args)

    for dtype, rtol in ((jnp.bfloat16, 0.03), (jnp.float16, 4e-3), (jnp.float32, 1e-5), (jnp.float64, 1e-11)):
        args = tuple(jnp.asarray(a, dtype) for a in (X, S, B))
        assert count(f, *args) == 1 and jaxconv.manual(f)(*args).dtype == dtype
        got, want = (jax.jit(jax.value_and_grad(loss(g), (0, 1, 2)))(*args) for g in (jaxconv.manual(f), f))
        assert_close(got, want, rtol)


def test_an_effect_is_kept_and_what_the_norm_alone_needed_is_not() -> None:
    said: list[Any] = []

    def f(x: Any) -> Any:
        jax.debug.callback(lambda v: said.append(v), var(x, -1))
        return norm(x) * 2

    y = jax.jit(jaxconv.manual(f))(X)
    jax.effects_barrier()
    assert len(said) == 1 and count(f, X) == 1
    assert_close(y, jax.jit(f)(X))
    assert_close(said[0], np.asarray(var(jnp.asarray(X), -1)))
    (left,) = jax.make_jaxpr(norm)(X).jaxpr.outvars
    eqns = grouped(jax.make_jaxpr(norm)(X).jaxpr).eqns
    assert [e.primitive.name for e in eqns][-1] == "normalisation" and "sub" not in [e.primitive.name for e in eqns]
    assert left.aval.shape == X.shape


def test_several_devices() -> None:
    """The norm of each device's rows is one; with statistics of all it is not."""
    mesh = jax.make_mesh((3,), ("i",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("i")

    def mapped(f: Callable[..., Any], check: bool) -> Any:
        split = {"mesh": mesh, "in_specs": (rows, PartitionSpec()), "out_specs": rows, "check_vma": check}
        return jax.shard_map(f, **split)

    def own(x: Any, s: Any) -> Any:
        return norm(x, 1) * s + norm(x)

    for check in (True, False):
        f, together = mapped(own, check), mapped(lambda x, s: named(x[0])[None] * s, check)
        assert (count(f, X, S), count(together, X, S)) == (2, 0)
        got, want = (jax.jit(jax.value_and_grad(weighted(g), (0, 1)))(X, S) for g in (jaxconv.manual(f), f))
        assert_close(got, want)
    explicit = jax.make_mesh((3,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        x = jax.device_put(X, jax.NamedSharding(explicit, rows))
        assert count(norm, x) == 0


def test_shapes_that_are_not_known() -> None:
    (n,) = jax.export.symbolic_shape("n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = jax.export.export(jax.jit(jaxconv.manual(norm)))(jax.ShapeDtypeStruct((n, 5), np.float64))
    assert_close(exported.call(X[0]), jax.jit(norm)(X[0]))


def test_a_weakly_typed_result_stays_so() -> None:
    def f(x: Any) -> Any:
        wide = lax.mul(lax.broadcast(x, (4,)), lax.broadcast(x, (4,)))
        centred = wide - lax.reduce_sum(wide, (0,)) / 4
        return centred * lax.rsqrt(lax.reduce_sum(centred * centred, (0,)) / 4 + EPS)

    made = jax.make_jaxpr(f)(2.0)
    assert count(f, 2.0) == 0 and made.jaxpr.outvars[0].aval.weak_type


# Polynomials

ROWS = Atom(0), (0, 1)
PLAIN = {(ROWS,): 1.0}


def test_a_variance_is_the_same_polynomial_in_both_forms() -> None:
    shape = (3, 4)
    mu = polynomials.times(polynomials.summed(PLAIN, {1}, shape), {(): 1 / 4})
    mu = polynomials.moved(mu, lambda i: i)
    square = polynomials.times(polynomials.summed(polynomials.times(PLAIN, PLAIN), {1}, shape), {(): 1 / 4})
    fast = polynomials.plus(square, polynomials.times(mu, mu), -1)
    centred = polynomials.plus(PLAIN, mu, -1)
    slow = polynomials.times(polynomials.summed(polynomials.times(centred, centred), {1}, shape), {(): 1 / 4})
    assert fast == slow and polynomials.as_variance(fast) == (Atom(0, "root", (1,)), (0, -1), 0.0)
    assert polynomials.as_variance(polynomials.plus(fast, {(): 0.1}))[2] == 0.1
    assert polynomials.summed(centred, {1}, shape) == {}


def test_a_sum_of_products_that_are_no_statistic_is_none() -> None:
    other = {((Atom(1), (0, 1)),): 1.0}
    cubes = polynomials.times(PLAIN, polynomials.times(PLAIN, PLAIN))
    transposed = polynomials.moved(PLAIN, (1, 0).index)
    for a in (cubes, polynomials.times(PLAIN, other), polynomials.times(PLAIN, transposed)):
        assert polynomials.summed(a, {1}, (4, 4)) is None


def test_coefficients_are_integers_but_for_the_rounding_of_their_dtype() -> None:
    assert polynomials.tidied({(): 1 + 3e-7}, 4e-7) == {(): 1.0}
    assert polynomials.tidied({(): 1 + 3e-7}, 1e-15) == {(): 1 + 3e-7}
    assert polynomials.tidied({(): 1e-9}, 1.0) == {(): 1e-9}
