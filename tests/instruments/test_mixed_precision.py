"""Gradients in 16 bits for weights in 32, and the factor in front of a float16 loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv import MixedPrecision, layers
from jaxconv.transforms.mixed_precision import LARGEST, LossScale

HALF = MixedPrecision(jnp.float16)

pytestmark = pytest.mark.usefixtures("as_a_user")


def loss(policy: MixedPrecision, size: float, w: jax.Array) -> jax.Array:
    """Its gradient in w is `size` times that of a mean, on the way in the policy's dtype."""
    x = jnp.linspace(0.1, 1, 32).reshape(1, 4, 4, 2)
    return size * jaxconv.conv(policy.cast(x), policy.cast(w)).astype(jnp.float32).mean()


def graded(policy: MixedPrecision, size: float, scaling: LossScale | None) -> Any:
    w = jnp.full((3, 3, 2, 4), 0.125)
    return jax.jit(policy.value_and_grad(lambda w: loss(policy, size, w)))(scaling, w)


def scaled(scale: float, calm: int = 0) -> LossScale:
    return LossScale(jnp.float32(scale), jnp.int32(calm))


def test_a_gradient_below_float16_survives_by_its_scale() -> None:
    exact = graded(MixedPrecision(jnp.float32), 1e-7, None)[1]
    lost = jax.grad(lambda w: loss(HALF, 1e-7, w))(jnp.full((3, 3, 2, 4), 0.125))
    value, grad, scaling, finite = graded(HALF, 1e-7, HALF.init())
    assert not lost.any() and bool(finite) and grad.dtype == jnp.float32
    np.testing.assert_allclose(grad, exact, rtol=2 * float(jnp.finfo(jnp.float16).eps))
    assert float(value) == float(loss(HALF, 1e-7, jnp.full((3, 3, 2, 4), 0.125)))
    assert (float(scaling.scale), int(scaling.calm)) == (2.0**15, 1)


def test_an_overflow_halves_the_scale_and_leaves_everything_else() -> None:
    _, grad, scaling, finite = graded(HALF, 1e4, scaled(2.0**15, 7))
    assert not bool(finite) and not bool(jnp.isfinite(grad).all())
    assert (float(scaling.scale), int(scaling.calm)) == (2.0**14, 0)
    new, old = {"w": jnp.full(3, jnp.nan), "n": jnp.int32(2)}, {"w": jnp.ones(3), "n": jnp.int32(1)}
    kept, taken = HALF.accept(finite, new, old), HALF.accept(~finite, old, new)
    assert kept["w"].tolist() == taken["w"].tolist() == [1, 1, 1] and int(kept["n"]) == int(taken["n"]) == 1


def test_steps_without_an_overflow_double_the_scale_up_to_the_largest() -> None:
    policy = MixedPrecision(jnp.float16, interval=3)
    scaling, seen = scaled(LARGEST / 4), []
    for _ in range(10):
        scaling = graded(policy, 1e-7, scaling)[2]
        seen.append(float(scaling.scale) / LARGEST)
    assert seen == [0.25, 0.25, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_other_dtypes_are_not_scaled(dtype: Any) -> None:
    policy = MixedPrecision(dtype)
    (value, aux), grad, scaling, finite = policy.value_and_grad(lambda w: (loss(policy, 1.0, w), 3), has_aux=True)(
        policy.init(), jnp.ones((3, 3, 2, 4))
    )
    assert policy.init() is scaling is None and bool(finite) and aux == 3 and policy.accept(finite, 1, 2) == 1
    plain = jax.value_and_grad(lambda w: loss(policy, 1.0, w))(jnp.ones((3, 3, 2, 4)))
    assert float(value) == float(plain[0]) and np.array_equal(grad, plain[1])


def test_casting_takes_floats_and_nothing_else() -> None:
    tree = {"w": jnp.ones(2), "n": jnp.arange(2), "key": jax.random.key(0), "on": True, "f": 0.5, "none": None}
    cast = HALF.cast(tree)
    kinds = [jnp.result_type(cast[name]) for name in ("w", "f", "n")]
    assert kinds == [jnp.float16, jnp.float16, jnp.int32] and cast["on"] is True and cast["key"] is tree["key"]


def test_norms_and_losses_of_a_network_are_float32() -> None:
    """The variance of what float16 cannot square: 300² > 65504."""
    net = layers.serial(layers.Dense(4), layers.BatchNorm(), layers.Dense(3))
    params, state, _ = net.init(jax.random.key(0), (8, 2))
    policy, x = HALF, 300 * jax.random.normal(jax.random.key(1), (8, 2))

    def objective(params: Any) -> tuple[jax.Array, Any]:
        logits, new = net.apply(params, state, x, train=True, dtype=policy.dtype)
        assert logits.dtype == jnp.float16
        return jaxconv.softmax_cross_entropy(logits, jnp.zeros(8, int)).mean(), new

    (value, new), grads, *_ = policy.value_and_grad(objective, has_aux=True)(policy.init(), params)
    assert value.dtype == jnp.float32 and {a.dtype for a in jax.tree.leaves((grads, new))} == {jnp.dtype(jnp.float32)}
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves((value, grads, new)))
    assert float(new[1]["var"].max()) > 1e3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": jnp.int8}, TypeError, "MixedPrecision: dtype must be floating, such as jnp.bfloat16, but is"),
        (
            {"dtype": "narrow"},
            TypeError,
            "dtype must be floating, such as jnp.bfloat16, but is 'narrow'",
        ),
        ({"scale": 0.5}, ValueError, r"scale must satisfy 1 <= scale <= 1.67772e\+07, but is 0.5"),
        ({"scale": 2.0**25}, ValueError, r"scale must satisfy 1 <= scale <= 1.67772e\+07, but is 3.35544e\+07"),
        ({"interval": 0}, ValueError, "interval"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MixedPrecision(**options)
