"""A function of two arrays, read as a convolution of a batch with channels: where each of its axes belongs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.explanation.reading import Bilinear, Index
from jaxconv.geometry import Layout, inverse, placed

# Where an array has its (batch, channel, *spatial) or (out, in, *taps); None where it has no such axis.
Spec = tuple[int | None, ...]

# S stands for all spatial axes, N, C and O for batch, channels in and channels out.
DATA = {"NHWC": "NSC", "NCHW": "NCS"}
KERNELS = {"NHWC": ("SCO", "OCS", "SOC", "COS"), "NCHW": ("OCS", "SCO", "COS", "SOC")}


class Axes(NamedTuple):
    """What the axes of a function's arrays may be.

    Attributes:
      layout: "NHWC" or "NCHW", in which it is explained.
      x, w, y: where each array has what.
    """

    layout: str
    x: Spec
    w: Spec
    y: Spec

    @property
    def rank(self) -> int:
        return len(self.x) - 2

    def lifted(self, name: str, a: Any) -> Any:
        """An array of the function's as one of the layout's: axes moved, those that it has not of size 1."""
        spec, place = self._specs(name)
        a = a.transpose([axis for axis in spec if axis is not None])
        sizes = iter(a.shape)
        a = a.reshape([1 if axis is None else next(sizes) for axis in spec])
        return a.transpose(inverse(place))

    def lowered(self, name: str, a: Any) -> Any:
        """The inverse of `lifted`."""
        spec, place = self._specs(name)
        a = a.transpose(place)
        a = a.reshape([n for n, axis in zip(a.shape, spec, strict=True) if axis is not None])
        return a.transpose(inverse([axis for axis in spec if axis is not None]))

    def shape(self, name: str, shape: Index) -> Index:
        """The shape of a lifted array."""
        spec, place = self._specs(name)
        first, second, *rest = (1 if axis is None else shape[axis] for axis in spec)
        return placed(place, first, second, rest)

    def spatial(self, name: str, index: Index) -> Index:
        """The spatial part of an index of the function's array."""
        return tuple(index[axis] for axis in self._specs(name)[0][2:] if axis is not None)

    def _specs(self, name: str) -> tuple[Spec, tuple[int, ...]]:
        return getattr(self, name), getattr(Layout.of(self.layout, self.rank), name)


class Layer(NamedTuple):
    """A function found to be a convolution, its arrays lifted into a layout.

    Attributes:
      name: what the function is called.
      call: (x, w) -> y, with its own gradients.
      plain: the same without any.
      x, w: the numbers it was asked about.
      dtype: in which it is asked.
      reads: for each array that is laid out otherwise, a sentence on how it is read.
    """

    name: str
    call: Callable[[jax.Array, jax.Array], jax.Array]
    plain: Callable[[jax.Array, jax.Array], jax.Array]
    x: np.ndarray
    w: np.ndarray
    dtype: Any
    reads: tuple[str, ...]

    def map(self, name: str) -> Bilinear:
        """One of the three maps; a gradient at the x or w that was given, which it should not depend on."""

        def input_grad(g: jax.Array, w: jax.Array) -> jax.Array:
            return jax.vjp(self.call, jnp.asarray(self.x, self.dtype), w)[1](g)[0]

        def kernel_grad(x: jax.Array, g: jax.Array) -> jax.Array:
            return jax.vjp(self.call, x, jnp.asarray(self.w, self.dtype))[1](g)[1]

        return {"y": self.plain, "dx": input_grad, "dw": kernel_grad}[name]


def readings(x: Index, w: Index, y: Index, layout: str) -> Iterator[Axes]:
    """What axes of such numbers and sizes may be, the most complete first, and `layout` before the other one."""
    seen = set()
    presence = sorted(itertools.product((True, False), repeat=4), key=sum, reverse=True)
    for batch, inputs, kernel_inputs, outputs in presence:
        rank = len(x) - batch - inputs
        if rank < 1 or len(w) != rank + kernel_inputs + outputs or len(y) != rank + batch + outputs:
            continue
        for name in (layout, *(other for other in DATA if other != layout)):
            for kernel in KERNELS[name]:
                axes = Axes(
                    name,
                    _spec(DATA[name], rank, N=batch, C=inputs),
                    _spec(kernel, rank, O=outputs, C=kernel_inputs),
                    _spec(DATA[name], rank, N=batch, C=outputs),
                )
                # Where an axis of one element is, makes no difference.
                long = tuple(
                    tuple(None if axis is None or shape[axis] == 1 else axis for axis in spec)
                    for spec, shape in ((axes.x, x), (axes.w, w), (axes.y, y))
                )
                if long not in seen and _agree(axes, x, w, y):
                    seen.add(long)
                    yield axes


def _spec(order: str, rank: int, **present: bool) -> Spec:
    """Where the two named dimensions and the spatial ones are, in this order, those not present left out."""
    place: dict[str, int | None] = {}
    spatial, at = range(0), 0
    for letter in order:
        if letter == "S":
            spatial, at = range(at, at + rank), at + rank
        else:
            place[letter] = at if present[letter] else None
            at += present[letter]
    return (*(place[letter] for letter in present), *spatial)


def _agree(axes: Axes, x: Index, w: Index, y: Index) -> bool:
    """Whether the sizes are those of a convolution: the same batch, the same outputs, groups that divide both."""
    (n, c), (o, i), (m, outputs) = (
        tuple(1 if axis is None else shape[axis] for axis in spec[:2])
        for spec, shape in ((axes.x, x), (axes.w, w), (axes.y, y))
    )
    return n == m and o == outputs and c % i == 0 and o % (c // i) == 0
