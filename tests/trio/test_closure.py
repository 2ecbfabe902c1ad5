"""The three maps are each other's transposes: the table of `jaxconv.rules`, and the shapes it speaks of."""

from __future__ import annotations

import pytest

from jaxconv.geometry import conv_geometry
from jaxconv.rules import CONV, INPUT_GRAD, KERNEL_GRAD, TRIO, Map
from tests.support.cases import CASES, Case, arrays, in_layout
from tests.support.oracle import conv

TABLE = {
    CONV: (INPUT_GRAD, KERNEL_GRAD),
    INPUT_GRAD: (CONV, KERNEL_GRAD),
    KERNEL_GRAD: (INPUT_GRAD, CONV),
}


@pytest.mark.parametrize("of", TRIO, ids=lambda of: of.name)
def test_the_transposes_of_a_map_are_the_other_two(of: Map) -> None:
    assert of.transposes == TABLE[of]


@pytest.mark.parametrize("of", TRIO, ids=lambda of: of.name)
def test_a_map_is_the_transpose_of_its_transposes(of: Map) -> None:
    for array, back in zip(of.takes, of.transposes, strict=True):
        assert of in back.transposes and back.makes == array and of.makes in back.takes


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_map_makes_the_shape_of_the_third_array(case: Case, layout: str) -> None:
    case = in_layout(case, layout)
    x, w = arrays(case)
    shapes = {"x": x.shape, "w": w.shape, "y": conv(x, w, **case.options).shape}
    geometry = conv_geometry("conv", x.shape, w.shape, **case.options)
    for of in TRIO:
        assert of.shape(geometry, *(shapes[array] for array in of.takes)) == shapes[of.makes]
