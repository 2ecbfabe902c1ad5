"""Which equations `manual` replaces: every convolution and pool with a gradient, in any dtype and over any axes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from tests.support.replaced import assert_close, conv, primitives, program, random, weighted

X, W = random(2, 6, 5, 4), 0.3 * random(3, 2, 4, 6, seed=1)


def dilated(**options: Any) -> Callable[..., Any]:
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return lambda x, w: lax.conv_general_dilated(x, w, **options)


# name: (f, shape of x, shape of w)
CONVOLUTIONS = {
    "stride": (dilated(window_strides=(2, 3)), (2, 6, 5, 4), (3, 2, 4, 6)),
    "asymmetric and negative padding": (dilated(padding=((2, -1), (-1, 0))), (2, 6, 5, 4), (3, 2, 4, 6)),
    "both dilations": (
        dilated(lhs_dilation=(2, 1), rhs_dilation=(1, 2), padding=((1, 0), (1, 1))),
        (2, 4, 5, 4),
        (3, 2, 4, 6),
    ),
    "feature groups": (dilated(feature_group_count=2, window_strides=(2, 1)), (2, 6, 5, 4), (3, 2, 2, 6)),
    "depthwise": (dilated(feature_group_count=4), (2, 6, 5, 4), (3, 2, 1, 8)),
    "batch groups": (dilated(batch_group_count=2, padding="VALID"), (4, 6, 5, 3), (3, 2, 3, 6)),
    "one axis": (
        lambda x, w: lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")),
        (2, 3, 7),
        (4, 3, 3),
    ),
    "three axes": (lambda x, w: lax.conv_general_dilated(x, w, (1, 2, 1), "SAME"), (1, 2, 3, 4, 3), (2, 2, 2, 1, 3)),
    "transposed": (lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), (2, 3, 3, 4), (3, 3, 4, 2)),
    "no spatial axes": (lambda x, w: lax.conv_general_dilated(x, w, (), ()), (3, 4), (2, 4)),
}


def gradients(f: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(jax.value_and_grad(weighted(f), tuple(range(len(args)))))(*args)


def test_every_convolution_there_is() -> None:
    """All in one program, which compiles faster."""
    operands = {name: (random(*x), random(*w, seed=1)) for name, (_, x, w) in CONVOLUTIONS.items()}

    def all_of(operands: Any) -> Any:
        return {name: f(*operands[name]) for name, (f, _, _) in CONVOLUTIONS.items()}

    found = primitives(jax.grad(weighted(jaxconv.manual(all_of))), operands)
    assert found["conv_general_dilated"] == 0 and found["jaxconv_kernel_grad"] == len(CONVOLUTIONS)
    assert_close(gradients(jaxconv.manual(all_of), operands), gradients(all_of, operands))


def test_every_order_of_the_axes() -> None:
    """Of x, of w and of y, in turn."""
    orders = list(itertools.permutations(range(4)))
    rng = np.random.default_rng(0)
    cases = [
        (orders[i], orders[j], orders[k]) for i, j, k in zip(*(rng.permutation(24) for _ in range(3)), strict=True)
    ]
    cases = cases[:8]

    def all_of(x: Any, w: Any) -> Any:
        made = []
        for lhs, rhs, out in cases:
            numbers = lax.ConvDimensionNumbers(lhs, rhs, out)
            # x and w are NCHW and OIHW
            a, b = (jnp.moveaxis(v, (0, 1, 2, 3), spec) for v, spec in ((x, lhs), (w, rhs)))
            made.append(lax.conv_general_dilated(a, b, (2, 1), ((1, 1), (0, 1)), dimension_numbers=numbers))
        return made

    x, w = random(2, 3, 5, 4), random(4, 3, 3, 2, seed=1)
    found = primitives(jaxconv.manual(all_of), x, w)
    assert (found["conv_general_dilated"], found["jaxconv_conv"]) == (0, len(cases))
    assert_close(gradients(jaxconv.manual(all_of), x, w), gradients(all_of, x, w))


def test_floats_of_every_size() -> None:
    for dtype, rtol in ((jnp.bfloat16, 0.02), (jnp.float16, 3e-3), (jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
        assert_close(gradients(jaxconv.manual(conv), x, w), gradients(conv, x, w), rtol)
    wider = dilated(preferred_element_type=jnp.float32)
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in (X, W))
    assert jaxconv.manual(wider)(x, w).dtype == jnp.float32
    assert_close(gradients(jaxconv.manual(wider), x, w), gradients(wider, x, w), 0.02)
    x, w = (jnp.asarray(a, jnp.float8_e4m3fn) for a in (X, W))
    got, want = jaxconv.manual(wider)(x, w), wider(x, w)
    assert primitives(jaxconv.manual(wider), x, w)["conv_general_dilated"] == 0
    assert_close(got, want, 1e-5)


FOREIGN = "its windows are reduced by a function of its own"
LEFT = {
    "integers": (lambda: conv((10 * X).astype(np.int32), (10 * W).astype(np.int32)), "int32 has no gradient"),
    "complex numbers": (lambda: conv(X * (1 + 1j), W * (2 - 1j)), "it is complex128"),
    "a pool of integers": (lambda: pooled((10 * X).astype(np.int32), lax.add, np.int32(0)), "int32 has no gradient"),
    "a product as the reduction": (lambda: pooled(X, lax.mul, 1.0), "its windows are reduced by a function of its own"),
    "a foreign function": (
        lambda: pooled(X, jnp.logaddexp, -np.inf),
        "its windows are reduced by a function of its own",
    ),
    "sums that start from 1": (lambda: pooled(X, lax.add, 1.0), "its sums start from a value that padding has too"),
    "a dilated input": (lambda: pooled(X, lax.max, -np.inf, base_dilation=(1, 2, 1, 1)), "its input is dilated"),
    "a window of one": (
        lambda: lax.reduce_window(X, 0.0, lax.add, (1,) * 4, (1,) * 4, "SAME"),
        "every window is one elem",
    ),
    "nothing": (lambda: pooled(X[:0], lax.max, -np.inf), "there is nothing to compute"),
    "a large window": (
        lambda: lax.reduce_window(np.zeros((1, 20, 20, 1)), 0.0, lax.add, (1, 17, 17, 1), (1,) * 4, "SAME"),
        "a window of 289 taps takes 289 operations",
    ),
}


def pooled(x: Any, reduction: Any, start: Any, **options: Any) -> Any:
    return lax.reduce_window(x, np.asarray(start, x.dtype), reduction, (1, 2, 2, 1), (1, 2, 1, 1), "SAME", **options)


@pytest.mark.parametrize("name", LEFT)
def test_what_no_rule_stands_for_is_left_exactly_as_it_was(name: str) -> None:
    f, why = LEFT[name]
    zero = jnp.zeros(())  # an operand, so that nothing is a constant

    def g(zero: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(lambda y: y, _at(f, zero))

    report = jaxconv.manual(g).report(zero)
    assert report.replaced == () and [row.why[: len(why)] for row in report.left] == [why]
    with pytest.warns(UserWarning, match=f"stays, since {why}"):
        assert str(jax.make_jaxpr(jaxconv.manual(g))(zero)) == str(jax.make_jaxpr(g)(zero))
    with pytest.warns(UserWarning):
        np.testing.assert_array_equal(jaxconv.manual(g)(zero), g(zero))


def _at(f: Callable[[], Any], zero: Any) -> Any:
    """f where its arrays depend on an argument."""
    global X, W
    x, w = X, W
    try:
        X, W = x + zero, w + zero
        return f()
    finally:
        X, W = x, w


WINDOWS = {
    "images": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID", (1, 1, 1, 1)),
    "overlapping": ((1, 3, 2, 1), (1, 2, 1, 1), "SAME", (1, 1, 1, 1)),
    "channels first": ((1, 1, 2, 2), (1, 1, 1, 2), "SAME", (1, 1, 1, 1)),
    "the batch": ((2, 1, 1, 1), (1, 1, 1, 1), "SAME", (1, 1, 1, 1)),
    "the channels": ((1, 1, 1, 3), (1, 1, 1, 1), "SAME", (1, 1, 1, 1)),
    "all axes": ((2, 2, 3, 2), (1, 2, 2, 1), "SAME", (1, 1, 1, 1)),
    "the first and the last": ((2, 1, 1, 2), (1, 1, 1, 2), "VALID", (1, 1, 1, 1)),
    "padding": ((1, 2, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 0), (0, 2), (0, 0)), (1, 1, 1, 1)),
    "a stride alone": ((1, 1, 1, 1), (1, 2, 1, 2), "VALID", (1, 1, 1, 1)),
}


def test_windows_over_any_axes() -> None:
    """Maxima, minima and sums; by the functions that `lax` knows and by others, which have no gradient in JAX."""
    x = random(3, 5, 6, 4)

    def all_of(x: Any, functions: dict[str, tuple[Any, float]]) -> Any:
        made = {}
        for (name, (shape, strides, padding, dilation)), (of, (reduction, start)) in itertools.product(
            WINDOWS.items(), functions.items()
        ):
            made[name, of] = lax.reduce_window(
                x, np.float64(start), reduction, shape, strides, padding, window_dilation=dilation
            )
        return {" ".join(name): y for name, y in made.items()}

    known = {"max": (lax.max, -np.inf), "min": (lax.min, np.inf), "sum": (lax.add, 0.0)}
    # A foreign function of the same mathematics.
    foreign = {
        "max": (lambda a, b: jnp.maximum(b, a), -np.inf),
        "min": (jnp.minimum, np.inf),
        "sum": (lambda a, b: a + b, 0.0),
    }
    want = gradients(lambda x: all_of(x, known), x)
    for functions in (known, foreign):
        f = jaxconv.manual(lambda x, functions=functions: all_of(x, functions))
        found = primitives(jax.grad(weighted(f)), x)
        assert not [name for name in found if name.startswith(("reduce_window", "select_and"))]
        assert_close(gradients(f, x), want)


def test_dilated_windows_and_negative_padding() -> None:
    """Of which JAX has no gradient."""
    x = random(2, 6, 7, 3)

    def f(x: Any) -> Any:
        padding = ((0, 0), (0, 0), (-1, 1), (0, 0))
        return lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1,) * 4, padding, window_dilation=(1, 2, 3, 1))

    def want(x: Any) -> Any:
        x = lax.pad(x, -np.inf, ((0, 0, 0), (0, 0, 0), (-1, 1, 0), (0, 0, 0)))
        return functools.reduce(jnp.maximum, [x[:, a : a + 4, b : b + 4] for a in (0, 2) for b in (0, 3)])

    assert_close(gradients(jaxconv.manual(f), x), gradients(want, x))


def test_a_start_value_that_is_not_the_identity() -> None:
    """A maximum that starts from 0.3 is one of its windows and 0.3, where δ goes nowhere."""
    x = random(2, 4, 4, 3)

    def f(x: Any) -> Any:
        return (
            pooled(x, lax.max, 0.3),
            pooled(x, lax.min, -0.1),
            lax.reduce_window(x, x[0, 0, 0, 0], jnp.maximum, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        )

    def want(x: Any) -> Any:
        first, last = (jnp.full((2, 2, 4, 3), v) for v in (0.3, -0.1))
        most = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return (
            jnp.maximum(pooled(x, lax.max, -np.inf), first),
            jnp.minimum(pooled(x, lax.min, np.inf), last),
            jnp.maximum(most, jnp.full_like(most, 1.0) * x[0, 0, 0, 0]),
        )

    assert_close(jax.jit(f)(x), jax.jit(want)(x))
    assert_close(gradients(jaxconv.manual(f), x), gradients(want, x))


def test_dense_layers_on_images_and_other_products() -> None:
    x, w = map(jnp.asarray, (random(2, 3, 4, 5), random(5, 6, seed=1)))

    def f(x: Any, w: Any) -> Any:
        images = x @ w  # replaced
        two = jnp.tensordot(x, w.reshape(1, 5, 6)[0], 1) + jnp.einsum("nhwc,co->nhwo", x, w)  # replaced
        deep = jnp.einsum("nhwc,wcx->nhx", x, jnp.ones((4, 5, 6)) * w[None])  # two axes are summed: replaced
        rows = x[0, 0] @ w  # two matrices: left
        batch = jnp.einsum("nhwc,nhwd->nhcd", x, x)  # left
        outer = jnp.tensordot(x[0, 0], w, 0)  # left
        last = lax.dot_general(x, w[:, :, None] * jnp.ones((1, 1, 2)), (((3,), (0,)), ((0,), (2,))))  # left
        return images, two, deep, rows, batch, outer, last

    report = jaxconv.manual(f).report(x, w)
    assert {row.op for row in report.replaced} == {"dense"} and sum(row.count for row in report.replaced) == 4
    assert sum(n for of in report.counts["left"].values() for n in of.values()) == 4
    assert_close(gradients(jaxconv.manual(f), x, w), gradients(f, x, w))
    kernel = [e for e in program(jax.grad(weighted(jaxconv.manual(f)), 1), x, w) if "kernel_grad" in e.primitive.name]
    assert len(kernel) == 4


def test_constants_are_left_to_be_folded() -> None:
    """A convolution of constants has no gradient, and is none of f's work."""

    def f(x: Any) -> Any:
        return x * conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))

    report = jaxconv.manual(f).report(random(1, 4, 4, 1))
    assert [row.why for row in report.left] == ["it is computed from constants alone"]
