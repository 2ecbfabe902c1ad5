"""The three maps as primitives: what they compute, and their derivatives, which are the three maps again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.primitives import mesh
from jaxconv.primitives.define import call, define, lower_on_platforms, mapped
from jaxconv.rules import CONV, FAST, INPUT_GRAD, KERNEL_GRAD, ConvRules, Map, is_fast


def bilinear(
    of: Map, a: jax.Array, b: jax.Array, geometry: Geometry, *, rules: ConvRules = FAST, dtype: Any,
    precision: Any = None, engine: str = "auto",
) -> jax.Array:  # fmt: skip
    """One of the three maps with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return bind(
        of, a, b, geometry=geometry, precision=precision, dtype=jnp.dtype(dtype), engine=engine, rules=rules, depth=0
    )


def bind(of: Map, a: Any, b: Any, **static: Any) -> jax.Array:
    """The primitive of a map, under any mesh."""
    return mesh.bind(PRIMITIVES[of], functools.partial(_sharding, of), a, b, **static)


# What they compute


def _conv(x: jax.Array, w: jax.Array, *, rules: ConvRules, **static: Any) -> jax.Array:
    return _called(CONV, rules.conv, x, w, rules=rules, **static)


def _input_grad(g: jax.Array, w: jax.Array, *, rules: ConvRules, **static: Any) -> jax.Array:
    return _called(INPUT_GRAD, rules.input_grad, g, w, rules=rules, **static)


def _kernel_grad(x: jax.Array, g: jax.Array, *, rules: ConvRules, **static: Any) -> jax.Array:
    return _called(KERNEL_GRAD, rules.kernel_grad, x, g, rules=rules, **static)


def _called(
    of: Map, rule: Callable[..., Any], a: jax.Array, b: jax.Array, *, rules: ConvRules, geometry: Geometry,
    precision: Any, dtype: Any, engine: str, depth: int, platform: str | None = None,
) -> jax.Array:  # fmt: skip
    """What a rule makes of two operands, with the options that were asked for: it may know of no others."""
    expected = result(of, a, b, geometry=geometry, dtype=dtype, depth=depth)
    a, b = _alike_in_dtype(of, a, b)
    wider = dtype if of.makes == "y" and dtype != a.dtype else None
    options = {"precision": precision, "preferred_element_type": wider}
    if is_fast(rules):
        options |= {"platform": platform, "engine": engine}
    given = {option: value for option, value in options.items() if value is not None}
    return _checked(of, mapped(lambda a, b: rule(a, b, geometry, **given), depth)(a, b), expected)


def _alike_in_dtype(of: Map, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both operands in the dtype of δ, if it is one of them: it may be wider than the kernel it meets."""
    common = b.dtype if of.takes[1] == "y" else a.dtype
    return jnp.asarray(a, common), jnp.asarray(b, common)


def result(of: Map, a: Any, b: Any, *, geometry: Geometry, dtype: Any, depth: int, **_: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what a map makes; `depth` leading axes are those of a batch."""
    return jax.ShapeDtypeStruct((*a.shape[:depth], *of.shape(geometry, a.shape[depth:], b.shape[depth:])), dtype)


def _checked(of: Map, value: Any, expected: jax.ShapeDtypeStruct) -> jax.Array:
    """What a rule returned, in the dtype it is wanted in, if it has the shape."""
    shape = getattr(value, "shape", None)
    if shape != expected.shape:
        found = f"is {type(value).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(
            f"rules.{of.name} must return an array of shape {expected.shape}, but what it returned {found}. "
            "The geometry it is called with knows the shape: geometry.x_shape, .w_shape, .y_shape."
        )
    return jnp.asarray(value, expected.dtype)


# How automatic differentiation would see them


def _plain_conv(
    x: jax.Array, w: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, depth: int, **_: Any
) -> jax.Array:
    plain = functools.partial(forward.conv, geometry=geometry, precision=precision, preferred_element_type=dtype)
    return mapped(plain, depth)(*_alike_in_dtype(CONV, x, w)).astype(dtype)


def _plain_input_grad(
    g: jax.Array, w: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, depth: int, **_: Any
) -> jax.Array:
    plain = functools.partial(forward.input_grad, geometry=geometry, precision=precision)
    return mapped(plain, depth)(*_alike_in_dtype(INPUT_GRAD, g, w)).astype(dtype)


def _plain_kernel_grad(
    x: jax.Array, g: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, depth: int, **_: Any
) -> jax.Array:
    plain = functools.partial(forward.kernel_grad, geometry=geometry, precision=precision)
    return mapped(plain, depth)(*_alike_in_dtype(KERNEL_GRAD, x, g)).astype(dtype)


# Their derivatives and their shardings


def _transpose(of: Map, operand: int, ct: Any, a: Any, b: Any, *, dtype: Any, **static: Any) -> jax.Array:
    """The gradient in one operand: the map that makes it, of the cotangent and of the other operand."""
    arrays = dict(zip((*of.takes, of.makes), (a, b, ct), strict=True))
    back = of.transposes[operand]
    return bind(back, *(arrays[name] for name in back.takes), dtype=arrays[back.makes].aval.dtype, **static)


def _sharding(of: Map, a: Any, b: Any, *, geometry: Geometry, depth: int, **_: Any) -> tuple[Any, ...]:
    """Batch and channel axes keep their sharding; a contracted axis is summed over its devices."""
    layout, keep = geometry.layout, [None] * (geometry.rank + 2)
    for array, spec in zip(of.takes, (a[depth:], b[depth:]), strict=True):
        index = of.kept(array)
        if index == "c" and geometry.groups > 1:  # c counts one group in w, all of them in x
            continue
        sharding = spec[layout.axis(array, index)]
        if sharding not in keep:  # a mesh axis can split one axis only: the first operand's has it
            keep[layout.axis(of.makes, index)] = sharding
    return (*(None if sharding in keep else sharding for sharding in a[:depth]), *keep)


# The primitives


def _eager(
    primitive: Primitive, compute: Callable[..., jax.Array], *operands: Any, rules: ConvRules, **static: Any
) -> jax.Array:
    """A rule that somebody wrote runs as it was written: it may print what it sees, or be NumPy."""
    if is_fast(rules):
        return call(primitive, *operands, rules=rules, **static)
    return compute(*operands, rules=rules, **static)


def _primitive(of: Map, compute: Callable[..., jax.Array], plain: Callable[..., jax.Array]) -> Primitive:
    primitive = define(of.name, compute, plain, functools.partial(result, of))
    primitive.def_impl(functools.partial(_eager, primitive, compute))
    lower_on_platforms(primitive, compute)
    ad.defbilinear(primitive, functools.partial(_transpose, of, 0), functools.partial(_transpose, of, 1))
    return primitive


PRIMITIVES = {
    CONV: _primitive(CONV, _conv, _plain_conv),
    INPUT_GRAD: _primitive(INPUT_GRAD, _input_grad, _plain_input_grad),
    KERNEL_GRAD: _primitive(KERNEL_GRAD, _kernel_grad, _plain_kernel_grad),
}
