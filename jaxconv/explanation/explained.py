"""What is known of a convolution once it is explained: its recipes, its equations, whether they are true."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import forward
from jaxconv.explanation import drawing, page, verification, writing
from jaxconv.explanation.equations import Equation
from jaxconv.explanation.layer import Layer
from jaxconv.explanation.meetings import meetings
from jaxconv.explanation.page.told import told
from jaxconv.explanation.reading import Bilinear, Index, Product, Reader
from jaxconv.explanation.recipes import Recipe, primal, recipes
from jaxconv.geometry import Axis, Geometry
from jaxconv.ops.arguments import Rules
from jaxconv.ops.binding import rule_set
from jaxconv.ops.conv import convolve
from jaxconv.rules import ConvRules, rotated

# Entries and products of one map up to which all of them are written out.
FEW = 100
# Products of a map up to which even the library's own rules are examined before they are written or drawn.
MANY = 10_000_000


@dataclass(frozen=True)
class Explanation:
    """The three maps of a convolution; made by `explain`. Text when printed.

    Attributes:
      geometry: the resolved `Geometry`.
      batch, channels, outputs: examples, channels of x, channels of y.
      layout, rules, engine: as given to `explain`.
      layer: the function that was found to be this convolution, if one was given in place of shapes.
    """

    geometry: Geometry
    batch: int
    channels: int
    outputs: int
    layout: str
    rules: Rules
    engine: str
    layer: Layer | None = field(default=None, repr=False, compare=False)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The integers of each spatial axis."""
        return self.geometry.axes

    @property
    def shapes(self) -> dict[str, Index]:
        """Of x, w and y."""
        g = self.geometry
        return {
            "x": g.x_shape(self.batch, self.channels),
            "w": g.w_shape(self.channels // g.groups, self.outputs),
            "y": g.y_shape(self.batch, self.outputs),
        }

    @functools.cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How to compute y, dx and dw as convolutions."""
        return recipes(self.geometry)

    @functools.cached_property
    def equations(self) -> dict[str, tuple[Equation, ...]]:
        """The equations that are written out: of every entry, or of one with the most products where they are many."""
        return {name: self.read(name, self._chosen(name)) for name in self.recipes}

    def more(self, name: str, most: int) -> tuple[Equation, ...]:
        """Equations of at most as many entries, drawn at random from those that are not written out."""
        shape, known = self.shape(name), {q.entry for q in self.equations[name]}
        if len(known) == self.entries(name):
            return ()
        drawn = np.random.default_rng(0).integers(self.entries(name), size=most)
        entries = {tuple(int(i) for i in np.unravel_index(place, shape)) for place in drawn}
        return self.read(name, sorted(entries - known))

    def equation(self, name: str, entry: Sequence[int]) -> Equation:
        """The equation of one entry of y, dx or dw, read off the rule.

        Raises:
          ValueError: for an unknown name, or an index outside of the array.
        """
        if name not in self.recipes:
            raise ValueError(f"explain: the equation must be one of {', '.join(self.recipes)}, but is {name!r}.")
        entry, shape = tuple(int(i) for i in entry), self.shape(name)
        if len(entry) != len(shape) or any(not 0 <= i < n for i, n in zip(entry, shape, strict=True)):
            raise ValueError(
                f"explain: the entry must have one index per axis of {name}, from 0 and below {shape}, but is {entry}."
            )
        return self.read(name, [entry])[0]

    def shape(self, name: str) -> Index:
        """The shape of x, w, y, g, dx or dw."""
        return self.shapes[primal(name)]

    def entries(self, name: str) -> int:
        """How many numbers y, dx or dw has."""
        return int(np.prod(self.shape(name)))

    def total(self, name: str) -> float:
        """How many products all entries of y, dx or dw add up."""
        return float(self._counts[name].sum())

    def verify(self) -> bool:
        """Whether recipes and equations are what differentiating `conv` computes with these rules; see `faults`."""
        return not self.faults()

    def faults(self) -> list[str]:
        """What does not agree, one sentence each. Where there is something, whatever is written or drawn says so first.

        Only the library's own rules on arrays so large that it would take minutes are written and drawn unexamined.
        """
        return list(self._faults)

    @functools.cached_property
    def _faults(self) -> tuple[str, ...]:
        return tuple(verification.faults(self))

    @functools.cached_property
    def verdict(self) -> str:
        """One sentence on how much is wrong, or "" where nothing is."""
        return "" if self._trusted else verification.verdict(self)

    @functools.cached_property
    def wrong(self) -> dict[str, np.ndarray]:
        """Which entries of y, dx and dw are wrong."""
        if self._trusted:
            return {name: np.zeros(self.shape(name), bool) for name in self.recipes}
        return {name: np.any([t.wrong(name) for t in self.trials], axis=0) for name in self.recipes}

    @property
    def _trusted(self) -> bool:
        """Whether rules are of the library, and the products too many to add them all up once more."""
        own = isinstance(self.rules, ConvRules) or self.layer is not None
        products = self.entries("y") * math.prod(self.geometry.taps) * self.channels // self.geometry.groups
        return not own and products > MANY

    def __str__(self) -> str:
        return writing.text(self)

    def latex(self) -> str:
        """An `align*` environment: the trilinear form with its index equations, and each map's recipe and equations.

        ↑s stands for s − 1 zeros between neighbours, ⋆ for correlation, ↓s for steps of s, ⊤ for exchanged channels.
        """
        return writing.latex(self)

    def to_dict(self) -> dict[str, Any]:
        """Geometry, recipes and the equations that are written out, as JSON knows them.

        Where something is wrong, `faults` comes first; a map then counts its wrong entries, and a wrong equation has
        the right products beside its own.
        """
        known: dict[str, Any] = {
            "layout": self.layout,
            "groups": self.geometry.groups,
            "flip_kernel": self.geometry.flip_kernel,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "axes": [{column: getattr(axis, column) for column in writing.COLUMNS} for axis in self.axes],
            "maps": {
                name: {
                    "recipe": recipe.to_dict(),
                    "entries": self.entries(name),
                    "products": self.total(name),
                    **({"wrong": int(self.wrong[name].sum())} if self.verdict else {}),
                    "equations": [q.to_dict() for q in self.equations[name]],
                }
                for name, recipe in self.recipes.items()
            },
        }
        if self.layer is not None:
            found = {"name": self.layer.name, "call": writing.called(self), "reads": list(self.layer.reads)}
            known = {"function": found, **known}
        return {"faults": self.faults(), **known} if self.verdict else known

    def figure(
        self, path: str | Path | None = None, *, maps: Sequence[str] = ("y", "dx", "dw"), frames: int | None = None
    ) -> Any:
        """Draw the kernel of each map over its operand, with numbers, and write SVG, PNG, PDF or an animated GIF.

        The window's elements and the kernel are shaded, zeros of padding and dilation grey with dotted edges, unread
        inputs hatched, the entry that is computed black. Of more than 3 channels the first 3 are drawn.

        Args:
          path: where to write, in the format that its suffix names; None writes nothing.
          maps: which of "y", "dx" and "dw", from top to bottom.
          frames: how many positions of the kernel, side by side, or one after another in a GIF. By default one, that of
            an entry with the most products; in a GIF all, up to 120.

        Returns:
          The `matplotlib.figure.Figure`; of a GIF, its last frame.

        Raises:
          ValueError: for an unknown map or suffix, for less than one frame, and for more than a picture can hold.
          FileNotFoundError: where the folder of path does not exist.
          ModuleNotFoundError: without matplotlib, which `pip install jaxconv[experiments]` brings.
        """
        return drawing.figure(self, path, maps, frames)

    def html(self) -> str:
        """An interactive page as one self-contained document: sliders, every entry's products, the three maps in step.

        Raises:
          ValueError: for a convolution that a page cannot show: of more than two spatial axes, or too large.
        """
        return page.html(self.geometry, self.channels, self.outputs, told(self))

    # Reading

    def call(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """The function whose gradients are explained."""
        if self.layer is not None:
            return self.layer.call(x, w)
        return convolve(x, w, self.geometry, self.rules, self.engine, None)

    @functools.cached_property
    def run(self) -> Callable[..., tuple[jax.Array, ...]]:
        """(x, w, g) -> y, dx and dw, by differentiating `call`."""

        def run(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
            y, backward = jax.vjp(self.call, x, w)
            return y, *backward(g)

        return jax.jit(run)

    @functools.cached_property
    def trials(self) -> tuple[verification.Trial, ...]:
        """What the rules, and what the recipes make of several choices of numbers."""
        return verification.trials(self)

    @functools.cached_property
    def shown(self) -> verification.Trial:
        """The numbers that are drawn: those a function was given, with whole numbers for δ; or whole numbers only."""
        if self.layer is None:
            return self.trials[0]
        return verification.Trial(self, {"x": self.layer.x, "w": self.layer.w, "g": self.trials[0].given["g"]})

    @property
    def example(self) -> dict[str, np.ndarray]:
        """The x, w and g that are drawn, and the y, dx and dw that differentiation makes of them."""
        return {**self.shown.given, **self.shown.made}

    @property
    def right(self) -> dict[str, np.ndarray]:
        """The y, dx and dw that should be made of them."""
        return self.shown.made if self._trusted else self.shown.right

    @property
    def dtype(self) -> Any:
        """In which the rules are asked: float64, unless a function has another one of its own."""
        return np.dtype(np.float64) if self.layer is None else self.layer.dtype

    def richest(self, name: str) -> Index:
        """The entry of y, dx or dw with the most products; of several, the one nearest to the middle.

        Where some are wrong, it is one of those.
        """
        counts, wrong = self._counts[name], self.wrong[name]
        counts = np.where(wrong, counts, -1) if wrong.any() else counts
        if not counts.size:
            return ()
        best = np.argwhere(counts == counts.max())
        away = sum(np.abs(2 * best[:, axis] - counts.shape[axis] + 1) for axis in self.recipes[name].layout(name)[2:])
        return tuple(int(i) for i in best[np.argmin(away)])

    def _bilinear(self, name: str) -> Bilinear:
        if self.layer is not None:
            return self.layer.map(name)
        source = forward if self.rules == "autodiff" else rule_set(self.rules)
        options = {"platform": jax.default_backend()} if self.rules == "fast" else {}
        return lambda a, b: getattr(source, self.recipes[name].map)(a, b, self.geometry, **options)

    def _operands(self, name: str) -> tuple[Index, Index]:
        left, right = self.recipes[name].factors
        return self.shape(left), self.shape(right)

    @functools.cached_property
    def _readers(self) -> dict[str, Reader]:
        return {
            name: Reader(self._bilinear(name), *self._operands(name), self.shape(name), self.dtype)
            for name in self.recipes
        }

    @functools.cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        """How many products each entry should be the sum of: the maps of ones and ones."""

        @jax.jit
        def of_ones() -> dict[str, jax.Array]:
            maps = {name: getattr(rotated, recipe.map) for name, recipe in self.recipes.items()}
            ones = {name: [jnp.ones(shape, float) for shape in self._operands(name)] for name in maps}
            return {name: f(*ones[name], self.geometry) for name, f in maps.items()}

        with jax.enable_x64(True):
            return {name: np.asarray(counts) for name, counts in of_ones().items()}

    def _chosen(self, name: str) -> list[Index]:
        counts = self._counts[name]
        few = max(counts.size, counts.sum()) <= FEW
        return list(np.ndindex(*counts.shape)) if few else [self.richest(name)]

    def read(self, name: str, entries: Sequence[Index]) -> tuple[Equation, ...]:
        """The equations of these entries, read off the rule."""
        recipe = self.recipes[name]
        return tuple(
            Equation(name, entry, recipe.factors, self._products(name, entry), self._meant(name, entry))
            for entry in entries
        )

    def _products(self, name: str, entry: Index) -> tuple[Product, ...]:
        try:
            return self._readers[name].products(entry)
        except Exception as error:
            if self.layer is None and not isinstance(self.rules, ConvRules):
                raise
            of = f"rules.{self.recipes[name].map}" if self.layer is None else f"the {name} of {self.layer.name}"
            raise TypeError(
                f"explain: {of} must be a function of arrays that JAX can differentiate, but "
                f"{type(error).__name__}: {error}"
            ) from error

    def _meant(self, name: str, entry: Index) -> tuple[Product, ...]:
        return tuple(sorted(Product(1.0, *pair) for pair in meetings(self, name, entry)))
