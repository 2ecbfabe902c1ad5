"""Which mistake explains a wrong gradient: what else it may be the gradient of.

Each suspect is a sentence and the gradient that would make it true, in float64. They come cheapest first: of the arrays
alone (`hints`), of the exact gradient at other arguments and cotangents, which is compiled already, and of the
laboratory, which compiles the function once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxconv.gradcheck import hints
from jaxconv.gradcheck.laboratory import Convolution, Mistake
from jaxconv.gradcheck.problem import wide

if TYPE_CHECKING:
    from jaxconv.gradcheck.evidence import Trial

Suspects = Iterator[tuple[str, np.ndarray]]
# In programs of more convolutions than this, mistakes are tried in all of them at once.
_CONVOLUTIONS = 8


def explain(t: Trial, i: int, got: np.ndarray, want: np.ndarray, bound: np.ndarray, k: int) -> str:
    """A sentence on the first mistake that accounts for every entry of the gradient in argument i, or "".

    Args:
      got: that gradient for the k-th cotangents, not what it should be.
      want: what it should be.
      bound: how far rounding may take an entry from it.
    """
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return ""

    def first(suspects: Suspects) -> str:
        return next((name for name, array in suspects if array.any() and (np.abs(got - array) <= bound).all()), "")

    return (
        hints.plain(got, want, bound)
        or first(_lopsided(t, i, k))
        or hints.moved(got, want, bound)
        or first(_asked_otherwise(t, i, k))
        or first(_transposed_wrongly(t, i, k))
        or first(_summed_wrongly(t, want, k))
        or hints.partly(got, want)
    )


def paid_twice(t: Trial, i: int, got: np.ndarray, bound: np.ndarray, k: int) -> str:
    """Whether a gradient pays each winner of a tie in full, in words, or ""."""
    if not t.laboratory.maxima:
        return ""
    paid = t.laboratory.gradient(t.gs[k], everyone=True)[0][i]
    if (np.abs(got - paid) <= bound).all():
        return "Ties are paid more than once: each of the winners gets all of it, where together they should."
    return ""


def _asked_otherwise(t: Trial, i: int, k: int) -> Suspects:
    """The exact gradient for other cotangents, in other arguments, and at flipped ones."""
    gs, paths, exact = t.gs[k], t.problem.paths, t.yardstick.exact
    sizes = {g.shape[0] for g in gs if g.ndim}
    if len(sizes) == 1 and (n := sizes.pop()) > 1:
        for name, keep in (("first", 0), ("last", n - 1)):
            alone = [np.where(np.arange(n).reshape(-1, *[1] * (g.ndim - 1)) == keep, g, 0) for g in gs]
            yield (
                f"It is that of the {name} example alone: the sum over the batch is missing.",
                exact(t.xs, alone)[1][i],
            )
    shape = t.xs[i].shape
    for j, other in enumerate(t.yardstick.truth[k][1]):
        if j != i and other.shape == shape:
            yield f"It is the gradient of {paths[j]}.", other
    yield "The cotangent is ignored: taken to be all ones.", exact(t.xs, [np.ones(g.shape) for g in gs])[1][i]
    for j, w in enumerate(map(wide, t.xs)):
        for axes in _kernel_axes(w.ndim) if j != i else ():
            flipped = exact([np.flip(w, axes) if n == j else x for n, x in enumerate(t.xs)], gs)[1][i]
            yield f"It is what {paths[j]} flipped along {_axes(axes)} would give: {_UNTURNED}", flipped


_UNTURNED = "the kernel is not rotated on the way back, or once too often."


def _kernel_axes(rank: int) -> list[tuple[int, ...]]:
    """The axes along which a kernel of that rank may be flipped: its taps in any layout, all or one."""
    runs = [range(rank - 2), range(2, rank), range(rank if rank < 4 else 0)]
    return list(dict.fromkeys(axes for axes in [*map(tuple, runs), *((a,) for a in range(rank))] if axes))


def _lopsided(t: Trial, i: int, k: int) -> Suspects:
    """The ends of a padding exchanged: where they differ by one, it was taken for symmetric."""
    for name, chosen in _sites(t):
        for which in ("dx", "dw"):
            mistakes = {n: _exchanged(t.laboratory.convolutions[n], which) for n in chosen}
            if all(m is None for m in mistakes.values()):
                continue
            padding = t.laboratory.convolutions[chosen[0]].params["padding"]
            sentence = (
                f"The backward pass {name}takes the padding {_pairs(padding)} for {_pairs([p[::-1] for p in padding])}"
            )
            if max(abs(lo - hi) for lo, hi in padding) == 1:
                sentence += ": as if it were symmetric, or the odd one out at the other end"
            told = {n: m for n, m in mistakes.items() if m is not None}
            yield f"{sentence}.", t.laboratory.gradient(t.gs[k], told)[0][i]


def _exchanged(conv: Convolution, which: str) -> Mistake | None:
    """What follows for dx or dw if lo and hi are exchanged, if they differ."""
    p, shifts = conv.params, []
    for (lo, hi), dilation in zip(p["padding"], p["lhs_dilation"], strict=True):
        by = lo - hi if which == "dx" else hi - lo
        if by % dilation:
            return None
        shifts.append(by // dilation)
    return conv.right._replace(**{which: tuple(shifts)}) if any(shifts) else None


def _transposed_wrongly(t: Trial, i: int, k: int) -> Suspects:
    """A convolution somewhere whose kernel is not rotated, or whose dx or dw is shifted along any of its axes."""
    for name, chosen in _sites(t):
        rank = max(t.laboratory.convolutions[n].rank for n in chosen)
        convolutions = {n: c for n in chosen if (c := t.laboratory.convolutions[n]).rank == rank}
        for flips in sorted(itertools.product((0, 1), repeat=rank), reverse=True)[:-1]:
            told = {n: c.right._replace(flips=flips) for n, c in convolutions.items()}
            axes = _axes([a for a, flip in enumerate(flips) if flip])
            yield (
                f"The gradient in the input {name}is what the kernel flipped along spatial {axes} gives: {_UNTURNED}",
                t.laboratory.gradient(t.gs[k], told)[0][i],
            )
        for by in itertools.product((0, 1, -1), repeat=rank):
            if not any(by):
                continue
            for which, text, unit in (("dx", "gradient in the input", "entry"), ("dw", "kernel's gradient", "tap")):
                told = {}
                for n, c in convolutions.items():
                    step = zip(by, c.params["rhs_dilation"], c.params["lhs_dilation"], strict=True)
                    shifts = tuple(b * d if which == "dw" and d % e == 0 else b for b, d, e in step)
                    told[n] = c.right._replace(**{which: shifts})
                along = " and ".join(f"{n:+d} {unit} along spatial axis {a}" for a, n in enumerate(by) if n)
                yield f"The {text} {name}is shifted by {along}.", t.laboratory.gradient(t.gs[k], told)[0][i]


def _sites(t: Trial) -> list[tuple[str, tuple[int, ...]]]:
    """Where a mistake may be: in all convolutions, or in one."""
    count = len(t.laboratory.convolutions)
    if count <= 1:
        return [("", (n,)) for n in range(count)]
    single = range(count if count <= _CONVOLUTIONS else 0)
    each = [(f"of convolution {n} of {count} ", (n,)) for n in single]
    return [(f"of all {count} convolutions ", tuple(range(count))), *each]


def _summed_wrongly(t: Trial, want: np.ndarray, k: int) -> Suspects:
    """What a bias's gradient is if δ is summed over other axes, over more, or not over all that it should be."""
    squeezed = [n for n in want.shape if n > 1]
    for delta in t.laboratory.gradient(t.gs[k])[1]:
        every = range(delta.ndim)
        for kept in itertools.combinations(every, len(squeezed)):
            axes = tuple(a for a in every if a not in kept)
            if [delta.shape[a] for a in kept] != squeezed or not axes:
                continue
            if not np.allclose(delta.sum(axes).reshape(want.shape), want, rtol=1e-9, atol=1e-9 * np.abs(want).max()):
                continue
            yield from _sums(delta, axes, want.shape, squeezed)
            return


def _sums(delta: np.ndarray, right: tuple[int, ...], shape: tuple[int, ...], squeezed: Sequence[int]) -> Suspects:
    every = range(delta.ndim)
    should = f"δ should be summed over {_axes(right)}"
    for count in range(1, delta.ndim + 1):
        for axes in itertools.combinations(every, count):
            sums = delta.sum(axes)
            if axes != right and list(sums.shape) == list(squeezed):
                yield f"{should}, but is over {_axes(axes)}.", sums.reshape(shape)
            if set(axes) > set(right):
                sums = delta.sum(axes, keepdims=True).sum(right)  # what is summed too much is the same at all entries
                yield (
                    f"{should}, but is over {_axes(axes)}.",
                    np.broadcast_to(sums, delta.sum(right).shape).reshape(shape),
                )
            if set(axes) < set(right) or axes == right:
                for name, at in (("first", 0), ("last", -1)):
                    part = delta.take([at], axes[0])
                    for axis in axes[1:]:
                        part = part.take([at], axis)
                    yield f"{should}, but along {_axes(axes)} only the {name} is taken.", part.sum(right).reshape(shape)


def _axes(axes: Sequence[int]) -> str:
    *most, last = map(str, axes)
    return f"axes {', '.join(most)} and {last}" if most else f"axis {last}"


def _pairs(padding: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"({lo}, {hi})" for lo, hi in padding)
