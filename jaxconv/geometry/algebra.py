"""Static shape algebra of convolution and pooling: integers only, no arrays, no jax.

Everything a rule needs to know about shapes is resolved here once, into a frozen, hashable `Geometry`;
the array code that follows never divides, compares or pads again. Per spatial axis, with `n` the input
length (after input dilation), `k` taps, dilation `d`, stride `s` and padding `lo`, `hi`:

    span   = d·(k−1) + 1             input elements that one window covers
    slack  = n + lo + hi − span      how far the window can travel
    out    = slack // s + 1          output positions (0 when the window does not fit)
    unread = slack mod s             input elements at the high end that no window reads

Output position p reads, at tap j, the input position s·p + d·j − lo. That one line of integers is the
whole of a convolution; its three gradients are the three ways of reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

LAYOUTS = ("NHWC", "NCHW")

# The indices of the trilinear form that are no positions and no taps, in the order in which a layout places them.
INDICES = {"x": ("n", "c"), "w": ("o", "c"), "y": ("n", "o")}


class Layout(NamedTuple):
    """Which axis of an array each dimension is: (batch, channel, *spatial) of x and y, (out, in, *taps) of w."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]

    @staticmethod
    def of(name: str, rank: int) -> Layout:
        """The layout called `name` ("NHWC" or "NCHW") for any spatial rank."""
        if name == "NHWC":
            data = (0, rank + 1, *range(1, rank + 1))
            return Layout(data, (rank + 1, rank, *range(rank)), data)
        data = tuple(range(rank + 2))
        return Layout(data, data, data)

    def axis(self, array: str, index: str) -> int:
        """The axis of "x", "w" or "y" along which an index runs: "n", "c" or "o"."""
        return self._asdict()[array][INDICES[array].index(index)]


class Axis(NamedTuple):
    """One spatial axis: `n` inputs, `k` taps, and how the taps move over the inputs. All in elements.

    Attributes:
      n: input elements, before any dilation.
      k: taps.
      stride: step of the window, counted in (dilated) input elements.
      dilation: distance between taps.
      input_dilation: distance at which input elements are set, zeros between them.
      lo: zeros before the (dilated) input; negative crops.
      hi: zeros after it.
    """

    n: int
    k: int
    stride: int
    dilation: int
    input_dilation: int
    lo: int
    hi: int

    @property
    def length(self) -> int:
        """Input length once `input_dilation - 1` zeros stand between neighbours."""
        return max((self.n - 1) * self.input_dilation + 1, 0) if self.n else 0

    @property
    def span(self) -> int:
        """Input elements that one window covers, the gaps between its taps included."""
        return (self.k - 1) * self.dilation + 1

    @property
    def slack(self) -> int:
        """How far the window can travel; negative where it does not fit."""
        return self.length + self.lo + self.hi - self.span

    @property
    def out(self) -> int:
        """Output elements."""
        return self.slack // self.stride + 1 if self.slack >= 0 else 0

    @property
    def unread(self) -> int:
        """Input elements at the high end, padding included, that no window reads."""
        return self.slack % self.stride

    @property
    def overhang(self) -> int:
        """How far one more window, for what is unread, reaches beyond the padding; 0 if it would start in there."""
        start = (self.slack // self.stride + 1) * self.stride
        end = self.lo + self.length + min(self.hi, 0)
        return start - self.slack if self.unread and 0 <= start < end else 0

    @property
    def input_grad_padding(self) -> tuple[int, int]:
        """Padding of δ, dilated by the stride, in the full convolution that gives ∂x."""
        return self.span - 1 - self.lo, self.span - 1 - self.hi + self.unread

    @property
    def kernel_grad_padding(self) -> tuple[int, int]:
        """Padding of x in the convolution with δ that gives ∂w: the unread end is cropped."""
        return self.lo, self.hi - self.unread


@dataclass(frozen=True)
class Geometry:
    """The shape of a convolution or a pooling window, resolved: what every rule receives.

    Holds no batch size and no channel count: arrays bring those, so `vmap` may fold a batch into either
    and only ever has to multiply `groups`. Spatial fields are tuples with one entry per spatial axis, in array order,
    and count elements. Output p meets input q at tap k along an axis exactly if

        input_dilation · q = stride · p + dilation · k − lo        0 ≤ q < spatial, 0 ≤ k < taps

    and that is all a rule has to sum over. Derived from the fields, also per axis: `span` (input elements under one
    window), `out` (spatial sizes of y), `unread` (elements at the end that no window reads), and the padding that turns
    each gradient into a convolution, `input_grad_padding` and `kernel_grad_padding`. `axes` has them axis by axis.

    Attributes:
      spatial: spatial sizes of x, before any dilation.
      taps: spatial sizes of w.
      stride: step of the window; δ lies this far apart in the input gradient.
      padding: (lo, hi) pairs, zeros before and after the (dilated) x; negative crops. No words: "SAME" is resolved.
      dilation: distance between taps.
      input_dilation: distance at which the elements of x are set, zeros between them; 1 if not transposed.
      groups: the channels of x and those of y are split into this many independent convolutions. Output channel o
        reads the channels o // (outputs / groups) · (channels / groups) + i, i below the size of w's input axis.
      layout: where the dimensions live: `layout.x`, `layout.y` are the axes of (batch, channel, *spatial) in x and in y
        or δ, `layout.w` those of (out, in, *taps) in w. (0, 3, 1, 2) for NHWC, (3, 2, 0, 1) for HWIO.
      flip_kernel: whether tap k reads w at taps − 1 − k, the true convolution; False for cross-correlation.

    Example:
      >>> from jaxconv.geometry import conv_geometry
      >>> z = conv_geometry("conv", (8, 7, 6, 4), (3, 2, 2, 10), stride=2, padding="SAME", groups=2)
      >>> z.spatial, z.taps, z.stride, z.padding, z.out, z.unread
      ((7, 6), (3, 2), (2, 2), ((1, 1), (0, 0)), (4, 3), (0, 0))
      >>> z.layout.x, z.layout.w
      ((0, 3, 1, 2), (3, 2, 0, 1))
      >>> z.x_shape(8, 4), z.w_shape(4 // 2, 10), z.y_shape(8, 10)  # what a rule is given and has to return
      ((8, 7, 6, 4), (3, 2, 2, 10), (8, 4, 3, 10))
    """

    spatial: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int
    layout: Layout
    flip_kernel: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The same integers axis by axis."""
        return tuple(
            Axis(n, k, s, d, i, lo, hi)
            for n, k, s, d, i, (lo, hi) in zip(
                self.spatial, self.taps, self.stride, self.dilation, self.input_dilation, self.padding, strict=True
            )
        )

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.spatial)

    @property
    def span(self) -> tuple[int, ...]:
        """Of each axis; see `Axis`."""
        return tuple(axis.span for axis in self.axes)

    @property
    def out(self) -> tuple[int, ...]:
        """Spatial sizes of y and of δ."""
        return tuple(axis.out for axis in self.axes)

    @property
    def unread(self) -> tuple[int, ...]:
        """Of each axis; see `Axis`."""
        return tuple(axis.unread for axis in self.axes)

    @property
    def overhang(self) -> tuple[int, ...]:
        return tuple(axis.overhang for axis in self.axes)

    def with_groups(self, groups: int) -> Geometry:
        """The same with another number of groups."""
        return replace(self, groups=groups)

    def channels_last(self) -> Geometry:
        """The same sums on x (n, *spatial, c), w (*taps, c, o) and y (n, *out, o), the kernel not flipped."""
        return replace(self, layout=Layout.of("NHWC", self.rank), flip_kernel=False)

    def full(self) -> Geometry:
        """The full convolution of δ with the rotated kernel, which is the input gradient of this one."""
        layout = Layout(self.layout.y, self.layout.w, self.layout.x)
        return Geometry(
            self.out, self.taps, self.input_dilation, self.input_grad_padding, self.dilation, self.stride,
            self.groups, layout,
        )  # fmt: skip

    def x_shape(self, batch: int, channels: int) -> tuple[int, ...]:
        """The shape of x and of dx, in the layout."""
        return placed(self.layout.x, batch, channels, self.spatial)

    def w_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """The shape of w and of dw, in the layout; `inputs` counts the channels of one group."""
        return placed(self.layout.w, outputs, inputs, self.taps)

    def y_shape(self, batch: int, channels: int) -> tuple[int, ...]:
        """The shape of y and of δ, in the layout."""
        return placed(self.layout.y, batch, channels, self.out)

    def conv_shape(self, x: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """The shape of y, from those of x and w."""
        return self.y_shape(x[self.layout.axis("x", "n")], w[self.layout.axis("w", "o")])

    def input_grad_shape(self, g: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """The shape of dx, from those of δ and w."""
        return self.x_shape(g[self.layout.axis("y", "n")], w[self.layout.axis("w", "c")] * self.groups)

    def kernel_grad_shape(self, x: Sequence[int], g: Sequence[int]) -> tuple[int, ...]:
        """The shape of dw, from those of x and δ."""
        return self.w_shape(x[self.layout.axis("x", "c")] // self.groups, g[self.layout.axis("y", "o")])

    @property
    def input_grad_padding(self) -> tuple[tuple[int, int], ...]:
        """(lo, hi) around δ, its elements `stride` apart, in the convolution with the rotated w that gives ∂x."""
        return tuple(axis.input_grad_padding for axis in self.axes)

    @property
    def kernel_grad_padding(self) -> tuple[tuple[int, int], ...]:
        """(lo, hi) around x in the convolution with δ that gives ∂w."""
        return tuple(axis.kernel_grad_padding for axis in self.axes)


def channels_last_order(spec: Sequence[int]) -> tuple[int, ...]:
    """The permutation that turns an array of a layout channels-last: (batch, *spatial, channel) or (out, *taps, in)."""
    first, second, *rest = spec
    return (first, *rest, second)


def taps_first_order(spec: Sequence[int]) -> tuple[int, ...]:
    """The permutation that turns a kernel of a layout into (*taps, in, out)."""
    outputs, inputs, *taps = spec
    return (*taps, inputs, outputs)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `order`."""
    return tuple(order.index(axis) for axis in range(len(order)))


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def placed(spec: Sequence[int], first: int, second: int, rest: Sequence[int]) -> tuple[int, ...]:
    """Sizes (batch, channel, *spatial), or (out, in, *taps), put where the layout wants them."""
    shape = dict(zip(spec, (first, second, *rest), strict=True))
    return tuple(shape[axis] for axis in range(len(spec)))
