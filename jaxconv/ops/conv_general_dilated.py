"""The drop-in: `lax.conv_general_dilated`'s signature and semantics with this library's gradients.

The one place that says `lhs` and `rhs`, because `lax` does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv import forward
from jaxconv.geometry import Geometry, Layout
from jaxconv.ops.arguments import Rules, frozen
from jaxconv.ops.binding import bilinear, gradients_of
from jaxconv.ops.plan import Plan, planned
from jaxconv.rules import CONV, FAST


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
    `nn.Conv(..., conv_general_dilated=jaxconv.conv_general_dilated)` in Flax Linen. Where one does not, it may be put
    in `lax`'s own place: `jax.lax.conv_general_dilated = jaxconv.conv_general_dilated`, before anything is traced.

    Args:
      lhs, rhs: input and kernel, of equal dtype: any that `lax` takes, integers, complex numbers and floats of 8 bits
        (with `preferred_element_type=jnp.float32`, say) included. Integers have no gradient, here as there.
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
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    try:
        key = (
            _ints(window_strides), _pairs(padding), _ints(lhs_dilation), _ints(rhs_dilation),
            _frozen(dimension_numbers), feature_group_count, batch_group_count, frozen(precision),
            None if preferred_element_type is None else jax.dtypes.canonicalize_dtype(preferred_element_type),
        )  # fmt: skip
    except (TypeError, ValueError):
        forward.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count, precision, preferred_element_type,
        )  # fmt: skip
        raise
    resolved = _resolve(lhs.shape, lhs.dtype, rhs.shape, rhs.dtype, *key)
    y = _bound(lhs, rhs, *resolved, batch_group_count, frozen(precision), FAST, "auto")
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def rebound(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], rules: Rules, engine: str) -> jax.Array:
    """`lax`'s primitive with the given parameters, its gradients those of `rules`; "autodiff" is no rule."""
    dtype, groups = params["preferred_element_type"], params["batch_group_count"]
    precision = frozen(params["precision"])
    geometry, dtype = described(lhs, rhs, params)
    y = _bound(lhs, rhs, geometry, dtype, groups, precision, gradients_of(rules), engine)
    sharding = params.get("out_sharding")
    return y if sharding is None else jax.sharding.reshard(y, sharding)


def described(lhs: Any, rhs: Any, params: dict[str, Any]) -> tuple[Geometry, Any]:
    """The geometry of `lax`'s primitive, its batch groups left out, and the dtype of its result."""
    return _resolve(
        lhs.shape, lhs.dtype, rhs.shape, rhs.dtype, params["window_strides"], params["padding"],
        params["lhs_dilation"], params["rhs_dilation"], params["dimension_numbers"], params["feature_group_count"],
        params["batch_group_count"], frozen(params["precision"]), params["preferred_element_type"],
    )  # fmt: skip


def chosen(lhs: Any, rhs: Any, params: dict[str, Any], rules: Rules, engine: str, platform: str) -> Plan:
    """What computes the maps of `lax`'s primitive with the given parameters, as `rebound` binds it."""
    geometry, result = described(lhs, rhs, params)
    layout, groups = geometry.layout, params["batch_group_count"]
    batch, inputs, outputs = lhs.shape[layout.x[0]], lhs.shape[layout.x[1]], rhs.shape[layout.w[0]]
    if groups > 1:
        batch, inputs, geometry = batch // groups, inputs * groups, geometry.with_groups(groups)
    return planned(geometry, (batch, inputs, outputs), rules, engine, platform, lhs.dtype, result)


def _bound(
    lhs: jax.Array, rhs: jax.Array, geometry: Geometry, dtype: Any, batch_groups: int, precision: Any, rules: Rules,
    engine: str,
) -> jax.Array:  # fmt: skip
    if batch_groups > 1:
        lhs, geometry = _batch_groups_as_feature_groups(lhs, geometry, batch_groups)
    return bilinear(rules, CONV, geometry, lhs, rhs, engine=engine, precision=precision, dtype=dtype)


def _ints(values: Any) -> Any:
    """A sequence of ints as a tuple of ints, so that a call can be looked up; None as it is."""
    return None if values is None else tuple(operator.index(v) for v in values)


def _pairs(padding: Any) -> Any:
    """A word as it is, or (lo, hi) pairs as tuples of ints."""
    return (
        padding if isinstance(padding, str) else tuple((operator.index(lo), operator.index(hi)) for lo, hi in padding)
    )


def _frozen(numbers: Any) -> Any:
    """Dimension numbers with tuples for lists."""
    if isinstance(numbers, lax.ConvDimensionNumbers):
        return lax.ConvDimensionNumbers(*(tuple(spec) for spec in numbers))
    return tuple(numbers) if isinstance(numbers, list) else numbers


@functools.lru_cache(maxsize=4096)
def _resolve(
    lhs: tuple[int, ...], lhs_dtype: Any, rhs: tuple[int, ...], rhs_dtype: Any, window_strides: Any, padding: Any,
    lhs_dilation: Any, rhs_dilation: Any, dimension_numbers: Any, feature_group_count: int, batch_group_count: int,
    precision: Any, preferred_element_type: Any,
) -> tuple[Geometry, Any]:  # fmt: skip
    """The geometry of a call and the dtype of its result. `lax` judges the call: its messages are the messages."""
    rank = len(lhs) - 2
    for name, dilation in (("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
        if dilation is not None and len(dilation) != rank:
            raise ValueError(
                f"conv_general_dilated: {name} must have one entry per spatial axis, but {len(dilation)} != {rank}."
            )
    out = jax.eval_shape(
        lambda a, b: forward.conv_general_dilated(
            a, b, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count, precision, preferred_element_type,
        ),
        jax.ShapeDtypeStruct(lhs, lhs_dtype),
        jax.ShapeDtypeStruct(rhs, rhs_dtype),
    )  # fmt: skip
    numbers = lax.conv_dimension_numbers(lhs, rhs, dimension_numbers)
    layout = Layout(tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec))
    ones = (1,) * rank
    spatial, taps = (tuple(a[axis] for axis in spec[2:]) for a, spec in ((lhs, layout.x), (rhs, layout.w)))
    dilation = rhs_dilation or ones
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
        padding = lax.padtype_to_pads(spatial, spans, window_strides, padding)
    pads = tuple((int(lo), int(hi)) for lo, hi in padding)
    geometry = Geometry(
        spatial, taps, window_strides, pads, dilation, lhs_dilation or ones, feature_group_count, layout
    )
    return geometry, out.dtype


def _batch_groups_as_feature_groups(x: jax.Array, geometry: Geometry, groups: int) -> tuple[jax.Array, Geometry]:
    """(g·n, ..., c) becomes (n, ..., g·c): each part of the batch is a group of channels."""
    batch, channel = geometry.layout.x[:2]
    shape = x.shape
    x = x.reshape(*shape[:batch], groups, shape[batch] // groups, *shape[batch + 1 :])
    x = jnp.moveaxis(x, batch, channel)
    merged = list(shape)
    merged[batch], merged[channel] = shape[batch] // groups, groups * shape[channel]
    return x.reshape(merged), geometry.with_groups(groups)
