"""Convolution and its gradients as index loops in float64: NumPy alone, neither jax nor jaxconv.

Everything is read off one trilinear form,

    T(x, w, g) = Σ g[n, p, o] · x[n, q, c] · w[k, c, o]      over all (p, k, q) with i·q = s·p + d·k − lo,

that is, over all the meetings of an output position p and an input q at a tap k (stride s, dilation d, input
dilation i, low padding lo, for every axis). The four maps are its partial gradients; sizes and paddings are found
here by counting and searching, so nothing is shared with the library's shape algebra. Options are those of
`jaxconv.conv`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Index = tuple[int, ...]
Meeting = tuple[Index, Index, Index]  # (p, k, q)


class Exact(NamedTuple):
    """A sum of products in float64, with what bounds the error of any other way to compute it."""

    value: np.ndarray
    summands: np.ndarray  # K: how many products each entry adds up
    magnitude: np.ndarray  # S: the sum of their absolute values


def exact(of: Callable[..., np.ndarray], *operands: Any, **options: Any) -> Exact:
    """The map `of` on its operands, on ones (which counts) and on absolute values (which measures)."""

    def on(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return of(*(change(wide(a)) if isinstance(a, np.ndarray) else a for a in operands), **options)

    return Exact(on(np.asarray), on(np.ones_like), on(np.abs))


def wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64)


# Which p, k and q meet


def windows(length: int, span: int, stride: int) -> int:
    """How many windows fit."""
    return len(range(0, length - span + 1, stride))


def same_padding(length: int, span: int, stride: int, low: bool) -> tuple[int, int]:
    """The least padding that leaves one output per stride; the odd element goes to the end, or to the start."""
    wanted = len(range(0, length, stride))
    total = next(total for total in itertools.count() if windows(length + total, span, stride) >= wanted)
    less, more = total // 2, total - total // 2
    return (more, less) if low else (less, more)


def pairs(
    padding: Any, lengths: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Any spelling of padding as one (lo, hi) per axis."""
    if padding in ("SAME", "SAME_LOWER"):
        sizes = zip(lengths, spans, strides, strict=True)
        return tuple(same_padding(n, span, s, padding == "SAME_LOWER") for n, span, s in sizes)
    if padding == "VALID":
        padding = 0
    if padding == "CAUSAL":
        padding = [(span - 1, 0) for span in spans]
    each = [padding] * len(lengths) if isinstance(padding, int) else padding
    return tuple((entry, entry) if isinstance(entry, int) else tuple(entry) for entry in each)


def every(value: Any, rank: int) -> Index:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def axis_meetings(positions: int, n: int, k: int, s: int, d: int, i: int, lo: int) -> list[tuple[int, int, int]]:
    """All (p, j, q) of one axis: output p reads input q at tap j."""
    found = []
    for p, j in itertools.product(range(positions), range(k)):
        q, between = divmod(s * p + d * j - lo, i)
        if not between and 0 <= q < n:
            found.append((p, j, q))
    return found


def crossed(axes: Iterable[list[tuple[int, int, int]]]) -> list[Meeting]:
    """The meetings of several axes: every combination of theirs."""
    return [tuple(zip(*combination, strict=True)) for combination in itertools.product(*axes)]


def conv_meetings(
    spatial: Sequence[int],
    taps: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
    input_dilation: Any = 1,
    flip_kernel: bool = False,
) -> tuple[Index, list[Meeting]]:
    """The output's spatial shape and all meetings of a convolution."""
    rank = len(spatial)
    strides, dilations, moved = (every(value, rank) for value in (stride, dilation, input_dilation))
    lengths = [(n - 1) * i + 1 if n else 0 for n, i in zip(spatial, moved, strict=True)]
    spans = [d * (k - 1) + 1 for k, d in zip(taps, dilations, strict=True)]
    pads = pairs(padding, lengths, spans, strides)
    padded = [length + lo + hi for length, (lo, hi) in zip(lengths, pads, strict=True)]
    if min(padded) < 0:
        raise ValueError(f"padding crops more than there is: {padded}")
    out = tuple(map(windows, padded, spans, strides))
    lows = [lo for lo, _ in pads]
    meetings = crossed(map(axis_meetings, out, spatial, taps, strides, dilations, moved, lows))
    if flip_kernel:
        meetings = [(p, tuple(len_ - 1 - j for len_, j in zip(taps, k, strict=True)), q) for p, k, q in meetings]
    return out, meetings


def conv_transpose_meetings(
    spatial: Sequence[int],
    taps: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    output_padding: Any = 0,
    dilation: Any = 1,
) -> tuple[Index, list[Meeting]]:
    """The output's spatial shape and all meetings; here p counts inputs and q outputs."""
    rank = len(spatial)
    strides, dilations, extra = (every(value, rank) for value in (stride, dilation, output_padding))
    spans = [d * (k - 1) + 1 for k, d in zip(taps, dilations, strict=True)]
    pads = pairs(padding, [n * s for n, s in zip(spatial, strides, strict=True)], spans, strides)
    if padding in ("SAME", "SAME_LOWER"):
        out = [n * s for n, s in zip(spatial, strides, strict=True)]
    else:  # up to where the last input's window ends, less what is cropped
        out = [(n - 1) * s + span - sum(pad) for n, s, span, pad in zip(spatial, strides, spans, pads, strict=True)]
    out = [n + e for n, e in zip(out, extra, strict=True)]
    if min(out) < 1:
        raise ValueError(f"padding leaves no output: {out}")
    lows, ones = [lo for lo, _ in pads], [1] * rank
    return tuple(out), crossed(map(axis_meetings, spatial, out, taps, strides, dilations, ones, lows))


# Arrays as (n, *spatial, group, channel) and (*taps, in, group, out)


def data(a: np.ndarray, layout: str, groups: int) -> np.ndarray:
    a = wide(a if layout == "NHWC" else np.moveaxis(a, 1, -1))
    return a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)


def kernel(w: np.ndarray, layout: str, groups: int) -> np.ndarray:
    w = wide(w if layout == "NHWC" else np.moveaxis(w, (0, 1), (-1, -2)))
    return w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)


def undata(a: np.ndarray, layout: str) -> np.ndarray:
    a = a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])
    return a if layout == "NHWC" else np.moveaxis(a, -1, 1)


def unkernel(w: np.ndarray, layout: str) -> np.ndarray:
    w = w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])
    return w if layout == "NHWC" else np.moveaxis(w, (-1, -2), (0, 1))


# The form's gradients. n, c and o enter no index equation, so each meeting does all of them at once.


def in_g(x: np.ndarray, w: np.ndarray, out: Index, meetings: list[Meeting]) -> np.ndarray:
    y = np.zeros((x.shape[0], *out, w.shape[-2], w.shape[-1]))
    for p, k, q in meetings:
        y[:, *p] += np.einsum("ngc,cgo->ngo", x[:, *q], w[k])
    return y


def in_x(g: np.ndarray, w: np.ndarray, spatial: Index, meetings: list[Meeting]) -> np.ndarray:
    dx = np.zeros((g.shape[0], *spatial, w.shape[-2], w.shape[-3]))
    for p, k, q in meetings:
        dx[:, *q] += np.einsum("ngo,cgo->ngc", g[:, *p], w[k])
    return dx


def in_w(x: np.ndarray, g: np.ndarray, taps: Index, meetings: list[Meeting]) -> np.ndarray:
    dw = np.zeros((*taps, x.shape[-1], g.shape[-2], g.shape[-1]))
    for p, k, q in meetings:
        dw[k] += np.einsum("ngc,ngo->cgo", x[:, *q], g[:, *p])
    return dw


# Convolution


def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    groups: int = 1,
    layout: str = "NHWC",
    **options: Any,
) -> np.ndarray:
    """y[n, p, o] = Σ x[n, q, c] · w[k, c, o] + b[o]."""
    x, w = data(x, layout, groups), kernel(w, layout, groups)
    y = in_g(x, w, *conv_meetings(x.shape[1:-2], w.shape[:-3], **options))
    return undata(y if b is None else y + b.reshape(groups, -1), layout)


def conv_input_grad(
    g: np.ndarray, w: np.ndarray, spatial_shape: Index, *, groups: int = 1, layout: str = "NHWC", **options: Any
) -> np.ndarray:
    """dx[n, q, c] = Σ g[n, p, o] · w[k, c, o]."""
    g, w = data(g, layout, groups), kernel(w, layout, groups)
    _, meetings = conv_meetings(spatial_shape, w.shape[:-3], **options)
    return undata(in_x(g, w, spatial_shape, meetings), layout)


def conv_kernel_grad(
    x: np.ndarray, g: np.ndarray, kernel_shape: Index, *, groups: int = 1, layout: str = "NHWC", **options: Any
) -> np.ndarray:
    """dw[k, c, o] = Σ x[n, q, c] · g[n, p, o]."""
    x, g = data(x, layout, groups), data(g, layout, groups)
    _, meetings = conv_meetings(x.shape[1:-2], kernel_shape, **options)
    return unkernel(in_w(x, g, kernel_shape, meetings), layout)


def conv_bias_grad(g: np.ndarray, *, layout: str = "NHWC") -> np.ndarray:
    """db[o] = Σ g[n, p, o]."""
    g = data(g, layout, 1)
    return g.reshape(-1, g.shape[-1]).sum(0)


# Transposed convolution


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    groups: int = 1,
    layout: str = "NHWC",
    **options: Any,
) -> np.ndarray:
    """y[n, q, c] = Σ x[n, p, o] · w[k, c, o] + b[c]."""
    x, w = data(x, layout, groups), kernel(w, layout, groups)
    y = in_x(x, w, *conv_transpose_meetings(x.shape[1:-2], w.shape[:-3], **options))
    return undata(y if b is None else y + b.reshape(groups, -1), layout)


def conv_transpose_input_grad(
    g: np.ndarray, w: np.ndarray, spatial_shape: Index, *, groups: int = 1, layout: str = "NHWC", **options: Any
) -> np.ndarray:
    """dx[n, p, o] = Σ g[n, q, c] · w[k, c, o]."""
    g, w = data(g, layout, groups), kernel(w, layout, groups)
    _, meetings = conv_transpose_meetings(spatial_shape, w.shape[:-3], **options)
    return undata(in_g(g, w, spatial_shape, meetings), layout)


def conv_transpose_kernel_grad(
    x: np.ndarray, g: np.ndarray, kernel_shape: Index, *, groups: int = 1, layout: str = "NHWC", **options: Any
) -> np.ndarray:
    """dw[k, c, o] = Σ g[n, q, c] · x[n, p, o]."""
    x, g = data(x, layout, groups), data(g, layout, groups)
    _, meetings = conv_transpose_meetings(x.shape[1:-2], kernel_shape, **options)
    return unkernel(in_w(g, x, kernel_shape, meetings), layout)
