"""Precision: dtypes stay what they are, 16-bit sums are carried in float32, and nothing becomes float64 unasked."""

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
from tests.support.agreement import LAYERS, Layer
from tests.support.cases import Case
from tests.support.rule_sets import RULES
from tests.support.tolerance import assert_within_bound

DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
HALVES = (jnp.float16, jnp.bfloat16)
LAYER = Layer(jaxconv.conv, Case((2, 7, 6, 4), (3, 2, 2, 6), {"stride": (2, 1), "groups": 2}))


def name(dtype: Any) -> str:
    return jnp.dtype(dtype).name


def pulled(layer: Layer, rules: str, **options: Any) -> Callable[..., Any]:
    """(x, w, b, δ) -> y without its bias, dx, dw, db."""

    def run(x: Any, w: Any, b: Any, delta: Any) -> Any:
        f = partial(layer.op, rules=rules, **layer.case.options, **options)
        return f(x, w), *jax.vjp(f, x, w, b)[1](delta)

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rules", [*RULES, "autodiff"])
@pytest.mark.parametrize("layer", [LAYERS[2], LAYERS[-1]], ids=str)
def test_the_result_and_every_gradient_have_the_operands_dtype(layer: Layer, rules: str, dtype: Any) -> None:
    x, w, b, delta = layer.arguments(dtype)
    result = jax.eval_shape(pulled(layer, rules), x, w, b, delta)
    assert [(a.shape, a.dtype) for a in result] == [(a.shape, dtype) for a in (delta, x, w, b)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rules", [*RULES, "autodiff"])
def test_a_gradient_on_its_own_has_its_operands_dtype(rules: str, dtype: Any) -> None:
    x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 5, 3), (3, 3, 3)))
    for gradient, a, b, size in [
        (jaxconv.conv_input_grad, x, w, 5),
        (jaxconv.conv_kernel_grad, x, x, 3),
        (jaxconv.conv_transpose_input_grad, x, w, 5),
        (jaxconv.conv_transpose_kernel_grad, x, x, 3),
    ]:
        run = partial(lambda gradient, size, a, b: gradient(a, b, size, rules=rules), gradient, size)
        assert jax.eval_shape(run, a, b).dtype == dtype
    assert jax.eval_shape(jaxconv.conv_bias_grad, x).dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("rules", RULES)
def test_long_sums_do_not_stall(rules: str, dtype: Any) -> None:
    """4095 ones add up to 4095, rounded once; a 16-bit sum would stop at 2048 or 256, or drift from tap to tap."""
    total = np.asarray(4095, dtype)
    ones = partial(jnp.ones, dtype=dtype)
    conv = partial(jaxconv.conv, padding="VALID", rules=rules)

    @jax.jit
    def sums() -> Any:
        over_taps_and_channels = conv(ones((1, 3, 3, 455)), ones((3, 3, 455, 1)))
        x, w, b = ones((1, 5, 5, 1)), ones((3, 3, 1, 455)), ones(455)
        dx = jax.vjp(lambda x: conv(x, w), x)[1](ones((1, 3, 3, 455)))[0][0, 2, 2]
        x, w, b = ones((9, 13, 35, 1)), ones((1, 1, 1, 1)), ones(1)
        dw, db = jax.vjp(lambda w, b: conv(x, w, b), w, b)[1](ones((9, 13, 35, 1)))
        return over_taps_and_channels, dx, dw, db

    for value in sums():
        assert value.item() == total, value


def assert_rounded_once(results: Any, args: Any) -> None:
    """Each result is the float64 truth to half a ulp, beside the errors of a float32 sum."""
    exact = [a.astype(np.float64) for a in args]
    theirs = jax.jit(pulled(LAYER, "autodiff"))
    for got, truth, size in zip(results, theirs(*exact), theirs(*map(np.abs, exact)), strict=True):
        assert_within_bound(got, np.asarray(truth), args[-1].size, np.asarray(size))


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("rules", RULES)
def test_16_bit_results_are_the_truth_rounded_once(rules: str, dtype: Any) -> None:
    args = LAYER.arguments(dtype)
    assert_rounded_once(jax.jit(pulled(LAYER, rules))(*args), args)


@pytest.mark.parametrize("rules", RULES)
def test_preferred_element_type_keeps_the_float32_sums(rules: str) -> None:
    """bfloat16 operands, float32 result and δ, bfloat16 gradients."""
    args = *LAYER.arguments(jnp.bfloat16)[:3], LAYER.arguments(np.float32)[3]
    results = jax.jit(pulled(LAYER, rules, preferred_element_type=jnp.float32))(*args)
    assert [a.dtype for a in results] == [jnp.float32, *[jnp.bfloat16] * 3]
    assert_rounded_once(results, args)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=name)
@pytest.mark.parametrize("rules", [*RULES, "autodiff"])
def test_no_other_precision_appears_in_the_program(rules: str, dtype: Any) -> None:
    """float32 in, float32 throughout, with x64 enabled; 16 bits may only grow to the 32 of their sums."""
    allowed = {jnp.bfloat16: {"bf16", "f32"}, jnp.float32: {"f32"}, jnp.float64: {"f64"}}[dtype]
    gradients = jax.vmap(pulled(LAYER, rules), (0, None, None, 0))
    x, w, b, delta = LAYER.arguments(dtype)
    text = jax.jit(gradients).lower(x[None], w, b, delta[None]).as_text()
    found = set(re.findall(r"\b(?:\d+x)*(bf16|f16|f32|f64)\b", text))
    assert found and found <= allowed


@pytest.mark.parametrize("rules", [*RULES, "autodiff"])
def test_precision_reaches_the_forward_pass_and_both_gradients(rules: str) -> None:
    dense = Layer(jaxconv.conv, Case((2, 7, 6, 4), (3, 2, 4, 6), {"stride": (2, 1)}))
    text = (
        jax.jit(pulled(dense, rules, precision="highest", engine="xla")).lower(*dense.arguments(np.float32)).as_text()
    )
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.(convolution|dot_general)\b", line)]
    assert len(products) >= 3
    assert all(line.count("HIGHEST") == 2 for line in products)
