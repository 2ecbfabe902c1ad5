"""A border copies what the index map says, and its gradient adds each copy's δ to the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close, in_nhwc, normal, to_layout
from tests.support.rule_sets import ALL_RULES

MODES = ("zero", "circular", "reflect", "edge")

# x in NHWC and one (lo, hi) pair per spatial axis.
BORDERS = [
    ((2, 4, 2), ((2, 1),)),
    ((1, 3, 1), ((2, 2),)),  # the widest mirror
    ((2, 4, 5, 2), ((1, 1), (1, 1))),
    ((1, 4, 5, 2), ((2, 0), (-1, 3))),  # one side cropped, and the other side copies from before the crop
    ((1, 3, 4, 2), ((-1, -1), (0, -2))),
    ((2, 1, 3, 2), ((0, 0), (2, 0))),
    ((1, 3, 3, 2, 2), ((1, 2), (0, 1), (1, 0))),
    ((0, 3, 2), ((1, 1),)),
]


def value_and_pullback(padding: Any, mode: str, layout: str) -> Callable[..., Any]:
    def every(x: Any, g: Any) -> Any:
        pulls = {
            r: jax.vjp(lambda x, r=r: jaxconv.pad(x, padding, mode=mode, layout=layout, rules=r), x) for r in ALL_RULES
        }
        return {r: (y, pull(g)[0]) for r, (y, pull) in pulls.items()}

    return jax.jit(every)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "widths"), BORDERS, ids=str)
def test_value_and_gradient_are_those_of_the_index_map(shape: Any, widths: Any, mode: str) -> None:
    layout = {"layout": "NCHW" if len(shape) == 4 else "NHWC"}
    x = normal(shape)
    y = oracle.pad(x, widths, mode)
    g = normal(y.shape, seed=1)
    dx = oracle.pad_grad(shape, g, widths, mode)
    results = value_and_pullback(widths, mode, **layout)(to_layout(x, layout), to_layout(g, layout))
    assert_close(results, dict.fromkeys(ALL_RULES, (to_layout(y, layout), to_layout(dx, layout))))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_width_may_be_an_int_one_per_axis_or_pairs(layout: str) -> None:
    x = to_layout(normal((1, 4, 5, 2)), {"layout": layout})

    def every(x: Any) -> Any:
        return [jaxconv.pad(x, p, mode="reflect", layout=layout) for p in (2, (2, 2), [(2, 2), (2, 2)], (2, (2, 2)))]

    first, *others = jax.jit(every)(x)
    assert in_nhwc(np.asarray(first), {"layout": layout}).shape == (1, 8, 9, 2)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_circular_border_of_a_whole_turn_repeats_the_input() -> None:
    x = normal((1, 3, 1))
    np.testing.assert_array_equal(jaxconv.pad(x, ((3, 3),), mode="circular"), np.concatenate([x, x, x], 1))


@pytest.mark.parametrize("mode", MODES)
def test_a_border_is_adjoint_to_its_gradient(mode: str) -> None:
    """⟨A x, g⟩ = ⟨x, Aᵀ g⟩."""
    x, g = normal((2, 4, 5, 2)), normal((2, 7, 7, 2), seed=1)
    for y, dx in value_and_pullback(((1, 2), (3, -1)), mode, "NHWC")(x, g).values():
        np.testing.assert_allclose(np.vdot(y, g), np.vdot(x, dx), rtol=1e-13)
