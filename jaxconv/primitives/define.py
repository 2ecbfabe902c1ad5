"""One definition for all primitives: eager call, shape rule, lowering."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxconv.primitives import mesh

# The platforms of lowering rules, and how their devices are called.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}

Static = tuple[tuple[str, Any], ...]

# What each primitive computes, as plain JAX: how automatic differentiation would see it.
PLAIN: dict[Primitive, Callable[..., Any]] = {}


def plainly(primitive: Primitive, *operands: Any, **static: Any) -> list[jax.Array]:
    """The results of a primitive's plain form."""
    results = PLAIN[primitive](*operands, **static)
    return list(results) if primitive.multiple_results else [results]


def define(
    name: str,
    compute: Callable[..., Any],
    plain: Callable[..., Any],
    result: Callable[..., Any],
    multiple_results: bool = False,
) -> Primitive:
    """A primitive that runs and lowers to `compute`, with the shape and dtype that `result` says."""
    primitive = Primitive(f"jaxconv_{name}")
    primitive.multiple_results = multiple_results
    PLAIN[primitive] = plain
    primitive.def_impl(functools.partial(call, primitive))
    primitive.def_abstract_eval(functools.partial(_abstract, result))
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=multiple_results))
    return primitive


def lower_on_platforms(primitive: Primitive, compute: Callable[..., jax.Array]) -> None:
    """Lower to `compute` with the platform's name, but not where XLA splits the program; no engine in an export."""

    def lower(platform: str, ctx: mlir.LoweringRuleContext, *operands: Any, engine: str, **static: Any) -> Any:
        if engine == "auto" and mesh.exported(ctx):
            engine = "xla"
        alone = None if mesh.split(ctx) else platform
        here = mlir.lower_fun(functools.partial(compute, engine=engine, platform=alone), multiple_results=False)
        return here(mesh.local(ctx), *operands, **static)

    for platform, device in PLATFORMS.items():
        mlir.register_lowering(primitive, functools.partial(lower, device), platform=platform)


def call(primitive: Primitive, *operands: jax.Array, **static: Any) -> jax.Array:
    """An eager call: through a cached `jit`, so that dispatch costs what `lax` costs."""
    with jax.disable_jit(False):  # jit is how a primitive runs at all: without it this would recurse
        return _program(primitive, tuple(static.items()))(*operands)


@functools.lru_cache(maxsize=1 << 15)
def _program(primitive: Primitive, static: Static) -> Callable[..., jax.Array]:
    def bind(*operands: jax.Array) -> jax.Array:
        return primitive.bind(*operands, **dict(static))

    bind.__name__ = bind.__qualname__ = primitive.name
    return jax.jit(bind)


def _abstract(result: Callable[..., Any], *operands: Any, **static: Any) -> Any:
    first = operands[0]

    def typed(out: jax.ShapeDtypeStruct) -> Any:
        sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(out.shape)))
        return first.update(shape=out.shape, dtype=out.dtype, weak_type=False, sharding=sharding)

    out = result(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands), **static)
    return typed(out) if isinstance(out, jax.ShapeDtypeStruct) else list(map(typed, out))


def mapped_primitive(
    name: str, function: Callable[..., Any], multiple_results: bool = False, bind: Callable[..., Any] = Primitive.bind
) -> Primitive:
    """A primitive with parameters `static` and `depth`: a function in plain JAX, mapped over `depth` leading axes.

    `vmap` adds one: by `bind(primitive, *operands, static, depth)` to all operands, since broadcasting that is outside
    has a transpose that sums where it should.
    """
    compute = functools.partial(_computed, function)
    primitive = define(name, compute, compute, functools.partial(_traced, compute), multiple_results)
    batching.primitive_batchers[primitive] = functools.partial(_batched, functools.partial(bind, primitive))
    return primitive


def bound(primitive: Primitive, *operands: Any, static: Any) -> Any:
    """A mapped primitive; under an explicit mesh its plain form, whose operations each keep the axes of the mesh."""
    if mesh.explicit(operands):
        return PLAIN[primitive](*operands, static=static, depth=0)
    return primitive.bind(*mesh.alike(*operands), static=static, depth=0)


def _computed(function: Callable[..., Any], *operands: jax.Array, static: Any, depth: int) -> Any:
    return mapped(functools.partial(function, static=static), depth)(*operands)


def _batched(
    bind: Callable[..., Any], operands: Sequence[Any], dims: Sequence[Any], *, depth: int, static: Any
) -> tuple[Any, Any]:
    size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    deeper = [batching.bdim_at_front(a, d, size) for a, d in zip(operands, dims, strict=True)]
    results = bind(*deeper, static=static, depth=depth + 1)
    return results, [0] * len(results) if isinstance(results, (list, tuple)) else 0


def _traced(compute: Callable[..., Any], *operands: jax.ShapeDtypeStruct, **static: Any) -> Any:
    """The shapes and dtypes of what a function in plain JAX returns."""
    return _trace(compute, operands, tuple(static.items()))


@functools.lru_cache(maxsize=1 << 15)
def _trace(compute: Callable[..., Any], operands: tuple[jax.ShapeDtypeStruct, ...], static: Static) -> Any:
    return jax.eval_shape(functools.partial(compute, **dict(static)), *operands)


def mapped(function: Callable[..., Any], depth: int) -> Callable[..., Any]:
    """A function mapped over the `depth` leading axes of all its operands."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function
