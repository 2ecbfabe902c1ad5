"""From which indices meet along one axis to how the window moves along it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxconv.explanation.meetings import axis_meetings
from jaxconv.geometry import Axis

# Where what meets leaves steps open, those whose sum is at most this are tried.
SEARCH = 48

Meetings = dict[int, set[tuple[int, int]]]  # by output: the (tap, input) pairs that meet there


def fits(n: int, k: int, out: int, seen: Meetings, flipped: bool) -> Iterator[Axis]:
    """The axes, of a flipped kernel or not, on which exactly these meet; small steps first.

    Of two triples that meet, i·Δq = s·Δp ± d·Δk. Two independent differences determine the steps (i, s, d) but for a
    common factor; where there are fewer, such as for a single output or tap, small ones are tried.
    """
    triples = [(p, tap, q) for p, pairs in sorted(seen.items()) for tap, q in sorted(pairs)]
    if not triples:
        return
    p0, tap0, q0 = triples[0]
    differences = np.array([(q - q0, p0 - p, tap - tap0 if flipped else tap0 - tap) for p, tap, q in triples])
    for i, s, d in _steps(differences):
        lo = s * p0 + d * (k - 1 - tap0 if flipped else tap0) - i * q0
        bare = Axis(n, k, s, d, i, lo, 0)
        least = s * (out - 1) + bare.span - bare.length - lo  # any of s paddings at the end gives as many outputs
        hi = next((hi for hi in (lo, 0) if least <= hi < least + s), least)
        axis = bare._replace(hi=hi)
        meetings: Meetings = {p: set() for p in seen}
        for p, tap, q in axis_meetings(axis, flipped):
            if p in meetings:
                meetings[p].add((tap, q))
        if meetings == seen:
            yield axis


def _steps(differences: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The (i, s, d), all positive, that are orthogonal to all differences."""
    first = next((row for row in differences if row.any()), np.zeros(3, int))
    normal = next((c for row in differences if (c := np.cross(first, row)).any()), None)
    if normal is not None:
        i, s, d = (int(c) // math.gcd(*map(int, normal)) for c in (normal if normal[0] > 0 else -normal))
        if min(i, s, d) > 0 and not (differences @ (i, s, d)).any():
            yield i, s, d
        return
    x, y, z = map(int, first)
    for total in range(3, SEARCH):
        for i in range(1, total - 1):
            for s in range(1, total - i):
                d = total - i - s
                if x * i + y * s + z * d == 0:
                    yield i, s, d
