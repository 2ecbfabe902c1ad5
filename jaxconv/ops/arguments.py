"""What every op checks of its arguments, and the messages when one is wrong."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import Geometry, Layout, check_layout, conv_geometry, integer, same_rank, spatial_rank
from jaxconv.ops.own_rules import held
from jaxconv.rules import RULE_SETS, ConvRules, is_fast

Rules = str | ConvRules
RULES = (*RULE_SETS, "autodiff")
ENGINES = ("auto", "xla", "onednn")


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


def integer_array(function: str, name: str, value: Any) -> jax.Array:
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


# Ops with a kernel


def check_kernel_rules(function: str, rules: Any) -> Rules:
    """The rules of an op with a kernel, the caller's held to their contract."""
    check_rules(function, rules)
    return held(function, rules) if isinstance(rules, ConvRules) and not is_fast(rules) else rules


def operands(function: str, rules: Any, engine: Any, **arrays: Any) -> tuple[list[jax.Array], Rules]:
    """Two arrays of one floating dtype, and the choices that do not depend on their shapes."""
    values = {name: floating(function, name, value) for name, value in arrays.items()}
    same_dtype(function, **values)
    rules = check_kernel_rules(function, rules)
    check_engine(function, engine)
    return list(values.values()), rules


def placement(function: str, layout: Any, **arrays: jax.Array) -> tuple[Layout, int]:
    """Where the axes of two arrays live, and how many are spatial: for a gradient, which has to make a third shape."""
    layout = check_layout(function, layout)
    (first, a), (second, b) = arrays.items()
    rank = spatial_rank(function, first, a.shape, layout)
    same_rank(function, first, a.shape, second, b.shape)
    return Layout.of(layout, rank), rank


def convolution(
    function: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], *, flip_kernel: Any, **options: Any
) -> Geometry:
    """The geometry of a convolution; what is wrong with its shapes or its options is said here."""
    flip_kernel = boolean(function, "flip_kernel", flip_kernel)
    return conv_geometry(function, x_shape, w_shape, flip_kernel=flip_kernel, **options)


def check_groups(function: str, name: str, channels: int, groups: Any) -> int:
    """The channels of one group."""
    groups = integer(function, "groups", groups, 1)
    if channels % groups:
        raise ValueError(
            f"{function}: groups must divide the channels of {name}, but {channels} % {groups} = {channels % groups}."
        )
    return channels // groups


def check_preferred(function: str, dtype: Any, x: jax.Array) -> Any:
    """A result dtype must hold what the sums produce: floating, and not narrower than the operands."""
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    fits = jnp.issubdtype(dtype, jnp.floating) and (dtype == x.dtype or dtype.itemsize > x.dtype.itemsize)
    if not fits:
        raise TypeError(
            f"{function}: preferred_element_type must be x's dtype or a wider floating one, but {dtype} is neither "
            f"for {x.dtype}. Convert the result: y.astype(...)."
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def check_bias(function: str, b: Any, channels: int, x: jax.Array) -> jax.Array:
    b = floating(function, "b", b)
    same_dtype(function, x=x, b=b)
    if b.shape != (channels,):
        raise ValueError(
            f"{function}: b must hold one number per output channel, but b.shape = {b.shape} != ({channels},). "
            "A bias per position is an addition: y + b."
        )
    return b


def check_cotangent(
    function: str, shape: tuple[int, ...], expected: tuple[int, ...], inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    """δ must have the shape of the output it belongs to."""
    if shape != expected:
        raise ValueError(
            f"{function}: g.shape must be that of the forward output, but {shape} != {expected}. "
            f"With these options, the forward pass maps spatial {inside} to {outside}."
        )
