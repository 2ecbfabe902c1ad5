"""What `where` leaves out costs exactly nothing, whatever stands there; the rest is as if it had never been."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close, normal
from tests.support.rule_sets import ALL_RULES

# Two sequences of three, one of them shorter; and what may stand in its padding.
KEPT = np.array([[True, True, True], [True, False, False]])
GARBAGE = np.array([[np.nan, np.inf, -np.inf, 3.0], [-np.inf] * 4])


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels; −100 and garbage where nothing counts."""
    logits = 2 * normal((2, 3, 4))
    logits[~KEPT] = GARBAGE
    return logits, np.where(KEPT, [[3, 0, 1], [2, 0, 0]], -100)


def on_kept(f: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """f of the examples that count, 0 at the others."""
    value = f(*(a[KEPT] for a in arrays))
    whole = np.zeros((*KEPT.shape, *value.shape[1:]))
    whole[KEPT] = value
    return whole


def softmax_slope(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The derivative of softmax along v: (diag p − p pᵀ) v."""
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return p * v - p * (p * v).sum(-1, keepdims=True)


def derivatives(f: Callable[..., jax.Array], rules: str, z: Any, g: Any, v: Any) -> Any:
    """y, Jᵀ g and its derivative along v; with a forward mode, J v."""

    def gradient(z: Any) -> Any:
        return jax.vjp(partial(f, rules=rules), z)[1](g)[0]

    second = jax.grad(lambda z: jnp.vdot(gradient(z), v))(z)
    forward = jax.jvp(partial(f, rules=rules), (z,), (v,))[1] if rules in ("fast", "autodiff") else None
    return f(z, rules=rules), gradient(z), second, forward


@pytest.mark.parametrize("smoothing", [0, 0.2])
def test_an_example_left_out_has_loss_and_derivatives_zero(smoothing: float) -> None:
    logits, labels = batch()
    g, v, hot = normal((2, 3), 1), normal(logits.shape, 2), np.eye(4)[np.maximum(labels, 0)]
    hot[~KEPT] = [[np.nan, 1, 0, 5], [0, 0, 0, 0]]

    def every(z: Any, g: Any, v: Any) -> Any:
        def one(labels: Any, rules: str) -> Any:
            f = partial(jaxconv.softmax_cross_entropy, labels=labels, where=KEPT, label_smoothing=smoothing)
            return derivatives(f, rules, z, g, v)

        return {f"{rules}, {len(t.shape)} axes": one(t, rules) for t in (labels, hot) for rules in ALL_RULES}

    targets = on_kept(lambda t, z: oracle.smoothed(t, z, smoothing), hot, logits)
    losses = on_kept(oracle.cross_entropy, logits, targets)
    dz = on_kept(lambda *a: oracle.cross_entropy_grad(*a)[0], logits, targets, g)
    curved = on_kept(lambda z, g, v: g[:, None] * softmax_slope(z, v), logits, g, v)
    slopes = on_kept(lambda z, t: oracle.cross_entropy_grad(z, t, np.ones(len(z)))[0], logits, targets)
    for rules, (y, first, second, forward) in jax.jit(every)(logits, g, v).items():
        assert_close((y, first, second), (losses, dz, curved))
        assert not y[~KEPT].any() and not first[~KEPT].any() and not second[~KEPT].any(), rules
        has_forward = rules.startswith(("fast", "autodiff"))
        assert_close(forward, (slopes * v).sum(-1) if has_forward else None)


def test_the_gradient_in_the_labels_of_an_example_left_out_is_zero() -> None:
    logits, targets, g = batch()[0], np.random.default_rng(1).uniform(0.1, 1, (2, 3, 4)), normal((2, 3), 1)

    def every(t: Any) -> Any:
        f = partial(jaxconv.softmax_cross_entropy, logits, where=KEPT)
        return {r: jax.vjp(lambda t, r=r: f(t, rules=r), t)[1](g)[0] for r in ALL_RULES}

    dt = on_kept(lambda *a: oracle.cross_entropy_grad(*a)[1], logits, targets, g)
    assert_close(jax.jit(every)(targets), dict.fromkeys(ALL_RULES, dt))


def test_eagerly_under_jit_and_under_vmap_it_is_the_same() -> None:
    logits, labels = batch()

    def gradient(z: Any, labels: Any, where: Any) -> Any:
        return jax.grad(lambda z: jaxconv.softmax_cross_entropy(z, labels, where=where).sum())(z)

    eager = gradient(logits, labels, KEPT)
    assert not eager[~KEPT].any() and eager[KEPT].all()
    assert_close(jax.jit(gradient)(logits, labels, KEPT), eager)
    assert_close(jax.jit(jax.vmap(gradient))(logits, labels, KEPT), eager)
    assert_close(jax.jit(jax.vmap(jax.vmap(gradient)))(logits, labels, KEPT), eager)


def test_an_axis_of_size_one_is_shared() -> None:
    logits, labels = normal((2, 3, 4)), np.array([[0, 1, 2], [9, 9, 9]])
    rows = np.array([[True], [False]])
    losses = jaxconv.softmax_cross_entropy(logits, labels, where=rows)
    assert_close(losses[0], jaxconv.softmax_cross_entropy(logits[0], labels[0]))
    np.testing.assert_array_equal(losses[1], 0)
    assert_close(jaxconv.softmax_cross_entropy(logits, labels, where=rows[..., None]), losses)


def test_a_class_left_out_is_a_class_whose_logit_is_minus_infinity() -> None:
    logits, labels, g = normal((3, 4)), np.array([0, 1, 3]), normal((3,), 1)
    where = np.array([[True, True, False, True], [True, True, True, True], [False, False, False, True]])
    minus = np.where(where, logits, -np.inf)
    logits[~where] = np.nan

    def every(z: Any, **options: Any) -> Any:
        f = partial(jaxconv.softmax_cross_entropy, labels=labels, label_smoothing=0.3, **options)
        pulls = {r: jax.vjp(lambda z, r=r: f(z, rules=r), z) for r in ALL_RULES}
        return {r: (y, pull(g)[0]) for r, (y, pull) in pulls.items()}

    actual = jax.jit(partial(every, where=where))(logits)
    assert_close(actual, jax.jit(every)(minus))
    assert all(np.isfinite(y).all() and not dz[~where].any() for y, dz in actual.values())
    one_row = jaxconv.softmax_cross_entropy(minus[:1], labels[:1], where=where[:1])
    assert_close(jaxconv.softmax_cross_entropy(logits[:1], labels[:1], where=where[:1]), one_row)


def test_a_label_left_out_of_its_example_costs_infinitely_much() -> None:
    where = np.array([[True, False, True]])
    for rules in ALL_RULES:
        f = partial(jaxconv.softmax_cross_entropy, labels=np.array([1]), where=where, rules=rules)
        loss, pullback = jax.vjp(f, normal((1, 3)))
        np.testing.assert_array_equal(loss, np.inf)
        np.testing.assert_array_equal(pullback(np.ones(1))[0], 0)


def test_a_wrong_label_raises_where_it_counts_and_only_there() -> None:
    logits, labels = batch()
    jaxconv.softmax_cross_entropy(logits, labels, where=KEPT)
    with pytest.raises(ValueError, match="they range from -100 to 3"):
        jaxconv.softmax_cross_entropy(logits, labels, where=np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="they range from 0 to 7"):
        jaxconv.softmax_cross_entropy(logits, np.where(KEPT, [[3, 0, 1], [7, 0, 0]], -100), where=KEPT)
    inside = jax.jit(jaxconv.softmax_cross_entropy)(logits, np.full((2, 3), 4), where=KEPT)
    np.testing.assert_array_equal(np.isnan(inside), KEPT)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 1), (1, 3, 1)], ids=str)
def test_mean_squared_error_is_the_mean_over_what_counts(shape: tuple[int, ...]) -> None:
    p, t, where = normal((2, 3, 4)), normal((2, 3, 4), 1), np.random.default_rng(2).integers(0, 2, shape).astype(bool)
    where.flat[:2] = True, False
    kept = np.broadcast_to(where, p.shape)
    error = np.where(kept, p - t, 0)
    p[~kept], t[~kept] = np.nan, np.inf

    def every(p: Any, t: Any) -> Any:
        f = partial(jaxconv.mean_squared_error, where=where)
        pulls = {r: jax.vjp(lambda p, t, r=r: f(p, t, rules=r), p, t) for r in ALL_RULES}
        return {r: (y, pull(jnp.float64(1.7))) for r, (y, pull) in pulls.items()}

    dp = 1.7 * 2 / kept.sum() * error
    assert_close(jax.jit(every)(p, t), dict.fromkeys(ALL_RULES, ((error**2).sum() / kept.sum(), (dp, -dp))))
