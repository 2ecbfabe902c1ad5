"""Which formulation each map takes, and why: pure functions of platform, dtype and sizes.

A choice other than "lax" is one that was measured to be faster, on the platform it is made for; the figures stand in
`experiments/results/benchmark.json`. So far that platform is the CPU. Anywhere else the only choice is the exact
one: a layer without spatial axes is a matrix product.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxconv.geometry import Geometry
from jaxconv.rules.fast import patches, products, shifts

# The most terms per output that are worth adding up one by one rather than multiplied as matrices.
TERMS = 80
# The same where the kernel has been turned around, as it is for an input gradient: XLA turns it again for each term.
TURNED_TERMS = 40
# A product with so few columns runs far below the speed of a wide one.
FEW = 4
# A kernel gradient this large costs more to add up than the patches of a step cost to multiply.
LARGE = 2**20


class Choice(NamedTuple):
    """A formulation by name, the reason for it, and what it keeps in memory beside operands and result."""

    formulation: str
    why: str
    holds: str = "nothing"


EMPTY = Choice("lax", "there is nothing to compute")
EIGHT_BITS = Choice("lax", "some floats of 8 bits have no zero to pad with")
UNKNOWN = Choice("lax", "a size is symbolic")
ELSEWHERE = Choice("lax", "on this platform nothing else has been measured to be faster")
UNBEATEN = Choice("lax", "nothing that was tried is faster here")
DENSE = Choice("product", "no spatial axes: a matrix product")
PADDED_X = "a padded copy of x"


def _anywhere(platform: str | None, dtype: Any, geometry: Geometry, *sizes: int) -> Choice | None:
    """The choice that does not depend on which of the maps it is for, if there is one."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2:
        return EIGHT_BITS
    if geometry.rank == 0 and 0 not in sizes:
        return DENSE
    if not all(isinstance(size, int) for size in (*sizes, *geometry.spatial)):
        return UNKNOWN
    if 0 in (*sizes, *geometry.spatial, *geometry.out):
        return EMPTY
    return ELSEWHERE if platform != "cpu" else None


def conv(
    platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int, turned: bool = False
) -> Choice:
    """The formulation of `conv` on `batch` examples with `inputs` channels; `turned`: it is an input gradient."""
    if general := _anywhere(platform, dtype, geometry, batch, inputs, outputs):
        return general
    per_group, dilated = inputs // geometry.groups, max(geometry.input_dilation) > 1
    if dilated and max(geometry.stride) > 1:
        return UNBEATEN
    if dilated and geometry.groups > 1:
        return Choice("phases", "one convolution per residue class of the input dilation", "the classes of y")
    if dilated:
        aligned = all(a.input_dilation % a.dilation == 0 for a in geometry.axes)
        if aligned and outputs <= FEW:
            why = f"{outputs} <= {FEW} output channels: the residue classes side by side make a wider product"
            return Choice("merged phases", why, "the classes of y")
        return UNBEATEN
    if geometry.groups == 1:
        return UNBEATEN
    if per_group == 1:
        holds = "nothing" if shifts.few(geometry) else PADDED_X
        return Choice("shifts", "one channel per group: there is no sum over channels", holds)
    terms, most = per_group * math.prod(geometry.taps), TURNED_TERMS if turned else TERMS
    if terms <= most:
        return Choice("shifts", f"{terms} <= {most} terms per output are faster added than multiplied", PADDED_X)
    return Choice("blocks", "a few groups at a time make a dense convolution", "one block of x and of y")


def input_grad(platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int) -> Choice:
    """The formulation of `input_grad`; "full": the full convolution of δ, by the formulation `conv` takes for it."""
    if general := _anywhere(platform, dtype, geometry, batch, inputs, outputs):
        return general
    if geometry.groups == 1 and max(geometry.input_dilation) == 1:
        if products.disjoint(geometry):
            if products.gapless(geometry):
                return Choice("product", "windows tile x: δ · Wᵀ is a reshaped dx", "dx once more")
            return UNBEATEN
        columns = math.prod(geometry.taps) * inputs
        if columns <= 2 * outputs:
            why = f"{columns} columns of Wᵀ <= 2 · {outputs} of δ: multiply, then add where windows overlap"
            return Choice("fold", why, f"the products, {columns} / {outputs} times δ")
    inner = conv(platform, dtype, geometry.full(), batch, outputs, inputs, turned=True)
    if inner.formulation == "lax":
        return inner
    return Choice("full", f"the full convolution of δ, by {inner.formulation}: {inner.why}", inner.holds)


def kernel_grad(platform: str | None, dtype: Any, geometry: Geometry, batch: int, inputs: int, outputs: int) -> Choice:
    """The formulation of `kernel_grad`."""
    if general := _anywhere(platform, dtype, geometry, batch, inputs, outputs):
        return general
    if max(geometry.input_dilation) > 1:
        return UNBEATEN
    if geometry.groups > 1:
        if inputs == geometry.groups and outputs <= FEW * inputs:
            return Choice("shifts", "one channel per group: products of shifted copies, summed over rows", PADDED_X)
        return Choice("blocks", "a few groups at a time make a dense kernel gradient", "x and δ block by block")
    if products.disjoint(geometry):
        return Choice("product", "windows do not overlap: x cut into them is the matrix of patches", "x once more")
    if geometry.rank == 1:
        return UNBEATEN
    entries = outputs * inputs * math.prod(geometry.taps)
    if entries > LARGE and not patches.whole(geometry, batch, inputs):
        return Choice("lax", f"dw has {entries} > {LARGE} entries: adding it up step by step costs too much")
    return Choice("patches", "gᵀ · X for the patches X of a few rows at a time", f"{PADDED_X}, and one step's patches")
