"""Every op under every transformation: what `rules="fast"` gives is what differentiating the plain program gives."""

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

from tests.support.cases_ops import OPS, Op, assert_close, normal
from tests.support.devices import cpu_mesh, on_cpu

FORWARD_MODE = r"has reverse mode only: .* rules=\"fast\" has them all\."

# Each is (f, loss, argnums, points, tangents) -> result. f and loss = Σ sin(f + 1) take the differentiable arguments;
# `points` holds two values of each, stacked. Transformations of one point take the first.


def _one(points: Any) -> Any:
    return [p[0] for p in points]


def _total(loss: Any, mapped: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *points: mapped(loss)(*points).sum()


def _looped(loss: Any) -> Callable[..., jax.Array]:
    """The total over the points, by a loop over a branch over a checkpoint."""

    def step(total: Any, point: Any) -> Any:
        branch = lax.cond(point[0].sum() < 1e9, jax.checkpoint(loss), lambda *p: jnp.zeros(()), *point)
        return total + branch, None

    return lambda *points: lax.scan(step, jnp.zeros(()), points)[0]


def _along(gradient: Any, tangents: Any) -> Callable[..., jax.Array]:
    return lambda *p: sum(jnp.vdot(d, t) for d, t in zip(gradient(*p), tangents, strict=True))


FORWARD: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, loss, n, points, tangents: jax.jvp(f, _one(points), tangents),
    "linearize": lambda f, loss, n, points, tangents: jax.linearize(f, *_one(points))[1](*tangents),
    "jacfwd": lambda f, loss, n, points, tangents: jax.jacfwd(f, n)(*_one(points)),
    "hessian": lambda f, loss, n, points, tangents: jax.hessian(loss, n)(*_one(points)),
}
REVERSE: dict[str, Callable[..., Any]] = {
    "jacrev": lambda f, loss, n, points, tangents: jax.jacrev(f, n)(*_one(points)),
    "grad-of-grad": lambda f, loss, n, points, tangents: jax.grad(_along(jax.grad(loss, n), tangents), n)(
        *_one(points)
    ),
    "vmap-of-grad": lambda f, loss, n, points, tangents: jax.vmap(jax.grad(loss, n))(*points),
    "grad-of-vmap": lambda f, loss, n, points, tangents: jax.grad(_total(loss, jax.vmap), n)(*points),
    "checkpoint-in-cond-in-scan": lambda f, loss, n, points, tangents: jax.grad(_looped(loss), n)(*points),
}
TRANSFORMATIONS = FORWARD | REVERSE


def of_floats(op: Op, rules: str, integers: Any) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """f and the loss, as functions of the differentiable arguments."""

    def f(*floats: Any) -> jax.Array:
        return op.call(*floats, *integers, rules=rules)

    return f, lambda *floats: jnp.sum(jnp.sin(f(*floats) + 1))


def two_points(op: Op) -> tuple[list[np.ndarray], tuple[np.ndarray, ...], list[np.ndarray]]:
    """Two values of each differentiable argument, the integers, and tangents."""
    count = len(op.argnums)
    first, second = op.arguments(2), op.arguments(2, seed=7)
    tangents = [normal(a.shape, 20 + i) for i, a in enumerate(first[:count])]
    return [np.stack(pair) for pair in zip(first[:count], second[:count], strict=True)], first[count:], tangents


@functools.cache
def transformed(op: Op, rules: str, names: tuple[str, ...]) -> Any:
    """The op under these transformations, as one program."""
    points, integers, tangents = two_points(op)

    def every(points: Any, tangents: Any) -> Any:
        fs = of_floats(op, rules, integers)
        return {name: TRANSFORMATIONS[name](*fs, op.argnums, points, tangents) for name in names}

    return jax.jit(every)(points, tangents)


@functools.cache
def expected(op: Op) -> dict[str, Any]:
    """The same from whole Jacobians and Hessians of the plain program, multiplied by NumPy."""
    points, integers, tangents = two_points(op)

    def dense(points: Any) -> Any:
        f, loss = of_floats(op, "autodiff", integers)
        at = [[p[i] for p in points] for i in (0, 1)]
        return [(f(*p), jax.jacrev(f, op.argnums)(*p)) for p in at], jax.hessian(loss, op.argnums)(*at[0])

    with on_cpu():
        (at, hessian) = jax.tree.map(np.asarray, jax.jit(dense)(points))
    (y, jacobian), _ = at
    push = sum(np.tensordot(j, t, t.ndim) for j, t in zip(jacobian, tangents, strict=True))
    first, second = (tuple(np.tensordot(np.cos(y + 1), j, y.ndim) for j in jacobian) for y, jacobian in at)
    both = tuple(np.stack(pair) for pair in zip(first, second, strict=True))
    curved = tuple(sum(np.tensordot(h, t, t.ndim) for h, t in zip(row, tangents, strict=True)) for row in hessian)
    return {
        **{"jvp": (y, push), "linearize": push, "jacfwd": jacobian, "jacrev": jacobian, "hessian": hessian},
        "grad-of-grad": curved,
        **dict.fromkeys(("vmap-of-grad", "grad-of-vmap", "checkpoint-in-cond-in-scan"), both),
    }


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_fast_rules_agree_with_autodiff_under(op: Op, name: str) -> None:
    assert_close(transformed(op, "fast", tuple(TRANSFORMATIONS))[name], expected(op)[name], rtol=1e-12)


# The two are bound alike, and differ in what they bind where there is a kernel.
REVERSED = [(op, rules) for op in OPS for rules in ("textbook", "rotated") if rules == "textbook" or op.name == "dense"]
# Where there is a kernel, primitives carry the rules, and forward mode is one of their modes.
ONLY_REVERSED = [(op, rules) for op, rules in REVERSED if op.name != "dense"]


@pytest.mark.parametrize(("op", "rules"), REVERSED, ids=str)
def test_the_other_rules_agree_with_autodiff_in_reverse_mode(op: Op, rules: str) -> None:
    names = ("jacrev", "grad-of-grad", "grad-of-vmap")
    assert_close(transformed(op, rules, names), {name: expected(op)[name] for name in names}, rtol=1e-12)


@pytest.mark.parametrize(("op", "rules"), ONLY_REVERSED, ids=str)
def test_custom_vjp_rules_refuse_forward_mode(op: Op, rules: str) -> None:
    points, integers, tangents = two_points(op)
    f, _ = of_floats(op, rules, integers)
    with pytest.raises(TypeError, match=FORWARD_MODE):
        jax.jvp(f, _one(points), tangents)


def value_and_gradients(op: Op, rules: str, *args: Any) -> Any:
    """y and the gradients of the loss."""
    floats, integers = args[: len(op.argnums)], args[len(op.argnums) :]
    y, pullback = jax.vjp(of_floats(op, rules, integers)[0], *floats)
    return y, pullback(jnp.cos(y + 1))


@functools.cache
def compiled(op: Op, rules: str) -> Callable[..., Any]:
    return jax.jit(functools.partial(value_and_gradients, op, rules))


@pytest.mark.parametrize("op", OPS, ids=str)
def test_jit_does_not_change_the_value(op: Op) -> None:
    args = op.arguments(4)
    assert_close(compiled(op, "fast")(*args)[0], op.call(*args, rules="fast"))


@pytest.mark.parametrize("op", [op for op in OPS if op.name in ("max_pool", "pads", "dense", "layer_norm")], ids=str)
def test_jit_does_not_change_the_gradients(op: Op) -> None:
    args = op.arguments(4)
    assert_close(compiled(op, "fast")(*args), value_and_gradients(op, "fast", *map(jnp.asarray, args)))


@pytest.mark.parametrize(("op", "rules"), REVERSED, ids=str)
def test_a_numpy_cotangent_is_as_good_as_any(op: Op, rules: str) -> None:
    """Eagerly, `jax.vjp` hands a written rule exactly what its caller gave."""
    args = op.arguments(2)
    floats, integers = args[: len(op.argnums)], args[len(op.argnums) :]
    y, pullback = jax.vjp(of_floats(op, rules, integers)[0], *floats)
    cotangent = np.cos(np.asarray(y) + 1)
    assert_close(pullback(cotangent), pullback(jnp.asarray(cotangent)))


# Four devices share the batch


def specs(op: Op) -> list[PartitionSpec]:
    """The batch is split, the parameters are whole."""
    split, whole = PartitionSpec("data"), PartitionSpec()
    return [split] * len(op.x) + [whole] * len(op.parameters) + [split] * len(op.integers)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_sharded_batch_gives_what_the_whole_batch_gives(op: Op, kind: AxisType) -> None:
    args = op.arguments(4)
    mesh = cpu_mesh(kind, data=4)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(args, specs(op), strict=True)]
        y, gradients = compiled(op, "fast")(*placed)
    assert_close((y, gradients), compiled(op, "fast")(*args))
    for gradient, spec in zip(gradients, specs(op)[: len(gradients)], strict=True):
        assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, spec), gradient.ndim), (
            "sharded unlike its operand"
        )


@pytest.mark.parametrize(
    ("op", "rules"),
    [*((op, "fast") for op in OPS), *((op, rules) for op, rules in REVERSED if op.parameters)],
    ids=str,
)
def test_shard_map_gives_each_device_its_part_and_parameters_the_sum(op: Op, rules: str) -> None:
    args, count = op.arguments(4), len(op.argnums)
    mesh = cpu_mesh(AxisType.Auto, data=4)

    def part(*args: Any) -> Any:
        y, gradients = value_and_gradients(op, rules, *args)
        return jnp.atleast_1d(y), gradients

    out = PartitionSpec("data"), tuple(specs(op)[:count])
    actual = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=tuple(specs(op)), out_specs=out, check_vma=True))(*args)
    own = [[a[i : i + 1] if s else a for a, s in zip(args, specs(op), strict=True)] for i in range(4)]
    ys, gradients = zip(*(compiled(op, "autodiff")(*a) for a in own), strict=True)
    joined = [np.concatenate(g) if s else np.sum(g, 0) for *g, s in zip(*gradients, specs(op)[:count], strict=True)]
    assert_close(actual, (np.concatenate([np.atleast_1d(y) for y in ys]), tuple(joined)))
