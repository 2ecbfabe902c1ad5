"""From what a reader asks about to an `Explanation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from jax.typing import ArrayLike

from jaxconv.explanation.explained import Explanation
from jaxconv.explanation.finding import find
from jaxconv.geometry import check_layout, sizes
from jaxconv.ops.arguments import Rules, check_engine, check_kernel_rules, convolution


@overload
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
) -> Explanation: ...


@overload
def explain(layer: Callable[..., Any], x: ArrayLike, w: ArrayLike, /, *, layout: str = "NHWC") -> Explanation: ...


def explain(
    input_shape: Any,
    kernel_shape: Any,
    w: Any = None,
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
    """How a convolution is computed, and its two gradients: recipes, equations, pictures.

    `explain(input_shape, kernel_shape, ...)` explains `conv` of these shapes and options. `explain(layer, x, w)`
    explains a function of two arrays: by its products it is found which convolution it is, if it is one.

    Each of the three maps y = conv(x, w), dx = input_grad(δ, w) and dw = kernel_grad(x, δ) is one plain convolution of
    prepared operands; the recipe says what is dilated, padded, rotated and exchanged, with the numbers. The equations
    say which products an entry is the sum of. They are read off the rule itself, by asking it about chosen numbers. The
    equations of a wrong rule are wrong: whatever is written or drawn then says so first, marks the wrong entries, and
    puts the right products beside the wrong ones.

    Args:
      input_shape: the shape of x, (n, *spatial, c) for layout "NHWC".
      kernel_shape: the shape of w, (*taps, c // groups, o) for layout "NHWC".
      stride, padding, dilation, input_dilation, groups, flip_kernel, layout, engine: as in `conv`.
      rules: as in `conv`; a `ConvRules` of your own must be something that JAX can differentiate.
      layer: (x, w) -> y, linear in x and in w; a `jax.custom_vjp` is read with its own backward pass. Of the axes of x,
        w and y those of the batch and of channels may be missing, and w may be laid out in any order of taps, I and O.
      x, w: the arrays to call it with, and to draw; δ is made of small whole numbers.
      layout: of a function, which one to try first; no other option can be given, they are found.

    Returns:
      An `Explanation`: text when printed; `.latex()`, `.to_dict()` for JSON, `.figure(path)` for a picture;
      `.equation("dx", (0, 1, 2, 0))` for one entry; `.verify()` says whether all of it is what differentiating `conv`
      computes.

    Raises:
      ValueError, TypeError: as `conv` raises them for such shapes and options; for a function that is no convolution,
        with what it is instead: not linear, its window not the same everywhere, and at which entry.

    Example:
      >>> import jaxconv
      >>> e = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID")
      >>> print(e.equation("dx", (0, 2, 3, 0)))
      dx[0,2,3,0] = δ[0,1,1,0]·w[0,1,0,0]
      >>> e.recipes["dx"].padding  # span − 1 − lo, span − 1 − hi + unread
      ((1, 2), (1, 2))
      >>> e.verify()
      True
      >>> import jax.numpy as jnp
      >>> e = jaxconv.explain(lambda x, w: jnp.convolve(x, w, "same"), jnp.arange(5.0), jnp.ones(3))
      >>> e.geometry.flip_kernel, e.geometry.padding, str(e.equation("y", (0, 0, 0)))
      (True, ((1, 1),), 'y[0,0,0] = x[0,0,0]·w[1,0,0] + x[0,1,0]·w[0,0,0]')

    Source: the trilinear form and the index equations in `jaxconv.rules.rotated`.
    """
    function = "explain"
    if callable(input_shape):
        given = {
            "stride": stride != 1, "padding": padding != "SAME", "dilation": dilation != 1, "groups": groups != 1,
            "input_dilation": input_dilation != 1, "flip_kernel": flip_kernel is not False, "rules": rules != "fast",
            "engine": engine != "auto",
        }  # fmt: skip
        if any(given.values()):
            names = ", ".join(name for name, is_given in given.items() if is_given)
            raise TypeError(f"{function}: {names} must be left out for a function: they are found by asking it.")
        if w is None:
            raise TypeError(f"{function}: a function needs the x and w to ask it about: explain(layer, x, w).")
        return find(input_shape, kernel_shape, w, check_layout(function, layout))
    if w is not None:
        raise TypeError(f"{function}: shapes take no third argument. For a function: explain(layer, x, w).")
    check_kernel_rules(function, rules)
    check_engine(function, engine)
    shapes = sizes(function, "input_shape", input_shape), sizes(function, "kernel_shape", kernel_shape)
    geometry = convolution(
        function, *shapes, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, flip_kernel=flip_kernel, layout=layout,
    )  # fmt: skip
    (batch, channels), outputs = (shapes[0][axis] for axis in geometry.layout.x[:2]), shapes[1][geometry.layout.w[0]]
    return Explanation(geometry, batch, channels, outputs, layout, rules, engine)
