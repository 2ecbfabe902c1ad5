"""The gradient that `jax.vjp` takes of an op is JAX's own, whichever rules are bound; so is the standalone gradient."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.ops.arguments import RULES
from jaxconv.rules import RULE_SETS, ConvRules, rotated
from tests.support import oracle
from tests.support.cases import CASES, FEW, Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import FEW_TRANSPOSED, TRANSPOSED, layout_of, spatial_and_taps
from tests.support.tolerance import assert_within_bound

Results = dict[str, jax.Array]


def vjp(of: Any, x: jax.Array, w: jax.Array, b: jax.Array, g: jax.Array, **options: Any) -> Results:
    y, pullback = jax.vjp(lambda x, w, b: of(x, w, b, **options), x, w, b)
    return dict(zip(("y", "dx", "dw", "db"), (y, *pullback(g)), strict=True))


LAYERS = [
    *(("conv", case) for case in CASES),
    *(("conv", in_layout(case, "NCHW")) for case in FEW[2:4]),
    *(("conv_transpose", case) for case in TRANSPOSED),
    *(("conv_transpose", in_layout(case, "NCHW")) for case in FEW_TRANSPOSED[1:3]),
]


@pytest.mark.parametrize(("name", "case"), LAYERS, ids=str)
def test_every_gradient_is_the_automatic_one(name: str, case: Case) -> None:
    options, (spatial, taps), (layout, place) = case.options, spatial_and_taps(case), layout_of(case)
    op, input_grad, kernel_grad, bias_grad = (
        getattr(jaxconv, f"{name}{suffix}") for suffix in ("", "_input_grad", "_kernel_grad", "_bias_grad")
    )
    (x, w), loop = arrays(case), getattr(oracle, name)
    g = cotangent(loop(x, w, **options).shape)
    b = cotangent((g.shape[place.y[1]],), seed=2)

    @jax.jit
    def taken(x: jax.Array, w: jax.Array, b: jax.Array, g: jax.Array) -> dict[tuple[str, str], Results]:
        by_vjp = {("vjp", rules): vjp(op, x, w, b, g, **options, rules=rules) for rules in RULES}
        return by_vjp | {
            ("standalone", rules): {
                "dx": input_grad(g, w, spatial, **options, rules=rules),
                "dw": kernel_grad(x, g, taps, **options, rules=rules),
                "db": bias_grad(g, layout=layout),
            }
            for rules in RULES
        }

    bounds = {
        "y": oracle.exact(loop, x, w, b, **options),
        "dx": oracle.exact(getattr(oracle, f"{name}_input_grad"), g, w, spatial, **options),
        "dw": oracle.exact(getattr(oracle, f"{name}_kernel_grad"), x, g, taps, **options),
        "db": oracle.exact(oracle.conv_bias_grad, g, layout=layout),
    }
    gradients = taken(x, w, b, g)
    for how, results in gradients.items():
        for which, result in results.items():
            automatic = np.asarray(gradients["vjp", "autodiff"][which])
            _, summands, magnitude = bounds[which]
            assert_within_bound(result, automatic, summands, magnitude, what=f"{which} by {' of '.join(how)}")


# Rules of the user's own


class Recorder:
    """The rules of `rotated`, each result scaled by a factor of its own, and the calls counted."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def rule(self, name: str, factor: float) -> Any:
        def scaled(a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
            self.calls.append(name)
            return factor * getattr(rotated, name)(a, b, geometry)

        return scaled

    def rules(self) -> ConvRules:
        return ConvRules(self.rule("input_grad", 2.0), self.rule("kernel_grad", 4.0), self.rule("conv", 8.0))


CASE = FEW[1]


def test_a_users_rules_are_the_backward_pass_of_conv_and_nothing_else() -> None:
    recorder, (x, w) = Recorder(), arrays(CASE)
    y, pullback = jax.vjp(lambda x, w: jaxconv.conv(x, w, **CASE.options, rules=recorder.rules()), x, w)
    assert recorder.calls == []
    g = cotangent(y.shape)
    dx, dw = pullback(g)
    assert sorted(recorder.calls) == ["input_grad", "kernel_grad"]
    geometry = conv_geometry("conv", x.shape, w.shape, **CASE.options)
    np.testing.assert_array_equal(y, rotated.conv(x, w, geometry))
    np.testing.assert_array_equal(dx, 2 * rotated.input_grad(g, w, geometry))
    np.testing.assert_array_equal(dw, 4 * rotated.kernel_grad(x, g, geometry))


def test_a_users_rules_are_conv_transpose_and_its_backward_pass() -> None:
    recorder, case = Recorder(), TRANSPOSED[1]
    x, w = arrays(case)
    options = {**case.options, "rules": recorder.rules()}
    y, pullback = jax.vjp(lambda x, w: jaxconv.conv_transpose(x, w, **options), x, w)
    assert recorder.calls == ["input_grad"]
    g = cotangent(y.shape)
    dx, dw = pullback(g)
    assert sorted(recorder.calls) == ["conv", "input_grad", "kernel_grad"]
    right, pullback = jax.vjp(lambda x, w: jaxconv.conv_transpose(x, w, **case.options, rules="rotated"), x, w)
    for scaled, factor, result in zip((y, dx, dw), (2, 8, 4), (right, *pullback(g)), strict=True):
        np.testing.assert_array_equal(scaled, factor * result)


@pytest.mark.parametrize("rules", ["textbook", "rotated"])
def test_a_name_binds_the_rules_of_that_name(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, (x, w) = Recorder(), arrays(CASE)
    monkeypatch.setitem(RULE_SETS, rules, recorder.rules())
    jax.grad(lambda x: jaxconv.conv(x, w, **CASE.options, rules=rules).sum())(x)
    assert "input_grad" in recorder.calls


@pytest.mark.parametrize(("rules", "bound"), [*((r, True) for r in RULE_SETS), ("autodiff", False)])
def test_all_but_autodiff_bind_the_primitives(rules: str, bound: bool) -> None:
    x, w = arrays(CASE)
    gradient = jax.grad(lambda x: (jaxconv.conv(x, w, **CASE.options, rules=rules) ** 2).sum())
    jaxpr = str(jax.make_jaxpr(gradient)(x))
    assert [name in jaxpr for name in ("jaxconv_conv", "jaxconv_input_grad")] == [bound, bound]
    assert ("conv_general_dilated" in jaxpr) != bound
