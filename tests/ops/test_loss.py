"""Losses are finite where they should be, and their gradients are p − t by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close, normal
from tests.support.refusal import refusal
from tests.support.rule_sets import ALL_RULES


def one_hot(labels: Any, classes: int) -> np.ndarray:
    return np.eye(classes)[np.asarray(labels)]


def in_logits(*spellings: Any, **options: Any) -> Callable[..., Any]:
    """The losses and their pullback to the logits, for each spelling of the labels and each rule set."""

    def every(logits: Any, g: Any) -> Any:
        def one(labels: Any, rules: str) -> Any:
            y, pullback = jax.vjp(lambda z: jaxconv.softmax_cross_entropy(z, labels, rules=rules, **options), logits)
            return y, pullback(g)[0]

        return [one(labels, rules) for labels in spellings for rules in ALL_RULES]

    return jax.jit(every)


@pytest.mark.parametrize("smoothing", [0, 0.3])
@pytest.mark.parametrize("lead", [(), (2, 3)], ids=str)
def test_loss_and_gradient_for_class_numbers_and_their_one_hot_spelling(
    lead: tuple[int, ...], smoothing: float
) -> None:
    logits, g = 3 * normal((*lead, 5)), normal(lead, 1)
    labels = np.random.default_rng(2).integers(0, 5, lead)
    hot = one_hot(labels, 5)
    targets = oracle.smoothed(hot, logits, smoothing)
    expected = oracle.cross_entropy(logits, targets), oracle.cross_entropy_grad(logits, targets, g)[0]
    assert_close(in_logits(labels, hot, label_smoothing=smoothing)(logits, g), [expected] * 8)


@pytest.mark.parametrize("smoothing", [0, 0.2])
def test_loss_and_gradients_for_soft_labels_in_logits_and_labels(smoothing: float) -> None:
    """The labels need not sum to 1: the gradient in the logits is p Σt − t."""
    logits, g = 3 * normal((4, 5)), normal((4,), 1)
    targets = np.random.default_rng(2).uniform(0.1, 2, (4, 5))

    def every(z: Any, t: Any, g: Any) -> Any:
        def one(rules: str) -> Any:
            def loss(z: Any, t: Any) -> jax.Array:
                return jaxconv.softmax_cross_entropy(z, t, label_smoothing=smoothing, rules=rules)

            y, pullback = jax.vjp(loss, z, t)
            return y, pullback(g)

        return {r: one(r) for r in ALL_RULES}

    smooth = oracle.smoothed(targets, logits, smoothing)
    dz, dt = oracle.cross_entropy_grad(logits, smooth, g)
    expected = oracle.cross_entropy(logits, smooth), (dz, (1 - smoothing) * dt)
    assert_close(jax.jit(every)(logits, targets, g), dict.fromkeys(ALL_RULES, expected))


def test_the_gradient_in_one_hot_labels_is_minus_log_p_for_every_class() -> None:
    """Also for a class whose label is 0, where the loss itself takes no part of it."""
    logits, targets, g = normal((2, 3)), one_hot([0, 2], 3), normal((2,), 1)

    def gradient(rules: str) -> Any:
        return jax.vjp(lambda t: jaxconv.softmax_cross_entropy(logits, t, rules=rules), targets)[1](g)[0]

    dt = oracle.cross_entropy_grad(logits, targets, g)[1]
    assert_close(jax.jit(lambda: {r: gradient(r) for r in ALL_RULES})(), dict.fromkeys(ALL_RULES, dt))


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_a_masked_class_takes_no_part_and_leaves_the_loss_finite(smoothing: float) -> None:
    logits, g = normal((3, 5)), normal((3,), 1)
    logits[0, 1] = logits[1, [0, 2]] = logits[2, [0, 1, 2, 4]] = -np.inf  # the last example has one class left
    labels = np.array([0, 4, 3])
    hot = one_hot(labels, 5)
    targets = oracle.smoothed(hot, logits, smoothing)
    losses, (dz, _) = oracle.cross_entropy(logits, targets), oracle.cross_entropy_grad(logits, targets, g)
    assert np.isfinite(losses).all() and not dz[~np.isfinite(logits)].any()
    assert_close(in_logits(labels, hot, label_smoothing=smoothing)(logits, g), [(losses, dz)] * 8)


def test_a_masked_label_costs_infinitely_much_and_passes_no_gradient() -> None:
    logits = np.array([[0.0, -np.inf, 1.0]])
    for loss, dz in in_logits(np.array([1]))(logits, np.ones(1)):
        np.testing.assert_array_equal(loss, np.inf)
        np.testing.assert_array_equal(dz, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_neither_overflow_nor_lose_their_gradient(size: float, dtype: Any) -> None:
    logits = np.array([[size, 0, -size], [-size, -size, -size], [size, size, 0]], dtype)
    labels = np.array([2, 0, 1])
    p = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 0]])
    expected = np.array([2 * size, np.log(3), np.log(2)]), p - one_hot(labels, 3)
    for loss, dz in in_logits(labels)(logits, np.ones(3, dtype)):
        np.testing.assert_allclose(loss, expected[0], rtol=2e-7)
        np.testing.assert_allclose(dz, expected[1], rtol=2e-7)


def test_a_nan_logit_spoils_its_own_example_alone() -> None:
    logits = normal((2, 4))
    logits[0, 1] = np.nan
    for loss, dz in in_logits(np.array([0, 3]))(logits, np.ones(2)):
        np.testing.assert_array_equal(np.isnan(loss), [True, False])
        assert np.isnan(dz[0]).any() and np.isfinite(dz[1]).all()


FROM_ONE, LEFT_OUT = "Are they counted from 1?", "To leave examples out, pass where=labels >= 0."
WRONG = [([0, 5], 0, 5, FROM_ONE), ([-1, 2], -1, 2, LEFT_OUT), ([-7, 9], -7, 9, LEFT_OUT)]


@pytest.mark.parametrize(("labels", "low", "high", "hint"), WRONG, ids=str)
def test_a_wrong_label_raises_outside_jit(labels: list[int], low: int, high: int, hint: str) -> None:
    message = (
        "softmax_cross_entropy: labels must satisfy 0 <= label < logits.shape[-1] = 5, "
        f"but they range from {low} to {high}. {hint}"
    )
    assert refusal(lambda: jaxconv.softmax_cross_entropy(normal((2, 5)), np.array(labels)), ValueError) == message


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_a_wrong_label_gives_its_example_nan_inside_jit(dtype: Any) -> None:
    logits, labels = normal((4, 5)), np.array([-1, 0, 4, 5], dtype)
    losses = np.array([np.nan, *oracle.cross_entropy(logits[1:3], one_hot([0, 4], 5)), np.nan])

    def every(z: Any, labels: Any) -> Any:
        return {r: jaxconv.softmax_cross_entropy(z, labels, rules=r) for r in ALL_RULES}

    assert_close(jax.jit(every)(logits, labels), dict.fromkeys(ALL_RULES, losses))


def test_labels_of_eight_bits_choose_among_more_classes_than_they_can_count() -> None:
    logits, labels = normal((2, 300)), np.array([0, 255], np.uint8)
    expected = oracle.cross_entropy(logits, one_hot(labels, 300))
    assert_close(jaxconv.softmax_cross_entropy(logits, labels), expected)


def test_cross_entropy_at_the_answer_has_gradient_zero() -> None:
    logits = 3 * normal((4, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for _, dz in in_logits(p)(logits, np.ones(4)):
        np.testing.assert_allclose(dz, 0, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)], ids=str)
def test_mean_squared_error_and_its_gradients(shape: tuple[int, ...]) -> None:
    p, t = normal(shape), normal(shape, 1)

    def every(p: Any, t: Any) -> Any:
        pulls = {r: jax.vjp(lambda p, t, r=r: jaxconv.mean_squared_error(p, t, rules=r), p, t) for r in ALL_RULES}
        return {r: (y, pullback(jnp.float64(1.7))) for r, (y, pullback) in pulls.items()}

    dp = 1.7 * 2 / p.size * (p - t)
    assert_close(jax.jit(every)(p, t), dict.fromkeys(ALL_RULES, (((p - t) ** 2).mean(), (dp, -dp))))
