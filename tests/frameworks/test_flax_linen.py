"""Flax Linen with `manual` around its loss: the same training, by the rules of this library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxconv
from tests.support import frameworks
from tests.support.frameworks import (
    JAX_GRADIENTS,
    NATIVE,
    Training,
    assert_near,
    assert_same,
    cast,
    ours,
    primitives,
)

random = np.random.default_rng(0)
X, LABELS = random.standard_normal((8, 12, 12, 3)), random.integers(0, 3, 8)


class Block(nn.Module):
    """Depthwise, then from channel to channel, as in MobileNet."""

    @nn.compact
    def __call__(self, y: Any, _: Any = None) -> Any:
        channels = y.shape[-1]
        z = nn.Conv(channels, (3, 3), feature_group_count=channels)(y)
        return y + nn.Dense(channels)(nn.gelu(z)), None


class Net(nn.Module):
    """Small, with every kind of layer that has a rule, and some that have none."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        y = nn.Conv(8, (3, 3), strides=2, padding="CIRCULAR", use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))
        y = nn.max_pool(y, (2, 2), (1, 1), "SAME")
        y = nn.Conv(8, (3, 2), kernel_dilation=(1, 2), feature_group_count=2, padding=((1, 1), (2, 0)))(y)
        y, _ = nn.remat(Block)()(y)
        y, _ = nn.scan(nn.jit(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(y)
        y = nn.avg_pool(y, (2, 2), (2, 2), ((1, 0), (0, 1)), count_include_pad=False)
        y = nn.ConvTranspose(6, (3, 3), (2, 2))(y)
        y = nn.ConvLocal(4, (2, 2), strides=2)(y)
        y = nn.pooling.min_pool(y, (2, 2), (1, 1))
        y = nn.Dropout(0.25, deterministic=not train)(y).reshape(y.shape[0], -1, y.shape[-1])
        y = nn.MultiHeadDotProductAttention(2)(y)
        y = nn.Conv(4, 2, padding="CAUSAL")(y)
        return nn.DenseGeneral(3, axis=(-2, -1))(y)


@functools.cache
def start() -> tuple[Any, Any]:
    """Parameters and batch statistics."""
    variables = jax.jit(lambda: Net().init(jax.random.key(0), X.astype(np.float32), train=False))()
    return variables.pop("params"), variables


def loss(params: Any, state: Any, x: Any, key: Any) -> Any:
    given = {"params": params, **state}
    logits, state = Net().apply(given, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), state


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def trained(wrap: Wrap, dtype: Any) -> Training:
    return frameworks.trained(wrap(loss), *cast(start(), dtype), jnp.asarray(X, dtype))


@functools.cache
def their_training() -> Training:
    return trained(lambda f: f, jnp.float64)


def test_a_step_and_twenty_losses_are_theirs() -> None:
    got, want = trained(functools.partial(jaxconv.manual, engine="xla"), jnp.float64), their_training()
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
    assert want.losses[-1] < 0.9 * want.losses[0]


def test_so_they_are_with_the_native_engine() -> None:
    for got, exact in zip(trained(jaxconv.manual, jnp.float32), their_training(), strict=True):
        assert_near(got, exact)


def scalar(params: Any, key: Any) -> Any:
    return loss(params, start()[1], X.astype(np.float32), key)[0]


def test_the_rules_are_there_and_what_has_none_stays() -> None:
    args = start()[0], jax.random.key(0)
    forward, gradient = primitives(jaxconv.manual(scalar), *args), primitives(jax.grad(jaxconv.manual(scalar)), *args)
    assert {"jaxconv_conv", "jaxconv_window_sum"} <= ours(forward)
    assert {"jaxconv_input_grad", "jaxconv_kernel_grad", "jaxconv_take_winner_transpose"} <= ours(gradient)
    assert not JAX_GRADIENTS & gradient.keys()
    theirs = primitives(jax.grad(scalar), *args)
    assert theirs.keys() >= {"conv_general_dilated", "select_and_scatter_add"}
    assert {"scan", "remat2", "random_bits"} <= gradient.keys() and gradient["remat2"] == theirs["remat2"]
    assert 0 < gradient["dot_general"] < theirs["dot_general"]


@pytest.mark.skipif(not NATIVE, reason="there is no native engine here")
def test_the_engine_computes_it() -> None:
    args = start()[0], jax.random.key(0)
    calls = {e: jax.jit(jax.grad(jaxconv.manual(scalar, engine=e))).lower(*args).as_text() for e in ("auto", "xla")}
    assert "jaxconv_onednn_convolution" in calls["auto"] and "jaxconv_onednn" not in calls["xla"]


# Smaller: one property each


class Small(nn.Module):
    dtype: Any = None
    hook: dict[str, Any] | None = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.Conv(4, (3, 3), dtype=self.dtype, **(self.hook or {}))(x)
        y = nn.max_pool(nn.relu(y), (2, 2), (2, 2))
        return nn.Dense(3, dtype=self.dtype)(y)


@functools.cache
def small() -> Any:
    return jax.jit(Small().init)(jax.random.key(0), X.astype(np.float32))


def squares(module: nn.Module, params: Any, x: Any) -> Any:
    return jnp.square(module.apply(params, x).astype(jnp.float32)).mean()


def test_parameters_stay_wide_and_layers_compute_in_sixteen_bits() -> None:
    x = X.astype(np.float32)
    exact = jax.grad(functools.partial(squares, Small()))(small(), x)
    for wrap in (lambda f: f, jaxconv.manual):
        got = jax.jit(jax.grad(wrap(functools.partial(squares, Small(jnp.bfloat16)))))(small(), x)
        assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
        assert_near(got, exact, eps=float(jnp.finfo(jnp.bfloat16).eps))
    program = jax.make_jaxpr(jaxconv.manual(functools.partial(squares, Small(jnp.bfloat16))))(small(), x)
    assert ":bf16[8,12,12,4] = jaxconv_conv" in str(program)


@pytest.mark.parametrize("name", ["conv_general_dilated", "conv_general_dilated_cls"])
def test_their_own_hooks_take_ours(name: str) -> None:
    given = jaxconv.conv_general_dilated if name == "conv_general_dilated" else lambda: jaxconv.conv_general_dilated
    params, x = cast(small(), jnp.float64), X
    hooked = functools.partial(squares, Small(hook={name: given}))
    found = primitives(jax.grad(hooked), params, x)
    assert "jaxconv_kernel_grad" in found and "conv_general_dilated" not in found
    assert_same(jax.grad(hooked)(params, x), jax.grad(functools.partial(squares, Small()))(params, x))


class Decorated(nn.Module):
    @nn.compact
    @jaxconv.manual
    def __call__(self, x: Any) -> Any:
        return Small()(x)


def test_a_method_may_be_decorated_if_it_changes_nothing() -> None:
    with pytest.raises(TypeError, match=r"f changed variables of a module of Flax Linen .* calls module\.apply"):
        Decorated().init(jax.random.key(0), X)
    params = {"params": {"Small_0": cast(small(), jnp.float64)["params"]}}
    (got,) = jax.grad(functools.partial(squares, Decorated()))(params, X)["params"].values()
    assert_same({"params": got}, jax.grad(functools.partial(squares, Small()))(cast(small(), jnp.float64), X))


def test_variables_may_be_made_within() -> None:
    key = jax.random.key(0)
    assert_same(jaxconv.manual(Small().init)(key, X), Small().init(key, X))
    pure = jaxconv.manual(lambda x: nn.max_pool(x, (2, 2)))

    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return pure(nn.Dense(3)(x))

    assert Inside().init(key, X).keys() == {"params"}
