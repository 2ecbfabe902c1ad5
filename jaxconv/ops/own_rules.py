"""A rule of the caller's, held to its contract: what it must take, and what it must return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import Geometry
from jaxconv.rules import CONV, INPUT_GRAD, KERNEL_GRAD, ConvRules, Map

# What an array is called where it is an operand, and where it is a result.
_TAKEN = {"x": "x", "w": "w", "y": "g"}
_MADE = {"x": "dx", "w": "dw", "y": "y"}


def held(function: str, rules: ConvRules) -> ConvRules:
    """The same rules, each of which says by name what is wrong with it; `function` is the op that they serve."""
    return ConvRules(
        input_grad=_Held(function, INPUT_GRAD, rules.input_grad),
        kernel_grad=_Held(function, KERNEL_GRAD, rules.kernel_grad),
        conv=_Held(function, CONV, rules.conv),
    )


@dataclass(frozen=True)
class _Held:
    """A rule whose arguments are checked when an op gets it, and whose result when it has run."""

    function: str
    of: Map
    rule: Callable[..., Any]

    def __post_init__(self) -> None:
        if not _accepts(self.rule, 3, {}):
            taken = ", ".join(_TAKEN[array] for array in self.of.takes)
            raise TypeError(
                f"{self.function}: rules.{self.of.name} must take ({taken}, geometry), but {self} takes "
                f"{_parameters(self.rule)}."
            )

    def __str__(self) -> str:
        return f"`{getattr(self.rule, '__name__', type(self.rule).__name__)}`"

    def __call__(self, a: jax.Array, b: jax.Array, geometry: Geometry, **options: Any) -> jax.Array:
        if not _accepts(self.rule, 3, options):
            names = ", ".join(f"{name}=None" for name in options)
            raise TypeError(
                f"{self.function}: {' and '.join(options)} is passed on to rules.{self.of.name}, but {self} takes "
                f"{_parameters(self.rule)}. Add *, {names} to it, or do not ask for it."
            )
        try:
            result = self.rule(a, b, geometry, **options)
        except Exception as error:
            error.add_note(
                f"{self.function}: raised in rules.{self.of.name} = {self}, called with arrays of shape {a.shape} and "
                f"{b.shape} and a geometry of {geometry.rank} spatial axes."
            )
            raise
        return self._checked(result, self.of.shape(geometry, a.shape, b.shape), b.dtype)

    def _checked(self, result: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        wanted = f"{self.function}: rules.{self.of.name} must return {_MADE[self.of.makes]}"
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
