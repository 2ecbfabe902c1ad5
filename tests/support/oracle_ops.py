"""Pools, borders, normalisations, activations and losses in float64: NumPy and `math`, neither jax nor jaxconv.

Arrays are (n, *spatial, c) and options are those of the op in question. Each derivative is written another way than
the library writes it: a pool's by the slopes inside one window, a border's by an index map, a normalisation's as an
explicit Jacobian by the quotient rule, an activation's in hyperbolic functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Index = tuple[int, ...]


# Windows: where each of them reads, found by counting


def each(value: Any, rank: int) -> tuple[Any, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def pads(padding: Any, n: int, span: int, stride: int) -> tuple[int, int]:
    """`padding` of one axis as (lo, hi); SAME pads least, and puts the odd element at the end."""
    if isinstance(padding, int):
        return padding, padding
    if not isinstance(padding, str):
        return tuple(padding)
    if padding == "VALID":
        return 0, 0
    total = max((len(range(0, n, stride)) - 1) * stride + span - n, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if padding == "SAME" else (more, less)


class Windows:
    """All windows over axes of these sizes.

    `out` is their number per axis; iterating gives (p, taps): an output position and the input position of each tap
    in row-major order, None on padding. Taps of a window that hangs over the padding end with the padding.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        window: Any,
        *,
        stride: Any = None,
        padding: Any = "VALID",
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        rank = len(sizes)
        taps, step = each(window, rank), each(window if stride is None else stride, rank)
        words = (padding,) * rank if isinstance(padding, str) else each(padding, rank)
        self.axes = []
        for n, k, s, d, word in zip(sizes, taps, step, each(dilation, rank), words, strict=True):
            span = d * (k - 1) + 1
            lo, hi = pads(word, n, span, s)
            starts, end = [], n + hi
            for a in itertools.count(-lo, s):
                fits, something_left = a + span <= end, a - s + span < end
                if not (fits or (ceil_mode and something_left and a < min(n, end))):
                    break
                starts.append(a)
            self.axes.append([[q if 0 <= q < n else None for q in range(a, min(a + span, end), d)] for a in starts])
        self.out = tuple(map(len, self.axes))

    def __iter__(self) -> Iterator[tuple[Index, list[Index | None]]]:
        for p in np.ndindex(*self.out):
            reads = itertools.product(*(axis[i] for axis, i in zip(self.axes, p, strict=True)))
            yield p, [None if None in q else q for q in reads]


# Pooling: `of` maps the real elements of a window, stacked first, and the number of its taps to (y, ∂y/∂element)

Of = Callable[[np.ndarray, int], tuple[Any, Any]]


def largest(values: np.ndarray, taps: int) -> tuple[Any, Any]:
    """The first largest element, of slope 1; NaN is larger than all."""
    if not len(values):
        return -np.inf, values
    first = values.argmax(0)  # NumPy's argmax has the same two conventions
    return np.take_along_axis(values, first[None], 0)[0], np.arange(len(values))[:, None, None] == first


def mean_of_elements(values: np.ndarray, taps: int) -> tuple[Any, Any]:
    m = max(len(values), 1)
    return values.sum(0) / m, np.full_like(values, 1 / m)


def mean_of_taps(values: np.ndarray, taps: int) -> tuple[Any, Any]:
    return values.sum(0) / taps, np.full_like(values, 1 / taps)


def norm_of(p: float) -> Of:
    """The p-norm. Its slope is (|x| / y)^(p−1) sign x, and 0 at 0."""

    def norm(values: np.ndarray, taps: int) -> tuple[Any, Any]:
        y = (np.abs(values) ** p).sum(0) ** (1 / p)
        return y, np.sign(values) * (np.abs(values) / np.where(y > 0, y, 1)) ** (p - 1)

    return norm


def pool(of: Of, x: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    windows = Windows(x.shape[1:-1], window, **options)
    y = np.zeros((x.shape[0], *windows.out, x.shape[-1]))
    for p, taps in windows:
        y[:, *p] = of(_elements(x, taps), len(taps))[0]
    return y


def pool_grad(of: Of, x: np.ndarray, g: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    dx = np.zeros(x.shape)
    for p, taps in Windows(x.shape[1:-1], window, **options):
        _, slopes = of(_elements(x, taps), len(taps))
        for q, slope in zip((q for q in taps if q is not None), slopes, strict=True):
            dx[:, *q] += g[:, *p] * slope
    return dx


def _elements(x: np.ndarray, taps: list[Index | None]) -> np.ndarray:
    real = [x[:, *q] for q in taps if q is not None]
    return np.array(real).reshape(len(real), x.shape[0], x.shape[-1])


def largest_positions(x: np.ndarray, window: Any, **options: Any) -> np.ndarray:
    """Where the largest element of each window stands, row-major in the spatial axes; −1 if there is none."""
    sizes = x.shape[1:-1]
    windows = Windows(sizes, window, **options)
    at = np.full((x.shape[0], *windows.out, x.shape[-1]), -1)
    for p, taps in windows:
        real = [q for q in taps if q is not None]
        if real:
            at[:, *p] = np.array([np.ravel_multi_index(q, sizes) for q in real])[_elements(x, taps).argmax(0)]
    return at


def unpool(y: np.ndarray, positions: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Each y at its position; values that meet add up."""
    n, *_, c = y.shape
    x = np.zeros((n, math.prod(sizes), c))
    for i, *p, j in np.ndindex(*y.shape):
        if positions[i, *p, j] >= 0:
            x[i, positions[i, *p, j], j] += y[i, *p, j]
    return x.reshape(n, *sizes, c)


# Borders: which element each position copies


def copied(q: int, n: int, mode: str) -> int | None:
    """The element that stands at position q of a line of n elements going on in both directions."""
    if 0 <= q < n:
        return q
    if mode == "circular":
        return q % n
    if mode == "reflect":  # the line there and back, its ends not repeated
        return [*range(n), *range(n - 2, 0, -1)][q % (2 * n - 2)]
    return {"zero": None, "edge": 0 if q < 0 else n - 1}[mode]


def _copies(shape: Sequence[int], widths: Sequence[tuple[int, int]], mode: str) -> Iterator[tuple[Index, Index]]:
    axes = [[copied(q, n, mode) for q in range(-lo, n + hi)] for n, (lo, hi) in zip(shape[1:-1], widths, strict=True)]
    for p in np.ndindex(*map(len, axes)):
        q = tuple(axis[i] for axis, i in zip(axes, p, strict=True))
        if None not in q:
            yield p, q


def pad(x: np.ndarray, widths: Sequence[tuple[int, int]], mode: str) -> np.ndarray:
    y = np.zeros((x.shape[0], *(n + lo + hi for n, (lo, hi) in zip(x.shape[1:-1], widths, strict=True)), x.shape[-1]))
    for p, q in _copies(x.shape, widths, mode):
        y[:, *p] = x[:, *q]
    return y


def pad_grad(shape: Sequence[int], g: np.ndarray, widths: Sequence[tuple[int, int]], mode: str) -> np.ndarray:
    dx = np.zeros(shape)
    for p, q in _copies(shape, widths, mode):
        dx[:, *q] += g[:, *p]
    return dx


# Normalisation: x̂ᵢ = cᵢ / σ, with c = x − μ (or x) and σ² = Σ c² / m + ε


def standardise(x: np.ndarray, axes: tuple[int, ...], eps: float, centred: bool = True) -> np.ndarray:
    return _by_row(x, axes, lambda row: _centre(row, centred) / _deviation(row, eps, centred))


def standardise_grad(
    x: np.ndarray, g: np.ndarray, axes: tuple[int, ...], eps: float, centred: bool = True
) -> np.ndarray:
    """Jᵀ g, with J by the quotient rule: ∂x̂ᵢ/∂xⱼ = ∂cᵢ/∂xⱼ / σ − cᵢ/σ² · ∂σ/∂xⱼ, and ∂σ/∂xⱼ = cⱼ / (mσ)."""

    def transposed(row: np.ndarray, delta: np.ndarray) -> np.ndarray:
        m, c, deviation = row.size, _centre(row, centred), _deviation(row, eps, centred)
        dc = np.eye(m) - (1 / m if centred else 0)
        jacobian = dc / deviation - np.outer(c / deviation**2, c / (m * deviation))
        return jacobian.T @ delta

    return _by_row(x, axes, transposed, g)


def _centre(row: np.ndarray, centred: bool) -> np.ndarray:
    return row - row.sum() / row.size if centred else row


def _deviation(row: np.ndarray, eps: float, centred: bool) -> float:
    return math.sqrt(math.fsum(_centre(row, centred) ** 2) / row.size + eps)


def _by_row(x: np.ndarray, axes: tuple[int, ...], of: Callable[..., np.ndarray], *more: np.ndarray) -> np.ndarray:
    """`of` on each set of elements that differ only along `axes`."""
    last = range(-len(axes), 0)
    moved = [np.moveaxis(a, axes, last) for a in (x, *more)]
    shape = moved[0].shape
    rows = [a.reshape(-1, math.prod(shape[-len(axes) :])) for a in moved]
    return np.moveaxis(np.array([of(*row) for row in zip(*rows, strict=True)]).reshape(shape), last, axes)


# Losses


def smoothed(targets: np.ndarray, logits: np.ndarray, epsilon: float) -> np.ndarray:
    """(1 − ε) t + ε / m, m the number of classes that are not masked by −∞; a masked one gets nothing."""
    present = logits > -np.inf
    return np.where(present, (1 - epsilon) * targets + epsilon / present.sum(-1, keepdims=True), 0)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logp = np.where(targets > 0, _log_softmax(logits), 0)
    return -(targets * logp).sum(-1)


def cross_entropy_grad(logits: np.ndarray, targets: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In the logits, by the Jacobian of log softmax, I − 1 pᵀ; in the targets, −log p."""
    logp = _log_softmax(logits)
    jacobian = np.eye(logits.shape[-1]) - np.exp(logp)[..., None, :]  # [.., k, c] = ∂ log p_k / ∂ z_c
    return -np.einsum("...,...k,...kc->...c", g, targets, jacobian), -g[..., None] * logp


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    flat = logits.reshape(-1, logits.shape[-1])
    total = [max(row) + math.log(math.fsum(np.exp(row - max(row)))) for row in flat]
    return logits - np.reshape(total, (*logits.shape[:-1], 1))


# Activations: (σ, σ′, σ″) of a float


def _sech2(z: float) -> float:
    e = math.exp(-2 * abs(z))
    return 4 * e / (1 + e) ** 2


def _logistic(z: float) -> float:
    e = math.exp(-abs(z))
    return 1 / (1 + e) if z > 0 else e / (1 + e)


def _silu_slope(z: float) -> float:
    return (1 + math.exp(-z) + z * math.exp(-z)) / (1 + math.exp(-z)) ** 2


def _bell(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _cumulated(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _cubic(z: float) -> tuple[float, float, float]:
    """√(2/π) (z + 0.044715 z³) and its two derivatives."""
    r = math.sqrt(2 / math.pi)
    return r * (z + 0.044715 * z**3), r * (1 + 0.134145 * z**2), r * 0.26829 * z


def _gelu_tanh_slope(z: float) -> float:
    u, du, _ = _cubic(z)
    return _logistic(2 * u) + z / 2 * du * _sech2(u)


def _gelu_tanh_bend(z: float) -> float:
    u, du, ddu = _cubic(z)
    return _sech2(u) * (du + z / 2 * ddu - z * du**2 * math.tanh(u))


ACTIVATIONS: dict[str, tuple[Callable[[float], float], ...]] = {
    "relu": (lambda z: max(z, 0), lambda z: float(z > 0), lambda z: 0),
    "leaky_relu": (lambda z: z if z > 0 else 0.2 * z, lambda z: 1 if z > 0 else 0.2, lambda z: 0),
    "relu6": (lambda z: min(max(z, 0), 6), lambda z: float(0 < z < 6), lambda z: 0),
    "elu": (
        lambda z: z if z > 0 else 0.7 * math.expm1(z),
        lambda z: 1 if z > 0 else 0.7 * math.exp(z),
        lambda z: 0 if z > 0 else 0.7 * math.exp(z),
    ),
    "sigmoid": (_logistic, lambda z: _sech2(z / 2) / 4, lambda z: -_sech2(z / 2) / 4 * math.tanh(z / 2)),
    "tanh": (math.tanh, _sech2, lambda z: -2 * math.tanh(z) * _sech2(z)),
    "softplus": (lambda z: max(z, 0) + math.log1p(math.exp(-abs(z))), _logistic, lambda z: _sech2(z / 2) / 4),
    "silu": (lambda z: z * _logistic(z), _silu_slope, lambda z: (2 - z * math.tanh(z / 2)) * _sech2(z / 2) / 4),
    "gelu": (lambda z: z * _logistic(2 * _cubic(z)[0]), _gelu_tanh_slope, _gelu_tanh_bend),
    "gelu_exact": (
        lambda z: z * _cumulated(z),
        lambda z: _cumulated(z) + z * _bell(z),
        lambda z: (2 - z * z) * _bell(z),
    ),
}
