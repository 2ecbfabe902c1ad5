"""Gradients in 16 bits for weights in 32, and the factor in front of a float16 loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxconv
from experiments.divergence import DivergedError, Watch
from jaxconv import MixedPrecision, layers
from jaxconv.transforms.mixed_precision import LARGEST, SMALLEST, LossScale
from tests.support.devices import cpu_mesh

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


def test_after_any_number_of_overflows_a_healthy_step_has_a_gradient() -> None:
    step = jax.jit(HALF.value_and_grad(lambda w, size: size * loss(HALF, 1.0, w)))
    w, scaling = jnp.full((3, 3, 2, 4), 0.125), scaled(4 * SMALLEST)
    for left in (2, 1, 1, 1):
        *_, scaling, finite = step(scaling, w, jnp.nan)
        assert not bool(finite) and float(scaling.scale) == left * SMALLEST
    with pytest.raises(DivergedError, match="overflow float16"):
        Watch("bfloat16").scale(float(scaling.scale), "step 4")
    _, grad, scaling, finite = step(scaling, w, 1e4)
    exact = graded(MixedPrecision(jnp.float32), 1e4, None)[1]
    np.testing.assert_allclose(grad, exact, rtol=2 * float(jnp.finfo(jnp.float16).eps))
    assert bool(finite) and (float(scaling.scale), int(scaling.calm)) == (SMALLEST, 1)


def of_products(policy: MixedPrecision, w: jax.Array, *, x: jax.Array) -> jax.Array:
    """Its gradient in w is x, which overflows float16 wherever x does, once it is scaled."""
    return (policy.cast(w) * policy.cast(x)).astype(jnp.float32).sum()


@pytest.mark.parametrize(
    ("dtype", "large", "check_vma", "here"),
    [
        (jnp.float16, 8.0, False, [True, True, False, True]),
        (jnp.bfloat16, jnp.nan, False, [True, True, False, True]),
        (jnp.float16, 8.0, True, [False, False, False, False]),
    ],
)
def test_devices_skip_a_step_together(dtype: Any, large: float, check_vma: bool, here: list[bool]) -> None:
    """Of four, the third overflows. Checked for what varies, JAX adds the gradients before anybody looks at them."""
    policy = MixedPrecision(dtype)
    x = jnp.array([1.0, 1.0, large, 1.0])

    def steps(scaling: LossScale | None, w: jax.Array, x: jax.Array) -> Any:
        found = []
        for axis_name in (None, "batch"):
            graded = policy.value_and_grad(lambda w, x: of_products(policy, w, x=x), axis_name=axis_name)
            _, grad, new, finite = graded(scaling, w, x)
            found.append((jnp.isfinite(grad).all(), finite, new))
        return jax.tree.map(lambda a: jnp.reshape(a, 1), found)

    mesh = cpu_mesh(AxisType.Auto, batch=4)
    spread = jax.shard_map(steps, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P("batch"), check_vma=check_vma)
    alone, together = jax.jit(spread)(policy.init(), jnp.ones(1), x)
    assert alone[0].tolist() == alone[1].tolist() == together[0].tolist() == here
    assert together[1].tolist() == 4 * [False]
    scales = [new.scale.tolist() for _, _, new in (alone, together) if new is not None]
    assert scales == [[2.0**15 if ok else 2.0**14 for ok in here], 4 * [2.0**14]][: len(scales)]
    assert len(scales) == (2 if dtype == jnp.float16 else 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_gradient_that_is_no_number_is_reported_in_every_dtype(dtype: Any) -> None:
    policy = MixedPrecision(dtype)
    graded = policy.value_and_grad(lambda params, x: of_products(policy, params["w"], x=x))
    params = {"v": jnp.ones(2), "w": jnp.ones(2)}
    for x in (jnp.nan, jnp.inf, 1.0):
        assert bool(graded(policy.init(), params, jnp.array([1.0, x]))[3]) == (x == 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_no_parameters_have_gradients_that_are_numbers(dtype: Any) -> None:
    policy = MixedPrecision(dtype)
    value, grads, scaling, finite = policy.value_and_grad(lambda _: 3.0)(policy.init(), {})
    assert (float(value), grads, bool(finite), scaling is None) == (3.0, {}, True, dtype == jnp.bfloat16)


def test_options_reach_the_loss() -> None:
    """Whatever they are called."""
    graded = HALF.value_and_grad(lambda w, /, n, *, scaling, params: n * scaling * params * w)
    value, grad, *_ = graded(HALF.init(), jnp.float32(1), 2, scaling=3.0, params=5.0)
    assert float(value) == float(grad) == 30


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
        ({"scale": 3.0}, ValueError, "scale must be a power of two, .* but is 3. Take 2 or 4.$"),
        ({"scale": 2.0**24 - 1}, ValueError, "but is 16777215. Take 8388608 or 16777216.$"),
        ({"interval": 0}, ValueError, "interval"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MixedPrecision(**options)
