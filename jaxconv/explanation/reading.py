"""Which products make up an entry of a bilinear map, found by asking the map.

A bilinear map is a table of coefficients M that nobody has written down:

    out[a] = Σ_{i,j} M[a, i, j] · left[i] · right[j]

Its derivative in `left` at entry a is a row of sums, u(right)[i] = Σ_j M[a, i, j] · right[j]. In a convolution each
left[i] meets at most one right[j] on its way to one entry. Then three questions tell the whole row:

    u(1, 1, 1, …)[i] = m        u(0, 1, 2, …)[i] = m · j        u(r_0, r_1, r_2, …)[i] = m · r_j  for random r

a coefficient, its partner as a quotient, and a check that fails (with probability 1) where left[i] has several
partners after all. Such rows, which only wrong rules have, are asked partner by partner.

Source: 1-sparse recovery, the elementary step of compressed sensing by group testing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Index = tuple[int, ...]
Bilinear = Callable[[jax.Array, jax.Array], jax.Array]

# Relative; in float64 integers up to 2^53 are exact, in float32 up to 2^24.
NEGLIGIBLE = {8: 1e-9, 4: 1e-5}


class Product(NamedTuple):
    """coefficient · left[i] · right[j], a summand of an entry."""

    coefficient: float
    left: Index
    right: Index


class Reader:
    """Reads the summands of entries of a bilinear map, whose arrays have shapes left, right and out, in a dtype."""

    def __init__(self, bilinear: Bilinear, left: Index, right: Index, out: Index, dtype: Any = np.float64) -> None:
        self.bilinear, self.left, self.right, self.out = bilinear, left, right, out
        self.dtype, self.negligible = np.dtype(dtype), NEGLIGIBLE[np.dtype(dtype).itemsize]
        size = math.prod(right)
        self.random = np.random.default_rng(0).uniform(1, 2, size)
        self.questions = np.stack([np.ones(size), np.arange(size), self.random]).reshape(3, *right).astype(dtype)
        self.ask = jax.jit(jax.vmap(self._sums, (0, None)))

    def products(self, entry: Index) -> tuple[Product, ...]:
        """The summands of one entry, in the order of left."""
        with jax.enable_x64(True):
            answers = np.asarray(self.ask(self.questions, np.ravel_multi_index(entry, self.out)))
            m, located, checked = answers.reshape(3, -1)
            negligible = self.negligible * max(1.0, float(np.abs(checked).max(initial=0)))
            found = []
            for i in np.flatnonzero((np.abs(m) > negligible) | (np.abs(checked) > negligible)):
                j = round(located[i] / m[i]) if abs(m[i]) > negligible else -1
                alone = 0 <= j < self.random.size and (
                    abs(located[i] - m[i] * j) <= negligible * (1 + j)
                    and abs(checked[i] - m[i] * self.random[j]) <= negligible
                )
                partners = [(float(m[i]), j)] if alone else self._partners(int(i), entry)
                here = _index(int(i), self.left)
                found += [Product(_plain(c, self.negligible), here, _index(j, self.right)) for c, j in partners]
            return tuple(found)

    def _sums(self, right: jax.Array, place: jax.Array) -> jax.Array:
        """u(right) for the entry at that flat place."""
        y, backward = jax.vjp(lambda left: self.bilinear(left, right), jnp.zeros(self.left, self.dtype))
        (u,) = backward(jnp.zeros(y.size, y.dtype).at[place].set(1).reshape(y.shape))
        return u

    def _partners(self, i: int, entry: Index) -> list[tuple[float, int]]:
        """Everything that left[i] meets on its way to the entry: the derivative in `right` where left is one-hot."""
        only = jnp.zeros(math.prod(self.left), self.dtype).at[i].set(1).reshape(self.left)
        y, backward = jax.vjp(lambda right: self.bilinear(only, right), jnp.zeros(self.right, self.dtype))
        (u,) = backward(jnp.zeros(y.shape, y.dtype).at[entry].set(1))
        u = np.asarray(u).ravel()
        return [(float(u[j]), int(j)) for j in np.flatnonzero(np.abs(u) > self.negligible)]


def _index(place: int, shape: Index) -> Index:
    return tuple(int(k) for k in np.unravel_index(place, shape))


def _plain(coefficient: float, negligible: float) -> float:
    """Rounding removed from what is a whole number."""
    whole = round(coefficient)
    return float(whole) if abs(coefficient - whole) <= negligible * max(1, abs(whole)) else coefficient
