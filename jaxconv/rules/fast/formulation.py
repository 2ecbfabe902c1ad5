"""What a formulation is: one way to compute one of the three maps, as a value.

The file that writes a formulation ends in `offers`: from a `Call` to the values that `choice` may hand out for it, none
where it cannot be computed that way. Whether a formulation *pays* is what was measured on a CPU; `choice` knows where
that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax

from jaxconv.geometry import Geometry


@dataclass(frozen=True)
class Call:
    """What is to be computed: one of the maps, and all that is known of its operands before there are any.

    Attributes:
      map: "conv", "input_grad" or "kernel_grad".
      platform: what it is computed on, as JAX names it; None for what every platform runs well.
      dtype: of the operands.
      geometry: in any layout; nothing depends on it.
      batch, inputs, outputs: examples, channels of x and channels of y, those of all groups.
      turned: whether the kernel of a "conv" has been turned around, as it is for an input gradient.
      engine: who may compute: "auto", "xla" or the name of an engine.
      result: the dtype of the result; None for that of the operands, its sums carried in 32 bits or more.
    """

    map: str
    platform: str | None
    dtype: Any
    geometry: Geometry
    batch: int
    inputs: int
    outputs: int
    turned: bool = False
    engine: str = "xla"
    result: Any = None

    @property
    def dilated(self) -> bool:
        """Whether there are zeros between the elements of x."""
        return any(e > 1 for e in self.geometry.input_dilation)

    def full(self) -> Call:
        """The convolution that this "input_grad" is: of δ, with the kernel turned around."""
        return replace(
            self, map="conv", geometry=self.geometry.full(), inputs=self.outputs, outputs=self.inputs, turned=True
        )


class Maps(Protocol):
    """How a formulation is to sum, and the maps again, for what it makes of its own call: smaller calls."""

    @property
    def dtype(self) -> Any:
        """Of the result."""

    @property
    def precision(self) -> Any: ...

    def conv(self, x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array: ...

    def kernel_grad(self, x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array: ...

    def turned(self) -> Maps:
        """The same, to a kernel that has been turned around."""


@dataclass(frozen=True)
class Formulation:
    """One way to compute a call.

    Attributes:
      name: what `plan` calls it.
      compute: (a, b, geometry, maps) -> the map of its operands, channels-last and unflipped, in `maps.dtype`.
      why: the reason to take it.
      holds: what it keeps in memory beside operands and result.
      pays: whether it is faster than `lax`, as far as was measured.
      why_not: where it does not pay, the reason if it is one that a user should know.
      any_layout: whether it computes on any layout, and on kernels to be flipped, as they are.
      variant: what tells it from others of its name that are offered for the same call.
    """

    name: str
    compute: Callable[[jax.Array, jax.Array, Geometry, Maps], jax.Array]
    why: str
    holds: str = "nothing"
    pays: bool = True
    why_not: str = ""
    any_layout: bool = False
    variant: str = ""

    @property
    def label(self) -> str:
        """What it alone is called among all that compute a call."""
        return f"{self.name}: {self.variant}" if self.variant else self.name
