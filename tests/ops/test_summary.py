"""What a summary says of a network: shapes, parameters, FLOPs counted by hand, and what JAX really keeps."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxconv
from jaxconv import layers
from jaxconv.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Layer,
    LayerNorm,
    MaxPool,
    residual,
    serial,
    summary,
)
from jaxconv.models import MODELS
from tests.support.refusal import refusal
from tests.support.sampling import chosen

KEY = jax.random.key(0)
SHAPE = (4, 8, 6, 3)


def block(features: int, shortcut: Layer | None = None) -> Layer:
    return residual(serial(Conv(features, 3, bias=False), BatchNorm(), Activation(jaxconv.relu)), shortcut)


NET = serial(
    Conv(4, 3), Activation(jaxconv.silu), block(4), MaxPool(2), block(6, shortcut=Conv(6, 1)), LayerNorm(),
    Dropout(0.5), Flatten(), Dense(5),
)  # fmt: skip


def costs(cost: layers.Cost) -> Iterator[layers.Cost]:
    yield cost
    for part in cost.parts:
        yield from costs(part)


def test_flops_are_those_that_are_counted_by_hand() -> None:
    """A product and its addition are two; what meets the zeros of a padding is none; an output adds its bias."""
    for layer, shape, by_hand in (
        (Conv(5, 3, padding="VALID"), (2, 8, 6, 4), 2 * (6 * 4) * 5 * (2 * 9 * 4 + 1)),
        (Conv(5, 3, padding="VALID", bias=False), (2, 8, 6, 4), 2 * (6 * 4) * 5 * 2 * 9 * 4),
        (Conv(4, 3, bias=False), (1, 8, 8, 1), (3 * 8 - 2) ** 2 * 4 * 2),
        (Conv(8, 3, stride=2, groups=2, padding="VALID", bias=False), (1, 9, 9, 4), 4 * 4 * 8 * 2 * 9 * 2),
        (Dense(7), (3, 5), 3 * 7 * (2 * 5 + 1)),
        (Activation(jnp.negative), (3, 5), 15),
        (Flatten(), (3, 5, 2), 0),
        (Dropout(0.5), (3, 5), 0),
    ):
        assert summary(layer, shape).total.flops == by_hand, layer


@pytest.mark.parametrize("rules", ["fast", "textbook", "autodiff"])
def test_residuals_are_what_the_function_of_vjp_holds(rules: str) -> None:
    """For the network as a whole: each array of the program once, and the parameters left out."""
    params, state, _ = NET.init(KEY, SHAPE)
    x = jax.random.normal(KEY, SHAPE, jnp.float32)

    def held(params: Any, x: jax.Array) -> Any:
        run = functools.partial(NET.apply, train=True, key=KEY, rules=rules)
        _, back, _ = jax.vjp(lambda params, x: run(params, state, x), params, x, has_aux=True)
        return [a for a in jax.tree.leaves(back) if isinstance(a, jax.Array)]

    program = jax.make_jaxpr(held)(params, x).jaxpr
    *parameters, _ = program.invars
    kept = {id(v): v.aval.size * v.aval.dtype.itemsize for v in program.outvars if v not in parameters}
    total = summary(NET, SHAPE, rules=rules).total
    assert sum(kept.values()) == total.residuals > 0
    assert sum(cost.residuals for cost in costs(total) if not cost.parts) == total.residuals


def test_what_single_layers_keep() -> None:
    n = 2 * 8 * 6 * 4
    for layer, numbers in (
        (Conv(5, 3), {"fast": 4 * n, "autodiff": 4 * n}),  # x
        (Dense(5), {"fast": 4 * n, "autodiff": 4 * n}),
        (MaxPool(2), {"fast": n // 4}),  # which of the four, in a byte
        (Dropout(0.5), {"fast": n, "rotated": n}),  # the mask
        (Flatten(), {"fast": 0, "autodiff": 0}),
    ):
        for rules, held in numbers.items():
            assert summary(layer, (2, 8, 6, 4), rules=rules).total.residuals == held, (layer, rules)


def test_an_array_that_two_layers_keep_is_counted_once() -> None:
    n = 4 * 2 * 8 * 6
    body, shortcut = summary(residual(Conv(4, 3), Conv(4, 1)), (2, 8, 6, 3)).total.parts
    assert (body.residuals, shortcut.residuals) == (3 * n, 0)


def test_in_16_bits_half_as_much_is_kept_and_the_converted_kernels() -> None:
    net = serial(Conv(4, 3, bias=False), Conv(4, 3, bias=False))
    wide, narrow = summary(net, SHAPE).total, summary(net, SHAPE, dtype=jnp.bfloat16).total
    assert narrow.residuals == wide.residuals // 2 + 2 * narrow.parameters
    assert (narrow.dtype, wide.dtype) == ("bfloat16", "float32") and narrow.flops == wide.flops


def test_a_network_is_the_sum_of_its_parts() -> None:
    total = summary(NET, SHAPE).total
    params, _, out = NET.init(KEY, SHAPE)
    assert total.output == out and total.parameters == sum(p.size for p in jax.tree.leaves(params))
    for cost in (cost for cost in costs(total) if cost.parts):
        own = math.prod(cost.output) if cost.layer.startswith("residual") else 0  # the sum of its branches
        assert sum(part.parameters for part in cost.parts) == cost.parameters
        assert sum(part.residuals for part in cost.parts) == cost.residuals
        assert sum(part.flops or 0 for part in cost.parts) + own == cost.flops


def test_the_parts_of_a_network_are_indented() -> None:
    printed = str(summary(NET, SHAPE))
    assert [line[:26].rstrip() for line in printed.splitlines()] == [
        "layer",
        "Conv(4, 3)",
        "Activation(silu)",
        "residual",
        "  serial",
        "    Conv(4, 3, bias=False)",
        "    BatchNorm()",
        "    Activation(relu)",
        "MaxPool(2)",
        "residual",
        "  serial",
        "    Conv(6, 3, bias=False)",
        "    BatchNorm()",
        "    Activation(relu)",
        "  Conv(6, 1)",
        "LayerNorm()",
        "Dropout(0.5)",
        "Flatten()",
        "Dense(5)",
        "total",
    ]


@pytest.mark.parametrize("name", chosen(MODELS, ["cnn"]))
def test_every_model_fits_80_columns_and_json(name: str) -> None:
    found = summary(MODELS[name](), (128, 32, 32, 3), dtype=jnp.bfloat16)
    lines = str(found).splitlines()
    assert {len(line) for line in lines} == {max(map(len, lines))} and len(lines[0]) <= 80
    again = json.loads(json.dumps(found.to_dict()))
    assert again["total"]["parameters"] == found.total.parameters and again["shape"] == [128, 32, 32, 3]
    assert len(again["total"]["parts"]) == len(found.total.parts) > 0


def test_a_layer_of_ones_own_has_a_line() -> None:
    def twice(
        params: Any, state: Any, x: jax.Array, *, train: bool = False, key: Any = None, rules: Any = "fast"
    ) -> Any:
        return x * jnp.sin(params), state

    own = Layer(lambda key, shape: (jnp.ones((), jnp.float32), {}, shape), twice)
    (cost, _) = summary(serial(own, Flatten()), (2, 3, 4)).total.parts
    assert cost.parameters == 1 and cost.output == (2, 3, 4) and "twice" in cost.layer


def test_a_layer_of_which_a_part_is_replaced_is_ones_own() -> None:
    """It computes what it was given, and does not say that the call which built it would."""
    init, apply = net = serial(Dense(2), Flatten())

    def narrow(params: Any, state: Any, x: jax.Array, **options: Any) -> Any:
        y, state = apply(params, state, x, **options)
        return y[:, :1], state

    other = net._replace(apply=narrow)
    assert other.init is init and isinstance(other, Layer)
    found = summary(other, (5, 3)).total
    assert found.output == (5, 1) and not found.parts and "serial" not in found.layer


def test_flops_are_counted_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the default device is: JAX counts none on that of a plugin. Without a CPU, nobody counts."""
    asked = []
    count = jax.stages.Lowered.cost_analysis

    def counted(lowered: jax.stages.Lowered) -> Any:
        asked.append(jax.config.jax_default_device)  # type: ignore[attr-defined]
        return count(lowered) if asked[-1] is not None else None

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", counted)
    with jax.default_device(None):
        assert summary(Dense(7), (3, 5)).total.flops == 3 * 7 * (2 * 5 + 1)
        assert asked[0].platform == "cpu"

        def without(**_: Any) -> list[jax.Device]:
            raise RuntimeError("Unknown backend cpu")

        monkeypatch.setattr(jax, "local_devices", without)
        assert " ? " in str(summary(Dense(7), (3, 5)))


def test_a_layer_prints_as_it_was_built() -> None:
    for layer, written in (
        (Conv(8, 3, stride=(2, 1), bias=True, groups=None), "Conv(8, 3, stride=(2, 1), groups=None)"),
        (Activation(functools.partial(jaxconv.leaky_relu, negative_slope=0.2)), "Activation(leaky_relu)"),
        (residual(Flatten(), shortcut=Dense(2)), "residual(Flatten(), shortcut=Dense(2))"),
        (Dense(2, kernel_init=jax.nn.initializers.zeros), "Dense(2, kernel_init=zeros)"),
    ):
        assert repr(layer) == written


def test_what_has_no_summary_is_refusal() -> None:
    assert refusal(lambda: summary(jaxconv.relu, SHAPE), TypeError).startswith("summary: net must be a Layer, but is ")
    assert refusal(lambda: summary(NET, SHAPE, rules="quick"), ValueError).startswith("summary: rules must be one of ")
    assert refusal(lambda: summary(NET, SHAPE, dtype=jnp.int32), TypeError).startswith("apply: dtype must be floating")
    assert refusal(lambda: summary(NET, ()), ValueError) == (
        "summary: shape must have len(shape) >= 1, but is (). Give the batch and the axes of an example, "
        "such as (1, 28, 28, 1)."
    )
    assert refusal(lambda: summary(NET, (1, 8.0)), TypeError) == "summary: shape[1] must be an int, but is 8.0."
    assert refusal(lambda: summary(Conv(4, 3), (4, 3)), ValueError).startswith("Conv: x must have a batch, a channel")
