"""The trio as primitives: conv, input_grad and kernel_grad, closed under differentiation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.primitives.define import _define
from jaxconv.primitives.mesh import _bind
from jaxconv.rules import NAMED, ConvRules

FAST = NAMED["fast"]


class _Map(NamedTuple):
    """One of the three maps: its primitive, and for each array where its two free axes live."""

    primitive: Primitive
    bind: Callable[..., jax.Array]


def _trio_map(name: str, arrays: str) -> _Map:
    """A primitive for a map of that name; `arrays` names its two operands and its result, each one of x, w and y."""
    definition = getattr(forward, name)

    def alike_in_dtype(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both operands in the dtype of δ, if it is one of them: it may be wider than the kernel it meets."""
        common = b.dtype if arrays[1] == "y" else a.dtype
        return jnp.asarray(a, common), jnp.asarray(b, common)

    def result(a: Any, b: Any, *, geometry: Geometry, dtype: Any, depth: int, **_: Any) -> jax.ShapeDtypeStruct:
        shapes = dict(zip(arrays, (a.shape[depth:], b.shape[depth:]), strict=False))
        return jax.ShapeDtypeStruct((*a.shape[:depth], *_result_shape(shapes, arrays[2], geometry)), dtype)

    def compute(
        a: jax.Array, b: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, engine: str, rules: ConvRules,
        depth: int, platform: str | None = None,
    ) -> jax.Array:  # fmt: skip
        del engine  # who computes; there is one engine so far
        a, b = alike_in_dtype(a, b)
        wider = dtype if arrays[2] == "y" and dtype != a.dtype else None
        options = {"precision": precision, "preferred_element_type": wider}
        if rules == FAST:
            options["platform"] = platform
        given = {option: value for option, value in options.items() if value is not None}  # a rule may know of none

        def call(a: jax.Array, b: jax.Array) -> jax.Array:
            return getattr(rules, name)(a, b, geometry, **given)

        for _ in range(depth):
            call = jax.vmap(call)
        return _checked(name, call(a, b), result(a, b, geometry=geometry, dtype=dtype, depth=depth))

    def plain(
        a: jax.Array, b: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, depth: int, **_: Any
    ) -> jax.Array:
        options = {"preferred_element_type": dtype} if arrays[2] == "y" else {}

        def call(a: jax.Array, b: jax.Array) -> jax.Array:
            return definition(a, b, geometry, precision=precision, **options)

        for _level in range(depth):
            call = jax.vmap(call)
        return call(*alike_in_dtype(a, b)).astype(dtype)

    primitive = _define(name, compute, plain, functools.partial(compute, platform="cpu"), result)
    through_jit = primitive.impl

    def eager(*operands: Any, **static: Any) -> jax.Array:
        """A rule that somebody wrote runs as it was written: it may print what it sees, or be NumPy."""
        return (through_jit if static["rules"] == FAST else compute)(*operands, **static)

    primitive.def_impl(eager)

    def specs(a: Any, b: Any, *, geometry: Geometry, depth: int, **_: Any) -> tuple[Any, ...]:
        """Batch and channel axes keep their sharding; a contracted axis is summed over its devices."""
        place = geometry.layout._asdict()
        keep: list[Any] = [None] * (geometry.rank + 2)
        for source, spec in zip(arrays[:2], (a[depth:], b[depth:]), strict=True):
            for there, here in _SHARED[source + arrays[2]]:
                sharding = spec[place[source][there]]
                if geometry.groups > 1 and (there, here) == (1, 1):  # c counts one group in w, all of them in x
                    continue
                if sharding not in keep:  # a mesh axis can split one axis only: the first operand's has it
                    keep[place[arrays[2]][here]] = sharding
        return (*(None if sharding in keep else sharding for sharding in a[:depth]), *keep)

    return _Map(primitive, functools.partial(_bind, primitive, specs))


def _result_shape(shapes: dict[str, tuple[int, ...]], result: str, geometry: Geometry) -> tuple[int, ...]:
    """The shape of the one of x, w and y that the other two make."""
    place, groups = geometry.layout, geometry.groups
    match result:
        case "y":
            return geometry.y_shape(shapes["x"][place.x[0]], shapes["w"][place.w[0]])
        case "x":
            return geometry.x_shape(shapes["y"][place.y[0]], shapes["w"][place.w[1]] * groups)
    return geometry.w_shape(shapes["x"][place.x[1]] // groups, shapes["y"][place.y[1]])


def _checked(name: str, value: Any, expected: jax.ShapeDtypeStruct) -> jax.Array:
    """What a rule returned, in the dtype it is wanted in, if it has the shape."""
    shape = getattr(value, "shape", None)
    if shape != expected.shape:
        found = f"is {type(value).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(
            f"rules.{name} must return an array of shape {expected.shape}, but what it returned {found}. "
            "The geometry it is called with knows the shape: geometry.x_shape, .w_shape, .y_shape."
        )
    return jnp.asarray(value, expected.dtype)


# Which (batch, channel) axis of one array is which of another: N, c and o of the trilinear form.
_SHARED = {
    "xy": [(0, 0)], "wy": [(0, 1)],
    "yx": [(0, 0)], "wx": [(1, 1)],
    "xw": [(1, 1)], "yw": [(1, 0)],
}  # fmt: skip

_conv = _trio_map("conv", "xwy")
_input_grad = _trio_map("input_grad", "ywx")
_kernel_grad = _trio_map("kernel_grad", "xyw")


def _transposes(of: _Map, first: Callable[..., jax.Array], second: Callable[..., jax.Array]) -> None:
    """Register the gradients of a bilinear map in its two operands."""

    def in_first(ct: jax.Array, a: Any, b: jax.Array, *, dtype: Any, **static: Any) -> jax.Array:
        return first(ct, b, dtype=a.aval.dtype, **static)

    def in_second(ct: jax.Array, a: jax.Array, b: Any, *, dtype: Any, **static: Any) -> jax.Array:
        return second(ct, a, dtype=b.aval.dtype, **static)

    ad.defbilinear(of.primitive, in_first, in_second)


_transposes(
    _conv,
    lambda ct, w, **static: _input_grad.bind(ct, w, **static),
    lambda ct, x, **static: _kernel_grad.bind(x, ct, **static),
)
_transposes(
    _input_grad,
    lambda ct, w, **static: _conv.bind(ct, w, **static),
    lambda ct, g, **static: _kernel_grad.bind(ct, g, **static),
)
_transposes(
    _kernel_grad,
    lambda ct, g, **static: _input_grad.bind(g, ct, **static),
    lambda ct, x, **static: _conv.bind(x, ct, **static),
)


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂g with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _conv.bind(x, w, geometry=geometry, **_static(precision, dtype, engine, rules))


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂x with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _input_grad.bind(g, w, geometry=geometry, **_static(precision, dtype, engine, rules))


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂w with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _kernel_grad.bind(x, g, geometry=geometry, **_static(precision, dtype, engine, rules))


def _static(precision: Any, dtype: Any, engine: str, rules: ConvRules) -> dict[str, Any]:
    return {"precision": precision, "dtype": jnp.dtype(dtype), "engine": engine, "rules": rules, "depth": 0}
