"""Functions with a gradient that is not theirs.

A backward rule takes the arguments, the cotangent g and the right cotangents `true`, and returns cotangents. So most
wrong gradients are a line away from the right one: `on` changes one argument's, `of` takes another function's, and
`seeing` pulls back a cotangent that was tampered with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.verdicts.case import Case, normal

Backward = Callable[[Any, Any, Any], tuple[Any, ...]]

BOTH, ONLY32 = ("float32", "bfloat16"), ("float32",)


def with_gradient(primal: Callable[..., Any], backward: Backward) -> Callable[..., Any]:
    """`primal` with the gradient (arguments, g, right cotangents) -> cotangents."""

    @jax.custom_vjp
    def f(*arguments: Any) -> Any:
        return primal(*arguments)

    def pull(arguments: Any, g: Any) -> tuple[Any, ...]:
        found = backward(arguments, g, jax.vjp(primal, *arguments)[1](g))
        floating = [jnp.issubdtype(a.dtype, jnp.floating) for a in arguments]
        return tuple(c.astype(a.dtype) if ok else None for a, c, ok in zip(arguments, found, floating, strict=True))

    f.defvjp(lambda *arguments: (primal(*arguments), arguments), pull)
    return f


def on(index: int, change: Callable[[Any], Any]) -> Backward:
    """The right gradient but for one argument's."""
    return lambda arguments, g, true: (*true[:index], change(true[index]), *true[index + 1 :])


def of(other: Callable[..., Any]) -> Backward:
    """The right gradient of another function."""
    return lambda arguments, g, true: jax.vjp(other, *arguments)[1](g)


def seeing(change: Callable[[Any], Any], primal: Callable[..., Any]) -> Backward:
    """The right gradient for a cotangent that was tampered with."""
    return lambda arguments, g, true: jax.vjp(primal, *arguments)[1](change(g))


def case(name: str, function: Callable[..., Any], *shapes: tuple[int, ...], gain: float = math.inf) -> Case:
    return Case(name, function, normal(name, *shapes), BOTH if gain > 0.05 else ONLY32, gain)


def with_tangent(primal: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """`primal` with the derivative (arguments, tangents, right tangent) -> tangent."""
    f = jax.custom_jvp(primal)

    def push(arguments: Any, tangents: Any) -> tuple[Any, Any]:
        y, t = jax.jvp(primal, arguments, tangents)
        return y, tangent(arguments, tangents, t)

    f.defjvp(push)
    return f
