"""One definition for all primitives: eager call, shape rule, lowering."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxconv.primitives.mesh import _distributed

# What each primitive computes, as plain JAX: how automatic differentiation would see it.
PLAIN: dict[Primitive, Callable[..., jax.Array]] = {}


def _define(
    name: str,
    compute: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    on_cpu: Callable[..., jax.Array] | None = None,
    result: Callable[..., jax.ShapeDtypeStruct] | None = None,
) -> Primitive:
    """A primitive that lowers to `compute`, on a CPU to `on_cpu`; its result is as `result` says, or as computed."""
    primitive = Primitive(f"jaxconv_{name}")
    PLAIN[primitive] = plain

    @functools.lru_cache(maxsize=4096)
    def program(static: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
        def call(*operands: jax.Array) -> jax.Array:
            return primitive.bind(*operands, **dict(static))

        call.__name__ = call.__qualname__ = primitive.name
        return jax.jit(call)

    def eager(*operands: jax.Array, **static: Any) -> jax.Array:
        with jax.disable_jit(False):  # jit is how a primitive runs at all: without it this would recurse
            return program(tuple(static.items()))(*operands)

    @functools.lru_cache(maxsize=4096)
    def computed(operands: tuple[jax.ShapeDtypeStruct, ...], static: tuple[tuple[str, Any], ...]) -> Any:
        return jax.eval_shape(functools.partial(compute, **dict(static)), *operands)

    def abstract(*operands: Any, **static: Any) -> Any:
        key = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands)
        out = result(*key, **static) if result else computed(key, tuple(static.items()))
        first = operands[0]
        sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(out.shape)))
        return first.update(shape=out.shape, dtype=out.dtype, weak_type=False, sharding=sharding)

    primitive.def_impl(eager)
    primitive.def_abstract_eval(abstract)
    everywhere = mlir.lower_fun(compute, multiple_results=False)
    mlir.register_lowering(primitive, everywhere)
    if on_cpu is not None:
        here = mlir.lower_fun(on_cpu, multiple_results=False)

        def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **static: Any) -> Any:
            return (everywhere if _distributed(ctx) else here)(ctx, *operands, **static)

        mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive
