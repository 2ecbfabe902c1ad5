"""Dense layers, from one to six, narrow and wide, batches of one and of many; and those with entries exactly 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from experiments.verdicts.networks.network import DTYPES, Built, Draw, Network, Op
from experiments.verdicts.networks.parts import ACTIVATIONS, LOSSES, cross_entropy, dense, matmul


def target(draw: Draw, loss: str, batch: int, width: int) -> jax.Array:
    """Labels or values, whatever the loss compares with."""
    return draw.integers(width, batch) if loss == "cross-entropy" else draw.normal(batch, width)


def forward(op: Op, layers: Sequence[Any], x: jax.Array, activation: str) -> jax.Array:
    """Sites: dense 0, relu 0, dense 1, …; no activation after the last."""
    for i, (w, b) in enumerate(layers):
        x = op(f"dense {i}", dense)(x, w, b)
        if i + 1 < len(layers):
            x = op(f"{activation} {i}", ACTIVATIONS[activation])(x)
    return x


def mlp(
    widths: Sequence[int], batch: int, activation: str = "relu", loss: str = "cross-entropy", dtypes: Any = DTYPES
) -> Network:
    """f(params) where params is a list of [w, b]."""

    def make(draw: Draw, op: Op) -> Built:
        params = [draw.affine(i, o, gain=2) for i, o in pairwise(widths)]
        x, t = draw.normal(batch, widths[0]), target(draw, loss, batch, widths[-1])

        def f(params: Any) -> jax.Array:
            return op(loss, LOSSES[loss])(forward(op, params, x, activation), t)

        return f, (params,)

    return Network(f"mlp {'-'.join(map(str, widths))}, batch {batch}, {activation}, {loss}", make, dtypes)


def wide(draw: Draw, op: Op) -> Built:
    """Two layers without biases, 64-784-10, batch 4; mean cross-entropy with labels 0 to 3."""
    k = jax.random.split(jax.random.key(draw.seed), 3)
    x = jax.random.normal(k[0], (4, 64), jnp.float32).astype(draw.dtype)
    params = [
        (jax.random.normal(k[1], (64, 784), jnp.float32) / 8).astype(draw.dtype),
        (jax.random.normal(k[2], (784, 10), jnp.float32) / 28).astype(draw.dtype),
    ]

    def f(params: Any) -> jax.Array:
        h = op("relu 0", jax.nn.relu)(op("matmul 0", matmul)(x, params[0]))
        return op("loss", cross_entropy)(op("matmul 1", matmul)(h, params[1]), jnp.arange(4))

    return f, (params,)


def with_x(draw: Draw, op: Op) -> Built:
    """Differentiated in the data too; parameters in a dict."""
    (w0, b0), (w1, b1) = draw.affine(12, 40), draw.affine(40, 5)
    t = draw.integers(5, 6)

    def f(params: Any, x: jax.Array) -> jax.Array:
        h = op("tanh 0", jnp.tanh)(op("dense 0", dense)(x, params["w0"], params["b0"]))
        return op("loss", cross_entropy)(op("dense 1", dense)(h, params["w1"], params["b1"]), t)

    return f, ({"w0": w0, "b0": b0, "w1": w1, "b1": b1}, draw.normal(6, 12))


# Where true entries are exactly 0, or tiny


def two_layers(draw: Draw, inputs: int = 16, hidden: int = 64, classes: int = 5) -> list[Any]:
    return [draw.affine(inputs, hidden, gain=2), draw.affine(hidden, classes)]


def variant(
    name: str,
    change: Callable[[Draw, list[Any], jax.Array], tuple[list[Any], jax.Array]],
    penalty: Callable[[Any], jax.Array] | None = None,
) -> Network:
    """A two-layer network with its parameters or data changed, batch 8, and a term added to its loss."""

    def make(draw: Draw, op: Op) -> Built:
        params, x = change(draw, two_layers(draw), draw.normal(8, 16))
        t = draw.integers(5, 8)

        def f(params: Any) -> jax.Array:
            loss = op("loss", cross_entropy)(forward(op, params, x, "relu"), t)
            return loss if penalty is None else loss + penalty(params)

        return f, (params,)

    return Network(f"mlp {name}", make)


def dead(units: slice) -> Callable[[Draw, list[Any], jax.Array], tuple[list[Any], jax.Array]]:
    """Hidden units whose bias keeps them below 0 on every example."""

    def change(draw: Draw, params: list[Any], x: jax.Array) -> tuple[list[Any], jax.Array]:
        (w, b), *rest = params
        return [[w, b.at[units].set(-100)], *rest], x

    return change


def weight_decay(factor: float) -> Callable[[Any], jax.Array]:
    return lambda params: jnp.asarray(factor * sum(jnp.sum(w * w) for w, _ in params))


def tied(draw: Draw, op: Op) -> Built:
    """One matrix as the first layer and, transposed, as the last: an autoencoder."""
    x, (w, b), c = draw.normal(6, 20), draw.affine(20, 50), draw.normal(20, scale=0.1)

    def f(params: Any) -> jax.Array:
        w, b, c = params
        h = op("relu 0", jax.nn.relu)(op("dense 0", dense)(x, w, b))
        return op("loss", LOSSES["mse"])(op("dense 1", dense)(h, w.T, c), x)

    return f, ([w, b, c],)


def unread_parameter(draw: Draw, op: Op) -> Built:
    """A layer that the loss does not reach, beside two that it does."""
    params = [*two_layers(draw), draw.affine(5, 7)]
    x, t = draw.normal(8, 16), draw.integers(5, 8)
    return lambda params: cross_entropy(forward(op, params[:2], x, "relu"), t), (params,)


def masked_loss(draw: Draw, op: Op) -> Built:
    """Padded examples have weight 0."""
    params, x, t = two_layers(draw), draw.normal(8, 16), draw.integers(5, 8)
    real = jnp.arange(8) < 5

    def f(params: Any) -> jax.Array:
        logits = forward(op, params, x, "relu")
        each = -jnp.take_along_axis(jax.nn.log_softmax(logits), t[:, None], -1)[:, 0]
        return jnp.where(real, each, 0).sum() / 5

    return f, (params,)


def mixture(draw: Draw, op: Op) -> Built:
    """Of three small experts, softly chosen; vmapped over the experts."""
    x, t, gate = draw.normal(6, 10), draw.normal(6, 4), draw.kernel(10, 3)
    first, second = draw.normal(3, 10, 16, scale=0.3), draw.normal(3, 16, 4, scale=0.25)

    def f(params: Any) -> jax.Array:
        gate, first, second = params
        of_each = jax.vmap(lambda a, b: matmul(op("relu", jax.nn.relu)(matmul(x, a)), b))(first, second)
        return LOSSES["mse"](jnp.einsum("ne,eno->no", op("softmax", jax.nn.softmax)(x @ gate), of_each), t)

    return f, ([gate, first, second],)


def mixed_precision(draw: Draw, op: Op) -> Built:
    """float32 parameters and loss, bfloat16 in between."""
    params, x, t = two_layers(draw), draw.normal(8, 16), draw.integers(5, 8)

    def f(params: Any) -> jax.Array:
        low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return cross_entropy(forward(op, low, x.astype(jnp.bfloat16), "relu").astype(jnp.float32), t)

    return f, (params,)


def checkpointed(draw: Draw, op: Op) -> Built:
    """Recomputed in the backward pass."""
    params = [draw.affine(i, o, gain=2) for i, o in ((12, 48), (48, 48), (48, 6))]
    x, t = draw.normal(8, 12), draw.integers(6, 8)
    return lambda params: cross_entropy(jax.checkpoint(lambda p: forward(op, p, x, "gelu"))(params), t), (params,)


def jitted(draw: Draw, op: Op) -> Built:
    params, x, t = two_layers(draw), draw.normal(8, 16), draw.integers(5, 8)
    return jax.jit(lambda params: cross_entropy(forward(op, params, x, "relu"), t)), (params,)


def summed_over_vmap(draw: Draw, op: Op) -> Built:
    """The loss of one example, vmapped and averaged."""
    params, x, t = two_layers(draw), draw.normal(8, 16), draw.integers(5, 8)

    def f(params: Any) -> jax.Array:
        return jax.vmap(lambda x, t: cross_entropy(forward(op, params, x, "relu"), t))(x, t).mean()

    return f, (params,)


MLPS = [
    mlp((8, 4), 1),
    mlp((8, 8), 3, loss="mse"),
    mlp((64, 10), 64),
    mlp((784, 10), 16),
    mlp((2048, 8), 4, loss="sum"),
    mlp((8, 16, 4), 1),
    mlp((8, 256, 2), 3),
    mlp((16, 512, 10), 4),
    mlp((32, 784, 10), 3),
    mlp((64, 784, 10), 1),
    mlp((64, 784, 10), 32),
    mlp((64, 1024, 10), 3, "tanh"),
    mlp((64, 1024, 10), 4, "gelu"),
    mlp((16, 2048, 10), 4),
    mlp((8, 2048, 2048, 8), 2, dtypes=("float32", "bfloat16")),
    mlp((784, 128, 10), 32),
    mlp((100, 100, 100), 7, "silu", "mse"),
    mlp((8, 16, 16, 4), 5, "tanh", "mse"),
    mlp((64, 64, 64, 10), 16),
    mlp((32, 512, 512, 10), 3),
    mlp((30, 256, 128, 1), 4, "sigmoid", "mse"),
    mlp((8, 1024, 8, 4), 4, "relu", "sum"),
    mlp((16, 32, 32, 32, 4), 1, "gelu"),
    mlp((16, 128, 128, 128, 10), 8, "elu"),
    mlp((64, 300, 300, 100, 10), 4),
    mlp((8, 8, 8, 8, 8, 8), 2, "softplus", "mse"),
    mlp((12, 64, 64, 64, 64, 6), 6),
    mlp((20, 256, 256, 256, 256, 10), 3, "leaky_relu"),
    mlp((16, 64, 64, 64, 64, 64, 10), 4),
    mlp((8, 32, 32, 32, 32, 32, 4), 64, "tanh", "sum"),
    mlp((10, 200, 200, 200, 200, 200, 10), 4, "relu6", "mse"),
    mlp((16, 400, 10), 4, "mish"),
]

PERCEPTRONS: list[Network] = [
    Network("mlp 64-784-10 without biases, batch 4", wide),
    *MLPS,
    Network("mlp differentiated in x too", with_x),
    variant("with dead units", dead(slice(0, 64, 4))),
    variant("with all units dead but two", dead(slice(2, 64))),
    variant("with unread inputs", lambda draw, params, x: (params, x.at[:, ::3].set(0))),
    variant("of zeros", lambda draw, params, x: (params, jnp.zeros_like(x))),
    variant("with one example zero", lambda draw, params, x: (params, x.at[2].set(0))),
    variant("with one-hot inputs", lambda draw, params, x: (params, jnp.eye(16, dtype=x.dtype)[draw.integers(16, 8)])),
    variant("with weight decay", lambda draw, params, x: (params, x), weight_decay(1e-2)),
    variant("with tiny weight decay and dead units", dead(slice(0, 64, 4)), weight_decay(1e-4)),
    variant("of large inputs", lambda draw, params, x: (params, 30 * x)),
    variant("of small inputs", lambda draw, params, x: (params, x / 1000)),
    variant("with zero biases", lambda draw, params, x: ([[w, 0 * b] for w, b in params], x)),
    variant("with a zero last layer", lambda draw, params, x: ([params[0], [0 * a for a in params[1]]], x)),
    Network("mlp with tied weights", tied),
    Network("mlp with an unread layer", unread_parameter),
    Network("mlp with a masked loss", masked_loss),
    Network("mlp, a mixture of experts", mixture),
    Network("mlp in mixed precision", mixed_precision, ("float32",)),
    Network("mlp with checkpoint", checkpointed),
    Network("mlp within jit", jitted),
    Network("mlp vmapped over examples", summed_over_vmap),
]  # fmt: skip
