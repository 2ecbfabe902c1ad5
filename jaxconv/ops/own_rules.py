"""A rule of the caller's, held to its contract: what it must take, and what it must return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import Geometry
from jaxconv.rules import ConvRules

# What each rule is called with, and what its result is called.
_TAKES = {"conv": "(x, w, geometry)", "input_grad": "(g, w, geometry)", "kernel_grad": "(x, g, geometry)"}
_GIVES = {"conv": "y", "input_grad": "dx", "kernel_grad": "dw"}


def held(function: str, rules: ConvRules) -> ConvRules:
    """The same rules, each of which says by name what is wrong with it; `function` is the op that they serve."""
    return ConvRules(**{f.name: _Held(function, f.name, getattr(rules, f.name)) for f in fields(rules)})


@dataclass(frozen=True)
class _Held:
    """A rule whose arguments are checked when an op gets it, and whose result when it has run."""

    function: str
    name: str
    rule: Callable[..., Any]

    def __post_init__(self) -> None:
        if not _accepts(self.rule, 3, {}):
            raise TypeError(
                f"{self.function}: rules.{self.name} must take {_TAKES[self.name]}, but {self} takes "
                f"{_parameters(self.rule)}."
            )

    def __str__(self) -> str:
        return f"`{getattr(self.rule, '__name__', type(self.rule).__name__)}`"

    def __call__(self, a: jax.Array, b: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
        if not _accepts(self.rule, 3, options):
            names = ", ".join(f"{name}=None" for name in options)
            raise TypeError(
                f"{self.function}: {' and '.join(options)} is passed on to rules.{self.name}, but {self} takes "
                f"{_parameters(self.rule)}. Add *, {names} to it, or do not ask for it."
            )
        try:
            result = self.rule(a, b, geometry, **options)
        except Exception as error:
            error.add_note(
                f"{self.function}: raised in rules.{self.name} = {self}, called with arrays of shape {a.shape} and "
                f"{b.shape} and a geometry of {geometry.rank} spatial axes."
            )
            raise
        return self._checked(result, _shape(self.name, a, b, geometry), b.dtype)

    def _checked(self, result: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        wanted = f"{self.function}: rules.{self.name} must return {_GIVES[self.name]}"
        if not isinstance(result, jax.Array | np.ndarray | np.generic):
            given = "None. Is its `return` missing?" if result is None else f"a {type(result).__name__}, not an array."
            raise TypeError(f"{wanted}, an array of shape {shape}, but {self} returned {given}")
        result = jnp.asarray(result)
        if result.shape != shape:
            remedy = " Are its axes in another order?" if sorted(result.shape) == sorted(shape) else ""
            raise ValueError(f"{wanted} of shape {shape}, but {self} returned shape {result.shape}.{remedy}")
        fits = jnp.issubdtype(result.dtype, jnp.floating) and (
            result.dtype == dtype or result.dtype.itemsize > dtype.itemsize
        )
        if not fits:
            raise TypeError(
                f"{wanted} in {dtype} or wider, but {self} returned {result.dtype}. Convert it: .astype({dtype})."
            )
        return result


def _accepts(rule: Callable[..., Any], count: int, options: dict[str, Any]) -> bool:
    """Whether `count` positional arguments and the options are what `rule` takes; a built-in may not say."""
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count, **options)
    except TypeError:
        return False
    return True


def _parameters(rule: Callable[..., Any]) -> str:
    """A signature without annotations and defaults: (x, g, *, precision)."""
    signature = inspect.signature(rule)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _shape(name: str, a: jax.Array, b: jax.Array, geometry: Geometry) -> tuple[int, ...]:
    """The shape of a map's result, from those of its operands."""
    place, groups = geometry.layout, geometry.groups
    if name == "conv":
        return geometry.y_shape(a.shape[place.x[0]], b.shape[place.w[0]])
    if name == "input_grad":
        return geometry.x_shape(a.shape[place.y[0]], b.shape[place.w[1]] * groups)
    return geometry.w_shape(a.shape[place.x[1]] // groups, b.shape[place.y[1]])
