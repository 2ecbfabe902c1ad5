"""How a rule becomes a gradient: one binding for each value of `rules=`, shared by every non-linear op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxconv import primitives
from jaxconv.rules import NAMED

RULES = (*NAMED, "autodiff")
ENGINES = ("auto", "xla")


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


def check_rules(function: str, rules: Any) -> None:
    if not isinstance(rules, str) or rules not in RULES:
        raise ValueError(f"{function}: rules must be one of {', '.join(RULES)}, but is {rules!r}.")


def check_engine(function: str, engine: Any) -> None:
    if engine not in ENGINES:
        raise ValueError(f"{function}: engine must be one of {', '.join(ENGINES)}, but is {engine!r}.")


def as_array(function: str, name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {name} must be an array, but is {type(value).__name__}.") from None


def floating(function: str, name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of a floating dtype, or an error that names the argument."""
    x = as_array(function, name, value)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name}.dtype must be floating (float32, bfloat16, float16 or, under x64, float64), "
            f"but is {x.dtype}. Convert it: {name}.astype(jnp.float32)."
        )
    return x


def integers(function: str, name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of integers, or an error that names the argument."""
    x = as_array(function, name, value)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{function}: {name}.dtype must be an integer, but is {x.dtype}.")
    return x


def known(x: Any) -> np.ndarray | None:
    """The values of `x` where they can be looked at: not while they are traced, nor if other processes hold some."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


def number(function: str, name: str, value: Any) -> float:
    """A static real number, NumPy's scalars included."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{function}: {name} must be a number, but is {value!r}.")
    return float(value)


def boolean(function: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, but is {value!r}.")
    return bool(value)


def frozen(precision: Any) -> Any:
    """A precision that can be part of a static argument: a pair given as a list becomes a tuple."""
    return tuple(precision) if isinstance(precision, list) else precision


def same_dtype(function: str, **arrays: jax.Array) -> None:
    """Refuse silent promotion: all arrays must agree."""
    (first, x), *rest = arrays.items()
    for name, other in rest:
        if other.dtype != x.dtype:
            raise TypeError(
                f"{function}: {name}.dtype must equal {first}.dtype, but {other.dtype} != {x.dtype}. "
                f"Convert one: {name}.astype({first}.dtype)."
            )
