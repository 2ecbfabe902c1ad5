"""`manual(f)`: every convolution and pool is this library's, wherever it is, and the numbers are f's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxconv
from jaxconv.transforms.program import equations
from tests.support.devices import cpu_mesh
from tests.support.replaced import assert_close, conv, max_pool, primitives, program, random, weighted

X, W = random(4, 4, 4, 2), 0.3 * random(3, 3, 2, 2, seed=1)
MESH = cpu_mesh(AxisType.Auto, i=4)


def sharded(s: Callable[..., Any], x: Any, w: Any, **options: Any) -> Any:
    def local(x: Any, w: Any) -> Any:
        x, _ = lax.scan(lambda x, _: (s(x, w), None), s(x, w), None, length=2)
        return lax.psum(x, "i")

    specs = PartitionSpec("i"), PartitionSpec()
    return jax.shard_map(local, mesh=MESH, in_specs=specs, out_specs=PartitionSpec(), **options)(x, w)


def mapped(s: Callable[..., Any], x: Any, w: Any) -> Any:
    devices = jax.devices("cpu")[:4]
    return jax.pmap(lambda x, w: s(lax.pmean(x[None], "i"), w) + x[None], "i", in_axes=(0, None), devices=devices)(x, w)


# Where a convolution may be: (s, x, w) -> y, s the function that has it.
PLACES: dict[str, Callable[..., Any]] = {
    "here": lambda s, x, w: s(s(x, w), w),
    "jit": lambda s, x, w: jax.jit(lambda x, w: 2 * s(x, w))(x, w),
    "jit of jit": lambda s, x, w: jax.jit(lambda x, w: jax.jit(s)(x, w) + 1)(x, w),
    "checkpoint": lambda s, x, w: jax.checkpoint(lambda x, w: s(jnp.sin(s(x, w)), w))(x, w),
    "scan": lambda s, x, w: lax.scan(lambda c, a: (s(c, w) * a, c), x, jnp.arange(3.0) + 1),
    "scan of checkpoint of jit": lambda s, x, w: lax.scan(
        lambda c, _: (jax.checkpoint(jax.jit(s))(c, w), None), x, None, length=2
    )[0],
    "cond": lambda s, x, w: lax.cond(x.sum() > 0, s, lambda x, w: jnp.cos(s(x, w)), x, w),
    "switch": lambda s, x, w: lax.switch(1, [lambda x, w: x, lambda x, w: s(s(x, w), w), s], x, w),
    "fori_loop": lambda s, x, w: lax.fori_loop(0, 3, lambda _, c: s(c, w) + 1, x),
    "vmap": lambda s, x, w: jax.vmap(lambda a: s(a[None], w) * x)(x),
    "vmap over both": lambda s, x, w: jax.vmap(lambda a, k: s(a[None], k * w), (0, 0))(x, jnp.arange(4.0)),
    "vmap of scan": lambda s, x, w: jax.vmap(
        lambda a: lax.scan(lambda c, _: (s(c, w), None), a[None], None, length=2)[0]
    )(x),
    "vmap with a name": lambda s, x, w: jax.vmap(
        lambda a: s(lax.pmean(s(a[None], w), "n") * a[None], w), axis_name="n"
    )(x),
    "shard_map": sharded,
    "shard_map unchecked": functools.partial(sharded, check_vma=False),
    "pmap": mapped,
}


def both(f: Callable[..., Any]) -> Callable[..., Any]:
    """f's value and gradient."""
    return jax.value_and_grad(weighted(f), (0, 1))


@pytest.mark.parametrize("place", PLACES)
def test_no_convolution_of_lax_survives(place: str) -> None:
    f = functools.partial(PLACES[place], conv)
    step = both(jaxconv.manual(f))
    found = primitives(step, X, W)
    assert found["conv_general_dilated"] == 0
    assert min(found[f"jaxconv_{name}"] for name in ("conv", "input_grad", "kernel_grad")) > 0
    assert_close(jax.jit(step)(X, W), jax.jit(both(f))(X, W))


def test_a_loop_that_ends_when_it_likes() -> None:
    def f(x: Any) -> Any:
        return lax.while_loop(lambda c: jnp.sum(conv(c, W) ** 2) > 1, lambda c: 0.5 * conv(c, W), x)

    assert primitives(jaxconv.manual(f), X)["conv_general_dilated"] == 0
    got, want = (jax.jit(lambda x, g=g: jax.jvp(g, (x,), (x,)))(X) for g in (jaxconv.manual(f), f))
    assert_close(got, want)


def net(x: Any, w: Any) -> Any:
    """A convolution, an activation, three pools, and a dense layer on images."""
    y = jax.jit(jax.nn.silu)(conv(x, w))
    y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME") / 4
    return jnp.tanh(max_pool(y) @ w[0, 0]) - lax.reduce_window(y, np.inf, lax.min, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")


def test_every_mode_and_order_on_either_side() -> None:
    x, w, t = X[:1], W, random(1, 4, 4, 2, seed=2)
    scalar = lambda f: lambda x: weighted(lambda x: f(x, w) ** 2)(x)  # noqa: E731

    def modes(f: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        loss = scalar(f)
        return {
            "grad": jax.grad(loss),
            "value_and_grad": jax.value_and_grad(loss),
            "jvp": lambda x: jax.jvp(loss, (x,), (t,)),
            "linearize": lambda x: jax.linearize(loss, x)[1](t),
            "hessian": lambda x: jax.hessian(lambda a: loss(a * x))(1.5),
            "jacrev": lambda x: jax.jacrev(lambda a: f(a * x, w))(1.5),
            "jacfwd": lambda x: jax.jacfwd(lambda a: f(a * x, w))(1.5),
            "reverse over forward": jax.grad(lambda x: jax.jvp(loss, (x,), (t,))[1]),
            "gradients of gradients": jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)),
            "one gradient per example": jax.vmap(jax.grad(lambda x: loss(x[None]))),
        }

    def all_of(modes: dict[str, Callable[..., Any]]) -> Any:
        return jax.jit(lambda x: {name: mode(x) for name, mode in modes.items()})(x)

    want = all_of(modes(net))
    assert_close(all_of(modes(jaxconv.manual(net))), want)
    within = modes(net)
    names = ("grad", "jvp", "hessian", "one gradient per example")
    with pytest.warns(UserWarning, match="belong to a gradient"):
        got = all_of({name: jaxconv.manual(within[name]) for name in names})
    assert_close(got, {name: want[name] for name in names})


def test_one_kernel_gradient_for_a_batch_of_examples() -> None:
    """Of a function of one example, mapped over a batch: no kernel gradient per example, as JAX has it."""
    f = jaxconv.manual(lambda x, w: jnp.sum(conv(x[None], w) ** 2))
    batched = jax.grad(lambda w: jax.vmap(f, (0, None))(X, w).sum())
    (gradient,) = [eqn for eqn in program(batched, W) if eqn.primitive.name == "jaxconv_kernel_grad"]
    assert gradient.outvars[0].aval.shape == W.shape
    inside = jax.grad(lambda w: jaxconv.manual(jax.vmap(lambda x: jnp.sum(conv(x[None], w) ** 2)))(X).sum())
    assert_close(jax.jit(inside)(W), jax.jit(batched)(W))


def test_collectives_of_a_vmap_around() -> None:
    def f(x: Any, w: Any) -> Any:
        return conv(lax.pmean(conv(x[None], w), "n") * x[None], w)

    step = lambda f: both(jax.vmap(f, (0, None), axis_name="n"))  # noqa: E731
    assert primitives(step(jaxconv.manual(f)), X, W)["conv_general_dilated"] == 0
    assert_close(jax.jit(step(jaxconv.manual(f)))(X, W), jax.jit(step(f))(X, W))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_arrays_of_a_mesh_stay_where_they_are(kind: AxisType) -> None:
    mesh = cpu_mesh(kind, data=2, model=2)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    f = jax.jit(lambda x, w: lax.scan(lambda c, _: (conv(c, w), None), x, None, length=2)[0])
    want = jax.jit(both(f))(X, W)
    with jax.set_mesh(mesh):
        x, w = place(X, "data"), place(W)
        got = jax.jit(both(jaxconv.manual(f)))(x, w)
        y = jaxconv.manual(f)(x, w)
    assert_close(jax.tree.map(np.asarray, got), want)
    assert y.sharding.is_equivalent_to(x.sharding, 4)
    assert [a.sharding.is_equivalent_to(b.sharding, 4) for a, b in zip(got[1], (x, w), strict=True)] == [True, True]


def test_manual_inside_a_shard_map() -> None:
    """Where operands vary over an axis of the mesh and others do not."""

    def local(f: Callable[..., Any], x: Any, w: Any) -> Any:
        return lax.psum(jnp.sum(f(x, w) ** 2), "i")

    def step(f: Callable[..., Any]) -> Callable[..., Any]:
        specs = PartitionSpec("i"), PartitionSpec()
        return jax.grad(
            jax.shard_map(functools.partial(local, f), mesh=MESH, in_specs=specs, out_specs=specs[1]), (0, 1)
        )

    looped = lambda x, w: lax.scan(lambda c, _: (jax.jit(conv)(c, w), None), x, None, length=2)[0]  # noqa: E731
    for f in (net, looped):
        assert primitives(step(jaxconv.manual(f)), X, W)["conv_general_dilated"] == 0
        assert_close(jax.jit(step(jaxconv.manual(f)))(X, W), jax.jit(step(f))(X, W))


def test_a_function_with_a_derivative_of_its_own_keeps_it() -> None:
    @jax.custom_vjp
    def by_vjp(x: Any) -> Any:
        return conv(x, W)

    by_vjp.defvjp(lambda x: (conv(x, W), None), lambda _, g: (7 * conv(g, W),))

    @jax.custom_jvp
    def by_jvp(x: Any) -> Any:
        return conv(x, W)

    by_jvp.defjvp(lambda x, t: (conv(*x, W), 7 * conv(*t, W)))
    for own in (by_vjp, by_jvp, jax.jit(by_vjp)):
        f = jaxconv.manual(lambda x, own=own: weighted(conv)(jnp.sin(own(x)), W))
        found = primitives(f, X)
        assert found["jaxconv_conv"] == 1 and found["conv_general_dilated"] == 1
        want = jax.grad(lambda x, own=own: weighted(conv)(jnp.sin(own(x)), W))
        assert_close(jax.jit(jax.grad(f))(X), jax.jit(want)(X))


def test_it_is_the_inverse_of_automatic() -> None:
    """Equation for equation where nothing is replaced; elsewhere the convolutions of `lax` are back."""

    def f(x: Any) -> Any:
        y, _ = lax.scan(lambda c, a: (jax.jit(jnp.sin)(c) * a, c), jax.nn.relu(x), jnp.arange(3.0))
        y = lax.cond(y.sum() > 0, jax.checkpoint(jnp.cos), lambda y: y, y)
        return (
            jax.vmap(jnp.dot)(y[0, 0], x[0, 0]),
            lax.sort(y),
            jnp.linalg.solve(3 * jnp.eye(4) + y[0, :, :, 0], x[0, 0]),
        )

    with pytest.warns(UserWarning, match="nothing in f is replaced"):
        assert str(jax.make_jaxpr(jaxconv.manual(f))(X)) == str(jax.make_jaxpr(f)(X))
        again = jax.make_jaxpr(jaxconv.automatic(jaxconv.manual(f)))(X)
    assert str(again) == str(jax.make_jaxpr(jaxconv.automatic(f))(X))
    found = primitives(jax.grad(weighted(jaxconv.automatic(jaxconv.manual(net)))), X, W)
    assert not [name for name in found if name.startswith("jaxconv_")]
    assert found["select_and_scatter_add"] == 2 and found["conv_general_dilated"] > 1
    assert_close(jaxconv.automatic(jaxconv.manual(net))(X, W), net(X, W))


def test_a_deep_net_is_read_in_no_time() -> None:
    """Every program is asked once what is in it, however deep it lies."""

    def deep(x: Any, depth: int) -> Any:
        return jax.jit(lambda x: jnp.sin(deep(x, depth - 1) + 1))(x) if depth else conv(x, W)

    f = jaxconv.manual(functools.partial(deep, depth=20))
    jaxpr = jax.make_jaxpr(functools.partial(deep, depth=20))(X).jaxpr
    decided = []
    with pytest.MonkeyPatch.context() as patch:
        from jaxconv.transforms import replacements

        real = replacements.decide
        patch.setattr(replacements, "decide", lambda eqn: decided.append(eqn) or real(eqn))
        jax.make_jaxpr(f)(X)
    assert len(decided) <= 4 * len(list(equations(jaxpr)))
