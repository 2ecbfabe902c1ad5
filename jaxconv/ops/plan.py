"""Which formulation the fast rules take for a layer, and why, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv.geometry import Geometry, sizes
from jaxconv.ops.arguments import Rules, check_engine, check_kernel_rules, convolution
from jaxconv.ops.binding import gradients_of, rule_set
from jaxconv.rules import ConvRules, is_fast
from jaxconv.rules.fast import choice
from jaxconv.rules.fast.formulation import Call


class Choice(NamedTuple):
    """A formulation by name, the reason for it, and what it keeps in memory beside operands and result."""

    formulation: str
    why: str
    holds: str


# Of anything under rules="autodiff".
BY_JAX = Choice("lax", "rules='autodiff': JAX differentiates it", "nothing")


class Plan(NamedTuple):
    """The choice for each of the three maps: `.formulation`, `.why`, and what it `.holds` in memory."""

    conv: Choice
    input_grad: Choice
    kernel_grad: Choice

    def __str__(self) -> str:
        width = max(len(c.formulation) for c in self)
        lines = [
            f"{name:<11}  {c.formulation:<{width}}  {c.why}; holds {c.holds}"
            for name, c in zip(self._fields, self, strict=True)
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The plan as JSON knows it."""
        return {name: c._asdict() for name, c in zip(self._fields, self, strict=True)}


def plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: Any = "float32",
    platform: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
) -> Plan:
    """The formulations that `rules="fast"`, or what `tune` returns, takes for a convolution, and why.

    "onednn" is the native engine's convolution, "depthwise" its own kernel gradient of one channel per group, and "lax"
    XLA's own convolution. The others compute the same sums in another order: "product" as one matrix product, "shifts"
    as shifted multiply-adds, "blocks" as dense convolutions of merged groups, "phases" as one convolution per residue
    class of an input dilation ("merged phases": all of them at once), "fold" as a product followed by overlapping
    additions, "patches" as products over the patches of a few rows; "full" is the full convolution of δ with the
    rotated kernel, by one of these.

    A program that XLA itself splits over several devices keeps to "lax", whatever the plan for one device.

    Args:
      x_shape: the shape of x, (n, *spatial, c) for layout "NHWC".
      w_shape: the shape of w, (*taps, c // groups, o) for layout "NHWC".
      dtype: of x and w.
      platform: "cpu", "gpu", "tpu", ... as `jax.default_backend()` names them, which is the default.
      stride, padding, dilation, input_dilation, groups, flip_kernel, layout, engine: as in `conv`.
      rules: "fast" or what `tune` returns.

    Returns:
      A named tuple (conv, input_grad, kernel_grad) of choices, each with a formulation, the reason (why) and what it
      holds in memory beside operands and result; `str` makes a table of it, `.to_dict()` JSON.

    Raises:
      ValueError, TypeError: as `conv` raises them for such shapes and options.

    Example:
      >>> import jaxconv
      >>> plan = jaxconv.plan((8, 56, 56, 32), (3, 3, 1, 32), groups=32, platform="cpu", engine="xla")
      >>> print(plan.conv.formulation, "-", plan.conv.why)
      shifts - one channel per group: there is no sum over channels

    Source: `jaxconv.rules.fast.choice`, the same function that the lowering calls.
    """
    function, dtype = "plan", jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{function}: dtype must be floating (float32, bfloat16, float16 or float64), but is {dtype}.")
    check_engine(function, engine)
    chosen_by = rule_set(check_kernel_rules(function, rules))
    if not (isinstance(chosen_by, ConvRules) and is_fast(chosen_by)):
        raise ValueError(
            f'{function}: rules must be "fast" or what tune returns, but is {rules!r}: others do not choose.'
        )
    x_shape, w_shape = sizes(function, "x_shape", x_shape), sizes(function, "w_shape", w_shape)
    geometry = convolution(
        function, x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, layout=layout, flip_kernel=flip_kernel,
    )  # fmt: skip
    place = geometry.layout
    counts = x_shape[place.x[0]], x_shape[place.x[1]], w_shape[place.w[0]]
    return planned(geometry, counts, chosen_by, engine, platform or jax.default_backend(), dtype, dtype)


def planned(
    geometry: Geometry, counts: tuple[int, int, int], rules: Rules, engine: str, platform: str, dtype: Any, result: Any
) -> Plan:
    """What computes the maps of a convolution: of so many examples, channels of x and of y, from one dtype to another.

    δ has the dtype of the result, and what meets it is converted to that.
    """
    written = gradients_of(rules)
    if not isinstance(written, ConvRules):
        return Plan(*[Choice("lax", f"rules={rules!r}: JAX differentiates lax's convolution", "nothing")] * 3)
    if not is_fast(written):
        name = rules if isinstance(rules, str) else "own rules"
        forward = Choice("lax", 'the forward pass is lax\'s under all rules but "fast"', "nothing")
        return Plan(forward, *(Choice(name, "as it is written", "what it makes") for _ in range(2)))

    table = getattr(written.conv, "table", None)

    def chosen(name: str) -> Choice:
        there = name == "conv"
        call = Call(
            name, platform, dtype if there else result, geometry, *counts, engine=engine,
            result=result if there and result != dtype else None,
        )  # fmt: skip
        taken = choice.chosen(call, table)
        return Choice(taken.name, taken.why, taken.holds)

    return Plan(*map(chosen, Plan._fields))
