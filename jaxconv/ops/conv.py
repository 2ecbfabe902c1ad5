"""Convolution and its three gradients, as public functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxconv import forward, primitives
from jaxconv.geometry import Geometry, Layout, check_layout, conv_geometry, integer, per_axis, placed, spatial_rank
from jaxconv.ops.own_rules import held
from jaxconv.ops.wiring import boolean, check_engine, check_rules, floating, frozen, same_dtype
from jaxconv.rules import NAMED, ConvRules
from jaxconv.windows import widened

Rules = str | ConvRules


def _bias_grad(g: jax.Array, static: tuple[tuple[int, ...], int]) -> jax.Array:
    """db[o] = Σ_n Σ_p g[n, p, o]: a bias is read at every position of every example."""
    _, channel = static
    return widened(g).sum(tuple(axis for axis in range(g.ndim) if axis != channel)).astype(g.dtype)


_bias = primitives.linear_pair("bias", lambda b, static: forward.bias(b, *static), _bias_grad)


# Shared by every op on kernels


def given(**options: Any) -> dict[str, Any]:
    """The options that the caller set: a rule need not know of the others."""
    return {name: value for name, value in options.items() if value is not None}


def check_kernel_rules(function: str, rules: Any) -> Rules:
    """The rules of an op with a kernel, the caller's held to their contract."""
    check_rules(function, rules)
    return held(function, rules) if isinstance(rules, ConvRules) else rules


def prepare(
    function: str, rules: Any, engine: Any, layout: Any, **arrays: Any
) -> tuple[list[jax.Array], Rules, str, int]:
    """Validate what all ops on kernels share: two arrays of one floating dtype and rank, and the choices."""
    values = {name: floating(function, name, value) for name, value in arrays.items()}
    same_dtype(function, **values)
    rules = check_kernel_rules(function, rules)
    check_engine(function, engine)
    layout = check_layout(function, layout)
    (first, a), (second, b) = values.items()
    rank = spatial_rank(function, first, a.shape, layout)
    if b.ndim != a.ndim:
        raise ValueError(
            f"{function}: {second} must have as many axes as {first}, but {b.ndim} != {a.ndim} "
            f"({second}.shape = {b.shape}, {first}.shape = {a.shape}). A single example needs a batch axis: [None]."
        )
    return [a, b], rules, layout, rank


def evaluate(
    map_name: str, a: jax.Array, b: jax.Array, geometry: Geometry, rules: Rules, engine: str, precision: Any,
    dtype: Any = None,
) -> jax.Array:  # fmt: skip
    """One of the three maps ("conv", "input_grad", "kernel_grad") as `rules` writes it, and its derivatives too."""
    precision = frozen(precision)
    if rules == "autodiff":
        options = given(precision=precision, preferred_element_type=dtype)
        return getattr(forward, map_name)(a, b, geometry, **options).astype(dtype or a.dtype)
    bound = getattr(primitives, map_name)
    return bound(
        a, b, geometry, precision=precision, dtype=dtype or a.dtype, engine=engine, rules=rule_set(rules)
    )  # fmt: skip


def rule_set(rules: Rules) -> ConvRules:
    return rules if isinstance(rules, ConvRules) else NAMED[rules]


def convolve(
    x: jax.Array, w: jax.Array, geometry: Geometry, rules: Rules, engine: str, precision: Any, dtype: Any = None
) -> jax.Array:
    """`conv` on a resolved geometry: a rule set says what the gradients are; the forward pass is `lax`'s for all."""
    if rules not in ("fast", "autodiff"):
        rules = dataclasses.replace(rule_set(rules), conv=forward.conv)
    return evaluate("conv", x, w, geometry, rules, engine, precision, dtype)


def check_groups(function: str, name: str, channels: int, groups: Any) -> int:
    """The channels of one group."""
    groups = integer(function, "groups", groups, 1)
    if channels % groups:
        raise ValueError(
            f"{function}: groups must divide the channels of {name}, but {channels} % {groups} = {channels % groups}."
        )
    return channels // groups


def check_preferred(function: str, dtype: Any, x: jax.Array) -> Any:
    """A result dtype must hold what the sums produce: floating, and not narrower than the operands."""
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    fits = jnp.issubdtype(dtype, jnp.floating) and (dtype == x.dtype or dtype.itemsize > x.dtype.itemsize)
    if not fits:
        raise TypeError(
            f"{function}: preferred_element_type must be x's dtype or a wider floating one, but {dtype} is neither "
            f"for {x.dtype}. Convert the result: y.astype(...)."
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def check_bias(function: str, b: Any, channels: int, x: jax.Array) -> jax.Array:
    b = floating(function, "b", b)
    same_dtype(function, x=x, b=b)
    if b.shape != (channels,):
        raise ValueError(
            f"{function}: b must hold one number per output channel, but b.shape = {b.shape} != ({channels},). "
            "A bias per position is an addition: y + b."
        )
    return b


def add_bias(y: jax.Array, b: jax.Array, channel: int, rules: Rules) -> jax.Array:
    """y with b added along its channel axis, the gradient of b bound as `rules` says."""
    b, static = b.astype(y.dtype), (y.shape, channel)
    if rules == "autodiff":
        return y + forward.bias(b, *static)
    return y + _bias.apply(b, static=static)


def check_cotangent(
    function: str, shape: tuple[int, ...], expected: tuple[int, ...], inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    """δ must have the shape of the output it belongs to."""
    if shape != expected:
        raise ValueError(
            f"{function}: g.shape must be that of the forward output, but {shape} != {expected}. "
            f"With these options, the forward pass maps spatial {inside} to {outside}."
        )


# The public functions


def conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
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
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Convolution over any number of spatial axes, with hand-written gradients.

    y[n, p, o] = Σ_{k, c} x[n, s·p + d·k − lo, c] · w[k, c, o] + b[o]

    As in every framework this is the cross-correlation; `flip_kernel=True` gives the true convolution of
    mathematics, w[K−1−k] in place of w[k]. The gradients are convolutions too: with respect to x, the dilated
    δ with the kernel rotated by 180° and its channels exchanged; with respect to w, x with δ as the kernel,
    stride and dilation having changed places; with respect to b, the sum of δ.

    Args:
      x: (n, *spatial, c) for layout "NHWC", (n, c, *spatial) for "NCHW"; floating.
      w: (*taps, c // groups, o) for "NHWC" (HWIO), (o, c // groups, *taps) for "NCHW" (OIHW); x's dtype.
      b: (o,), or None.
      stride: step of the window, an int or one per spatial axis.
      padding: "SAME" (out = ⌈n / s⌉, the odd element at the end), "SAME_LOWER" (at the start), "VALID",
        "CAUSAL" (one spatial axis, all padding before it), an int, one per axis, or (lo, hi) pairs. Negative
        padding crops.
      dilation: distance between taps.
      input_dilation: input elements are moved this far apart, zeros between them.
      groups: channels of x and w are split into this many independent convolutions.
      flip_kernel: whether to rotate the kernel first.
      layout: "NHWC" or "NCHW", for any number of spatial axes.
      rules: whose gradients: "fast", "textbook", "rotated", "autodiff" (JAX's own), or your own `ConvRules`. The
        forward pass is the same, and so are the transformations: all of JAX's.
      engine: who computes the fast maps: "auto" or "xla".
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default that of x. Sums are carried in float32 or wider
        either way: XLA accumulates 16-bit products in float32.

    Returns:
      y: (n, *out, o) or (n, o, *out), out = (n + lo + hi − d·(k−1) − 1) // s + 1, 0 if the window does not fit.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> x, w = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((2, 2, 1, 1))
      >>> jaxconv.conv(x, w, padding="VALID")[0, ..., 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)
      >>> jax.grad(lambda w: jaxconv.conv(x, w, padding="VALID").sum())(w)[..., 0, 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)

    Source: the trilinear form in `jaxconv.rules.textbook` and its derivation in `jaxconv.rules.rotated`.
    """
    function = "conv"
    (x, w), rules, layout, _ = prepare(function, rules, engine, layout, x=x, w=w)
    geometry = conv_geometry(
        function, x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
        groups=groups, layout=layout, flip_kernel=boolean(function, "flip_kernel", flip_kernel),
    )  # fmt: skip
    bias = None if b is None else check_bias(function, b, w.shape[geometry.layout.w[0]], x)
    dtype = check_preferred(function, preferred_element_type, x)
    y = convolve(x, w, geometry, rules, engine, precision, dtype)
    return y if bias is None else add_bias(y, bias, geometry.layout.y[1], rules)


def conv_input_grad(
    g: ArrayLike,
    w: ArrayLike,
    spatial_shape: int | Sequence[int],
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
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv` in its input: full convolution of δ with the rotated kernel.

    dx[n, q, c] = Σ_{p, k, o : s·p + d·k − lo = q} g[n, p, o] · w[k, c, o]

    Args:
      g: δ, the cotangent of y, with y's shape and w's dtype.
      w: the kernel of the forward pass.
      spatial_shape: spatial sizes of x; a stride makes them ambiguous, so they have to be said.

      The other arguments are those of `conv`, with the forward pass's values.

    Returns:
      dx, with the shape of x and the dtype of g.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> g, w = jnp.ones((1, 2, 2, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)
      >>> jaxconv.conv_input_grad(g, w, (3, 3), padding="VALID")[0, ..., 0]
      Array([[0., 1., 1.],
             [2., 6., 4.],
             [2., 5., 3.]], dtype=float32)

    Source: `jaxconv.rules.rotated`.
    """
    function = "conv_input_grad"
    (g, w), rules, layout, rank = prepare(function, rules, engine, layout, g=g, w=w)
    place = Layout.of(layout, rank)
    channels = w.shape[place.w[1]] * integer(function, "groups", groups, 1)
    x_shape = placed(
        place.x, g.shape[place.y[0]], channels, per_axis(function, "spatial_shape", spatial_shape, rank, 0)
    )
    geometry = conv_geometry(
        function, x_shape, w.shape, stride=stride, padding=padding, dilation=dilation,
        input_dilation=input_dilation, groups=groups, layout=layout,
        flip_kernel=boolean(function, "flip_kernel", flip_kernel),
    )  # fmt: skip
    check_cotangent(
        function, g.shape, geometry.y_shape(g.shape[place.y[0]], w.shape[place.w[0]]), geometry.spatial, geometry.out
    )
    return evaluate("input_grad", g, w, geometry, rules, engine, precision)


def conv_kernel_grad(
    x: ArrayLike,
    g: ArrayLike,
    kernel_shape: int | Sequence[int],
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
    precision: Any = None,
) -> jax.Array:
    """The gradient of `conv` in its kernel: convolution of the input with δ.

    dw[k, c, o] = Σ_{n, p} x[n, s·p + d·k − lo, c] · g[n, p, o]

    Args:
      x: the input of the forward pass.
      g: δ, the cotangent of y, with y's shape and x's dtype.
      kernel_shape: the number of taps per spatial axis.

      The other arguments are those of `conv`, with the forward pass's values.

    Returns:
      dw, with the shape of w and the dtype of x.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, g = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((1, 2, 2, 1))
      >>> jaxconv.conv_kernel_grad(x, g, (2, 2), padding="VALID")[..., 0, 0]
      Array([[ 8., 12.],
             [20., 24.]], dtype=float32)

    Source: `jaxconv.rules.rotated`.
    """
    function = "conv_kernel_grad"
    (x, g), rules, layout, rank = prepare(function, rules, engine, layout, x=x, g=g)
    place = Layout.of(layout, rank)
    channels, outputs = x.shape[place.x[1]], g.shape[place.y[1]]
    per_group = check_groups(function, "x", channels, groups)
    w_shape = placed(place.w, outputs, per_group, per_axis(function, "kernel_shape", kernel_shape, rank, 1))
    geometry = conv_geometry(
        function, x.shape, w_shape, stride=stride, padding=padding, dilation=dilation,
        input_dilation=input_dilation, groups=groups, layout=layout,
        flip_kernel=boolean(function, "flip_kernel", flip_kernel),
    )  # fmt: skip
    check_cotangent(function, g.shape, geometry.y_shape(x.shape[place.x[0]], outputs), geometry.spatial, geometry.out)
    return evaluate("kernel_grad", x, g, geometry, rules, engine, precision)


def conv_bias_grad(g: ArrayLike, *, layout: str = "NHWC") -> jax.Array:
    """The gradient of `conv` in its bias: db[o] = Σ_{n, p} g[n, p, o].

    Args:
      g: δ, the cotangent of y; (n, *spatial, o) or (n, o, *spatial) after `layout`.
      layout: "NHWC" or "NCHW".

    Returns:
      db: (o,), in g's dtype; sums are carried in float32 or wider.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> jaxconv.conv_bias_grad(jnp.ones((2, 3, 3, 1)))
      Array([18.], dtype=float32)

    Source: a bias per filter is read once for every example and position.
    """
    function = "conv_bias_grad"
    g = floating(function, "g", g)
    layout = check_layout(function, layout)
    channel = Layout.of(layout, spatial_rank(function, "g", g.shape, layout)).y[1]
    return _bias.transpose(g, static=(g.shape, channel))
