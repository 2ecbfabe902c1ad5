"""Attention, with and without masks and heads, and recurrent networks by `lax.scan`; embeddings with unread rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.verdicts.networks.network import Built, Draw, Network, Op
from experiments.verdicts.networks.parts import LOSSES, cross_entropy, dense, matmul, norm, rms_norm, softmax

layer_norm = norm((-1,))


# Attention. Sites: query, key, value, scores, mask, softmax, mixed, out


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """(…, length, features) of queries and keys to (…, length, length)."""
    return q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])


def causal(s: jax.Array) -> jax.Array:
    """Nothing is read from what comes later."""
    return jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, jnp.finfo(s.dtype).min)


def padded(lengths: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Nothing is read beyond each sequence's length."""

    def mask(s: jax.Array) -> jax.Array:
        real = jnp.arange(s.shape[-1]) < lengths.reshape(-1, *[1] * (s.ndim - 1))
        return jnp.where(real, s, jnp.finfo(s.dtype).min)

    return mask


def attend(op: Op, x: jax.Array, params: Any, heads: int, mask: Any = None, at: str = "") -> jax.Array:
    """(batch, length, features); params: query, key, value, out."""

    def split(y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)

    q, k, v = (
        split(op(f"{name}{at}", matmul)(x, w)) for name, w in zip(("query", "key", "value"), params, strict=False)
    )
    s = op(f"scores{at}", scores)(q, k)
    if mask:
        s = op(f"mask{at}", mask)(s)
    y = op(f"mixed{at}", matmul)(op(f"softmax{at}", softmax)(s), v)
    return op(f"out{at}", matmul)(y.swapaxes(1, 2).reshape(x.shape), params[3])


def attention(name: str, batch: int, length: int, features: int, heads: int = 1, mask: Any = None) -> Network:
    """One layer of self-attention, and a class for each sequence."""

    def make(draw: Draw, op: Op) -> Built:
        params = [draw.kernel(features, features) for _ in range(4)], draw.affine(features, 5)
        x, t = draw.normal(batch, length, features), draw.integers(5, batch)
        own = padded(1 + draw.integers(length, batch)) if mask == "padded" else mask

        def f(params: Any) -> jax.Array:
            y = attend(op, x, params[0], heads, own)
            return op("loss", cross_entropy)(op("dense", dense)(y.mean(1), *params[1]), t)

        return f, (params,)

    return Network(f"attention {name}, batch {batch}, length {length}, {features} features", make)


def block(draw: Draw, features: int) -> dict[str, Any]:
    return {
        "attention": [draw.kernel(features, features) for _ in range(4)],
        "norms": [draw.scaling(features), draw.scaling(features)],
        "mlp": [draw.affine(features, 2 * features, gain=2), draw.affine(2 * features, features)],
    }


def transform(op: Op, x: jax.Array, p: Any, heads: int, mask: Any, at: str) -> jax.Array:
    """A block with its norms before."""
    h = op(f"layer norm 0{at}", layer_norm)(x, *p["norms"][0])
    x = x + attend(op, h, p["attention"], heads, mask, at)
    h = op(f"layer norm 1{at}", layer_norm)(x, *p["norms"][1])
    h = op(f"gelu{at}", jax.nn.gelu)(op(f"dense 0{at}", dense)(h, *p["mlp"][0]))
    return x + op(f"dense 1{at}", dense)(h, *p["mlp"][1])


def transformer(depth: int, tie: bool) -> Callable[[Draw, Op], Built]:
    """Predicts the next of 12 tokens in 4 sequences of 6; tokens 9 to 11 never occur. The logits may be products with
    the embedding itself."""

    def make(draw: Draw, op: Op) -> Built:
        tokens = draw.integers(9, 4, 7)
        params = {
            "embedding": draw.normal(12, 16, scale=0.25),
            "positions": draw.normal(6, 16, scale=0.25),
            "blocks": [block(draw, 16) for _ in range(depth)],
            "norm": draw.scaling(16),
            **({} if tie else {"head": draw.kernel(16, 12)}),
        }

        def f(params: Any) -> jax.Array:
            x = op("embedding", lambda table, i: table[i])(params["embedding"], tokens[:, :-1]) + params["positions"]
            for i, p in enumerate(params["blocks"]):
                x = transform(op, x, p, 2, causal, f" {i}")
            x = op("layer norm", layer_norm)(x, *params["norm"])
            logits = op("head", matmul)(x, params["embedding"].T if tie else params["head"])
            return op("loss", cross_entropy)(logits, tokens[:, 1:])

        return f, (params,)

    return make


def gated(draw: Draw, op: Op) -> Built:
    """RMS norm, attention, RMS norm, and a gated linear unit."""
    x, t = draw.normal(3, 5, 12), draw.normal(3, 5, 12)
    params = {
        "attention": [draw.kernel(12, 12) for _ in range(4)],
        "scales": [1 + draw.normal(12, scale=0.1), 1 + draw.normal(12, scale=0.1)],
        "mlp": [draw.kernel(12, 24), draw.kernel(12, 24), draw.kernel(24, 12)],
    }

    def f(p: Any) -> jax.Array:
        h = x + attend(op, op("rms norm 0", rms_norm)(x, p["scales"][0]), p["attention"], 3)
        n = op("rms norm 1", rms_norm)(h, p["scales"][1])
        a, b, c = p["mlp"]
        return op("loss", LOSSES["mse"])(h + (op("silu", jax.nn.silu)(n @ a) * (n @ b)) @ c, t)

    return f, (params,)


def crossed(draw: Draw, op: Op) -> Built:
    """Three queries of their own read a longer sequence: `jax.nn.dot_product_attention`."""
    memory, t = draw.normal(2, 7, 2, 8), draw.normal(2, 3, 2, 8)
    params = {"queries": draw.normal(2, 3, 2, 8), "key": draw.kernel(8, 8), "value": draw.kernel(8, 8)}

    def f(p: Any) -> jax.Array:
        y = jax.nn.dot_product_attention(
            p["queries"], op("key", matmul)(memory, p["key"]), op("value", matmul)(memory, p["value"])
        )
        return op("loss", LOSSES["mse"])(y, t)

    return f, (params,)


# Recurrent networks. Sites: cell (of state, input and weights), and those within


def vanilla(op: Op, h: jax.Array, x: jax.Array, p: Any) -> jax.Array:
    w, u, b = p
    return op("tanh", jnp.tanh)(op("state", matmul)(h, u) + op("input", dense)(x, w, b))


def gru(op: Op, h: jax.Array, x: jax.Array, p: Any) -> jax.Array:
    w, u, b = p
    xs, hs = jnp.split(op("input", dense)(x, w, b), 3, -1), jnp.split(op("state", matmul)(h, u), 3, -1)
    r, z = (op(f"sigmoid {i}", jax.nn.sigmoid)(xs[i] + hs[i]) for i in (0, 1))
    return (1 - z) * op("tanh", jnp.tanh)(xs[2] + r * hs[2]) + z * h


def lstm(op: Op, state: jax.Array, x: jax.Array, p: Any) -> jax.Array:
    """The state is h beside c."""
    w, u, b = p
    h, c = jnp.split(state, 2, -1)
    i, f, g, o = jnp.split(op("input", dense)(x, w, b) + op("state", matmul)(h, u), 4, -1)
    sigmoid = jax.nn.sigmoid
    c = op("sigmoid forget", sigmoid)(f + 1) * c + op("sigmoid in", sigmoid)(i) * op("tanh", jnp.tanh)(g)
    return jnp.concatenate([op("sigmoid out", sigmoid)(o) * op("tanh out", jnp.tanh)(c), c], -1)


CELLS: dict[str, tuple[Callable[..., jax.Array], int, int]] = {
    "vanilla": (vanilla, 1, 1),
    "gru": (gru, 3, 1),
    "lstm": (lstm, 4, 2),
}


def rnn(cell: str, batch: int, length: int, features: int, hidden: int, each: bool = False) -> Network:
    """A class from the last state, or a value from each."""
    step, gates, states = CELLS[cell]

    def make(draw: Draw, op: Op) -> Built:
        w, b = draw.affine(features, gates * hidden)
        params = {"cell": [w, draw.kernel(hidden, gates * hidden), b], "out": draw.affine(hidden, 4)}
        xs = draw.normal(length, batch, features)
        t = draw.normal(length, batch, 4) if each else draw.integers(4, batch)

        def f(params: Any) -> jax.Array:
            def advance(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                state = step(op, state, x, params["cell"])
                return state, state[..., :hidden]

            last, all_of_them = lax.scan(advance, jnp.zeros((batch, states * hidden), xs.dtype), xs)
            y = op("out", dense)(all_of_them if each else last[..., :hidden], *params["out"])
            return op("loss", LOSSES["mse" if each else "cross-entropy"])(y, t)

        return f, (params,)

    to = "each" if each else "last"
    return Network(f"rnn {cell}, {to}, batch {batch}, length {length}, {features}-{hidden}", make)


def embedded(draw: Draw, op: Op) -> Built:
    """The mean of a few rows of a table of 50, most of them unread."""
    ids, t = draw.integers(50, 4, 5), draw.integers(3, 4)
    params = [draw.normal(50, 12), *draw.affine(12, 3)]

    def f(params: Any) -> jax.Array:
        table, w, b = params
        x = op("embedding", lambda table, i: table[i])(table, ids).mean(1)
        return op("loss", cross_entropy)(op("dense", dense)(x, w, b), t)

    return f, (params,)


SEQUENCES: list[Network] = [
    attention("single", 2, 5, 8),
    attention("single", 1, 16, 32),
    attention("two heads", 4, 6, 16, 2),
    attention("eight heads", 3, 8, 64, 8),
    attention("causal", 2, 7, 12, 1, causal),
    attention("causal, four heads", 4, 9, 16, 4, causal),
    attention("of padded sequences", 5, 6, 12, 2, "padded"),
    Network("attention across", crossed, ("float32", "bfloat16")),  # XLA's CPU lacks its float16
    Network("attention gated", gated),
    Network("attention transformer, one block", transformer(1, False)),
    Network("attention transformer, two blocks", transformer(2, False)),
    Network("attention transformer, tied embedding", transformer(1, True)),
    rnn("vanilla", 3, 5, 4, 16),
    rnn("vanilla", 16, 12, 8, 64, each=True),
    rnn("vanilla", 1, 30, 3, 8),
    rnn("gru", 4, 6, 5, 12),
    rnn("gru", 2, 10, 8, 128, each=True),
    rnn("lstm", 3, 6, 4, 16),
    rnn("lstm", 8, 8, 16, 32, each=True),
    Network("embedding, most rows unread", embedded),
]
