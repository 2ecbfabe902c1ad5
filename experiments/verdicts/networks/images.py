"""Convolutional networks in plain `lax`: with and without norms, pools, residuals, groups; a VGG; a U-shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.verdicts.networks.network import DTYPES, Built, Draw, Network, Op, sound
from experiments.verdicts.networks.parts import (
    ACTIVATIONS,
    LOSSES,
    add_bias,
    avg_pool,
    conv,
    cross_entropy,
    dense,
    global_avg_pool,
    group_norm,
    max_pool,
    norm,
)

NORMS: dict[str, Callable[..., jax.Array]] = {
    "batch norm": norm((0, 1, 2)),
    "layer norm": norm((-1,)),
    "instance norm": norm((1, 2)),
    "group norm": group_norm(2),
}
POOLS: dict[str, Callable[..., jax.Array]] = {
    "max pool": max_pool,
    "avg pool": avg_pool,
    "global avg pool": global_avg_pool,
    "flatten": lambda x: x.reshape(x.shape[0], -1),
}

Shape = tuple[int, ...]


class Conv:
    """One convolution of a network: its site, its sizes, and what it adds to the parameters."""

    def __init__(self, features: int, taps: int = 3, *, bias: bool = True, **options: Any) -> None:
        self.features, self.taps, self.bias, self.options = features, taps, bias, options

    def params(self, draw: Draw, channels: int) -> list[jax.Array]:
        channels //= self.options.get("groups", 1)
        w = draw.kernel(self.taps, self.taps, channels, self.features, gain=2)
        return [w, draw.normal(self.features, scale=0.1)] if self.bias else [w]

    def apply(self, op: Op, site: str, params: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        y = op(site, conv(**self.options))(x, params[0])
        return op(f"bias of {site}", add_bias)(y, params[1]) if self.bias else y


# A word is a norm, an activation or a pool, a number the width of a dense layer, a list a residual branch.
Part = Conv | str | int | list


def grow(draw: Draw, parts: Sequence[Part], x: jax.Array) -> list[Any]:
    """The parameters of each part."""
    params: list[Any] = []
    for part in parts:
        channels = x.shape[-1]
        if isinstance(part, Conv):
            new: Any = part.params(draw, channels)
        elif isinstance(part, list):
            new = grow(draw, part, x)
        elif isinstance(part, int):
            new = draw.affine(channels, part)
        else:
            new = draw.scaling(channels) if part in NORMS else []
        params.append(new)
        x = run([part], [new], x, sound)
    return params


def run(parts: Sequence[Part], params: Sequence[Any], x: jax.Array, op: Op, within: str = "") -> jax.Array:
    """Sites: conv 0, bias of conv 0, relu 1, …, each numbered by its place; those of a branch by both places."""
    for i, (part, p) in enumerate(zip(parts, params, strict=True)):
        at = f"{within}{i}"
        if isinstance(part, Conv):
            x = part.apply(op, f"conv {at}", p, x)
        elif isinstance(part, list):
            x = x + run(part, p, x, op, f"{at}.")
        elif isinstance(part, int):
            x = op(f"dense {at}", dense)(x, *p)
        elif part in NORMS:
            x = op(f"{part} {at}", NORMS[part])(x, *p)
        else:
            x = op(f"{part} {at}", ACTIVATIONS[part] if part in ACTIVATIONS else POOLS[part])(x)
    return x


def cnn(
    name: str, shape: Shape, parts: Sequence[Part], *, loss: str = "cross-entropy", dtypes: tuple[str, ...] = DTYPES
) -> Network:
    """f(params) of images that are bound by a closure."""

    def make(draw: Draw, op: Op) -> Built:
        x = draw.normal(*shape)
        params = grow(draw, parts, x)
        y = jax.eval_shape(lambda p: run(parts, p, x, sound), params)
        t = draw.integers(y.shape[-1], *y.shape[:-1]) if loss == "cross-entropy" else draw.normal(*y.shape)
        return lambda params: op("loss", LOSSES[loss])(run(parts, params, x, op), t), (params,)

    return Network(f"cnn {name}", make, dtypes)


def upsampling(draw: Draw, op: Op) -> Built:
    """Down by a stride, up by repetition, with a skip across: a label for every pixel."""
    x, t = draw.normal(2, 8, 8, 2), draw.integers(3, 2, 8, 8)
    params = [draw.kernel(3, 3, i, o, gain=2) for i, o in ((2, 6), (6, 8), (14, 3))]

    def f(params: Any) -> jax.Array:
        a, b, c = params
        high = op("relu 0", jax.nn.relu)(op("conv 0", conv())(x, a))
        low = op("relu 1", jax.nn.relu)(op("conv 1", conv(stride=2))(high, b))
        both = jnp.concatenate([high, low.repeat(2, 1).repeat(2, 2)], -1)
        return op("loss", cross_entropy)(op("conv 2", conv())(both, c), t)

    return f, (params,)


def transposed(draw: Draw, op: Op) -> Built:
    """An autoencoder: a strided convolution and `lax.conv_transpose`."""
    x, w, v = draw.normal(3, 8, 8, 2), draw.kernel(3, 3, 2, 6, gain=2), draw.kernel(3, 3, 6, 2)

    def back(h: jax.Array, v: jax.Array) -> jax.Array:
        return lax.conv_transpose(h, v, (2, 2), "SAME")

    def f(params: Any) -> jax.Array:
        h = op("silu 0", jax.nn.silu)(op("conv 0", conv(stride=2))(x, params[0]))
        return op("loss", LOSSES["mse"])(op("conv_transpose 1", back)(h, params[1]), x)

    return f, ([w, v],)


def signal(draw: Draw, op: Op) -> Built:
    """Two convolutions in one dimension, dilated, channels first."""
    x, t, a, b = draw.normal(4, 3, 24), draw.integers(5, 4), draw.kernel(3, 3, 8), draw.kernel(3, 8, 5)

    def along(dilation: int) -> Callable[..., jax.Array]:
        return lambda x, w: lax.conv_general_dilated(
            x, w, (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=("NCH", "HIO", "NCH")
        )

    def f(params: Any) -> jax.Array:
        h = op("relu 0", jax.nn.relu)(op("conv 0", along(1))(x, params[0]))
        return op("loss", cross_entropy)(op("conv 1", along(2))(h, params[1]).mean(-1), t)

    return f, ([a, b],)


VGG: list[Part] = [
    Conv(8), "relu", Conv(8), "relu", "max pool",
    Conv(16), "relu", Conv(16), "relu", "max pool",
    Conv(24), "relu", Conv(24), "relu", "max pool",
    "flatten", 64, "relu", 64, "relu", 10,
]  # fmt: skip
SEPARABLE: list[Part] = [
    Conv(8, groups=4), "relu", Conv(16, 1), "relu6",
    Conv(16, groups=16, stride=2), "relu6", Conv(8, 1), "global avg pool", 5,
]  # fmt: skip
PATCHES: list[Part] = [
    Conv(24, 4, stride=4, padding="VALID"), "layer norm",
    [Conv(24, 3, groups=24), "layer norm", 48, "gelu", 24], "global avg pool", 10,
]  # fmt: skip
LENET: list[Part] = [Conv(6, 5), "tanh", "avg pool", Conv(16), "tanh", "avg pool", "flatten", 32, "tanh", 10]
STRIDED: list[Part] = [Conv(12), "relu", Conv(12, stride=2), "relu", Conv(12), "relu", "global avg pool", 5]
BLOCK: list[Part] = [Conv(8), "batch norm", "relu", Conv(8), "batch norm"]
BARE: list[Part] = ["relu", Conv(8), "relu", Conv(8)]
POOLED: list[Part] = [Conv(8), "relu", "max pool"]
OUT: list[Part] = ["global avg pool", 10]
FLAT: list[Part] = ["flatten", 10]


def normed(norm: str, activation: str, bias: bool = True) -> list[Part]:
    return [Conv(8, bias=bias), norm, activation]


SMALL = (4, 8, 8, 3)
IMAGES: list[Network] = [
    cnn("conv-dense", (4, 8, 8, 1), [Conv(8), "relu", *FLAT]),
    cnn("conv-pool-dense", (4, 14, 14, 1), [*POOLED, *FLAT]),
    cnn("two convs, max pools", (8, 12, 12, 1), [*POOLED, Conv(16), "relu", "max pool", *FLAT]),
    cnn("two convs, avg pools, tanh", (4, 12, 12, 1), LENET),
    cnn("all convolutional", (3, 10, 10, 3), STRIDED),
    cnn("with batch norm", (6, 8, 8, 3), [*normed("batch norm", "relu", False) * 2, *OUT]),
    cnn("with layer norm", SMALL, [*normed("layer norm", "gelu") * 2, *OUT]),
    cnn("with instance norm", SMALL, [*normed("instance norm", "relu"), Conv(8), "relu", *OUT]),
    cnn("with group norm", SMALL, [*normed("group norm", "silu"), "max pool", *normed("group norm", "silu"), *FLAT]),
    cnn("with a bias before batch norm", (6, 8, 8, 3), [*normed("batch norm", "relu"), *FLAT]),
    cnn("residual", SMALL, [Conv(8), "relu", BLOCK, "relu", BLOCK, "relu", *OUT]),
    cnn("residual without norms", SMALL, [Conv(8), BARE, BARE, "relu", *FLAT]),
    cnn("VGG-like", (2, 16, 16, 3), VGG),
    cnn("VGG-like, batch 1", (1, 8, 8, 3), VGG),
    cnn("depthwise separable", (4, 8, 8, 4), SEPARABLE),
    cnn("grouped and dilated", (3, 9, 9, 4), [Conv(8, groups=2), "elu", Conv(8, dilation=2), "elu", "flatten", 6]),
    cnn("patches", (4, 12, 12, 3), PATCHES),
    cnn("wide dense after a small conv", (3, 8, 8, 1), [Conv(16), "relu", "flatten", 512, "relu", 10]),
    cnn("batch 64", (64, 8, 8, 1), [Conv(4), "relu", "max pool", *FLAT]),
    cnn("regression", (4, 7, 9, 2), [Conv(6, stride=2), "softplus", Conv(6), "sigmoid", "flatten", 3], loss="mse"),
    cnn("sum of all pixels", (3, 7, 7, 2), [Conv(6), "silu", Conv(4)], loss="sum"),
    Network("cnn U-shaped", upsampling),
    Network("cnn autoencoder", transposed),
    Network("cnn of signals", signal),
]
