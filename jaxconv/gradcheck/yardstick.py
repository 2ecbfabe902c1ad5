"""What a gradient should be, and how far from it rounding may take one.

The truth is automatic differentiation of the plain function with every float carried in float64. The yardstick is
what automatic differentiation makes of it at the function's own precision, on this machine: sums, fused kernels,
TF32 and all. Both are sampled over several random cotangents g_j and points x_j, each entry of x moved by at most
one unit in the last place, and give for every entry of the gradient

    E = rms_j |automatic(x_j, g_j) − exact(x_j, g_j)|     what automatic differentiation errs by,
    V = rms_j |exact(x_j, g_j)|                           how large the entry is under any cotangent.

An entry may then err by

    bound = 8 · max(E, median E, median(E/V)·V, u·|v|)

with v its exact value and u = eps/2, the one rounding that nobody avoids. The medians, over the array, keep an entry
from being held to samples that were lucky. The factor 8 is not tuned to any function: the largest of 10⁹ normal
deviates is 6, and a rule written in another order of operations may round twice where automatic differentiation
rounds once (√2).

Rounding is scale free, so that float64 itself is measured in float32 and scaled by the ratio of the two eps. What it
is compared with then errs as much, so the bound is doubled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import Problem, gradient, wide

SAMPLES = 12
SPREAD = 8.0
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
    return jax.default_device(jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None)


class Yardstick:
    """The truth at one point, and the bounds around it.

    Without a plain gradient (`reverse=False`: JAX has none for a `while_loop`) f's own stands in for the truth, and
    what the last place of x does to it for its error: the bounds are right in size, and the truth is not used.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, where: Sequence[np.ndarray], reverse: bool = True
    ) -> None:
        self.problem, self.reverse = problem, reverse
        self.xs = [wide(x) for x in problem.xs]
        self.gs = [problem.cotangents(rng, where) for _ in range(SAMPLES)]
        own: Callable[..., Any] = jax.jit(gradient(problem.plain if reverse else problem.f))
        exact = in_float64(gradient(functools.partial(problem.plain, floats=jnp.float64)))
        self._exact = exact if reverse else own
        scale, narrow = 1.0, None
        if reverse and any(dtype == np.float64 for dtype in self._dtypes()):
            own = in_float64(gradient(functools.partial(problem.plain, floats=jnp.float32)))
            scale, narrow = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps), np.dtype(np.float32)
        self.truth = [self.exact(problem.xs, gs) for gs in self.gs]
        errors, values = [], []
        for gs, truth in zip(self.gs, self.truth, strict=True):
            xs = problem.moved(rng, dtype=narrow)
            gs = gs if narrow is None else [g.astype(narrow) for g in gs]
            exactly = self.exact(xs, gs) if reverse else truth
            values.append([*exactly[0], *exactly[1]])
            pairs = zip(jax.tree.leaves(own(xs, gs)), values[-1], strict=True)
            with np.errstate(invalid="ignore"):
                errors.append([scale * _finite(wide(a) - b) for a, b in pairs])
        self._errors, self._values = _by_array(errors), _by_array(values)
        self._spread = SPREAD if narrow is None else 2 * SPREAD

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
        errors, typical = _rms(self._errors[i]), _rms(self._values[i])
        half = float(jnp.finfo(dtype).eps) / 2 * np.nan_to_num(np.abs(value), posinf=0)
        pooled = np.maximum(_median(errors, typical > 0), _ratio(errors, typical) * typical)
        return self._spread * np.maximum(np.maximum(errors, pooled), half) + _least(dtype)

    def along(self, direction: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> float:
        """How far rounding may take ⟨gradient, direction⟩: entries may err alike, so the sum is measured too."""
        count = len(self.problem.ys)

        sums = sum(np.tensordot(e, u, u.ndim) for e, u in zip(self._errors[count:], direction, strict=True))
        entries = sum(float(np.sum((b * u) ** 2)) for b, u in zip(self.bounds(values), direction, strict=True))
        return max(self._spread * float(np.sqrt(np.mean(np.square(sums)))), float(np.sqrt(entries)))

    def relative(self) -> float:
        """How far rounding typically takes a whole array, relative to itself: the worst of all arrays."""
        arrays = zip(self._errors, self._values, self._dtypes(), strict=True)
        return self._spread * max(max(_ratio(_rms(e), _rms(v)), float(jnp.finfo(d).eps)) for e, v, d in arrays)

    def uncertain(self) -> int:
        """How many entries of the gradient the arguments' own precision does not determine to one digit."""
        typical = [_rms(values) for values in self._values[len(self.problem.ys) :]]
        bounds = self.bounds(self.truth[0][1])
        return sum(int(((b > 0.1 * v) & (v > 0)).sum()) for b, v in zip(bounds, typical, strict=True))

    def kinks(self, xs: Sequence[Any], gs: Sequence[Any], rng: np.random.Generator) -> Arrays:
        """By how much each entry of the gradient jumps between points on opposite sides of x, too close to matter.

        A smooth gradient changes by 64 times less between points 64 times closer; a jump stays. Of a tie of k, two in k
        pairs of points show an entry's jump, hence so many of them; where the first few show none, there is none.
        """
        jumps = [np.zeros(x.shape) for x in self.xs]
        for draw in range(32):
            if draw == 4 and not any(j.any() for j in jumps):
                break
            steps = [size(x) * rng.standard_normal(x.shape) for x in self.xs]
            far, near = (self._across(xs, gs, [by * s for s in steps]) for by in (2.0**-30, 2.0**-36))
            jumps = [np.fmax(j, np.where(n > f / 2, n, 0)) for j, f, n in zip(jumps, far, near, strict=True)]
        return jumps

    def _across(self, xs: Sequence[Any], gs: Sequence[Any], steps: Arrays) -> Arrays:
        (_, ahead), (_, behind) = (
            self.exact([wide(x) + sign * s for x, s in zip(xs, steps, strict=True)], gs) for sign in (1, -1)
        )
        return [np.abs(a - b) for a, b in zip(ahead, behind, strict=True)]


def size(x: np.ndarray) -> float:
    """The root mean square of an array's entries; 1 if they are all zero."""
    return float(np.sqrt(np.mean(np.square(x)))) or 1.0 if x.size else 1.0


def _by_array(samples: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """From arrays by sample to samples by array."""
    return [np.stack(column) for column in zip(*samples, strict=True)]


def _finite(x: np.ndarray) -> np.ndarray:
    """A sample that is not finite says nothing about rounding."""
    return np.where(np.isfinite(x), x, 0)


def _rms(samples: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(_finite(samples)), axis=0))


def _median(x: np.ndarray, where: Any) -> float:
    return float(np.median(x[where])) if np.any(where) else 0.0


def _ratio(errors: np.ndarray, typical: np.ndarray) -> float:
    """The median of E/V over the array."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _median(errors / typical, typical > 0)


def _least(dtype: Any) -> float:
    """What rounds to zero: below float16's subnormals, and below the normal range of the others."""
    info = jnp.finfo(dtype)
    return float(info.smallest_subnormal if info.bits == 16 and info.nmant == 10 else info.tiny)
