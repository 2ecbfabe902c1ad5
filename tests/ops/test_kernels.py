"""The engine's kernels under the transformations of JAX: as without the engine, and called where they may be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv.engines import Native
from jaxconv.engines.onednn import loading
from jaxconv.engines.onednn.norms import gradient
from jaxconv.ops import standardise
from tests.support.cases_ops import assert_close, normal
from tests.support.sampling import sampled

why_off = loading.why_off()
pytestmark = pytest.mark.skipif(why_off is not None, reason=f"the native engine is off: {why_off}")
POOLS, NORMS = "jaxconv_windows", "jaxconv_norm_gradient"


def _batch_norm(x: Any, scale: Any, bias: Any, rules: str = "fast") -> jax.Array:
    state = {"mean": jnp.zeros(16, jnp.float32), "var": jnp.ones(16, jnp.float32)}
    return jaxconv.batch_norm(x, scale, bias, state, train=True, rules=rules)[0]


def _group_norm(x: Any, scale: Any, bias: Any, rules: str = "fast") -> jax.Array:
    return jaxconv.group_norm(x, 4, scale, bias, rules=rules)


OPS: dict[str, tuple[Callable[..., jax.Array], str]] = {
    "max_pool": (partial(jaxconv.max_pool, window=3, stride=2, padding="SAME"), POOLS),
    "avg_pool": (partial(jaxconv.avg_pool, window=3, stride=2, padding="SAME"), POOLS),
    "lp_pool": (partial(jaxconv.lp_pool, window=3, p=3, stride=2, padding="SAME"), POOLS),
    "batch_norm": (_batch_norm, NORMS),
    "layer_norm": (jaxconv.layer_norm, NORMS),
    "rms_norm": (jaxconv.rms_norm, NORMS),
    "group_norm": (_group_norm, NORMS),
    "instance_norm": (jaxconv.instance_norm, NORMS),
}
EVERY = pytest.mark.parametrize("name", OPS)
SOME = pytest.mark.parametrize("name", ["max_pool", "avg_pool", "batch_norm", "layer_norm"])


def arguments(name: str, batch: int = 4, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    channels = [] if OPS[name][1] == POOLS else [1 + 0.3 * normal((16,), 1), normal((16,), 2)]
    return tuple(a.astype(dtype) for a in (normal((batch, 5, 6, 16)), *channels))


def loss(name: str, rules: str = "fast") -> Callable[..., jax.Array]:
    """Σ δ · y², for a random δ."""

    def f(*arrays: Any) -> jax.Array:
        y = OPS[name][0](*arrays, rules=rules)
        return (jnp.asarray(normal(y.shape, 7), y.dtype) * y * y).sum()

    return f


def gradient_of(name: str, rules: str = "fast") -> Callable[..., Any]:
    return jax.grad(loss(name, rules), tuple(range(len(arguments(name)))))


def calls(f: Callable[..., Any], *args: Any) -> int:
    """How many calls of the engine a compiled program holds."""
    text = jax.jit(f).lower(*args).as_text()
    return text.count(POOLS) + text.count(NORMS)


@EVERY
def test_gradients_are_those_of_automatic_differentiation(name: str) -> None:
    args = arguments(name)
    assert OPS[name][1] in jax.jit(gradient_of(name)).lower(*args).as_text()
    expected = jax.jit(gradient_of(name, "autodiff"))(*arguments(name, dtype=np.float64))
    for rules in ("fast", "rotated"):
        assert_close(jax.jit(gradient_of(name, rules))(*args), expected, 1e-5)


@SOME
def test_autodiff_and_automatic_call_no_engine(name: str) -> None:
    args = arguments(name)
    assert calls(loss(name, "autodiff"), *args) == calls(gradient_of(name, "autodiff"), *args) == 0
    assert calls(jax.grad(jaxconv.automatic(loss(name))), *args) == 0
    plain = jax.grad(jaxconv.automatic(loss(name)), tuple(range(len(args))))(*args)
    assert_close(plain, gradient_of(name)(*args), 1e-5)


@SOME
def test_hessians_and_forward_mode(name: str) -> None:
    args = arguments(name)
    moves = tuple(normal(a.shape, 5 + i).astype(np.float32) for i, a in enumerate(args))

    def second(rules: str, dtype: Any) -> Any:
        points, along = arguments(name, dtype=dtype), tuple(m.astype(dtype) for m in moves)
        forwards = jax.jvp(gradient_of(name, rules), points, along)[1]
        backwards = jax.grad(lambda *a: jax.jvp(loss(name, rules), a, along)[1])(*points)
        return forwards, backwards

    assert_close(second("fast", np.float32), second("autodiff", np.float64), 1e-4)


@SOME
def test_vmap_of_the_gradient_and_the_gradient_of_vmap(name: str) -> None:
    args = arguments(name)
    xs = np.stack([args[0], args[0][::-1], 2 * args[0]])
    every = (0,) + (None,) * (len(args) - 1)
    of_each = jax.vmap(gradient_of(name), every)
    assert_close(
        of_each(xs, *args[1:]),
        jax.tree.map(lambda *a: np.stack(a), *(gradient_of(name)(x, *args[1:]) for x in xs)),
        1e-5,
    )
    assert calls(of_each, xs, *args[1:]) > 0
    together = jax.grad(lambda *a: jax.vmap(loss(name), every)(*a).sum(), tuple(range(len(args))))(xs, *args[1:])
    own, *shared = of_each(xs, *args[1:])
    assert_close(together, (own, *(s.sum(0) for s in shared)), 1e-5)
    nested = jax.vmap(jax.vmap(gradient_of(name), every), every)(xs[None], *args[1:])
    assert_close(jax.tree.map(lambda a: a[0], nested), of_each(xs, *args[1:]), 1e-5)
    assert jax.tree.map(jnp.shape, of_each(xs[:0], *args[1:]))[0] == (0, *args[0].shape)


@SOME
def test_eager_calls_and_disabled_jit(name: str) -> None:
    args = arguments(name)
    expected = jax.jit(gradient_of(name))(*args)
    assert_close(gradient_of(name)(*args), expected, 1e-6)
    with jax.disable_jit():
        assert_close(gradient_of(name)(*args), expected, 1e-6)


@SOME
def test_a_shard_calls_the_engine_and_a_program_that_xla_splits_does_not(name: str) -> None:
    """Batch norm has statistics of its shard there; the others do not notice."""
    args, mesh = arguments(name, batch=8), jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    f = gradient_of_first(name)
    shards = jax.shard_map(f, mesh=mesh, in_specs=(P("data"), *[P()] * (len(args) - 1)), out_specs=P("data"))
    assert calls(shards, *args) > 0
    each = [f(x, *args[1:]) for x in np.split(args[0], 4)]
    assert_close(np.asarray(jax.jit(shards)(*args)), np.concatenate(each), 1e-5)
    x = jax.device_put(args[0], NamedSharding(mesh, P("data")))
    assert calls(f, x, *args[1:]) == 0
    assert_close(np.asarray(jax.jit(f)(x, *args[1:])), np.asarray(f(*args)), 1e-5)


def gradient_of_first(name: str) -> Callable[..., jax.Array]:
    """The gradient of Σ y³ in x: every example the same, wherever it is."""
    return jax.grad(lambda *a: (OPS[name][0](*a) ** 3).sum())


@pytest.mark.parametrize("name", ["max_pool", "layer_norm"])
def test_axes_of_an_explicit_mesh_are_kept(name: str) -> None:
    args, mesh = arguments(name), jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    expected = gradient_of_first(name)(*args)
    with jax.set_mesh(mesh):
        x = jax.device_put(args[0], NamedSharding(mesh, P("data")))
        got = jax.jit(gradient_of_first(name))(x, *args[1:])
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 4)
    assert_close(np.asarray(got), np.asarray(expected), 1e-5)


@SOME
def test_an_exported_program_needs_no_engine(name: str) -> None:
    args = arguments(name)
    exported = jax.export.export(jax.jit(gradient_of(name)))(*args)
    assert POOLS not in exported.mlir_module() and NORMS not in exported.mlir_module()
    assert_close(exported.call(*args), gradient_of(name)(*args), 1e-5)


@SOME
def test_without_the_engine_everything_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(name)
    with_engine = jax.jit(gradient_of(name))(*args)
    monkeypatch.setattr(loading, "why_off", lambda: "for a test")
    jax.clear_caches()
    assert calls(gradient_of(name), *args) == 0
    assert_close(gradient_of(name)(*args), with_engine, 1e-5)
    jax.clear_caches()


# Norms


# (axes of the statistics, shape of x, shape of the scale), as the norms have them and with what sizes may be
PATTERNS = {
    "batch": ((0, 1, 2), (3, 5, 4, 19), (1, 1, 1, 19)),
    "batch-long": ((0,), (700, 16), (1, 16)),
    "batch-wide": ((0,), (40, 1030), (1, 1030)),
    "layer": ((2,), (3, 50, 33), (1, 1, 33)),
    "layer-one-row": ((0,), (70,), (70,)),
    "group": ((1, 3), (2, 61, 4, 9), (1, 1, 4, 9)),
    "group-one": ((1, 3), (2, 61, 1, 20), (1, 1, 1, 20)),
    "group-each": ((1, 3), (2, 1, 5, 7), (1, 1, 5, 7)),
    "instance": ((1, 2), (3, 8, 7, 17), (1, 1, 1, 17)),
    "no-example": ((1, 2), (0, 4, 5, 16), (1, 1, 1, 16)),
    "no-row": ((2,), (3, 0, 16), (1, 1, 16)),
}


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "rms"])
@pytest.mark.parametrize("dtype", sampled({d.__name__: d for d in (jnp.float32, jnp.bfloat16, jnp.float16)}, every=2))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gradient_of_a_norm_is_at_least_as_exact_as_in_plain_jax(pattern: str, dtype: Any, centred: bool) -> None:
    """Each error, relative to the largest entry, against float64; where μ is large beside σ too."""
    axes, shape, scaled = PATTERNS[pattern]
    over = standardise.Over(axes, 1e-3, centred)
    x, g = jnp.asarray(normal(shape, 1) + 3, dtype), jnp.asarray(normal(shape, 2), dtype)
    scale = jnp.asarray(1 + 0.5 * normal(scaled, 3), jnp.float32)
    _, mu, inverse, _ = standardise._normalise_remembering(over, x, scale, scale)[1]
    assert isinstance(gradient(axes, centred, 0, g, x, mu, inverse, scale), Native)

    def exact(a: jax.Array) -> jax.Array:
        return jnp.asarray(a, jnp.float64)

    arrays = (g, x, mu, inverse, scale)
    truth = standardise._normalise_cotangent(*map(exact, arrays), static=over)
    plain = standardise._normalise_cotangent(*arrays, static=over)
    native = jax.jit(partial(standardise._normalisation.transpose, static=over))(*arrays)
    for own, theirs, true in zip(native, plain, truth, strict=True):
        assert own.shape == true.shape and own.dtype == theirs.dtype
        size = float(jnp.abs(true).max(initial=0)) or 1.0
        errors = [float(jnp.abs(exact(a) - true).max(initial=0)) / size for a in (own, theirs)]
        assert errors[0] <= 1.5 * errors[1] + 4 * float(jnp.finfo(own.dtype).eps), errors


def test_a_channel_that_does_not_vary_passes_no_gradient() -> None:
    x = jnp.ones((4, 3, 16), jnp.float32).at[..., 1].set(normal((4, 3)).astype(np.float32))
    f = partial(_at_zero_eps, jnp.asarray(normal(x.shape, 2), jnp.float32))
    dx = jax.jit(jax.grad(f))(x)
    assert np.isfinite(dx).all() and not np.delete(np.asarray(dx), 1, -1).any() and np.asarray(dx)[..., 1].any()


def _at_zero_eps(delta: jax.Array, x: jax.Array) -> jax.Array:
    ones = jnp.ones(16, jnp.float32)
    return (jaxconv.batch_norm(x, ones, ones, {"mean": ones, "var": ones}, train=True, eps=0)[0] * delta).sum()


def test_norms_that_are_left_to_xla() -> None:
    def refusal(axes: tuple[int, ...], shape: tuple[int, ...], scale: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        x, s = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(scale, jnp.float32)
        return gradient(axes, True, 0, x, x, s, s, s)

    assert "side by side" in refusal((0, 2, 3), (2, 16, 4, 5), (1, 16, 1, 1))
    assert "side by side" in refusal((0, 1), (2, 3, 15), (1, 1, 15))
    assert "inner positions" in refusal((0,), (9, 2, 16), (1, 1, 16))
    assert "float64" in refusal((0,), (9, 16), (1, 16), jnp.float64)
