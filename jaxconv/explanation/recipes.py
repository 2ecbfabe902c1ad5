"""The three maps as the convolutions they are: what is dilated, padded, rotated, exchanged and moved, in numbers.

Every map is one plain convolution once its two operands are prepared:

    result[b, p, o] = Σ_{c,k} operand[b, s·p + d·k, c] · kernel[k, c, o]        in each group

A `Recipe` says how to prepare them, and `follow` does what it says in NumPy, step by step and on whatever numbers: so a
picture can show the steps, and a test that they lead to the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxconv.geometry import Geometry, inverse, placed

Pairs = tuple[tuple[int, int], ...]


def primal(name: str) -> str:
    """Whose shape and layout an array has: δ those of y, a gradient those of what it is the gradient in."""
    return {"g": "y", "dx": "x", "dw": "w"}.get(name, name)


@dataclass(frozen=True)
class Recipe:
    """How to compute one of the three maps by moving one array over another. Spatial options have one entry per axis.

    Attributes:
      map: "conv", "input_grad" or "kernel_grad".
      result: what it computes: "y", "dx" or "dw".
      operand: the array that is moved over: "x" or "g".
      kernel: the array that moves: "w" or "g".
      operand_dilation: how far apart the operand's elements are moved, zeros between them.
      padding: zeros added to the (dilated) operand at its low and high end; what is negative is cropped.
      padding_rule: where these numbers come from, in the words of `jaxconv.geometry.Axis`.
      kernel_dilation: distance between the kernel's elements.
      stride: step of the kernel.
      rotated: whether the kernel is rotated by 180° first.
      exchanged: the arrays whose channels change places within each group: for w, inputs and outputs; for x and g,
        batch and channels, so that the batch is what is summed.
      result_rotated: whether the result is rotated by 180° last.
      geometry: whose maps these are.
    """

    map: str
    result: str
    operand: str
    kernel: str
    operand_dilation: tuple[int, ...]
    padding: Pairs
    padding_rule: str
    kernel_dilation: tuple[int, ...]
    stride: tuple[int, ...]
    rotated: bool
    exchanged: tuple[str, ...]
    result_rotated: bool
    geometry: Geometry

    @property
    def factors(self) -> tuple[str, str]:
        """The two arrays whose entries are multiplied."""
        return self.operand, self.kernel

    def layout(self, name: str) -> tuple[int, ...]:
        """Where (batch, channel, *spatial), or (out, in, *taps), live in an array of that name."""
        return self.geometry.layout._asdict()[primal(name)]

    @property
    def positions(self) -> tuple[int, ...]:
        """How many places the kernel visits along each axis."""
        return {"y": self.geometry.out, "dx": self.geometry.spatial, "dw": self.geometry.taps}[self.result]

    def prepared_operand(self, a: np.ndarray) -> np.ndarray:
        """(group, batch, channel, *spatial), dilated, padded and cropped."""
        a = self._arranged(a, self.operand)
        for axis, (step, (lo, hi)) in enumerate(zip(self.operand_dilation, self.padding, strict=True), start=3):
            a = _cropped(_dilated(a, axis, step), axis, lo, hi)
        return a

    def prepared_kernel(self, b: np.ndarray) -> np.ndarray:
        """(group, output, channel, *taps), rotated; not dilated: `window` skips what dilation would fill with zeros."""
        b = self._arranged(b, self.kernel)
        return _rotated(b) if self.rotated else b

    def window(self, position: tuple[int, ...], taps: tuple[int, ...]) -> tuple[slice, ...]:
        """The elements of the prepared operand under a kernel of these taps."""
        steps = zip(position, taps, self.stride, self.kernel_dilation, strict=True)
        return tuple(slice(s * p, s * p + d * (k - 1) + 1, d) for p, k, s, d in steps)

    def follow(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The map itself: a and b as the op gets them, the result as it returns it."""
        operand, kernel = self.prepared_operand(a), self.prepared_kernel(b)
        groups, batch, outputs, taps = *operand.shape[:2], kernel.shape[1], kernel.shape[3:]
        out = np.zeros((groups, batch, outputs, *self.positions))
        if not (operand.size and kernel.size):
            pass
        elif math.prod(taps) < math.prod(self.positions):  # the same sums, in fewer steps
            for tap in np.ndindex(*taps):
                under = operand[:, :, :, *self._read_by(tap)]
                out += (kernel[:, None, :, :, *tap] @ under.reshape(*under.shape[:3], -1)).reshape(out.shape)
        else:
            flat = kernel.reshape(groups, outputs, -1)
            for position in np.ndindex(*self.positions):
                under = operand[:, :, :, *self.window(position, taps)]
                out[:, :, :, *position] = under.reshape(groups, batch, -1) @ flat.swapaxes(1, 2)
        return self._restored(_rotated(out) if self.result_rotated else out)

    def _read_by(self, tap: tuple[int, ...]) -> tuple[slice, ...]:
        """The elements of the prepared operand that a tap meets, over all positions."""
        steps = zip(tap, self.positions, self.stride, self.kernel_dilation, strict=True)
        return tuple(slice(d * k, d * k + s * (n - 1) + 1, s) for k, n, s, d in steps)

    def _arranged(self, a: np.ndarray, name: str) -> np.ndarray:
        """An array of the op as (group, n, channel, *spatial), or (group, out, in, *taps); exchanged if that is due."""
        groups, split = self.geometry.groups, 0 if name == "w" else 1
        a = a.transpose(self.layout(name))
        a = a.reshape(*a.shape[:split], groups, a.shape[split] // groups, *a.shape[split + 1 :])
        a = np.moveaxis(a, split, 0)
        return a.swapaxes(1, 2) if name in self.exchanged else a

    def _restored(self, out: np.ndarray) -> np.ndarray:
        """The inverse of `_arranged` for the result."""
        if self.result == "dw":
            out = out.swapaxes(1, 2)  # the outputs first
            out = out.reshape(out.shape[0] * out.shape[1], *out.shape[2:])
        else:
            out = np.moveaxis(out, 0, 1)
            out = out.reshape(out.shape[0], out.shape[1] * out.shape[2], *out.shape[3:])
        return out.transpose(inverse(self.layout(self.result)))

    def kernel_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the w that moves, for a w of this shape: 20 filters of depth 3 become 3 of depth 20."""
        layout, groups = self.geometry.layout.w, self.geometry.groups
        outputs, inputs, *taps = (shape[axis] for axis in layout)
        if "w" in self.exchanged:
            outputs, inputs = inputs * groups, outputs // groups
        return placed(layout, outputs, inputs, taps)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "map": self.map,
            "operand": self.operand,
            "operand_dilation": list(self.operand_dilation),
            "padding": [list(pair) for pair in self.padding],
            "padding_rule": self.padding_rule,
            "kernel": self.kernel,
            "rotated": self.rotated,
            "exchanged": list(self.exchanged),
            "kernel_dilation": list(self.kernel_dilation),
            "stride": list(self.stride),
            "result_rotated": self.result_rotated,
        }


def recipes(geometry: Geometry) -> dict[str, Recipe]:
    """The three maps of a convolution, by what they compute: y, dx and dw."""
    flipped = geometry.flip_kernel
    return {
        "y": Recipe(
            "conv", "y", "x", "w", geometry.input_dilation, geometry.padding, "lo, hi",
            geometry.dilation, geometry.stride, flipped, (), False, geometry,
        ),
        "dx": Recipe(
            "input_grad", "dx", "g", "w", geometry.stride, geometry.input_grad_padding,
            "span − 1 − lo, span − 1 − hi + unread", geometry.dilation, geometry.input_dilation, not flipped, ("w",),
            False, geometry,
        ),
        "dw": Recipe(
            "kernel_grad", "dw", "x", "g", geometry.input_dilation, geometry.kernel_grad_padding, "lo, hi − unread",
            geometry.stride, geometry.dilation, False, ("x", "g"), flipped, geometry,
        ),
    }  # fmt: skip


def _dilated(a: np.ndarray, axis: int, step: int) -> np.ndarray:
    """`step − 1` zeros between neighbours."""
    n = a.shape[axis]
    wide = np.zeros((*a.shape[:axis], (n - 1) * step + 1 if n else 0, *a.shape[axis + 1 :]), a.dtype)
    wide[(slice(None),) * axis + (slice(None, None, step),)] = a
    return wide


def _cropped(a: np.ndarray, axis: int, lo: int, hi: int) -> np.ndarray:
    """Zeros at both ends; where negative, elements taken away instead, those just added included."""
    before = (slice(None),) * axis
    grown = np.pad(a, [(max(lo, 0), max(hi, 0)) if i == axis else (0, 0) for i in range(a.ndim)])
    return grown[(*before, slice(max(-lo, 0), grown.shape[axis] - max(-hi, 0)))]


def _rotated(a: np.ndarray) -> np.ndarray:
    """Every spatial axis reversed."""
    return np.flip(a, tuple(range(3, a.ndim)))
