"""Pools give what loops over windows give, and so do their gradients, under every rule set."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close, in_nhwc, normal, to_layout
from tests.support.rule_sets import ALL_RULES, RULES


class Pool(NamedTuple):
    """The shape of x in NHWC, a window and its options."""

    x: tuple[int, ...]
    window: Any
    options: dict[str, Any]

    def __str__(self) -> str:
        items = [f"{k}={v}" for k, v in self.options.items()]
        return "-".join(["x".join(map(str, self.x)), f"window={self.window}", *items]).replace(" ", "")


POOLS = [
    Pool((2, 7, 2), 2, {"layout": "NCHW"}),
    Pool((2, 9, 2), 3, {"stride": 2, "padding": "SAME"}),
    Pool((1, 8, 3), 3, {"stride": 1, "padding": ((2, -1),), "dilation": 2}),
    Pool((2, 3, 2), 2, {"stride": 1, "padding": 3}),  # windows of nothing but padding
    Pool((2, 6, 4, 2), 2, {}),
    Pool((2, 7, 6, 2), (2, 3), {"padding": ((1, 0), (-1, 2))}),  # side by side, padded and cropped
    Pool((1, 4, 5, 4, 2), (2, 1, 3), {"padding": "SAME", "layout": "NCHW"}),
    Pool((2, 5, 6, 2), 3, {"stride": 2, "padding": 1, "layout": "NCHW"}),  # overlapping
    Pool((2, 5, 6, 2), (3, 2), {"stride": (2, 3), "padding": "SAME_LOWER"}),
    Pool((2, 6, 5, 2), (2, 3), {"stride": 1, "padding": ((0, 1), (-1, 2)), "dilation": (2, 1), "layout": "NCHW"}),
    Pool((1, 7, 5, 2), 2, {"stride": 3}),  # elements that no window reads
    Pool((1, 4, 5, 4, 2), (2, 3, 2), {"stride": (2, 1, 3), "padding": (1, 0, 1)}),
    Pool((2, 3, 3, 2), 4, {}),  # the window does not fit
    Pool((0, 4, 4, 2), 2, {}),
]
OVERLAPPING = POOLS[5]
HANGING = [  # one more window, which ends beyond the end
    Pool((2, 5, 6, 2), (2, 4), {"ceil_mode": True}),  # side by side
    Pool((2, 7, 6, 2), (2, 3), {"stride": (3, 2), "padding": ((0, 1), (2, 1)), "dilation": (2, 1), "ceil_mode": True}),
    Pool((1, 3, 4, 5, 2), (2, 3, 2), {"stride": (2, 2, 3), "padding": (0, 1, 0), "ceil_mode": True, "layout": "NCHW"}),
    Pool((2, 3, 2), 4, {"stride": 2, "ceil_mode": True}),  # the only one
    Pool((2, 5, 2), 4, {"stride": 3, "padding": 1, "ceil_mode": True}),  # it would start in the padding: there is none
]

KINDS: dict[str, tuple[Callable[..., Any], oracle.Of]] = {
    "max_pool": (jaxconv.max_pool, oracle.largest),
    "avg_pool": (jaxconv.avg_pool, oracle.mean_of_elements),
    "avg_pool-count_padding": (partial(jaxconv.avg_pool, count_padding=True), oracle.mean_of_taps),
    **{f"lp_pool-{p}": (partial(jaxconv.lp_pool, p=p), oracle.norm_of(p)) for p in (2, 2.5)},
}


def loops(of: oracle.Of, case: Pool, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and dx by loops, in the case's layout."""
    options = {k: v for k, v in case.options.items() if k != "layout"}
    x, g = in_nhwc(x, case.options), in_nhwc(g, case.options)
    pair = oracle.pool(of, x, case.window, **options), oracle.pool_grad(of, x, g, case.window, **options)
    return tuple(to_layout(a, case.options) for a in pair)


def value_and_pullback(op: Callable[..., Any], case: Pool, rules: str) -> Callable[..., Any]:
    def both(x: Any, g: Any) -> tuple[Any, Any]:
        y, pullback = jax.vjp(lambda x: op(x, case.window, rules=rules, **case.options), x)
        return y, pullback(g)[0]

    return both


def arguments(case: Pool) -> tuple[np.ndarray, np.ndarray]:
    x = to_layout(normal(case.x), case.options)
    return x, normal(jax.eval_shape(lambda x: jaxconv.avg_pool(x, case.window, **case.options), x).shape, seed=1)


@pytest.mark.parametrize("case", POOLS + HANGING, ids=str)
def test_value_and_gradient_are_those_of_the_loops(case: Pool) -> None:
    cells = [(kind, rules) for kind in KINDS for rules in ("textbook", "fast", "autodiff")]

    def every(x: Any, g: Any) -> Any:
        return {cell: value_and_pullback(KINDS[cell[0]][0], case, cell[1])(x, g) for cell in cells}

    x, g = arguments(case)
    expected = {kind: loops(of, case, x, g) for kind, (_, of) in KINDS.items()}
    assert_close(jax.jit(every)(x, g), {cell: expected[cell[0]] for cell in cells})


@pytest.mark.parametrize("rules", ALL_RULES)
def test_max_pool_crops_where_padding_is_negative(rules: str) -> None:
    case = Pool((2, 7, 6, 2), 2, {"stride": (1, 2), "padding": ((-1, 2), (1, -2))})
    x, g = arguments(case)
    actual = jax.jit(value_and_pullback(jaxconv.max_pool, case, rules))(x, g)
    assert_close(actual, loops(oracle.largest, case, x, g))


def check_max_pool(x: np.ndarray, window: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The written rules, indices included, against the loops; returns what the loops give."""
    case = Pool(x.shape, window, options)
    g = normal(arguments(case)[1].shape, seed=1)

    def every(x: Any, g: Any) -> Any:
        indices = jaxconv.max_pool(x, window, return_indices=True, **options)[1]
        return indices, {r: value_and_pullback(jaxconv.max_pool, case, r)(x, g) for r in RULES}

    expected = loops(oracle.largest, case, x, g)
    indices, results = jax.jit(every)(x, g)
    assert_close(results, dict.fromkeys(RULES, expected))
    np.testing.assert_array_equal(indices, oracle.largest_positions(x, window, **options))
    return expected


def test_max_pool_gives_a_tie_to_the_first_tap_alone() -> None:
    x = np.random.default_rng(0).integers(0, 3, (2, 6, 6, 2)).astype(np.float64)
    check_max_pool(x, 3, stride=2, padding=1)


@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool_passes_nan_on_and_its_gradient_to_the_first_nan(dilation: int) -> None:
    x = normal((1, 7, 6, 1))
    x[0, [1, 2, 5], [1, 2, 4], 0] = np.nan
    y, dx = check_max_pool(x, 2, stride=1, dilation=dilation)
    assert np.isnan(y).sum() > 3 and not np.isnan(dx).any()


def test_max_pool_knows_an_infinitely_small_element_from_padding() -> None:
    """A window of padding and elements −∞ holds elements: it has an index, and the first of them gets δ."""
    x = np.full((1, 4, 4, 1), -np.inf)
    x[0, 3, 3] = 1
    check_max_pool(x, 3, stride=1, padding=1)


@pytest.mark.parametrize("case", POOLS[:10] + HANGING[:4], ids=str)
def test_indices_are_row_major_positions_and_unpool_puts_values_back(case: Pool) -> None:
    x, g = arguments(case)
    sizes = case.x[1:-1]
    options = {k: v for k, v in case.options.items() if k != "layout"}
    positions = oracle.largest_positions(in_nhwc(x, case.options), case.window, **options)

    def round_trip(x: Any, g: Any) -> Any:
        y, indices = jaxconv.max_pool(x, case.window, return_indices=True, **case.options)
        back = {r: jaxconv.max_unpool(g, indices, case.window, sizes, rules=r, **case.options) for r in ALL_RULES}
        return y, indices, back

    y, indices, back = jax.jit(round_trip)(x, g)
    assert indices.dtype == jnp.int32
    assert_close(y, loops(oracle.largest, case, x, g)[0])
    np.testing.assert_array_equal(in_nhwc(np.asarray(indices), case.options), positions)
    expected = to_layout(oracle.unpool(in_nhwc(g, case.options), positions, sizes), case.options)
    assert_close(back, dict.fromkeys(ALL_RULES, expected))


@pytest.mark.parametrize("case", [POOLS[4], OVERLAPPING, HANGING[1]], ids=["apart", "overlapping", "hanging"])
def test_unpool_takes_its_gradient_from_where_it_put(case: Pool) -> None:
    x, g = arguments(case)
    g2 = normal(x.shape, seed=2)
    options = {k: v for k, v in case.options.items() if k != "layout"}
    at = oracle.largest_positions(in_nhwc(x, case.options), case.window, **options)
    indices = to_layout(at, case.options)

    def pulled(y: Any, g2: Any) -> Any:
        def unpool(y: Any, rules: str) -> Any:
            return jaxconv.max_unpool(y, indices, case.window, case.x[1:-1], rules=rules, **case.options)

        return {r: jax.vjp(partial(unpool, rules=r), y)[1](g2)[0] for r in ALL_RULES}

    flat = in_nhwc(g2, case.options).reshape(case.x[0], -1, case.x[-1])
    taken = np.take_along_axis(flat, at.reshape(case.x[0], -1, case.x[-1]), 1).reshape(at.shape)
    assert_close(jax.jit(pulled)(g, g2), dict.fromkeys(ALL_RULES, to_layout(taken, case.options)))


@pytest.mark.parametrize("kind", ["avg_pool", "avg_pool-count_padding"])
@pytest.mark.parametrize("case", [POOLS[2], OVERLAPPING, POOLS[9], HANGING[1]], ids=str)
def test_an_average_pool_is_adjoint_to_its_gradient(case: Pool, kind: str) -> None:
    """⟨A x, g⟩ = ⟨x, Aᵀ g⟩."""
    x, g = arguments(case)
    y, dx = jax.jit(value_and_pullback(KINDS[kind][0], case, "fast"))(x, g)
    np.testing.assert_allclose(np.vdot(y, g), np.vdot(x, dx), rtol=1e-13)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 2), (1, 2, 3, 2, 2)], ids=str)
def test_global_avg_pool_is_the_mean_and_shares_its_gradient_evenly(shape: tuple[int, ...], layout: str) -> None:
    options = {"layout": layout}
    x, g = normal(shape), normal((shape[0], shape[-1]), seed=1)

    def every(x: Any, g: Any) -> Any:
        pulls = {r: jax.vjp(lambda x, r=r: jaxconv.global_avg_pool(x, layout=layout, rules=r), x) for r in ALL_RULES}
        return {r: (y, pull(g)[0]) for r, (y, pull) in pulls.items()}

    spatial = tuple(range(1, x.ndim - 1))
    m = np.prod(shape[1:-1])
    dx = to_layout(np.broadcast_to(np.expand_dims(g / m, spatial), shape), options)
    expected = x.sum(spatial) / m, dx
    assert_close(jax.jit(every)(to_layout(x, options), g), dict.fromkeys(ALL_RULES, expected))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_lp_pool_has_derivative_zero_at_zero_to_second_order(p: float) -> None:
    """The first window is all zero, in the second one element is."""
    x = np.array([0.0, 0, 0, 0, -4, 1]).reshape(1, 6, 1)
    v = np.arange(1.0, 7).reshape(x.shape)

    def derivatives(x: Any, rules: str) -> Any:
        gradient = jax.grad(lambda x: jaxconv.lp_pool(x, 3, p, rules=rules).sum())
        return gradient(x), jax.grad(lambda x: jnp.vdot(gradient(x), v))(x)

    every = jax.jit(lambda x: {r: derivatives(x, r) for r in ALL_RULES})(x)
    slope = oracle.pool_grad(oracle.norm_of(p), np.where(x == 0, 1e-300, x), np.ones((1, 2, 1)), 3) * (x != 0)
    assert_close({r: first for r, (first, _) in every.items()}, dict.fromkeys(ALL_RULES, slope))
    for rules, (_, second) in every.items():
        assert np.isfinite(second).all(), rules
        np.testing.assert_array_equal(second[x == 0], 0, err_msg=rules)


# What is compiled


def operations(f: Callable[..., Any]) -> list[str]:
    """The operations that `f` lowers to on an image."""
    text = jax.jit(f).lower(jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)).as_text()
    return re.findall(r"stablehlo\.(\w+)", text)


def test_the_gradient_of_max_pool_scatters_nothing() -> None:
    found = operations(jax.grad(lambda x: jaxconv.max_pool(x, 3, stride=2, padding=1).sum()))
    assert "pad" in found
    assert not {"scatter", "select_and_scatter", "gather", "dynamic_update_slice", "reduce_window"} & set(found)


def test_an_undifferentiated_max_pool_is_a_single_reduce_window() -> None:
    found = operations(partial(jaxconv.max_pool, window=3, stride=2, padding=1))
    assert found.count("reduce_window") == 1
    assert not {"slice", "compare", "select"} & set(found)


@pytest.mark.parametrize(("window", "dtype"), [((16, 16), jnp.uint8), ((257, 1), jnp.uint16)], ids=["256", "257"])
def test_max_pool_remembers_winners_in_the_smallest_integer(window: tuple[int, int], dtype: Any) -> None:
    """Besides what y itself is, a differentiated call keeps nothing of x's dtype."""
    x = jax.ShapeDtypeStruct((1, 300, 20, 2), jnp.float32)
    y, pullback = jax.eval_shape(lambda x: jax.vjp(lambda x: jaxconv.max_pool(x, window), x), x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.shape]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(y.shape, dtype)]
