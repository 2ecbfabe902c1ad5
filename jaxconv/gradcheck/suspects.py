"""Which mistake explains a wrong gradient: what else it may be the gradient of.

Each suspect is a sentence and the gradient that would make it true, in float64. They come cheapest first: of the arrays
alone (`hints`), of the exact gradient at other arguments and cotangents, which is compiled already, and of the
laboratory, which compiles the function once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxconv.gradcheck import hints
from jaxconv.gradcheck.laboratory import Convolution, Mistake
from jaxconv.gradcheck.problem import wide

if TYPE_CHECKING:
    from jaxconv.gradcheck.trial import Trial

# A sentence, and the gradient in each argument that would make it true, or None.
Suspects = Iterator[tuple[str, Sequence[np.ndarray | None]]]
# In programs of more convolutions than this, mistakes are tried in all of them at once.
_CONVOLUTIONS = 8


class Wrong(NamedTuple):
    """The gradient in one argument for the k-th cotangents, what it should be, and how far rounding may take it."""

    got: np.ndarray
    want: np.ndarray
    bound: np.ndarray
    k: int


def explain(t: Trial, wrong: dict[int, Wrong]) -> dict[int, str]:
    """For each wrong argument a sentence on the first mistake that accounts for every entry, or ""."""
    found = {i: hints.plain(w.got, w.want, w.bound) if _finite(w) else "" for i, w in wrong.items()}
    for k in sorted({w.k for w in wrong.values()}):
        of = {i: w for i, w in wrong.items() if w.k == k and _finite(w)}
        _match(t, of, found, _lopsided(t, k))
        for i, w in of.items():
            found[i] = found[i] or hints.moved(w.got, w.want, w.bound)
        _match(t, of, found, _asked_otherwise(t, k))
        _match(t, of, found, _transposed_wrongly(t, k))
        for i, w in of.items():
            found[i] = (
                found[i] or _summed_wrongly(t, w) or paid_twice(t, i, w.got, t.gs[k]) or hints.partly(w.got, w.want)
            )
    return found


def _match(t: Trial, wrong: dict[int, Wrong], found: dict[int, str], suspects: Suspects) -> None:
    """Give each argument without a sentence the first one that fits."""
    left = [i for i in wrong if not found[i]]
    while left and (suspect := next(suspects, None)):
        sentence, dxs = suspect
        for i in list(left):
            dx = dxs[i]
            if dx is not None and dx.any() and _alike(t, i, wrong[i], dx):
                found[i] = sentence
                left.remove(i)


def _finite(w: Wrong) -> bool:
    return bool(np.isfinite(w.got).all() and np.isfinite(w.want).all())


def _alike(t: Trial, i: int, w: Wrong, dx: np.ndarray) -> bool:
    """Whether a wrong gradient is another one but for rounding, which is in proportion to either."""
    others = [dx if j == i else right for j, right in enumerate(t.yardstick.truth[w.k][1])]
    return bool((np.abs(w.got - dx) <= np.maximum(w.bound, t.yardstick.bounds(others)[i])).all())


def paid_twice(t: Trial, i: int, got: np.ndarray, gs: Sequence[Any], xs: Sequence[Any] | None = None) -> str:
    """Whether the gradient in argument i pays each winner of a tie in full, in words, or ""."""
    if not t.laboratory.maxima:
        return ""
    paid, _ = t.laboratory.gradient(gs, everyone=True, xs=xs)
    if (np.abs(got - paid[i]) <= t.yardstick.bounds(paid)[i]).all():
        return "Ties are paid more than once: each of the winners gets all of it, where together they should."
    return ""


def _asked_otherwise(t: Trial, k: int) -> Suspects:
    """The exact gradient for other cotangents, in other arguments, and at flipped ones."""
    gs, paths, exact = t.gs[k], t.problem.paths, t.yardstick.exact
    sizes = {g.shape[0] for g in gs if g.ndim}
    if len(sizes) == 1 and (n := sizes.pop()) > 1:
        for name, keep in (("first", 0), ("last", n - 1)):
            alone = [np.where(np.arange(n).reshape(-1, *[1] * (g.ndim - 1)) == keep, g, 0) for g in gs]
            yield f"It is that of the {name} example alone: the sum over the batch is missing.", exact(t.xs, alone)[1]
    for j, other in enumerate(t.yardstick.truth[k][1]):
        alike = [None if j == i or x.shape != other.shape else other for i, x in enumerate(t.xs)]
        yield f"It is the gradient of {paths[j]}.", alike
    yield "The cotangent is ignored: taken to be all ones.", exact(t.xs, [np.ones(g.shape) for g in gs])[1]
    for j, w in enumerate(map(wide, t.xs) if len(t.xs) <= _CONVOLUTIONS else ()):
        for axes in _kernel_axes(w.ndim) if len(t.xs) > 1 else ():
            at = [np.flip(w, axes) if n == j else x for n, x in enumerate(t.xs)]
            flipped = [None if i == j else dx for i, dx in enumerate(exact(at, gs)[1])]
            yield f"It is what {paths[j]} flipped along {_axes(axes)} would give: {_UNTURNED}", flipped


_UNTURNED = "the kernel is not rotated on the way back, or once too often."


def _kernel_axes(rank: int) -> list[tuple[int, ...]]:
    """The axes along which a kernel of that rank may be flipped: its taps in any layout, all or one."""
    runs = [range(rank - 2), range(2, rank), range(rank if rank < 4 else 0)]
    return list(dict.fromkeys(axes for axes in [*map(tuple, runs), *((a,) for a in range(rank))] if axes))


def _lopsided(t: Trial, k: int) -> Suspects:
    """The ends of a padding exchanged: where they differ by one, it was taken for symmetric."""
    for name, chosen in _sites(t):
        for which in ("dx", "dw"):
            mistakes = {n: _exchanged(t.laboratory.convolutions[n], which) for n in chosen}
            if all(m is None for m in mistakes.values()):
                continue
            padding = next(t.laboratory.convolutions[n].params["padding"] for n, m in mistakes.items() if m)
            sentence = (
                f"The {which} {name}is that of the padding {_pairs([p[::-1] for p in padding])}, not {_pairs(padding)}"
            )
            if {hi - lo for lo, hi in padding} <= {0, 1}:
                sentence += ": under SAME, an even size is not padded symmetrically, but with one more at the end"
            told = {n: m for n, m in mistakes.items() if m is not None}
            yield f"{sentence}.", t.laboratory.gradient(t.gs[k], told)[0]


def _exchanged(conv: Convolution, which: str) -> Mistake | None:
    """What follows for dx or dw if lo and hi are exchanged, if they differ."""
    shifts = tuple(lo - hi if which == "dx" else hi - lo for lo, hi in conv.params["padding"])
    return conv.right._replace(**{which: shifts}) if any(shifts) else None


def _transposed_wrongly(t: Trial, k: int) -> Suspects:
    """A convolution somewhere whose kernel is not rotated, or whose dx or dw is shifted along any of its axes."""
    for name, chosen in _sites(t):
        rank = max(t.laboratory.convolutions[n].rank for n in chosen)
        convolutions = {n: c for n in chosen if (c := t.laboratory.convolutions[n]).rank == rank}
        for flips in sorted(itertools.product((0, 1), repeat=rank), reverse=True)[:-1]:
            told = {n: c.right._replace(flips=flips) for n, c in convolutions.items()}
            axes = _axes([a for a, flip in enumerate(flips) if flip])
            yield (
                f"The gradient in the input {name}is what the kernel flipped along spatial {axes} gives: {_UNTURNED}",
                t.laboratory.gradient(t.gs[k], told)[0],
            )
        few = len(t.laboratory.convolutions) == 1 or not t.yardstick.large
        for by in itertools.product((0, 1, -1), repeat=rank if few else 0):
            if not any(by):
                continue
            for which, text, unit, dilation in (
                ("dx", "gradient in the input", "entry", "lhs_dilation"),
                ("dw", "kernel's gradient", "tap", "rhs_dilation"),
            ):
                told = {}
                for n, c in convolutions.items():
                    shifts = tuple(b * d for b, d in zip(by, c.params[dilation], strict=True))
                    told[n] = c.right._replace(**{which: shifts})
                along = " and ".join(f"{n:+d} {unit} along spatial axis {a}" for a, n in enumerate(by) if n)
                yield f"The {text} {name}is shifted by {along}.", t.laboratory.gradient(t.gs[k], told)[0]


def _sites(t: Trial) -> list[tuple[str, tuple[int, ...]]]:
    """Where a mistake may be: in one convolution, counted along the forward pass, or in all."""
    count = len(t.laboratory.convolutions)
    if count <= 1:
        return [("", (n,)) for n in range(count)]
    single = range(count if count <= _CONVOLUTIONS else 0)
    each = [(f"of convolution {n + 1} of {count} ", (n,)) for n in single]
    return [*each, (f"of all {count} convolutions ", tuple(range(count)))]


def _summed_wrongly(t: Trial, w: Wrong) -> str:
    """Whether a bias's gradient is δ summed over other axes, over more, or not over all that it should be; or ""."""
    squeezed = [n for n in w.want.shape if n > 1]
    for delta in t.laboratory.gradient(t.gs[w.k])[1]:
        for kept in itertools.combinations(range(delta.ndim), len(squeezed)):
            axes = tuple(a for a in range(delta.ndim) if a not in kept)
            if [delta.shape[a] for a in kept] != squeezed or not axes:
                continue
            if np.allclose(delta.sum(axes).reshape(w.want.shape), w.want, rtol=1e-9, atol=1e-9 * np.abs(w.want).max()):
                sums = ((name, a.reshape(w.want.shape)) for name, a in _sums(delta, axes))
                return next((name for name, a in sums if (np.abs(a - w.got) <= w.bound).all()), "")
    return ""


def _sums(delta: np.ndarray, right: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Wrong sums of δ that have as many entries as the right one."""
    should, kept = f"δ should be summed over {_axes(right)}", delta.sum(right).shape
    for count in range(1, delta.ndim + 1):
        for axes in itertools.combinations(range(delta.ndim), count):
            if axes != right and delta.sum(axes).shape == kept:
                yield f"{should}, but is over {_axes(axes)}.", delta.sum(axes)
            if set(axes) > set(right):  # what is summed too much is the same at all entries
                yield (
                    f"{should}, but is over {_axes(axes)}.",
                    np.zeros(kept) + delta.sum(axes, keepdims=True).sum(right),
                )
            if set(axes) <= set(right):
                for name, at in (("first", slice(1)), ("last", slice(-1, None))):
                    part = delta[tuple(at if axis in axes else slice(None) for axis in range(delta.ndim))]
                    yield f"{should}, but along {_axes(axes)} only the {name} is taken.", part.sum(right)


def _axes(axes: Sequence[int]) -> str:
    *most, last = map(str, axes)
    return f"axes {', '.join(most)} and {last}" if most else f"axis {last}"


def _pairs(padding: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"({lo}, {hi})" for lo, hi in padding)
