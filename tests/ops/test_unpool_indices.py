"""Indices that `max_unpool` cannot place are named where they are known, with the convention and the way out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.cases_ops import normal, to_layout
from tests.support.refusal import refusal

X = normal((2, 6, 4, 3))
Y, INDICES = (np.asarray(a) for a in jaxconv.max_pool(X, 2, return_indices=True))
EXAMPLE, _, _, CHANNEL = np.indices(Y.shape)

RULE = (
    "max_unpool: indices must be row-major positions in spatial_shape = %s, for each example and channel on its own, "
    "that lie in their window (or -1, nowhere), but "
)
OTHER = (
    "Were they made for another shape, or with another window, stride, padding, dilation or ceil_mode? "
    "Take those of max_pool(..., return_indices=True)."
)


def complaint(indices: Any, spatial: Any = (6, 4), y: Any = Y, **options: Any) -> str:
    """What follows the rule in the message."""
    rule, found = RULE % (spatial,), refusal(lambda: jaxconv.max_unpool(y, indices, 2, spatial, **options), ValueError)
    assert found.startswith(rule)
    return found.removeprefix(rule)


def test_tensorflow_counts_the_channels_last() -> None:
    """And, if told to, the examples before all."""
    for theirs in (INDICES * 3 + CHANNEL, (EXAMPLE * 24 + INDICES) * 3 + CHANNEL):
        assert complaint(theirs).endswith("They count channels last, as TensorFlow does: pass indices // 3 % 24.")
        np.testing.assert_array_equal(theirs // 3 % 24, INDICES)


def test_an_argmax_over_whole_channels_first_examples_counts_them_too() -> None:
    for theirs in (CHANNEL * 24 + INDICES, (EXAMPLE * 3 + CHANNEL) * 24 + INDICES):
        assert complaint(theirs).endswith("They count over channels or examples first: pass indices % 24.")
        np.testing.assert_array_equal(theirs % 24, INDICES)


def test_indices_of_another_shape() -> None:
    """The same windows over rows of five elements instead of four."""
    rows, columns = np.divmod(INDICES, 4)
    assert complaint(rows * 5 + columns).endswith(OTHER)


def test_the_first_wrong_index_is_shown_with_its_window() -> None:
    wrong = INDICES.copy()
    wrong[0, 1, 1, 2], wrong[1, 2, 0, 0] = 3, -2
    assert complaint(wrong) == f"2 of 36 do not: indices[0, 1, 1, 2] = 3, and the window there is [2:4, 2:4]. {OTHER}"


def test_a_window_ends_where_it_ends() -> None:
    """The middle one of three reads positions 2 and 3."""
    y, at = np.ones((1, 3, 1)), {position: np.array([0, position, 4]).reshape(1, 3, 1) for position in range(6)}
    for position in (2, 3):
        assert jaxconv.max_unpool(y, at[position], 2, 6)[0, position, 0] == 1
    for position in (0, 1, 4, 5):
        found = complaint(at[position], (6,), y)
        assert found.startswith(f"1 of 3 do not: indices[0, 1, 0] = {position}, and the window there is [2:4]")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_gaps_of_a_dilated_window_are_not_in_it(layout: str) -> None:
    """Windows of span 3 that start at −1, 1, 3: the middle of each is not read."""
    y, options = to_layout(np.ones((1, 3, 1)), {"layout": layout}), {"stride": 2, "padding": 1, "dilation": 2}
    at = to_layout(np.array([1, 3, 5]).reshape(1, 3, 1), {"layout": layout})
    x = jaxconv.max_unpool(y, at, 2, 6, layout=layout, **options)
    np.testing.assert_array_equal(np.ravel(x), [0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"1 of 3 do not: .* = 2, and the window there is \[1:4\]"):
        jaxconv.max_unpool(y, np.where(at == 3, 2, at), 2, 6, layout=layout, **options)


def test_minus_one_is_nowhere() -> None:
    indices = np.where(CHANNEL == 1, -1, INDICES)
    x = jaxconv.max_unpool(Y, indices, 2, (6, 4))
    np.testing.assert_array_equal(x, np.where(np.arange(3) == 1, 0, jaxconv.max_unpool(Y, INDICES, 2, (6, 4))))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_any_integer_can_be_an_index(dtype: Any) -> None:
    y, at = np.ones((1, 2, 1)), np.array([7, 255], dtype).reshape(1, 2, 1)
    x = jaxconv.max_unpool(y, at, 200, 400)
    np.testing.assert_array_equal(np.flatnonzero(np.ravel(x)), [7, 255])


def test_eight_bits_do_not_reach_beyond_position_255() -> None:
    """44 is not 300."""
    y, at = np.ones((1, 1, 1)), np.array([44], np.uint8).reshape(1, 1, 1)
    with pytest.raises(ValueError, match="1 of 1 do not"):
        jaxconv.max_unpool(y, at, 100, 400, padding=((-300, 0),))


def test_there_is_no_position_where_there_is_no_element() -> None:
    y, nowhere = np.ones((1, 1, 1)), np.full((1, 1, 1), -1)
    assert jaxconv.max_unpool(y, nowhere, 2, 0, padding=1).shape == (1, 0, 1)
    with pytest.raises(ValueError, match=r"spatial_shape = \(0,\)"):
        jaxconv.max_unpool(y, nowhere + 1, 2, 0, padding=1)


def test_a_differentiated_call_checks_them_too() -> None:
    def loss(y: Any) -> jax.Array:
        return jaxconv.max_unpool(y, INDICES * 3 + CHANNEL, 2, (6, 4)).sum()

    with pytest.raises(ValueError, match="as TensorFlow does"):
        jax.grad(loss)(Y)


def test_under_jit_and_vmap_an_unknown_index_that_is_wrong_puts_nothing() -> None:
    y, indices = jnp.ones((1, 2, 1)), jnp.array([3, 2]).reshape(1, 2, 1)

    def unpool(y: Any, indices: Any) -> jax.Array:
        return jaxconv.max_unpool(y, indices, 2, 4)

    np.testing.assert_array_equal(jax.jit(unpool)(y, indices).ravel(), [0, 0, 1, 0])
    np.testing.assert_array_equal(jax.vmap(unpool)(y[None], indices[None]).ravel(), [0, 0, 1, 0])
