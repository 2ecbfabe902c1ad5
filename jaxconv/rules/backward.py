"""The two rules of a plain backward function, as one writes it by hand: x, w and δ in, both gradients out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.geometry import Geometry

WHO = "ConvRules.from_backward"
# What a backward function may ask for beside x, w and g; by name, from the geometry of the call.
OPTIONS = ("stride", "padding", "dilation", "input_dilation", "groups", "flip_kernel", "geometry")


@dataclass(frozen=True)
class InputGrad:
    """(g, w, geometry) -> dx, the first result of a backward function."""

    backward: Callable[..., Any]
    options: tuple[str, ...]

    def __call__(self, g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
        x = jnp.zeros(geometry.input_grad_shape(g.shape, w.shape), g.dtype)
        return _gradient(0, self.backward, self.options, geometry, x, w, g)


@dataclass(frozen=True)
class KernelGrad:
    """(x, g, geometry) -> dw, the second result of a backward function."""

    backward: Callable[..., Any]
    options: tuple[str, ...]

    def __call__(self, x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
        w = jnp.zeros(geometry.kernel_grad_shape(x.shape, g.shape), g.dtype)
        return _gradient(1, self.backward, self.options, geometry, x, w, g)


def options_of(backward: Callable[..., Any]) -> tuple[str, ...]:
    """The options that a backward function takes after x, w and g; an error if it takes anything else."""
    if not callable(backward):
        raise TypeError(f"{WHO}: backward must be a function of (x, w, g), but is {backward!r}.")
    try:
        parameters = list(inspect.signature(backward).parameters.values())
    except ValueError:  # built in: it cannot be asked
        return ()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p not in places[:3]]
    unknown = [p.name for p in rest if p.name not in OPTIONS and p.default is p.empty]
    if unknown or (len(places) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        taken = ", ".join(str(p) for p in parameters)
        raise TypeError(
            f"{WHO}: backward must take (x, w, g) and may take {', '.join(OPTIONS)}, but takes ({taken}). "
            "Bind what else it needs: lambda x, w, g: backward(x, w, g, ...)."
        )
    return tuple(p.name for p in rest if p.name in OPTIONS)


def _gradient(
    which: int, backward: Callable[..., Any], options: tuple[str, ...], geometry: Geometry, *operands: jax.Array
) -> jax.Array:
    """dx (0) or dw (1) of a backward function, whose results are checked by name."""
    given = {name: geometry if name == "geometry" else getattr(geometry, name) for name in options}
    results = backward(*operands, **given)
    if not isinstance(results, tuple | list) or len(results) != 2:
        what = f"{len(results)} results" if isinstance(results, tuple | list) else type(results).__name__
        raise TypeError(
            f"{WHO}: backward must return (dx, dw), but returned {what}. The bias of conv has its own gradient."
        )
    name, of, result = ("dx", "dw")[which], ("x", "w")[which], results[which]
    if getattr(result, "shape", None) != operands[which].shape:
        shape = "None" if result is None else f"of shape {jnp.shape(result)}"
        raise ValueError(
            f"{WHO}: backward must return {name} of {of}'s shape {operands[which].shape}, but {name} is {shape}. "
            f"The forward pass has stride {geometry.stride}, padding {geometry.padding}, dilation {geometry.dilation}."
        )
    return result
