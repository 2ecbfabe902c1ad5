"""What a layer starts with: the numbers that `jax.random.normal` draws, without a program for every shape of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv import layers
from jaxconv.layers import (
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
    RMSNorm,
    kernels,
    serial,
)
from jaxconv.models import MODELS
from tests.support.agreement import compilations
from tests.support.devices import cpu_mesh
from tests.support.refusal import refusal
from tests.support.sampling import chosen

KEY = jax.random.key(3)
SMALL: dict[str, dict[str, Any]] = {"resnet18": {"width": 8}, "vgg": {"widths": (4, 8)}, "convnext": {"depth": 1}}
_, LONG = kernels._DRAWN


def plainly(key: jax.Array, shape: tuple[int, ...], scale: float) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32) * scale


@pytest.mark.parametrize("shape", [(1,), (3, 3, 3, 64), (2, 9 << 13), (9 << 14, 1), ((9 << 14) + 1,), (LONG + 1,)])
@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(5), jax.random.key(3, impl="rbg")], ids=["new", "raw", "rbg"])
def test_a_kernel_is_drawn_to_the_last_bit(shape: tuple[int, ...], key: jax.Array) -> None:
    drawn = kernels.normal(key, shape, math.sqrt(2 / 27))
    np.testing.assert_array_equal(drawn, plainly(key, shape, math.sqrt(2 / 27)), strict=True)


def test_a_stream_that_depends_on_its_length_is_drawn_at_its_own() -> None:
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(kernels.normal(KEY, (3, 5), 0.1), plainly(KEY, (3, 5), 0.1), strict=True)


@pytest.mark.parametrize("name", chosen(MODELS, {"article", "cnn", "lenet5", "vgg", "convnext"}))
def test_a_network_starts_at_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = MODELS[name](**SMALL.get(name, {}))
    ours = net.init(KEY, (1, 32, 32, 3))
    monkeypatch.setattr(kernels, "normal", plainly)
    jax.tree.map(np.testing.assert_array_equal, ours, net.init(KEY, (1, 32, 32, 3)))


def net(features: int) -> Any:
    layers = [Conv(features, 3), BatchNorm(), ConvTranspose(2 * features, 2, stride=2), GroupNorm(2), LayerScale(0.1)]
    return serial(*layers, Flatten(), Dense(features + 1))


def test_another_network_is_drawn_by_the_same_programs() -> None:
    net(4).init(KEY, (1, 6, 6, 2))
    with compilations() as compiled:
        net(6).init(KEY, (1, 5, 8, 3))
    assert not compiled


def test_under_transformations() -> None:
    def parameters(key: jax.Array) -> Any:
        params, state, _ = net(4).init(key, (1, 6, 6, 2))
        return params, state

    ours = parameters(KEY)
    assert jax.eval_shape(parameters, KEY) == jax.eval_shape(lambda: ours)
    alone = jax.eval_shape(lambda: Dense(2).init(KEY, (1, 3))[0])  # the key is a constant, and yet there are no numbers
    assert {name: a.shape for name, a in alone.items()} == {"w": (3, 2), "b": (2,)}
    within = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(within, jax.jit(parameters)(KEY), ours)
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(parameters)(keys)
    jax.tree.map(within, jax.tree.map(lambda a: a[1], many), parameters(keys[1]))


def test_parameters_are_where_their_key_is() -> None:
    _, other, *_ = jax.devices("cpu")
    params, _, _ = Dense(3).init(jax.device_put(KEY, other), (1, 2))
    assert params["w"].devices() == {other} and params["w"].committed
    assert not Dense(3).init(KEY, (1, 2))[0]["w"].committed


def test_parameters_are_on_the_mesh_that_is_set() -> None:
    mesh = cpu_mesh(jax.sharding.AxisType.Explicit, batch=2)
    with jax.set_mesh(mesh):
        params, state, _ = net(4).init(KEY, (1, 6, 6, 2))
        shardings = {a.sharding for a in jax.tree.leaves((params, state))}
    assert all(isinstance(s, jax.sharding.NamedSharding) and s.mesh == mesh for s in shardings), shardings


def test_parameters_may_be_donated() -> None:
    params, _, _ = net(4).init(KEY, (1, 6, 6, 2))
    doubled = jax.jit(lambda p: jax.tree.map(lambda a: 2 * a, p), donate_argnums=0)(params)
    assert all(a.is_deleted() for a in jax.tree.leaves(params))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(doubled))


# Initialisers of the caller's

IMAGE = (1, 6, 6, 4)
own = jax.nn.initializers
drawn = own.normal(0.3)

# (layer, what it should start at under each name: an initialiser)
STARTS: dict[str, tuple[Layer, dict[str, Any]]] = {
    "Conv": (Conv(8, 3, groups=2, kernel_init=own.orthogonal(), bias_init=drawn), {"w": own.orthogonal(), "b": drawn}),
    "ConvTranspose": (
        ConvTranspose(6, 3, kernel_init=own.he_normal(in_axis=-1, out_axis=-2), bias_init=0.25),
        {"w": own.he_normal(in_axis=-1, out_axis=-2), "b": own.constant(0.25)},
    ),
    "Dense": (Dense(3, kernel_init=own.zeros, bias_init=own.ones), {"w": own.zeros, "b": own.ones}),
    "BatchNorm": (BatchNorm(scale_init=drawn, bias_init=drawn), {"scale": drawn, "bias": drawn}),
    "LayerNorm": (LayerNorm(scale_init=0, bias_init=drawn), {"scale": own.zeros, "bias": drawn}),
    "RMSNorm": (RMSNorm(scale_init=drawn), {"scale": drawn}),
    "GroupNorm": (GroupNorm(2, scale_init=drawn, bias_init=-1), {"scale": drawn, "bias": own.constant(-1.0)}),
    "InstanceNorm": (InstanceNorm(scale_init=drawn, bias_init=drawn), {"scale": drawn, "bias": drawn}),
    "LayerScale": (LayerScale(drawn), {"scale": drawn}),
}


def test_every_layer_that_takes_an_initialiser_is_covered() -> None:
    functions = {name: value for name in layers.__all__ if inspect.isfunction(value := getattr(layers, name))}
    taking = {n for n, f in functions.items() if "init" in "".join(p for p in inspect.signature(f).parameters)}
    assert taking == set(STARTS)


@pytest.mark.parametrize("name", STARTS)
def test_a_parameter_starts_at_what_its_initialiser_draws(name: str) -> None:
    """From keys of their own: the first parameter that of the layer, the second the first derived from it."""
    layer, starts = STARTS[name]
    params, _, _ = layer.init(KEY, IMAGE)
    wanted = {
        parameter: init(key, params[parameter].shape, jnp.float32)
        for (parameter, init), key in zip(starts.items(), (KEY, jax.random.fold_in(KEY, 1)), strict=False)
    }
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), params, wanted)


def test_a_default_is_what_it_was_beside_an_initialiser() -> None:
    plain, other = (Conv(8, 3, **options).init(KEY, IMAGE)[0] for options in ({}, {"bias_init": drawn}))
    np.testing.assert_array_equal(plain["w"], other["w"], strict=True)
    assert not plain["b"].any() and other["b"].any()


@pytest.mark.usefixtures("as_a_user")
def test_a_parameter_does_not_yield_to_other_dtypes() -> None:
    params, _, _ = Dense(2, kernel_init=lambda key, shape, dtype: jnp.full(shape, 0.5)).init(KEY, (1, 3))
    assert params["w"].dtype == jnp.float32 and not params["w"].weak_type


def wide(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.zeros(shape)


def pair(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(2, dtype)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "Conv: kernel_init must be a number or an initialiser, such as jax.nn.initializers.he_normal(), but is 'he'.": (
        lambda: Conv(8, 3, kernel_init="he"),
        TypeError,
    ),
    "Dense: bias_init must be a number or an initialiser, such as jax.nn.initializers.he_normal(), but is None.": (
        lambda: Dense(8, bias_init=None),
        TypeError,
    ),
    "Conv: bias_init says what a bias starts at, but bias=False: there is none.": (
        lambda: Conv(8, 3, bias=False, bias_init=drawn),
        ValueError,
    ),
    "Conv: kernel_init must return an array, but returns a function. Is it he_normal where he_normal() was meant?": (
        lambda: Conv(8, 3, kernel_init=own.he_normal).init(KEY, IMAGE),
        TypeError,
    ),
    "LayerNorm: scale_init must return an array, but returns a float.": (
        lambda: LayerNorm(scale_init=lambda key, shape, dtype: 1.0).init(KEY, IMAGE),
        TypeError,
    ),
    "Dense: kernel_init must return what it is asked for, float32[4, 2], but returns float64[4, 2]. It is called with "
    "a key, a shape and a dtype.": (lambda: Dense(2, kernel_init=wide).init(KEY, (1, 4)), ValueError),
    "LayerScale: initial must return what it is asked for, float32[4], but returns float32[2]. It is called with a "
    "key, a shape and a dtype.": (lambda: LayerScale(pair).init(KEY, IMAGE), ValueError),
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_initialiser_that_does_not_do_is_refused(message: str) -> None:
    call, error = REFUSED[message]
    assert refusal(call, error) == message


def test_an_error_in_an_initialiser_says_where_it_was_called() -> None:
    with pytest.raises(TypeError) as raised:  # normal where normal() was meant
        Conv(8, 3, kernel_init=own.normal).init(KEY, IMAGE)
    assert raised.value.__notes__ == [
        "Conv: kernel_init was called with a key, the shape (3, 3, 4, 8) and the dtype float32."
    ]
