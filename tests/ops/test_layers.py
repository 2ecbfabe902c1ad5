"""Layers: the op behind each, shapes known before data, and options refused when built."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv import layers
from jaxconv.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    InstanceNorm,
    Layer,
    LayerNorm,
    LayerScale,
    LpPool,
    MaxPool,
    Pad,
    RMSNorm,
    residual,
    serial,
)
from tests.support.refusal import refusal

KEY = jax.random.key(0)
IMAGE = (2, 6, 5, 4)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


# The op behind each layer

# (layer, the same op on its parameters)
EVERY: dict[str, tuple[Layer, Callable[[Any, jax.Array], jax.Array]]] = {
    "Conv": (
        Conv(6, (3, 2), stride=(2, 1), dilation=2, groups=2, padding=2),
        lambda p, x: jaxconv.conv(x, p["w"], p["b"], stride=(2, 1), dilation=2, groups=2, padding=2),
    ),
    "Conv-depthwise": (
        Conv(8, 3, groups=None, bias=False),
        lambda p, x: jaxconv.conv(x, p["w"], groups=4),
    ),
    "ConvTranspose": (
        ConvTranspose(6, (3, 2), stride=(2, 3), padding=((1, 0), (0, 1)), output_padding=(1, 0), groups=2),
        lambda p, x: jaxconv.conv_transpose(
            x, p["w"], p["b"], stride=(2, 3), padding=((1, 0), (0, 1)), output_padding=(1, 0), groups=2
        ),
    ),
    "ConvTranspose-same": (
        ConvTranspose(3, 4, stride=2, dilation=2, bias=False),
        lambda p, x: jaxconv.conv_transpose(x, p["w"], stride=2, dilation=2),
    ),
    "Dense": (Dense(3), lambda p, x: jaxconv.dense(x, p["w"], p["b"])),
    "LayerNorm": (LayerNorm(eps=0.1), lambda p, x: jaxconv.layer_norm(x, p["scale"], p["bias"], eps=0.1)),
    "RMSNorm": (RMSNorm(eps=0.1), lambda p, x: jaxconv.rms_norm(x, p["scale"], eps=0.1)),
    "GroupNorm": (GroupNorm(2, eps=0.1), lambda p, x: jaxconv.group_norm(x, 2, p["scale"], p["bias"], eps=0.1)),
    "InstanceNorm": (InstanceNorm(eps=0.1), lambda p, x: jaxconv.instance_norm(x, p["scale"], p["bias"], eps=0.1)),
    "LayerScale": (LayerScale(0.5), lambda p, x: x * p["scale"][None, None, None]),
    "MaxPool": (MaxPool((2, 3), stride=1), lambda p, x: jaxconv.max_pool(x, (2, 3), stride=1)),
    "AvgPool": (AvgPool(2, padding="SAME"), lambda p, x: jaxconv.avg_pool(x, 2, padding="SAME")),
    "LpPool": (
        LpPool(2, 3, padding=((0, 1), (1, 0)), ceil_mode=True),
        lambda p, x: jaxconv.lp_pool(x, 2, 3, padding=((0, 1), (1, 0)), ceil_mode=True),
    ),
    "GlobalAvgPool": (GlobalAvgPool(), lambda p, x: jaxconv.global_avg_pool(x)),
    "Pad": (
        Pad(((1, 2), (-1, 0)), mode="reflect"),
        lambda p, x: jaxconv.pad(x, ((1, 2), (-1, 0)), mode="reflect"),
    ),
    "Flatten": (Flatten(), lambda p, x: x.reshape(2, 120)),
    "Activation": (Activation(jaxconv.silu), lambda p, x: jaxconv.silu(x)),
    "Activation-own": (Activation(jnp.sin), lambda p, x: jnp.sin(x)),
    "Activation-partial": (
        Activation(functools.partial(jaxconv.leaky_relu, negative_slope=0.3)),
        lambda p, x: jaxconv.leaky_relu(x, 0.3),
    ),
    "Dropout": (Dropout(0.5), lambda p, x: x),
    "BatchNorm": (
        BatchNorm(eps=0.1),
        lambda p, x: jaxconv.batch_norm(
            x, p["scale"], p["bias"], {"mean": jnp.zeros(4, jnp.float32), "var": jnp.ones(4, jnp.float32)},
            train=False, eps=0.1,
        )[0],
    ),
}  # fmt: skip


def test_every_layer_is_here() -> None:
    made = {name for name in layers.__all__ if name[0].isupper() and inspect.isfunction(getattr(layers, name))}
    assert made == {name.split("-")[0] for name in EVERY}


def drawn(layer: Layer, shape: tuple[int, ...] = IMAGE) -> tuple[Any, Any, tuple[int, ...]]:
    """A layer's parameters at random values, its state, and the shape it promises."""
    params, state, out = layer.init(KEY, shape)
    return jax.tree.map(lambda p: 1 + p + normal(p.shape, 1), params), state, out


@pytest.mark.parametrize("name", EVERY)
def test_a_layer_is_its_op_and_knows_its_shape(name: str) -> None:
    layer, op = EVERY[name]
    params, state, out = drawn(layer)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves((params, state)))
    x = normal(IMAGE)
    y, _ = layer.apply(params, state, x)
    assert y.shape == out
    np.testing.assert_array_equal(y, op(params, x))


@pytest.mark.parametrize("name", EVERY)
def test_a_layer_passes_the_rules_on(name: str) -> None:
    layer, _ = EVERY[name]
    params, state, _ = drawn(layer)

    def program(rules: str) -> str:
        run = functools.partial(layer.apply, params, state, train=True, key=KEY, rules=rules)
        return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(run)(normal(IMAGE))))

    differs = name not in ("Flatten", "LayerScale", "Activation-own")
    assert (program("textbook") != program("autodiff")) == differs
    assert "custom_vjp_call" not in program("autodiff")


def wrapped(x: jax.Array, *, rules: str) -> jax.Array:
    return jaxconv.leaky_relu(x, 0.2, rules=rules)


# (function, whether it takes rules); under "autodiff" no hand-written rule may be left in any of them.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], bool]] = {
    "of the library": (jaxconv.leaky_relu, True),
    "partial": (functools.partial(jaxconv.leaky_relu, negative_slope=0.2), True),
    "partial of partial": (functools.partial(functools.partial(jaxconv.elu, alpha=0.2)), True),
    "compiled": (jax.jit(jaxconv.silu, static_argnames="rules"), True),
    "around the library's": (wrapped, True),
    "jax.nn.relu": (jax.nn.relu, False),
    "lambda": (lambda x: x * x, False),
    "builtin": (abs, False),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_takes_rules_gets_the_networks(name: str) -> None:
    function, ruled = ACTIVATIONS[name]
    net, x = serial(Activation(function)), normal(IMAGE)
    params, state, _ = net.init(KEY, IMAGE)

    def program(rules: str) -> str:
        return str(jax.make_jaxpr(lambda x: net.apply(params, state, x, rules=rules)[0])(x))

    assert [rules for rules in ("textbook", "fast", "autodiff") if "custom_vjp_call" in program(rules)] == (
        ["textbook"] * ruled
    )
    np.testing.assert_array_equal(net.apply(params, state, x)[0], function(x, **({"rules": "fast"} if ruled else {})))


@pytest.mark.parametrize(("taps", "groups"), [(4, 1), (3, 1), (4, 4)])
def test_a_transposed_convolution_starts_at_the_scale_of_a_relu(taps: int, groups: int) -> None:
    """An output reads taps/stride inputs an axis, so with He's variance its own is twice the input's mean square."""
    layer = ConvTranspose(32, taps, stride=2, groups=groups, bias=False)
    params, _, out = layer.init(KEY, (4, 16, 16, 32))
    y, _ = layer.apply(params, {}, normal((4, 16, 16, 32)))
    assert out == (4, 32, 32, 32)
    met = {4: 4, 3: (3 / 2) ** 2}[taps]  # on average; a fan-in is a whole number
    assert float((y**2).mean()) == pytest.approx(2 * met / 4, rel=0.15)


# Options that are refused when a layer is built, and shapes at init

OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "Dropout: rate must satisfy 0 <= rate < 1, but is 30.": (lambda: Dropout(30), ValueError),
    "Dropout: rate must be a number, but is '0.5'.": (lambda: Dropout("0.5"), TypeError),
    "Conv: features must be at least 1, but 0 < 1.": (lambda: Conv(0, 3), ValueError),
    "Conv: features must be an int, but is 8.0.": (lambda: Conv(8.0, 3), TypeError),
    "Conv: taps[1] must be at least 1, but 0 < 1.": (lambda: Conv(8, (3, 0)), ValueError),
    "Conv: stride must be at least 1, but 0 < 1.": (lambda: Conv(8, 3, stride=0), ValueError),
    "Conv: stride must be an int or have one entry per spatial axis, but len(stride) = 3 != 2.": (
        lambda: Conv(8, (3, 3), stride=(1, 1, 1)),
        ValueError,
    ),
    "Conv: dilation must be an int, but is None.": (lambda: Conv(8, 3, dilation=None), TypeError),
    "Conv: padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, an int, one int per spatial axis or (lo, hi) pairs, "
    "but is 'same-ish'.": (lambda: Conv(8, 3, padding="same-ish"), ValueError),
    "Conv: padding must have one entry per spatial axis, but len(padding) = 3 != 2. "
    "Give an int, one int per axis or (lo, hi) pairs.": (
        lambda: Conv(8, (3, 3), padding=(1, 1, 1)),
        ValueError,
    ),
    "Conv: groups must divide features, but 6 % 4 = 2.": (lambda: Conv(6, 3, groups=4), ValueError),
    "Conv: bias must be True or False, but is None.": (lambda: Conv(6, 3, bias=None), TypeError),
    "ConvTranspose: groups must be an int, but is None.": (lambda: ConvTranspose(6, 3, groups=None), TypeError),
    "ConvTranspose: output_padding must be at least 0, but -1 < 0.": (
        lambda: ConvTranspose(6, 3, output_padding=-1),
        ValueError,
    ),
    "ConvTranspose: taps must be an int or one int per spatial axis, but is '3'.": (
        lambda: ConvTranspose(6, "3"),
        TypeError,
    ),
    "Dense: features must be at least 1, but -2 < 1.": (lambda: Dense(-2), ValueError),
    "BatchNorm: momentum must satisfy 0 <= momentum <= 1, but is 9.": (lambda: BatchNorm(momentum=9), ValueError),
    "BatchNorm: eps must be at least 0, but -1.0 < 0.": (lambda: BatchNorm(eps=-1), ValueError),
    "BatchNorm: scale_init must be a number or an initialiser, such as jax.nn.initializers.he_normal(), but is None.": (
        lambda: BatchNorm(scale_init=None),
        TypeError,
    ),
    "LayerNorm: eps must be a number, but is None.": (lambda: LayerNorm(eps=None), TypeError),
    "RMSNorm: eps must be at least 0, but nan < 0.": (lambda: RMSNorm(eps=float("nan")), ValueError),
    "GroupNorm: groups must be at least 1, but 0 < 1.": (lambda: GroupNorm(0), ValueError),
    "InstanceNorm: eps must be at least 0, but -1.0 < 0.": (lambda: InstanceNorm(eps=-1), ValueError),
    "LayerScale: initial must be a number or an initialiser, such as jax.nn.initializers.he_normal(), but is '1'.": (
        lambda: LayerScale("1"),
        TypeError,
    ),
    "MaxPool: window must be at least 1, but 0 < 1.": (lambda: MaxPool(0), ValueError),
    "AvgPool: stride must be at least 1, but 0 < 1.": (lambda: AvgPool(2, stride=0), ValueError),
    "MaxPool: ceil_mode must be True or False, but is 1.": (lambda: MaxPool(2, ceil_mode=1), TypeError),
    "LpPool: p must satisfy 1 <= p < inf, but is 0.5. For p = inf, take max_pool(abs(x)).": (
        lambda: LpPool(2, 0.5),
        ValueError,
    ),
    "Pad: mode must be one of zero, circular, reflect, edge, but is 'mirror'.": (
        lambda: Pad(1, mode="mirror"),
        ValueError,
    ),
    "Pad: padding must be an int, one int per axis or (lo, hi) pairs, but is 'SAME'.": (
        lambda: Pad("SAME"),
        ValueError,
    ),
    "Pad: padding[0] must be a (lo, hi) pair, but has 3 entries.": (lambda: Pad(((1, 2, 3),)), ValueError),
    "Activation: function must be a function, but is 'relu'.": (lambda: Activation("relu"), TypeError),
    "serial: layers[1] must be a Layer, but is [].": (lambda: serial(Flatten(), []), TypeError),
    "residual: shortcut must be a Layer, but is 3.": (lambda: residual(Flatten(), 3), TypeError),
}


@pytest.mark.parametrize("message", OPTIONS)
def test_a_wrong_option_is_refused_when_the_layer_is_built(message: str) -> None:
    build, error = OPTIONS[message]
    assert refusal(build, error) == message


def test_a_function_where_a_layer_belongs_is_told_to_be_an_activation() -> None:
    with pytest.raises(TypeError, match=r"^serial: layers\[1\] must be a Layer.* A function goes in an Activation\.$"):
        serial(Flatten(), jaxconv.relu)


def flat_sum(x: jax.Array) -> jax.Array:
    return x.sum(-1)


def halves(x: jax.Array) -> Any:
    return jnp.split(x, 2, -1)


def positive(x: jax.Array) -> jax.Array:
    return x > 0


SHAPES: dict[str, tuple[Layer, tuple[int, ...], type[Exception]]] = {
    "Activation: `flat_sum` must be elementwise, but maps float32[1, 4, 4, 2] to float32[1, 4, 4]. For another kind of "
    "map, write a Layer(init, apply).": (Activation(flat_sum), (1, 4, 4, 2), ValueError),
    "Activation: `flat_sum` must be elementwise, but maps float32[3, 2] to float32[3]. For another kind of map, write "
    "a Layer(init, apply).": (serial(Dense(2), Activation(functools.partial(flat_sum))), (3, 5), ValueError),
    "Activation: `positive` must be elementwise, but maps float32[3, 5] to bool[3, 5]. For another kind of map, write "
    "a Layer(init, apply).": (Activation(positive), (3, 5), ValueError),
    "Activation: `halves` must return one array, but returns a list.": (Activation(halves), (3, 4), TypeError),
    "Conv: groups must divide the channels of x, but 6 % 4 = 2.": (Conv(8, 3, groups=4), (1, 4, 4, 6), ValueError),
    "Conv: taps must be an int or have one entry per spatial axis, but len(taps) = 1 != 2.": (
        Conv(8, (3,)),
        (1, 4, 4, 6),
        ValueError,
    ),
    "Conv: x must have a batch, a channel and at least 1 spatial axis (NWC), but x.shape = (1, 6) has 2 < 3 axes. "
    "A single example needs a batch axis: x[None].": (Conv(8, 3), (1, 6), ValueError),
    "ConvTranspose: groups must divide the channels of x, but 6 % 4 = 2.": (
        ConvTranspose(8, 3, groups=4),
        (1, 4, 4, 6),
        ValueError,
    ),
    "GroupNorm: groups must divide the channels, but 6 % 4 = 2.": (GroupNorm(4), (1, 4, 4, 6), ValueError),
    "LpPool: the input is too small: spatial (2, 1) becomes (1, 0). Use larger images or another model.": (
        LpPool(2, 2),
        (1, 2, 1, 3),
        ValueError,
    ),
    "Pad: the input is too small: spatial (4, 2) becomes (2, 0). Use larger images or another model.": (
        Pad(-1),
        (1, 4, 2, 3),
        ValueError,
    ),
}


@pytest.mark.parametrize("message", SHAPES)
def test_a_shape_that_does_not_fit_is_refused_at_init(message: str) -> None:
    layer, shape, error = SHAPES[message]
    assert refusal(functools.partial(layer.init, KEY, shape), error).startswith(message)


def test_a_mistyped_option_of_apply_is_refused() -> None:
    net = serial(residual(Dense(3)))
    params, state, _ = net.init(KEY, (2, 3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'trian'"):
        net.apply(params, state, normal((2, 3)), trian=True)


def test_a_layer_of_ones_own_need_not_know_of_a_dtype_that_nobody_asks_for() -> None:
    def twice(p: Any, s: Any, x: jax.Array, *, train: bool = False, key: Any = None, rules: Any = "fast") -> Any:
        return 2 * x, s

    double = Layer(lambda key, shape: ({}, {}, shape), twice)
    net = serial(Dense(3), double)
    params, state, _ = net.init(KEY, (2, 3))
    x = normal((2, 3))
    np.testing.assert_array_equal(net.apply(params, state, x)[0], 2 * Dense(3).apply(params[0], {}, x)[0])


def test_the_layers_are_there_after_importing_the_library() -> None:
    assert jaxconv.layers.Conv is Conv and callable(jaxconv.models.cnn) and jaxconv.rules.rotated.conv
