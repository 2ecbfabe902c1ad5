"""Keras 3 on JAX with `manual` around what its trainer differentiates: the same `fit`, by the rules of this library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.frameworks import JAX_GRADIENTS, STEPS, assert_near, assert_same, ours, primitives
from tests.support.sampling import chosen

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras was imported for another backend"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # Keras's
]

random = np.random.default_rng(0)
X, LABELS = random.standard_normal((8, 12, 12, 3)), random.integers(0, 3, 8)
LOSS = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)


@pytest.fixture(autouse=True)
def _floats() -> Iterator[None]:
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def net() -> Any:
    """Small, with every kind of layer that has a rule, and some that have none."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.MaxPooling2D(2, strides=1, padding="same")(y)
    y = layers.Conv2D(8, (3, 2), groups=2, dilation_rate=(1, 2), padding="same")(y)
    z = layers.DepthwiseConv2D(3, padding="same")(y)
    y = layers.add([y, layers.Dense(8, activation="gelu")(layers.SeparableConv2D(8, 3, padding="same")(z))])
    y = layers.AveragePooling2D(2, padding="same")(y)
    y = layers.Conv2DTranspose(6, 3, strides=2, padding="same", kernel_regularizer="l2")(y)
    y = layers.Dropout(0.25)(layers.Reshape((36, 6))(y))
    y = layers.MultiHeadAttention(2, 3, dropout=0.1)(y, y)
    y = layers.Conv1D(4, 2, padding="causal")(y)
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


class Training(NamedTuple):
    after_a_step: Any
    losses: Any
    at_the_end: Any


Hook = Callable[[Any], None]


def ours_by(**options: Any) -> Hook:
    def hook(model: Any) -> None:
        model.compute_loss_and_updates = jaxconv.manual(model.compute_loss_and_updates, **options)

    return hook


def variables(model: Any) -> dict[str, Any]:
    """Weights, statistics and the optimizer's memory."""
    return {v.path: v.numpy() for v in (*model.variables, *model.optimizer.variables)}


@functools.cache
def start() -> list[np.ndarray]:
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    return net().get_weights()


def trained(hook: Hook, floatx: str) -> Training:
    weights = start()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    model = net()
    model.set_weights(weights)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS())
    hook(model)
    losses = [model.train_on_batch(X.astype(floatx), LABELS)]
    first = variables(model)
    losses += model.fit(X.astype(floatx), LABELS, batch_size=8, epochs=STEPS - 1, verbose=0).history["loss"]
    return Training(first, np.asarray(losses, floatx), variables(model))


@functools.cache
def their_training() -> Training:
    return trained(lambda model: None, "float64")


@pytest.mark.parametrize("engine", chosen(["xla", "auto"], ["auto"]))
def test_a_step_and_twenty_losses_of_fit_are_theirs(engine: str) -> None:
    """To float32, in which Keras computes batch statistics whatever it is told."""
    want = their_training()
    for got, exact in zip(trained(ours_by(engine=engine), "float32"), want, strict=True):
        assert_near(got, exact)
    assert want.losses[-1] < want.losses[0]


def step_of(model: Any) -> Any:
    """The primitives of the step that `fit` compiles."""
    of = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables
    state = tuple([v.value for v in group] for group in of)
    return primitives(model.train_step, state, (X.astype(np.float32), LABELS))


def test_the_rules_are_there_and_what_has_none_stays() -> None:
    model = net()
    model.compile("sgd", LOSS())
    model.build(X.shape)
    model.optimizer.build(model.trainable_variables)
    theirs = step_of(model)
    ours_by()(model)
    step = step_of(model)
    assert theirs.keys() >= {"conv_general_dilated", "select_and_scatter_add"} and not ours(theirs)
    assert ours(step) >= {"jaxconv_conv", "jaxconv_input_grad", "jaxconv_kernel_grad", "jaxconv_take_winner_transpose"}
    assert not JAX_GRADIENTS & step.keys()
    assert step["random_bits"] == theirs["random_bits"] and 0 < step["dot_general"] < theirs["dot_general"]


# Smaller: one property each


def small(data_format: str = "channels_last") -> Any:
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    layers, place = keras.layers, {"data_format": data_format}
    shape = X.shape[1:] if data_format == "channels_last" else (3, 12, 12)
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, strides=2, activation="relu", **place),
            layers.MaxPooling2D(2, **place),
            layers.Dropout(0.25),
            layers.GlobalAveragePooling2D(**place),
            layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("data_format", chosen(["channels_first", "channels_last"], ["channels_first"]))
def test_a_loop_of_ones_own(data_format: str) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = small(data_format)
    x = X if data_format == "channels_last" else np.moveaxis(X, -1, 1)

    def loss(trainable: Any, rest: Any, x: Any) -> Any:
        logits, rest = model.stateless_call(trainable, rest, x, training=True)
        return LOSS()(LABELS, logits), rest

    args = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables], x
    gradients = [jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (jaxconv.manual(loss), loss)]
    assert_same(*(f(*args) for f in gradients))
    assert not JAX_GRADIENTS & primitives(gradients[0], *args).keys()


@pytest.mark.parametrize("policy", chosen(["mixed_float16", "mixed_bfloat16"], ["mixed_bfloat16"]))
def test_parameters_stay_wide_and_layers_compute_in_sixteen_bits(policy: str) -> None:
    def after_a_step(hook: Hook, policy: str) -> Any:
        keras.config.set_dtype_policy(policy)
        model = small()
        model.compile(keras.optimizers.SGD(0.1), LOSS())  # in float16 with a scaled loss
        hook(model)
        return model.train_on_batch(X.astype(np.float32), LABELS), variables_of(model)

    def variables_of(model: Any) -> list[Any]:
        assert {v.dtype for v in model.trainable_variables} == {"float32"}
        return model.get_weights()

    exact = after_a_step(lambda model: None, "float32")
    eps = float(jnp.finfo(policy.removeprefix("mixed_")).eps)
    for hook in (ours_by(), lambda model: None):
        assert_near(after_a_step(hook, policy), exact, eps)


def test_a_model_with_the_hook_is_evaluated_saved_and_compiled_again(tmp_path: Any) -> None:
    model = small()
    model.compile("adam", LOSS(), metrics=["accuracy"])
    ours_by()(model)
    model.compile("sgd", LOSS(), metrics=["accuracy"])
    x = X.astype(np.float32)
    model.fit(x, LABELS, epochs=1, verbose=0, validation_data=(x, LABELS))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(again.get_weights(), model.get_weights())
    assert_near(np.asarray(again.evaluate(x, LABELS, verbose=0)), np.asarray(model.evaluate(x, LABELS, verbose=0)))
    assert_same(again.predict(x, verbose=0), model.predict(x, verbose=0))
