"""check says "right" only where a wrong gradient would have been seen, and what it did not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxconv
from tests.support.judged import normal

FAST = ("vmap", "jit", "determinism", "linearity")


def times(f: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """f with a gradient that is off by a factor."""
    g = jax.custom_vjp(f)
    g.defvjp(
        lambda *args: (f(*args), args),
        lambda args, ct: tuple((factor * d).astype(d.dtype) for d in jax.vjp(f, *args)[1](ct)),
    )
    return g


# Nothing of the gradient is left: whatever a rule returned would pass.
EMPTY: dict[str, tuple[Callable[..., Any], jax.Array]] = {
    "a float16 norm whose squares overflow": (
        lambda x: x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True)),
        300 * jnp.abs(normal(2, 8, dtype=jnp.float16)) + jnp.float16(300),
    ),
    "layer_norm whose squares overflow float32": (times(lambda x: jaxconv.layer_norm(x), 0.0), 3e19 * normal(2, 8)),
    "a saturated tanh": (jnp.tanh, jnp.array([9.5, -11.0, 13.0], jnp.float32)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_rounding_or_overflow_hides_is_undecided(name: str) -> None:
    f, x = EMPTY[name]
    report = jaxconv.check(f, x, skip=FAST)
    assert not report.ok and report.verdict == "undecided"
    assert "UNDECIDED" in str(report).splitlines()[0]
    assert report.to_dict()["verdict"] == "undecided" and report.to_dict()["ok"] is False
    with pytest.raises(AssertionError, match="UNDECIDED"):
        report.raise_if_failed()
    report.raise_if_failed(undecided=False)


def test_a_wrong_gradient_is_no_less_wrong_for_what_is_undecided() -> None:
    report = jaxconv.check(lambda x, y: (times(jnp.sin, 1.5)(x), jnp.tanh(y)), normal(5), jnp.array([9.5]), skip=FAST)
    assert report.verdict == "wrong" and "WRONG" in str(report).splitlines()[0]
    with pytest.raises(AssertionError, match="WRONG"):
        report.raise_if_failed(undecided=False)


def test_no_evidence_is_no_evidence() -> None:
    others = [kind for kind in jaxconv.gradcheck.KINDS if kind != "ties"]
    assert jaxconv.check(jnp.sin, normal(5), skip=others).verdict == "undecided", "sin has no ties, and that was all"


def test_zero_is_a_value_like_any_other() -> None:
    """Unread entries, a dead unit and a bias in front of a norm have gradients of zero, exactly or but for rounding."""

    def f(x: Any, b: Any) -> Any:
        return jaxconv.layer_norm(jnp.maximum(x[:, :3], 0) + b)

    report = jaxconv.check(f, normal(2, 5), normal(1, 1), skip=FAST)
    report.raise_if_failed()
    assert report.resolution["b"] == 0
    leak = jax.custom_vjp(lambda x: x[:3])
    leak.defvjp(lambda x: (x[:3], None), lambda _, g: (jnp.concatenate([g, 1e-3 * g[:2]]),))
    assert jaxconv.check(leak, normal(5), skip=FAST).verdict == "wrong"


# Cuts


def straight_through(x: Any) -> Any:
    return x + lax.stop_gradient(jnp.round(x) - x)


def test_a_cut_in_the_middle_is_not_right_and_says_how_to_mean_it() -> None:
    def network(w: Any, b: Any) -> Any:
        return jnp.sum(jnp.sin(lax.stop_gradient(jnp.tanh(normal(4, 3) @ w)) + b[None]))

    report = jaxconv.check(network, normal(3, 2), normal(2), skip=FAST)
    assert report.verdict == "undecided"
    assert "cut at w, cannot tell. If that is meant, say check(..., cuts=['w'])" in report["differences"].about
    assert jaxconv.check(network, normal(3, 2), normal(2), skip=FAST, cuts=["w"]).ok
    assert jaxconv.check(network, normal(3, 2), normal(2), skip=FAST, cuts=["b"]).verdict == "undecided"


def test_a_gradient_that_is_meant_to_differ_from_the_slope() -> None:
    assert jaxconv.check(straight_through, normal(6), skip=FAST).verdict == "undecided"
    assert jaxconv.check(straight_through, normal(6), skip=FAST, cuts=True).ok
    assert not jaxconv.check(times(straight_through, 2.0), normal(6), skip=FAST, cuts=True).ok


def test_a_stop_that_cuts_nothing_off_is_no_cut() -> None:
    """The maximum that a softmax subtracts is stopped, and its slope is zero."""
    assert jaxconv.check(jax.nn.log_softmax, normal(3, 4), skip=FAST).ok


@pytest.mark.parametrize(("cuts", "message"), [(["v"], "v is not one of w, x"), ("w", r"Say cuts=\['w'\]")])
def test_cuts_name_arguments(cuts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jaxconv.check(lambda w, x: w * x, normal(2), normal(2), cuts=cuts)


# How small an error could have been seen


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_an_error_larger_than_the_resolution_is_seen(dtype: Any) -> None:
    x = normal(200, dtype=dtype)
    seen = jaxconv.check(jnp.tanh, x, skip=FAST).resolution["x"]
    assert 0 < seen < 20 * float(jnp.finfo(dtype).eps)
    assert jaxconv.check(times(jnp.tanh, 1 + 2 * seen), x, skip=FAST).verdict == "wrong"
    assert jaxconv.check(times(jnp.tanh, 1 + seen / 16), x, skip=FAST).ok


def test_the_report_says_what_could_have_been_seen() -> None:
    report = jaxconv.check(jnp.tanh, normal(50, dtype=jnp.bfloat16), skip=FAST)
    assert f"would have been seen from: x {100 * report.resolution['x']:.2g} %" in str(report)
    assert report.to_dict()["resolution"] == dict(report.resolution)


# Ties


def paying_all(x: Any) -> Any:
    """A max pool in which every winner of a tie receives all."""

    def pool(x: Any) -> Any:
        return jaxconv.max_pool(x, 2, rules="autodiff")

    def backward(x: Any, g: Any) -> Any:
        y, g = (jnp.repeat(jnp.repeat(a, 2, 1), 2, 2) for a in (pool(x), g))
        return (jnp.where(x == y, g, 0),)

    f = jax.custom_vjp(pool)
    f.defvjp(lambda x: (pool(x), x), backward)
    return f(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tie_paid_twice_is_found_where_the_arguments_have_none(dtype: Any) -> None:
    x = normal(2, 6, 6, 2, dtype=dtype)
    report = jaxconv.check(paying_all, x, skip=FAST)
    assert [e.name for e in report.evidence if e.verdict == "wrong"] == ["ties"]
    assert "Ties are paid more than once" in str(report)


RIGHT_AT_TIES: dict[str, Callable[..., Any]] = {
    "max pool": lambda x: jaxconv.max_pool(x, 2, stride=1),
    "lax's max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "relu": jaxconv.relu,
    "jax.nn.relu": jax.nn.relu,
    "abs": jnp.abs,
    "a maximum of two": lambda x: jnp.maximum(x[:, :3], x[:, 3:]),
    "sort": lambda x: jnp.sort(x, axis=1),
    "reduce_max": lambda x: x.max(axis=1),
    "relu after max pool": lambda x: jaxconv.relu(jaxconv.max_pool(x, 2)),
}


@pytest.mark.parametrize("name", RIGHT_AT_TIES)
def test_any_convention_at_a_tie_is_right(name: str) -> None:
    report = jaxconv.check(RIGHT_AT_TIES[name], normal(2, 6, 6, 2), skip=FAST)
    report.raise_if_failed()
    assert report["ties"].verdict == "ok", "ties were tried"


# What was not tried

UNTRIED: dict[str, tuple[Callable[..., Any], tuple[jax.Array, ...], str]] = {
    "a stride that divides": (
        lambda x: jaxconv.conv(x, normal(2, 2, 1, 1), stride=2, padding=0),
        (normal(1, 6, 6, 1),),
        "remainder",
    ),
    "a pool's stride that divides": (lambda x: jaxconv.avg_pool(x, 2), (normal(1, 6, 6, 1),), "remainder"),
    "lax's stride that divides": (
        lambda x: lax.conv(x, normal(1, 1, 2, 2), (2, 2), "VALID"),
        (normal(1, 1, 6, 6),),
        "remainder",
    ),
    "no tie": (lambda w: jnp.maximum(normal(4, 3) @ w, 0), (normal(3, 2),), "ties and zeros"),
    "a gradient of zero": (lambda x, y: x + 0 * y, (normal(3), normal(3)), "y's gradient, which is 0"),
}


@pytest.mark.parametrize("name", UNTRIED)
def test_what_was_not_tried_is_said(name: str) -> None:
    f, args, words = UNTRIED[name]
    report = jaxconv.check(f, *args, skip=FAST)
    assert report.ok and any(words in sentence for sentence in report.untried)
    assert f"Not tried: {report.untried[0]}" in str(report)


def test_what_was_tried_is_not_said() -> None:
    report = jaxconv.check(
        lambda x: jaxconv.max_pool(jaxconv.conv(x, normal(2, 2, 1, 1), stride=2, padding=0), 2, stride=1),
        normal(1, 7, 6, 1),
        skip=FAST,
    )
    assert report.ok and report.untried == ()
