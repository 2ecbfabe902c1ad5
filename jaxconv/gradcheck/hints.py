"""Which mistake explains a wrong gradient: the usual ones are undone in turn, to see which makes it right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

# More axes than this have too many orders to try.
_AXES = 5


def hint(got: np.ndarray, want: np.ndarray, bound: np.ndarray, examples: dict[str, np.ndarray]) -> str:
    """A sentence on the first mistake that accounts for every entry of `got`, or "".

    Args:
      got: the wrong gradient of one argument.
      want: the right one.
      bound: how far rounding may take an entry from it.
      examples: other gradients that the wrong one may be, such as that of the first example alone.
    """
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return ""

    def right(array: np.ndarray) -> bool:
        return bool((np.abs(array - want) <= bound).all())

    for candidates in (_simple, _moved, _permuted):
        for name, array in candidates(got, want):
            if right(array):
                return name
    for name, array in examples.items():
        if array.any() and (np.abs(got - array) <= bound).all():
            return name
    return _partly(got, want, right)


def _simple(got: np.ndarray, want: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "The sign is wrong.", -got
    if not got.any():
        yield "It is zero everywhere: this argument is not differentiated.", want
        return
    factor = float(np.vdot(got, want) / np.vdot(got, got))
    if factor:
        gain = 1 / factor
        named = f"{gain:.6g}" if abs(gain - 1) > 1e-4 else f"1 {'+' if gain > 1 else '−'} {abs(gain - 1):.2g}"
        yield f"It is {named} times the right gradient.", factor * got


def _moved(got: np.ndarray, _: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    axes = [axis for axis, n in enumerate(got.shape) if n > 1]
    for axis in axes:
        yield f"Axis {axis} is flipped.", np.flip(got, axis)
    for pair in itertools.combinations(axes, 2):
        yield f"Axes {pair[0]} and {pair[1]} are both flipped: rotated by 180°.", np.flip(got, pair)
    for count in range(3, len(axes) + 1):
        for flipped in itertools.combinations(axes, count):
            yield f"Axes {', '.join(map(str, flipped))} are all flipped.", np.flip(got, flipped)
    for axis in axes:
        for by in (1, -1, 2, -2, 3, -3, 4, -4):
            yield f"It is rolled by {-by:+d} along axis {axis}.", np.roll(got, by, axis)


def _permuted(got: np.ndarray, _: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for order in itertools.permutations(range(got.ndim if got.ndim <= _AXES else 0)):
        if order == tuple(range(got.ndim)):
            continue
        swapped = [axis for axis, source in enumerate(order) if axis != source]
        name = f"Axes {', '.join(map(str, swapped))} are transposed."
        mixed = tuple(got.shape[axis] for axis in order)
        if mixed == got.shape:
            yield name, got.transpose(order)
        yield f"{name} A reshape kept the shape.", got.reshape(mixed).transpose(np.argsort(order))


def _partly(got: np.ndarray, want: np.ndarray, right: Callable[[np.ndarray], bool]) -> str:
    """Where the wrong entries are, if they are all in one place, and what is wrong with them."""
    for axis, n in enumerate(got.shape):
        for inner in (slice(1, None), slice(None, -1)):  # off by one, and what comes in at the end differs
            index = (slice(None),) * axis + (inner,)
            patched = want.copy()
            patched[index] = np.roll(got, 1 if inner.start else -1, axis)[index]
            if n > 2 and right(patched):
                return f"It is off by one along axis {axis}."
    for axis, n in enumerate(got.shape):
        others = tuple(a for a in range(got.ndim) if a != axis)
        gap = want - got
        uneven = np.abs(gap - gap.mean(axis, keepdims=True)).max()
        if n > 1 and uneven <= 1e-3 * np.abs(gap).max():
            return f"The error does not depend on axis {axis}: a term that is constant along it is missing."
        bad = np.flatnonzero(np.abs(gap).max(others) > 1e-2 * np.abs(gap).max())
        if 0 < len(bad) <= n // 2:
            here = f"index {bad[0]}" if len(bad) == 1 else f"indices {', '.join(map(str, bad[:8]))}"
            last = "the last, " if bad[0] == n - len(bad) else ""
            what = "dropped: zero" if not got.take(bad, axis).any() else "wrong"
            return f"Along axis {axis} of {n} only {last}{here} {'is' if len(bad) == 1 else 'are'} {what}."
    return ""
