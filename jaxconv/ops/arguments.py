"""What every op checks of its arguments, and the messages when one is wrong."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.rules import NAMED, ConvRules

RULES = (*NAMED, "autodiff")
ENGINES = ("auto", "xla")


def check_rules(function: str, rules: Any) -> None:
    if not isinstance(rules, ConvRules) and not (isinstance(rules, str) and rules in RULES):
        raise ValueError(
            f"{function}: rules must be one of {', '.join(RULES)} or a ConvRules(input_grad, kernel_grad), "
            f"but is {rules!r}."
        )


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
