"""Slopes by differences: near kinks, at kinks, and where nothing moves."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.gradcheck.problem import prepare
from jaxconv.gradcheck.slope import differentiator


def slope(f: Any, x: float, value: float, bound: float = 1e-7) -> tuple[float, float, Any]:
    """The slope of f at x, were `value` expected of it."""
    along = differentiator(prepare("check", f, (jnp.float32(x),)))
    return along([np.asarray(x)], [np.asarray(1.0)], [np.asarray(1.0)], bound, value)


def bent(at: float) -> Any:
    """Slope 1 below `at`, 2 above."""
    return lambda x: x + jnp.maximum(x - at, 0)


@pytest.mark.parametrize("distance", [2.0**-k for k in (3, 6, 9, 12, 15, 18)])
def test_the_slope_on_this_side_of_a_kink(distance: float) -> None:
    for value, at in ((1.0, 0.7 + distance), (2.0, 0.7 - distance)):
        found, error, _ = slope(bent(at), 0.7, value)
        assert abs(found - value) <= 1e-7 + 4 * error and error < 1e-7


@pytest.mark.parametrize("distance", [2.0**-k for k in (3, 6, 9, 12, 15, 18, 21)])
def test_a_wrong_value_is_not_excused_by_a_kink_nearby(distance: float) -> None:
    found, error, sides = slope(bent(0.7 + distance), 0.7, 1.01)
    assert abs(found - 1.01) > 1e-7 + 4 * error or (sides and abs(sides[0] - sides[1]) >= 0.1 * abs(found - 1.01))


@pytest.mark.parametrize("distance", [0.0, 2.0**-21])
def test_both_slopes_at_a_kink(distance: float) -> None:
    _, _, sides = slope(bent(0.5 + distance), 0.5, 1.0)
    assert sides == pytest.approx((2.0, 1.0), abs=1e-2)


def test_what_is_absorbed_is_no_slope_of_zero() -> None:
    """1 + 1e-20·x does not move at any step; that it might is in the error."""
    found, error, _ = slope(lambda x: 1 + 1e-20 * x, 0.7, 1e-20)
    assert found == 0 and error > 1e-20
