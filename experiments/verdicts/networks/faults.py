"""What may be wrong with one rule inside a network, by the kind of function it belongs to.

A fault takes the right function to a wrong backward pass. Each name says what the rule returns instead. `small` faults
are to be found in float32 alone, the others in 16 bits too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient as constant

from experiments.verdicts.broken import of, on, seeing
from experiments.verdicts.networks.network import Fault
from experiments.verdicts.networks.parts import avg_pool, norm, rms_norm

Change = Callable[[jax.Array], jax.Array]


def cotangent(index: int, change: Change) -> Fault:
    """One argument's cotangent is changed."""
    return lambda function: on(index, change)


def delta(change: Change) -> Fault:
    """The δ that comes in is changed, and so all cotangents."""
    return lambda function: seeing(change, function)


def instead(other: Callable[..., Any]) -> Fault:
    """The gradient of another function."""
    return lambda function: of(other)


def stale(index: int, change: Change) -> Fault:
    """One argument's cotangent is that for another δ."""

    def fault(function: Callable[..., Any]) -> Any:
        def backward(a: Any, g: jax.Array, true: Any) -> tuple[Any, ...]:
            return (*true[:index], jax.vjp(function, *a)[1](change(g))[index], *true[index + 1 :])

        return backward

    return fault


def slope(of_x: Callable[[jax.Array], Any]) -> Fault:
    """An elementwise function's derivative is another one."""
    return lambda function: lambda a, g, true: (g * jnp.asarray(of_x(a[0])).astype(g.dtype),)


def scaled(factor: float, *index: Any) -> Change:
    """Everything, or the entries at `index`, times a factor."""
    return lambda d: d.at[index].multiply(jnp.asarray(factor, d.dtype)) if index else d * jnp.asarray(factor, d.dtype)


def rolled(axis: int) -> Change:
    return lambda d: jnp.roll(d, 1, axis)


def flipped(*axes: int) -> Change:
    return lambda d: jnp.flip(d, axes)


def transposed(d: jax.Array) -> jax.Array:
    """What is in memory is the transposed array, read as if it were not."""
    return jnp.swapaxes(d, -1, -2).reshape(d.shape)


def clipped(g: jax.Array) -> jax.Array:
    return g.clip(-(size := jnp.abs(g).mean()), size)


first = scaled(0, slice(1, None))
X, W, B = 0, 1, 2

SMALL: dict[str, dict[str, Fault]] = {
    "dense": {
        "dx times 1.002": cotangent(X, scaled(1.002)),
        "dw times 1.002": cotangent(W, scaled(1.002)),
        "db times 1.002": cotangent(B, scaled(1.002)),
        "δ times 0.998": delta(scaled(0.998)),
        "one column of dw 2 % too large": cotangent(W, scaled(1.02, ..., 1)),
        "one row of dw 2 % too large": cotangent(W, scaled(1.02, 2)),
        "one example of dx 1 % too large": cotangent(X, scaled(1.01, 0)),
    },
    "conv": {
        "dx times 1.002": cotangent(X, scaled(1.002)),
        "dw times 1.002": cotangent(W, scaled(1.002)),
        "one tap of dw 2 % too large": cotangent(W, scaled(1.02, 0, 0)),
        "one channel of dw 2 % too large": cotangent(W, scaled(1.02, ..., 0, slice(None))),
        "one example of dx 1 % too large": cotangent(X, scaled(1.01, 0)),
    },
    "norm": {
        "dx times 1.002": cotangent(X, scaled(1.002)),
        "the scale's times 1.002": cotangent(W, scaled(1.002)),
        "one channel's scale 2 % too large": cotangent(W, scaled(1.02, 0)),
    },
    "relu": {"slope 1.002": slope(lambda x: 1.002 * (x > 0)), "leaks 0.01": slope(lambda x: jnp.where(x > 0, 1, 0.01))},
    "smooth": {"slope times 1.002": cotangent(X, scaled(1.002))},
    "softmax": {"times 1.002": cotangent(X, scaled(1.002))},
    "scores": {"the scale 1 % off": delta(scaled(1.01))},
    "embedding": {"times 1.002": cotangent(X, scaled(1.002))},
    "loss": {"times 1.002": cotangent(X, scaled(1.002))},
    "parameter": {
        "times 1.002": cotangent(X, scaled(1.002)),
        "one column 2 % too large": cotangent(X, scaled(1.02, ..., 1)),
        "one row 2 % too large": cotangent(X, scaled(1.02, 1)),
    },
}

LARGE: dict[str, dict[str, Fault]] = {
    "dense": {
        "dx times 1.5": cotangent(X, scaled(1.5)),
        "dw times 1.5": cotangent(W, scaled(1.5)),
        "the sign of dw": cotangent(W, jnp.negative),
        "dx is missing": cotangent(X, jnp.zeros_like),
        "dw transposed": cotangent(W, transposed),
        "one row of dw is missing": cotangent(W, scaled(0, 1)),
        "one column of dw is missing": cotangent(W, scaled(0, ..., 0)),
        "dw of the first example alone": stale(W, first),
        "db of the first example alone": stale(B, first),
        "db averaged": cotangent(B, scaled(0.25)),
        "one example of dx is missing": cotangent(X, scaled(0, 0)),
        "the examples of dx rolled": cotangent(X, rolled(0)),
        "the features of dx reversed": cotangent(X, flipped(-1)),
        "δ clipped": delta(clipped),
    },
    "conv": {
        "dw times 1.5": cotangent(W, scaled(1.5)),
        "dw rotated": cotangent(W, flipped(0, 1)),
        "dw flipped along one axis": cotangent(W, flipped(0)),
        "dw with h and w exchanged": cotangent(W, lambda d: d.swapaxes(0, 1)),
        "dw shifted by a tap": cotangent(W, rolled(1)),
        "one tap of dw is missing": cotangent(W, scaled(0, 0, 0)),
        "one channel of dw is missing": cotangent(W, scaled(0, ..., 0, slice(None))),
        "dw of the first example alone": stale(W, first),
        "dw without the last row of δ": stale(W, scaled(0, slice(None), -1)),
        "dw reads x one row off": lambda function: lambda a, g, true: (
            true[0], jax.vjp(function, jnp.roll(a[0], 1, 1), *a[1:])[1](g)[1], *true[2:],
        ),
        "dx shifted by a row": cotangent(X, rolled(1)),
        "dx rotated": cotangent(X, flipped(1, 2)),
        "the last row of dx is missing": cotangent(X, scaled(0, slice(None), -1)),
        "one channel of dx is missing": cotangent(X, scaled(0, ..., 0)),
        "one example of dx is missing": cotangent(X, scaled(0, 0)),
    },
    "bias": {
        "db of the first example alone": stale(1, first),
        "db averaged": cotangent(1, scaled(0.25)),
        "db of the first row alone": stale(1, scaled(0, slice(None), slice(1, None))),
    },
    "relu": {
        "passes all": slope(lambda x: 1),
        "the wrong side": slope(lambda x: x < 0),
        "a stale mask": slope(lambda x: jnp.roll(x, 1, 0) > 0),
        "one example is missing": cotangent(X, scaled(0, 0)),
        "1 − t": slope(lambda x: 1 - jnp.tanh(x)),
    },
    "smooth": {
        "passes all": slope(lambda x: 1),
        "slope times 1.5": cotangent(X, scaled(1.5)),
        "relu's": slope(lambda x: x > 0),
    },
    "layer norm": {
        "no mean term": instead(norm((-1,), mean=constant)),
        "no x̂ term": instead(norm((-1,), var=constant)),
        "statistics taken for constants": instead(norm((-1,), mean=constant, var=constant)),
        "dx lacks the scale": lambda function: lambda a, g, true: (
            jax.vjp(function, a[0], jnp.ones_like(a[1]), a[2])[1](g)[0], *true[1:],
        ),
        "the scale's gradient lacks x̂": lambda function: lambda a, g, true: (true[0], true[2], true[2]),
    },
    "batch norm": {
        "no mean term": instead(norm((0, 1, 2), mean=constant)),
        "no x̂ term": instead(norm((0, 1, 2), var=constant)),
        "statistics taken for constants": instead(norm((0, 1, 2), mean=constant, var=constant)),
        "each example on its own": instead(norm((1, 2))),
        "the scale's gradient averaged": cotangent(W, scaled(0.25)),
    },
    "max pool": {
        "spread evenly": instead(avg_pool),
        "to the first tap": instead(lambda x: x[:, ::2, ::2]),
        "one example is missing": cotangent(X, scaled(0, 0)),
    },
    "avg pool": {"not divided": cotangent(X, scaled(4)), "to the first tap": instead(lambda x: x[:, ::2, ::2])},
    "softmax": {
        "the diagonal alone": lambda function: lambda a, g, true: (g * (p := function(a[0])) * (1 - p),),
        "the sum is missing": lambda function: lambda a, g, true: (g * function(a[0]),),
    },
    "scores": {
        "the scale forgotten": instead(lambda q, k: q @ k.swapaxes(-1, -2)),
        "dk is missing": cotangent(W, jnp.zeros_like),
        "dq and dk exchanged": lambda function: lambda a, g, true: true[::-1],
        "δ transposed": delta(lambda g: g.swapaxes(-1, -2)),
    },
    "mask": {
        "one position late": instead(lambda s: jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool), -1), s, 0)),
        "of the future": instead(lambda s: jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), 0, s)),
    },
    "embedding": {
        "a row read twice is written, not added": lambda function: lambda a, g, true: (
            jnp.zeros_like(a[0]).at[a[1]].set(g), true[1],
        ),
        "rows one off": cotangent(X, rolled(0)),
    },
    "rms norm": {"no x̂ term": instead(lambda x, s: x * constant(rms_norm(x, jnp.ones_like(s)) / x) * s)},
    "parameter": {
        "times 1.5": cotangent(X, scaled(1.5)),
        "the sign": cotangent(X, jnp.negative),
        "transposed": cotangent(X, transposed),
        "flipped": cotangent(X, jnp.flip),
        "shifted": cotangent(X, rolled(0)),
        "one column is missing": cotangent(X, scaled(0, ..., 0)),
        "one row is missing": cotangent(X, scaled(0, 0)),
        "averaged": cotangent(X, scaled(0.25)),
    },
    "loss": {
        "summed, not averaged": cotangent(X, scaled(4)),
        "one example is missing": cotangent(X, scaled(0, 0)),
        "the labels off by one": lambda function: lambda a, g, true: (
            jax.vjp(lambda z: function(z, jnp.roll(a[1], 1, 0)), a[0])[1](g)[0], true[1],
        ),
    },
}  # fmt: skip
