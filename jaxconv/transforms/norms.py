"""Normalisations among the equations of a program, found by what they compute.

lax has no normalisation. A batch, layer, group or instance norm is some twenty equations, other ones in each library:
the variance as a mean of squares less the square of the mean, or as the mean of squared distances; the scale multiplied
first or last; x standardised, or multiplied by one factor and shifted by another. All of them are

    y = (x − μ) / σ · scale + shift    with σ² = variance + ε

So each value is read as a polynomial in arrays of the program and in statistics of them (`polynomials`), in which all
ways to write a norm are one. A value that is none, or none that a norm could be made of, is an array like any other.

`grouped` puts one equation, of the primitive `NORMALISATION`, in the place of the last one of each norm, on the
operands (x, μ, 1/σ, …): the moments are those that the program computes, and nothing is computed twice. What only the
norm needed of the others goes.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as known

from jaxconv.transforms import polynomials
from jaxconv.transforms.polynomials import INVERSES, Atom, Factor, Place, Polynomial, atoms
from jaxconv.transforms.program import called, entry, is_differentiated, is_on_explicit_axes
from jaxconv.windows import accumulator

NORMALISATION = Primitive("normalisation")
NORMALISATION.multiple_results = True

# Beyond these a value is an array like any other: the largest term and the most terms of a norm, and some to spare.
_MOST_FACTORS, _MOST_TERMS = 6, 12
# In 16 bits 1 + 1/n is rounded to 1 for many an n.
_MOST_ROUNDING = 1e-6
# The largest program called by an equation that is read as part of this one, such as `jnp.var`.
_MOST_CALLED = 24


class Norm(NamedTuple):
    """y = (x − μ) · inverse · scale + shift, as the parameters of a `NORMALISATION`.

    The operands are x, then μ if `centred`, then σ or 1/σ, then what scale and shift are made of.

    Attributes:
      axes: of x, those that are standardised together.
      eps: ε.
      centred: whether there is a μ; a root mean square has none.
      rooted: whether σ is given, not 1/σ.
      places: for each operand but x, along which of its axes it varies with which of x: a `Place` that reads x.
      scale, shift: sums of products of operands: ((coefficient, (operand, ...)), ...). An empty scale is 1.
    """

    axes: tuple[int, ...]
    eps: float
    centred: bool
    rooted: bool
    places: tuple[Place, ...]
    scale: tuple[tuple[float, tuple[int, ...]], ...]
    shift: tuple[tuple[float, tuple[int, ...]], ...]

    def operands(self, *given: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array, Any, Any]:
        """x, μ, 1/σ, scale and shift, all shaped to broadcast against x; None for what there is none of."""
        x, *rest = given
        one = jnp.ones([1] * (x.ndim - 1) + [x.shape[-1]], accumulator(x.dtype))
        spread = [_spread(a.astype(one.dtype), place) for a, place in zip(rest, self.places, strict=True)]
        mean = spread[0] if self.centred else None
        inverse = 1 / spread[self.centred] if self.rooted else spread[self.centred]
        scale, shift = (_evaluated(terms, spread, one) for terms in (self.scale, self.shift))
        return x, mean, inverse, scale, shift


def _spread(a: jax.Array, place: Place) -> jax.Array:
    """An array with an axis for each of x, of size 1 where it does not vary."""
    there = [axis for axis in place if axis >= 0]
    rest = [axis for axis in range(a.ndim) if axis not in there]
    moved = a.transpose(*there, *rest)
    return moved.reshape([a.shape[axis] if axis >= 0 else 1 for axis in place])


def _evaluated(terms: Any, values: Sequence[jax.Array], one: jax.Array) -> jax.Array | None:
    products = []
    for coefficient, those in terms:
        factors = [values[i] for i in those]
        products.append(math.prod(factors[1:], start=factors[0]) if factors else one)
        products[-1] = products[-1] if coefficient == 1 else coefficient * products[-1]
    return sum(products[1:], start=products[0]) if products else None


# Each program as it is read, while somebody has it.
_GROUPED: weakref.WeakKeyDictionary[Jaxpr, Jaxpr | None] = weakref.WeakKeyDictionary()


def grouped(jaxpr: Jaxpr) -> Jaxpr:
    """The program with one equation for each norm of its own; those of the programs within are theirs."""
    if not any(eqn.primitive in _ROOTS for eqn in jaxpr.eqns):
        return jaxpr
    if jaxpr not in _GROUPED:
        norms = _Reading(jaxpr).norms if all(isinstance(n, int) for n in _sizes(jaxpr)) else {}
        _GROUPED[jaxpr] = _with(norms, jaxpr) if norms else None
    return _GROUPED[jaxpr] or jaxpr


def _sizes(jaxpr: Jaxpr) -> Iterator[Any]:
    for v in (*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)):
        yield from _shape(v)


def _shape(v: Any) -> tuple[Any, ...]:
    return getattr(v.aval, "shape", ())


def _with(norms: dict[Any, tuple[Norm, list[Any]]], jaxpr: Jaxpr) -> Jaxpr:
    eqns = []
    for eqn in jaxpr.eqns:
        if eqn.outvars and eqn.outvars[0] in norms:
            norm, operands = norms[eqn.outvars[0]]
            eqn = eqn.replace(primitive=NORMALISATION, params={"norm": norm}, invars=operands)
        eqns.append(eqn)
    return jaxpr.replace(eqns=_without(_needed(jaxpr), jaxpr, eqns))


def _without(needed: set[Any], jaxpr: Jaxpr, eqns: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """Equations less those that were needed and are so no more; what nobody ever needed stays."""
    read, kept = set(_variables(jaxpr.outvars)), []
    for eqn in reversed(eqns):
        if eqn.effects or not read.isdisjoint(eqn.outvars) or not needed.issuperset(eqn.outvars):
            read.update(_variables(eqn.invars))
            kept.append(eqn)
    return kept[::-1]


def _needed(jaxpr: Jaxpr) -> set[Any]:
    """The variables that results or effects depend on, and those that are made together with them."""
    needed = set(_variables(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(_variables(eqn.invars), eqn.outvars)
    return needed


def _variables(operands: Sequence[Any]) -> list[Any]:
    return [v for v in operands if not isinstance(v, Literal)]


# The walk


class _Reading:
    """A program, its values as polynomials, and the norms that are found on the way: (norm, operands) by its result."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.norms: dict[Any, tuple[Norm, list[Any]]] = {}
        self._arrays: list[Any] = []  # by number; None for those of programs that are called
        self._found: dict[Atom, list[tuple[Any, Place]]] = {}  # variables that are an atom
        self._fixed: set[int] = set()
        self._called = 0
        read = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
        self._uses = Counter(_variables(read))
        self._read(jaxpr, [self._opaque(v) for v in jaxpr.invars])

    def _read(self, jaxpr: Jaxpr, operands: Sequence[Polynomial]) -> list[Polynomial]:
        values: dict[Any, Polynomial] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {v: self._opaque(v, fixed=True) for v in jaxpr.constvars}

        def value(v: Any) -> Polynomial:
            return self._constant(v) if isinstance(v, Literal) else values[v]

        for eqn in jaxpr.eqns:
            made = self._made(eqn, [value(v) for v in eqn.invars])
            if self._called == 0 and not (len(eqn.outvars) == 1 and self._continues(eqn, made)):
                read = [v for v in _variables(eqn.invars) if v in self.norms]
                whole = [v for v in read if polynomials.as_factor(values[v]) is None]
                if whole:
                    values |= {v: self._opaque(v) for v in whole}
                    made = self._made(eqn, [value(v) for v in eqn.invars])
            for v, a in zip(eqn.outvars, made, strict=True):
                values[v] = a
                self._remember(v, a)
        return [value(v) for v in jaxpr.outvars]

    def _made(self, eqn: JaxprEqn, operands: list[Polynomial]) -> list[Polynomial]:
        step = entry(_STEPS, eqn)
        # Sums of integers wrap around, and those of complex numbers are no norm's.
        exact = eqn.primitive in _COMPARISONS or eqn.primitive.name == "pvary" or all(map(_is_floating, eqn.outvars))
        made = None if step is None or not exact else step(self, eqn, operands)
        if made is None:
            made = [None] * len(eqn.outvars)
        made = [
            None if a is None else polynomials.tidied(a, _rounding(v)) for v, a in zip(eqn.outvars, made, strict=True)
        ]
        fixed = all(atom.of in self._fixed for a in operands for atom in atoms(a)) and not eqn.effects
        return [
            a if a is not None and self._kept(v, a) else self._opaque(v, fixed)
            for v, a in zip(eqn.outvars, made, strict=True)
        ]

    def _opaque(self, v: Any, fixed: bool = False) -> Polynomial:
        """A value as an array of the program."""
        if fixed:
            self._fixed.add(len(self._arrays))
        self._arrays.append(None if self._called else v)
        atom, place = Atom(len(self._arrays) - 1), _identity(v)
        if not self._called:
            self._found[atom] = [(v, place)]
        return {((atom, place),): 1.0}

    def _constant(self, v: Any) -> Polynomial:
        kind = np.asarray(v.val).dtype.kind if np.ndim(v.val) == 0 else ""
        return polynomials.constant(float(v.val)) if kind in ("b", "i", "u", "f") else self._opaque(v, fixed=True)

    def _remember(self, v: Any, a: Polynomial) -> None:
        """The variables that are an atom and no more of the same, as operands of a norm."""
        factor = polynomials.as_factor(a)
        if self._called or factor is None or any(n != 1 and i not in factor[1] for i, n in enumerate(_shape(v))):
            return
        found = self._found.setdefault(factor[0], [])
        if (v, factor[1]) not in found:
            found.append((v, factor[1]))

    def _kept(self, v: Any, a: Polynomial) -> bool:
        """Whether a value is worth a polynomial: a number, an array, its square, or part of a norm of one array."""
        there = atoms(a)
        if not there:
            return True
        if len(a) > _MOST_TERMS or any(len(product) > _MOST_FACTORS for product in a):
            return False
        if not all(map(math.isfinite, a.values())):
            return False
        measured = {atom.of for atom in there if atom.kind != "value"}
        if not measured:
            factors, coefficient = polynomials.as_product(a)
            return coefficient == 1 and len(set(factors)) == 1 and len(factors) <= 2
        if len(measured) > 1:
            return False
        (of,) = measured
        return all(atom.of == of or self._size(atom.of) < self._size(of) for atom in there)

    def _size(self, of: int) -> float:
        v = self._arrays[of]
        return math.inf if v is None else math.prod(_shape(v))

    # What an equation makes of polynomials; None for an array like any other

    def _total(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """But where arrays or numbers are added to themselves: (y + z) − z is y as rounded to the places of z."""
        a, b = operands
        plain = [p for p in a.keys() & b.keys() if all(atom.kind == "value" for atom, _ in p)]
        if not _alike(eqn) or (plain and (a.keys() | b.keys()) != {()}):
            return None
        return [polynomials.plus(a, b, -1 if eqn.primitive == known.sub_p else 1)]

    def _product_of(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """But where an array is multiplied by 0, which is NaN if the array is."""
        numbers = [polynomials.as_number(a) for a in operands]
        return None if not _alike(eqn) or (0 in numbers and None in numbers) else [polynomials.times(*operands)]

    def _square(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        return [polynomials.times(operands[0], operands[0])] if eqn.params.get("y", 2) == 2 else None

    def _quotient(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        a, b = operands
        if (number := polynomials.as_number(b)) is not None:
            return [polynomials.times(a, {(): 1 / number})] if number and math.isfinite(number) else None
        product, coefficient = polynomials.as_product(b)
        if not product or not all(atom.kind in INVERSES for atom, _ in product) or not _alike(eqn):
            return None
        inverse = tuple(sorted((atom._replace(kind=INVERSES[atom.kind]), place) for atom, place in product))
        return [polynomials.times(a, {inverse: 1 / coefficient})]

    def _maximum(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """A variance is not negative, so that the larger of it and 0 is itself."""
        rest = [a for a in operands if polynomials.as_number(a) != 0]
        found = polynomials.as_variance(rest[0]) if len(rest) == 1 else None
        return rest if found is not None and found[2] == 0 else None

    def _root(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        power = {known.sqrt_p: 0.5, known.rsqrt_p: -0.5}.get(eqn.primitive)
        power = polynomials.as_number(operands[1]) if power is None else power
        found = polynomials.as_variance(operands[0])
        if found is None or found[2] <= 0 or power not in (0.5, -0.5):
            return None
        root, place, eps = found
        atom = root._replace(eps=eps, kind=root.kind if power > 0 else INVERSES[root.kind])
        return [{((atom, place),): 1.0}]

    def _converted(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """As it is in a dtype that has all its values; what a norm rounds last is still the norm."""
        v: Any = eqn.invars[0]
        old, new = v.aval.dtype, eqn.params["new_dtype"]
        if (number := polynomials.as_number(operands[0])) is not None:
            return [polynomials.constant(float(np.asarray(number).astype(new)))]
        if not jnp.issubdtype(old, jnp.floating):
            return None
        exact = jnp.finfo(new).nmant >= jnp.finfo(old).nmant and jnp.finfo(new).maxexp >= jnp.finfo(old).maxexp
        whole = v in self.norms and polynomials.as_factor(operands[0]) is None
        return operands if exact or whole else None

    def _broadcast(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        to = eqn.params["broadcast_dimensions"]
        return [polynomials.moved(operands[0], lambda i: int(to[i]))] if len(operands) == 1 else None

    def _reshaped(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """Where nothing but axes of size 1 come and go."""
        old, new = ([(i, n) for i, n in enumerate(_shape(v)) if n != 1] for v in (eqn.invars[0], eqn.outvars[0]))
        turned = eqn.primitive == known.reshape_p and eqn.params["dimensions"] is not None
        if [n for _, n in old] != [n for _, n in new] or turned or len(operands) > 1:
            return None
        return [polynomials.moved(operands[0], {i: j for (i, _), (j, _) in zip(old, new, strict=True)}.__getitem__)]

    def _transposed(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        return [polynomials.moved(operands[0], tuple(eqn.params["permutation"]).index)]

    def _summed(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        axes = tuple(eqn.params["axes"])
        if eqn.params.get("axis_index_groups") is not None or not all(isinstance(a, int | np.integer) for a in axes):
            return None
        return [polynomials.summed(a, {*map(int, axes)}, _shape(v)) for a, v in zip(operands, eqn.invars, strict=True)]

    def _compared(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        a, b = map(polynomials.as_number, operands)
        if a is None or b is None:
            return None
        return [{(): 1.0} if _COMPARISONS[eqn.primitive](a, b) else {}]

    def _selected(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        which, *cases = operands
        number = polynomials.as_number(which)
        return None if number is None else [cases[int(number)]]

    def _within(self, eqn: JaxprEqn, operands: list[Polynomial]) -> Any:
        """What a small program makes, as far as that is made of what is here."""
        program = called(eqn)
        if program is None or len(program.jaxpr.eqns) > _MOST_CALLED:
            return None
        self._called += 1
        made = self._read(program.jaxpr, operands)
        self._called -= 1

        def is_here(atom: Atom) -> bool:
            made_there = atom.kind in (*INVERSES, *INVERSES.values()) and atom not in self._found
            return self._arrays[atom.of] is not None and not made_there

        return [a if all(map(is_here, atoms(a))) else None for a in made]

    # Norms

    def _continues(self, eqn: JaxprEqn, made: list[Polynomial]) -> bool:
        """Whether an equation makes a norm; what it reads of it, and nobody else does, is one no more."""
        (v,) = eqn.outvars
        parts = [u for u in _variables(eqn.invars) if u in self.norms]
        if any(self._uses[u] > 1 for u in parts) or (found := self._norm(eqn, v, made[0])) is None:
            return False
        for u in parts:
            self.norms.pop(u, None)
        self.norms[v] = found
        return True

    def _norm(self, eqn: JaxprEqn, v: Any, a: Polynomial) -> tuple[Norm, list[Any]] | None:
        """The norm that a value is, and the variables it is of."""
        whole = _identity(v)
        found = polynomials.as_norm(a, whole)
        if found is None or v.aval.weak_type or not jnp.issubdtype(v.aval.dtype, jnp.floating):
            return None
        (_, along), inverse, scale, shift = found
        centred = inverse.kind == INVERSES["root"]
        x, mean, root = (
            Atom(inverse.of),
            Atom(inverse.of, "mean", inverse.over),
            inverse._replace(kind=_ROOT_OF[inverse.kind]),
        )
        xs = [
            u
            for u, place in self._found[x]
            if (place, u.aval.shape, u.aval.dtype) == (along, v.aval.shape, v.aval.dtype)
        ]
        moments = [mean] * centred + [inverse if inverse in self._found else root]
        if not xs or x.of in self._fixed or is_differentiated(eqn) or not all(atom in self._found for atom in moments):
            return None
        operands, places = [list(column) for column in zip(*(self._found[atom][0] for atom in moments), strict=True)]
        places = [tuple(_at(along, place, i) for i in range(len(whole))) for place in places]
        numbers: dict[Factor, int] = {}
        for factor in (factor for part in (scale, shift) for product in part for factor in product):
            if factor not in numbers:
                numbers[factor] = len(operands)
                operands.append(self._arrays[factor[0].of])
                places.append(tuple(_at(factor[1], range(len(factor[1])), i) for i in range(len(whole))))
        if any(u is None or is_on_explicit_axes(u) for u in (xs[0], *operands)):
            return None
        terms = [
            tuple((c, tuple(numbers[factor] for factor in product)) for product, c in part.items())
            for part in ({} if scale == {(): 1.0} else scale, shift)
        ]
        axes = tuple(sorted(along[i] for i in inverse.over))
        return Norm(axes, inverse.eps, centred, moments[-1] is root, tuple(places), *terms), [xs[0], *operands]


def _at(place: Place, other: Sequence[int], axis: int) -> int:
    """What `other` has where `place` has an axis; −1 where it has it not."""
    return other[place.index(axis)] if axis in place else -1


def _identity(v: Any) -> Place:
    return tuple(i if n != 1 else -1 for i, n in enumerate(_shape(v)))


def _is_floating(v: Any) -> bool:
    dtype: Any = getattr(v.aval, "dtype", np.dtype(bool))
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _rounding(v: Any) -> float:
    """How far from an integer a coefficient is that its dtype has rounded, such as n · (1/n)."""
    return min(4 * float(jnp.finfo(v.aval.dtype).eps), _MOST_ROUNDING) if _is_floating(v) else 0.0


def _alike(eqn: JaxprEqn) -> bool:
    """Whether the operands have the same axes, or one is a number."""
    a, b = (len(_shape(v)) for v in eqn.invars)
    return a == b or 0 in (a, b)


_ROOT_OF = {inverse: root for root, inverse in INVERSES.items()}
_ROOTS = {known.sqrt_p, known.rsqrt_p, known.pow_p}
_COMPARISONS = {
    known.gt_p: operator.gt, known.ge_p: operator.ge, known.lt_p: operator.lt, known.le_p: operator.le,
    known.eq_p: operator.eq, known.ne_p: operator.ne,
}  # fmt: skip
_STEPS: dict[Any, Callable[[_Reading, JaxprEqn, list[Polynomial]], Any]] = {
    known.add_p: _Reading._total,
    known.sub_p: _Reading._total,
    known.neg_p: lambda _, eqn, operands: [polynomials.plus({}, operands[0], -1)],
    known.mul_p: _Reading._product_of,
    known.div_p: _Reading._quotient,
    known.square_p: _Reading._square,
    known.integer_pow_p: _Reading._square,
    known.max_p: _Reading._maximum,
    **dict.fromkeys(_ROOTS, _Reading._root),
    known.convert_element_type_p: _Reading._converted,
    known.broadcast_in_dim_p: _Reading._broadcast,
    known.reshape_p: _Reading._reshaped,
    known.squeeze_p: _Reading._reshaped,
    known.transpose_p: _Reading._transposed,
    known.reduce_sum_p: _Reading._summed,
    "psum": _Reading._summed,
    "pvary": lambda _, eqn, operands: None if None in map(polynomials.as_number, operands) else operands,
    **dict.fromkeys(_COMPARISONS, _Reading._compared),
    known.select_n_p: _Reading._selected,
    known.jit_p: _Reading._within,
}
