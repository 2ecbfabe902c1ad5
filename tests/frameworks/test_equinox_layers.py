"""Every layer of Equinox that convolves, pools or multiplies, with every option, computes the same under `manual`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.support.frameworks import assert_layer
from tests.support.sampling import sampled

eqx = pytest.importorskip("equinox")
nn = eqx.nn
KEY = jax.random.key(0)
Case = tuple[Any, tuple[int, ...]]
SIZES = (7, 6, 5)


def conv(rank: int, channels: int = 4, taps: int = 3, **options: Any) -> tuple[Any, tuple[int, ...]]:
    return getattr(nn, f"Conv{rank}d")(channels, 4, taps, **options, key=KEY), (channels, *SIZES[:rank])


def transposed(rank: int, taps: int = 3, **options: Any) -> tuple[Any, tuple[int, ...]]:
    return getattr(nn, f"ConvTranspose{rank}d")(4, 6, taps, **options, key=KEY), (4, *SIZES[:rank])


def pool(name: str, *args: Any, **options: Any) -> tuple[Any, tuple[int, ...]]:
    rank = int(name[-2]) if name[-1] == "d" else options["num_spatial_dims"]
    return getattr(nn, name)(*args, **options), (4, *SIZES[:rank])


class Rows(eqx.Module):
    """A linear layer at each position, as Equinox has them: by vmap."""

    linear: Any

    def __call__(self, x: Any) -> Any:
        return jax.vmap(jax.vmap(self.linear))(x)


CASES: dict[str, Case] = {
    "Conv1d": conv(1),
    "Conv1d, SAME_LOWER, even": conv(1, taps=4, padding="SAME_LOWER"),
    "Conv1d, stride": conv(1, stride=2, padding=2),
    "Conv1d, reflect": conv(1, padding=2, padding_mode="REFLECT"),
    "Conv2d": conv(2),
    "Conv2d, pairs": conv(2, padding=((2, 0), (1, 3)), use_bias=False),
    "Conv2d, SAME, stride": conv(2, stride=(2, 3), padding="SAME"),
    "Conv2d, dilation": conv(2, dilation=(2, 1), padding=2),
    "Conv2d, groups": conv(2, groups=2, padding=1, stride=2),
    "Conv2d, depthwise": conv(2, groups=4, padding="SAME"),
    "Conv2d, 1×1": conv(2, taps=1),
    "Conv2d, 1×1, stride": conv(2, taps=1, stride=2),
    "Conv2d, circular": conv(2, padding="SAME", padding_mode="CIRCULAR"),
    "Conv2d, replicate": conv(2, padding=1, padding_mode="REPLICATE", dilation=2),
    "Conv3d": conv(3, padding=1),
    "Conv3d, all": conv(3, stride=(1, 2, 2), padding=(1, 2, 0), dilation=(2, 1, 1), groups=2),
    "ConvTranspose1d": transposed(1),
    "ConvTranspose1d, stride": transposed(1, stride=3, output_padding=2),
    "ConvTranspose2d": transposed(2),
    "ConvTranspose2d, stride": transposed(2, stride=2, padding=1, output_padding=1),
    "ConvTranspose2d, SAME": transposed(2, stride=(2, 1), padding="SAME", use_bias=False),
    "ConvTranspose2d, SAME_LOWER": transposed(2, taps=4, stride=2, padding="SAME_LOWER"),
    "ConvTranspose2d, pairs": transposed(2, padding=((2, 0), (0, 1)), dilation=2),
    "ConvTranspose2d, groups": transposed(2, groups=2, stride=2),
    "ConvTranspose2d, circular": transposed(2, padding="SAME", padding_mode="CIRCULAR"),
    "ConvTranspose3d": transposed(3, stride=2, padding=1, groups=2),
    "MaxPool1d": pool("MaxPool1d", 3),
    "MaxPool1d, stride": pool("MaxPool1d", 2, 2, use_ceil=True),
    "MaxPool2d": pool("MaxPool2d", 2, 2),
    "MaxPool2d, padding": pool("MaxPool2d", 3, 2, padding=((1, 0), (2, 1))),
    "MaxPool2d, ceil": pool("MaxPool2d", (3, 2), (2, 3), padding=1, use_ceil=True),
    "MaxPool3d": pool("MaxPool3d", 2, (1, 2, 2), padding=(1, 0, 1)),
    "AvgPool1d": pool("AvgPool1d", 3, 2, padding=1),
    "AvgPool2d": pool("AvgPool2d", 2),
    "AvgPool2d, ceil": pool("AvgPool2d", (2, 3), 2, padding=((0, 1), (1, 1)), use_ceil=True),
    "AvgPool3d": pool("AvgPool3d", (2, 1, 3), 2),
    "Pool, minimum": pool("Pool", jnp.inf, lax.min, num_spatial_dims=2, kernel_size=3, stride=2, padding=1),
    "Pool, sum": pool("Pool", 0, lax.add, num_spatial_dims=1, kernel_size=3, stride=2),
    "LayerNorm": (nn.LayerNorm((3, 4)), (3, 4)),
    "LayerNorm of the channels": (lambda x: jax.vmap(nn.LayerNorm(4), 1, 1)(x), (4, 7)),
    "LayerNorm, no scale": (nn.LayerNorm(4, use_weight=False, use_bias=False), (4,)),
    "RMSNorm": (nn.RMSNorm(4), (4,)),
    "RMSNorm, no scale": (nn.RMSNorm(4, use_weight=False, use_bias=False), (4,)),
    "GroupNorm": (nn.GroupNorm(2, 4), (4, 7, 6)),
    "GroupNorm, no scale": (nn.GroupNorm(2, channelwise_affine=False), (4, 7, 6)),
}
STAY: dict[str, Case] = {
    "AdaptiveAvgPool1d": pool("AdaptiveAvgPool1d", 3),
    "AdaptiveMaxPool2d": pool("AdaptiveMaxPool2d", (3, 4)),
    "AdaptiveAvgPool3d": pool("AdaptiveAvgPool3d", (2, 3, 2)),
    "LayerNorm of one": (nn.LayerNorm(1), (1,)),
    "Linear": (nn.Linear(7, 3, key=KEY), (7,)),
    "Linear to a scalar": (nn.Linear(7, "scalar", key=KEY), (7,)),
    "MLP": (nn.MLP(7, 3, 8, 2, key=KEY), (7,)),
    "GRUCell": (lambda x: nn.GRUCell(7, 3, key=KEY)(x, jnp.zeros(3)), (7,)),
    "MultiheadAttention": (lambda x: nn.MultiheadAttention(2, 4, key=KEY)(x, x, x), (5, 4)),
}


def batched(layer: Any) -> Any:
    def f(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, layer))(x)

    return f


def arguments(layer: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return eqx.filter(layer, eqx.is_inexact_array), np.random.default_rng(1).standard_normal((2, *shape))


@pytest.mark.parametrize("case", sampled(CASES, 5))
def test_a_layer_with_rules(case: Case) -> None:
    layer, shape = case
    assert_layer(batched(layer), *arguments(layer, shape))


@pytest.mark.parametrize("case", sampled(STAY, 8))
def test_a_layer_that_stays(case: Case) -> None:
    layer, shape = case
    assert_layer(batched(layer), *arguments(layer, shape), rules=False)


def test_all_layers_are_in_the_table() -> None:
    """The convolutions and pools that Equinox has."""
    names = {name for name in dir(nn) if name.startswith(("Conv", "MaxPool", "AvgPool", "Adaptive"))}
    kinds = {name.rstrip("123d") for name in names} - {"Conv", "ConvTranspose", "AdaptivePool"}
    assert kinds == {"AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool"} and "Conv1d" in names
    tested = {name.partition(",")[0] for name in {**CASES, **STAY}}
    assert {name for name in names if name[-1] == "d" and not name.startswith("Adaptive")} <= tested
