"""The layers to measure: sizes that real networks have, as a table."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

Shape = tuple[int, ...]


def _sizes(*sizes: int) -> str:
    """8×56² for (8, 56, 56)."""
    square = len(sizes) > 2 and sizes[-1] == sizes[-2]
    return "×".join(map(str, sizes[:-2] if square else sizes)) + (f"×{sizes[-1]}²" if square else "")


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Random numbers, in a large array over and over the same: they take longer to draw than most layers to run."""
    return np.resize(rng.standard_normal(min(math.prod(shape), 1 << 22), np.float32), shape)


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, or its transpose; without spatial axes, a dense layer.

    `padding` is the same at both ends of every axis; by default it centres the window. A transposed convolution
    multiplies each size by its stride.
    """

    n: int
    spatial: Shape
    inputs: int
    outputs: int
    taps: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    padding: int | None = None
    transposed: bool = False

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def span(self) -> int:
        return self.dilation * (self.taps - 1) + 1

    @property
    def border(self) -> int:
        return (self.span - 1) // 2 if self.padding is None else self.padding

    @property
    def output_padding(self) -> int:
        """What a transposed convolution adds at the high end to multiply the size by its stride."""
        return self.stride - (self.span - 2 * self.border)

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.inputs == self.outputs

    @property
    def name(self) -> str:
        """N×H², C→O, k/s, and what is unusual."""
        kind = f"{self.taps}/{self.stride}" if self.rank else "dense"
        parts = [_sizes(self.n, *self.spatial), f"{self.inputs}" + ("" if self.depthwise else f"→{self.outputs}"), kind]
        if self.groups > 1:
            parts.append("depthwise" if self.depthwise else f"{self.groups} groups")
        if self.dilation > 1:
            parts.append(f"dilation {self.dilation}")
        if self.transposed:
            parts.append("transposed")
        return ", ".join(parts)

    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Of x, w and g: (n, *spatial, c), (*taps, c // groups, o) and (n, *out, o).

        The kernel of a transposed convolution is that of the convolution it transposes: (*taps, o, c).
        """
        if self.transposed:
            out = [size * self.stride for size in self.spatial]
        else:
            out = [(size + 2 * self.border - self.span) // self.stride + 1 for size in self.spatial]
        channels = (self.outputs, self.inputs) if self.transposed else (self.inputs // self.groups, self.outputs)
        taps = (self.taps,) * self.rank
        return (self.n, *self.spatial, self.inputs), (*taps, *channels), (self.n, *out, self.outputs)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random x, w and g; the kernel is scaled so that y is as large as x."""
        rng, (_, w_shape, _) = np.random.default_rng(0), self.shapes()
        x, w, g = (_normal(rng, shape) for shape in self.shapes())
        return x, w / math.sqrt(math.prod((*w_shape[:-2], w_shape[-1 if self.transposed else -2]))), g

    def shrunk(self) -> Self:
        """The same kind of layer, for a test."""
        groups = 1 if self.groups == 1 else 4 if self.depthwise else 2
        inputs, outputs = (min(self.inputs, 3), min(self.outputs, 5)) if groups == 1 else (4, 4)
        spatial = tuple(min(size, self.span + 2 * self.stride + i) for i, size in enumerate(self.spatial))
        return dataclasses.replace(self, n=2, spatial=spatial, inputs=inputs, outputs=outputs, groups=groups)


@dataclass(frozen=True)
class Pool:
    """A pool over square windows; padding is not counted in an average."""

    kind: Literal["max", "avg"]
    n: int
    size: int
    channels: int
    window: int
    stride: int
    padding: Literal["SAME", "VALID"] = "VALID"

    @property
    def name(self) -> str:
        same = ", SAME" if self.padding == "SAME" else ""
        sizes = f"{_sizes(self.n, self.size, self.size)}×{self.channels}"
        return f"{self.kind} pool {self.window}/{self.stride}, {sizes}{same}"

    def shapes(self) -> tuple[Shape, Shape]:
        """Of x and g."""
        reach = self.size - (1 if self.padding == "SAME" else self.window)
        out = reach // self.stride + 1
        return (self.n, self.size, self.size, self.channels), (self.n, out, out, self.channels)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Random x and g."""
        rng = np.random.default_rng(0)
        x, g = (_normal(rng, shape) for shape in self.shapes())
        return x, g

    def shrunk(self) -> Self:
        """The same kind of pool, for a test."""
        return dataclasses.replace(self, n=2, size=8, channels=3)


CONVS = (
    # MNIST's two layers
    Conv(128, (28, 28), 1, 32, 3, padding=0),
    Conv(128, (26, 26), 32, 64, 3, padding=0),
    # ResNet-50
    Conv(8, (224, 224), 3, 64, 7, 2),
    Conv(8, (56, 56), 64, 64, 3),
    Conv(8, (56, 56), 128, 128, 3, 2),
    Conv(8, (56, 56), 256, 64, 1),
    Conv(8, (56, 56), 256, 512, 1, 2),
    Conv(8, (7, 7), 512, 512, 3),
    # MobileNet, ConvNeXt, ResNeXt and a dilated layer
    Conv(8, (56, 56), 32, 32, 3, groups=32),
    Conv(8, (28, 28), 256, 256, 3, groups=256),
    Conv(8, (56, 56), 96, 96, 7, groups=96),
    Conv(8, (56, 56), 96, 96, 3, 2, groups=96),
    Conv(8, (28, 28), 256, 256, 3, groups=32),
    Conv(8, (56, 56), 64, 64, 3, dilation=2),
    # what else a network may hold
    Conv(32, (32, 32), 64, 128, 1, 2),
    Conv(8, (28, 28), 128, 64, 4, 2, transposed=True),
    Conv(8, (28, 28), 128, 64, 3, 2, transposed=True),
    Conv(8, (224, 224), 3, 96, 4, 4, padding=0),
    Conv(8, (56, 56), 96, 192, 2, 2, padding=0),
    Conv(32, (1024,), 64, 64, 9),
    Conv(32, (1024,), 128, 128, 31, groups=128),
    Conv(2, (16, 32, 32), 16, 32, 3),
    Conv(2, (16, 32, 32), 32, 32, 3, groups=32),
    Conv(128, (), 3136, 128),
)

POOLS = (
    Pool("max", 128, 24, 64, 2, 2),
    Pool("max", 8, 112, 64, 3, 2, "SAME"),
    Pool("avg", 128, 24, 64, 2, 2),
    Pool("avg", 8, 56, 64, 3, 1, "SAME"),
)
