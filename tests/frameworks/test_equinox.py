"""Equinox with `manual` around its loss: channels first, one example, batched by `vmap`; the same training."""

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
from jaxconv.transforms.program import equations
from tests.support.frameworks import (
    JAX_GRADIENTS,
    NATIVE,
    STEPS,
    Training,
    assert_near,
    assert_same,
    cast,
    ours,
    primitives,
    training,
)

eqx = pytest.importorskip("equinox")
jmp = pytest.importorskip("jmp")
nn = eqx.nn

random = np.random.default_rng(0)
BATCH = 7
X, LABELS = random.standard_normal((BATCH, 3, 12, 11)), random.integers(0, 3, BATCH)


class Block(eqx.Module):
    """Depthwise, then from channel to channel, as in MobileNet."""

    depthwise: Any
    pointwise: Any

    def __init__(self, channels: int, key: Any) -> None:
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, key=key)
        self.pointwise = nn.Conv2d(channels, channels, 1, key=key)

    def __call__(self, y: Any) -> Any:
        return y + self.pointwise(jax.nn.gelu(self.depthwise(y)))


class Net(eqx.Module):
    """Small, with every kind of layer that has a rule, some that have none, and leaves that are no arrays."""

    first: Any
    norm: Any
    pools: list[Any]
    grouped: Any
    block: Any
    up: Any
    dropout: Any
    head: Any
    activation: Any
    scale: float

    def __init__(self, key: Any) -> None:
        self.first = nn.Conv2d(3, 8, 3, 2, padding=1, padding_mode="CIRCULAR", use_bias=False, key=key)
        self.norm = nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")
        self.pools = [nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2, 2, use_ceil=True), nn.AdaptiveAvgPool2d(3)]
        self.grouped = nn.Conv2d(8, 8, (3, 2), padding=((1, 1), (2, 0)), dilation=(1, 2), groups=2, key=key)
        self.block = Block(8, key)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, padding=1, output_padding=1, key=key)
        self.dropout, self.head = nn.Dropout(0.25), nn.MLP(54, 3, 16, 1, key=key)
        self.activation, self.scale = jax.nn.silu, 1.5

    def __call__(self, x: Any, state: Any, key: Any) -> Any:
        y, state = self.norm(self.first(x), state)
        y = self.pools[0](self.activation(y) * self.scale)
        y = eqx.filter_checkpoint(self.block)(self.grouped(y))
        y = self.pools[2](self.up(self.pools[1](y)))
        return self.head(self.dropout(y, key=key).ravel()), state


@functools.cache
def start() -> tuple[Any, Any]:
    """The model, its arrays in float64, and its state."""
    return nn.make_with_state(Net)(jax.random.key(0))


def loss(model: Any, state: Any, x: Any, key: Any) -> Any:
    of_each = jax.vmap(model, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
    logits, state = of_each(x, state, jax.random.split(key, BATCH))
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), state


def with_arrays_in(dtype: Any, tree: Any) -> Any:
    arrays, others = eqx.partition(tree, eqx.is_array)
    return eqx.combine(cast(arrays, dtype), others)


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def trained(wrap: Wrap, dtype: Any) -> Training:
    """The first gradient, model and state after a step, the losses."""
    model, state = (with_arrays_in(dtype, tree) for tree in start())
    x, keys = jnp.asarray(X, dtype), jax.random.split(jax.random.key(1), STEPS)
    optimizer = optax.sgd(0.05, momentum=0.9)

    @eqx.filter_jit
    def step(model: Any, state: Any, memory: Any, key: Any) -> Any:
        (value, state), grads = eqx.filter_value_and_grad(wrap(loss), has_aux=True)(model, state, x, key)
        updates, memory = optimizer.update(grads, memory)
        return (eqx.apply_updates(model, updates), state, memory), value, grads

    memory = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    found = training(step, (model, state, memory), keys)
    return found._replace(after_a_step=eqx.filter(found.after_a_step, eqx.is_array))


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


def scalar(params: Any, x: Any) -> Any:
    model, state = start()
    return loss(eqx.combine(params, model), state, x, jax.random.key(0))[0]


def parameters() -> Any:
    return eqx.filter(start()[0], eqx.is_inexact_array)


def test_the_rules_are_there_and_what_has_none_stays() -> None:
    forward, gradient = (primitives(f(scalar), parameters(), X) for f in (jaxconv.manual, by_rules))
    assert {"jaxconv_conv", "jaxconv_window_sum"} <= ours(forward)
    assert {"jaxconv_input_grad", "jaxconv_kernel_grad", "jaxconv_take_winner_transpose"} <= ours(gradient)
    assert not JAX_GRADIENTS & gradient.keys()
    theirs = primitives(jax.grad(scalar), parameters(), X)
    assert theirs.keys() >= {"conv_general_dilated", "select_and_scatter_add"}
    assert gradient["remat2"] == theirs["remat2"] > 0 and gradient["random_bits"] == theirs["random_bits"] > 0


def by_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(jaxconv.manual(f))


def test_no_example_has_a_kernel_gradient_of_its_own() -> None:
    """The loss is a mean over `vmap`: its gradient is one sum over the batch, never an array per example."""
    kernels = {a.shape for a in jax.tree.leaves(parameters()) if a.ndim == 4}
    assert len(kernels) == 5
    program = jax.make_jaxpr(by_rules(scalar))(parameters(), X).jaxpr
    shapes = {getattr(v.aval, "shape", ()) for eqn in equations(program) for v in eqn.outvars}
    assert kernels <= shapes
    for shape in kernels:
        assert (BATCH, *shape) not in shapes and (BATCH * shape[0], *shape[1:]) not in shapes
    each = jax.make_jaxpr(jax.vmap(by_rules(scalar), (None, 0)))(parameters(), X[:, None].repeat(BATCH, 1)).jaxpr
    found = {getattr(v.aval, "shape", ()) for eqn in equations(each) for v in eqn.outvars}
    assert {(BATCH, *shape) for shape in kernels} <= found  # where they are asked for they would be seen


@pytest.mark.skipif(not NATIVE, reason="there is no native engine here")
def test_the_engine_computes_it() -> None:
    args = cast(parameters(), jnp.float32), X.astype(np.float32)
    calls = {e: jax.jit(jax.grad(jaxconv.manual(small, engine=e))).lower(*args).as_text() for e in ("auto", "xla")}
    assert "jaxconv_onednn_convolution" in calls["auto"] and "jaxconv_onednn" not in calls["xla"]


# Smaller: one property each


def small(params: Any, x: Any) -> Any:
    """Two layers of the net, and no state."""
    model = eqx.combine(params, start()[0])
    return jnp.square(jax.vmap(lambda x: model.pools[0](model.block(model.first(x))))(x).astype(jnp.float32)).mean()


def test_filtered_transformations_on_either_side() -> None:
    x = jnp.asarray(X)
    want = jax.jit(jax.grad(small))(parameters(), x)
    for f in (
        eqx.filter_jit(eqx.filter_grad(jaxconv.manual(small))),
        eqx.filter_grad(jaxconv.manual(eqx.filter_jit(small))),
        eqx.filter_grad(eqx.filter_jit(jaxconv.manual(small))),
        jax.grad(jaxconv.manual(eqx.filter_checkpoint(small))),
    ):
        assert_same(eqx.filter_jit(lambda *a, f=f: f(*a))(parameters(), x), want)
        assert "conv_general_dilated" not in primitives(f, parameters(), x)
    each = (lambda *a, f=f: eqx.filter_vmap(jax.grad(f), in_axes=(None, 0))(*a) for f in (jaxconv.manual(small), small))
    assert_same(*(jax.jit(f)(parameters(), x[:, None]) for f in each))


def test_a_module_is_an_argument_with_all_that_it_holds() -> None:
    """Its functions, numbers and names come back as they were."""
    model, _ = start()
    back = jaxconv.manual(lambda model, x: (model, model.first(x)))(model, jnp.asarray(X[0]))[0]
    assert back.activation is jax.nn.silu and back.scale == 1.5 and type(back.scale) is float
    assert eqx.tree_equal(back, model)


def test_a_policy_of_mixed_precision() -> None:
    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")

    def mixed(params: Any, x: Any) -> Any:
        return policy.cast_to_output(small(*policy.cast_to_compute((params, x))))

    params, x = cast(parameters(), jnp.float32), X.astype(np.float32)
    exact = jax.jit(jax.grad(small))(params, x)
    for f in (mixed, jaxconv.manual(mixed)):
        got = jax.jit(jax.grad(f))(params, x)
        assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
        assert_near(got, exact, eps=float(jnp.finfo(jnp.bfloat16).eps))
    assert ":bf16[7,8,6,6] = jaxconv_conv" in str(jax.make_jaxpr(jaxconv.manual(mixed))(params, x))
