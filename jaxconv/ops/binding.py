"""How a rule becomes a gradient: one binding for each value of `rules=`, shared by every non-linear op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxconv import primitives


class Rule(NamedTuple):
    """A layer, its derivative at a point and that derivative's transpose, as plain functions.

    `static` is a hashable of the op's choosing; `operands` are the differentiable arrays.

    Attributes:
      primal: (static, *operands) -> y. What `rules="autodiff"` differentiates.
      forward: (static, *operands) -> (y, residuals). The same y, and what the other two need of the point.
      tangent: (static, residuals, *tangents) -> the derivative applied to tangents; None stands for a zero.
      cotangent: (static, residuals, g) -> a tuple, the transpose applied to g, one entry per operand; None for
        an operand that has no derivative, such as a mask.
    """

    primal: Callable[..., jax.Array]
    forward: Callable[..., tuple[jax.Array, Any]]
    tangent: Callable[..., jax.Array]
    cotangent: Callable[..., tuple[Any, ...]]


def apply(rules: Any, rule: Rule, static: Hashable, *operands: jax.Array) -> jax.Array:
    """Evaluate `rule` with its gradient bound as `rules` says."""
    if rules == "autodiff":
        return rule.primal(static, *operands)
    bind = _linearised if rules == "fast" else _reversed
    return bind(rule, static)(*primitives.alike(*operands))


@functools.lru_cache(maxsize=1024)
def _reversed(rule: Rule, static: Hashable) -> Callable[..., jax.Array]:
    """`jax.custom_vjp`: reverse mode only, and exactly the rule that was written."""

    @jax.custom_vjp
    def f(*operands: jax.Array) -> jax.Array:
        return rule.primal(static, *operands)

    def forward(*operands: jax.Array) -> tuple[jax.Array, Any]:
        y, residuals = rule.forward(static, *operands)
        return y, (residuals, [jnp.zeros(0, x.dtype) for x in operands])  # their dtypes, without their memory

    def backward(saved: Any, g: jax.Array) -> tuple[Any, ...]:
        residuals, likes = saved
        cotangents = rule.cotangent(static, residuals, g)
        return tuple(None if c is None else c.astype(like.dtype) for c, like in zip(cotangents, likes, strict=True))

    f.defvjp(forward, backward)
    return jax.jit(f, inline=True)  # eagerly one program; traced, no trace


@functools.lru_cache(maxsize=1024)
def _linearised(rule: Rule, static: Hashable) -> Callable[..., jax.Array]:
    """`jax.custom_jvp`: the derivative is a linear map of the tangents, so every mode and order works."""

    @jax.custom_jvp
    def f(*operands: jax.Array) -> jax.Array:
        return rule.primal(static, *operands)

    def jvp(operands: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        y, residuals = rule.forward(static, *operands)
        known = [None if isinstance(t, SymbolicZero) else t for t in tangents]
        return y, rule.tangent(static, residuals, *known).astype(y.dtype)

    f.defjvp(jvp, symbolic_zeros=True)
    return jax.jit(f, inline=True)
