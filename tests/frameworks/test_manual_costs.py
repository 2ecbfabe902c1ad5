"""What `manual` costs a model of the size that people have: little of tracing, and nothing after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxconv
from tests.support.frameworks import ours, primitives
from tests.support.resnet50 import ResNet50

NET, X = ResNet50(), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
LABELS = np.zeros(2, np.int32)
Loss = Callable[..., Any]


def loss(params: Any, state: Any, x: Any) -> Any:
    logits, state = NET.apply({"params": params, **state}, x, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), state


@pytest.fixture(scope="module")
def arguments() -> Any:
    """In shape only."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(NET.init, jax.random.key(0), X)
    params = variables.pop("params")
    assert sum(a.size for a in jax.tree.leaves(params)) == 25_557_032  # as everywhere
    return params, variables, X


def traced(f: Loss, *args: Any) -> Any:
    return jax.jit(jax.value_and_grad(f, has_aux=True)).trace(*args)


def seconds(f: Loss, *args: Any) -> float:
    """Of this process, so that others beside it do not count."""
    jax.clear_caches()
    started = time.process_time()
    traced(f, *args)
    return time.process_time() - started


def test_a_resnet_50_is_traced_in_less_than_a_second_more(arguments: Any) -> None:
    seconds(loss, *arguments)  # what is imported and made once
    with_manual, without = (seconds(f, *arguments) for f in (jaxconv.manual(loss), loss))
    assert with_manual < without + 1.0


def test_every_convolution_of_a_resnet_50_has_its_rules(arguments: Any) -> None:
    found = primitives(jax.grad(jaxconv.manual(lambda *args: loss(*args)[0])), *arguments)
    assert found["jaxconv_conv"] == found["jaxconv_kernel_grad"] == 53
    assert found["jaxconv_input_grad"] == 52  # the first needs none
    assert "conv_general_dilated" not in found and "jaxconv_take_winner_transpose" in ours(found)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


def test_a_model_without_anything_to_replace_compiles_to_the_same_program() -> None:
    x = np.ones((4, 16), np.float32)
    variables = jax.eval_shape(MLP().init, jax.random.key(0), x)

    def squares(variables: Any) -> Any:
        return jnp.square(MLP().apply(variables, x)).mean()

    with pytest.warns(UserWarning, match="nothing in squares is replaced"):
        with_manual = jax.jit(jax.value_and_grad(jaxconv.manual(squares))).lower(variables).as_text()
    assert with_manual == jax.jit(jax.value_and_grad(squares)).lower(variables).as_text()
