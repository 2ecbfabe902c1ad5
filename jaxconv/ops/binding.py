"""How a rule becomes a gradient: one binding for each value of `rules=`, for the ops here and for ops of your own.

A non-linear op comes with its `Derivative`: what to remember of a point, and the derivative there as a linear map with
a transpose. `apply` evaluates it. An op that is linear itself is a `linear_pair`: the map and its transpose. `linear`
evaluates that. Both bind the gradient as `rules` says:

    "fast"                  the derivative is a linear map of the tangents, so every mode and order works
    "textbook", "rotated"   `jax.custom_vjp` with the transpose that was written: reverse mode
    "autodiff"              nothing: JAX differentiates the value
    a `ConvRules`           speaks of kernels only, so an op here is what it is by default, "fast"

An op with a kernel is bilinear: one of the three maps of a convolution, which are each other's derivatives. `bilinear`
evaluates it, under all rules in every mode and order, since it is primitives that carry a rule set: a name stands for
that of `jaxconv.rules.RULE_SETS`, and only "autodiff" for none. `docs/own_rules.md` builds one of each kind.

Which rule set a value of `rules` stands for, and how it is bound, is decided in this file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxconv import forward, primitives
from jaxconv.geometry import Geometry
from jaxconv.ops.arguments import Rules, check_engine, check_rules, frozen
from jaxconv.primitives import LinearPair
from jaxconv.rules import CONV, INPUT_GRAD, KERNEL_GRAD, RULE_SETS, ConvRules, Map, is_fast

__all__ = ["Derivative", "LinearPair", "apply", "bilinear", "linear", "linear_pair"]

# The names under which an op without a kernel is bound by `jax.custom_vjp`.
REVERSE_ONLY = ("textbook", "rotated")


class Derivative(NamedTuple):
    """A non-linear op, its derivative at a point and that derivative's transpose, as plain functions.

    `static` is a hashable of the op's choosing; `operands` are the differentiable arrays.

    Args:
      primal: (static, *operands) -> y. What `rules="autodiff"` differentiates.
      forward: (static, *operands) -> (y, residuals). The same y, and what the other two need of the point.
      tangent: (static, residuals, *tangents) -> the derivative applied to tangents, a linear function of them which JAX
        can transpose (a `linear_pair` in it brings its own transpose). None stands for a tangent that is zero.
      cotangent: (static, residuals, g) -> a tuple, the transpose applied to g, one entry per operand; None for
        an operand that has no derivative, such as a mask.
      value: (static, *operands) -> y, for who does not differentiate: `primal` by way of a kernel, if there is one that
        computes it faster. None is `primal` itself.
    """

    primal: Callable[..., jax.Array]
    forward: Callable[..., tuple[jax.Array, Any]]
    tangent: Callable[..., jax.Array]
    cotangent: Callable[..., tuple[Any, ...]]
    value: Callable[..., jax.Array] | None = None


def apply(rules: Any, derivative: Derivative, static: Hashable, *operands: jax.Array) -> jax.Array:
    """The value of a non-linear op, its gradient bound as `rules` says.

    Args:
      rules: "fast", "textbook", "rotated", "autodiff" or a `ConvRules`, as every op of the library takes them.
      derivative: what the op is. Make it once, at the top of a module: programs are cached by it.
      static: passed on to the functions of `derivative`; hashable, None if there is nothing to say.
      operands: arrays, passed on as well. Integers and masks have no derivative.

    Returns:
      y, as `derivative.primal` computes it. A tangent is converted to y's dtype, a cotangent to its operand's.

    Raises:
      ValueError: `rules` is unknown, or `derivative.cotangent` does not return one entry per operand.
      TypeError: `static` is not hashable.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import binding
      >>> square = binding.Derivative(
      ...     primal=lambda _, x: x * x,
      ...     forward=lambda _, x: (x * x, x),
      ...     tangent=lambda _, x, t: 2 * x * t,
      ...     cotangent=lambda _, x, g: (2 * x * g,),
      ... )
      >>> jax.grad(lambda x: binding.apply("rotated", square, None, x))(jnp.float32(3))
      Array(6., dtype=float32)
      >>> jax.jvp(lambda x: binding.apply("fast", square, None, x), (jnp.float32(3),), (jnp.float32(1),))[1]
      Array(6., dtype=float32)

    Source: a layer's derivative is a linear map with a transpose, chosen by what its forward pass remembered.
    """
    check_rules("binding.apply", rules)
    _check_static("binding.apply", static)
    if rules == "autodiff":
        return derivative.primal(static, *operands)
    operands = tuple(primitives.alike(*operands))
    if rules in REVERSE_ONLY:
        return _reversed(derivative, static)(*_reverse_only(rules, *operands))
    return _linearised(derivative, static)(*operands)


def linear_pair(name: str, apply: Callable[..., jax.Array], transpose: Callable[..., jax.Array]) -> LinearPair:
    """A linear map and its transpose as two primitives, each the derivative of the other, in every mode and order.

    Args:
      name: what it is called in a jaxpr: `jaxconv_<name>` and `jaxconv_<name>_transpose`.
      apply: (x, *integers, static=...) -> y, linear in x, in plain JAX. The integers, such as the taps that a max pool
        remembers, are residuals without a derivative; `static` is a hashable.
      transpose: (g, *integers, static=...) -> dx, with x's shape for every g of y's.

    Returns:
      The pair, for `linear`, and for the tangent of a `Derivative`: `pair.apply(t, *integers, static=static)`.

    Raises:
      TypeError: a map is not a function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import binding
      >>> def ends(x, static):
      ...     return x[::static]
      >>> def back(g, static):
      ...     return jnp.zeros(static * len(g)).at[::static].set(g)
      >>> every = binding.linear_pair("every", ends, back)
      >>> jax.grad(lambda x: binding.linear("fast", every, 2, x)[1])(jnp.ones(4))
      Array([0., 0., 1., 0.], dtype=float32)

    Source: `jaxconv.primitives`.
    """
    for argument, function in (("apply", apply), ("transpose", transpose)):
        if not callable(function):
            raise TypeError(f"binding.linear_pair: {argument} must be a function, but is {function!r}.")
    return primitives.linear_pair(name, apply, transpose)


def linear(rules: Any, pair: LinearPair, static: Hashable, x: jax.Array, *integers: jax.Array) -> jax.Array:
    """The value of a linear map, its gradient bound as `rules` says.

    Args:
      rules: "fast", "textbook", "rotated", "autodiff" or a `ConvRules`, as every op of the library takes them.
      pair: the map and its transpose; `pair.transposed` is the transpose as a map.
      static: passed on to the functions of `pair`; hashable, None if there is nothing to say.
      x: the array in which the map is linear.
      integers: the map's residuals.

    Returns:
      The map applied to x.

    Raises:
      ValueError: `rules` is unknown.
      TypeError: `static` is not hashable.

    Example: see `linear_pair`.
      >>> import jax.numpy as jnp
      >>> from jaxconv import binding
      >>> total = binding.linear_pair(
      ...     "total", lambda x, static: x.sum(), lambda g, static: jnp.broadcast_to(g, (static,))
      ... )
      >>> binding.linear("fast", total, 3, jnp.ones(3)), binding.linear("fast", total.transposed, 3, jnp.float32(2))
      (Array(3., dtype=float32), Array([2., 2., 2.], dtype=float32))

    Source: a linear map is its own derivative; in reverse mode its transpose runs.
    """
    check_rules("binding.linear", rules)
    _check_static("binding.linear", static)
    if rules == "autodiff":
        return pair.plain(x, *integers, static=static)
    if rules in REVERSE_ONLY:
        return apply(rules, _derivative_of(pair), static, x, *integers)
    return pair.apply(x, *integers, static=static)


def bilinear(
    rules: Rules, of: Map, geometry: Geometry, a: jax.Array, b: jax.Array, *, engine: str = "auto",
    precision: Any = None, dtype: Any = None,
) -> jax.Array:  # fmt: skip
    """One of the three maps of a convolution, its value and its gradients as `rules` has them.

    An op with a kernel is one of them once its geometry is known: `conv_transpose` is `INPUT_GRAD`, and `conv` is
    `CONV`, though its value is `lax`'s under all rules but "fast".

    Args:
      rules: "fast", "textbook", "rotated", "autodiff" or a `ConvRules`, as every op with a kernel takes them.
      of: which map: `CONV`, `INPUT_GRAD` or `KERNEL_GRAD` of `jaxconv.rules`. `of.transposes` are the other two.
      geometry: that of the convolution, as `jaxconv.geometry.conv_geometry` resolves it.
      a, b: the map's operands, (x, w), (g, w) or (x, g), of one dtype and of the shapes that the geometry has.
      engine: who computes the fast maps: "auto", "xla" or "onednn", as in `jaxconv.conv`.
      precision: as in `jax.lax.conv_general_dilated`.
      dtype: of the result; by default that of a.

    Returns:
      y, dx or dw. Its derivatives are the other two maps of the same rules, in every mode and order.

    Raises:
      ValueError: `rules` or `engine` is unknown; a rule returns another shape than `of.shape(geometry, ...)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import binding
      >>> from jaxconv.geometry import conv_geometry
      >>> from jaxconv.rules import CONV, INPUT_GRAD
      >>> x, w = jnp.arange(4.0).reshape(1, 4, 1), jnp.array([1.0, 2.0]).reshape(2, 1, 1)
      >>> geometry = conv_geometry("pairs", x.shape, w.shape, stride=2, padding="VALID")
      >>> y, pullback = jax.vjp(lambda x: binding.bilinear("rotated", CONV, geometry, x, w), x)
      >>> y.ravel(), pullback(y)[0].ravel()
      (Array([2., 8.], dtype=float32), Array([ 2.,  4.,  8., 16.], dtype=float32))
      >>> binding.bilinear("textbook", INPUT_GRAD, geometry, y, w).ravel()
      Array([ 2.,  4.,  8., 16.], dtype=float32)

    Source: the trilinear form in `jaxconv.rules.textbook`, of which the three maps are the partial gradients.
    """
    check_rules("binding.bilinear", rules)
    check_engine("binding.bilinear", engine)
    written, precision = rule_set(rules), frozen(precision)
    if not isinstance(written, ConvRules):
        options = {"precision": precision, "preferred_element_type": dtype if of.makes == "y" else None}
        given = {option: value for option, value in options.items() if value is not None}
        return _PLAIN[of](a, b, geometry, **given).astype(dtype or a.dtype)
    return primitives.bilinear(
        of, a, b, geometry, rules=written, precision=precision, dtype=dtype or a.dtype, engine=engine
    )


_PLAIN: dict[Map, Callable[..., jax.Array]] = {
    CONV: forward.conv,
    INPUT_GRAD: forward.input_grad,
    KERNEL_GRAD: forward.kernel_grad,
}


def rule_set(rules: Rules) -> Rules:
    """The `ConvRules` of a name; "autodiff" is the name of none, and stays."""
    return RULE_SETS.get(rules, rules) if isinstance(rules, str) else rules


def gradients_of(rules: Rules) -> Rules:
    """The rule set of a forward pass of `conv`: its gradients are those of `rules`, the convolution is `lax`'s.

    So all rules but "fast", which chooses its formulation, have the same y to the last bit, and a rule that is slow or
    wrong is so where it is looked for: in the backward pass.
    """
    rules = rule_set(rules)
    return (
        dataclasses.replace(rules, conv=forward.conv) if isinstance(rules, ConvRules) and not is_fast(rules) else rules
    )


@functools.lru_cache(maxsize=1024)
def _derivative_of(pair: LinearPair) -> Derivative:
    """A linear map as its own derivative: it remembers its integers, and needs nothing else of the point."""

    def value(static: Hashable, x: jax.Array, *integers: jax.Array) -> jax.Array:
        return pair.plain(x, *integers, static=static)

    return Derivative(
        primal=value,
        forward=lambda static, x, *integers: (value(static, x, *integers), integers),
        tangent=lambda static, integers, t, *_: pair.apply(t, *integers, static=static),
        cotangent=lambda static, integers, g: (
            pair.plain_transpose(g, *integers, static=static),
            *[None] * len(integers),
        ),
    )


def _reverse_only(rules: str, *operands: jax.Array) -> list[jax.Array]:
    """The operands of a `jax.custom_vjp`, marked so that forward mode is refused by the name of what has it."""
    return [primitives.reverse_only(x, rules) for x in operands]


def _check_static(function: str, static: Any) -> None:
    try:
        hash(static)
    except TypeError:
        raise TypeError(
            f"{function}: static must be hashable, but is {static!r}. Make it of tuples and numbers; "
            "an array is an operand."
        ) from None


@functools.lru_cache(maxsize=1024)
def _reversed(derivative: Derivative, static: Hashable) -> Callable[..., jax.Array]:
    """`jax.custom_vjp`: reverse mode only, and exactly the rule that was written."""

    @jax.custom_vjp
    def f(*operands: jax.Array) -> jax.Array:
        return (derivative.value or derivative.primal)(static, *operands)

    def forward(*operands: jax.Array) -> tuple[jax.Array, Any]:
        y, residuals = derivative.forward(static, *operands)
        return y, (residuals, [jnp.zeros(0, x.dtype) for x in operands])  # their dtypes, without their memory

    def backward(saved: Any, g: jax.Array) -> tuple[Any, ...]:
        residuals, likes = saved
        cotangents = derivative.cotangent(static, residuals, g)
        if not isinstance(cotangents, tuple) or len(cotangents) != len(likes):
            given = f"{len(cotangents)} entries" if isinstance(cotangents, tuple) else f"a {type(cotangents).__name__}"
            raise ValueError(
                f"binding.apply: derivative.cotangent must return a tuple of one entry per operand, "
                f"but {given} != {len(likes)}."
            )
        return tuple(None if c is None else c.astype(like.dtype) for c, like in zip(cotangents, likes, strict=True))

    f.defvjp(forward, backward)
    return jax.jit(f, inline=True)  # eagerly one program; traced, no trace


@functools.lru_cache(maxsize=1024)
def _linearised(derivative: Derivative, static: Hashable) -> Callable[..., jax.Array]:
    """`jax.custom_jvp`: the derivative is a linear map of the tangents, so every mode and order works."""

    @jax.custom_jvp
    def f(*operands: jax.Array) -> jax.Array:
        return (derivative.value or derivative.primal)(static, *operands)

    def jvp(operands: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        y, residuals = derivative.forward(static, *operands)
        known = [None if isinstance(t, SymbolicZero) else t for t in tangents]
        return y, derivative.tangent(static, residuals, *known).astype(y.dtype)

    f.defjvp(jvp, symbolic_zeros=True)
    return jax.jit(f, inline=True)
