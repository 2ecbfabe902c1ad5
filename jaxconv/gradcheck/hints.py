"""Which mistake explains a wrong gradient: what its own numbers say, beside the right ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

# More axes than this have too many orders to try.
_AXES = 5
# How many of the likeliest shifts are looked at.
_SHIFTS = 8


def plain(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> str:
    """A wrong sign, zero, or a factor, in words; or "".

    Args:
      got: the wrong gradient of one argument, finite.
      want: the right one.
      bound: how far rounding may take an entry from it.
    """
    right = _judge(want, bound)
    if right(-got):
        return "The sign is wrong."
    if not got.any():
        return "It is zero everywhere: this argument is not differentiated."
    factor = float(np.vdot(got, want) / np.vdot(got, got))
    if factor and right(factor * got):
        gain = 1 / factor
        named = f"{gain:.6g}" if abs(gain - 1) > 1e-4 else f"1 {'+' if gain > 1 else '−'} {abs(gain - 1):.2g}"
        return f"It is {named} times the right gradient."
    return ""


def _judge(want: np.ndarray, bound: np.ndarray) -> Callable[[np.ndarray], bool]:
    return lambda array: bool((np.abs(array - want) <= bound).all())


def moved(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> str:
    """How the right gradient is flipped, shifted or transposed to be the wrong one, in words; or ""."""
    right = _judge(want, bound)
    undone = itertools.chain(_flipped(got), _shifted(got, want), _permuted(got))
    return next((name for name, array in undone if right(array)), "")


def _flipped(got: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    axes = [axis for axis, n in enumerate(got.shape) if n > 1]
    for axis in axes:
        yield f"Axis {axis} is flipped.", np.flip(got, axis)
    for pair in itertools.combinations(axes, 2):
        yield f"Axes {pair[0]} and {pair[1]} are both flipped: rotated by 180°.", np.flip(got, pair)
    for count in range(3, len(axes) + 1):
        for flipped in itertools.combinations(axes, count):
            yield f"Axes {', '.join(map(str, flipped))} are all flipped.", np.flip(got, flipped)


def _shifted(got: np.ndarray, want: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Shifts along any axes undone: all the way round, or up to what was lost at the edges.

    The likeliest are those at which the two arrays' correlation is largest; a Fourier transform gives it for all shifts
    at once.
    """
    if not got.ndim or not got.size:
        return
    axes = tuple(range(got.ndim))
    spectrum = np.fft.rfftn(got, axes=axes) * np.fft.rfftn(want, axes=axes).conj()
    correlation = np.fft.irfftn(spectrum, got.shape, axes=axes)
    for place in np.argsort(-correlation, axis=None)[:_SHIFTS]:
        at = np.unravel_index(place, got.shape)
        by = {a: int(s) - (n if s > n // 2 else 0) for a, (s, n) in enumerate(zip(at, got.shape, strict=True)) if s}
        if not by:
            continue
        back = np.roll(got, [-s for s in by.values()], list(by))
        yield f"It is rolled by {_along(by)}.", back
        kept = np.ones(got.shape, bool)
        for axis, s in by.items():
            kept[(slice(None),) * axis + (slice(-s, None) if s > 0 else slice(-s),)] = False
        if 2 * kept.sum() > got.size:
            one = f"It is off by one along axis {next(iter(by))}."
            name = one if [*map(abs, by.values())] == [1] else f"It is shifted by {_along(by)}."
            yield name, np.where(kept, back, want)


def _along(by: dict[int, int]) -> str:
    return " and ".join(f"{s:+d} along axis {axis}" for axis, s in by.items())


def _permuted(got: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for order in itertools.permutations(range(got.ndim if got.ndim <= _AXES else 0)):
        if order == tuple(range(got.ndim)):
            continue
        swapped = [axis for axis, source in enumerate(order) if axis != source]
        name = f"Axes {', '.join(map(str, swapped))} are transposed."
        mixed = tuple(got.shape[axis] for axis in order)
        if mixed == got.shape:
            yield name, got.transpose(order)
        yield f"{name} A reshape kept the shape.", got.reshape(mixed).transpose(np.argsort(order))


def partly(got: np.ndarray, want: np.ndarray) -> str:
    """What is wrong with the wrong entries if they are all in one place, or differ by a term of fewer axes; or ""."""
    gap = want - got
    for axis, n in enumerate(got.shape):
        uneven = np.abs(gap - gap.mean(axis, keepdims=True)).max()
        if n > 1 and uneven <= 1e-3 * np.abs(gap).max():
            return f"The error does not depend on axis {axis}: a term that is constant along it is missing."
        others = tuple(a for a in range(got.ndim) if a != axis)
        bad = np.flatnonzero(np.abs(gap).max(others) > 1e-2 * np.abs(gap).max())
        if 0 < len(bad) <= n // 2:
            here = f"index {bad[0]}" if len(bad) == 1 else f"indices {', '.join(map(str, bad))}"
            last = "the last, " if bad[0] == n - len(bad) else ""
            what = "dropped: zero" if not got.take(bad, axis).any() else "wrong"
            return f"Along axis {axis} of {n} only {last}{here} {'is' if len(bad) == 1 else 'are'} {what}."
    return ""
