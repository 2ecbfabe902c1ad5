"""Values of a program as polynomials in its arrays and in statistics of these.

However a norm is written, it is the same polynomial in x, in the mean μ of x and in 1/σ; and the mean of the squares
less the square of the mean is the same as the mean of the squared distances from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Atom(NamedTuple):
    """What polynomials are made of: an array of the program, or a statistic of one.

    Attributes:
      of: the number of the array.
      kind: "value"; "mean" or "square", of its entries or of their squares; "root" for √(variance + ε), "inverse" for 1
        over that, and likewise "root square" and "inverse square" of the mean of squares.
      over: the axes of the array that a statistic is taken over.
      eps: ε of a root.
    """

    of: int
    kind: str = "value"
    over: tuple[int, ...] = ()
    eps: float = 0.0


# For each axis of the array that an atom is of, the axis of the value that it varies along; −1 if it does not.
Place = tuple[int, ...]
Factor = tuple[Atom, Place]
# Products of factors, in order, with their coefficients. A number is the empty product.
Polynomial = dict[tuple[Factor, ...], float]

# What 1 over a root is called.
INVERSES = {"root": "inverse", "root square": "inverse square"}


def plus(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    total = dict(a)
    for product, coefficient in b.items():
        total[product] = total.get(product, 0.0) + sign * coefficient
    return {product: c for product, c in total.items() if c != 0}


def times(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for p, c in a.items():
        for q, d in b.items():
            product = tuple(sorted(p + q))
            total[product] = total.get(product, 0.0) + c * d
    return {product: c for product, c in total.items() if c != 0}


def constant(number: float) -> Polynomial:
    return {(): number} if number != 0 else {}


def tidied(a: Polynomial, rounding: float) -> Polynomial:
    """The polynomial with coefficients that are integers but for rounding as these integers."""

    def tidy(c: float) -> float:
        nearest = round(c) if math.isfinite(c) else c
        return float(nearest) if nearest and abs(c - nearest) <= rounding * abs(c) else c

    return {product: tidy(c) for product, c in a.items()}


def as_number(a: Polynomial) -> float | None:
    """The number that a polynomial is."""
    return None if a.keys() - {()} else a.get((), 0.0)


def as_product(a: Polynomial) -> tuple[tuple[Factor, ...], float]:
    """The factors and the coefficient of a polynomial that is one product; none and 0 of another."""
    ((factors, coefficient),) = a.items() if len(a) == 1 else (((), 0.0),)
    return factors, coefficient


def as_factor(a: Polynomial) -> Factor | None:
    """The factor that a polynomial is."""
    factors, coefficient = as_product(a)
    return factors[0] if coefficient == 1 and len(factors) == 1 else None


def atoms(a: Polynomial) -> set[Atom]:
    return {atom for product in a for atom, _ in product}


def moved(a: Polynomial, axes: Callable[[int], int]) -> Polynomial:
    """The polynomial of a value whose axis i is axis `axes(i)` of another."""
    return {
        tuple(sorted((atom, tuple(axes(i) if i >= 0 else i for i in place)) for atom, place in product)): c
        for product, c in a.items()
    }


def as_variance(a: Polynomial) -> tuple[Atom, Place, float] | None:
    """A variance or a mean square, with a number added, that a polynomial is: its root, its place, the number."""
    rest = {product: c for product, c in a.items() if product}
    squares = [product[0] for product in rest if len(product) == 1 and product[0][0].kind == "square"]
    if len(squares) != 1 or rest[(squares[0],)] != 1:
        return None
    (square, place), kind = squares[0], "root square"
    if len(rest) == 2:
        mean = square._replace(kind="mean"), place
        if rest.get((mean, mean)) != -1:
            return None
        kind = "root"
    elif len(rest) != 1:
        return None
    return square._replace(kind=kind), place, a.get((), 0.0)


def summed(a: Polynomial, axes: set[int], shape: tuple[int, ...]) -> Polynomial | None:
    """The sum over axes of a value of this shape, by the means over them; None of products that have no such."""
    count = math.prod(shape[axis] for axis in axes)
    total: Polynomial = {}
    for product, c in a.items():
        varying = [factor for factor in product if axes.intersection(factor[1])]
        rest = [factor for factor in product if factor not in varying]
        if varying:
            (atom, place), *more = varying
            kinds = {"value": ("mean", "square"), "mean": ("mean",), "square": ("square",)}.get(atom.kind, ())
            if any(factor != (atom, place) for factor in more) or len(varying) > len(kinds):
                return None
            over = tuple(i for i, axis in enumerate(place) if axis in axes)
            kept = tuple(-1 if axis in axes else axis for axis in place)
            rest.append((Atom(atom.of, kinds[len(more)], tuple(sorted({*atom.over, *over}))), kept))
        total = plus(total, {tuple(sorted(rest)): c * count})
    return moved(total, lambda i: i - sum(axis < i for axis in axes))


def as_norm(a: Polynomial, whole: Place) -> tuple[Factor, Atom, Polynomial, Polynomial] | None:
    """(x − μ) · inverse · scale + shift, or without μ of a root mean square: x, inverse, scale and shift."""
    inverses = {factor for product in a for factor in product if factor[0].kind in INVERSES.values()}
    if len(inverses) != 1:
        return None
    (inverse,) = inverses
    over = inverse[0].over
    xs = [factor for factor in {f for product in a for f in product} if factor[0] == Atom(inverse[0].of)]
    if len(xs) != 1 or _axes(xs[0][1]) != _axes(whole):
        return None
    x, mean = xs[0], (Atom(inverse[0].of, "mean", over), inverse[1])
    scale: Polynomial = {}
    less, shift = dict(scale), dict(scale)
    for product, c in a.items():
        gone: tuple[Factor, Factor] | None
        part, gone = (scale, (x, inverse)) if x in product else (less, (mean, inverse))
        if inverse not in product:
            part, gone = shift, None
        if (rest := _without(product, gone)) is None:
            return None
        part[rest] = c
    left = {atom for part in (scale, shift) for atom in atoms(part)}
    centred = scale if inverse[0].kind == INVERSES["root"] else {}
    if not scale or plus(less, centred) or any(atom.kind != "value" or atom.of == inverse[0].of for atom in left):
        return None
    kept = tuple(-1 if i in over else axis for i, axis in enumerate(x[1]))
    return (x, inverse[0], scale, shift) if inverse[1] == kept else None


def _axes(place: Place) -> list[int]:
    """Those that a factor varies along."""
    return sorted(axis for axis in place if axis >= 0)


def _without(product: tuple[Factor, ...], gone: tuple[Factor, Factor] | None) -> tuple[Factor, ...] | None:
    """A product divided by two factors of it."""
    rest = list(product)
    for factor in gone or ():
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)
