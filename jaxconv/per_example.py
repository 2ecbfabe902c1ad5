"""The length of each example's gradient, without the gradient.

Of all that a network has to learn, its kernels are nearly everything, and one kernel's gradient is a sum of outer
products: at output position p the patch x_p that the window reads there meets the δ of that position,

    dw = Σ_p x_p ⊗ g_p        x_p: a = taps · c numbers,  g_p: b = o numbers,  P positions,  per group.

Its squared length can be had in two ways, and neither keeps dw for more than a few examples:

    direct   ‖dw‖² = Σ_{ij} (Σ_p x_p[i] · g_p[j])²       P · a · b products, a · b numbers held
    gram     ‖dw‖² = Σ_{pq} ⟨x_p, x_q⟩ · ⟨g_p, g_q⟩       P² · (a + b) products, 2 P² numbers held

A dense layer has one position per row, so for a single row the second is ‖x‖² · ‖g‖².

The gradient of one example is traced as a program, and where `kernel_grad` would be called its operands are returned in
its place. `vmap` then makes batches of operands of what would have been batches of kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core import primitives as known

from jaxconv import forward, primitives
from jaxconv.geometry import Geometry
from jaxconv.transforms import bind, contains, interpret, trace

# Equations that say in which order, shape, sign or precision the same numbers stand.
_SAME_NUMBERS = {"convert_element_type", "reshape", "transpose", "squeeze", "rev", "neg", "copy", "copy_p"}
# Equations that call a program once, and where they keep it.
_CALLS = {known.jit_p: "jaxpr", known.closed_call_p: "call_jaxpr", known.remat_p: "jaxpr"}


def per_example_grad_norms(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> jax.Array:
    """‖∂ loss(params, example) / ∂ params‖ for each example of a batch: one number per example.

    What `jax.vmap(lambda e: optax.tree.norm(jax.grad(loss)(params, e)))(batch)` computes, for clipping in
    differentially private training or for sampling by importance, without a gradient per example: a kernel of `conv`,
    `conv_transpose`, `conv_general_dilated` or `dense` with `rules="fast"` contributes

        ‖Σ_p x_p ⊗ g_p‖² = Σ_{p,q} ⟨x_p, x_q⟩ · ⟨g_p, g_q⟩

    in whichever of the two forms counts fewer products. What is no single kernel gradient (biases, scales, a kernel
    that is used twice or inside a loop, layers of other libraries) is differentiated per example, with the same result.

    Sums are carried in float32 at least, and a kernel's gradient is squared before it would be rounded to less. In the
    second form it is squares that cancel: where ‖dw‖ is smaller than Σ_p ‖x_p‖ · ‖g_p‖ by a factor κ, ‖dw‖² is off
    by about κ² roundings of itself, in the first form by about κ.

    Args:
      loss: (params, example) -> a scalar; an example has the structure of the batch, without the leading axis. Layers
        that want a batch get one of size 1: `x[None]`. What else it needs, it closes over.
      params: a pytree of floating arrays.
      batch: a pytree of arrays (N, ...), all with the same N.

    Returns:
      (N,), float64 if a parameter is, else float32.

    Raises:
      ValueError: when the loss is no scalar, or the batch has no common leading axis.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> def loss(params, example):
      ...     x, y = example
      ...     return jaxconv.mean_squared_error(jaxconv.dense(x, params["w"], params["b"]), y)
      >>> params = {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}
      >>> x, y = jnp.array([[2.0, 2.0, 0.0], [1.0, 1.0, 1.0]]), jnp.array([[3.0], [3.0]])
      >>> jaxconv.per_example_grad_norms(loss, params, (x, y))
      Array([6., 0.], dtype=float32)

    Source: I. Goodfellow, Efficient per-example gradient computations (2015), for dense layers; G. Rochette et al.,
      Efficient per-example gradient computations in convolutional neural networks (2019); the second form is the "ghost
      norm" of Z. Bu et al., Scalable and efficient training of large convolutional neural networks with differential
      privacy (2022).
    """
    function = "per_example_grad_norms"
    size = _leading_axis(function, batch)
    batch = jax.tree.map(jnp.asarray, batch)
    _check_scalar(function, loss, params, batch)
    wide = any(jnp.result_type(leaf) in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(params))
    total = jnp.zeros(size, jnp.float64 if wide else jnp.float32)
    if size == 0:
        return total
    for part in jax.vmap(functools.partial(_parts, function, loss, params))(batch):
        squares = squared_norms(part) if isinstance(part, Factors) else part
        total += squares.astype(total.dtype)
    return jnp.sqrt(total)


def _leading_axis(function: str, batch: Any) -> int:
    """How many examples a batch has."""
    leaves = {f"batch{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(batch)}
    for name, leaf in leaves.items():
        if not getattr(leaf, "shape", ()):
            raise ValueError(f"{function}: {name} must be an array with a leading axis of examples, but is {leaf!r}.")
    sizes = {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} {n}" for name, n in sizes.items()) or "no array"
        raise ValueError(
            f"{function}: the arrays of batch must share their leading axis, one entry per example, but found: "
            f"{found}. What belongs to no example is closed over: lambda params, example: loss(params, example, extra)."
        )
    return next(iter(sizes.values()))


def _check_scalar(function: str, loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> None:
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    out = jax.eval_shape(loss, params, example)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        found = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", out)
        raise ValueError(
            f"{function}: loss(params, example) must be one floating number, but is {found}. It sees one example, "
            "without the leading axis of batch; if its layers want one, give them x[None] and return loss(...).sum()."
        )


# The gradient's program, with operands for kernels


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "g"], meta_fields=["geometry"])
@dataclass(frozen=True)
class Factors:
    """A kernel gradient as the two arrays that it is the product of."""

    x: jax.Array
    g: jax.Array
    geometry: Geometry


class _Withheld(NamedTuple):
    """A kernel gradient that is not computed unless somebody needs its value."""

    factors: Factors
    value: Callable[[], jax.Array]


def _parts(function: str, loss: Callable[[Any, Any], Any], params: Any, example: Any) -> list[Factors | jax.Array]:
    """What each parameter adds to the squared length: the number, or the factors to take it from."""
    program = trace(function, jax.grad(loss), params, example)
    leaves = interpret(program.closed.jaxpr, program.closed.consts, program.leaves, _evaluate)
    return [leaf.factors if isinstance(leaf, _Withheld) else _square(leaf) for leaf in leaves]


def _square(a: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(forward.wide(jnp.abs(a))))


def _evaluate(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """One equation's results, kernel gradients withheld."""
    if eqn.primitive in _CALLS:
        called = eqn.params[_CALLS[eqn.primitive]]
        program = called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())
        if contains(program.jaxpr, _is_kernel_grad):
            if eqn.params.get("prevent_cse"):
                operands = [*lax.optimization_barrier([_value(a) for a in operands])]
            return interpret(program.jaxpr, program.consts, operands, _evaluate)
    if _keeps_length(eqn) and isinstance(operands[0], _Withheld):
        factors, value = operands[0]
        return [_Withheld(factors, lambda: bind(eqn, [value()], eqn.params)[0])]
    values = [_value(a) for a in operands]
    if _is_kernel_grad(eqn):
        x, g = values
        return [_Withheld(Factors(x, g, eqn.params["geometry"]), lambda: bind(eqn, values, eqn.params)[0])]
    return bind(eqn, values, eqn.params)


def _is_kernel_grad(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "jaxconv_kernel_grad" and eqn.params["rules"] == primitives.FAST


def _keeps_length(eqn: JaxprEqn) -> bool:
    """Whether the result is the operand in another order, shape, sign or floating precision."""
    results: list[Any] = [v.aval for v in eqn.outvars]
    return eqn.primitive.name in _SAME_NUMBERS and all(jnp.issubdtype(a.dtype, jnp.floating) for a in results)


def _value(a: Any) -> Any:
    return a.value() if isinstance(a, _Withheld) else a


# Lengths from factors


def squared_norms(factors: Factors, gram: bool | None = None) -> jax.Array:
    """‖Σ_p x_p ⊗ g_p‖² of each example, x (N, *x) and g (N, *y); `gram` says which form, None the cheaper one.

    Examples are taken as many at a time as need no more memory than the factors themselves, but at least one.
    """
    (size, *_), geometry = factors.x.shape, factors.geometry
    if factors.x.size == 0 or factors.g.size == 0:
        return jnp.zeros(size, jnp.float32)
    batch, channels = (factors.g.shape[1 + axis] for axis in geometry.layout.y[:2])
    positions, outputs = batch * math.prod(geometry.out), channels // geometry.groups
    inputs = math.prod(geometry.taps) * (factors.x.shape[1 + geometry.layout.x[1]] // geometry.groups)
    gram = gram_is_cheaper(positions, inputs, outputs) if gram is None else gram
    held = geometry.groups * (positions * inputs + (2 * positions**2 if gram else inputs * outputs))
    at_once = (factors.x.size + factors.g.size) // held
    return _squared_norms(factors, gram, min(max(at_once, 1), size))


def gram_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether P²·(a + b) < P·a·b: P positions, a = taps · c inputs and b = o outputs to a group.

    It then takes less memory as well: (a + b)² ≥ 4ab, so P < ab / (a + b) gives 2P² < ab / 2.
    """
    return positions * (inputs + outputs) < inputs * outputs


@functools.partial(jax.jit, static_argnames=("gram", "at_once"))
def _squared_norms(factors: Factors, gram: bool, at_once: int) -> jax.Array:
    return lax.map(functools.partial(_squared_norm, gram=gram), factors, batch_size=at_once)


def _squared_norm(factors: Factors, gram: bool) -> jax.Array:
    """‖Σ_p x_p ⊗ g_p‖² of one example, over all groups."""
    geometry = factors.geometry
    with jax.numpy_dtype_promotion("standard"):  # δ may be wider than the kernel it meets
        common = jnp.promote_types(factors.x.dtype, factors.g.dtype)
    product = functools.partial(
        jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=forward.accumulator(common)
    )
    read = forward.padded(factors.x.astype(common), geometry)
    slices = [forward.tap_slice(read, tap, geometry) for tap in forward.taps(geometry)]
    x = jnp.stack([_rows(a, geometry.layout.x, geometry) for a in slices], 2)  # (position, group, tap, channel)
    x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    g = _rows(factors.g.astype(common), geometry.layout.y, geometry)
    if not gram:
        return jnp.sum(jnp.square(product("pga,pgb->gab", x, g)))
    # Rounding may leave less than nothing of what cancels.
    return jnp.maximum(jnp.sum(product("pga,qga->gpq", x, x) * product("pgb,qgb->gpq", g, g)), 0)


def _rows(a: jax.Array, spec: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """(batch, *spatial, channel) in any layout as (position, group, channel of the group)."""
    a = a.transpose(spec[0], *spec[2:], spec[1])
    return a.reshape(math.prod(a.shape[:-1]), geometry.groups, a.shape[-1] // geometry.groups)
