"""`check` at kinks, ties and cuts, where a gradient is one of several, or no slope at all."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from tests.support.judged import COSTLY, normal, ruled

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_a_kink_is_not_wrong(at_zero: float) -> None:
    relu = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    relu.defvjp(
        lambda x: (jnp.maximum(x, 0), x), lambda x, g: (g * jnp.where(x == 0, at_zero, (x > 0).astype(x.dtype)),)
    )
    report = jaxconv.check(relu, jnp.array([-1.0, 0.0, 2.0]))
    said = {name: [f.hint for f in report[name].findings] for name in ("automatic", "differences")}
    assert report.ok and [report[name].verdict for name in said] == (["ok"] * 2 if at_zero == 0.5 else ["kink"] * 2)
    assert [f.where for f in report["automatic"].findings] == ([] if at_zero == 0.5 else ["x[1]"])
    assert any("One-sided differences are" in hint for hint in said["differences"]) is (at_zero != 0.5)


def test_jumps_may_cancel_along_a_direction() -> None:
    """As in a residual block whose last scale starts at 0: each entry jumps, and their sum has one slope, 3. Not 0."""

    def f(x: Any) -> Any:
        ahead, behind = jax.nn.relu(x), jax.nn.relu(-x)
        return 2 * ahead[0] - behind[0] + ahead[1] - 2 * behind[1]

    for x in (jnp.zeros(2), jnp.array([0.0, 0.0, 1.0])):  # rounded arguments are tied there too
        report = jaxconv.check(f, x)
        assert report.ok and report["differences"].verdict == "kink" and report["ties"].verdict in ("ok", "skipped")
        assert any("the gradients of the entries jump by" in f.hint for f in report["differences"].findings)
        assert not jaxconv.check(ruled(f, lambda d: (d + 20,)), x, skip=COSTLY).ok


def test_a_tie_may_be_broken_but_not_paid_twice() -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6, 6, 2)), jnp.float32)

    def pool(x: Any) -> Any:
        return jaxconv.max_pool(x, 2)

    def paid(x: Any, share: Any) -> Any:
        f = jax.custom_vjp(pool)

        def backward(saved: Any, g: Any) -> Any:
            x, y = saved
            spread = [jnp.repeat(jnp.repeat(a, 2, 1), 2, 2) for a in (y, g)]
            wins = (x == spread[0]).astype(x.dtype)
            ties = jnp.repeat(jnp.repeat(jaxconv.avg_pool(wins, 2) * 4, 2, 1), 2, 2)
            return (wins * spread[1] * share(ties),)

        f.defvjp(lambda x: (pool(x), (x, pool(x))), backward)
        return jaxconv.check(f, x, skip=COSTLY)

    assert jaxconv.check(pool, x, skip=COSTLY).ok
    assert paid(x, lambda ties: 1 / ties).ok, "shared among the winners"
    assert not paid(x, lambda ties: 1.0).ok, "each winner gets all of it"


def test_a_wrong_rule_is_wrong_beside_a_kink() -> None:
    relu = ruled(jax.nn.relu, lambda d: (1.001 * d,))
    assert not jaxconv.check(relu, jnp.array([-1.0, 0.0, 2.0]), skip=COSTLY).ok


def test_results_at_infinity_have_no_slope() -> None:
    """A pool whose window lies in the border returns −∞, whatever x is."""
    assert jaxconv.check(lambda x: jaxconv.max_pool(x, 2, padding=((0, 3),)), normal(1, 4, 1), skip=COSTLY).ok


def test_stopped_gradients_are_not_differences() -> None:
    def through(x: Any) -> Any:
        return x + lax.stop_gradient(jnp.round(x) - x) + lax.stop_gradient(x) ** 2

    report = jaxconv.check(through, normal(6), skip=COSTLY, cuts=["x"])
    assert report.ok and report["differences"].verdict == "skipped" and "stop_gradient" in report["differences"].about
    assert not jaxconv.check(lambda x: ruled(jnp.sin, lambda d: (2 * d,))(through(x)), normal(6), skip=COSTLY).ok
    state = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    layer = functools.partial(jaxconv.batch_norm, scale=None, bias=None, state=state, train=True)
    assert jaxconv.check(lambda x: layer(x), normal(5, 2), skip=COSTLY, cuts=True).ok
    assert jaxconv.check(lambda x: layer(x)[0], normal(5, 2), skip=COSTLY).ok
