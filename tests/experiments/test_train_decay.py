"""Weight decay: what a step of each optimizer does to a kernel and to a bias, written out, with a clip and without."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from experiments import data
from experiments.config import OPTIMIZERS, Config, UsageError, check, from_json
from experiments.trainer import Trainer
from jaxconv.models import MODELS

pytestmark = pytest.mark.usefixtures("as_a_user")

RATE, DECAY = 0.1, 0.3


def by_hand(name: str, p: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """Where an array ends after a step for each gradient; m and v are the moments, λ the decay."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        h = g + decay * p  # what all but the last two see
        match name:
            case "sgd":
                step = h
            case "momentum":
                m = 0.9 * m + h
                step = h + 0.9 * m
            case "rmsprop":
                v = 0.9 * v + 0.1 * h**2
                step = h / np.sqrt(v + 1e-8)
            case "adam":
                m, v = 0.9 * m + 0.1 * h, 0.999 * v + 0.001 * h**2
                step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            case "adamw":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p
            case "lion":
                step = np.sign(0.9 * m + 0.1 * g) + decay * p
                m = 0.99 * m + 0.01 * g
        p = p - RATE * step
    return p


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_are_those_written_out_and_a_bias_does_not_decay(name: str, decay: float) -> None:
    rng = np.random.default_rng(0)
    params, *gradients = ({"w": rng.normal(size=(3, 3, 2, 4)), "b": rng.normal(size=4)} for _ in range(3))
    optimizer = OPTIMIZERS[name].make(RATE, decay)
    with jax.enable_x64(True):
        ours, moments = jax.tree.map(jax.numpy.asarray, params), optimizer.init(params)
        for gradient in gradients:
            updates, moments = optimizer.update(gradient, moments, ours)
            ours = jax.tree.map(np.add, ours, updates)
    for array, own in (("w", decay), ("b", 0.0)):
        expected = by_hand(name, params[array], [gradient[array] for gradient in gradients], own)
        np.testing.assert_allclose(ours[array], expected, rtol=1e-6, atol=1e-7)


def test_the_gradient_of_the_loss_is_clipped_and_not_the_decay() -> None:
    config = Config(model="article", optimizer="sgd", learning_rate=RATE, schedule="constant", clip=1e-3)
    trainer = Trainer(dataclasses.replace(config, weight_decay=DECAY).resolved(), data.load("digits"))
    params = jax.device_get(trainer.params)
    gradient = jax.tree.map(lambda p: np.full(p.shape, 7, p.dtype), params)
    updates, _ = trainer.optimizer.update(gradient, trainer.carry.opt_state, trainer.params)
    clipped = 1e-3 / np.sqrt(sum(p.size for p in jax.tree.leaves(params)))
    for update, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True):
        np.testing.assert_allclose(update, -RATE * (clipped + (DECAY if p.ndim > 1 else 0) * p), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_arrays_of_two_or_more_axes_are_the_kernels_of_a_model(name: str) -> None:
    init = MODELS[name](10).init
    params = jax.eval_shape(lambda key: init(key, (2, 32, 32, 3))[0], jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert {path[-1].key for path, leaf in leaves if leaf.ndim > 1} == {"w"}
    assert "w" not in {path[-1].key for path, leaf in leaves if leaf.ndim <= 1}


@pytest.mark.parametrize(("name", "usual"), [("momentum", 0.0), ("adamw", 0.01), ("lion", 0.001)])
def test_the_usual_decay_is_the_optimizers_and_none_can_be_asked_for(name: Any, usual: float) -> None:
    assert Config(optimizer=name).resolved().weight_decay == usual
    config = Config(optimizer=name, weight_decay=0.0).resolved()
    assert config.weight_decay == 0.0 and from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("value", [-1e-4, float("inf"), float("nan")])
def test_a_decay_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match=rf"--weight-decay must be at least 0 and finite, but is {value}\."):
        check(Config(weight_decay=value).resolved(), 1438)
