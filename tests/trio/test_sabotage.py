"""The checker rejects every wrong rule of a long list, and accepts the right ones.

Each wrong rule is the right one with one line of the derivation broken, as hand-written gradients have been broken
before. All have the right shapes and dtypes; only the numbers are wrong. What rejects them is what the other tests
use: the NumPy loops, random cotangents and the derived bound.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from experiments.verdicts.wrong_rules import (
    WRONG_BIAS_GRADS,
    WRONG_INPUT_GRADS,
    WRONG_KERNEL_GRADS,
    input_grad,
    kernel_grad,
)
from jaxconv.geometry import conv_geometry
from jaxconv.rules import RULE_SETS, ConvRules
from tests.support import oracle
from tests.support.cases import Case, arrays, cotangent
from tests.support.tolerance import error_in_bounds

# As many input as output channels, so that exchanging them leaves the shapes alone; between them they use every option.
BENCH = [
    Case((2, 5, 6, 2), (3, 3, 2, 2), {}),
    Case((2, 6, 8, 2), (3, 3, 2, 2), {"stride": (2, 3), "padding": 1}),
    Case((3, 6, 7, 4), (3, 3, 2, 4), {"groups": 2, "dilation": (2, 1), "stride": (1, 2), "padding": ((2, 0), (-1, 3))}),
    Case((2, 4, 5, 2), (3, 3, 2, 2), {"input_dilation": (2, 3), "padding": ((1, 2), (0, 1))}),
    Case((2, 5, 5, 2), (3, 3, 2, 2), {"flip_kernel": True, "stride": 2, "padding": "VALID"}),
]


RIGHT: dict[str, ConvRules] = {
    **RULE_SETS,
    "the one that the wrong ones were made of": ConvRules(input_grad, kernel_grad),
}
CANDIDATES: dict[tuple[str, str], ConvRules] = {
    **{("dx", name): ConvRules(rule, kernel_grad) for name, rule in WRONG_INPUT_GRADS.items()},
    **{("dw", name): ConvRules(input_grad, rule) for name, rule in WRONG_KERNEL_GRADS.items()},
    **{("both", name): rules for name, rules in RIGHT.items()},
}
WRONG = [
    *(("dx", name) for name in WRONG_INPUT_GRADS),
    *(("dw", name) for name in WRONG_KERNEL_GRADS),
    *(("db", name) for name in WRONG_BIAS_GRADS),
]


# The checker: the greatest error over all geometries and both gradients, in units of the bound

Errors = dict[tuple[str, str], float]
COTANGENTS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {"random": cotangent, "ones": np.ones}


def errors_on(case: Case) -> dict[str, Errors]:
    """By kind of cotangent and candidate."""
    options, (x, w) = case.options, arrays(case)
    geometry = conv_geometry("conv", x.shape, w.shape, **options)

    @jax.jit
    def gradients(x: jax.Array, w: jax.Array, g: jax.Array) -> Any:
        def pulled_back(rules: ConvRules) -> Any:
            return jax.vjp(lambda x, w: jaxconv.conv(x, w, **options, rules=rules), x, w)[1](g)

        biases = {("db", name): rule(g) for name, rule in WRONG_BIAS_GRADS.items()}
        return {label: pulled_back(rules) for label, rules in CANDIDATES.items()}, biases

    def errors(g: np.ndarray) -> Errors:
        dx = oracle.exact(oracle.conv_input_grad, g, w, geometry.spatial, **options)
        dw = oracle.exact(oracle.conv_kernel_grad, x, g, geometry.taps, **options)
        db = oracle.exact(oracle.conv_bias_grad, g)
        pairs, biases = gradients(x, w, g)
        found = {label: error_in_bounds(b, *db).max() for label, b in biases.items()}
        for label, (a, b) in pairs.items():
            found[label] = max(error_in_bounds(a, *dx).max(), error_in_bounds(b, *dw).max())
        return found

    return {kind: errors(make(geometry.y_shape(x.shape[0], w.shape[3]))) for kind, make in COTANGENTS.items()}


@pytest.fixture(scope="module")
def worst() -> dict[str, Errors]:
    bench = [errors_on(case) for case in BENCH]
    labels = [*CANDIDATES, *(("db", name) for name in WRONG_BIAS_GRADS)]
    return {kind: {label: max(errors[kind][label] for errors in bench) for label in labels} for kind in COTANGENTS}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_is_accepted(name: str, worst: dict[str, Errors]) -> None:
    assert worst["random"]["both", name] <= 1


@pytest.mark.parametrize(("gradient", "name"), WRONG)
def test_a_wrong_rule_is_rejected_by_far(gradient: str, name: str, worst: dict[str, Errors]) -> None:
    assert worst["random"][gradient, name] > 1e9, f"only {worst['random'][gradient, name]:.3g} bounds"


def test_cotangents_of_ones_let_wrong_rules_pass(worst: dict[str, Errors]) -> None:
    """Ones look the same from every example, so what mixes up the examples goes unseen."""
    passed = {label for label in WRONG if worst["ones"][label] <= 1}
    assert passed == {
        ("dx", "the batch is rolled by one"),
        ("dx", "every example is the first"),
        ("dw", "the batch of δ is rolled by one"),
    }
