"""Linear pairs: a map and its hand-written transpose, each the other's gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxconv.primitives.define import _define
from jaxconv.primitives.mesh import _bind


class LinearPair(NamedTuple):
    """A linear map and its transpose, functions (x, *integers, static=...) -> y, linear in x.

    Args:
      apply, transpose: as primitives, each the derivative of the other, under every transformation.
      plain, plain_transpose: the functions they were made of.
    """

    apply: Callable[..., jax.Array]
    transpose: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    plain_transpose: Callable[..., jax.Array]

    @property
    def transposed(self) -> LinearPair:
        """The same pair, entered by its other door."""
        return LinearPair(self.transpose, self.apply, self.plain_transpose, self.plain)


def linear_pair(name: str, apply: Callable[..., jax.Array], transpose: Callable[..., jax.Array]) -> LinearPair:
    """Two primitives from two functions (x, *residuals, static) -> y, each the transpose of the other.

    Residuals are integers. Under `vmap` the pair keeps its rule: `depth` leading axes are mapped over.
    """

    def mapped(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def compute(*operands: jax.Array, static: Any, depth: int) -> jax.Array:
            call = functools.partial(function, static=static)
            for _ in range(depth):
                call = jax.vmap(call)
            return call(*operands)

        return compute

    there = _define(name, mapped(apply), mapped(apply))
    back = _define(f"{name}_transpose", mapped(transpose), mapped(transpose))
    binders = {p: functools.partial(_bind_pair, p) for p in (there, back)}
    for primitive, other in ((there, back), (back, there)):
        _register_linear(primitive, binders[primitive], binders[other])
    forth, fro = (lambda x, *r, static, p=p: binders[p](x, *r, static=static, depth=0) for p in (there, back))
    return LinearPair(forth, fro, apply, transpose)


def _bind_pair(primitive: Primitive, *operands: Any, **static: Any) -> jax.Array:
    def specs(x: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        """Axes that keep their size keep their sharding."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
        out = jax.eval_shape(functools.partial(primitive.bind, **static), *shapes).shape
        kept = [s if n == m else None for s, n, m in zip(x, operands[0].shape, out, strict=False)]
        return (*kept, *[None] * (len(out) - len(kept))) if len(out) == len(x) else (None,) * len(out)

    return _bind(primitive, specs, *operands, **static)


def _register_linear(primitive: Primitive, bind: Callable[..., jax.Array], back: Callable[..., jax.Array]) -> None:
    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[jax.Array, Any]:
        (_, *residuals), (t, *_) = primals, tangents
        # Integers have no tangents, so that of x is the one that brought us here.
        return bind(*primals, **static), bind(t, *residuals, **static)

    def transpose(ct: Any, x: Any, *residuals: Any, **static: Any) -> list[Any]:
        dx = ad.Zero(x.aval) if type(ct) is ad.Zero else back(ct, *residuals, **static)
        return [dx, *[None] * len(residuals)]

    def batch(operands: Sequence[Any], dims: Sequence[Any], *, depth: int, **static: Any) -> tuple[jax.Array, int]:
        size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
        # Every operand gets the batch: broadcasting is outside, so its transpose sums where it should.
        operands = [batching.bdim_at_front(a, d, size) for a, d in zip(operands, dims, strict=True)]
        return bind(*operands, depth=depth + 1, **static), 0

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
