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

from jaxconv.gradcheck.problem import Problem, wide
from jaxconv.gradcheck.yardstick import Arrays, in_float64
from jaxconv.transforms import bind, called, interpret

_MAXIMA = ("reduce_window_max", "reduce_max")
# Of more sums than this, the first are looked at.
_SUMS = 32


class Mistake(NamedTuple):
    """What the transposes of one convolution do wrong, per spatial axis; nothing, if all is 0."""

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
        return cls(params, max(1, *params["rhs_dilation"], *lopsided))

    @property
    def rank(self) -> int:
        return len(self.params["padding"])

    @property
    def right(self) -> Mistake:
        nothing = (0,) * self.rank
        return Mistake(nothing, nothing, nothing)

    def __call__(self, x: Any, w: Any, inset: int = 0) -> Any:
        """conv(x, w), where x has `inset` more entries at each end than the program's."""
        p = self.params
        pads = [(lo - inset * d, hi - inset * d) for (lo, hi), d in zip(p["padding"], p["lhs_dilation"], strict=True)]
        names = ("lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "batch_group_count")
        return lax.conv_general_dilated(x, w, p["window_strides"], pads, **{name: p[name] for name in names})

    def mistaken(self, x: Any, w: Any, mistake: Any) -> Any:
        """conv(x, w), whose gradient makes a mistake."""
        axes = self.params["dimension_numbers"].lhs_spec[2:]

        def widened(x: Any, by: int) -> Any:
            return jnp.pad(x, [(by if axis in axes else 0,) * 2 for axis in range(x.ndim)])

        def shifted(x: Any, by: Any, shape: tuple[int, ...]) -> Any:
            """The middle of x, moved by so many entries."""
            starts = [self.reach - by[axes.index(axis)] if axis in axes else 0 for axis in range(x.ndim)]
            return lax.dynamic_slice(x, starts, shape)

        @jax.custom_vjp
        def conv(x: Any, w: Any, mistake: Any) -> Any:
            return self(x, w)

        def backward(kept: Any, g: Any) -> Any:
            x, w, (flips, dx, dw) = kept
            kernel = w
            for flip, axis in zip(flips, self.params["dimension_numbers"].rhs_spec[2:], strict=True):
                kernel = jnp.where(flip, jnp.flip(kernel, axis), kernel)
            beyond = widened(x, self.reach)
            (to_x,) = jax.vjp(lambda x: self(x, kernel, self.reach), beyond)[1](g)
            moved = shifted(widened(x, 2 * self.reach), dw, beyond.shape)
            (to_w,) = jax.vjp(lambda w: self(moved, w, self.reach), w)[1](g)
            return shifted(to_x, dx, x.shape), to_w, None

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
        (paid,) = spread(jnp.where(stacked == y, g, 0))
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
        self, gs: Sequence[Any], mistakes: dict[int, Mistake] | None = None, everyone: bool = False
    ) -> tuple[Arrays, Arrays]:
        """The gradient with mistakes in some convolutions, or in all maxima; and δ at the program's sums."""
        told = [tuple(map(np.asarray, (mistakes or {}).get(i, c.right))) for i, c in enumerate(self.convolutions)]
        dxs, deltas = self._compiled(self._xs, self._sums, [wide(g) for g in gs], told, np.asarray(everyone))
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
