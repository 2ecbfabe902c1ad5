"""Linear pairs: a linear map and its hand-written transpose, each the other's gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from jaxconv.primitives import mesh
from jaxconv.primitives.define import PLAIN, mapped_primitive
from jaxconv.primitives.native import Takes, lower_natively


class LinearPair(NamedTuple):
    """A linear map and its transpose: functions (x, *integers, static=...) -> y, linear in x.

    Args:
      plain, plain_transpose: the two in plain JAX.
      there, back: the same as primitives, each the derivative of the other; what `apply` and `transpose` bind.
    """

    plain: Callable[..., jax.Array]
    plain_transpose: Callable[..., jax.Array]
    there: Primitive
    back: Primitive

    def apply(self, x: jax.Array, *integers: jax.Array, static: Any) -> jax.Array:
        """The map, under every transformation."""
        return _bind(self.there, x, *integers, static=static, depth=0)

    def transpose(self, g: jax.Array, *integers: jax.Array, static: Any) -> jax.Array:
        """Its transpose, under every transformation."""
        return _bind(self.back, g, *integers, static=static, depth=0)

    @property
    def transposed(self) -> LinearPair:
        """The same pair, entered by its other door."""
        return LinearPair(self.plain_transpose, self.plain, self.back, self.there)


def linear_pair(
    name: str, apply: Callable[..., jax.Array], transpose: Callable[..., jax.Array],
    native: tuple[Takes, Takes] | None = None,
) -> LinearPair:  # fmt: skip
    """Two primitives from two functions (x, *residuals, static) -> y, each the transpose of the other.

    Residuals that are floats have derivatives: those of the functions as plain JAX. Under `vmap` the pair keeps its
    rule: `depth` leading axes are mapped over. `native` are the calls of an engine that compute the two on a CPU.
    """
    there = mapped_primitive(name, apply, bind=_bind)
    back = mapped_primitive(f"{name}_transpose", transpose, bind=_bind)
    _derive(there, back)
    _derive(back, there)
    for primitive, takes in zip((there, back), native or (), strict=False):
        lower_natively(primitive, takes)
    return LinearPair(apply, transpose, there, back)


def _bind(primitive: Primitive, *operands: Any, **static: Any) -> jax.Array:
    def spec(x: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        """Axes that keep their size keep their sharding."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
        out = jax.eval_shape(functools.partial(primitive.bind, **static), *shapes).shape
        kept = [s if n == m else None for s, n, m in zip(x, operands[0].shape, out, strict=False)]
        return tuple(kept) if len(out) == len(x) else (None,) * len(out)

    return mesh.bind(primitive, spec, *operands, **static)


def _derive(primitive: Primitive, back: Primitive) -> None:
    """Register what a linear map is under differentiation: itself and `back`."""
    ad.primitive_jvps[primitive] = functools.partial(_jvp, primitive)
    ad.primitive_transposes[primitive] = functools.partial(_transpose, back)


def _jvp(
    primitive: Primitive, primals: Sequence[Any], tangents: Sequence[Any], **static: Any
) -> tuple[jax.Array, jax.Array]:
    (x, *residuals), (t, *moves) = primals, tangents
    y = _bind(primitive, *primals, **static)
    parts = [] if type(t) is ad.Zero else [_bind(primitive, t, *residuals, **static)]
    if any(type(move) is not ad.Zero for move in moves):
        at_x = functools.partial(PLAIN[primitive], x, **static)
        parts.append(jax.jvp(at_x, tuple(residuals), tuple(map(ad.instantiate_zeros, moves)))[1])
    return y, functools.reduce(jnp.add, parts)


def _transpose(back: Primitive, ct: Any, x: Any, *residuals: Any, **static: Any) -> list[Any]:
    dx = ad.Zero(x.aval) if type(ct) is ad.Zero else _bind(back, ct, *residuals, **static)
    return [dx, *[None] * len(residuals)]
