"""`ceil_mode` reads what the last stride leaves over by one more window, as PyTorch does."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv import layers
from jaxconv.geometry import hung_over, window_geometry
from tests.support import oracle_ops as oracle
from tests.support.refusal import refusal
from tests.support.rule_sets import ALL_RULES

X = np.array([3.0, 1, 4, 1, 5, 9, 2]).reshape(1, 7, 1)

# window, stride, padding; then per pool y, and the gradient of Σ (1, 2, 3, …) y: what PyTorch 2.13.0 gives. Both
# are 12 times as large for averages.
PYTORCH: dict[tuple[int, int, int], dict[str, Any]] = {
    (3, 2, 0): {
        "max": ([4, 5, 9], [0, 0, 1, 0, 2, 3, 0]),
        "indices": [2, 4, 5],
        "elements": ([32, 40, 64], [4, 4, 12, 8, 20, 12, 12]),
        "taps": ([32, 40, 64], [4, 4, 12, 8, 20, 12, 12]),
    },
    (4, 4, 2): {  # the last window holds an element, two zeros of padding, and a tap beyond it
        "max": ([3, 9, 2], [1, 0, 0, 0, 0, 2, 3]),
        "indices": [0, 5, 6],
        "elements": ([24, 57, 24], [6, 6, 6, 6, 6, 6, 36]),
        "taps": ([12, 57, 8], [3, 3, 6, 6, 6, 6, 12]),
    },
    (4, 3, 2): {  # a fourth window would start in the padding
        "max": ([3, 5, 9], [1, 0, 0, 0, 2, 3, 0]),
        "indices": [0, 4, 5],
        "elements": ([24, 33, 64], [6, 12, 6, 6, 18, 12, 12]),
        "taps": ([12, 33, 48], [3, 9, 6, 6, 15, 9, 9]),
    },
}


@pytest.mark.parametrize("window", PYTORCH, ids=str)
def test_the_numbers_of_pytorch(window: tuple[int, int, int]) -> None:
    expected, (k, stride, padding) = PYTORCH[window], window
    options: dict[str, Any] = {"stride": stride, "padding": padding, "ceil_mode": True}
    pools = {
        "max": partial(jaxconv.max_pool, window=k, **options),
        "elements": lambda x, rules: 12 * jaxconv.avg_pool(x, k, rules=rules, **options),
        "taps": lambda x, rules: 12 * jaxconv.avg_pool(x, k, count_padding=True, rules=rules, **options),
    }

    def both(pool: Any, rules: str) -> Any:
        y, pullback = jax.vjp(partial(pool, rules=rules), X)
        return y.ravel(), pullback(jnp.arange(1.0, 1 + y.size).reshape(y.shape))[0].ravel()

    results = jax.jit(lambda: {(name, r): both(pool, r) for name, pool in pools.items() for r in ALL_RULES})()
    for (name, rules), (y, dx) in results.items():
        np.testing.assert_allclose(y, expected[name][0], rtol=1e-15, err_msg=f"{name}, {rules}")
        np.testing.assert_allclose(dx, expected[name][1], rtol=1e-15, err_msg=f"{name}, {rules}")
    y, indices = jaxconv.max_pool(X, k, return_indices=True, **options)
    np.testing.assert_array_equal(indices.ravel(), expected["indices"])
    back = jaxconv.max_unpool(jnp.arange(1.0, 1 + y.size).reshape(y.shape), indices, k, 7, **options)
    np.testing.assert_array_equal(back.ravel(), expected["max"][1])


def counted_or_refused(geometry: Any) -> Any:
    try:
        return hung_over("f", geometry, True).out
    except ValueError as error:
        return "cropped" if "must not crop the end" in str(error) else str(error)


def test_there_are_as_many_windows_as_the_loops_count() -> None:
    """And none of them starts in the high padding that would not without `ceil_mode`."""
    refused = 0
    for n, k, s, d, lo, hi in itertools.product(range(7), (1, 2, 4), (1, 2, 3, 5), (1, 2), (-1, 0, 1, 3), (-1, 0, 2)):
        if n + lo + hi < 0:
            continue
        options: dict[str, Any] = {"stride": s, "padding": ((lo, hi),), "dilation": d}
        plain = window_geometry("f", (n,), k, **options)
        counted = oracle.Windows((n,), k, **options, ceil_mode=True).out
        cropped = hi < 0 and counted != plain.out
        assert counted_or_refused(plain) == ("cropped" if cropped else counted), (n, k, options)
        assert hung_over("f", plain, False) == plain
        refused += cropped
    assert refused > 10


def test_same_padding_leaves_nothing_over() -> None:
    for n, k, s, d, word in itertools.product(range(1, 9), (1, 2, 3), (1, 2, 3, 5), (1, 2), ("SAME", "SAME_LOWER")):
        geometry = window_geometry("f", (n,), k, stride=s, padding=word, dilation=d)
        assert hung_over("f", geometry, True) == geometry


def test_what_padding_crops_is_not_read_again() -> None:
    message = (
        "max_pool: with ceil_mode, padding must not crop the end over which a window hangs, but padding[0] = (0, -1) "
        "and the last window along spatial axis 0 would hang over by 1. Crop first: jaxconv.pad(x, padding)."
    )
    assert refusal(lambda: jaxconv.max_pool(X[:, :6], 2, padding=((0, -1),), ceil_mode=True), ValueError) == message
    y = jaxconv.max_pool(jaxconv.pad(X[:, :6], ((0, -1),)), 2, ceil_mode=True)
    np.testing.assert_array_equal(y.ravel(), [3, 4, 5])


def test_unpool_has_to_be_told() -> None:
    y, indices = jaxconv.max_pool(X, 2, ceil_mode=True, return_indices=True)
    message = "(1, 4, 1) != (1, 3, 1). Pass the window, stride, padding, dilation and ceil_mode of the max_pool."
    assert refusal(lambda: jaxconv.max_unpool(y, indices, 2, 7), ValueError).endswith(message)


@pytest.mark.parametrize("op", [jaxconv.max_pool, jaxconv.avg_pool, partial(jaxconv.lp_pool, p=2)])
def test_it_is_true_or_false(op: Any) -> None:
    with pytest.raises(TypeError, match="ceil_mode must be True or False, but is 1"):
        op(X, window=2, ceil_mode=1)


@pytest.mark.parametrize("layer", [layers.MaxPool, layers.AvgPool])
def test_a_layer_passes_it_on(layer: Any) -> None:
    pool = layer(2, ceil_mode=True)
    params, state, shape = pool.init(jax.random.key(0), X.shape)
    y, _ = pool.apply(params, state, jnp.asarray(X))
    assert shape == y.shape == (1, 4, 1) and y[0, -1, 0] == 2
