"""Several devices: the same numbers as on one, and every gradient is sharded like its operand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from tests.support.agreement import Layer, agree
from tests.support.cases import Case, in_layout
from tests.support.devices import cpu_mesh
from tests.support.rule_sets import RULES

CASE = Case((8, 5, 4, 4), (3, 2, 4, 8), {"stride": 2})
GROUPED = Case((8, 5, 4, 4), (3, 2, 2, 8), {"groups": 2, "padding": ((1, 0), (2, -1))})
TRANSPOSED = Case((8, 3, 2, 4), (3, 2, 8, 4), {"stride": 2})
CONV = Layer(jaxconv.conv, CASE)

BOTH = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)


def mesh_of(kind: AxisType) -> Mesh:
    return cpu_mesh(kind, data=2, model=2)


def put(mesh: Mesh, arrays: Any, specs: Any) -> tuple[jax.Array, ...]:
    return tuple(jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True))


def training_step(layer: Layer, rules: str = "fast") -> Callable[..., Any]:
    """(x, w, b, δ) -> y and the gradients of Σ δ·y² in x, w and b."""

    def loss(x: Any, w: Any, b: Any, delta: Any) -> Any:
        y = layer(x, w, b, rules=rules)
        return jnp.sum(delta * y**2), y

    def step(*args: Any) -> Any:
        gradients, y = jax.grad(loss, (0, 1, 2), has_aux=True)(*args)
        return y, *gradients

    return step


def assert_single_device_result(got: Any, step: Callable[..., Any], args: Any) -> None:
    agree(lambda *_: jax.tree.map(np.asarray, got), step, *args)


def assert_sharded(arrays: Any, mesh: Mesh, specs: Any) -> None:
    for a, spec in zip(arrays, specs, strict=True):
        assert a.sharding.is_equivalent_to(NamedSharding(mesh, spec), a.ndim), f"{a.sharding.spec} is not {spec}"


# layer, and how x, w, b and δ (also y) are sharded
PLACEMENTS = {
    "batch": (CONV, P("data"), P(), P(), P("data")),
    "output-channels": (CONV, P("data"), P(None, None, None, "model"), P("model"), P("data", None, None, "model")),
    "input-channels": (CONV, P("data", None, None, "model"), P(None, None, "model"), P(), P("data")),
    "groups": (Layer(jaxconv.conv, GROUPED), P(("data", "model")), P(), P(), P(("data", "model"))),
    "NCHW": (Layer(jaxconv.conv, in_layout(CASE, "NCHW")), P("data"), P("model"), P("model"), P("data", "model")),
    "transposed": (Layer(jaxconv.conv_transpose, TRANSPOSED), P("data"), P(None, None, "model"), P("model"),
                   P("data", None, None, "model")),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_jit_keeps_the_sharding_and_the_numbers(placement: str, kind: AxisType) -> None:
    layer, *specs = PLACEMENTS[placement]
    args, mesh = layer.arguments(), mesh_of(kind)
    with jax.set_mesh(mesh):
        got = jax.jit(training_step(layer))(*put(mesh, args, specs))
    *operands, output = specs
    assert_sharded(got, mesh, [output, *operands])
    assert_single_device_result(got, training_step(layer, "autodiff"), args)


@BOTH
@pytest.mark.parametrize("rules", [rules for rules in RULES if rules != "fast"])
def test_the_other_rules_keep_the_sharding_too(rules: str, kind: AxisType) -> None:
    layer, *specs = PLACEMENTS["output-channels"]
    args, mesh = layer.arguments(), mesh_of(kind)
    with jax.set_mesh(mesh):
        got = jax.jit(training_step(layer, rules))(*put(mesh, args, specs))
    *operands, output = specs
    assert_sharded(got, mesh, [output, *operands])
    assert_single_device_result(got, training_step(layer, "autodiff"), args)


@BOTH
def test_eager_calls_keep_the_sharding_and_the_numbers(kind: AxisType) -> None:
    """Also without `jax.set_mesh`: the arrays bring their mesh."""
    _, *specs = PLACEMENTS["output-channels"]
    args, mesh = CONV.arguments(), mesh_of(kind)
    *operands, delta = put(mesh, args, specs)
    y, pullback = jax.vjp(CONV, *operands)
    got = y, *pullback(delta)
    assert_sharded(got, mesh, [specs[-1], *specs[:-1]])

    def theirs(*args: Any) -> Any:
        y, pullback = jax.vjp(partial(CONV, rules="autodiff"), *args[:3])
        return y, *pullback(args[3])

    assert_single_device_result(got, theirs, args)


@pytest.mark.parametrize("rules", ["fast", "rotated"])
def test_vmap_of_grad_is_sharded_by_example(rules: str) -> None:
    def gradients(rules: str) -> Callable[..., Any]:
        def loss(x: Any, w: Any, delta: Any) -> jax.Array:
            return jnp.sum(delta * CONV(x[None], w, rules=rules)[0] ** 2)

        return jax.vmap(jax.grad(loss, (0, 1)), (0, None, 0))

    x, w, _, delta = CONV.arguments()
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        got = jax.jit(gradients(rules))(*put(mesh, (x, w, delta), (P("data"), P(), P("data"))))
    assert_sharded(got, mesh, [P("data"), P("data")])
    assert_single_device_result(got, gradients("autodiff"), (x, w, delta))


def test_an_ensemble_is_sharded_by_member() -> None:
    """vmap over kernels on one mesh axis, the batch on the other."""

    def gradients(rules: str) -> Callable[..., Any]:
        step = training_step(CONV, rules)
        return jax.vmap(lambda *args: step(*args)[1:], (None, 0, 0, 0))

    x, w, b, delta = CONV.arguments()
    args = x, *(np.stack([a, 2 * a]) for a in (w, b, delta))
    mesh, member = mesh_of(AxisType.Explicit), P("model")
    with jax.set_mesh(mesh):
        got = jax.jit(gradients("fast"))(*put(mesh, args, (P("data"), member, member, P("model", "data"))))
    assert_sharded(got, mesh, [P("model", "data"), member, member])
    assert_single_device_result(got, gradients("autodiff"), args)


def test_a_hessian_times_a_vector_is_sharded_like_the_vector() -> None:
    def product(rules: str) -> Callable[..., Any]:
        def along(x: Any, w: Any, b: Any, delta: Any) -> Any:
            def gradients(*operands: Any) -> Any:
                return training_step(CONV, rules)(*operands, delta)[1:]

            return jax.jvp(gradients, (x, w, b), (x, w, b))[1]

        return along

    _, *specs = PLACEMENTS["output-channels"]
    args, mesh = CONV.arguments(), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        got = jax.jit(product("fast"))(*put(mesh, args, specs))
    assert_sharded(got, mesh, specs[:-1])
    assert_single_device_result(got, product("autodiff"), args)


@BOTH
@pytest.mark.parametrize("rules", RULES)
def test_shard_map_sums_the_gradients_of_replicated_operands_by_itself(rules: str, kind: AxisType) -> None:
    """`check_vma`: the kernel is the same on all devices, so the transpose of its use is a psum."""
    mesh, batch = mesh_of(kind), P(("data", "model"))
    args, outs = CONV.arguments(), (batch, batch, P(), P())
    step = jax.shard_map(training_step(CONV, rules), mesh=mesh, in_specs=(batch, P(), P(), batch), out_specs=outs)
    got = jax.jit(step)(*put(mesh, args, (batch, P(), P(), batch)))
    assert_sharded(got, mesh, outs)
    assert_single_device_result(got, training_step(CONV, "autodiff"), args)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("rules", ["fast", "rotated"])
def test_shard_map_with_a_psum_of_one_s_own(rules: str, check_vma: bool) -> None:
    """Each device has its own gradients of its own copy of the kernel, under every rule set."""
    mesh, batch = cpu_mesh(AxisType.Auto, data=4), P("data")
    args = CONV.arguments()

    def local(x: Any, w: Any, b: Any, delta: Any) -> Any:
        if check_vma:
            w, b = lax.pcast((w, b), "data", to="varying")
        y, dx, dw, db = training_step(CONV, rules)(x, w, b, delta)
        return y, dx, *lax.psum((dw, db), "data")

    step = jax.shard_map(
        local, mesh=mesh, in_specs=(batch, P(), P(), batch), out_specs=(batch, batch, P(), P()), check_vma=check_vma
    )
    got = jax.jit(step)(*put(mesh, args, (batch, P(), P(), batch)))
    assert_sharded(got, mesh, (batch, batch, P(), P()))
    assert_single_device_result(got, training_step(CONV, "autodiff"), args)


def test_shard_map_splits_the_output_channels() -> None:
    """Tensor parallelism by hand: x is replicated, so its gradient is summed over the devices."""
    mesh, channels = cpu_mesh(AxisType.Auto, model=4), P(None, None, None, "model")
    args = CONV.arguments()
    specs = P(), channels, P("model"), channels
    step = jax.shard_map(training_step(CONV), mesh=mesh, in_specs=specs, out_specs=(channels, *specs[:-1]))
    got = jax.jit(step)(*put(mesh, args, specs))
    assert_sharded(got, mesh, (channels, *specs[:-1]))
    assert_single_device_result(got, training_step(CONV, "autodiff"), args)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axes", ["data", ("data", "model")], ids=str)
def test_norms_per_example_are_those_of_each_devices_own_examples(axes: Any, check_vma: bool) -> None:
    """JAX sums the gradient of parameters that devices share over the devices; a norm per example must not."""
    x, w, *_ = CONV.arguments()
    mesh = mesh_of(AxisType.Auto)

    def loss(params: Any, image: Any) -> jax.Array:
        return jnp.sum(jnp.tanh(jaxconv.conv(image[None], params["w"], params["b"])))

    norms = partial(jaxconv.per_example_grad_norms, loss)
    params = {"w": w, "b": np.zeros(w.shape[-1], w.dtype)}
    mapped = jax.shard_map(norms, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P(axes), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(mapped)(params, x), norms(params, x), rtol=1e-6)
