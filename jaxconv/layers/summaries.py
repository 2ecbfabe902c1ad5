"""What a network is made of, and what each of its layers costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.geometry import integer
from jaxconv.layers.base import Layer, Params, Shape, State, check_layer, converted
from jaxconv.ops.arguments import Rules, check_rules

WIDTH = 80
_TITLES = ("layer", "output", "parameters", "FLOPs", "residuals")
_PREFIXES = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True)
class Cost:
    """A layer, and what it costs together with its parts.

    Attributes:
      layer: the call that built it.
      output: the shape of what it returns.
      dtype: of what it returns.
      parameters: how many numbers an optimiser updates.
      flops: of the forward pass, or None where XLA does not count them.
      residuals: bytes that the forward pass keeps for the backward pass.
      parts: the layers that it is made of.
    """

    layer: str
    output: Shape
    dtype: str
    parameters: int
    flops: int | None
    residuals: int
    parts: tuple[Cost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own = {name: value for name, value in vars(self).items() if name != "parts"}
        return {**own, "output": list(self.output), "parts": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True)
class Summary:
    """A table of 80 columns when printed: a line a layer, the parts of one indented below it, and the total.

    Attributes:
      shape: of the input.
      rules: the backward pass that residuals are kept for.
      total: the cost of the network, with that of its layers in `parts`.
    """

    shape: Shape
    rules: str
    total: Cost

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {"shape": list(self.shape), "rules": self.rules, "total": self.total.to_dict()}

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [_TITLES]
        for cost, depth in _walk(self.total.parts or (self.total,), 0):
            name = cost.layer.split("(")[0] if cost.parts else cost.layer
            lines.append(("  " * depth + name, *_cells(cost)))
        lines.append(("total", *_cells(self.total)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
        return "\n".join(
            "  ".join([_cut(label, widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
            for label, *cells in lines
        )


def _walk(costs: Sequence[Cost], depth: int) -> Iterator[tuple[Cost, int]]:
    for cost in costs:
        yield cost, depth
        yield from _walk(cost.parts, depth + 1)


def _cells(cost: Cost) -> tuple[str, ...]:
    flops = "?" if cost.flops is None else _scaled(cost.flops)
    return str(cost.output), f"{cost.parameters:,}", flops.rstrip(), f"{_scaled(cost.residuals)}B"


def _scaled(n: int) -> str:
    """Three digits and a prefix: 1.23 M."""
    exact, power = int(float(f"{n:.3g}")), 0
    while exact >= 1000 ** (power + 1) and power < len(_PREFIXES) - 1:
        power += 1
    digits = f"{exact / 1000**power:#.3g}".rstrip(".")
    return f"{digits} {_PREFIXES[power]}" if power else f"{n} "


def _cut(label: str, width: int) -> str:
    return label.ljust(width) if len(label) <= width else label[: width - 1] + "…"


def summary(net: Layer, shape: Sequence[int], *, rules: Rules = "fast", dtype: Any = None) -> Summary:
    """Each layer of a network: its output's shape, its parameters, its FLOPs, and what it keeps for the backward pass.

    Nothing is computed, and only shapes are traced, so a network that does not fit this machine has a summary too.

    FLOPs are those of one forward pass of the trained network over an input of `shape`, as XLA for the CPU counts them
    in the plain program, the zeros of a padding left out: a product and its addition are two, a comparison is one.

    Residuals are what `jax.vjp` of a training step's forward pass keeps, in parameters and input, by these rules and in
    this dtype: inputs of kernels, masks and taps, statistics, parameters converted to another dtype. An array that
    several layers keep is counted once, for the first of them; parameters, which are there anyway, are not counted. So
    much is handed to the backward pass; XLA may compute some of it again rather than keep it.

    Args:
      net: a layer, or a network of layers.
      shape: of the input, the batch included.
      rules: the backward pass, as `net.apply` takes it.
      dtype: the floating dtype to compute in, as `net.apply` takes it.

    Returns:
      A `Summary`: a table when printed, `.to_dict()` for JSON, `.total.parts` for programs.

    Raises:
      ValueError, TypeError: for what is no layer, no rules or no dtype, and for a shape that is empty or refused by
        `net.init`.

    Example:
      >>> import jaxconv
      >>> from jaxconv import layers
      >>> block = layers.residual(layers.serial(layers.Conv(4, 3, bias=False), layers.BatchNorm()))
      >>> net = layers.serial(layers.Conv(4, 3), block, layers.Activation(jaxconv.relu), layers.MaxPool(2))
      >>> print(layers.summary(net, (1, 8, 8, 1)))
      layer                             output  parameters   FLOPs  residuals
      Conv(4, 3)                  (1, 8, 8, 4)          40  4.13 k      256 B
      residual                    (1, 8, 8, 4)         152  16.8 k    2.10 kB
        serial                    (1, 8, 8, 4)         152  16.5 k    2.10 kB
          Conv(4, 3, bias=False)  (1, 8, 8, 4)         144  15.5 k    1.02 kB
          BatchNorm()             (1, 8, 8, 4)           8  1.05 k    1.07 kB
      Activation(relu)            (1, 8, 8, 4)           0  1.02 k    1.02 kB
      MaxPool(2)                  (1, 4, 4, 4)           0     192       64 B
      total                       (1, 4, 4, 4)         192  22.1 k    3.44 kB

    Source: FLOPs are those of `cost_analysis` of JAX; residuals are the leaves of the function that `jax.vjp` returns.
    """
    check_layer("summary", "net", net)
    check_rules("summary", rules)
    shape = tuple(integer("summary", f"shape[{i}]", n, 0) for i, n in enumerate(shape))
    if not shape:
        raise ValueError(
            "summary: shape must have len(shape) >= 1, but is (). Give the batch and the axes of an example, "
            "such as (1, 28, 28, 1)."
        )
    key = jax.random.key(0)
    params, state = jax.eval_shape(lambda key: net.init(key, shape)[:2], key)
    seen, observed = _observe(net)
    options = {"train": True, "rules": rules, **({} if dtype is None else {"dtype": dtype})}

    def kept(params: Params, state: State, x: jax.Array, key: jax.Array) -> Any:
        observed.apply(params, state, x if dtype is None else converted(x, dtype), key=key, **options)
        return [layer.residuals for layer in seen.leaves()]

    program = jax.make_jaxpr(kept)(params, state, jax.ShapeDtypeStruct(shape, jnp.float32), key).jaxpr
    arrays = iter(program.outvars)
    counted = {id(v) for v in program.invars[: len(jax.tree.leaves(params))]}
    for layer in seen.leaves():
        for v in (next(arrays) for _ in layer.residuals):
            if id(v) not in counted:
                counted.add(id(v))
                layer.bytes += v.aval.size * v.aval.dtype.itemsize
    return Summary(shape, rules if isinstance(rules, str) else type(rules).__name__, seen.cost())


@dataclass
class _Seen:
    """A layer of the network, and what it was seen to take and return."""

    layer: Layer
    parts: list[_Seen] = field(default_factory=list)
    taken: tuple[Any, ...] = ()
    returned: Any = None
    residuals: list[jax.Array] = field(default_factory=list)
    bytes: int = 0

    def leaves(self) -> Iterator[_Seen]:
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()

    def cost(self) -> Cost:
        y, (params, _, _) = self.returned, self.taken
        return Cost(
            repr(self.layer),
            y.shape,
            y.dtype.name,
            sum(p.size for p in jax.tree.leaves(params)),
            _flops(self.layer, *self.taken),
            sum(leaf.bytes for leaf in self.leaves()),
            tuple(part.cost() for part in self.parts),
        )


def _observe(layer: Layer) -> tuple[_Seen, Layer]:
    """A layer that computes the same, and what it is seen to do while it does."""
    seen = _Seen(layer)

    def part(layer: Layer) -> Layer:
        inner, observed = _observe(layer)
        seen.parts.append(inner)
        return observed

    whole = layer if layer.origin is None else layer.origin.again(part)

    def apply(params: Params, state: State, x: jax.Array, **options: Any) -> tuple[jax.Array, State]:
        if seen.parts:
            y, new = whole.apply(params, state, x, **options)
        else:
            y, back, new = jax.vjp(lambda p, x: layer.apply(p, state, x, **options), params, x, has_aux=True)
            seen.residuals = [a for a in jax.tree.leaves(back) if isinstance(a, jax.Array)]
        seen.taken, seen.returned = jax.tree.map(_shaped, (params, state, x)), _shaped(y)
        return y, new

    return seen, Layer(layer.init, apply)


def _shaped(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _flops(layer: Layer, params: Params, state: State, x: jax.ShapeDtypeStruct) -> int | None:
    """Of the plain program; in float32, since XLA counts a conversion, too."""

    def forward(params: Params, state: State, x: jax.Array) -> jax.Array:
        y, _ = layer.apply(params, state, x, rules="autodiff")
        return y

    with jax.default_device(_cpu()):
        cost = jax.jit(forward).lower(params, state, jax.ShapeDtypeStruct(x.shape, jnp.float32)).cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return None if cost is None else int(cost.get("flops", 0))  # of a reshape nothing is said


def _cpu() -> jax.Device | None:
    """Who counts FLOPs: plugins, such as that of a GPU, do not. None where JAX was told to have no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
