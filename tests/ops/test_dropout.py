"""Dropout drops at its rate, keeps the expectation, and its gradient passes through the same mask."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from tests.support.cases_ops import assert_close, normal
from tests.support.rule_sets import ALL_RULES

KEY = jax.random.key(7)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate_and_the_others_scaled_to_keep_the_expectation(rate: float) -> None:
    n = 2000
    y = np.asarray(jaxconv.dropout(np.ones(n), rate, KEY))
    deviation = np.sqrt(n * rate * (1 - rate))
    assert abs(np.count_nonzero(y == 0) - n * rate) < 4 * deviation
    np.testing.assert_array_equal(y[y != 0], 1 / (1 - rate))
    np.testing.assert_allclose(y.mean(), 1, atol=4 * deviation / n / (1 - rate))


def test_the_gradient_passes_through_the_same_mask() -> None:
    x, g = normal((6, 50)), normal((6, 50), 1)

    def every(x: Any, g: Any) -> Any:
        pulls = {r: jax.vjp(lambda x, r=r: jaxconv.dropout(x, 0.4, KEY, rules=r), x) for r in ALL_RULES}
        return {r: (y, pullback(g)[0]) for r, (y, pullback) in pulls.items()}

    kept = np.asarray(jaxconv.dropout(np.ones_like(x), 0.4, KEY)) != 0
    assert 0 < kept.sum() < kept.size
    assert_close(jax.jit(every)(x, g), dict.fromkeys(ALL_RULES, (x * kept / 0.6, g * kept / 0.6)))


def test_a_key_draws_one_mask_and_another_key_another() -> None:
    drop = jax.jit(partial(jaxconv.dropout, np.ones(2000), 0.5))
    first = drop(KEY)
    np.testing.assert_array_equal(drop(KEY), first)
    np.testing.assert_array_equal(jaxconv.dropout(np.ones(2000), 0.5, KEY), first)
    for other in (jax.random.key(8), *jax.random.split(KEY)):
        assert np.mean(drop(other) != first) > 0.4


def test_a_key_draws_the_same_mask_with_and_without_x64() -> None:
    x = np.ones(2000, np.float32)
    with jax.enable_x64(False):
        narrow = jaxconv.dropout(x, 0.5, KEY)
    np.testing.assert_array_equal(jaxconv.dropout(x, 0.5, KEY), narrow)


def test_a_raw_key_serves_like_a_typed_one() -> None:
    x = np.ones(2000)
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(jaxconv.dropout(x, 0.5, raw), jaxconv.dropout(x, 0.5, KEY))


def test_vmapped_keys_draw_a_mask_each() -> None:
    keys = jax.random.split(KEY, 3)
    drop = partial(jaxconv.dropout, np.ones(2000), 0.5)
    masks = jax.jit(jax.vmap(drop))(keys)
    np.testing.assert_array_equal(masks, [drop(key) for key in keys])
    assert len({np.asarray(mask).tobytes() for mask in masks}) == 3


def test_a_dropped_nan_is_gone() -> None:
    x = np.full(2000, np.nan)
    kept = np.asarray(jaxconv.dropout(np.ones(2000), 0.5, KEY)) != 0
    np.testing.assert_array_equal(np.isnan(jaxconv.dropout(x, 0.5, KEY)), kept)


@pytest.mark.parametrize("rate", [0, 0.0])
def test_rate_zero_is_the_identity(rate: float) -> None:
    x, g = normal((5, 4)), normal((5, 4), 1)
    y, pullback = jax.vjp(lambda x: jaxconv.dropout(x, rate, KEY), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pullback(g)[0], g)
