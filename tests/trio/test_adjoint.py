"""One trilinear form, read three ways: ⟨g, conv(x, w)⟩ = ⟨input_grad(g, w), x⟩ = ⟨kernel_grad(x, g), w⟩.

The operands are random integers held in float64, so every product and every sum is exact, in any order, and the
identities hold to the last bit: nothing here has a tolerance.
"""

from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import conv_geometry
from jaxconv.rules import RULE_SETS
from tests.support.cases import CASES, FEW, Case, in_layout
from tests.support.cases_transposed import FEW_TRANSPOSED, TRANSPOSED, spatial_and_taps

CONVOLUTIONS = [*CASES, *(in_layout(case, "NCHW") for case in FEW)]
TRANSPOSES = [*TRANSPOSED, *(in_layout(case, "NCHW") for case in FEW_TRANSPOSED)]


def integers(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Random integers in float64; none is zero, so nothing is hidden."""
    rng = np.random.default_rng(5)
    return [rng.integers(1, 9, shape) * rng.choice([-1.0, 1.0], shape) for shape in shapes]


def inner(a: Any, b: Any) -> float:
    assert a.shape == b.shape
    return float(np.vdot(a, b))


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_the_three_maps_are_one_trilinear_form(case: Case) -> None:
    options, (spatial, taps) = case.options, spatial_and_taps(case)
    y = jax.eval_shape(lambda x, w: jaxconv.conv(x, w, **options), *integers(case.x, case.w))
    x, w, g = integers(case.x, case.w, y.shape)

    @jax.jit
    def maps(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        return (
            jaxconv.conv(x, w, **options),
            jaxconv.conv_input_grad(g, w, spatial, **options),
            jaxconv.conv_kernel_grad(x, g, taps, **options),
        )

    y, dx, dw = maps(x, w, g)
    assert inner(g, y) == inner(dx, x) == inner(dw, w)
    assert (inner(g, y) != 0) == (x.size > 0 and g.size > 0)


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_so_are_the_plain_functions_of_every_rule_set(case: Case, rules: str) -> None:
    geometry, maps = conv_geometry("conv", case.x, case.w, **case.options), RULE_SETS[rules]
    x, w, g = integers(case.x, case.w, geometry.y_shape(case.x[0], case.w[-1]))
    form = inner(g, jax.jit(maps.conv, static_argnums=2)(x, w, geometry))
    assert form == inner(jax.jit(maps.input_grad, static_argnums=2)(g, w, geometry), x)
    assert form == inner(jax.jit(maps.kernel_grad, static_argnums=2)(x, g, geometry), w)


@pytest.mark.parametrize("case", TRANSPOSES, ids=str)
def test_the_transposed_maps_are_one_trilinear_form(case: Case) -> None:
    options, (spatial, taps) = case.options, spatial_and_taps(case)
    y = jax.eval_shape(lambda x, w: jaxconv.conv_transpose(x, w, **options), *integers(case.x, case.w))
    x, w, g = integers(case.x, case.w, y.shape)

    @jax.jit
    def maps(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        return (
            jaxconv.conv_transpose(x, w, **options),
            jaxconv.conv_transpose_input_grad(g, w, spatial, **options),
            jaxconv.conv_transpose_kernel_grad(x, g, taps, **options),
        )

    y, dx, dw = maps(x, w, g)
    assert inner(g, y) == inner(dx, x) == inner(dw, w)
    assert (inner(g, y) != 0) == (x.size > 0 and g.size > 0)


@pytest.mark.parametrize("case", TRANSPOSES, ids=str)
def test_conv_transpose_is_the_adjoint_of_conv_with_the_same_options(case: Case) -> None:
    options = {name: value for name, value in case.options.items() if name != "output_padding"}
    # Only explicit padding says which of the sizes that a stride merges is meant.
    extra = {} if str(options.get("padding", "SAME")).startswith("SAME") else case.options
    x, w = integers(case.x, case.w)
    y = jaxconv.conv_transpose(x, w, **{**extra, **options})
    (g,) = integers(y.shape)
    assert inner(g, y) == inner(jaxconv.conv(g, w, **options), x)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_map_is_linear_in_each_operand(case: Case) -> None:
    options, (spatial, taps) = case.options, spatial_and_taps(case)
    y = jax.eval_shape(lambda x, w: jaxconv.conv(x, w, **options), *integers(case.x, case.w))
    x, w, g, u, v, h = integers(*(case.x, case.w, y.shape) * 2)
    maps = [
        (jax.jit(lambda x, w: jaxconv.conv(x, w, **options)), (x, u), (w, v)),
        (jax.jit(lambda g, w: jaxconv.conv_input_grad(g, w, spatial, **options)), (g, h), (w, v)),
        (jax.jit(lambda x, g: jaxconv.conv_kernel_grad(x, g, taps, **options)), (x, u), (g, h)),
    ]
    for of, (a, c), (b, d) in maps:
        np.testing.assert_array_equal(of(3 * a - 2 * c, b), 3 * of(a, b) - 2 * of(c, b))
        np.testing.assert_array_equal(of(a, 3 * b - 2 * d), 3 * of(a, b) - 2 * of(a, d))
