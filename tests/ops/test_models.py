"""Every model builds, trains a step under every rule set, and says what it cannot do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import Conv, Dense, Dropout, MaxPool, residual, serial
from jaxconv.models import MODELS, convnext, mobilenet_v2, resnet18, vgg
from tests.support.sampling import chosen

SMALL = {
    "article": (MODELS["article"], (2, 12, 12, 1)),
    "cnn": (MODELS["cnn"], (2, 8, 8, 1)),
    "lenet5": (MODELS["lenet5"], (2, 28, 28, 1)),
    "vgg": (lambda classes: vgg(classes, (4, 8)), (2, 8, 8, 3)),
    "resnet18": (lambda classes: resnet18(classes, 4), (2, 16, 16, 3)),
    "mobilenet_v2": (lambda classes: mobilenet_v2(classes, ((1, 4, 1, 1), (6, 6, 2, 2)), 4, 8), (2, 8, 8, 3)),
    "convnext": (lambda classes: convnext(classes, (8, 16), 1), (2, 16, 16, 3)),
}


def test_every_model_is_covered() -> None:
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [("article", (28, 28, 1), 13_610), ("lenet5", (28, 28, 1), 61_706), ("resnet18", (32, 32, 3), 11_173_962)],
)
def test_published_models_have_their_published_size(name: str, image: tuple[int, ...], parameters: int) -> None:
    net = MODELS[name](10)
    params = jax.eval_shape(lambda key: net.init(key, (1, *image))[0], jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("name", chosen(SMALL, {"article", "cnn", "vgg", "resnet18"}))
def test_a_training_gradient_is_the_same_under_every_rule_set(name: str) -> None:
    build, shape = SMALL[name]
    net = build(5)
    params, state, out = net.init(jax.random.key(0), shape)
    assert out == (2, 5)
    params, state = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))

    def gradient(rules: str) -> list[jax.Array]:
        def loss(params: object) -> jax.Array:
            logits, _ = net.apply(params, state, x, train=True, key=jax.random.key(1), rules=rules)
            return jaxconv.softmax_cross_entropy(logits, jnp.array([1, 4]), rules=rules).mean()

        return jax.tree.leaves(jax.grad(loss)(params))

    exact, fast = jax.jit(lambda: (gradient("autodiff"), gradient("fast")))()
    size = np.sqrt(sum(float((b**2).sum()) for b in exact))
    assert size > 0
    for a, b in zip(fast, exact, strict=True):
        # Batch statistics of two examples amplify rounding: norm-wise over the whole gradient.
        assert float(jnp.abs(a - b).max()) <= 1e-9 * size


@pytest.mark.parametrize("name", SMALL)
def test_inference_is_deterministic_and_keeps_its_state(name: str) -> None:
    build, shape = SMALL[name]
    net = build(3)
    params, state, _ = net.init(jax.random.key(0), shape)
    x = jnp.ones(shape, jnp.float32)
    apply = jax.jit(net.apply)
    (y, kept), (again, _) = apply(params, state, x), apply(params, state, x)
    assert y.shape == (2, 3) and y.dtype == jnp.float32 and bool((y == again).all())
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True))


def test_training_updates_the_running_statistics() -> None:
    build, shape = SMALL["vgg"]
    net = build(3)
    params, state, _ = net.init(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    _, new = net.apply(params, state, x, train=True, key=jax.random.key(2))
    before, after = jax.tree.leaves(state), jax.tree.leaves(new)
    assert before and all(bool((a != b).any()) for a, b in zip(before, after, strict=True))


def test_dropout_draws_differently_in_each_layer_and_not_at_all_in_inference() -> None:
    net = serial(Dropout(0.5), Dropout(0.5))
    params, state, _ = net.init(jax.random.key(0), (1, 1000))
    x = jnp.ones((1, 1000), jnp.float32)
    y, _ = net.apply(params, state, x, train=True, key=jax.random.key(1))
    assert {float(v) for v in jnp.unique(y)} == {0.0, 4.0} and 150 < int((y > 0).sum()) < 350
    assert bool((net.apply(params, state, x)[0] == x).all())


def test_images_too_small_for_a_model_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Conv: the input is too small: spatial"):
        MODELS["lenet5"](10).init(jax.random.key(0), (1, 8, 8, 1))
    with pytest.raises(ValueError, match="MaxPool: the input is too small"):
        serial(MaxPool(4)).init(jax.random.key(0), (1, 3, 3, 1))


def test_branches_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="residual: the two branches must agree in shape"):
        residual(Conv(3, 3)).init(jax.random.key(0), (1, 4, 4, 2))


def test_a_layer_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="init: a layer needs at least one input"):
        Dense(3).init(jax.random.key(0), (1, 0))
