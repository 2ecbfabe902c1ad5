"""Normalisations and their gradients are those of the quotient rule; running statistics; shared statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxconv
from tests.support import oracle_ops as oracle
from tests.support.cases_ops import assert_close, normal
from tests.support.devices import cpu_mesh
from tests.support.rule_sets import ALL_RULES

EPS = 0.1  # large enough to be seen


class Norm(NamedTuple):
    """A normalisation of x, as a function of (x, scale, bias), and what it standardises together."""

    name: str
    op: Callable[..., jax.Array]
    x: tuple[int, ...]
    channel: int
    axes: tuple[int, ...]
    split: tuple[int, ...] | None = None  # the shape in which to read `axes`
    centred: bool = True

    def __str__(self) -> str:
        return self.name

    def arguments(self) -> tuple[np.ndarray, ...]:
        """x away from zero, scale, bias and δ."""
        c = self.x[self.channel]
        return normal(self.x) + 0.5, normal((c,), 1), normal((c,), 2), normal(self.x, 3)

    def exact(self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, g: np.ndarray, eps: float = EPS) -> Any:
        """y and the gradients in x, scale and bias."""
        split = self.split or self.x
        others = tuple(axis for axis in range(x.ndim) if axis != self.channel)
        wide = [1] * x.ndim
        wide[self.channel] = -1
        options = {"axes": self.axes, "eps": eps, "centred": self.centred}
        unit = oracle.standardise(x.reshape(split), **options).reshape(x.shape)
        dunit = (g * scale.reshape(wide)).reshape(split)
        dx = oracle.standardise_grad(x.reshape(split), dunit, **options).reshape(x.shape)
        y = unit * scale.reshape(wide) + bias.reshape(wide)
        return y, (dx, (g * unit).sum(others), g.sum(others))


def batch_norm(x: Any, scale: Any, bias: Any, **options: Any) -> jax.Array:
    """Batch norm in training, without the state."""
    c = x.shape[1 if options.get("layout") == "NCHW" else -1]
    return jaxconv.batch_norm(x, scale, bias, fresh(c), train=True, **options)[0]


def fresh(channels: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(channels, jnp.float64), "var": jnp.ones(channels, jnp.float64)}


def group_norm(x: Any, scale: Any, bias: Any, *, groups: int = 3, **options: Any) -> jax.Array:
    return jaxconv.group_norm(x, groups, scale, bias, **options)


def nchw(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return partial(op, layout="NCHW")


NORMS = [
    Norm("batch_norm-NHWC", batch_norm, (2, 3, 4, 3), 3, (0, 1, 2)),
    Norm("batch_norm-NCHW", nchw(batch_norm), (2, 3, 4, 2), 1, (0, 2, 3)),
    Norm("batch_norm-NC", batch_norm, (5, 3), 1, (0,)),
    Norm("layer_norm", jaxconv.layer_norm, (2, 3, 4), 2, (2,)),
    Norm("layer_norm-axis=1", partial(jaxconv.layer_norm, axis=1), (2, 4, 3, 2), 1, (1,)),
    Norm("rms_norm", jaxconv.rms_norm, (2, 3, 4), 2, (2,), centred=False),
    Norm("rms_norm-axis=-3", partial(jaxconv.rms_norm, axis=-3), (2, 4, 3, 2), 1, (1,), centred=False),
    Norm("group_norm-NHWC", group_norm, (2, 3, 2, 6), 3, (1, 2, 4), (2, 3, 2, 3, 2)),
    Norm("group_norm-NCHW", nchw(group_norm), (2, 6, 3, 2), 1, (2, 3, 4), (2, 3, 2, 3, 2)),
    Norm("instance_norm-NHWC", jaxconv.instance_norm, (2, 3, 2, 4), 3, (1, 2)),
    Norm("instance_norm-NCHW", nchw(jaxconv.instance_norm), (2, 4, 5), 1, (2,)),
]
FIVE = [NORMS[i] for i in (0, 3, 5, 7, 9)]


def gradients(op: Callable[..., jax.Array], *args: Any) -> Any:
    """y and its pullback of the last argument to all others."""
    *primals, g = args
    y, pullback = jax.vjp(op, *primals)
    return y, pullback(g)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_value_and_gradients_are_those_of_the_quotient_rule(norm: Norm) -> None:
    def every(*args: Any) -> Any:
        return {r: gradients(partial(norm.op, eps=EPS, rules=r), *args) for r in ALL_RULES}

    args = norm.arguments()
    assert_close(jax.jit(every)(*args), dict.fromkeys(ALL_RULES, norm.exact(*args)))


@pytest.mark.parametrize("norm", FIVE, ids=str)
def test_scale_and_bias_may_be_left_out_and_eps_is_1e_5(norm: Norm) -> None:
    x, scale, bias, g = norm.arguments()
    one, zero = np.ones_like(scale), np.zeros_like(bias)

    def every(x: Any, scale: Any, bias: Any, g: Any) -> Any:
        neither = gradients(lambda x: norm.op(x, None, None), x, g)
        scaled = gradients(lambda x, scale: norm.op(x, scale, None), x, scale, g)
        return neither, scaled, gradients(lambda x, bias: norm.op(x, None, bias), x, bias, g)

    (y, (dx, *_)), (ys, (dxs, ds, _)), (yb, (dxb, _, db)) = (
        norm.exact(x, s, b, g, 1e-5) for s, b in ((one, zero), (scale, zero), (one, bias))
    )
    expected = (y, (dx,)), (ys, (dxs, ds)), (yb, (dxb, db))
    assert_close(jax.jit(every)(x, scale, bias, g), expected, rtol=1e-12)


@pytest.mark.parametrize("norm", FIVE, ids=str)
def test_a_constant_input_has_a_finite_gradient(norm: Norm) -> None:
    """The variance is 0, and what is left of the projection is (I − 11ᵀ/m) / √ε."""
    _, scale, bias, g = norm.arguments()
    x = np.zeros(norm.x)

    def every(*args: Any) -> Any:
        return {r: gradients(partial(norm.op, eps=EPS, rules=r), *args) for r in ALL_RULES}

    assert_close(jax.jit(every)(x, scale, bias, g), dict.fromkeys(ALL_RULES, norm.exact(x, scale, bias, g)))


def test_group_norm_with_a_group_for_each_channel_is_instance_norm() -> None:
    args = NORMS[7].arguments()
    each, whole = jax.jit(
        lambda *a: (gradients(partial(group_norm, groups=6), *a), gradients(jaxconv.instance_norm, *a))
    )(*args)
    assert_close(each, whole)


@pytest.mark.parametrize("norm", FIVE, ids=str)
def test_a_large_mean_does_not_drown_the_variance(norm: Norm) -> None:
    """E[x²] − E[x]² would have no correct digit here."""
    x, scale, bias, g = (a.astype(np.float32) for a in norm.arguments())
    x += 3e4 if norm.centred else 0
    wide = (a.astype(np.float64) for a in (x, scale, bias, g))
    y, (dx, *_) = norm.exact(*wide)
    actual, (adx, *_) = jax.jit(partial(gradients, partial(norm.op, eps=EPS)))(x, scale, bias, g)
    assert_close((actual, adx), (y, dx), rtol=5e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_sixteen_bit_statistics_are_summed_in_float32(norm: str, dtype: Any) -> None:
    """In bfloat16 a sum of ones stops at 256, in float16 a sum of squares of 128 overflows at once."""
    m = 4096
    x = jnp.full((1, m, 1), 128, dtype).at[:, ::2].add(2)  # 130, 128, 130, ...
    if norm in ("layer_norm", "rms_norm"):
        x = x.reshape(1, 1, m)
    op = {"batch_norm": batch_norm, "group_norm": partial(group_norm, groups=1)}.get(norm, getattr(jaxconv, norm))
    c = jnp.ones(x.shape[-1], dtype)
    y, (dx, _, dbias) = jax.jit(partial(gradients, partial(op, eps=1e-5)))(x, c, 0 * c, jnp.ones_like(x))
    z = np.asarray(x, np.float64)
    centred = norm != "rms_norm"
    unit = (z - z.mean() if centred else z) / np.sqrt((z.var() if centred else (z * z).mean()) + 1e-5)
    np.testing.assert_array_equal(np.asarray(y, np.float64), unit.astype(dtype).astype(np.float64))
    np.testing.assert_allclose(np.asarray(dbias, np.float64).sum(), m)
    exact = 0 if centred else (1 - unit * unit.mean()) / np.sqrt((z * z).mean() + 1e-5)  # of δ = 1
    np.testing.assert_allclose(np.asarray(dx, np.float64), exact, atol=1e-6)


# Running statistics


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0, 1])
def test_running_statistics_move_towards_the_batch_by_the_momentum(momentum: float) -> None:
    x, scale, bias, _ = NORMS[0].arguments()
    old = {"mean": normal((3,), 4), "var": normal((3,), 5) ** 2}
    step = jax.jit(partial(jaxconv.batch_norm, train=True, momentum=momentum))
    _, new = step(x, scale, bias, old)
    batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}  # the biased variance
    assert_close(dict(new), {k: momentum * old[k] + (1 - momentum) * batch[k] for k in old})


def test_running_statistics_keep_their_dtype_and_do_not_drift_in_it() -> None:
    x = jnp.full((4, 3), 2, jnp.bfloat16)
    state = {"mean": jnp.zeros(3, jnp.float32), "var": jnp.ones(3, jnp.float32)}
    step = jax.jit(partial(jaxconv.batch_norm, train=True))
    for _ in range(100):
        y, state = step(x, None, None, state)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in state.values()} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(state["mean"], 2 * (1 - 0.9**100), rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.9**100, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS[:3], ids=str)
def test_in_inference_the_statistics_are_constants_and_the_layer_is_affine(norm: Norm) -> None:
    x, scale, bias, g = norm.arguments()
    c = scale.size
    state = {"mean": normal((c,), 4), "var": normal((c,), 5) ** 2}
    layout = {"layout": "NCHW" if norm.channel == 1 and x.ndim > 2 else "NHWC"}

    def every(x: Any, scale: Any, bias: Any, g: Any) -> Any:
        def infer(*args: Any, rules: str) -> Any:
            y, same = jaxconv.batch_norm(*args, state, train=False, eps=EPS, rules=rules, **layout)
            assert set(same) == set(state)
            return y

        return {r: gradients(partial(infer, rules=r), x, scale, bias, g) for r in ALL_RULES}

    wide = [1] * x.ndim
    wide[norm.channel] = -1
    others = tuple(axis for axis in range(x.ndim) if axis != norm.channel)
    deviation = np.sqrt(state["var"] + EPS).reshape(wide)
    unit = (x - state["mean"].reshape(wide)) / deviation
    y = unit * scale.reshape(wide) + bias.reshape(wide)
    expected = y, (g * scale.reshape(wide) / deviation, (g * unit).sum(others), g.sum(others))
    assert_close(jax.jit(every)(x, scale, bias, g), dict.fromkeys(ALL_RULES, expected))


def test_inference_returns_the_state_it_was_given() -> None:
    state = {"mean": normal((3,), 4), "var": normal((3,), 5) ** 2}
    _, same = jaxconv.batch_norm(normal((2, 3)), None, None, state, train=False)
    assert_close(dict(same), state)


@pytest.mark.parametrize("train", [True, False], ids=["train", "inference"])
def test_no_gradient_flows_through_the_new_state(train: bool) -> None:
    x, scale, bias, _ = NORMS[0].arguments()
    state = {"mean": normal((3,), 4), "var": normal((3,), 5) ** 2}

    def total(rules: str, *args: Any) -> jax.Array:
        _, new = jaxconv.batch_norm(*args, train=train, rules=rules)
        return sum(jnp.sum(a) for a in new.values())

    every = jax.jit(lambda *a: {r: jax.grad(partial(total, r), (0, 1, 2, 3))(*a) for r in ALL_RULES})
    for leaf in jax.tree.leaves(every(x, scale, bias, state)):
        np.testing.assert_array_equal(leaf, 0)


# Statistics shared by devices


BATCH = Norm("batch_norm", batch_norm, (8, 3, 3), 2, (0, 1))


def synchronised(rules: str, x: Any, scale: Any, bias: Any) -> Any:
    return jaxconv.batch_norm(x, scale, bias, fresh(3), train=True, eps=EPS, axis_name="data", rules=rules)


def pulled(f: Callable[..., Any], *args: Any) -> Any:
    """y, its pullback of the last argument to all others, and the state."""
    *primals, g = args
    y, pullback, state = jax.vjp(f, *primals, has_aux=True)
    return y, pullback(g), state


def whole_batch(*args: np.ndarray) -> Any:
    """`pulled` of the batch in one piece, by NumPy."""
    x = args[0]
    return *BATCH.exact(*args), {"mean": 0.1 * x.mean((0, 1)), "var": 0.9 + 0.1 * x.var((0, 1))}


def pieces(x: Any) -> Any:
    return x.reshape(4, 2, *x.shape[1:])


@pytest.mark.parametrize("rules", ["fast", "autodiff"])  # a custom_vjp rule has no axis names in grad(vmap)
def test_the_gradient_of_a_vmapped_layer_with_shared_statistics_is_that_of_the_whole_batch(rules: str) -> None:
    def mapped(x: Any, scale: Any, bias: Any) -> Any:
        y, state = jax.vmap(partial(synchronised, rules), (0, None, None), axis_name="data")(pieces(x), scale, bias)
        return y.reshape(x.shape), jax.tree.map(lambda a: a[0], state)

    args = BATCH.arguments()
    assert_close(jax.jit(partial(pulled, mapped))(*args), whole_batch(*args))


@pytest.mark.parametrize("rules", ALL_RULES)
def test_the_vmapped_gradient_of_a_layer_with_shared_statistics_is_that_of_the_whole_batch(rules: str) -> None:
    def mapped(x: Any, scale: Any, bias: Any, g: Any) -> Any:
        one = partial(pulled, partial(synchronised, rules))
        y, (dx, *rest), state = jax.vmap(one, (0, None, None, 0), axis_name="data")(pieces(x), scale, bias, pieces(g))
        gradients = dx.reshape(x.shape), *(a.sum(0) for a in rest)
        return y.reshape(x.shape), gradients, jax.tree.map(lambda a: a[0], state)

    args = BATCH.arguments()
    assert_close(jax.jit(mapped)(*args), whole_batch(*args))


@pytest.mark.parametrize("inside", [False, True], ids=["grad-of-shard_map", "shard_map-of-grad"])
@pytest.mark.parametrize("rules", ALL_RULES)
def test_statistics_shared_by_devices_are_those_of_the_whole_batch(rules: str, inside: bool) -> None:
    mesh = cpu_mesh(AxisType.Auto, data=4)
    split, whole = PartitionSpec("data"), PartitionSpec()
    primals, layer = (split, whole, whole), partial(synchronised, rules)
    if inside:
        out = split, primals, whole
        f = jax.shard_map(partial(pulled, layer), mesh=mesh, in_specs=(*primals, split), out_specs=out)
    else:
        f = partial(pulled, jax.shard_map(layer, mesh=mesh, in_specs=primals, out_specs=(split, whole)))
    args = BATCH.arguments()
    assert_close(jax.jit(f)(*args), whole_batch(*args))
