"""What a layer starts with: the numbers that `jax.random.normal` draws, without a program for every shape of them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.layers import BatchNorm, Conv, ConvTranspose, Dense, Flatten, GroupNorm, LayerScale, kernels, serial
from jaxconv.models import MODELS
from tests.support.agreement import compilations
from tests.support.devices import cpu_mesh

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


@pytest.mark.parametrize("name", MODELS)
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
