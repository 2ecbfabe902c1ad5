"""The function once more, in float64, with a backward pass that can be told to make the usual mistakes.

The plain program is evaluated equation by equation. A convolution's transposes then take three numbers per spatial
axis: whether the kernel that δ meets is flipped, and by how many entries dx and the x of dw are shifted; a maximum's
says whether each of several winners is paid. They are operands: one compilation serves all mistakes at all places.
Beside the gradient it returns δ at every sum, for a bias's gradient is a sum of that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv import forward
from jaxconv.gradcheck.problem import Problem, wide
from jaxconv.gradcheck.yardstick import Arrays, in_float64
from jaxconv.transforms.program import bind, called, interpret

_MAXIMA = ("reduce_window_max", "reduce_max")
# Of more sums than this, the first are looked at.
_SUMS = 32


class Mistake(NamedTuple):
    """What the transposes of one convolution do wrong, per spatial axis; nothing, if all is 0.

    Attributes:
      flips: whether the kernel that δ meets is flipped.
      dx: by how much the gradient in x is shifted, along the axis that the kernel moves on (x dilated).
      dw: by how much x is, when the kernel's gradient is taken from it.
    """

    flips: tuple[int, ...]
    dx: tuple[int, ...]
    dw: tuple[int, ...]


class Convolution(NamedTuple):
    """A convolution of the program.

    Attributes:
      params: of `lax.conv_general_dilated`, resolved.
      reach: the longest shift that it can be told.
    """

    params: dict[str, Any]
    reach: int

    @classmethod
    def of(cls, params: dict[str, Any]) -> Convolution:
        lopsided = [abs(lo - hi) for lo, hi in params["padding"]]
        return cls(params, max([1, *params["lhs_dilation"], *params["rhs_dilation"], *lopsided]))

    @property
    def rank(self) -> int:
        return len(self.params["padding"])

    @property
    def right(self) -> Mistake:
        nothing = (0,) * self.rank
        return Mistake(nothing, nothing, nothing)

    def mistaken(self, x: Any, w: Any, mistake: Any) -> Any:
        """conv(x, w), whose gradient makes a mistake."""
        p, reach = self.params, self.reach
        spec = p["dimension_numbers"]
        axes, rank = spec.lhs_spec[2:], range(x.ndim)
        interior = {axis: d - 1 for axis, d in zip(axes, p["lhs_dilation"], strict=True)}

        def widened(x: Any, by: int, dilated: bool) -> Any:
            """x dilated, if it is not, and with more entries around it."""
            edges = [(by, by, 0 if dilated else interior[a]) if a in axes else (0, 0, 0) for a in rank]
            return lax.pad(x, jnp.zeros((), x.dtype), edges)

        def moved(x: Any, by: Any, shape: tuple[int, ...]) -> Any:
            """The middle of x, shifted by so many entries."""
            return lax.dynamic_slice(x, [reach - by[axes.index(a)] if a in axes else 0 for a in rank], shape)

        def plain(x: Any, w: Any, widened: bool = False) -> Any:
            pads = [(lo - reach * widened, hi - reach * widened) for lo, hi in p["padding"]]
            dilation = (1,) * self.rank if widened else p["lhs_dilation"]
            groups = p["feature_group_count"], p["batch_group_count"]
            options = (p["window_strides"], pads, dilation, p["rhs_dilation"], spec, *groups)
            return forward.conv_general_dilated(x, w, *options)

        @jax.custom_vjp
        def conv(x: Any, w: Any, mistake: Any) -> Any:
            return plain(x, w)

        def backward(kept: Any, g: Any) -> Any:
            x, w, (flips, dx, dw) = kept
            kernel = w
            for flip, axis in zip(flips, spec.rhs_spec[2:], strict=True):
                kernel = jnp.where(flip, jnp.flip(kernel, axis), kernel)
            beyond, dilated = widened(x, reach, False), widened(x, 0, False)
            (to_x,) = jax.vjp(lambda x: plain(x, kernel, True), beyond)[1](g)
            to_x = moved(to_x, dx, dilated.shape)[tuple(slice(None, None, interior.get(a, 0) + 1) for a in rank)]
            read = moved(widened(beyond, reach, True), dw, beyond.shape)
            (to_w,) = jax.vjp(lambda w: plain(read, w, True), w)[1](g)
            return to_x, to_w, None

        conv.defvjp(lambda *operands: (conv(*operands), operands), backward)
        return conv(x, w, mistake)


def _maximum(eqn: Any, x: Any, everyone: Any) -> Any:
    """A maximum whose gradient goes to every winner in full, if it is told so."""

    def plain(x: Any) -> Any:
        return bind(eqn, [x], eqn.params)[0]

    @jax.custom_vjp
    def maximum(x: Any, everyone: Any) -> Any:
        return plain(x)

    def backward(kept: Any, g: Any) -> Any:
        x, y, everyone = kept
        candidates = functools.partial(_candidates, eqn, shape=y.shape)
        stacked, spread = jax.vjp(candidates, x)
        (paid,) = spread(jnp.where(stacked == y[None], g[None], 0))
        (right,) = jax.vjp(plain, x)[1](g)
        return jnp.where(everyone, paid, right), None

    maximum.defvjp(lambda x, everyone: (plain(x), (x, plain(x), everyone)), backward)
    return maximum(x, everyone)


def _candidates(eqn: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """(taps, *shape): of which the maximum is the maximum over the first axis."""
    p = eqn.params
    if eqn.primitive.name == "reduce_max":
        front = jnp.moveaxis(x, p["axes"], range(len(p["axes"])))
        return front.reshape(-1, *shape)
    edges = [(lo, hi, d - 1) for (lo, hi), d in zip(p["padding"], p["base_dilation"], strict=True)]
    padded, taps = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges), []
    for tap in itertools.product(*map(range, p["window_dimensions"])):
        start = [t * d for t, d in zip(tap, p["window_dilation"], strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, shape, p["window_strides"], strict=True)]
        taps.append(lax.slice(padded, start, stop, p["window_strides"]))
    return jnp.stack(taps)


class Laboratory:
    """One function, ready to make mistakes.

    Attributes:
      convolutions: those of its program, in order; what is inside loops and branches stays as it is.
      maxima: how many there are.
    """

    def __init__(self, problem: Problem) -> None:
        self._xs = [wide(x) for x in problem.xs]
        with jax.enable_x64(True):
            given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self._xs]
            self._program = jax.make_jaxpr(functools.partial(problem.plain, floats=jnp.float64))(given)
        equations = list(_equations(self._program.jaxpr))
        self.convolutions = [Convolution.of(e.params) for e in equations if _is(e, "conv_general_dilated")]
        self.maxima = sum(_is(e, *_MAXIMA) for e in equations)
        sums = [v.aval for e in equations if _is(e, "add") for v in e.outvars]
        self._sums = [np.zeros(a.shape) for a in sums[:_SUMS]]
        self._compiled = in_float64(self._differentiated)

    def gradient(
        self,
        gs: Sequence[Any],
        mistakes: dict[int, Mistake] | None = None,
        everyone: bool = False,
        xs: Sequence[Any] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """The gradient, there or at `xs`, with mistakes in some convolutions or in all maxima; and δ at the sums."""
        told = [tuple(map(np.asarray, (mistakes or {}).get(i, c.right))) for i, c in enumerate(self.convolutions)]
        at = self._xs if xs is None else list(map(wide, xs))
        dxs, deltas = self._compiled(at, self._sums, [wide(g) for g in gs], told, np.asarray(everyone))
        return list(dxs), list(deltas)

    def _differentiated(self, xs: Any, sums: Any, gs: Any, told: Any, everyone: Any) -> Any:
        return jax.vjp(lambda xs, sums: self._values(xs, sums, told, everyone), xs, sums)[1](list(gs))

    def _values(self, xs: Any, sums: Any, told: Any, everyone: Any) -> list[Any]:
        convolutions = zip(self.convolutions, told, strict=True)
        ahead = iter(sums)

        def evaluate(eqn: Any, operands: list[Any]) -> list[Any]:
            if (program := called(eqn)) is not None:
                return interpret(program.jaxpr, program.consts, operands, evaluate)
            if _is(eqn, "conv_general_dilated"):
                (x, w), (conv, mistake) = operands, next(convolutions)
                return [conv.mistaken(x, w, mistake)]
            if _is(eqn, *_MAXIMA):
                return [_maximum(eqn, operands[0], everyone)]
            results = bind(eqn, operands, eqn.params)
            if _is(eqn, "add") and (nothing := next(ahead, None)) is not None:
                return [results[0] + nothing.astype(results[0].dtype)]
            return results

        return interpret(self._program.jaxpr, self._program.consts, xs, evaluate)


def _is(eqn: Any, *names: str) -> bool:
    """Whether an equation is one of these, of real numbers."""
    return eqn.primitive.name in names and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """In the order in which they are evaluated, those of programs called once included."""
    for eqn in jaxpr.eqns:
        program = called(eqn)
        yield from [eqn] if program is None else _equations(program.jaxpr)
