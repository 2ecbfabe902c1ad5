"""Haiku with `manual` around its loss: the same training; and every layer that convolves, pools or multiplies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from tests.support import frameworks
from tests.support.frameworks import (
    JAX_GRADIENTS,
    Training,
    assert_layer,
    assert_near,
    assert_same,
    cast,
    ours,
    primitives,
)
from tests.support.sampling import sampled

hk = pytest.importorskip("haiku")
jmp = pytest.importorskip("jmp")

random = np.random.default_rng(0)
X, LABELS = random.standard_normal((8, 12, 11, 3)), random.integers(0, 3, 8)


class Net(hk.Module):
    """Small, with every kind of layer that has a rule, and some that have none."""

    def __call__(self, x: Any, *, train: bool) -> Any:
        y = hk.Conv2D(8, 3, stride=2, with_bias=False)(x)
        y = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(y, is_training=train))
        y = hk.MaxPool((2, 2, 1), (1, 1, 1), "SAME")(y)
        y = hk.Conv2D(8, (3, 2), rate=(1, 2), feature_group_count=2, padding=((1, 1), (2, 0)))(y)
        y = hk.SeparableDepthwiseConv2D(1, 3)(y)
        y = hk.avg_pool(y, (2, 2, 1), (2, 2, 1), "SAME")
        y = hk.remat(hk.Conv2DTranspose(6, 3, stride=2))(y)
        y = jax.nn.gelu(hk.Linear(5)(y))
        y = hk.dropout(hk.next_rng_key(), 0.25 if train else 0.0, y)
        return hk.Linear(3)(hk.Flatten()(y))


NET = hk.transform_with_state(lambda x, train: Net()(x, train=train))


@functools.cache
def start() -> tuple[Any, Any]:
    return jax.jit(functools.partial(NET.init, train=True))(jax.random.key(0), X.astype(np.float32))


def loss(params: Any, state: Any, x: Any, key: Any) -> Any:
    logits, state = NET.apply(params, state, key, x, train=True)
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
    assert want[-1][-1] < 0.95 * want[-1][0]


def test_so_they_are_with_the_native_engine() -> None:
    for got, exact in zip(trained(jaxconv.manual, jnp.float32), their_training(), strict=True):
        assert_near(got, exact)


def test_the_rules_are_there_and_what_has_none_stays() -> None:
    def scalar(params: Any, key: Any) -> Any:
        return loss(params, start()[1], X.astype(np.float32), key)[0]

    args = start()[0], jax.random.key(0)
    gradient, theirs = primitives(jax.grad(jaxconv.manual(scalar)), *args), primitives(jax.grad(scalar), *args)
    assert {"jaxconv_conv", "jaxconv_input_grad", "jaxconv_kernel_grad"} <= ours(gradient)
    assert {"jaxconv_window_sum", "jaxconv_take_winner_transpose"} <= ours(gradient)
    # Of ones alone, the number of elements in each window of an average.
    assert not (JAX_GRADIENTS - {"reduce_window_sum"}) & gradient.keys()
    assert theirs.keys() >= {"conv_general_dilated", "select_and_scatter_add"}
    assert gradient["remat2"] == theirs["remat2"] > 0


def test_parameters_may_be_made_within() -> None:
    key = jax.random.key(0)
    init = functools.partial(NET.init, train=True)
    assert_same(jax.jit(jaxconv.manual(init))(key, X), jax.jit(init)(key, X))


def test_a_policy_of_mixed_precision() -> None:
    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
    params, x = start()[0], X.astype(np.float32)

    def scalar(params: Any) -> Any:
        logits, _ = NET.apply(params, start()[1], jax.random.key(0), x, train=False)
        return jnp.square(logits).mean()

    exact = jax.jit(jax.grad(scalar))(params)
    hk.mixed_precision.set_policy(Net, policy)
    try:
        for f in (scalar, jaxconv.manual(scalar)):
            got = jax.jit(jax.grad(f))(params)
            assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
            assert_near(got, exact, eps=float(jnp.finfo(jnp.bfloat16).eps))
        assert ":bf16[8,6,6,8] = jaxconv_conv" in str(jax.make_jaxpr(jaxconv.manual(scalar))(params))
    finally:
        hk.mixed_precision.clear_policy(Net)


# The layers

Case = tuple[Callable[[Any], Any], tuple[int, ...]]
LAST, FIRST = (7, 6, 5), {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def layer(name: str, *args: Any, rank: int = 2, channels: int = 4, first: bool = False, **options: Any) -> Any:
    options |= {"data_format": FIRST[rank]} if first else {}
    shape = (2, channels, *LAST[:rank]) if first else (2, *LAST[:rank], channels)
    return (lambda x: getattr(hk, name)(*args, **options)(x)), shape


def pool(name: str, *args: Any, **options: Any) -> Any:
    return (lambda x: getattr(hk, name)(x, *args, **options)), (2, 7, 6, 4)


MASK = np.tril(np.ones((3, 3)))[..., None, None]
CASES: dict[str, Case] = {
    "Conv1D": layer("Conv1D", 3, 3, rank=1),
    "Conv1D, causal": layer("Conv1D", 3, 3, rank=1, rate=2, padding=hk.pad.causal),
    "Conv1D, first": layer("Conv1D", 3, 2, rank=1, first=True, stride=2),
    "Conv2D": layer("Conv2D", 3, 3),
    "Conv2D, all": layer("Conv2D", 6, (3, 2), stride=(1, 2), rate=(2, 1), feature_group_count=2, with_bias=False),
    "Conv2D, first": layer("Conv2D", 3, 3, first=True, padding="VALID"),
    "Conv2D, pairs": layer("Conv2D", 3, 3, padding=((2, 0), (1, 3))),
    "Conv2D, full": layer("Conv2D", 3, 3, padding=[hk.pad.full, hk.pad.reverse_causal]),
    "Conv2D, mask": layer("Conv2D", 3, 3, channels=1, mask=np.broadcast_to(MASK, (3, 3, 1, 3))),
    "Conv3D": layer("Conv3D", 3, 2, rank=3, stride=2),
    "Conv1DTranspose": layer("Conv1DTranspose", 3, 3, rank=1, stride=2),
    "Conv2DTranspose": layer("Conv2DTranspose", 3, 3),
    "Conv2DTranspose, stride": layer("Conv2DTranspose", 3, (3, 4), stride=(2, 3), padding="VALID"),
    "Conv2DTranspose, shape": layer("Conv2DTranspose", 3, 3, stride=2, output_shape=(13, 12)),
    "Conv2DTranspose, first": layer("Conv2DTranspose", 3, 3, stride=2, first=True, with_bias=False),
    "Conv3DTranspose": layer("Conv3DTranspose", 3, 2, rank=3),
    "DepthwiseConv1D": layer("DepthwiseConv1D", 2, 3, rank=1),
    "DepthwiseConv2D": layer("DepthwiseConv2D", 1, 3),
    "DepthwiseConv2D, multiplier": layer("DepthwiseConv2D", 2, 3, stride=2, rate=1, padding="VALID"),
    "DepthwiseConv2D, first": layer("DepthwiseConv2D", 1, 3, first=True),
    "DepthwiseConv3D": layer("DepthwiseConv3D", 1, 2, rank=3),
    "SeparableDepthwiseConv2D": layer("SeparableDepthwiseConv2D", 2, 3, stride=2),
    "max_pool": pool("max_pool", (2, 2, 1), (2, 2, 1), "VALID"),
    "max_pool, SAME": pool("max_pool", (1, 3, 2, 1), (1, 2, 1, 1), "SAME"),
    "max_pool, first": pool("max_pool", (1, 2, 2), (1, 2, 3), "VALID"),
    "max_pool, all axes": pool("max_pool", (1, 2, 2, 2), (1, 1, 1, 2), "VALID", channel_axis=None),
    "avg_pool": pool("avg_pool", (2, 2, 1), (1, 2, 1), "VALID"),
    "avg_pool, SAME": pool("avg_pool", (3, 3, 1), (2, 2, 1), "SAME"),
    "MaxPool": (lambda x: hk.MaxPool((2, 3, 1), (1, 2, 1), "SAME")(x), (2, 7, 6, 4)),
    "AvgPool": (lambda x: hk.AvgPool((2, 3, 1), (1, 2, 1), "SAME")(x), (2, 7, 6, 4)),
    "Linear on images": (lambda x: hk.Linear(3)(x), (2, 3, 5, 4)),
    "LayerNorm": (lambda x: hk.LayerNorm(-1, True, True)(x), (2, 3, 4)),
    "LayerNorm, axes": (lambda x: hk.LayerNorm((1, 2), False, True, param_axis=-1)(x), (2, 3, 4)),
    "BatchNorm": (lambda x: hk.BatchNorm(True, True, 0.9)(x, True), (2, 3, 5, 4)),
    "BatchNorm, first": (lambda x: hk.BatchNorm(True, False, 0.9, data_format="NCHW")(x, True), (2, 4, 3, 5)),
    "GroupNorm": (lambda x: hk.GroupNorm(2)(x), (2, 3, 5, 4)),
    "InstanceNorm": (lambda x: hk.InstanceNorm(True, True)(x), (2, 3, 5, 4)),
}  # fmt: skip
STAY: dict[str, Case] = {
    "Linear": (lambda x: hk.Linear(3)(x), (2, 4)),
    "MLP": (lambda x: hk.nets.MLP([3, 2])(x), (2, 4)),
    "RMSNorm": (lambda x: hk.RMSNorm(-1)(x), (2, 3, 4)),
}


def applied(function: Callable[[Any], Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """A layer as a function of its parameters and x, and these."""
    net = hk.without_apply_rng(hk.transform_with_state(function))
    x = np.random.default_rng(1).standard_normal(shape)
    params, state = net.init(jax.random.key(0), jnp.asarray(x))
    return (lambda params, x: net.apply(params, state, x)[0]), params, x


@pytest.mark.parametrize("case", sampled(CASES, 6))
def test_a_layer_with_rules(case: Case) -> None:
    assert_layer(*applied(*case))


@pytest.mark.parametrize("case", sampled(STAY, 3))
def test_a_layer_that_stays(case: Case) -> None:
    assert_layer(*applied(*case), rules=False)
