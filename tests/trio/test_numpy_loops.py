"""Every rule set computes what the NumPy loops compute, at every entry, within the derived bound.

All geometries in both layouts and both precisions: NHWC in float64 and NCHW in float32, since compiling is what takes
the time and no rule reads the one to decide on the other.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import conv_geometry
from jaxconv.rules import RULE_SETS, textbook
from tests.support import oracle
from tests.support.cases import CASES, FEW, Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import FEW_TRANSPOSED, TRANSPOSED, layout_of, spatial_and_taps
from tests.support.tolerance import assert_within_bound

PRECISION = {"NHWC": np.float64, "NCHW": np.float32}
MAPS = ("conv", "input_grad", "kernel_grad")
Computed = dict[str, dict[str, jax.Array]]  # by rule set and map
Expected = dict[str, oracle.Exact]


def by_rules_and_loops(case: Case, dtype: Any) -> tuple[Computed, Expected]:
    """The three maps of one convolution by every rule set, in one program, and by the loops."""
    geometry = conv_geometry("conv", case.x, case.w, **case.options)
    x, w = arrays(case, dtype)
    g = cotangent(geometry.y_shape(x.shape[0], w.shape[geometry.layout.w[0]]), dtype)

    @jax.jit
    def computed(x: jax.Array, w: jax.Array, g: jax.Array) -> Computed:
        def maps(rules: jaxconv.ConvRules) -> dict[str, jax.Array]:
            results = rules.conv(x, w, geometry), rules.input_grad(g, w, geometry), rules.kernel_grad(x, g, geometry)
            return dict(zip(MAPS, results, strict=True))

        return {name: maps(rules) for name, rules in RULE_SETS.items()}

    return computed(x, w, g), {
        "conv": oracle.exact(oracle.conv, x, w, **case.options),
        "input_grad": oracle.exact(oracle.conv_input_grad, g, w, geometry.spatial, **case.options),
        "kernel_grad": oracle.exact(oracle.conv_kernel_grad, x, g, geometry.taps, **case.options),
    }


@pytest.mark.parametrize("case", [in_layout(case, layout) for case in CASES for layout in PRECISION], ids=str)
def test_every_rule_set_is_the_loops(case: Case) -> None:
    dtype = PRECISION[layout_of(case)[0]]
    computed, expected = by_rules_and_loops(case, dtype)
    for rules, maps in computed.items():
        for name, result in maps.items():
            assert result.dtype == dtype
            assert_within_bound(result, *expected[name], what=f"{rules}.{name}")


@pytest.mark.parametrize(("case", "dtype"), [*zip(FEW, [jnp.bfloat16, jnp.float16] * 3, strict=True)], ids=str)
def test_half_precision_is_summed_in_float32_and_rounded_once(case: Case, dtype: Any) -> None:
    computed, expected = by_rules_and_loops(case, dtype)
    for rules, maps in computed.items():
        for name, result in maps.items():
            assert result.dtype == dtype
            assert_within_bound(result, *expected[name], what=f"{rules}.{name}")


@pytest.mark.parametrize("name", MAPS)
def test_the_textbook_multiplies_floats_of_16_bits_as_floats_of_32(name: str) -> None:
    """Their products are exact there. A GPU rounds some to 16 bits, whatever dtype their sum is asked for in."""
    case = FEW[0]
    geometry = conv_geometry("conv", case.x, case.w, **case.options)
    x, w = arrays(case, jnp.bfloat16)
    g = cotangent(geometry.y_shape(x.shape[0], w.shape[-1]), jnp.bfloat16)
    operands = {"conv": (x, w), "input_grad": (g, w), "kernel_grad": (x, g)}[name]
    text = jax.jit(partial(getattr(textbook, name), geometry=geometry)).lower(*operands).as_text()
    products = re.findall(r"stablehlo\.dot_general.* : \((.*), (.*)\) -> (.*)", text)
    assert products and all(kind.endswith("xf32>") for kinds in products for kind in kinds)


@pytest.mark.parametrize("case", [*TRANSPOSED, *(in_layout(case, "NCHW") for case in FEW_TRANSPOSED)], ids=str)
def test_transposed_convolution_and_its_gradients_are_the_loops(case: Case) -> None:
    """By JAX's own gradient and by ours; `test_autodiff` holds every rule set against the former."""
    options, (spatial, taps), (layout, place) = case.options, spatial_and_taps(case), layout_of(case)
    dtype = PRECISION[layout]
    x, w = arrays(case, dtype)
    b = cotangent((case.w[place.w[1]] * options.get("groups", 1),), dtype, seed=2)
    expected = oracle.exact(oracle.conv_transpose, x, w, b, **options)
    g = cotangent(expected.value.shape, dtype)
    gradients = (
        oracle.exact(oracle.conv_transpose_input_grad, g, w, spatial, **options),
        oracle.exact(oracle.conv_transpose_kernel_grad, x, g, taps, **options),
    )

    @jax.jit
    def computed(x: jax.Array, w: jax.Array, b: jax.Array, g: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        return {
            rules: (
                jaxconv.conv_transpose(x, w, b, **options, rules=rules),
                jaxconv.conv_transpose_input_grad(g, w, spatial, **options, rules=rules),
                jaxconv.conv_transpose_kernel_grad(x, g, taps, **options, rules=rules),
            )
            for rules in ("fast", "autodiff")
        }

    for rules, results in computed(x, w, b, g).items():
        for name, result, exact in zip(("y", "dx", "dw"), results, (expected, *gradients), strict=True):
            assert result.dtype == dtype
            assert_within_bound(result, *exact, what=f"{rules}: {name}")
