"""Every layer of Keras that convolves, pools or multiplies, with every option, through `manual`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.frameworks import assert_layer, assert_near
from tests.support.sampling import sampled

keras = pytest.importorskip("keras")
layers = keras.layers
pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras was imported for another backend")

FIRST = {"data_format": "channels_first"}
# Shapes of x, channels last, by rank.
SHAPES = {1: (2, 8, 4), 2: (2, 7, 6, 4), 3: (2, 5, 4, 6, 4)}
BY_NAME = {
    name: layer for name, layer in vars(layers).items() if isinstance(layer, type) and issubclass(layer, layers.Layer)
}


def variants(rank: int, name: str, taps: Any, **more: Any) -> dict[str, Any]:
    """A convolution's options, as (name, arguments, options): one after the other, in both formats."""
    filters = () if name.startswith("Depthwise") else (4,)
    options = {
        "plain": {},
        "strided": {"strides": 2},
        "same": {"padding": "same"},
        "same, strided": {"padding": "same", "strides": 2},
        "dilated": {"dilation_rate": 2},
        "dilated, same": {"dilation_rate": (2, *(1,) * (rank - 1)), "padding": "same"},
        "no bias": {"use_bias": False},
        "activation": {"activation": "tanh"},
        "constraint and regularizers": {"bias_constraint": "non_neg", "bias_regularizer": "l2"},
        **more,
    }
    cases = {f"{name}: {option}": (name, (*filters, taps), given) for option, given in options.items()}
    first = {f"{key}, channels first": (n, a, k | FIRST) for key, (n, a, k) in cases.items()}
    first.pop(f"{name}: causal, channels first", None)
    return cases | first


CONVOLUTIONS = {}
for rank, taps in ((1, 3), (2, (3, 2)), (3, (2, 1, 3))):
    more = {"groups": {"groups": 2}, "groups, strided": {"groups": 2, "strides": 2}, "as deep": {"groups": 4}}
    causal = {"causal": {"padding": "causal", "dilation_rate": 2}} if rank == 1 else {}
    CONVOLUTIONS |= variants(rank, f"Conv{rank}D", taps, **more, **causal)
    up = {
        "output padding": {"strides": 2, "output_padding": 1},
        "SAME, output padding": {"strides": 2, "output_padding": 1, "padding": "same"},
    }
    CONVOLUTIONS |= variants(rank, f"Conv{rank}DTranspose", taps, **up)
for rank, taps in ((1, 3), (2, 3)):
    deep = {"two each": {"depth_multiplier": 2}}
    CONVOLUTIONS |= variants(rank, f"DepthwiseConv{rank}D", taps, **deep)
    CONVOLUTIONS |= variants(rank, f"SeparableConv{rank}D", taps, **deep)


POOLS = {}
for rank in SHAPES:
    for kind in ("Max", "Average"):
        for option, given in {
            "plain": {}, "same": {"padding": "same"}, "overlapping": {"strides": 1},
            "overlapping, same": {"strides": 1, "padding": "same"}, "apart": {"strides": 3},
            "a window each": {"pool_size": (3, 2, 1)[:rank], "strides": 2},
        }.items():  # fmt: skip
            for place in ({}, FIRST):
                key = f"{kind}Pooling{rank}D: {option}{', channels first' * bool(place)}"
                POOLS[key] = (f"{kind}Pooling{rank}D", (), {"pool_size": 2} | given | place)
        adaptive = f"Adaptive{kind}Pooling{rank}D"
        POOLS |= {
            f"{adaptive}: {size}{', channels first' * bool(place)}": (adaptive, (size,), place)
            for size in (2, 3) for place in ({}, FIRST) if adaptive in BY_NAME
        }  # fmt: skip


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


def assert_keras(layer: Any, x: Any, *more: Any, **expected: Any) -> None:
    layer.build(*(a.shape for a in (x, *more)))
    trained = [normal(*v.shape) for v in layer.trainable_variables]
    kept = [v.value for v in layer.non_trainable_variables]

    def apply(trained: Any, x: Any) -> Any:
        y, _ = layer.stateless_call(trained, kept, x, *more)
        return y

    assert_layer(apply, trained, x, **expected)


def in_format(shape: tuple[int, ...], options: dict[str, Any]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1]) if options.get("data_format") == "channels_first" else shape


@pytest.mark.parametrize("case", sampled(CONVOLUTIONS, every=17))
def test_convolutions(case: Any) -> None:
    name, given, options = case
    layer = BY_NAME[name](*given, **options, dtype="float64")
    rank = next(rank for rank in SHAPES if f"{rank}D" in name)
    assert_keras(layer, normal(*in_format(SHAPES[rank], options)))


@pytest.mark.parametrize("case", sampled(POOLS, every=13))
def test_pools(case: Any) -> None:
    name, given, options = case
    layer = BY_NAME[name](*given, **options, dtype="float64")
    rank = next(rank for rank in SHAPES if f"{rank}D" in name)
    assert_keras(layer, normal(*in_format(SHAPES[rank], options)))


class Training(layers.Wrapper):
    """A layer as it is in training."""

    def call(self, x: Any) -> Any:
        return self.layer(x, training=True)


# name -> (the layer, the shapes of what it is given, whether a rule of ours stands for it)
WIDE = {"dtype": "float64"}
OTHERS: dict[str, Any] = {
    "Dense on images": (lambda: layers.Dense(3, **WIDE), [(2, 4, 5, 6)], True),
    "Dense on rows": (lambda: layers.Dense(3, **WIDE), [(4, 6)], False),
    "EinsumDense": (lambda: layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d", **WIDE), [(2, 5, 6)], True),
    "BatchNormalization, no training": (lambda: layers.BatchNormalization(**WIDE), [(3, 4, 5, 6)], False),
    "UnitNormalization": (lambda: layers.UnitNormalization(**WIDE), [(3, 4, 6)], False),
    "LSTM": (lambda: layers.LSTM(3, **WIDE), [(2, 4, 5)], False),
    "GlobalMaxPooling2D": (lambda: layers.GlobalMaxPooling2D(keepdims=True, **WIDE), [(2, 5, 6, 4)], False),
    "GlobalAveragePooling1D": (lambda: layers.GlobalAveragePooling1D(**WIDE), [(2, 5, 4)], False),
    "UpSampling2D": (lambda: layers.UpSampling2D(2, interpolation="bilinear", **WIDE), [(2, 5, 6, 4)], False),
    "TimeDistributed": (lambda: layers.TimeDistributed(layers.Conv1D(3, 2, **WIDE), **WIDE), [(2, 3, 6, 4)], True),
    "Sequential": (
        lambda: keras.Sequential([layers.Conv2D(3, 3, **WIDE), layers.MaxPooling2D(**WIDE)]),
        [(2, 7, 6, 4)],
        True,
    ),
}


@pytest.mark.parametrize("case", sampled(OTHERS, every=5))
def test_others(case: Any) -> None:
    made, shapes, rules = case
    assert_keras(made(), *(normal(*shape) for shape in shapes), rules=rules)


RECURRENT: dict[str, Any] = {
    "ConvLSTM1D": (lambda: layers.ConvLSTM1D(3, 3, padding="same", **WIDE), (2, 3, 6, 4)),
    "ConvLSTM2D": (lambda: layers.ConvLSTM2D(3, (3, 2), strides=2, **WIDE), (2, 3, 6, 5, 4)),
    "ConvLSTM3D": (lambda: layers.ConvLSTM3D(2, 2, dilation_rate=2, **WIDE), (2, 2, 4, 4, 5, 3)),
}


@pytest.mark.parametrize("case", sampled(RECURRENT))
def test_recurrent_convolutions_whose_tanh_keras_takes_in_float32(case: Any) -> None:
    made, shape = case
    assert_keras(made(), normal(*shape), close=assert_near)


NORMS: dict[str, Any] = {
    "BatchNormalization": (lambda: Training(layers.BatchNormalization(**WIDE), **WIDE), (3, 4, 5, 6)),
    "BatchNormalization, first": (
        lambda: Training(layers.BatchNormalization(1, scale=False, epsilon=1e-2, **WIDE), **WIDE),
        (3, 6, 4, 5),
    ),
    "LayerNormalization": (lambda: layers.LayerNormalization(**WIDE), (3, 4, 6)),
    "LayerNormalization, axes": (lambda: layers.LayerNormalization((1, 2), center=False, **WIDE), (3, 4, 6)),
    "GroupNormalization": (lambda: layers.GroupNormalization(3, **WIDE), (3, 4, 5, 6)),
    "GroupNormalization, each": (lambda: layers.GroupNormalization(-1, **WIDE), (3, 4, 5, 6)),
    "RMSNormalization": (lambda: layers.RMSNormalization(**WIDE), (3, 4, 6)),
}


@pytest.mark.parametrize("case", sampled(NORMS, every=4))
def test_norms_which_keras_computes_in_float32(case: Any) -> None:
    made, shape = case
    assert_keras(made(), normal(*shape), close=assert_near)


def test_the_table_has_every_layer_of_theirs() -> None:
    """Found by their names: a new one is missed here."""
    words = ("Conv", "MaxPooling", "AveragePooling", "MaxPool", "AvgPool")
    theirs = {id(layer): name for name, layer in BY_NAME.items() if any(word in name for word in words)}
    tested = {name for name, *_ in (CONVOLUTIONS | POOLS).values()} | OTHERS.keys() | RECURRENT.keys()
    left = {layer.__name__ for layer in BY_NAME.values() if id(layer) in theirs} - tested
    assert left == {f"Global{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in SHAPES} - tested
