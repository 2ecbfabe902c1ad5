"""The models of this library, with hand-written rules throughout; small, so that a verdict takes seconds."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxconv
from experiments.verdicts.networks.network import Built, Draw, Network, Op, through
from experiments.verdicts.networks.parts import cross_entropy
from jaxconv import layers, models

Shape = tuple[int, ...]


def model(name: str, net: layers.Layer, shape: Shape, rules: str, fresh: bool) -> Network:
    """f(params), in training. Fresh from `init`, where biases and some scales are 0, or a step away from it."""

    def make(draw: Draw, op: Op) -> Built:
        params, state, out = net.init(jax.random.key(draw.seed), shape)
        params = draw.cast(params)
        if not fresh:
            params = jax.tree.map(lambda a: a + draw.normal(*a.shape, scale=0.05), params)
        x, t = draw.normal(*shape), draw.integers(out[-1], shape[0])

        def f(params: Any) -> jax.Array:
            y, _ = net.apply(through(op, params), state, x, train=True, key=jax.random.key(1), rules=rules)
            return op("loss", cross_entropy)(y, t)

        return f, (params,)

    return Network(f"model {name}, {rules}{', fresh' if fresh else ''}", make)


def small(rules: str, fresh: bool) -> list[Network]:
    stages = ((1, 8, 1, 1), (4, 8, 2, 2))
    return [
        model("article", models.article(), (4, 8, 8, 1), rules, fresh),
        model("cnn", models.cnn(), (3, 8, 8, 1), rules, fresh),
        model("lenet5", models.lenet5(), (3, 16, 16, 1), rules, fresh),
        model("vgg", models.vgg(widths=(4, 8)), (4, 8, 8, 3), rules, fresh),
        model("resnet18", models.resnet18(width=4), (3, 8, 8, 3), rules, fresh),
        model("mobilenet_v2", models.mobilenet_v2(stages=stages, stem=8, head=16), (4, 8, 8, 3), rules, fresh),
        model("convnext", models.convnext(widths=(8, 12), depth=1), (3, 8, 8, 3), rules, fresh),
    ]


def by_ops(rules: str) -> Network:
    """The ops themselves. Sites: conv 0, batch norm, relu, max pool, conv 1, layer norm, gelu, dense, loss."""

    def make(draw: Draw, op: Op) -> Built:
        x, t = draw.normal(4, 9, 9, 2), draw.integers(5, 4)
        state = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
        params = {
            "conv 0": [draw.kernel(3, 3, 2, 6, gain=2), draw.normal(6, scale=0.1)],
            "batch norm": draw.scaling(6),
            "conv 1": [draw.kernel(3, 3, 3, 8, gain=2), draw.normal(8, scale=0.1)],
            "layer norm": draw.scaling(8),
            "dense": draw.affine(8, 5),
        }

        def normed(h: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return jaxconv.batch_norm(h, scale, bias, state, train=True, rules=rules)[0]

        def f(p: Any) -> jax.Array:
            h = op("conv 0", partial(jaxconv.conv, rules=rules))(x, *p["conv 0"])
            h = op("batch norm", normed)(h, *p["batch norm"])
            h = op("relu", partial(jaxconv.relu, rules=rules))(h)
            h = op("max pool", partial(jaxconv.max_pool, window=2, rules=rules))(h)
            h = op("conv 1", partial(jaxconv.conv, stride=2, groups=2, rules=rules))(h, *p["conv 1"])
            h = op("layer norm", partial(jaxconv.layer_norm, rules=rules))(h, *p["layer norm"])
            h = jaxconv.global_avg_pool(op("gelu", partial(jaxconv.gelu, rules=rules))(h), rules=rules)
            logits = op("dense", partial(jaxconv.dense, rules=rules))(h, *p["dense"])
            return op("loss", partial(jaxconv.softmax_cross_entropy, rules=rules))(logits, t).mean()

        return f, (params,)

    return Network(f"model by ops, {rules}", make)


MODELS: list[Network] = [
    *small("fast", fresh=True),
    *small("rotated", fresh=False),
    *(by_ops(rules) for rules in ("fast", "textbook")),
]
