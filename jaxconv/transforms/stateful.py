"""Functions that change what they are given: batch statistics and random counts in modules of Flax.

Tracing a function copies its arguments, so what it assigns would be lost. NNX has the bookkeeping for this: its objects
are split into arrays and what is none, merged again where f is traced, and what f made of them is split there and
merged into the objects that were given. A module of Linen that is being called has no such bookkeeping, and is refused
if f changes it. Flax is never imported: without it there are no such objects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# What traces f: (f, args, kwargs) -> f's result.
Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

REMEDY = (
    "jaxconv.manual traces f, as jax.jit does, and of what f changes only its arguments are given back. {} "
    "In NNX, hand over the model that f changes: manual(lambda model, x: …)(model, x). In Linen, let f be a function "
    "that calls module.apply or module.init, not one that they call."
)


class Split(NamedTuple):
    """An object of NNX as a tree: what its arrays are called and belong to, and the arrays."""

    definition: Any
    state: Any


def called(
    call: Call, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], assign: bool = True
) -> Any:
    """`call(f, args, kwargs)`, for a `call` that copies arguments: what f assigns in modules is assigned in these.

    Without `assign` it is not, and there is no result.
    """
    before = _linen_variables()
    result = _called(call, f, args, kwargs, assign)
    after = _linen_variables()
    if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
        raise TypeError(REMEDY.format("f changed variables of a module of Flax Linen that is no argument."))
    return result


def _called(call: Call, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], assign: bool) -> Any:
    nnx = sys.modules.get("flax.nnx")

    def is_object(leaf: Any) -> bool:
        return nnx is not None and (isinstance(leaf, nnx.Variable) or nnx.graph.is_graph_node(leaf))

    def objects(tree: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_object) if is_object(leaf)]

    if nnx is None or not objects((args, kwargs)):
        return call(f, args, kwargs)
    tag = object()

    def split(tree: Any) -> Any:
        with nnx.split_context(tag) as context:
            return jax.tree.map(
                lambda leaf: Split(*context.split(leaf)) if is_object(leaf) else leaf, tree, is_leaf=is_object
            )

    def merged(tree: Any, *, inner: bool) -> Any:
        with nnx.merge_context(tag, inner) as context:
            return jax.tree.map(
                lambda leaf: context.merge(*leaf) if isinstance(leaf, Split) else leaf, tree, is_leaf=_is_split
            )

    def pure(given: Any) -> Any:
        args, kwargs = merged(given, inner=True)
        result = f(*args, **kwargs)
        return split((objects((args, kwargs)), result))

    with nnx.update_context(tag):
        made = call(pure, (split((args, kwargs)),), {})
        _, result = merged(made, inner=False) if assign else (None, None)
    return result


def _is_split(leaf: Any) -> bool:
    return isinstance(leaf, Split)


def _linen_variables() -> list[Any]:
    """The variables of the modules of Linen that are being called."""
    module = sys.modules.get("flax.linen.module")
    running = [] if module is None else [m for m in module._context.module_stack if m is not None and m.scope]
    return [leaf for m in running for leaf in jax.tree.leaves(m.variables)]


def errors() -> tuple[type[Exception], ...]:
    """What Flax raises where an object of NNX is changed in a trace that it does not belong to."""
    flax = sys.modules.get("flax.errors")
    return () if flax is None else (flax.TraceContextError,)
