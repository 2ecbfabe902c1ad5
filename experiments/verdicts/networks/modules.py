"""Modules of other libraries, as their users write them: Flax linen and nnx, Equinox under vmap, Haiku transforms.

Every parameter is a site, by its path, and so is every activation that is named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import lax

import jaxconv
from experiments.verdicts.networks.network import Built, Draw, Network, Op, through
from experiments.verdicts.networks.parts import cross_entropy

IMAGES, ROWS, WORDS = (4, 8, 8, 3), (6, 16), (3, 5, 12)
CLASSES = 5

Make = Callable[[Draw, Op], Built]
Shape = tuple[int, ...]


def initialised(function: Callable[..., Any], *args: Any) -> Any:
    """Where some libraries draw in the default float or that of the data, all draw in float32."""
    with jax.enable_x64(False):
        return function(*args)


def classified(draw: Draw, shape: Shape) -> tuple[jax.Array, jax.Array]:
    return draw.normal(*shape), draw.integers(CLASSES, shape[0])


# Flax linen: a module from `op`, initialised, applied to params; other collections are held


class LinenMLP(linen.Module):
    op: Op

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.op("relu 0", linen.relu)(linen.Dense(64)(x))
        x = self.op("gelu 1", linen.gelu)(linen.Dense(32)(x))
        return linen.Dense(CLASSES)(x)


class LinenCNN(linen.Module):
    op: Op
    norm: str
    conv: Any = lax.conv_general_dilated

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(8, (3, 3), conv_general_dilated=self.conv)(x)
        x = linen.LayerNorm()(x) if self.norm == "LayerNorm" else linen.BatchNorm(use_running_average=False)(x)
        x = self.op("relu 0", linen.relu)(x)
        x = linen.max_pool(x, (2, 2), strides=(2, 2))
        x = linen.Conv(8, (3, 3), strides=2, conv_general_dilated=self.conv)(x)
        x = self.op("relu 1", linen.relu)(x)
        return linen.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class LinenAttention(linen.Module):
    op: Op

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + linen.MultiHeadDotProductAttention(num_heads=3)(linen.LayerNorm()(x))
        x = x + linen.Dense(12)(self.op("gelu", linen.gelu)(linen.Dense(24)(linen.LayerNorm()(x))))
        return linen.Dense(CLASSES)(x.mean(1))


class LinenRNN(linen.Module):
    op: Op

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(CLASSES)(self.op("tanh", jnp.tanh)(linen.RNN(linen.LSTMCell(8))(x)[:, -1]))


def of_linen(module: Callable[[Op], linen.Module], shape: Shape) -> Make:
    def make(draw: Draw, op: Op) -> Built:
        x, t = classified(draw, shape)
        net = module(op)
        variables = draw.cast(initialised(net.init, jax.random.key(draw.seed), x.astype(jnp.float32)))
        held = {name: value for name, value in variables.items() if name != "params"}

        def f(params: Any) -> jax.Array:
            y, _ = net.apply({"params": through(op, params), **held}, x, mutable=list(held))
            return op("loss", cross_entropy)(y, t)

        return f, (variables["params"],)

    return make


# Flax nnx: split into graph and parameters, merged in the loss


class NnxMLP(nnx.Module):
    def __init__(self, op: Op, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(16, 48, rngs=rngs), nnx.Linear(48, CLASSES, rngs=rngs)
        self.act = op("silu", jax.nn.silu)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.act(self.first(x)))


class NnxCNN(nnx.Module):
    def __init__(self, op: Op, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.ours = nnx.Conv(8, 8, (3, 3), strides=2, conv_general_dilated=jaxconv.conv_general_dilated, rngs=rngs)
        self.act, self.out = op("relu", jax.nn.relu), nnx.Linear(8 * 16, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.ours(self.act(self.norm(self.conv(x))))
        return self.out(x.reshape(x.shape[0], -1))


class NnxAttention(nnx.Module):
    def __init__(self, op: Op, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.act, self.out = op("tanh", jnp.tanh), nnx.Linear(12, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.act(x + self.attention(self.norm(x))).mean(1))


class NnxRNN(nnx.Module):
    def __init__(self, op: Op, rngs: nnx.Rngs) -> None:
        self.rnn, self.out = nnx.RNN(nnx.GRUCell(12, 10, rngs=rngs)), nnx.Linear(10, CLASSES, rngs=rngs)
        self.act = op("tanh", jnp.tanh)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.act(self.rnn(x)[:, -1]))


def of_nnx(module: Callable[..., Any], shape: Shape) -> Make:
    def make(draw: Draw, op: Op) -> Built:
        x, t = classified(draw, shape)
        graph, *states = nnx.split(module(op, nnx.Rngs(draw.seed)), nnx.Param, ...)
        params, held = (draw.cast(nnx.to_pure_dict(state)) for state in states)

        def f(params: Any) -> jax.Array:
            net = nnx.merge(graph, nnx.State(through(op, params)), nnx.State(held))
            return op("loss", cross_entropy)(net(x), t)

        return f, (params,)

    return make


# Equinox: modules of one example, under vmap; what is no array is held


class EquinoxCNN(eqx.Module):
    layers: list[Any]

    def __init__(self, op: Op, key: jax.Array) -> None:
        a, b, c = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=a), op("relu 0", jax.nn.relu), eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 8, 3, stride=2, key=b), op("relu 1", jax.nn.relu), jnp.ravel,
            eqx.nn.Linear(8, CLASSES, key=c),
        ]  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, -1, 0)
        for layer in self.layers:
            x = layer(x)
        return x


class EquinoxAttention(eqx.Module):
    attention: Any
    norm: Any
    out: Any

    def __init__(self, op: Op, key: jax.Array) -> None:
        a, b = jax.random.split(key)
        self.attention, self.norm = eqx.nn.MultiheadAttention(2, 12, key=a), eqx.nn.LayerNorm(12)
        self.out = eqx.nn.Linear(12, CLASSES, key=b)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.vmap(self.norm)(x)
        return self.out((x + self.attention(h, h, h)).mean(0))


class EquinoxRNN(eqx.Module):
    cell: Any
    out: Any

    def __init__(self, op: Op, key: jax.Array) -> None:
        a, b = jax.random.split(key)
        self.cell, self.out = eqx.nn.GRUCell(12, 10, key=a), eqx.nn.Linear(10, CLASSES, key=b)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(10, x.dtype), x)[0])


def equinox_mlp(width: int, depth: int) -> Callable[[Op, jax.Array], Any]:
    return lambda op, key: eqx.nn.MLP(16, CLASSES, width, depth, activation=op("relu", jax.nn.relu), key=key)


def of_equinox(module: Callable[[Op, jax.Array], Any], shape: Shape) -> Make:
    def make(draw: Draw, op: Op) -> Built:
        x, t = classified(draw, shape)
        net = initialised(module, op, jax.random.key(draw.seed))
        params, static = eqx.partition(net, eqx.is_inexact_array)

        def f(params: Any) -> jax.Array:
            return op("loss", cross_entropy)(jax.vmap(eqx.combine(through(op, params), static))(x), t)

        return f, (draw.cast(params),)

    return make


# Haiku: a function of modules, transformed


def haiku_mlp(op: Op, x: jax.Array) -> jax.Array:
    return hk.nets.MLP([64, 32, CLASSES], activation=op("relu", jax.nn.relu))(x)


def haiku_cnn(op: Op, x: jax.Array) -> jax.Array:
    x = op("relu 0", jax.nn.relu)(hk.Conv2D(8, 3)(x))
    x = hk.AvgPool((2, 2, 1), (2, 2, 1), "SAME")(x)
    x = hk.LayerNorm(-1, True, True)(hk.Conv2D(8, 3, stride=2)(x))
    return hk.Linear(CLASSES)(hk.Flatten()(op("relu 1", jax.nn.relu)(x)))


def haiku_batch_norm(op: Op, x: jax.Array) -> jax.Array:
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3, with_bias=False)(x), is_training=True)
    return hk.Linear(CLASSES)(op("relu", jax.nn.relu)(x).mean((1, 2)))


def haiku_attention(op: Op, x: jax.Array) -> jax.Array:
    x = x + hk.MultiHeadAttention(2, 6, w_init=hk.initializers.VarianceScaling(1.0))(x, x, x)
    return hk.Linear(CLASSES)(op("tanh", jnp.tanh)(x).mean(1))


def haiku_rnn(op: Op, x: jax.Array) -> jax.Array:
    cell = hk.LSTM(8)
    return hk.Linear(CLASSES)(hk.dynamic_unroll(cell, x.swapaxes(0, 1), cell.initial_state(x.shape[0]))[0][-1])


def of_haiku(function: Callable[[Op, jax.Array], jax.Array], shape: Shape) -> Make:
    def make(draw: Draw, op: Op) -> Built:
        x, t = classified(draw, shape)
        net = hk.transform_with_state(lambda x: function(op, x))
        params, state = initialised(net.init, jax.random.key(draw.seed), x.astype(jnp.float32))

        def f(params: Any) -> jax.Array:
            return op("loss", cross_entropy)(net.apply(through(op, params), state, None, x)[0], t)

        return f, (draw.cast(params),)

    return make


MODULES: list[Network] = [
    Network("linen MLP", of_linen(LinenMLP, ROWS)),
    Network("linen CNN, layer norm", of_linen(lambda op: LinenCNN(op, "LayerNorm"), IMAGES)),
    Network("linen CNN, batch norm", of_linen(lambda op: LinenCNN(op, "BatchNorm"), IMAGES)),
    Network(
        "linen CNN, convolved by jaxconv",
        of_linen(lambda op: LinenCNN(op, "LayerNorm", jaxconv.conv_general_dilated), IMAGES),
    ),
    Network("linen attention", of_linen(LinenAttention, WORDS)),
    Network("linen LSTM", of_linen(LinenRNN, WORDS)),
    Network("nnx MLP", of_nnx(NnxMLP, ROWS)),
    Network("nnx CNN", of_nnx(NnxCNN, IMAGES)),
    Network("nnx attention", of_nnx(NnxAttention, WORDS), ("float32", "bfloat16")),  # XLA's CPU lacks its float16
    Network("nnx GRU", of_nnx(NnxRNN, WORDS)),
    Network("equinox MLP", of_equinox(equinox_mlp(32, 2), ROWS)),
    Network("equinox MLP, wide", of_equinox(equinox_mlp(512, 1), (4, 16))),
    Network("equinox CNN", of_equinox(EquinoxCNN, IMAGES)),
    Network("equinox attention", of_equinox(EquinoxAttention, WORDS)),
    Network("equinox GRU", of_equinox(EquinoxRNN, WORDS)),
    Network("haiku MLP", of_haiku(haiku_mlp, ROWS)),
    Network("haiku CNN", of_haiku(haiku_cnn, IMAGES)),
    Network("haiku CNN, batch norm", of_haiku(haiku_batch_norm, IMAGES)),
    Network("haiku attention", of_haiku(haiku_attention, WORDS)),
    Network("haiku LSTM", of_haiku(haiku_rnn, WORDS)),
]
