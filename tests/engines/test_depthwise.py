"""The engine's own kernel gradient of depthwise layers: what the NumPy loops compute, for any geometry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.engines.onednn import depthwise, loading
from jaxconv.geometry import conv_geometry
from tests.support import oracle
from tests.support.tolerance import assert_within_bound

pytestmark = pytest.mark.skipif(loading.why_off() is not None, reason=f"no native engine: {loading.why_off()}")


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any], tuple[int, ...]]:
    """x, δ, the options and the taps: rank 1 to 3, windows that crop, overlap, leave gaps or read padding only."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    taps, stride, dilation = (tuple(map(int, rng.integers(1, high, rank))) for high in ((7, 5, 4)[rank - 1], 4, 3))
    padding = [(int(lo), int(hi)) for lo, hi in rng.integers(-2, 5, (rank, 2))]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    spatial = [
        max(1, span - lo - hi, 1 - min(lo, 0) - min(hi, 0)) for span, (lo, hi) in zip(spans, padding, strict=True)
    ]
    spatial = [n + int(more) for n, more in zip(spatial, rng.integers(0, 6, rank), strict=True)]
    channels = int(rng.choice([16, 17, 31, 32, 96, 97, 130]))
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": channels}
    shape = int(rng.integers(1, 4)), *spatial, channels
    geometry = conv_geometry("conv", shape, (*taps, 1, channels), **options)
    g = rng.standard_normal(geometry.y_shape(shape[0], channels))
    return rng.standard_normal(shape), g, options, taps


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_any_geometry_is_the_loops(seed: int) -> None:
    for one in range(seed, seed + 10):
        x, g, options, taps = drawn(one)
        dtype = jnp.dtype(["float32", "float32", "bfloat16", "float16"][one % 4])
        x, g = x.astype(dtype), g.astype(dtype)
        geometry = conv_geometry("conv", x.shape, (*taps, 1, x.shape[-1]), **options)
        assert depthwise.refusal(dtype, None, geometry, x.shape[-1], x.shape[-1]) is None
        dw = depthwise.kernel_grad(jnp.asarray(x), jnp.asarray(g), geometry)
        assert_within_bound(dw, *oracle.exact(oracle.conv_kernel_grad, x, g, taps, **options), what=f"dw of {geometry}")


@pytest.mark.parametrize(
    ("dtype", "groups", "options", "why"),
    [
        ("float64", 16, {}, "sums in float32"),
        ("float32", 8, {}, "16 channels or more"),
        ("float32", 16, {"input_dilation": 2}, "has no input dilation"),
    ],
)
def test_what_it_does_not_take_is_said(dtype: str, groups: int, options: dict[str, Any], why: str) -> None:
    geometry = conv_geometry("conv", (1, 9, groups), (5, 1, groups), groups=groups, **options)
    assert why in str(depthwise.refusal(jnp.dtype(dtype), None, geometry, groups, groups))


def test_one_channel_per_group() -> None:
    geometry = conv_geometry("conv", (1, 9, 32), (5, 2, 32), groups=16)
    assert "one channel per group" in str(depthwise.refusal(jnp.dtype("float32"), None, geometry, 32, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "a description of another length"),
        (lambda d: [0, *d[1:]], "sizes must be at least 1"),
        (lambda d: [*d[:2], d[2] + 1, *d[3:]], "arrays of other sizes"),
        (lambda d: [*d[:2], 0, *d[3:]], "sizes along an axis must be at least 1"),
        (lambda d: [2**40, *d[1:]], "sizes must fit 31 bits"),
        (lambda d: [2**30, 2**30, *d[2:]], "the bytes of an array must fit 63 bits"),
    ],
)
def test_the_handler_refuses_what_does_not_fit(change: Any, message: str) -> None:
    loading.library()
    x, g, shape = jnp.ones((1, 9, 16)), jnp.ones((1, 5, 16)), jax.ShapeDtypeStruct((5, 1, 16), jnp.float32)
    numbers = np.array(change([1, 16, 9, 5, 5, 1, 1, 0]), np.int64)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.ffi.ffi_call(depthwise.TARGET, shape)(x.astype("float32"), g.astype("float32"), depthwise=numbers)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_layer_takes_it_in_every_layout_and_flipped(layout: str) -> None:
    rng = np.random.default_rng(0)
    shapes = ((2, 9, 8, 20), (5, 4, 1, 20)) if layout == "NHWC" else ((2, 20, 9, 8), (20, 1, 5, 4))
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    options: dict[str, Any] = {"groups": 20, "flip_kernel": True, "layout": layout, "stride": 2}
    assert jaxconv.plan(*shapes, platform="cpu", **options).kernel_grad.formulation == "depthwise"
    y = jaxconv.conv(x, w, **options)
    g = rng.standard_normal(y.shape).astype(np.float32)
    dw = jaxconv.conv_kernel_grad(x, g, (5, 4), **options)
    assert_within_bound(dw, *oracle.exact(oracle.conv_kernel_grad, x, g, (5, 4), **options), what="dw")
