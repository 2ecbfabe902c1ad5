"""What a gradient should be, and how far from it rounding may take one.

The truth is automatic differentiation of the plain function with every float carried in float64. How far from it a
right gradient may be is a property of the computation, not of one program's luck: `rounding.py` runs automatic
differentiation's own equations with noise in place of each rounding, `AMPLITUDE` times as large, and D_j is by how much
the j-th such run differs from the exact one. Per entry, over the runs,

    P = 2·rms_j |D_j| + max_j |D_j|

is about 15 times the root mean square of one rounding of every intermediate result. Long sums have exponential tails:
float32 convolutions, dense layers and layer norms of 10⁶ entries showed 8 to 13 standard deviations at the worst entry,
and a rule in another order of operations may round twice where automatic differentiation rounds once. The largest
counts because gradients jump: a ReLU whose input is nearer to zero than rounding shows its jump in some runs and not in
others, and all of it must be allowed.

How rough this machine's arithmetic is (TF32, bfloat16 passes, fused kernels) is measured: λ is the typical error of
automatic differentiation at the function's own precision, in units of one rounding (the 90th percentile over the
entries of |error|/rms|D_j/a| over 1.6, which a few jumps do not spoil), or 1 if that is less, for another program may
round where this one did not. Where λ > 4 the amplitude grows by it, so that the jumps within reach are seen. With v
the exact entry, E what automatic differentiation was seen to err by at it, and m the median of rms|D_j| over the
array,

    bound = max(λ·P, 16·E, 2·λ·m, 4·eps·|v|).

The last term is for a rule that rounds where automatic differentiation does not. The third says that errors are norm-
wise: an entry far below its array's rounding cannot be told from zero, exact zeros included. What differs from the
truth by more than this is looked at again, with `AGAIN` runs at just that point and cotangent and, where a function is
compared with itself, with noise in its own rule as well: few runs may be lucky at one of a million entries; so many
are not.

In float64 the truth errs as much as what is compared with it, so the bound is doubled.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.gradcheck.problem import Problem, compiled, gradient, wide
from jaxconv.gradcheck.rounding import rounded

# How many roundings each rounding is made into, and the most that may be relative to the value.
AMPLITUDE, _LOUDEST = 4.0, 2.0**-4
# From how rough on jumps farther away are looked for.
_ROUGH = 4.0
# How much more an entry may err than automatic differentiation was seen to err at it.
SPREAD = 16.0
# How much farther than a gradient jumps across a kink a convention at it may lie.
CONVENTION = 4.0
# From how many entries on a function is large. Of a small and of a large one: noisy runs, cotangents, and noisy runs at
# a point where something seems wrong.
LARGE = 100_000
SAMPLES = {False: 12, True: 4}
TRUTHS = {False: 3, True: 2}
AGAIN = {False: 32, True: 24}
Arrays = list[np.ndarray]


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled with 64-bit floats; float64 NumPy arrays in and out."""
    run = compiled(function)

    def call(*operands: Any) -> Any:
        with jax.enable_x64(True), _device():
            return jax.tree.map(np.asarray, run(*jax.tree.map(np.asarray, operands)))

    return call


def _device() -> Any:
    """TPUs have no float64; their host has."""
    tpu = jax.default_backend() == "tpu"
    return jax.default_device(jax.devices("cpu")[0]) if tpu else contextlib.nullcontext()


class Yardstick:
    """The truth at one point, and the bounds around it.

    Without a plain gradient (`reverse=False`: JAX has none for a `while_loop`) f's own, carried in float64, stands in
    for the truth: the bounds are right in size, and the truth is not used.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, where: Sequence[np.ndarray], reverse: bool = True
    ) -> None:
        self.problem, self.reverse, self.large = problem, reverse, large(problem)
        self.xs = [wide(x) for x in problem.xs]
        self.gs = [problem.cotangents(rng, where) for _ in range(TRUTHS[self.large])]
        self._rng = rng
        self._seen: dict[Any, Arrays] = {}
        self._kinks: dict[int, Arrays] = {}
        plain = gradient(problem.plain if reverse else problem.f)
        self._noisy = self._with_noise(plain)
        exact = in_float64(gradient(functools.partial(problem.plain, floats=jnp.float64)))
        self._exact = exact if reverse else functools.partial(self._noisy, 0.0, np.uint64(0))
        self.truth = [self.exact(problem.xs, gs) for gs in self.gs]
        self._errors = self._own_errors(compiled(plain))
        self._amplitude, self._noise, self._rough = self._calibrated()

    def _with_noise(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return in_float64(rounded(call, self.problem.xs, self.gs[0]))

    def _own_errors(self, own: Callable[..., Any]) -> list[Arrays]:
        """By how much automatic differentiation errs at its own precision; per array, a list."""
        at = zip(self.gs, map(flat, self.truth), strict=True)
        samples = [
            [
                np.where(known(b, a.dtype), wide(a) - b, 0)
                for a, b in zip(flat(own(self.problem.xs, gs)), exact, strict=True)
            ]
            for gs, exact in at
        ]
        return [list(column) for column in zip(*samples, strict=True)]

    def _calibrated(self) -> tuple[float, list[Arrays], list[float]]:
        """The amplitude, the noise in each array at that amplitude, and how rough the machine is relative to it."""
        noise = self._draw(self.problem.xs, self.gs, SAMPLES[self.large], AMPLITUDE)
        rough = list(map(_roughness, self._errors, noise, self._dtypes()))
        worst = max((r for r in rough if math.isfinite(r)), default=1.0)
        if worst <= _ROUGH:
            return AMPLITUDE, noise, rough
        loudest = _LOUDEST / max(float(jnp.finfo(dtype).eps) / 2 for dtype in self._dtypes())
        amplitude = max(AMPLITUDE, min(AMPLITUDE * worst, loudest))
        noise = self._draw(self.problem.xs, self.gs, SAMPLES[self.large], amplitude)
        return amplitude, noise, [max(1.0, r * AMPLITUDE / amplitude) for r in rough]

    def _draw(self, xs: Any, gs: Sequence[Any], count: int, amplitude: float) -> list[Arrays]:
        """What noise does to each array at xs, over `count` runs with the cotangents gs in turn; per array, a list."""
        samples = list(self._samples(self._noisy, xs, gs, count, amplitude))
        return [list(column) for column in zip(*samples, strict=True)]

    def _samples(self, noisy: Any, xs: Any, gs: Sequence[Any], count: int, amplitude: float) -> Iterator[Arrays]:
        xs, gs = [wide(x) for x in xs], [[wide(g) for g in one] for one in gs[:count]]
        quiet = [flat(noisy(0.0, np.uint64(0), xs, one)) for one in gs]
        for i in range(count):
            key, k = self._rng.integers(2**64, dtype=np.uint64), i % len(gs)
            loud = flat(noisy(amplitude, key, xs, gs[k]))
            yield [_finite(a - b) for a, b in zip(loud, quiet[k], strict=True)]

    def exact(self, xs: Sequence[Any], gs: Sequence[Any]) -> tuple[Arrays, Arrays]:
        """The values and the gradient in float64."""
        ys, dxs = self._exact([wide(x) for x in xs], [wide(g) for g in gs])
        return list(map(wide, ys)), list(map(wide, dxs))

    def bounds(self, values: Sequence[np.ndarray], of: str = "gradient") -> Arrays:
        """How far rounding may take each of `values`, exact gradients (or results) at or near this point."""
        count, dtypes = len(self.problem.ys), self._dtypes()
        chosen = range(count) if of == "values" else range(count, len(dtypes))
        return [np.maximum(self._usual[i], self._floor(i, v)) for i, v in zip(chosen, values, strict=True)]

    def sharper(self, values: Sequence[np.ndarray], xs: Sequence[Any], gs: Sequence[Any], own: bool) -> Arrays:
        """The bounds at just this point and cotangent; with `own`, of f's own rule too."""
        own = own and self.problem.ruled
        key = (own, _point(xs, gs))
        if key not in self._seen:
            again = (xs, [gs], AGAIN[self.large], self._amplitude)
            spreads = [_spreads(self._samples(self._noisy, *again))]
            if own:
                spreads.append(_spreads(self._samples(self._own_noisy, *again)))
            self._seen[key] = [np.maximum.reduce(each) for each in zip(*spreads, strict=True)]
        usual = self.bounds(values)
        here = enumerate(self._seen[key][len(self.problem.ys) :], len(self.problem.ys))
        return [np.maximum(bound, self._factor(i) * noise) for bound, (i, noise) in zip(usual, here, strict=True)]

    @functools.cached_property
    def _own_noisy(self) -> Callable[..., Any]:
        return self._with_noise(gradient(self.problem.f))

    def _dtypes(self) -> list[Any]:
        return [*(y.dtype for y in self.problem.ys), *(x.dtype for x in self.problem.xs)]

    def _factor(self, i: int) -> float:
        return self._rough[i] * (2 if self._dtypes()[i] == np.float64 else 1)

    @functools.cached_property
    def _usual(self) -> Arrays:
        """The bounds at this point, for any of the cotangents that noise was drawn with."""
        return [self._bound(i) for i in range(len(self._noise))]

    def _bound(self, i: int) -> np.ndarray:
        noise, errors, factor = self._noise[i], np.stack(self._errors[i]), self._factor(i)
        if not math.isfinite(factor):
            return np.full(errors.shape[1:], np.inf)
        typical = 2 * factor * _median(_rms(np.stack(noise), axis=0))
        seen = np.where(np.isfinite(errors).all(axis=0), SPREAD * _rms(errors, axis=0), np.inf)
        return np.maximum(np.maximum(factor * spread(noise), typical), seen)

    def _floor(self, i: int, value: np.ndarray) -> np.ndarray:
        """What a rule may err by that rounds where automatic differentiation does not."""
        dtype = self._dtypes()[i]
        rounded = 4 * float(jnp.finfo(dtype).eps) * np.nan_to_num(np.abs(value), posinf=0)
        return rounded + least(dtype)

    @functools.cached_property
    def _floors(self) -> Arrays:
        """Those of the first exact gradient."""
        return [self._floor(i, dx) for i, dx in enumerate(self.truth[0][1], len(self.problem.ys))]

    @functools.cached_property
    def known(self) -> Arrays:
        """Where the first exact gradient is a number that its dtype has room for."""
        return [known(dx, x.dtype) for dx, x in zip(self.truth[0][1], self.problem.xs, strict=True)]

    @functools.cached_property
    def first(self) -> Arrays:
        """The bounds of the first exact gradient."""
        return self.bounds(self.truth[0][1])

    def along(self, direction: Sequence[np.ndarray], noise: Sequence[Arrays] | None = None) -> float:
        """How far rounding may take ⟨a gradient, direction⟩: the first one, or the one that `noise` was drawn for.

        Entries may err alike, so sums are measured too.
        """
        return max(self._along(direction, noise), self._independent(direction))

    def noise_at(self, xs: Sequence[Any], gs: Sequence[Any]) -> list[Arrays]:
        """What rounding does at another point, for `along`."""
        return self._draw(xs, [gs], SAMPLES[self.large], self._amplitude)

    def _along(self, direction: Sequence[np.ndarray], noise: Sequence[Arrays] | None = None) -> float:
        first = len(self.problem.ys)
        moved, erred = (
            [along(sample, direction) for sample in zip(*of[first:], strict=True)]
            for of in (noise or self._noise, self._errors)
        )
        factor = max((self._factor(first + i) for i, u in enumerate(direction) if u.any()), default=1.0)
        if not math.isfinite(factor + sum(erred)):
            return math.inf
        measured = max(factor * float(spread(moved)), SPREAD * float(_rms(np.array(erred))))
        return max(measured, _length(self._floors, direction))

    def _independent(self, direction: Sequence[np.ndarray]) -> float:
        """The same if entries err independently of each other: where runs are few, they may all be lucky in a sum."""
        return _length(self.first, direction) if self.large else 0.0

    def as_a_whole(self, i: int, exact: np.ndarray, gs: Sequence[Any] | None = None) -> float:
        """Which part of an argument's gradient rounding may hide, of ⟨gradient, exact⟩; with `gs`, looked at again.

        Half of what an entry is allowed, for a sum over all entries has no long tail.
        """
        unit = exact / np.abs(exact).max()
        direction = [unit if j == i else np.zeros_like(x) for j, x in enumerate(self.xs)]
        again = self._draw(self.problem.xs, [gs], AGAIN[self.large], self._amplitude) if gs else None
        hidden = max(self._along(direction), self._along(direction, again)) / 2 / inner(exact, unit)
        return max(hidden, 4 * float(jnp.finfo(self.problem.xs[i].dtype).eps))

    def is_zero(self, i: int, exact: np.ndarray) -> bool:
        """Whether the i-th gradient is zero but for the truth's own rounding; one too small for its dtype is not."""
        dtype = self.problem.xs[i].dtype
        noise = _rms(np.stack(self._noise[len(self.problem.ys) + i]), axis=0) / self._amplitude
        finer = float(np.finfo(np.float64).eps) / float(jnp.finfo(dtype).eps)
        cancelled = (np.abs(exact) <= SPREAD * finer * noise) & (noise > least(dtype))
        return bool((cancelled | (exact == 0)).all())

    def relative(self) -> float:
        """How far rounding typically takes a whole array, relative to itself: the worst of all arrays."""
        values = [*zip(*map(flat, self.truth), strict=True)]
        pairs = [(np.stack(n), np.stack(v)) for n, v in zip(self._noise, values, strict=True)]
        ratios = [float(_rms(n)) / magnitude(v) if n.size else 0.0 for n, v in pairs]
        eps = [float(jnp.finfo(dtype).eps) for dtype in self._dtypes()]
        typical = enumerate(zip(ratios, eps, strict=True))
        return SPREAD * max(max(self._factor(i) * r / self._amplitude, e) for i, (r, e) in typical)

    @functools.cached_property
    def uncertain(self) -> list[int]:
        """How many entries of each gradient the arguments' own precision does not determine to one digit."""
        values = zip(*(dxs for _, dxs in self.truth), strict=True)
        typical = [_rms(np.stack(v), axis=0) for v in values]
        return [int((b > 0.1 * v)[v > 0].sum()) for b, v in zip(self.first, typical, strict=True)]

    def kinks(self, xs: Sequence[Any], gs: Sequence[Any], rng: np.random.Generator) -> Arrays:
        """By how much each entry of the gradient jumps between points on opposite sides of x, too close to matter.

        A smooth gradient changes by 64 times less between points 64 times closer; a jump stays. Of a tie of k, two in k
        pairs of points show an entry's jump, hence so many of them; where the first few show none, there is none.
        """
        key = _point(xs, gs)
        if key not in self._kinks:
            jumps = [np.zeros(x.shape) for x in self.xs]
            for draw in range(8 if self.large else 32):
                if draw == (1 if self.large else 4) and not any(j.any() for j in jumps):
                    break
                steps = [magnitude(x) * rng.standard_normal(x.shape) for x in self.xs]
                jumps = list(map(np.fmax, jumps, self._jumps(xs, gs, steps)))
            self._kinks[key] = jumps
        return self._kinks[key]

    def crossed(self, xs: Sequence[Any], gs: Sequence[Any], us: Arrays) -> float:
        """By how much ⟨the gradient, u⟩ jumps along u, were all entries to jump alike; 0 if u keeps all ties."""
        return all_alike(self._jumps(xs, gs, us), us)

    def _jumps(self, xs: Sequence[Any], gs: Sequence[Any], steps: Arrays) -> Arrays:
        """By how much each entry jumps between two points on opposite sides of x along `steps`, too close to matter."""
        far, near = (self._across(xs, gs, [by * s for s in steps]) for by in (2.0**-30, 2.0**-36))
        return [np.where(n > f / 2, n, 0) for f, n in zip(far, near, strict=True)]

    def _across(self, xs: Sequence[Any], gs: Sequence[Any], steps: Arrays) -> Arrays:
        (_, ahead), (_, behind) = (
            self.exact([wide(x) + sign * s for x, s in zip(xs, steps, strict=True)], gs) for sign in (1, -1)
        )
        return [np.abs(a - b) for a, b in zip(ahead, behind, strict=True)]


def _point(xs: Sequence[Any], gs: Sequence[Any]) -> int:
    """A point and cotangent as a key."""
    return hash(b"".join(np.asarray(a).tobytes() for a in (*xs, *gs)))


def magnitude(x: np.ndarray) -> float:
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
    return np.isfinite(got) & (CONVENTION * jumps >= np.abs(got - want))


def known(exact: np.ndarray, dtype: Any) -> np.ndarray:
    """Where the truth is a number that `dtype` has room for."""
    return np.abs(exact) <= float(jnp.finfo(dtype).max)


def large(problem: Problem) -> bool:
    return sum(x.size for x in problem.xs) + sum(y.size for y in problem.ys) > LARGE


def _length(bounds: Sequence[np.ndarray], direction: Sequence[np.ndarray]) -> float:
    """How far the sum along a direction may be off if entries err independently, each by its bound."""
    return math.sqrt(sum(float(np.sum((b[u != 0] * u[u != 0]) ** 2)) for b, u in zip(bounds, direction, strict=True)))


def along(dxs: Sequence[np.ndarray], us: Sequence[np.ndarray]) -> float:
    """⟨dxs, us⟩ over all arrays."""
    return sum(inner(dx, u) for dx, u in zip(dxs, us, strict=True))


def all_alike(jumps: Sequence[np.ndarray], us: Sequence[np.ndarray]) -> float:
    """How far ⟨a gradient, u⟩ jumps if each of its entries jumps by so much, and none against another."""
    return along(jumps, list(map(np.abs, us)))


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """⟨a, b⟩ over the entries where b is not 0; a may be infinite at others."""
    there = b != 0
    return float(np.dot(a[there], b[there]))


def flat(result: tuple[Sequence[Any], Sequence[Any]]) -> Arrays:
    """Values and gradients as one list."""
    return [*result[0], *result[1]]


def spread(noise: Sequence[Any]) -> np.ndarray:
    """How far many roundings may take what these samples of noise have moved."""
    return _spreads([sample] for sample in noise)[0]


def _spreads(samples: Iterable[Sequence[Any]]) -> Arrays:
    """`spread` of each array of many samples, one sample at a time."""
    sizes = (list(map(np.abs, sample)) for sample in samples)
    length = largest = next(sizes)
    count = 1
    for size in sizes:
        length, largest = list(map(np.hypot, length, size)), list(map(np.maximum, largest, size))
        count += 1
    return [2 * a / math.sqrt(count) + b for a, b in zip(length, largest, strict=True)]


def _roughness(errors: Arrays, noise: Arrays, dtype: Any) -> float:
    """The typical error in units of one rounding of each intermediate result; at least 1."""
    error, unit = np.abs(np.stack(errors)), _rms(np.stack(noise), axis=0) / AMPLITUDE
    there = np.broadcast_to(unit > least(dtype), error.shape) | ~(error <= least(dtype))
    if not there.any():
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (error / unit)[there]
    return max(1.0, float(np.quantile(np.where(np.isnan(ratio), np.inf, ratio), 0.9)) / 1.6)


def _median(x: np.ndarray) -> float:
    """The median of what is not zero."""
    return float(np.median(x[x > 0])) if (x > 0).any() else 0.0


def _finite(x: np.ndarray) -> np.ndarray:
    """A sample that is not finite says nothing about rounding."""
    return np.where(np.isfinite(x), x, 0)


def least(dtype: Any) -> float:
    """What rounds to zero: below float16's subnormals, and below the normal range of the others."""
    info = jnp.finfo(dtype)
    return float(info.smallest_subnormal if info.bits == 16 and info.nmant == 10 else info.tiny)
