"""Flax NNX with `manual` around its loss: the same training, and what the loss changes in a model is changed in it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import TraceContextError

import jaxconv
from tests.support.frameworks import JAX_GRADIENTS, STEPS, assert_near, assert_same, cast, ours, primitives
from tests.support.sampling import chosen

random = np.random.default_rng(0)
X, LABELS = random.standard_normal((8, 12, 12, 3)), random.integers(0, 3, 8)


class Block(nnx.Module):
    """Depthwise, then from channel to channel, as in MobileNet."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.depthwise = nnx.Conv(channels, channels, (3, 3), feature_group_count=channels, rngs=rngs)
        self.pointwise = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, y: Any) -> Any:
        return y + self.pointwise(nnx.gelu(self.depthwise(y)))


class Net(nnx.Module):
    """Small, with every kind of layer that has a rule, and some that have none."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, padding="CIRCULAR", use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.grouped = nnx.Conv(
            8, 8, (3, 2), kernel_dilation=(1, 2), feature_group_count=2, padding=((1, 1), (2, 0)), rngs=rngs
        )
        self.saved = Block(8, rngs=rngs)
        stacked = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Block(8, rngs=rngs)))
        self.blocks = stacked(rngs)
        self.up = nnx.ConvTranspose(8, 6, (3, 3), (2, 2), rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, dropout_rate=0.1, deterministic=False, rngs=rngs)
        self.causal = nnx.Conv(6, 4, 2, padding="CAUSAL", rngs=rngs)
        self.head = nnx.LinearGeneral((36, 4), 3, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.norm(self.stem(x)))
        y = nnx.max_pool(y, (2, 2), (1, 1), "SAME")
        y = nnx.remat(lambda block, y: block(y))(self.saved, self.grouped(y))
        y = nnx.scan(lambda y, block: block(y), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(y, self.blocks)
        y = nnx.avg_pool(y, (2, 2), (2, 2), ((1, 0), (0, 1)), count_include_pad=False)
        y = nnx.min_pool(self.up(y), (2, 2), (1, 1), "SAME")
        y = self.dropout(y).reshape(y.shape[0], -1, y.shape[-1])
        return self.head(self.causal(self.attention(y)))


@functools.cache
def start() -> Any:
    """The definition and the state of a net, random keys and counts included."""
    return nnx.split(nnx.jit(lambda: Net(nnx.Rngs(0)))())


def net(dtype: Any) -> Net:
    definition, state = start()
    return nnx.merge(definition, cast(state, dtype))


def loss(model: Any, x: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(x), LABELS).mean()


class Training(NamedTuple):
    grads: Any
    after_a_step: Any
    losses: Any
    at_the_end: Any


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def trained(wrap: Wrap, dtype: Any) -> Training:
    model, x = net(dtype), jnp.asarray(X, dtype)
    optimizer = nnx.Optimizer(model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)
    gradient = nnx.value_and_grad(wrap(loss))

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        value, grads = gradient(model, x)
        optimizer.update(model, grads)
        return value, grads

    value, grads = step(model, optimizer)
    first, losses = nnx.clone(nnx.state(model)), [value]
    losses += [step(model, optimizer)[0] for _ in range(STEPS - 1)]
    return Training(grads, first, jnp.stack(losses), nnx.state(model, nnx.Not(nnx.Param)))


@functools.cache
def their_training() -> Training:
    return trained(lambda f: f, jnp.float64)


def test_a_step_and_twenty_losses_are_theirs() -> None:
    got, want = trained(functools.partial(jaxconv.manual, engine="xla"), jnp.float64), their_training()
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
    assert want.losses[-1] < want.losses[0]
    assert int(want.at_the_end["dropout"]["rngs"]["count"][...]) == STEPS


def test_so_they_are_with_the_native_engine() -> None:
    for got, exact in zip(trained(jaxconv.manual, jnp.float32), their_training(), strict=True):
        assert_near(got, exact)


def test_the_rules_are_there_and_what_has_none_stays() -> None:
    model, x = net(jnp.float32), X.astype(np.float32)
    forward, gradient = primitives(jaxconv.manual(loss), model, x), primitives(nnx.grad(jaxconv.manual(loss)), model, x)
    assert {"jaxconv_conv", "jaxconv_window_sum"} <= ours(forward)
    assert {"jaxconv_input_grad", "jaxconv_kernel_grad", "jaxconv_take_winner_transpose"} <= ours(gradient)
    assert not JAX_GRADIENTS & gradient.keys()
    theirs = primitives(nnx.grad(loss), model, x)
    assert theirs.keys() >= {"conv_general_dilated", "select_and_scatter_add"}
    assert {"scan", "remat2", "random_bits"} <= gradient.keys() and gradient["remat2"] == theirs["remat2"]
    assert 0 < gradient["dot_general"] < theirs["dot_general"]


# What f changes


class Changing(nnx.Module):
    """Changes its statistics, a random count, a number of Python, and what it is made of."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        y = self.norm(self.conv(x))
        self.seen = nnx.Intermediate(y.mean())
        return self.dropout(nnx.relu(y))


def changing() -> Changing:
    model = Changing(nnx.Rngs(0))
    nnx.update(model, cast(nnx.state(model), jnp.float64))
    return model


def squares(model: Any, x: Any) -> Any:
    return jnp.square(model(x)).mean()


TRANSFORMS: dict[str, Wrap] = {
    "nothing": lambda f: f,
    "grad": nnx.grad,
    "value_and_grad": nnx.value_and_grad,
    "jit": nnx.jit,
    "jit of grad": lambda f: nnx.jit(nnx.grad(f)),
    "grad of jit": lambda f: nnx.grad(nnx.jit(f)),
    "grad of remat": lambda f: nnx.grad(nnx.remat(f)),
    "grad in its second argument": lambda f: nnx.grad(f, argnums=1),
}


@pytest.mark.parametrize("name", chosen(TRANSFORMS, {"nothing", "grad", "jit of grad", "grad of remat"}))
def test_what_the_loss_changes_in_a_model_is_changed_in_it(name: str) -> None:
    results = {}
    for which, wrap in (("theirs", lambda f: f), ("ours", jaxconv.manual)):
        model = changing()
        f = TRANSFORMS[name](wrap(squares))
        results[which] = [
            jax.tree.map(jnp.asarray, nnx.to_pure_dict(s) if isinstance(s, nnx.State) else s)
            for s in (f(model, X), f(model, X), nnx.state(model))
        ]
        results[which].append(model.calls)
    assert_same(results["ours"], results["theirs"])
    assert results["ours"][-1] >= 1


def test_a_batch_of_models_keeps_what_each_has_seen() -> None:
    made = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Changing(rngs)))
    states = []
    for wrap in (lambda f: f, jaxconv.manual):
        models = made(nnx.Rngs(0))
        nnx.update(models, cast(nnx.state(models), jnp.float64))
        values = nnx.vmap(wrap(lambda model, x: jnp.square(model.norm(model.conv(x))).mean()), in_axes=(0, None))(
            models, X
        )
        states.append((values, nnx.state(models)))
    assert_same(*states[::-1])


class Scaled(nnx.Module):
    def __init__(self, scale: nnx.Variable) -> None:
        self.scale = scale

    def __call__(self, x: Any) -> Any:
        self.scale[...] += 1
        return jax.lax.conv(x, jnp.ones((1, 1, 1, 1), x.dtype), (1, 1), "SAME") * self.scale[...]

    decorated = jaxconv.manual(__call__)


def test_objects_are_who_they_were() -> None:
    a = Scaled(nnx.Param(jnp.float64(1.0)))
    b = Scaled(a.scale)
    x = jnp.ones((1, 1, 2, 2))
    assert float(b.decorated(x).sum()) == 8 and float(a.scale[...]) == 2, "a method is decorated, and the weight shared"

    def f(one: Any, *, other: Any, x: Any, word: str) -> Any:
        assert one.scale is other["b"].scale and word == "same"
        return {"again": one, "new": Scaled(nnx.Param(2 * one.scale[...])), "y": other["b"](x)}

    got = jaxconv.manual(f)(a, other={"b": b}, x=x, word="same")
    assert got["again"] is a and float(a.scale[...]) == 3 and float(got["new"].scale[...]) == 4
    assert float(got["new"](x).sum()) == 20 and float(got["y"].sum()) == 12


def test_a_state_may_stand_for_the_model() -> None:
    definition, params, rest = nnx.split(changing(), nnx.Param, ...)

    def f(params: Any, x: Any) -> Any:
        return squares(nnx.merge(definition, params, rest, copy=True), x)

    assert_same(jax.grad(jaxconv.manual(f))(params, X), jax.grad(f)(params, X))


def test_a_model_that_is_no_argument_cannot_be_changed() -> None:
    model = changing()
    with pytest.raises(TraceContextError) as raised:
        jaxconv.manual(lambda x: squares(model, x))(X)
    assert any("hand over the model that f changes" in note for note in raised.value.__notes__)
    assert model.norm.mean[...].sum() == 0
    model.eval()
    assert jaxconv.manual(lambda x: jnp.square(model.norm(model.conv(x))).mean())(X) > 0


def test_without_flax_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flax.nnx")
    monkeypatch.delitem(sys.modules, "flax.errors")
    kernel = jnp.ones((1, 1, 1, 1))
    f = jaxconv.manual(lambda w: jax.lax.conv(w, kernel, (1, 1), "SAME").sum())
    assert float(jax.grad(f)(kernel).sum()) == 1 and "flax.nnx" not in sys.modules


def test_their_own_hook_takes_ours() -> None:
    theirs = nnx.Conv(3, 4, (3, 3), strides=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    hooked = nnx.Conv(
        3,
        4,
        (3, 3),
        strides=2,
        conv_general_dilated=jaxconv.conv_general_dilated,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    found = primitives(nnx.grad(squares), hooked, X)
    assert "jaxconv_kernel_grad" in found and "conv_general_dilated" not in found
    assert_same(nnx.grad(squares)(hooked, X), nnx.grad(squares)(theirs, X))


def test_parameters_stay_wide_and_layers_compute_in_sixteen_bits() -> None:
    def model(dtype: Any) -> Any:
        return nnx.Conv(3, 4, (3, 3), dtype=dtype, rngs=nnx.Rngs(0))

    def wide(model: Any, x: Any) -> Any:
        y = nnx.max_pool(nnx.relu(model(x)), (2, 2), (2, 2))
        return jnp.square(y.astype(jnp.float32)).mean()

    x = X.astype(np.float32)
    exact = nnx.grad(wide)(model(jnp.float32), x)
    for wrap in (lambda f: f, jaxconv.manual):
        got = nnx.grad(wrap(wide))(model(jnp.bfloat16), x)
        assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
        assert_near(got, exact, eps=float(jnp.finfo(jnp.bfloat16).eps))
