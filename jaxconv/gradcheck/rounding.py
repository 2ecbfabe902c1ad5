"""What rounding may do to a program: the program itself, in float64, with every rounding replaced by noise.

Each equation that rounds has its results multiplied by 1 + a·u·ξ, with u = eps/2 of the dtype in which the function
computes them, a the amplitude, and ξ a random number of variance 1. A sum of K terms is allowed what the roughest order
makes of it, one term after the other: its partial sums s_k err by u·|s_k| each, √(Σ s_k²) in all, which is √(K/2) times
the norm of the terms if they have random signs, and √(K/3) times the sum if they all agree. Noise of size a·u·√(K/2) on
each term's factor has just that effect, to first order in u.

What comes out differs from the exact result by what the rounding errors of any program with these equations may add up
to, whichever compiler orders and fuses them: Σ_i (∂out/∂v_i)·v_i·u·ξ_i over all intermediate values v_i. It is a
property of the computation at a point. An entry that one program happens to hit exactly has the same spread as its
neighbours; one that no rounding can reach (an unread input, a dead unit) has none; and one behind a ReLU or a maximum
that is decided by less than rounding shows the whole jump.

Noise is a function of the value that it falls on, as rounding is: what is equal stays equal, and zero stays zero. What
the dtype can represent is not rounded; where it looks so in float64 too because a function saturates or a sum absorbs
its smaller term, the noise is that of float64, in which the truth is computed. What no rounding touches is left alone:
copies, choices, signs, casts to a wider type, sums of whole numbers.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA CSD-970002 (1997); the sum's constant from N. J. Higham, Accuracy and
  Stability of Numerical Algorithms (2002), section 4.2, with independent errors.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from jaxconv import primitives
from jaxconv.transforms.automatic import ruled
from jaxconv.transforms.precision import carried, evaluate
from jaxconv.transforms.program import called, interpret

# Equations whose results are among their operands' values, up to sign: nothing is rounded.
_EXACT = {
    *("abs", "argmax", "argmin", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp", "concatenate", "copy"),
    *("copy_p", "cummax", "cummin", "dynamic_slice", "dynamic_update_slice", "expand_dims", "floor", "gather", "imag"),
    *("iota", "max", "min", "neg", "optimization_barrier", "pad", "pmax", "pmin", "real", "reduce_max", "reduce_min"),
    *("reduce_window_max", "reduce_window_min", "reshape", "rev", "round", "scatter", "select_and_gather_add"),
    *("select_n", "sharding_constraint", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k"),
    *("transpose", "zeros_like"),
}
# Equations whose results float64 rounds as well where they look exact, as those that saturate do.
_TRANSCENDENTAL = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos", "cosh"),
    *("digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma", "igammac", "lgamma", "log", "log1p"),
    *("logistic", "pow", "regularized_incomplete_beta", "sin", "sinh", "tan", "tanh"),
}
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class _Noise(NamedTuple):
    """How large the noise is, in units of u, and where it comes from: a key, and a count of the equations met."""

    amplitude: Any
    key: Any
    met: Iterator[int]

    def __call__(self, bits: Any) -> Any:
        """Uniform numbers of mean 0 and variance 1, from integers and the next equation's key."""
        own = np.uint64(next(self.met) * int(_MIX) % 2**64)
        h = (bits ^ (self.key ^ own)) * _GOLDEN
        h = (h ^ (h >> np.uint64(32))) * _MIX
        unit = lax.bitcast_convert_type((h >> np.uint64(12)) | np.uint64(0x3FF0000000000000), jnp.float64)
        return (unit - 1.5) * math.sqrt(12)

    def at_step(self, i: Any) -> _Noise:
        """That of another pass through the same equations."""
        return self._replace(key=(self.key ^ i.astype(np.uint64)) * _GOLDEN)


def rounded(call: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """(amplitude, key, *operands) -> the results of `call` as float64, each rounding replaced by noise.

    Args:
      call: a function of pytrees of arrays; its equations are those of the dtypes of `examples`.
      examples: arrays or shapes with dtypes.

    The result takes a float, an unsigned 64-bit integer and arrays shaped like `examples`, floats in float64; it has to
    be traced with 64-bit types enabled.
    """
    closed, shapes = jax.make_jaxpr(call, return_shape=True)(*examples)
    tree = jax.tree.structure(shapes)

    def noisy(amplitude: Any, key: Any, *operands: Any) -> Any:
        ys = _run(closed, jax.tree.leaves(operands), _Noise(amplitude, key, itertools.count(1)))
        return jax.tree.unflatten(tree, ys)

    return noisy


_FLOAT64 = np.dtype(np.float64)


def _wide(x: Any) -> Any:
    return carried(x, _FLOAT64)


def _floats(v: Any) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.inexact)


def _run(closed: ClosedJaxpr, operands: Sequence[Any], noise: _Noise) -> list[Any]:
    consts = [*map(_wide, closed.consts)]
    return interpret(closed.jaxpr, consts, operands, functools.partial(_noisy, noise=noise), _wide)


def _noisy(eqn: JaxprEqn, operands: list[Any], noise: _Noise) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if (inner := ruled(eqn)) is not None:
        return _run(inner, operands, noise)
    if eqn.primitive in primitives.PLAIN:
        plain = functools.partial(primitives.PLAIN[eqn.primitive], **params)
        return _run(jax.make_jaxpr(plain)(*(v.aval for v in eqn.invars)), operands, noise)
    if name in ("scan", "while", "cond"):
        return {"scan": _scan, "while": _while, "cond": _cond}[name](eqn, operands, noise)
    if (inner := called(eqn)) is not None:
        return _run(inner, operands, noise)
    operands, terms = _noisy_terms(eqn, operands, noise)
    ys = evaluate(eqn, operands, _FLOAT64)
    if name in _EXACT or (name == "convert_element_type" and not _narrows(eqn)):
        return ys
    pairs: Any = zip(eqn.outvars, ys, strict=True)
    return [
        _noisy_value(y, v.aval.dtype, terms, noise, _exact(name, operands, y)) if _floats(v) else y for v, y in pairs
    ]


def _unit(v: Any) -> float:
    return float(jnp.finfo(v.aval.dtype).eps) / 2


def _narrows(eqn: JaxprEqn) -> bool:
    x: Any = eqn.invars[0]
    y: Any = eqn.outvars[0]
    return _floats(x) and _floats(y) and jnp.finfo(y.aval.dtype).nmant < jnp.finfo(x.aval.dtype).nmant


def _noisy_value(y: Any, dtype: Any, terms: float, noise: _Noise, exact: Any) -> Any:
    """One rounding of y to `dtype`, or several; to a spacing that stops shrinking below the smallest normal number.

    Where `dtype` can represent y there is none, but for that of float64 where y is not `exact` in it either.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = np.dtype(np.float32 if np.dtype(dtype).itemsize == 8 else np.float64)
        return lax.complex(*(_noisy_value(p, part, terms, noise, exact) for p in (jnp.real(y), jnp.imag(y))))
    info = jnp.finfo(dtype)
    unit: Any = float(info.eps) / 2
    if info.nmant < 52:
        represented = lax.reduce_precision(y, info.nexp, info.nmant) == y
        unit = jnp.where(represented, jnp.where(exact, 0.0, float(jnp.finfo(_FLOAT64).eps) / 2), unit)
    size = jnp.maximum(jnp.abs(y), float(info.tiny))
    noisy = y + noise.amplitude * math.sqrt(terms) * unit * noise(_bits(y)) * size
    return jnp.where((y == 0) | jnp.isinf(y), y, noisy)


def _exact(name: str, operands: Sequence[Any], y: Any) -> Any:
    """Where a result that a narrower dtype can represent is free of float64's rounding too.

    1 + 1e-20 is not, nor is tanh(30) = 1; but 0.5·6 and 2 + 1 are, and floor of them is what it should be.
    """
    if name in ("add", "add_any", "sub"):
        a, b = operands[0], operands[1] if name != "sub" else -operands[1]
        return (y - a == b) & (y - b == a)
    return name not in _TRANSCENDENTAL


def _bits(y: Any) -> Any:
    return lax.bitcast_convert_type(y, jnp.uint64)


# Sums


def _noisy_terms(eqn: JaxprEqn, operands: list[Any], noise: _Noise) -> tuple[list[Any], float]:
    """The operands of a sum with noise on each term; and how many terms are still to be accounted for."""
    name, params = eqn.primitive.name, eqn.params
    if not _floats(eqn.outvars[0]):
        return operands, 1.0
    if name in ("dot_general", "conv_general_dilated"):
        which, axes = 1, _contracted(name, params)
    elif name in ("reduce_sum", "reduce_prod"):
        which, axes = 0, tuple(params["axes"])
    else:
        return operands, _terms(name, params, eqn.invars[:1])
    x = operands[which]
    count = math.prod(x.shape[a] for a in axes)
    if count < 2:
        return operands, 1.0
    # Sums of 16-bit numbers are carried in float32 on every platform.
    unit = min(_unit(eqn.outvars[0]), float(jnp.finfo(jnp.float32).eps) / 2)
    shape = [x.shape[a] if a in axes else 1 for a in range(x.ndim)]
    position = lax.iota(jnp.uint64, count).reshape(shape)
    spread = noise.amplitude * unit * math.sqrt(count / 2)
    whole = x == jnp.round(x) if jnp.issubdtype(x.dtype, jnp.floating) else False  # counts and masks add up exactly
    noisy = jnp.where(whole, x, x * (1 + spread * noise(position * _MIX)))
    return [*operands[:which], noisy, *operands[which + 1 :]], 1.0


def _contracted(name: str, params: dict[str, Any]) -> tuple[int, ...]:
    """The axes of the second operand that a product sums over."""
    if name == "dot_general":
        return tuple(params["dimension_numbers"][0][1])
    (_, channels, *taps) = params["dimension_numbers"].rhs_spec
    return (channels, *taps)


def _terms(name: str, params: dict[str, Any], summed: Sequence[Any]) -> float:
    if name == "reduce_window_sum":
        return max(1.0, math.prod(params["window_dimensions"]) / 2)
    if name in ("cumsum", "cumprod", "cumlogsumexp"):
        return max(1.0, summed[0].aval.shape[params["axis"]] / 2)
    return 1.0


# Loops and branches


def _scan(eqn: JaxprEqn, operands: list[Any], noise: _Noise) -> list[Any]:
    params, body = eqn.params, eqn.params["jaxpr"]
    carried = _not_scanned(eqn.outvars, body.out_avals)
    constants = _not_scanned(eqn.invars, body.in_avals) - carried
    held, carry, xs = operands[:constants], operands[constants : constants + carried], operands[constants + carried :]

    def step(state: Any, x: Any) -> Any:
        i, carry = state
        ys = _run(body, [*held, *carry, *x], noise.at_step(i))
        return (i + 1, ys[:carried]), ys[carried:]

    start = (jnp.uint32(1), carry)
    (_, carry), ys = lax.scan(step, start, xs, length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def _not_scanned(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many have no more axes outside the loop than in its body; each version of JAX counts them in its own way."""
    return sum(v.aval.ndim == a.ndim for v, a in zip(outside, inside, strict=True))


def _while(eqn: JaxprEqn, operands: list[Any], noise: _Noise) -> list[Any]:
    """A loop as long as without noise, which beside the noisy values carries those that the condition asks for."""
    params = eqn.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    for_test, for_body, state = operands[:tests], operands[tests : tests + bodies], operands[tests + bodies :]
    test, body, quiet = params["cond_jaxpr"], params["body_jaxpr"], noise._replace(amplitude=0.0)

    def go_on(state: Any) -> Any:
        return _run(test, [*for_test, *state[1]], quiet)[0]

    def step(state: Any) -> Any:
        i, exact, values = state
        return i + 1, _run(body, [*for_body, *exact], quiet), _run(body, [*for_body, *values], noise.at_step(i))

    return list(lax.while_loop(go_on, step, (jnp.uint32(1), state, state))[2])


def _cond(eqn: JaxprEqn, operands: list[Any], noise: _Noise) -> list[Any]:
    def branch(closed: ClosedJaxpr) -> Callable[..., Any]:
        return lambda *xs: _run(closed, xs, noise)

    index, *rest = operands
    return list(lax.switch(index, [branch(closed) for closed in eqn.params["branches"]], *rest))
