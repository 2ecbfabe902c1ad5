"""An axis split over devices: which of its neighbours' elements a shard needs, and the windows that it is left with.

D shards of m elements make up the n = D·m elements of an axis. Shard i is to compute q = out / D of the outputs, those
from i·q on. Its output r is output i·q + r of the whole, which reads, at tap j, the element

    s·(i·q + r) + d·j − lo  =  i·m + (s·r + d·j − lo)        if and only if        s·q = m

This is the equation of alignment. The shard begins at i·m, so what is in brackets counts from its own first element and
does not depend on i: all shards run one program. The first window begins lo elements before the shard and the last one
ends hi − unread after it. That is the *halo*: the padding of the whole without what nobody reads. Inside the image it
is made of the neighbours' elements, at its ends of padding, and once it is there no padding is left to do.

Over all shards s·q = m says s·out = n. Since out = (n + lo + hi − span) // s + 1, that is

    s divides m        and        span − s ≤ lo + hi < span

which "SAME" always fulfils, "CAUSAL" too, and "VALID" where windows do not overlap.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from jaxconv.geometry.algebra import Axis, Geometry

EACH = "one entry per spatial axis: the name of the mesh axis that it is split over, a tuple of names, or None"


class Halo(NamedTuple):
    """What an axis of a shard is extended by. `parts` = 1: the axis is whole, and its halo is padding.

    Attributes:
      names: the mesh axes that the axis is split over, the slowest first.
      parts: the number of shards.
      lo: elements before the shard's own; negative leaves out some of these.
      hi: elements after them.
    """

    names: tuple[Hashable, ...]
    parts: int
    lo: int = 0
    hi: int = 0


def check_split(function: str, split: Any, rank: int) -> tuple[tuple[Hashable, ...], ...]:
    """The mesh axes of every spatial axis, the slowest first; () where it is whole."""
    if isinstance(split, str) or not isinstance(split, Iterable):
        raise TypeError(f"{function}: split must have {EACH}, but is {split!r}. Write a tuple.")
    entries = tuple(split)
    if len(entries) != rank:
        raise ValueError(f"{function}: split must have {EACH}, but len(split) = {len(entries)} != {rank}.")
    axes = tuple(() if e is None else tuple(e) if isinstance(e, tuple | list) else (e,) for e in entries)
    names = [name for axis in axes for name in axis]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{function}: a mesh axis can split only one axis of x, but split = {entries} has {name!r} "
                f"{names.count(name)} times. Take a mesh with one more axis."
            )
    return axes


def pieces(m: int, lo: int, hi: int) -> list[tuple[int, int, int]]:
    """Elements −lo to m + hi, counted from a shard's first, as (j, start, stop): a slice of the shard j places on."""
    first, end = -lo, m + hi
    cuts = [(j, max(first, j * m) - j * m, min(end, (j + 1) * m) - j * m) for j in range(first // m, -(-end // m))]
    return cuts or [(0, 0, 0)]


def shard_geometry(
    function: str, whole: Geometry, axes: tuple[tuple[Hashable, ...], ...], parts: tuple[int, ...]
) -> tuple[Geometry, tuple[Halo, ...]]:
    """The geometry of one shard with its halo, whose split axes need no padding, and that halo."""
    halos = []
    for i, (axis, names, count) in enumerate(zip(whole.axes, axes, parts, strict=True)):
        if count > 1:
            _check_alignment(function, i, axis, count)
        halos.append(Halo(names, count, *(axis.kernel_grad_padding if count > 1 else (0, 0))))
    split = [halo.parts > 1 for halo in halos]
    spatial = tuple(n // halo.parts + halo.lo + halo.hi for n, halo in zip(whole.spatial, halos, strict=True))
    padding = tuple((0, 0) if cut else pair for cut, pair in zip(split, whole.padding, strict=True))
    return replace(whole, spatial=spatial, padding=padding), tuple(halos)


def _check_alignment(function: str, i: int, axis: Axis, parts: int) -> None:
    m, s = axis.n // parts, axis.stride
    if m == 0 or m % s:
        raise ValueError(
            f"{function}: every shard must begin where a window does, so its size must be a positive multiple of the "
            f"stride, but along spatial axis {i}, {parts} shards of {m}, {m} % {s} = {m % s}. Pad x before it is "
            "split, or split it over fewer devices."
        )
    if axis.out * s != axis.n:
        raise ValueError(
            f"{function}: the shards of y must lie over those of x, so out * stride must equal n, but along spatial "
            f"axis {i}, {parts} shards of {m}, {axis.out} * {s} != {axis.n}. With windows of span {axis.span}, lo + hi "
            f"must be from {axis.span - s} to {axis.span - 1}, but padding is {(axis.lo, axis.hi)}. Take "
            'padding="SAME" and crop y once it is whole, or split another axis.'
        )
