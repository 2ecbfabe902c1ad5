"""A network computes in the dtype that it is told; parameters, gradients and statistics stay float32."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import (
    Activation,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    GroupNorm,
    InstanceNorm,
    Layer,
    LayerNorm,
    LayerScale,
    LpPool,
    MaxPool,
    Pad,
    RMSNorm,
    residual,
    serial,
)
from tests.ops.test_layers import EVERY, IMAGE, KEY, drawn, normal

NET = serial(
    Pad(1, mode="edge"), Conv(8, 3), BatchNorm(), Activation(jaxconv.relu), LpPool(2, 2),
    residual(serial(Conv(8, 3), GroupNorm(2), Activation(jnp.tanh), LayerScale(0.5))),
    ConvTranspose(4, 2, stride=2), InstanceNorm(), RMSNorm(), Flatten(), LayerNorm(), Dense(3),
)  # fmt: skip
SHAPE = (4, 6, 6, 2)
LABELS = jnp.arange(4) % 3
NARROW = [jnp.bfloat16, jnp.float16]


def gradient(net: Layer, params: Any, state: Any, x: jax.Array, **options: Any) -> Any:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, new = net.apply(params, state, x, train=True, **options)
        return jaxconv.softmax_cross_entropy(logits, LABELS).mean(), (logits, new)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def distance(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖ over all leaves, in float64."""
    a, b = (np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.__name__)
def test_sixteen_bits_compute_and_float32_keeps(dtype: Any) -> None:
    params, state, _ = NET.init(KEY, SHAPE)
    x = normal(SHAPE)
    (loss, (logits, new)), grads = gradient(NET, params, state, x, dtype=dtype)
    (exact, (wide, statistics)), wide_grads = gradient(NET, params, state, x)
    assert logits.dtype == dtype and loss.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves((grads, new))} == {np.dtype(np.float32)}
    # A dozen layers of roundings of half an eps each; all of a wrong gradient is off by far more.
    eps = float(jnp.finfo(dtype).eps)
    assert eps / 100 < distance(logits, wide) < 12 * eps
    assert eps / 100 < distance(grads, wide_grads) < 12 * eps
    assert eps / 1000 < distance(new, statistics) < 4 * eps
    assert abs(float(loss - exact)) < 4 * eps


@pytest.mark.parametrize("name", EVERY)
def test_kernels_are_converted_and_the_parameters_of_norms_are_not(name: str) -> None:
    layer, op = EVERY[name]
    params, state, _ = drawn(layer)
    x = normal(IMAGE)
    met = params if "Norm" in name else jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    y, _ = layer.apply(params, state, x, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, op(met, x.astype(jnp.bfloat16)))


def test_every_op_of_the_forward_pass_sees_the_dtype() -> None:
    """No float32 activation slips through: what is convolved, multiplied and pooled is bfloat16."""
    params, state, _ = NET.init(KEY, SHAPE)
    run = functools.partial(NET.apply, params, state, dtype=jnp.bfloat16, rules="autodiff")
    program = str(jax.make_jaxpr(run)(normal(SHAPE)))
    kernels = re.findall(r"(\w+):(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", program)
    assert len(kernels) >= 4 and {dtype for _, dtype in kernels} == {"bf16"}


def test_the_statistics_of_a_norm_are_float32_in_bfloat16() -> None:
    """Mean 200 and deviation 1: summed in bfloat16, whose numbers are 1 apart there, the variance would be lost."""
    x = (200 + 2 * jnp.sign(normal((64, 8, 8, 3)))).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    for layer, axes in ((BatchNorm(momentum=0), (0, 1, 2)), (InstanceNorm(), (1, 2)), (GroupNorm(1), (1, 2, 3))):
        params, state, _ = layer.init(KEY, x.shape)
        y, new = layer.apply(params, state, x, train=True, dtype=jnp.bfloat16)
        want = (exact - exact.mean(axes, keepdims=True)) / exact.std(axes, keepdims=True)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8, atol=1e-3)
        running = {"mean": (exact.mean(axes), 1e-6), "var": (exact.var(axes), 1e-4)}
        assert set(new) == (set(running) if layer.init(KEY, x.shape)[1] else set())
        for name, value in new.items():
            np.testing.assert_allclose(value, running[name][0], rtol=running[name][1])


def test_a_gradient_too_small_for_float16_steps_reaches_a_float32_parameter() -> None:
    """A step of 2^-13 is lost on a float16 weight of 1, whose neighbours are 2^-10 apart."""
    net, params = Dense(1, bias=False), {"w": jnp.ones((1, 1), jnp.float32)}

    def loss(params: Any) -> jax.Array:
        y, _ = net.apply(params, {}, jnp.full((1, 1), 2.0**-13), dtype=jnp.float16)
        return y.astype(jnp.float32).sum()

    assert float((params["w"] - jax.grad(loss)(params)["w"])[0, 0]) == 1 - 2.0**-13


def test_integer_images_are_converted() -> None:
    net = serial(MaxPool(2), Flatten(), Dense(2))
    params, state, _ = net.init(KEY, (2, 4, 4, 1))
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    y, _ = net.apply(params, state, x, dtype=jnp.float32)
    np.testing.assert_array_equal(y, net.apply(params, state, x.astype(np.float32))[0])


def test_float64_computes_with_float32_parameters_too() -> None:
    params, state, _ = NET.init(KEY, SHAPE)
    (_, (logits, _)), grads = gradient(NET, params, state, normal(SHAPE), dtype=jnp.float64)
    assert logits.dtype == jnp.float64 and {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


def test_a_residual_converts_what_it_adds() -> None:
    net, x = residual(Activation(jnp.sin)), normal((2, 3))
    narrow = x.astype(jnp.bfloat16)
    y, _ = net.apply({"body": {}}, {"body": {}}, x, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.sin(narrow) + narrow)


def test_a_dtype_that_cannot_be_computed_in_is_refused() -> None:
    for net in (Dense(3), residual(Dense(3))):
        params, state, _ = net.init(KEY, (2, 3))
        with pytest.raises(TypeError, match=r"^apply: dtype must be floating, such as jnp\.bfloat16, but is "):
            net.apply(params, state, normal((2, 3)), dtype=jnp.int8)
