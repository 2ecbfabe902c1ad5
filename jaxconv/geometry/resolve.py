"""From what a caller writes to a resolved `Geometry`: every shape rule and every shape error message.

A message names the function and the argument, the violated equation with its numbers, and the remedy.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxconv.geometry.algebra import LAYOUTS, Axis, Geometry, Layout

PAIRS = "(lo, hi) pairs"
WORDS = ("SAME", "SAME_LOWER", "VALID", "CAUSAL")
PADDINGS = f"one of {', '.join(WORDS)}, an int, one int per spatial axis or {PAIRS}"


def names(layout: str, rank: int) -> tuple[str, str]:
    """How `layout` is spelt for data and kernels of a rank: ("NHWC", "HWIO"), ("NCW", "OIW"), ..."""
    spatial = {0: "", 1: "W", 2: "HW", 3: "DHW"}.get(rank, "".join(f"S{i}" for i in range(rank)))
    return (f"N{spatial}C", f"{spatial}IO") if layout == "NHWC" else (f"NC{spatial}", f"OI{spatial}")


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def integer(function: str, name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int of at least `least`, or an error that names the argument."""
    if not _is_integer(value):
        raise TypeError(f"{function}: {name} must be an int, but is {value!r}.")
    result = operator.index(value)
    if least is not None and result < least:
        raise ValueError(f"{function}: {name} must be at least {least}, but {result} < {least}.")
    return result


def sizes(function: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape that is given as numbers, not as an array's."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{function}: {name} must be a shape, a tuple of ints, but is {value!r}.")
    return tuple(integer(function, f"{name}[{i}]", n, 0) for i, n in enumerate(value))


def per_axis(function: str, name: str, value: Any, rank: int, least: int | None = None) -> tuple[int, ...]:
    """An int for every spatial axis, or one int per axis, as a tuple of `rank` ints."""
    if not isinstance(value, Sequence):
        return (integer(function, name, value, least),) * rank
    if isinstance(value, str):
        raise TypeError(f"{function}: {name} must be an int or one int per spatial axis, but is {value!r}.")
    if len(value) != rank:
        raise ValueError(
            f"{function}: {name} must be an int or have one entry per spatial axis, "
            f"but len({name}) = {len(value)} != {rank}."
        )
    return tuple(integer(function, f"{name}[{i}]", v, least) for i, v in enumerate(value))


def resolve_padding(
    function: str, padding: Any, lengths: Sequence[int], spans: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """`padding` as one (lo, hi) pair per axis, given the (dilated) input lengths and window spans.

    A word, an int, one int per axis, or (lo, hi) pairs; pairs may be negative, which crops.
    """
    rank = len(lengths)
    if isinstance(padding, str):
        word = padding.upper()
        if word not in WORDS:
            raise ValueError(f"{function}: padding must be {PADDINGS}, but is {padding!r}.")
        if word == "VALID":
            return ((0, 0),) * rank
        if word == "CAUSAL":
            if rank != 1:
                raise ValueError(
                    f'{function}: padding="CAUSAL" needs exactly 1 spatial axis, but there are {rank}. '
                    f"Give {PAIRS} instead."
                )
            return ((spans[0] - 1, 0),)
        total = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(lengths, spans, stride, strict=True)]
        small = [(t // 2, t - t // 2) for t in total]
        return tuple(small if word == "SAME" else [(hi, lo) for lo, hi in small])
    if not isinstance(padding, Sequence):
        if not _is_integer(padding):
            raise TypeError(f"{function}: padding must be {PADDINGS}, but is {padding!r}.")
        padding = (operator.index(padding),) * rank
    if len(padding) != rank:
        raise ValueError(
            f"{function}: padding must have one entry per spatial axis, but len(padding) = {len(padding)} != {rank}. "
            f"Give an int, one int per axis or {PAIRS}."
        )
    pairs: list[tuple[int, int]] = []
    for i, entry in enumerate(padding):
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            if len(entry) != 2:
                raise ValueError(f"{function}: padding[{i}] must be a (lo, hi) pair, but has {len(entry)} entries.")
            lo, hi = entry
            pairs.append((integer(function, f"padding[{i}][0]", lo), integer(function, f"padding[{i}][1]", hi)))
        elif _is_integer(entry):
            pairs.append((operator.index(entry),) * 2)
        else:
            raise TypeError(f"{function}: padding[{i}] must be an int or a (lo, hi) pair, but is {entry!r}.")
    for i, (n, (lo, hi)) in enumerate(zip(lengths, pairs, strict=True)):
        if n + lo + hi < 0:
            raise ValueError(
                f"{function}: padding must not crop more than there is, "
                f"but spatial axis {i} has {n} elements and {n} + {lo} + {hi} < 0."
            )
    return tuple(pairs)


def check_layout(function: str, layout: Any) -> str:
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(
            f"{function}: layout must be one of {', '.join(LAYOUTS)}, for any number of spatial axes, "
            f"but is {layout!r}."
        )
    return str(layout)


def spatial_rank(function: str, name: str, shape: Sequence[int], layout: str, least: int = 1) -> int:
    """The number of spatial axes of a batch of this shape, at least `least`."""
    rank = len(shape) - 2
    if rank < least:
        spatial = f" and at least {least} spatial {'axis' if least == 1 else 'axes'}" if least else ""
        raise ValueError(
            f"{function}: {name} must have a batch, a channel{spatial} "
            f"({names(layout, max(rank, least))[0]}), "
            f"but {name}.shape = {tuple(shape)} has {len(shape)} < {2 + least} axes. "
            f"A single example needs a batch axis: {name}[None]."
        )
    return rank


def window_geometry(
    function: str,
    spatial: Sequence[int],
    window: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    input_dilation: Any = 1,
    groups: int = 1,
    layout: str = "NHWC",
    flip_kernel: bool = False,
) -> Geometry:
    """Validate the spatial options shared by convolutions and pools, and resolve them."""
    rank = len(spatial)
    taps = per_axis(function, "window", window, rank, 1)
    strides = per_axis(function, "stride", stride, rank, 1)
    dilations = per_axis(function, "dilation", dilation, rank, 1)
    input_dilations = per_axis(function, "input_dilation", input_dilation, rank, 1)
    bare = [
        Axis(n, k, s, d, i, 0, 0)
        for n, k, s, d, i in zip(spatial, taps, strides, dilations, input_dilations, strict=True)
    ]
    pads = resolve_padding(function, padding, [a.length for a in bare], [a.span for a in bare], strides)
    return Geometry(
        tuple(spatial), taps, strides, pads, dilations, input_dilations, groups, Layout.of(layout, rank), flip_kernel
    )


def hung_over(function: str, geometry: Geometry, ceil_mode: bool) -> Geometry:
    """With `ceil_mode`, padded for the last windows that hang over the end; else as it is."""
    if not ceil_mode:
        return geometry
    for i, (axis, over) in enumerate(zip(geometry.axes, geometry.overhang, strict=True)):
        if axis.hi < 0 < over:
            raise ValueError(
                f"{function}: with ceil_mode, padding must not crop the end over which a window hangs, but "
                f"padding[{i}] = {(axis.lo, axis.hi)} and the last window along spatial axis {i} would hang over "
                f"by {over}. Crop first: jaxconv.pad(x, padding)."
            )
    pads = tuple((lo, hi + over) for (lo, hi), over in zip(geometry.padding, geometry.overhang, strict=True))
    return replace(geometry, padding=pads)


def _kernel_taps(function: str, w_shape: Sequence[int], place: Layout) -> tuple[int, ...]:
    taps = tuple(w_shape[axis] for axis in place.w[2:])
    if 0 in taps:
        raise ValueError(
            f"{function}: w must have at least one tap along every spatial axis, but its taps are {taps} "
            f"(w.shape = {tuple(w_shape)})."
        )
    return taps


def conv_geometry(
    function: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
    input_dilation: Any = 1,
    groups: Any = 1,
    layout: Any = "NHWC",
    flip_kernel: bool = False,
    least_rank: int = 1,
) -> Geometry:
    """Validate a convolution of these shapes and resolve it; every mistake is a clear error here.

    Args:
      function: the public function to name in messages.
      x_shape: shape of the input, batch first.
      w_shape: shape of the kernel, HWIO or OIHW after `layout`.
    """
    layout = check_layout(function, layout)
    rank = spatial_rank(function, "x", x_shape, layout, least_rank)
    data, kernel = names(layout, rank)
    if len(w_shape) != len(x_shape):
        raise ValueError(
            f"{function}: w must have as many axes as x, but {len(w_shape)} != {len(x_shape)} "
            f"(w.shape = {tuple(w_shape)}, x.shape = {tuple(x_shape)}). A single example needs a batch axis: [None]."
        )
    groups = integer(function, "groups", groups, 1)
    place = Layout.of(layout, rank)
    channels, inputs, outputs = x_shape[place.x[1]], w_shape[place.w[1]], w_shape[place.w[0]]
    if inputs * groups != channels:
        hint = f"Each kernel sees the channels of one group: w.shape[{place.w[1]}] = x channels // groups."
        if rank:
            other = LAYOUTS[1 - LAYOUTS.index(layout)]
            there = Layout.of(other, rank)
            if x_shape[there.x[1]] in (inputs * groups, w_shape[there.w[1]] * groups):
                hint = f'Did you pass {names(other, rank)[0]}? Say layout="{other}", for x and w alike.'
        raise ValueError(
            f"{function}: w.shape[{place.w[1]}] * groups must equal x.shape[{'-1' if layout == 'NHWC' else 1}], "
            f"but {inputs} * {groups} != {channels} (x is {data}, w is {kernel}). {hint}"
        )
    if outputs % groups:
        raise ValueError(
            f"{function}: groups must divide the output channels w.shape[{place.w[0]}], "
            f"but {outputs} % {groups} = {outputs % groups} (w is {kernel})."
        )
    spatial = tuple(x_shape[axis] for axis in place.x[2:])
    taps = _kernel_taps(function, w_shape, place)
    return window_geometry(
        function, spatial, taps, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip


def conv_transpose_geometry(
    function: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    layout: Any = "NHWC",
) -> Geometry:
    """Validate a transposed convolution; the geometry is that of the convolution it transposes.

    That convolution reads our output and writes our input, so `x_shape` is the shape of its output and the
    kernel's I counts our output channels.
    """
    layout = check_layout(function, layout)
    rank = spatial_rank(function, "x", x_shape, layout)
    data, kernel = names(layout, rank)
    groups = integer(function, "groups", groups, 1)
    place = Layout.of(layout, rank)
    channels, ours = x_shape[place.y[1]], w_shape[place.w[0]]
    if ours != channels:
        raise ValueError(
            f"{function}: w.shape[{place.w[0]}] must equal the channels of x, but {ours} != {channels} (x is {data}; "
            f"w is the {kernel} kernel of the convolution that this one transposes: I counts outputs here, O inputs). "
            f"Did you exchange I and O, or pass the other layout? There are {' and '.join(LAYOUTS)}."
        )
    if channels % groups:
        raise ValueError(
            f"{function}: groups must divide the channels of x, but {channels} % {groups} = {channels % groups}."
        )
    ins = tuple(x_shape[axis] for axis in place.y[2:])
    taps = _kernel_taps(function, w_shape, place)
    strides = per_axis(function, "stride", stride, rank, 1)
    dilations = per_axis(function, "dilation", dilation, rank, 1)
    extra = per_axis(function, "output_padding", output_padding, rank, 0)
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"{function}: output_padding must be smaller than the stride or the dilation, "
                f"but {e} >= max({s}, {d}). "
                "It only says which of the sizes that a stride merges is meant."
            )
    spans = tuple((k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True))
    whole = tuple((n - 1) * s + span if n else 0 for n, s, span in zip(ins, strides, spans, strict=True))
    if isinstance(padding, str) and padding.upper() in ("SAME", "SAME_LOWER"):
        sizes = tuple(n * s for n, s in zip(ins, strides, strict=True))
        pads = resolve_padding(function, padding, sizes, spans, strides)
    else:
        # Here padding crops the output, so what it may take is bounded by the uncropped output.
        pads = resolve_padding(function, padding, [max(n, 10**9) for n in whole], spans, strides)
        sizes = tuple(n - lo - hi for n, (lo, hi) in zip(whole, pads, strict=True))
    spatial = tuple(n + e for n, e in zip(sizes, extra, strict=True))
    if min(spatial) < 0 or any(n and not m for n, m in zip(ins, spatial, strict=True)):
        raise ValueError(
            f"{function}: padding must leave an output, but (n − 1)·s + span − lo − hi + output_padding = {spatial} "
            f"for n = {ins}, s = {strides}, span = {spans}, (lo, hi) = {pads}."
        )
    # Elements added at the high end are unread: take them off the padding, so that the sizes stay consistent.
    pads = tuple((lo, hi - e) for (lo, hi), e in zip(pads, extra, strict=True))
    return window_geometry(
        function, spatial, taps, stride=strides, padding=pads, dilation=dilations, groups=groups, layout=layout,
    )  # fmt: skip
