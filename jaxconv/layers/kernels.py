"""Layers with a kernel.

`kernel_init` and `bias_init` are initialisers, such as those of `jax.nn.initializers`, or numbers. By default a kernel
is He's and a bias 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import conv_geometry, conv_transpose_geometry, per_axis, spatial_rank
from jaxconv.layers.base import (
    Layer,
    Params,
    Shape,
    State,
    built,
    check_features,
    check_large_enough,
    check_windows,
    layer,
    on_host,
)
from jaxconv.layers.initial import Initializer, check_initial, start
from jaxconv.ops.arguments import boolean, check_groups
from jaxconv.ops.conv import conv
from jaxconv.ops.conv_transpose import conv_transpose
from jaxconv.ops.dense import dense

_DRAWN = (9 << 14, 9 << 18)  # numbers in a 3×3 kernel of 128 channels, and of 512


def normal(key: jax.Array, shape: Shape, scale: float) -> jax.Array:
    """`jax.random.normal(key, shape) * scale`, to the last bit, without compiling a program for every shape.

    Each number of a partitionable threefry stream depends on its position alone, so a kernel is the start of a longer
    draw; and there are few lengths. Cut, scaled and shaped on the host, where nothing is compiled; while a program is
    traced, or where a mesh says how arrays are split, it is drawn as it is written.
    """
    n = math.prod(shape)
    length = next((length for length in _DRAWN if n <= length), n)
    if isinstance(key, jax.core.Tracer) or not on_host() or not _partitionable(key):
        return jax.random.normal(key, shape, jnp.float32) * scale
    stream = jax.random.normal(key, (length,), jnp.float32)
    if isinstance(stream, jax.core.Tracer):  # of a key that the program has closed over
        return stream[:n].reshape(shape) * scale
    kernel = (np.asarray(stream)[:n] * np.float32(scale)).reshape(shape)
    return jax.device_put(kernel, stream.sharding if stream.committed else None)


def _partitionable(key: jax.Array) -> bool:
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return partitionable and str(jax.random.key_impl(key)) == "threefry2x32"


def _initial(function: str, kernel_init: Any, bias: Any, bias_init: Any) -> tuple[Initializer | None, ...]:
    """What kernel and bias start at. None is He's kernel, and no bias."""
    kernel_init = None if kernel_init is None else check_initial(function, "kernel_init", kernel_init)
    bias_init = check_initial(function, "bias_init", bias_init)
    if boolean(function, "bias", bias):
        return kernel_init, bias_init
    if bias_init != 0.0:
        raise ValueError(f"{function}: bias_init says what a bias starts at, but bias=False: there is none.")
    return kernel_init, None


def _parameters(
    function: str, key: jax.Array, kernel: Shape, fan_in: int, features: int, initial: Sequence[Initializer | None]
) -> Params:
    """He et al. (2015): variance 2 / fan_in keeps the scale of activations through a ReLU."""
    if fan_in == 0:
        raise ValueError(f"init: a layer needs at least one input to each output, but its kernel has shape {kernel}.")

    def he(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
        return normal(key, shape, math.sqrt(2 / fan_in))

    kernel_init, bias_init = initial
    asked = {"kernel_init": (he if kernel_init is None else kernel_init, kernel)}
    if bias_init is not None:
        asked["bias_init"] = (bias_init, (features,))
    return dict(zip("wb", start(function, key, **asked).values(), strict=False))


@built
def Conv(
    features: int,
    taps: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int | None = 1,
    bias: bool = True,
    kernel_init: Initializer | None = None,
    bias_init: Initializer = 0.0,
) -> Layer:
    """`jaxconv.conv` in NHWC. `groups=None` is depthwise: a group per channel."""
    check_features("Conv", features, 1 if groups is None else groups)
    check_windows("Conv", padding, taps=(taps, 1), stride=(stride, 1), dilation=(dilation, 1))
    initial = _initial("Conv", kernel_init, bias, bias_init)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        *_, channels = shape
        size = per_axis("Conv", "taps", taps, spatial_rank("Conv", "x", shape, "NHWC"), 1)
        split = groups or channels
        kernel = (*size, check_groups("Conv", "x", channels, split), features)
        geometry = conv_geometry("Conv", shape, kernel, stride=stride, padding=padding, dilation=dilation, groups=split)
        check_large_enough("Conv", geometry.spatial, geometry.out)
        params = _parameters("Conv", key, kernel, math.prod(kernel[:-1]), features, initial)
        return params, {}, (shape[0], *geometry.out, features)

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        y = conv(
            x, params["w"], params.get("b"), stride=stride, padding=padding, dilation=dilation,
            groups=groups or x.shape[-1], rules=rules,
        )  # fmt: skip
        return y, state

    return layer(init, compute)


@built
def ConvTranspose(
    features: int,
    taps: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = "SAME",
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer | None = None,
    bias_init: Initializer = 0.0,
) -> Layer:
    """`jaxconv.conv_transpose` in NHWC: a stride makes the image that much larger.

    The kernel, (*taps, features // groups, channels), is that of the convolution which this layer transposes. An output
    is read by one in `stride` of the taps along each axis; that many inputs are its fan-in. An initialiser that counts
    them needs to know where they are: `he_normal(in_axis=-1, out_axis=-2)`.
    """
    check_features("ConvTranspose", features, groups)
    check_windows(
        "ConvTranspose", padding, taps=(taps, 1), stride=(stride, 1), output_padding=(output_padding, 0),
        dilation=(dilation, 1),
    )  # fmt: skip
    initial = _initial("ConvTranspose", kernel_init, bias, bias_init)
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        *_, channels = shape
        size = per_axis("ConvTranspose", "taps", taps, spatial_rank("ConvTranspose", "x", shape, "NHWC"), 1)
        per_group = check_groups("ConvTranspose", "x", channels, groups)
        kernel = (*size, features // groups, channels)
        geometry = conv_transpose_geometry("ConvTranspose", shape, kernel, **options)
        check_large_enough("ConvTranspose", geometry.out, geometry.spatial)
        met = math.prod(-(-k // s) for k, s in zip(size, geometry.stride, strict=True))
        params = _parameters("ConvTranspose", key, kernel, met * per_group, features, initial)
        return params, {}, (shape[0], *geometry.spatial, features)

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        return conv_transpose(x, params["w"], params.get("b"), **options, rules=rules), state

    return layer(init, compute)


@built
def Dense(
    features: int, *, bias: bool = True, kernel_init: Initializer | None = None, bias_init: Initializer = 0.0
) -> Layer:
    """`jaxconv.dense`."""
    check_features("Dense", features)
    initial = _initial("Dense", kernel_init, bias, bias_init)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        params = _parameters("Dense", key, (shape[-1], features), shape[-1], features, initial)
        return params, {}, (*shape[:-1], features)

    def compute(params: Params, state: State, x: jax.Array, *, rules: Any, **_: Any) -> tuple[jax.Array, State]:
        return dense(x, params["w"], params.get("b"), rules=rules), state

    return layer(init, compute)
