"""What a gradient should be, and how far from it rounding may take one.

The truth is automatic differentiation of the plain function with every float carried in float64. The yardstick is
what automatic differentiation makes of it at the function's own precision, on this machine: sums, fused kernels,
TF32 and all. Both are sampled over several random cotangents g_j and points x_j, each entry of x moved by at most
one unit in the last place, and give for every entry of the gradient

    E = rms_j |automatic(x_j, g_j) − exact(x_j, g_j)|     what automatic differentiation errs by,
    V = rms_j |exact(x_j, g_j)|                           how large the entry is under any cotangent.

With v the exact value of an entry, M the median of V over the array, u = eps/2 the one rounding that nobody avoids,
and R the typical error relative to max(V, M) (its 90th percentile over 1.6, which makes it a root mean square that a
few kinks do not spoil), the entry may err by

    bound = max(16·E, 16·R·max(V, M, |v|), 8·u·|v|) + 16·eps64·|g|·|y|/|x|.

R keeps an entry from being held to samples that were lucky; with it few samples suffice for a large array. The last
term is for the truth's own rounding: in float64 too, 1 − tanh² is 0 where a rule may know better. The factors are not
tuned to a function. Errors of long sums have exponential tails: float32 convolutions, dense layers and layer
norms of 10⁶ entries showed 8 to 13 standard deviations at the worst entry, 3.4 at one in a hundred; and a rule written
in another order of operations may round twice where automatic differentiation rounds once (√2).

Rounding is scale free, so that float64 itself is measured in float32 and scaled by the ratio of the two eps. What it
is compared with then errs as much, so the bound is doubled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import Problem, gradient, wide

SPREAD = 16.0
# From how many entries on a function is large, and how many samples are taken of a small and of a large one.
LARGE = 100_000
SAMPLES = {False: 12, True: 3}
TRUTHS = {False: 3, True: 2}
Arrays = list[np.ndarray]


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled with 64-bit floats; float64 NumPy arrays in and out."""
    compiled = jax.jit(function)

    def call(*operands: Any) -> Any:
        with jax.enable_x64(True), _device():
            return jax.tree.map(np.asarray, compiled(*jax.tree.map(np.asarray, operands)))

    return call


def _device() -> Any:
    """TPUs have no float64; their host has."""
    tpu = jax.default_backend() == "tpu"
    return jax.default_device(jax.devices("cpu")[0]) if tpu else contextlib.nullcontext()


class Yardstick:
    """The truth at one point, and the bounds around it.

    Without a plain gradient (`reverse=False`: JAX has none for a `while_loop`) f's own stands in for the truth, and
    what the last place of x does to it for its error: the bounds are right in size, and the truth is not used.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, where: Sequence[np.ndarray], reverse: bool = True
    ) -> None:
        self.problem, self.reverse, self.large = problem, reverse, large(problem)
        self.xs = [wide(x) for x in problem.xs]
        self.gs = [problem.cotangents(rng, where) for _ in range(SAMPLES[self.large])]
        own: Callable[..., Any] = jax.jit(gradient(problem.plain if reverse else problem.f))
        exact = in_float64(gradient(functools.partial(problem.plain, floats=jnp.float64)))
        self._exact = exact if reverse else own
        scale, narrow = 1.0, None
        if reverse and any(dtype == np.float64 for dtype in self._dtypes()):
            own = in_float64(gradient(functools.partial(problem.plain, floats=jnp.float32)))
            scale, narrow = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps), np.dtype(np.float32)
        self.truth = [self.exact(problem.xs, gs) for gs in self.gs[: TRUTHS[self.large]]]
        errors, values = [], []
        for gs in self.gs:
            xs = problem.moved(rng, dtype=narrow)
            gs = gs if narrow is None else [g.astype(narrow) for g in gs]
            exactly = self.exact(xs if reverse else problem.xs, gs)
            values.append([*exactly[0], *exactly[1]])
            pairs = zip(jax.tree.leaves(own(xs, gs)), values[-1], strict=True)
            errors.append([scale * _finite(wide(a) - b) for a, b in pairs])
        self._errors = [list(column) for column in zip(*errors, strict=True)]
        self._scales = [_Scale.of(e, v) for e, v in zip(self._errors, zip(*values, strict=True), strict=True)]
        self._spread = SPREAD if narrow is None else 2 * SPREAD
        self._kinks: dict[int, Arrays] = {}
        slope = max(size(wide(g)) * size(y) for g, y in zip(self.gs[0], self.truth[0][0], strict=True))
        self._unit = [0.0 for _ in problem.ys] + [slope / size(x) for x in self.xs]

    def exact(self, xs: Sequence[Any], gs: Sequence[Any]) -> tuple[Arrays, Arrays]:
        """The values and the gradient in float64."""
        convert = wide if self.reverse else np.asarray
        ys, dxs = self._exact([convert(x) for x in xs], [convert(g) for g in gs])
        return list(map(wide, ys)), list(map(wide, dxs))

    def bounds(self, values: Sequence[np.ndarray], of: str = "gradient") -> Arrays:
        """How far rounding may take each of `values`, exact gradients (or results) at or near this point."""
        count, dtypes = len(self.problem.ys), self._dtypes()
        chosen = range(count) if of == "values" else range(count, len(dtypes))
        return [self._bound(i, v, dtypes[i]) for i, v in zip(chosen, values, strict=True)]

    def _dtypes(self) -> list[Any]:
        return [*(y.dtype for y in self.problem.ys), *(x.dtype for x in self.problem.xs)]

    def _bound(self, i: int, value: np.ndarray, dtype: Any) -> np.ndarray:
        scale, value = self._scales[i], np.nan_to_num(np.abs(value), posinf=0)
        rounded = float(jnp.finfo(dtype).eps) / 4 * value
        error = np.maximum(scale.error, scale.ratio * np.maximum(scale.typical, value))
        return self._spread * (np.maximum(error, rounded) + self._unit[i] * np.finfo(np.float64).eps) + least(dtype)

    @functools.cached_property
    def known(self) -> Arrays:
        """Where the first exact gradient is a number that its dtype has room for."""
        return [known(dx, x.dtype) for dx, x in zip(self.truth[0][1], self.problem.xs, strict=True)]

    @functools.cached_property
    def first(self) -> Arrays:
        """The bounds of the first exact gradient."""
        return self.bounds(self.truth[0][1])

    def along(self, direction: Sequence[np.ndarray]) -> float:
        """How far rounding may take ⟨the first gradient, direction⟩; entries may err alike: sums are measured too."""
        samples = zip(*self._errors[len(self.problem.ys) :], strict=True)
        sums = [sum(inner(e, u) for e, u in zip(sample, direction, strict=True)) for sample in samples]
        entries = sum(float(np.sum((b * u) ** 2)) for b, u in zip(self.first, direction, strict=True) if u.any())
        return max(self._spread * float(np.sqrt(np.mean(np.square(sums)))), float(np.sqrt(entries)))

    def relative(self) -> float:
        """How far rounding typically takes a whole array, relative to itself: the worst of all arrays."""
        scales = zip(self._scales, self._dtypes(), strict=True)
        return self._spread * max(max(scale.ratio, float(jnp.finfo(dtype).eps)) for scale, dtype in scales)

    def uncertain(self) -> int:
        """How many entries of the gradient the arguments' own precision does not determine to one digit."""
        typical = [scale.typical for scale in self._scales[len(self.problem.ys) :]]
        return sum(int((b > 0.1 * v)[v > 0].sum()) for b, v in zip(self.first, typical, strict=True))

    def kinks(self, xs: Sequence[Any], gs: Sequence[Any], rng: np.random.Generator) -> Arrays:
        """By how much each entry of the gradient jumps between points on opposite sides of x, too close to matter.

        A smooth gradient changes by 64 times less between points 64 times closer; a jump stays. Of a tie of k, two in k
        pairs of points show an entry's jump, hence so many of them; where the first few show none, there is none.
        """
        key = hash(b"".join(np.asarray(a).tobytes() for a in (*xs, *gs)))
        if key not in self._kinks:
            jumps = [np.zeros(x.shape) for x in self.xs]
            for draw in range(8 if self.large else 32):
                if draw == (1 if self.large else 4) and not any(j.any() for j in jumps):
                    break
                steps = [size(x) * rng.standard_normal(x.shape) for x in self.xs]
                far, near = (self._across(xs, gs, [by * s for s in steps]) for by in (2.0**-30, 2.0**-36))
                jumps = [np.fmax(j, np.where(n > f / 2, n, 0)) for j, f, n in zip(jumps, far, near, strict=True)]
            self._kinks[key] = jumps
        return self._kinks[key]

    def _across(self, xs: Sequence[Any], gs: Sequence[Any], steps: Arrays) -> Arrays:
        (_, ahead), (_, behind) = (
            self.exact([wide(x) + sign * s for x, s in zip(xs, steps, strict=True)], gs) for sign in (1, -1)
        )
        return [np.abs(a - b) for a, b in zip(ahead, behind, strict=True)]


def size(x: np.ndarray) -> float:
    """The root mean square of an array's finite entries; 1 if they are all zero."""
    return float(_rms(x)) or 1.0 if x.size else 1.0


def _rms(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The root mean square; what is not finite says nothing."""
    x = _finite(x)
    largest = float(np.abs(x).max(initial=0)) or 1.0  # squares of very large or small numbers have no room
    return largest * np.sqrt(np.mean(np.square(x / largest), axis=axis))


def ratios(got: np.ndarray, want: np.ndarray, bound: np.ndarray, dtype: Any) -> np.ndarray:
    """The error of every entry in bounds; 0 where the truth is not finite in `dtype`, for then it is not known."""
    ratio = np.abs(got - want) / bound
    return np.where(~known(want, dtype) | (got == want), 0, np.where(np.isnan(ratio), np.inf, ratio))


def at_kink(got: np.ndarray, want: np.ndarray, jumps: np.ndarray) -> np.ndarray:
    """Where a number differs from the truth by no more than the gradient jumps there: any convention has a point."""
    return np.isfinite(got) & (jumps >= 0.25 * np.abs(got - want))


def known(exact: np.ndarray, dtype: Any) -> np.ndarray:
    """Where the truth is a number that `dtype` has room for."""
    return np.abs(exact) <= float(jnp.finfo(dtype).max)


def large(problem: Problem) -> bool:
    return sum(x.size for x in problem.xs) + sum(y.size for y in problem.ys) > LARGE


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """⟨a, b⟩ over the entries where b is not 0; a may be infinite at others."""
    there = b != 0
    return float(np.dot(a[there], b[there]))


class _Scale(NamedTuple):
    """E, max(V, M) and R of an array."""

    error: np.ndarray
    typical: np.ndarray
    ratio: float

    @classmethod
    def of(cls, errors: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> _Scale:
        error, typical = (_rms(np.stack(a), axis=0) for a in (errors, values))
        there = typical > 0
        if not there.any():
            return cls(error, typical, 0.0)
        typical = np.where(there, np.maximum(typical, np.median(typical[there])), 0)
        relative = np.abs(np.stack(errors))[:, there] / typical[there]
        return cls(error, typical, float(np.quantile(relative, 0.9)) / 1.6)


def _finite(x: np.ndarray) -> np.ndarray:
    """A sample that is not finite says nothing about rounding."""
    return np.where(np.isfinite(x), x, 0)


def least(dtype: Any) -> float:
    """What rounds to zero: below float16's subnormals, and below the normal range of the others."""
    info = jnp.finfo(dtype)
    return float(info.smallest_subnormal if info.bits == 16 and info.nmant == 10 else info.tiny)
