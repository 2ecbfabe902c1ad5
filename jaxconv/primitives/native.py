"""Lowering to an engine on a CPU, where there is one that takes the call; to plain JAX everywhere else.

XLA may not split the program over several devices, which it could not do with a call that it does not understand. Where
`shard_map` has split it, each device calls on its own. An exported program has the plain form: who runs it may have no
engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxconv.engines import Native
from jaxconv.engines.onednn import loading
from jaxconv.primitives import mesh
from jaxconv.primitives.define import PLAIN

# (static, depth, *operands) -> the call of an engine, or why there is none: the operands' shapes and dtypes are given,
# and `depth` leading axes of them are those of a batch.
Takes = Callable[..., Native | str]


def lower_natively(primitive: Primitive, takes: Takes) -> None:
    """Lower a primitive with parameters `static` and `depth` to what `takes` says on a CPU."""
    mlir.register_lowering(primitive, functools.partial(_lowered, primitive, takes), platform="cpu")


def _lowered(
    primitive: Primitive, takes: Takes, ctx: mlir.LoweringRuleContext, *operands: Any, static: Any, depth: int
) -> Any:
    if not mesh.exported(ctx) and not mesh.split(ctx) and loading.why_off() is None:
        chosen = takes(static, depth, *ctx.avals_in)
        if isinstance(chosen, Native):
            return jax.ffi.ffi_lowering(chosen.target)(ctx, *operands, **chosen.attributes)
    plain = mlir.lower_fun(PLAIN[primitive], multiple_results=primitive.multiple_results)
    return plain(ctx, *operands, static=static, depth=depth)
