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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as known

from jaxconv import primitives
from jaxconv.geometry import Geometry, channels_last_order
from jaxconv.rules import KERNEL_GRAD, is_fast
from jaxconv.transforms.program import CALLS, bind, by_table, called, contains, interpret, leaves_of, trace
from jaxconv.windows import accumulator, padded, tap_slice, taps, widened

_KERNEL_GRAD = primitives.PRIMITIVES[KERNEL_GRAD]


def per_example_grad_norms(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> jax.Array:
    """‖∂ loss(params, example) / ∂ params‖ for each example of a batch: one number per example.

    What `jax.vmap(lambda e: optax.tree.norm(jax.grad(loss)(params, e)))(batch)` computes, for clipping in
    differentially private training or for sampling by importance, without a gradient per example: a kernel of `conv`,
    `conv_transpose`, `conv_general_dilated` or `dense` with `rules="fast"` contributes

        ‖Σ_p x_p ⊗ g_p‖² = Σ_{p,q} ⟨x_p, x_q⟩ · ⟨g_p, g_q⟩

    in whichever of the two forms counts fewer products. What is no single kernel gradient (biases, scales, a kernel
    that is used twice or inside a loop, layers of other libraries) is differentiated per example, with the same result.

    In differentially private training each example's gradient g is scaled by min(1, C / ‖g‖), and noise is added to the
    sum. A sum of scaled gradients is the gradient of the scaled sum of losses, so a second backward pass gives it, for
    the whole batch at once (docs/privacy.md compares it with optax's):

        weights = jnp.minimum(1, clip / jaxconv.per_example_grad_norms(loss, params, batch))
        total = jax.grad(lambda params: weights @ jax.vmap(loss, (None, 0))(params, batch))(params)
        noisy = total + clip * multiplier * jax.random.normal(key, total.shape)        # for each parameter

    Inside `shard_map` the norms are those of each device's own examples, and the sum above is still to be taken over
    devices (docs/sharding.md).

    Sums are carried in float32 at least, and a kernel's gradient is squared before it would be rounded to less. In the
    second form it is squares that cancel: where ‖dw‖ is smaller than Σ_p ‖x_p‖ · ‖g_p‖ by a factor κ, ‖dw‖² is off
    by about κ² roundings of itself, in the first form by about κ.

    Args:
      loss: (params, example) -> a scalar; an example has the structure of the batch, without the leading axis. Layers
        that want a batch get one of size 1: `x[None]`. What else it needs, it closes over.
      params: a pytree, such as a dict of arrays or a module of Equinox or Flax. Its floating arrays are differentiated;
        integers, keys, functions and other settings are held, and so are an nnx module's variables that are no `Param`.
        What an nnx module shares is one parameter.
      batch: a pytree of arrays (N, ...), all with the same N.

    Returns:
      (N,), float64 if a parameter is, else float32.

    Raises:
      ValueError: when the loss is no scalar, or the batch has no common leading axis.
      TypeError: when params are an object that is no pytree and has arrays, which JAX cannot reach; the message has the
        lines that hand them over.

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
    weights, loss = _weights(function, loss, params)
    weights = _own(weights, batch)
    _check_scalar(function, loss, weights, batch)
    doubled = any(w.dtype in (jnp.float64, jnp.complex128) for w in weights)
    total = jnp.zeros(size, jnp.float64 if doubled else jnp.float32)
    if size == 0:
        return total
    for part in jax.vmap(functools.partial(_parts, function, loss, weights))(batch):
        squares = squared_norms(part) if isinstance(part, Factors) else part
        total += squares.astype(total.dtype)
    return jnp.sqrt(total)


def _leading_axis(function: str, batch: Any) -> int:
    """How many examples a batch has."""
    leaves = {f"batch{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(batch)}
    for name, leaf in leaves.items():
        if not getattr(leaf, "shape", ()):
            found = repr(leaf) if isinstance(leaf, bool | int | float | complex | str) else type(leaf).__name__
            raise ValueError(f"{function}: {name} must be an array with a leading axis of examples, but is {found}.")
    sizes = {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} {n}" for name, n in sizes.items()) or "no array"
        raise ValueError(
            f"{function}: the arrays of batch must share their leading axis, one entry per example, but found: "
            f"{found}. What belongs to no example is closed over: lambda params, example: loss(params, example, extra)."
        )
    return next(iter(sizes.values()))


def _own(params: Any, batch: Any) -> Any:
    """The parameters as each device's own.

    Inside `shard_map`, JAX sums the gradient of what all devices share over them: here, over other devices' examples.
    """

    def varies(a: Any) -> frozenset[Any]:
        return frozenset(jax.typeof(a).manual_axis_type.varying)

    axes = frozenset().union(*map(varies, jax.tree.leaves(batch)))

    def own(a: Any) -> Any:
        shared = tuple(sorted(axes - varies(a)))
        return lax.pcast(a, shared, to="varying") if shared else a

    return jax.tree.map(own, params) if axes else params


def _weights(
    function: str, loss: Callable[[Any, Any], Any], params: Any
) -> tuple[list[jax.Array], Callable[[Any, Any], Any]]:
    """What is learned of params, flat, and the loss as a function of that and an example."""
    given = leaves_of(function, params, lambda path: f"params{jax.tree_util.keystr(path)}")
    variables = [(key, v) for key, v in jax.tree.leaves_with_path(params, is_leaf=_is_variable) if _is_variable(v)]
    weights: dict[Any, jax.Array] = {}
    places: list[Any] = []  # of each array, which weight it is, or None
    for key, array in zip(given.keys, given.arrays, strict=True):
        at, variable = next(((len(k), v) for k, v in variables if key[: len(k)] == k), (0, None))
        learned = jnp.issubdtype(array.dtype, jnp.inexact) and (variable is None or _is_variable(variable, "Param"))
        places.append((id(variable), key[at:]) if learned else None)
        if learned:
            weights[places[-1]] = array

    def of_weights(learned: Sequence[Any], example: Any) -> Any:
        named = dict(zip(weights, learned, strict=True))
        arrays = [a if place is None else named[place] for a, place in zip(given.arrays, places, strict=True)]
        return loss(given.place(arrays), example)

    return list(weights.values()), of_weights


def _is_variable(node: Any, kind: str = "Variable") -> bool:
    """Whether a node of a tree is a variable of flax.nnx, which several modules may share."""
    return any(c.__name__ == kind and c.__module__.startswith("flax.nnx") for c in type(node).__mro__)


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
    return jnp.sum(jnp.square(widened(jnp.abs(a))))


def _descended(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """The results of a call, whose program is read likewise if a kernel gradient is in it."""
    program = called(eqn)
    if program is None or not contains(program.jaxpr, _is_kernel_grad):
        return _bound(eqn, operands)
    if eqn.params.get("prevent_cse"):
        operands = [*lax.optimization_barrier([_value(a) for a in operands])]
    return interpret(program.jaxpr, program.consts, operands, _evaluate)


def _withheld(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """A kernel gradient's operands, if it is ours to take apart."""
    if not _is_kernel_grad(eqn):
        return _bound(eqn, operands)
    x, g = values = [_value(a) for a in operands]
    return [_Withheld(Factors(x, g, eqn.params["geometry"]), lambda: bind(eqn, values, eqn.params)[0])]


def _still_withheld(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """The same numbers in another order, shape, sign or floating precision have the same length."""
    aval: Any = eqn.outvars[0].aval
    if not (isinstance(operands[0], _Withheld) and jnp.issubdtype(aval.dtype, jnp.floating)):
        return _bound(eqn, operands)
    factors, value = operands[0]
    return [_Withheld(factors, lambda: bind(eqn, [value()], eqn.params)[0])]


def _bound(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    return bind(eqn, [_value(a) for a in operands], eqn.params)


_SAME_NUMBERS = (
    *(known.convert_element_type_p, known.reshape_p, known.transpose_p, known.squeeze_p, known.rev_p, known.neg_p),
    known.copy_p,
)
_evaluate = by_table(
    {
        _KERNEL_GRAD: _withheld,
        **dict.fromkeys(_SAME_NUMBERS, _still_withheld),
        **dict.fromkeys(CALLS, _descended),
    },
    _bound,
)


def _is_kernel_grad(eqn: JaxprEqn) -> bool:
    return eqn.primitive is _KERNEL_GRAD and is_fast(eqn.params["rules"])


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
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=accumulator(common))
    read = padded(factors.x.astype(common), geometry)
    slices = [tap_slice(read, tap, geometry) for tap in taps(geometry)]
    x = jnp.stack([_rows(a, geometry.layout.x, geometry) for a in slices], 2)  # (position, group, tap, channel)
    x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    g = _rows(factors.g.astype(common), geometry.layout.y, geometry)
    if not gram:
        return jnp.sum(jnp.square(product("pga,pgb->gab", x, g)))
    # Rounding may leave less than nothing of what cancels.
    return jnp.maximum(jnp.sum(product("pga,qga->gpq", x, x) * product("pgb,qgb->gpq", g, g)), 0)


def _rows(a: jax.Array, spec: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """(batch, *spatial, channel) in any layout as (position, group, channel of the group)."""
    a = a.transpose(channels_last_order(spec))
    return a.reshape(math.prod(a.shape[:-1]), geometry.groups, a.shape[-1] // geometry.groups)
