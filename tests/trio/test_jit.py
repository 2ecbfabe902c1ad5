"""Compilation: jit changes nothing, an eager call is one cached program, and programs can leave the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.agreement import LAYERS, TINY, Layer, agree, compilations, each_rule, oracle


def loss_and_gradients(layer: Layer, rules: str) -> Callable[..., Any]:
    def loss(x: Any, w: Any, b: Any, delta: Any) -> jax.Array:
        return jnp.sum(delta * layer(x, w, b, rules=rules) ** 2)

    return jax.value_and_grad(loss, (0, 1, 2))


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """One entry for each program compiled since the test began, or since the list was cleared."""
    jax.clear_caches()
    with compilations() as programs:
        yield programs


def placed(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """On the device already: moving a NumPy array there would count as a program."""
    return tuple(map(jax.device_put, arrays))


@pytest.mark.parametrize("layer", [LAYERS[3], LAYERS[-1]], ids=str)
def test_eager_equals_jit(layer: Layer) -> None:
    ours, theirs = loss_and_gradients(layer, "fast"), loss_and_gradients(layer, "autodiff")
    agree(ours, theirs, *layer.arguments(), eager=True)


def test_disable_jit_changes_nothing() -> None:
    def of(layers: Callable[..., Any]) -> Callable[..., Any]:
        return layers(partial(loss_and_gradients, TINY), ["fast", "rotated"])

    with jax.disable_jit():
        got = of(each_rule)(*placed(*TINY.arguments()))
    agree(lambda *_: got, of(oracle), *TINY.arguments())


def test_an_eager_call_compiles_one_program(compiled: list[str]) -> None:
    x, w, *_ = placed(*TINY.arguments())
    TINY(x, w)
    assert len(compiled) == 1, compiled


def test_a_second_eager_call_compiles_nothing(compiled: list[str]) -> None:
    x, w, b, _ = TINY.arguments()
    TINY(*placed(x, w, b))
    assert compiled
    compiled.clear()
    TINY(*placed(x + 1, w + 1, b + 1))
    assert not compiled


def test_a_second_eager_gradient_compiles_nothing(compiled: list[str]) -> None:
    arguments = placed(*TINY.arguments())
    loss_and_gradients(TINY, "fast")(*arguments)
    assert compiled
    compiled.clear()
    loss_and_gradients(TINY, "fast")(*arguments)
    assert not compiled


def test_two_spellings_of_a_convolution_share_one_program(compiled: list[str]) -> None:
    x, w = placed(np.ones((1, 5, 5, 2)), np.ones((3, 3, 2, 2)))
    spellings: list[dict[str, Any]] = [
        {"padding": "SAME"},
        {"padding": 1},
        {"padding": [1, 1], "stride": 1},
        {"padding": ((1, 1), (1, 1)), "stride": (1, 1), "dilation": [1, 1], "groups": np.int64(1)},
        {"padding": "same_lower", "input_dilation": np.int32(1)},
    ]
    for spelling in spellings:
        jaxconv.conv(x, w, **spelling)
    assert len(compiled) == 1, compiled


def test_another_shape_is_another_program(compiled: list[str]) -> None:
    (w,) = placed(np.ones((3, 2, 2)))
    for n in (4, 5, 5):
        jaxconv.conv(*placed(np.ones((1, n, 2))), w, padding="VALID")
    assert len([program for program in compiled if "jaxconv" in program]) == 2, compiled


def test_an_exported_gradient_gives_the_same_numbers_for_any_batch() -> None:
    """`jax.export` with a symbolic batch size: a geometry holds none."""
    w = TINY.arguments()[1]
    x = np.concatenate([TINY.arguments()[0]] * 3)

    def gradient(x: Any, w: Any) -> Any:
        return jax.grad(lambda x, w: jnp.sum(TINY(x, w) ** 2), (0, 1))(x, w)

    batch = jax.export.symbolic_shape("n, 5, 2")
    shapes = jax.ShapeDtypeStruct(batch, x.dtype), jax.ShapeDtypeStruct(w.shape, w.dtype)
    exported = jax.export.export(jax.jit(gradient), platforms=["cpu", "cuda"])(*shapes)
    jax.tree.map(np.testing.assert_array_equal, exported.call(x, w), jax.jit(gradient)(x, w))
