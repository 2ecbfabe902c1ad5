"""The mark of a `jax.custom_vjp`: reverse mode passes through, forward mode is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxconv.primitives.define import PLAIN

_mark = Primitive("jaxconv_reverse_only")
_marked_tangent = Primitive("jaxconv_reverse_only_tangent")


def _as_it_is(x: Any, **_: Any) -> Any:
    return x


def _refuse(*_: Any, rules: str) -> Any:
    raise TypeError(
        f'rules="{rules}" has reverse mode only: it is bound by jax.custom_vjp, which knows no jvp, jacfwd, hessian or '
        'linearize. rules="fast" has them all.'
    )


def _mark_jvp(primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[jax.Array, Any]:
    (x,), (t,) = primals, tangents
    return x, t if type(t) is ad.Zero else _marked_tangent.bind(t, **static)


def _mark_batched(operands: Sequence[Any], dims: Sequence[Any], **static: Any) -> tuple[jax.Array, Any]:
    return _mark.bind(*operands, **static), dims[0]


PLAIN[_mark] = _as_it_is
_mark.def_impl(_as_it_is)
_mark.def_abstract_eval(_as_it_is)
mlir.register_lowering(_mark, mlir.lower_fun(_as_it_is, multiple_results=False))
ad.primitive_jvps[_mark] = _mark_jvp
batching.primitive_batchers[_mark] = _mark_batched
# A tangent may be transposed, never computed: not by a call, a compiled program or, before either, under `vmap`.
_marked_tangent.def_impl(_refuse)
_marked_tangent.def_abstract_eval(_as_it_is)
mlir.register_lowering(_marked_tangent, mlir.lower_fun(_refuse, multiple_results=False))
ad.deflinear2(_marked_tangent, lambda ct, _, **__: [ct])
batching.primitive_batchers[_marked_tangent] = _refuse


def reverse_only(x: jax.Array, rules: str) -> jax.Array:
    """x, for a `jax.custom_vjp`: reverse mode passes through, forward mode is told which rules have it."""
    return _mark.bind(x, rules=rules)
