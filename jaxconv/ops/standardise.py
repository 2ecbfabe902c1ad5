"""What normalisations share: the derivative of a standardisation is one symmetric matrix, its own transpose.

With m elements standardised together, x̂ = (x − μ) / σ and σ² = variance + ε,

    ∂x̂/∂x = (1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m)

The 1 belongs to the mean and the x̂ to the variance; RMS normalisation has no mean and so no 1. Symmetric means that the
tangent map and the backward pass are the same line of code. Batch, layer, group and instance normalisation differ in
which axes they standardise over, and batch normalisation in what it remembers. Where σ = 0, which only ε = 0 allows (in
the dtype of the statistics), nothing varies: x̂ is 0 there, not 0/0, and passes no gradient.

With a scale and a shift, y = x̂ · scale + shift, the derivative is one map of three tangents, its transpose three
gradients at once. Remembered are x, μ and σ, and no second array of x's size. On a CPU, where the native engine is and
the channels come last, the transpose is a kernel of our own; forwards XLA is as fast.

Source: the batch-normalisation gradient of Ioffe and Szegedy (2015), collected into one projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv import forward, primitives
from jaxconv.engines.onednn import loading
from jaxconv.engines.onednn.norms import gradient
from jaxconv.forward import inverse_root, mean
from jaxconv.ops.arguments import Rules, floating, number, same_dtype
from jaxconv.ops.binding import Derivative, apply
from jaxconv.ops.plan import BY_JAX, Choice
from jaxconv.windows import accumulator, widened


class Over(NamedTuple):
    """What is standardised together."""

    axes: tuple[int, ...]
    eps: float
    centred: bool = True
    axis_name: Any = None


def _standardise(over: Over, x: jax.Array) -> jax.Array:
    return forward.standardise(widened(x), *over).astype(x.dtype)


def _moments(over: Over, x: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    """μ, None if nothing is centred, and 1/σ."""
    z, mu = widened(x), None
    if over.centred:
        mu = mean(z, over.axes, over.axis_name)
        z = z - mu
    return mu, inverse_root(mean(z * z, over.axes, over.axis_name) + over.eps)


def _normal(x: jax.Array, mu: jax.Array | None, inverse: jax.Array) -> jax.Array:
    """x̂."""
    return (widened(x) if mu is None else widened(x) - mu) * inverse


def _remember(over: Over, x: jax.Array) -> Any:
    mu, inverse = _moments(over, x)
    normal = _normal(x, mu, inverse)
    return normal.astype(x.dtype), (normal, inverse)


def _project(over: Over, saved: Any, t: jax.Array) -> jax.Array:
    """(1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m) t."""
    normal, inverse = saved
    t = widened(t)
    along_one = mean(t, over.axes, over.axis_name) if over.centred else 0
    along_normal = normal * mean(normal * t, over.axes, over.axis_name)
    return inverse * (t - along_one - along_normal)


_STANDARDISE = Derivative(
    primal=_standardise,
    forward=_remember,
    tangent=_project,
    cotangent=lambda over, saved, g: (_project(over, saved, g),),
)


def _affine(_: None, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return forward.affine(widened(x), widened(scale), widened(shift)).astype(x.dtype)


def _affine_tangent(_: None, saved: Any, dx: Any, dscale: Any, dshift: Any) -> jax.Array:
    x, scale = saved
    parts = [
        None if dx is None else widened(dx) * widened(scale),
        None if dscale is None else widened(x) * widened(dscale),
        None if dshift is None else jnp.broadcast_to(widened(dshift), x.shape),
    ]
    total = None
    for part in parts:
        total = part if total is None else total if part is None else total + part
    assert total is not None  # a derivative is asked for only if some tangent is not zero
    return total


def _affine_cotangent(_: None, saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    """dx = g · scale; dscale = Σ g · x and dshift = Σ g over all that share one scale."""
    x, scale = saved
    g = widened(g)
    shared = tuple(axis for axis, n in enumerate(scale.shape) if n == 1)
    return g * widened(scale), (g * widened(x)).sum(shared, keepdims=True), g.sum(shared, keepdims=True)


_AFFINE = Derivative(
    primal=_affine,
    forward=lambda _, x, scale, shift: (_affine(None, x, scale, shift), (x, scale)),
    tangent=_affine_tangent,
    cotangent=_affine_cotangent,
)


# With a scale and a shift, all at once: y = x̂ · scale + shift


def _normalise(over: Over, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    z = forward.standardise(widened(x), *over)
    return forward.affine(z, widened(scale), widened(shift)).astype(x.dtype)


def _normalise_remembering(over: Over, x: jax.Array, scale: jax.Array, shift: jax.Array) -> Any:
    """Remembered is x itself, which somebody else has as well, and no second array of its size."""
    mu, inverse = _moments(over, x)
    scale = widened(scale)
    y = forward.affine(_normal(x, mu, inverse), scale, widened(shift))
    return y.astype(x.dtype), (x, jnp.zeros_like(inverse) if mu is None else mu, inverse, scale)


def _normalise_tangent(
    dx: jax.Array, dscale: jax.Array, dshift: jax.Array, x: jax.Array, mu: jax.Array, inverse: jax.Array,
    scale: jax.Array, static: Over,
) -> jax.Array:  # fmt: skip
    normal = _normal(x, mu, inverse)
    projected = _project(static, (normal, inverse), dx)
    return _affine_tangent(None, (normal, scale), projected, dscale, dshift).astype(x.dtype)


def _normalise_cotangent(
    g: jax.Array, x: jax.Array, mu: jax.Array, inverse: jax.Array, scale: jax.Array, static: Over
) -> tuple[jax.Array, ...]:
    """dx = (1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m) (scale · g), and the gradients of scale and shift."""
    normal = _normal(x, mu, inverse)
    scaled, dscale, dshift = _affine_cotangent(None, (normal, scale), g)
    return _project(static, (normal, inverse), scaled).astype(x.dtype), dscale, dshift


def _native(over: Over, depth: int, *arrays: Any) -> Any:
    return gradient(over.axes, over.centred, depth, *arrays)


_normalisation = primitives.several_pair("normalise", 3, _normalise_tangent, _normalise_cotangent, _native)


def _normalisation_tangent(over: Over, saved: Any, *tangents: Any) -> jax.Array:
    x, _, _, scale = saved
    likes = (x, scale, scale)
    known = [
        jnp.zeros(a.shape, a.dtype) if t is None else t.astype(a.dtype) for t, a in zip(tangents, likes, strict=True)
    ]
    return _normalisation.apply(*known, *saved, static=over)


_NORMALISE = Derivative(
    primal=_normalise,
    forward=_normalise_remembering,
    tangent=_normalisation_tangent,
    cotangent=lambda over, saved, g: tuple(_normalisation.transpose(g, *saved, static=over)),
)


# The same where somebody has computed μ and 1/σ of this very x


def _at(_: Over, x: jax.Array, mu: jax.Array, inverse: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return forward.affine(_normal(x, mu, inverse), scale, shift).astype(x.dtype)


# The derivative of x is that of all there is of x, μ and 1/σ included, so that these two have none beside it.
_NORMALISE_AT = Derivative(
    primal=_at,
    forward=lambda over, *operands: (_at(over, *operands), operands[:-1]),
    tangent=lambda over, saved, dx, dmu, dinverse, *rest: _normalisation_tangent(over, saved, dx, *rest),
    cotangent=lambda over, saved, g: _around_moments(*_normalisation.transpose(g, *saved, static=over)),
)


def _around_moments(dx: jax.Array, *rest: jax.Array) -> tuple[Any, ...]:
    return dx, None, None, *rest


# What the ops call


def standardise(x: jax.Array, over: Over, rules: Any) -> jax.Array:
    """(x − μ) / σ, with the derivative of `rules`."""
    return apply(rules, _STANDARDISE, over, x)


def normalise(x: jax.Array, over: Over, parameters: tuple[jax.Array, jax.Array] | None, rules: Any) -> jax.Array:
    """(x − μ) / σ · scale + shift, with the derivative of `rules`; parameters are shaped to broadcast against x."""
    if parameters is None or over.axis_name is not None:
        return affine(standardise(x, over, rules), parameters, rules)
    return apply(rules, _NORMALISE, over, x, *parameters)


def normalise_at(
    x: jax.Array, mu: jax.Array | None, inverse: jax.Array, scale: jax.Array | None, shift: jax.Array | None,
    over: Over, rules: Any,
) -> jax.Array:  # fmt: skip
    """(x − μ) · inverse · scale + shift, where μ and inverse = 1/σ are those of x; all are shaped to broadcast.

    None stands for what there is none of; where that is μ, nothing is centred.
    """
    mu = jnp.zeros_like(inverse) if mu is None else mu
    scale, shift = _parameters(x, scale, shift)
    return apply(rules, _NORMALISE_AT, over, x, *(widened(a) for a in (mu, inverse, scale, shift)))


def _parameters(x: jax.Array, scale: Any, shift: Any) -> list[jax.Array]:
    """Both of one shape; a missing one is its neutral element."""
    if scale is None:
        scale = jnp.ones([1] * (x.ndim - 1) + [x.shape[-1]], accumulator(x.dtype))
    return jnp.broadcast_arrays(scale, jnp.zeros_like(scale) if shift is None else shift)


def computed_by(
    rules: Rules, over: Over, platform: str, x: Any, mu: Any, inverse: Any, scale: Any, shift: Any
) -> dict[str, Choice]:
    """What computes a normalisation and its gradient, as the lowering of its primitives chooses."""
    if rules == "autodiff":
        return dict.fromkeys(("norm", "gradient"), BY_JAX)
    scale, _ = jax.eval_shape(_parameters, x, scale, shift)
    taken = loading.why_not_on(platform) or gradient(over.axes, over.centred, 0, x, x, mu, inverse, scale)
    why = taken if isinstance(taken, str) else "one walk over memory for each of two passes"
    return {
        "norm": Choice("XLA", "forwards XLA is as fast as a kernel", "x and its moments"),
        "gradient": Choice("XLA" if isinstance(taken, str) else "native", why, "nothing"),
    }


def affine(x: jax.Array, parameters: tuple[jax.Array, jax.Array] | None, rules: Any) -> jax.Array:
    """x · scale + shift, with the derivative of `rules`; x where there are no parameters."""
    return x if parameters is None else apply(rules, _AFFINE, None, x, *parameters)


def check_eps(function: str, eps: Any) -> float:
    eps = number(function, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{function}: eps must be at least 0, but {eps} < 0.")
    return eps


def check_nonempty(function: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    if any(shape[axis] == 0 for axis in axes):
        raise ValueError(f"{function}: there is nothing to normalise over: axes {axes} of x.shape = {shape}.")


def scale_and_bias(
    function: str, x: jax.Array, channel: int, scale: Any, bias: Any
) -> tuple[jax.Array, jax.Array] | None:
    """Both, validated and shaped to broadcast; a missing one is its neutral element."""
    shape = [1] * x.ndim
    shape[channel] = x.shape[channel]
    given = {}
    for name, value in (("scale", scale), ("bias", bias)):
        if value is None:
            continue
        value = floating(function, name, value)
        if value.shape != (x.shape[channel],):
            raise ValueError(
                f"{function}: {name} must hold one number per channel, "
                f"but {name}.shape = {value.shape} != ({x.shape[channel]},)."
            )
        if accumulator(value.dtype) != accumulator(x.dtype):
            raise TypeError(
                f"{function}: {name}.dtype must be x.dtype or {jnp.dtype(accumulator(x.dtype))}, "
                f"but {value.dtype} does not go with {x.dtype}. Convert it: {name}.astype(x.dtype)."
            )
        given[name] = value.reshape(shape)
    if not given:
        return None
    dtype = next(iter(given.values())).dtype
    if len(given) == 2:
        same_dtype(function, **given)
    return given.get("scale", jnp.ones(shape, dtype)), given.get("bias", jnp.zeros(shape, dtype))
