"""The drop-in: `lax.conv_general_dilated`'s signature and semantics with this library's gradients.

The one place that says `lhs` and `rhs`, because `lax` does.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv import primitives
from jaxconv.geometry import Geometry, Layout


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with hand-written gradients; the arguments are exactly `lax`'s.

    Any dimension numbers, dilations of both operands, feature and batch groups. Pass it wherever a library
    lets you choose the convolution: `nnx.Conv(..., conv_general_dilated=jaxconv.conv_general_dilated)`, or
    `nn.Conv(..., conv_general_dilated=jaxconv.conv_general_dilated)` in Flax Linen.

    Args:
      lhs, rhs: input and kernel, of equal dtype.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type, out_sharding: see `jax.lax.conv_general_dilated`.

    Returns:
      The convolution, in `preferred_element_type` or the operands' dtype.

    Raises:
      ValueError, TypeError: `lax`'s own, since `lax` validates the call before anything else happens.

    Example:
      >>> import jax.numpy as jnp, jaxconv
      >>> x, w = jnp.arange(4.0).reshape(1, 1, 4), jnp.ones((1, 1, 2))
      >>> jaxconv.conv_general_dilated(x, w, (1,), "VALID")
      Array([[[1., 3., 5.]]], dtype=float32)

    Source: `jaxconv.conv`; a batch group is a feature group once its part of the batch stands in the channels.
    """
    given = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
             batch_group_count, precision, preferred_element_type, out_sharding)  # fmt: skip
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    # Shapes and messages are lax's, literally: ask it.
    out = jax.eval_shape(lambda a, b: lax.conv_general_dilated(a, b, *given[:-1]),
                         *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (lhs, rhs)))  # fmt: skip
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    layout = Layout(tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec))
    rank = lhs.ndim - 2
    spatial = tuple(lhs.shape[axis] for axis in layout.x[2:])
    taps = tuple(rhs.shape[axis] for axis in layout.w[2:])
    strides = tuple(map(operator.index, window_strides))
    rhs_dilation = tuple(rhs_dilation) if rhs_dilation is not None else (1,) * rank
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(taps, rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(spatial, spans, strides, padding)
    geometry = Geometry(
        spatial,
        taps,
        strides,
        tuple((operator.index(lo), operator.index(hi)) for lo, hi in padding),
        rhs_dilation,
        tuple(lhs_dilation) if lhs_dilation is not None else (1,) * rank,
        feature_group_count,
        layout,
    )
    if batch_group_count > 1:
        lhs, geometry = _batch_groups_as_feature_groups(lhs, geometry, batch_group_count)
    precision = tuple(precision) if isinstance(precision, list) else precision
    y = primitives.conv(lhs, rhs, geometry, precision=precision, dtype=out.dtype, engine="auto")
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _batch_groups_as_feature_groups(x: jax.Array, geometry: Geometry, groups: int) -> tuple[jax.Array, Geometry]:
    """(g·n, ..., c) becomes (n, ..., g·c): each part of the batch is a group of channels."""
    batch, channel = geometry.layout.x[:2]
    shape = x.shape
    x = x.reshape(*shape[:batch], groups, shape[batch] // groups, *shape[batch + 1 :])
    x = jnp.moveaxis(x, batch, channel)
    merged = list(shape)
    merged[batch], merged[channel] = shape[batch] // groups, groups * shape[channel]
    return x.reshape(merged), geometry.with_groups(groups)
