"""Which convolution a function of two arrays is, found by asking it for its products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.explanation.equations import Equation
from jaxconv.explanation.explained import Explanation
from jaxconv.explanation.fitting import Meetings, fits
from jaxconv.explanation.layer import Axes, Layer, readings
from jaxconv.explanation.reading import Index, Product, Reader
from jaxconv.explanation.verification import differ
from jaxconv.explanation.writing import called
from jaxconv.geometry import conv_geometry
from jaxconv.transforms.automatic import automatic

Call = Callable[[Any, Any], Any]


def find(f: Callable[..., Any], x: Any, w: Any, layout: str) -> Explanation:
    """The function as a convolution, explained; or an error that says what it is instead."""
    name = getattr(f, "__name__", type(f).__name__)
    x, w = (_array(label, a) for label, a in (("x", x), ("w", w)))
    dtype, shape = _asked_in(name, f, x, w)
    q = _Question(name, f, x.astype(np.float64), w.astype(np.float64), shape, dtype)
    _linear(q)
    _once_each(q)
    others = []
    for near in (False, True):  # what fits one entry and its neighbour only is good for an error message
        for axes, geometry in _geometries(q, layout, near):
            e = q.explanation(axes, geometry)
            if q.is_computed_by(axes, e.recipes["y"].follow):
                return e
            others.append(e)
        if others:
            break
    raise ValueError(_refusal(q, others))


class _Question:
    """A function, and what it has said so far."""

    def __init__(self, name: str, f: Call, x: np.ndarray, w: np.ndarray, y: Index, dtype: Any) -> None:
        self.name, self.f, self.x, self.w, self.y, self.dtype = name, f, x, w, y, dtype
        self.plain = jax.jit(automatic(f))
        self.reader = Reader(self.plain, x.shape, w.shape, y, dtype)
        self.known: dict[Index, tuple[Product, ...]] = {}
        self.rng = np.random.default_rng(0)
        self.trials = [(x, w, self.ask(x, w)) for x, w in ((self.draw(x.shape), self.draw(w.shape)) for _ in range(2))]

    def draw(self, shape: Index) -> np.ndarray:
        """Random whole numbers from 1 to 50 with either sign."""
        return self.rng.integers(1, 51, shape) * self.rng.choice((-1.0, 1.0), shape)

    def ask(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """What the function makes of these numbers."""
        with jax.enable_x64(True):
            return np.asarray(self.plain(jnp.asarray(x, self.dtype), jnp.asarray(w, self.dtype)), np.float64)

    def products(self, entry: Index) -> tuple[Product, ...]:
        """The products that an entry of y is the sum of."""
        if entry not in self.known:
            self.known[entry] = self.reader.products(entry)
        return self.known[entry]

    def richest(self) -> Index:
        """The entry with the most products; of several, the one nearest to the middle."""
        counts = self.ask(np.ones(self.x.shape), np.ones(self.w.shape))
        best = np.argwhere(counts == counts.max())
        away = np.abs(2 * best - np.array(counts.shape) + 1).sum(1)
        return tuple(int(i) for i in best[np.argmin(away)])

    def is_computed_by(self, axes: Axes, follow: Call) -> bool:
        """Whether a recipe makes the same of random whole numbers, on which two bilinear maps that differ do differ."""
        return not any(
            differ(axes.lifted("y", y), follow(axes.lifted("x", x), axes.lifted("w", w)), self.dtype).any()
            for x, w, y in self.trials
        )

    def explanation(self, axes: Axes, geometry: Any) -> Explanation:
        """The function as that convolution."""

        def lifted(f: Call) -> Call:
            return lambda x, w: axes.lifted("y", f(axes.lowered("x", x), axes.lowered("w", w)))

        shapes = {name: (getattr(self, name) if name == "y" else getattr(self, name).shape) for name in "xwy"}
        full = {name: axes.shape(name, shape) for name, shape in shapes.items()}
        reads = tuple(
            f"{name} {shapes[name]} is read as {full[name]}"
            for name in "xwy"
            if shapes[name] != full[name] or getattr(axes, name) != getattr(geometry.layout, name)
        )
        x, w = axes.lifted("x", self.x), axes.lifted("w", self.w)
        layer = Layer(self.name, lifted(self.f), lifted(self.plain), x, w, self.dtype, reads)
        (batch, channels), outputs = (
            (full["x"][axis] for axis in geometry.layout.x[:2]),
            full["w"][geometry.layout.w[0]],
        )
        return Explanation(geometry, batch, channels, outputs, axes.layout, "autodiff", "auto", layer)


# What it must be


def _array(label: str, a: Any) -> np.ndarray:
    try:
        array = np.asarray(a)
        if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"explain: {label} must be an array of numbers, but is {type(a).__name__}.") from None
    if not array.size:
        raise ValueError(f"explain: {label} must have elements to ask about, but {label}.shape = {array.shape}.")
    return array.astype(np.float32 if array.dtype.itemsize < 4 else array.dtype)


def _asked_in(name: str, f: Call, x: np.ndarray, w: np.ndarray) -> tuple[Any, Index]:
    """float64, where whole numbers are exact longest; or float32, if the function insists. The shape of y."""

    def both(x: Any, w: Any) -> Any:
        y, backward = jax.vjp(f, x, w)
        return y, backward(y)

    with jax.enable_x64(True):
        _returns_an_array(name, f, x, w)
        for dtype in (np.dtype(np.float64), np.dtype(np.float32)):
            try:
                y, _ = jax.eval_shape(both, *(jax.ShapeDtypeStruct(a.shape, dtype) for a in (x, w)))
            except Exception as error:
                failure = error
                continue
            if y.dtype == dtype:
                break
            failure = TypeError(f"it makes {y.dtype} of {dtype}")
        else:
            raise TypeError(
                f"explain: {name} must be a function of x and w that JAX can differentiate in float32, but "
                f"{type(failure).__name__}: {failure}"
            ) from failure
    if 0 in y.shape:
        raise ValueError(f"explain: {name} must have an output to ask about, but {name}(x, w).shape = {y.shape}.")
    return dtype, y.shape


def _returns_an_array(name: str, f: Call, x: np.ndarray, w: np.ndarray) -> None:
    try:
        y = jax.eval_shape(f, *(jax.ShapeDtypeStruct(a.shape, np.float32) for a in (x, w)))
    except Exception:
        return  # why it cannot be called is said later
    if not hasattr(y, "shape") or not jnp.issubdtype(y.dtype, jnp.floating):
        what = str(y.dtype) if hasattr(y, "shape") else type(y).__name__
        raise TypeError(f"explain: {name} must return one array of floats, but returns {what}.")


def _linear(q: _Question) -> None:
    """Refuse what is not linear in x for a fixed w, and in w for a fixed x."""
    (x, w, y), (u, v) = q.trials[0], (q.draw(q.x.shape), q.draw(q.w.shape))
    remedy = "Explain the convolution alone, without what follows it."
    bias = "Take the bias out: it is added afterwards."
    for name, zero, whole, part in (
        ("x", (0 * x, w), (x + 2 * u, w), (u, w)),
        ("w", (x, 0 * w), (x, w + 2 * v), (x, v)),
    ):
        at_zero, random = ("(0, w)", "(x + 2·u, w)") if name == "x" else ("(x, 0)", "(x, w + 2·v)")
        _same(q, name, f"{q.name}{at_zero}", q.ask(*zero), np.zeros(q.y), bias)
        _same(q, name, f"{q.name}{random} of random numbers", q.ask(*whole), y + 2 * q.ask(*part), remedy)


def _same(q: _Question, name: str, what: str, made: np.ndarray, linear: np.ndarray, remedy: str) -> None:
    for place in np.argwhere(differ(made, linear, q.dtype))[:1]:
        entry = tuple(int(i) for i in place)
        raise ValueError(
            f"explain: {q.name} must be linear in {name}, but {what} is {made[entry]:g} at y{list(entry)}, "
            f"where a linear function is {linear[entry]:g}. {remedy}"
        )


def _once_each(q: _Question) -> None:
    """Refuse what weighs its products."""
    entry = q.richest()
    products = q.products(entry)
    if any(p.coefficient != 1 for p in products):
        said = Equation("y", entry, ("x", "w"), products, products)
        raise ValueError(
            f"explain: {q.name} must be a convolution in its two arguments, products of x and w that count once each, "
            f"but {said}."
        )


# Which convolution it may be


def _geometries(q: _Question, layout: str, near: bool) -> Iterator[tuple[Axes, Any]]:
    """The geometries that fit the products of a line of entries along each axis; `near`, of two entries only."""
    middle = q.richest()
    for axes in readings(q.x.shape, q.w.shape, q.y, layout):
        lines = [_line(q, axes, a, middle, near) for a in range(axes.rank)]
        for flipped in (False, True):
            fitted = [axis for line in lines for axis in itertools.islice(fits(*line, flipped), 1)]
            if len(fitted) == axes.rank:
                full = {name: axes.shape(name, shape) for name, shape in _shapes(q).items()}
                yield axes, conv_geometry(
                    "explain", full["x"], full["w"], flip_kernel=flipped, layout=axes.layout,
                    stride=[a.stride for a in fitted], padding=[(a.lo, a.hi) for a in fitted],
                    dilation=[a.dilation for a in fitted], input_dilation=[a.input_dilation for a in fitted],
                    groups=_groups(axes, full),
                )  # fmt: skip


def _shapes(q: _Question) -> dict[str, Index]:
    return {"x": q.x.shape, "w": q.w.shape, "y": q.y}


def _groups(axes: Axes, full: dict[str, Index]) -> int:
    x, w = (axes._specs(name)[1] for name in "xw")
    return full["x"][x[1]] // full["w"][w[1]]


def _line(q: _Question, axes: Axes, a: int, middle: Index, near: bool) -> tuple[int, int, int, Meetings]:
    """Along a spatial axis: the sizes of x, w and y, and what meets at the outputs that tell how the window moves.

    These are the first, the last, and those around the middle; the other axes stay there.
    """
    n, k, out = (axes.spatial(name, shape)[a] for name, shape in _shapes(q).items())
    along = axes.y[2 + a]
    assert along is not None
    at = middle[along]
    wanted = {at, at + 1} if near else {0, 1, 2, at - 1, at, at + 1, out - 2, out - 1}
    seen: Meetings = {}
    for p in sorted(p for p in wanted if 0 <= p < out):
        products = q.products((*middle[:along], p, *middle[along + 1 :]))
        seen[p] = {(axes.spatial("w", j)[a], axes.spatial("x", i)[a]) for _, i, j in products}
    return n, k, out, seen


# What it is instead


def _refusal(q: _Question, others: Sequence[Explanation]) -> str:
    must = f"explain: {q.name} must be a convolution in its two arguments, but "
    if others:
        e = others[0]
        entry = tuple(int(i) for i in np.argwhere(e.wrong["y"])[0])
        ours, meant = e.equation("y", entry).sums()
        y = f"y[{','.join(map(str, entry))}]"
        return (
            f"{must}its window does not stay the same as it moves: elsewhere it is {called(e)}, "
            f"which has {y} = {meant}; it has {y} = {ours}."
        )
    if not list(readings(q.x.shape, q.w.shape, q.y, "NHWC")):
        return f"{must}no axes of x {q.x.shape} and w {q.w.shape} become those of y {q.y}."
    entry = q.richest()
    products = q.products(entry)
    said = Equation("y", entry, ("x", "w"), products, products)
    return f"{must}no window that moves over x makes its products: {said}."
