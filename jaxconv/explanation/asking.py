"""From what a reader asks about to an `Explanation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxconv.explanation.explained import Explanation
from jaxconv.geometry import conv_geometry, sizes
from jaxconv.ops.conv import Rules, check_kernel_rules
from jaxconv.ops.wiring import boolean, check_engine


def explain(
    input_shape: Sequence[int],
    kernel_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip_kernel: bool = False,
    layout: str = "NHWC",
    rules: Rules = "fast",
    engine: str = "auto",
) -> Explanation:
    """How a convolution of these shapes is computed, and its two gradients: recipes, equations, pictures.

    Each of the three maps y = conv(x, w), dx = input_grad(δ, w) and dw = kernel_grad(x, δ) is one plain convolution of
    prepared operands; the recipe says what is dilated, padded, rotated and exchanged, with the numbers. The equations
    say which products an entry is the sum of. They are read off the rule itself, by asking it about chosen numbers: the
    equations of a wrong rule are wrong, and show where.

    Args:
      input_shape: the shape of x, (n, *spatial, c) for layout "NHWC".
      kernel_shape: the shape of w, (*taps, c // groups, o) for layout "NHWC".
      stride, padding, dilation, input_dilation, groups, flip_kernel, layout, engine: as in `conv`.
      rules: as in `conv`; a `ConvRules` of your own must be something that JAX can differentiate.

    Returns:
      An `Explanation`: text when printed; `.latex()`, `.to_dict()` for JSON, `.figure(path)` for a picture;
      `.equation("dx", (0, 1, 2, 0))` for one entry; `.verify()` says whether all of it is what differentiating `conv`
      computes.

    Raises:
      ValueError, TypeError: as `conv` raises them for such shapes and options.

    Example:
      >>> import jaxconv
      >>> e = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID")
      >>> print(e.equation("dx", (0, 2, 3, 0)))
      dx[0,2,3,0] = δ[0,1,1,0]·w[0,1,0,0]
      >>> e.recipes["dx"].padding  # span − 1 − lo, span − 1 − hi + unread
      ((1, 2), (1, 2))
      >>> e.verify()
      True

    Source: the trilinear form and the index equations in `jaxconv.rules.rotated`.
    """
    function = "explain"
    check_kernel_rules(function, rules)
    check_engine(function, engine)
    shapes = sizes(function, "input_shape", input_shape), sizes(function, "kernel_shape", kernel_shape)
    geometry = conv_geometry(
        function, *shapes, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, flip_kernel=boolean(function, "flip_kernel", flip_kernel), layout=layout,
    )  # fmt: skip
    (batch, channels), outputs = (shapes[0][axis] for axis in geometry.layout.x[:2]), shapes[1][geometry.layout.w[0]]
    return Explanation(geometry, batch, channels, outputs, layout, rules, engine)
