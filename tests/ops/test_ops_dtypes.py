"""Every op in every floating dtype: dtypes are kept, 16-bit sums are carried in float32, nothing widens to float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.cases_ops import OPS, Op, normal
from tests.support.rule_sets import ALL_RULES, RULES

LOSSES = {op.name for op in OPS if op.name.startswith(("cross_entropy", "mean_squared_error"))}
SIXTEEN = (jnp.bfloat16, jnp.float16)
DTYPES = (*SIXTEEN, jnp.float32, jnp.float64)

in_both_halves = pytest.mark.parametrize("dtype", SIXTEEN, ids=["bfloat16", "float16"])


def arguments(op: Op, dtype: Any) -> list[np.ndarray]:
    """The op's arguments and δ, rounded to `dtype`."""
    args = [jnp.asarray(a) for a in op.arguments(4)]
    y = jax.eval_shape(partial(op.call, rules="fast"), *args)
    return [np.asarray(a, np.int32 if a.dtype == jnp.int64 else dtype) for a in (*args, normal(y.shape, seed=9))]


def value_and_gradients(op: Op, rules: str, *args: Any) -> Any:
    count = len(op.argnums)
    floats, integers, g = args[:count], args[count:-1], args[-1]
    y, pullback = jax.vjp(lambda *floats: op.call(*floats, *integers, rules=rules), *floats)
    return y, pullback(g.astype(y.dtype))


@pytest.mark.parametrize("op", OPS, ids=str)
def test_results_and_gradients_have_the_dtype_of_the_operands(op: Op) -> None:
    for dtype in DTYPES:
        args = arguments(op, dtype)
        for rules in ALL_RULES:
            y, gradients = jax.eval_shape(partial(value_and_gradients, op, rules), *args)
            expected = jnp.float32 if op.name in LOSSES and dtype in SIXTEEN else dtype
            assert y.dtype == expected and not y.weak_type, rules
            assert [g.dtype for g in gradients] == [dtype] * len(gradients), rules


@pytest.mark.parametrize("op", OPS, ids=str)
def test_float32_stays_float32_under_x64(op: Op) -> None:
    args = arguments(op, jnp.float32)
    for rules in RULES:
        jaxpr = str(jax.make_jaxpr(partial(value_and_gradients, op, rules))(*args))
        assert "f32[" in jaxpr
        assert not re.findall(r"f64\[\d.*", jaxpr), rules


@pytest.mark.parametrize("op", [op for op in OPS if op.name != "dropout"], ids=str)
def test_without_x64_every_dtype_gives_the_rounded_float64_result(op: Op) -> None:
    """Norm-wise. What has 16 bits was rounded twice at most, float32 at every step."""
    narrow = DTYPES[:-1]

    def every(*by_dtype: Any) -> Any:
        return [value_and_gradients(op, "fast", *args) for args in by_dtype]

    given = [arguments(op, dtype) for dtype in narrow]
    with jax.enable_x64(False):
        actual = jax.jit(every)(*given)
    whole = jax.jit(partial(value_and_gradients, op, "autodiff"))
    for dtype, args, result in zip(narrow, given, actual, strict=True):
        exact = whole(*(a if a.dtype == np.int32 else a.astype(np.float64) for a in args))
        for a, b in zip(*map(jax.tree.leaves, (result, exact)), strict=True):
            error = np.linalg.norm(np.asarray(a, np.float64) - b)
            units = 1 if dtype in SIXTEEN else 16
            assert error <= units * float(jnp.finfo(dtype).eps) * np.linalg.norm(b), dtype


# Sums that 16 bits cannot carry: in bfloat16 256 + 1 is 256, in float16 2048 + 1 is 2048


def check_sum(f: Callable[..., Any], x: Any, y: Any, g: Any, dx: Any) -> None:
    """f(x) and its pullback of g are exactly these, under all written rules."""
    for rules in RULES:
        value, pullback = jax.jit(lambda x, rules=rules: jax.vjp(partial(f, rules=rules), x))(x)
        actual = pullback(jnp.asarray(g, x.dtype))[0]
        assert value.dtype == actual.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(value, np.float64).ravel(), y, err_msg=rules)
        np.testing.assert_array_equal(np.asarray(actual, np.float64).ravel(), dx, err_msg=rules)


def ones(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


@in_both_halves
def test_an_average_of_4096_ones_is_1(dtype: Any) -> None:
    x = ones((1, 4096, 1), dtype)
    g = np.full((1, 1, 1), 4096)
    check_sum(lambda x, rules: jaxconv.avg_pool(x, 4096, rules=rules), x, 1, g, 1)
    check_sum(lambda x, rules: jaxconv.global_avg_pool(x, rules=rules), x, 1, g[0], 1)


@in_both_halves
def test_overlapping_averages_share_gradients_that_add_up_to_1(dtype: Any) -> None:
    """Every element lies in 1024 windows, and gets 1/1024 of each."""
    x = ones((1, 2, 1), dtype)
    every = np.ones((1, 1025, 1))
    widths = {"stride": 1, "padding": 1023, "count_padding": True}
    inside = np.full(1025, 2 / 1024)
    inside[[0, -1]] = 1 / 1024
    check_sum(lambda x, rules: jaxconv.avg_pool(x, 1024, rules=rules, **widths), x, inside, every, 1)


@in_both_halves
def test_a_norm_of_4096_ones_is_64(dtype: Any) -> None:
    x = ones((1, 4096, 1), dtype)
    check_sum(lambda x, rules: jaxconv.lp_pool(x, 4096, 2, rules=rules), x, 64, np.full((1, 1, 1), 64), 1)


@in_both_halves
def test_the_square_of_256_does_not_overflow_in_a_norm(dtype: Any) -> None:
    x = jnp.array([3 * 256, 4 * 256], dtype).reshape(1, 2, 1)
    y = jax.jit(lambda x: jaxconv.lp_pool(x, 2, 2))(x)
    np.testing.assert_array_equal(np.asarray(y, np.float64), 5 * 256)


@in_both_halves
def test_an_element_that_wins_many_windows_gets_the_sum_of_their_gradients(dtype: Any) -> None:
    """The order does not matter: the large δ come first and last."""
    x = jnp.zeros((1, 5, 5, 1), dtype).at[0, 2, 2, 0].set(1)
    large = 1 / float(jnp.finfo(dtype).eps)
    g = np.ones((1, 5, 5, 1))
    g[0, 0, 0] = g[0, -1, -1] = large
    total = float(jnp.asarray(2 * large + 23, jnp.float32).astype(dtype))
    assert total > 2 * large
    dx = np.where(np.arange(25) == 12, total, 0)
    check_sum(lambda x, rules: jaxconv.max_pool(x, 5, stride=1, padding=2, rules=rules), x, 1, g, dx)


@in_both_halves
@pytest.mark.parametrize("mode", ["edge", "circular", "reflect"])
def test_an_element_that_is_copied_gets_the_sum_of_its_copies_gradients(mode: str, dtype: Any) -> None:
    n, width = 1 / float(jnp.finfo(dtype).eps), 3
    x = ones((1, 4, 1), dtype)
    g = np.ones((1, 10, 1))
    g[0, width : width + 4] = 2 * n  # where 1 is less than half a ulp, and 2 is not
    copies = {"edge": [3, 0, 0, 3], "circular": [1, 2, 2, 1], "reflect": [1, 2, 2, 1]}[mode]
    dx = [float(jnp.asarray(2 * n + c, jnp.float32).astype(dtype)) for c in copies]
    assert max(dx) > 2 * n
    check_sum(lambda x, rules: jaxconv.pad(x, ((3, 3),), mode=mode, rules=rules), x, 1, g, dx)


@in_both_halves
def test_a_dense_layer_and_its_gradients_sum_4096_ones(dtype: Any) -> None:
    x, w, b = ones((4096, 1), dtype), ones((1, 1), dtype), ones((1,), dtype)
    for rules in RULES:
        y = jax.jit(partial(jaxconv.dense, rules=rules))(x.T, x)
        pulled = jax.jit(lambda g, rules=rules: jax.vjp(partial(jaxconv.dense, rules=rules), x, w, b)[1](g))(x)
        np.testing.assert_array_equal(np.asarray(y, np.float64), 4096, err_msg=rules)
        for gradient, total in zip(pulled, (1, 4096, 4096), strict=True):
            np.testing.assert_array_equal(np.asarray(gradient, np.float64), total, err_msg=rules)


@in_both_halves
def test_losses_of_16_bits_are_float32_and_exact(dtype: Any) -> None:
    m = 4096
    zeros, label = jnp.zeros((1, m), dtype), jnp.array([5])
    loss, pullback = jax.jit(lambda z: jax.vjp(lambda z: jaxconv.softmax_cross_entropy(z, label), z))(zeros)
    np.testing.assert_allclose(loss, np.log(m), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(pullback(jnp.ones(1, jnp.float32))[0], np.float64)[0, 6:], 1 / m)
    square = jax.jit(jaxconv.mean_squared_error)(zeros, zeros + 3)
    assert square.dtype == jnp.float32 and square == 9
