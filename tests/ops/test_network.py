"""Every transformation, on a whole network built from the ops, agrees with automatic differentiation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    LayerNorm,
    MaxPool,
    residual,
    serial,
)
from tests.support.devices import cpu_mesh, on_cpu
from tests.support.rule_sets import RULES

# Small, but with every kind of op: strided, grouped, dilated, pooled, normalised, with a branch.
NET = serial(
    Conv(4, 3, stride=2), BatchNorm(), Activation(jaxconv.silu), MaxPool(2, stride=1),
    residual(serial(Conv(4, 3, groups=2, dilation=2), LayerNorm(), Activation(jaxconv.gelu))),
    AvgPool(2, stride=1, padding="SAME"), Flatten(), Dense(3),
)  # fmt: skip
SHAPE = (4, 7, 6, 2)


@functools.cache
def setup() -> tuple[Any, Any, jax.Array, jax.Array]:
    """Weights, state, images and labels, all in float64 where they are floating."""
    params, state, _ = NET.init(jax.random.key(0), SHAPE)
    params, state = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE))
    return params, state, x, jnp.array([0, 2, 1, 1])


def loss(params: Any, x: jax.Array, labels: jax.Array, rules: Any = "fast", train: bool = True) -> jax.Array:
    """Mean cross-entropy of the network."""
    logits, _ = NET.apply(params, setup()[1], x, train=train, rules=rules)
    return jaxconv.softmax_cross_entropy(logits, labels, rules=rules).mean()


def example_loss(params: Any, x: jax.Array, label: jax.Array, rules: Any) -> jax.Array:
    """The loss of one example; inference mode, so that examples do not see each other."""
    return loss(params, x[None], label[None], rules, train=False)


def assert_agree(ours: Any, exact: Any) -> None:
    """Norm-wise, leaf by leaf, to 1e-11 of the leaf: thousands of float64 roundings, no single wrong term."""
    for path, (a, b) in zip(
        map(jax.tree_util.keystr, [p for p, _ in jax.tree_util.tree_leaves_with_path(exact)]),
        zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True),
        strict=True,
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype
        size = max(float(np.linalg.norm(b)), 1e-3)
        assert np.linalg.norm(a - b) <= 1e-11 * size, f"{path}: {np.linalg.norm(a - b) / size:.1e}"


def agree(transform: Callable[[Any], Callable[..., Any]], *args: Any, rules: str = "fast") -> None:
    """`transform(rules)` is a function of `args`; compare `rules` with automatic differentiation."""
    with on_cpu():
        exact = jax.jit(transform("autodiff"))(*args)
    assert_agree(jax.jit(transform(rules))(*args), exact)


@pytest.mark.parametrize("rules", RULES)
def test_value_and_grad_in_weights_and_input(rules: str) -> None:
    params, _, x, y = setup()
    agree(lambda r: jax.value_and_grad(lambda p, x: loss(p, x, y, r), (0, 1)), params, x, rules=rules)


def test_eager_equals_jit() -> None:
    params, _, x, y = setup()
    assert_agree(jax.grad(loss)(params, x, y), jax.jit(jax.grad(loss))(params, x, y))


def test_vjp_and_jvp() -> None:
    params, _, x, y = setup()
    agree(lambda r: lambda p: jax.vjp(lambda p: loss(p, x, y, r), p)[1](jnp.float64(0.7)), params)
    agree(lambda r: lambda p: jax.jvp(lambda p: loss(p, x, y, r), (p,), (jax.tree.map(jnp.sin, p),)), params)


def test_linearize() -> None:
    params, _, x, y = setup()
    agree(lambda r: lambda p: jax.linearize(lambda p: loss(p, x, y, r), p)[1](jax.tree.map(jnp.cos, p)), params)


def test_jacfwd_equals_jacrev() -> None:
    params, state, x, _ = setup()

    def logits(x: jax.Array, rules: str) -> jax.Array:
        return NET.apply(params, state, x, train=True, rules=rules)[0]

    x = x[:2]
    exact = jax.jit(jax.jacrev(functools.partial(logits, rules="autodiff")))(x)
    assert_agree(jax.jit(jax.jacfwd(functools.partial(logits, rules="fast")))(x), exact)
    assert_agree(jax.jit(jax.jacrev(functools.partial(logits, rules="fast")))(x), exact)


def test_hessian_vector_products_forward_over_reverse_and_reverse_over_reverse() -> None:
    params, _, x, y = setup()
    direction = jax.tree.map(jnp.sin, params)

    def forward_over_reverse(r: str) -> Callable[[Any], Any]:
        return lambda p: jax.jvp(jax.grad(lambda p: loss(p, x, y, r)), (p,), (direction,))[1]

    def reverse_over_reverse(r: str) -> Callable[[Any], Any]:
        def slope(p: Any) -> jax.Array:
            grads = jax.grad(lambda p: loss(p, x, y, r))(p)
            return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))

        return jax.grad(slope)

    agree(forward_over_reverse, params)
    agree(reverse_over_reverse, params)


def test_hessian_in_the_first_bias() -> None:
    params, _, x, y = setup()

    def with_bias(r: str) -> Callable[[jax.Array], jax.Array]:
        return jax.hessian(lambda b: loss([{**params[0], "b": b}, *params[1:]], x, y, r))

    agree(with_bias, params[0]["b"])


@pytest.mark.parametrize("rules", RULES)
def test_per_example_gradients_vmap_of_grad(rules: str) -> None:
    params, _, x, y = setup()
    agree(
        lambda r: jax.vmap(jax.grad(lambda p, x, y: example_loss(p, x, y, r)), (None, 0, 0)), params, x, y, rules=rules
    )


def test_grad_of_vmap_over_examples() -> None:
    params, _, x, y = setup()
    agree(
        lambda r: jax.grad(lambda p: jax.vmap(lambda x, y: example_loss(p, x, y, r))(x, y).mean()),
        params,
    )


def test_grad_of_vmap_computes_one_kernel_gradient_a_layer() -> None:
    params, _, x, y = setup()
    program = jax.make_jaxpr(jax.grad(lambda p: jax.vmap(lambda x, y: example_loss(p, x, y, "fast"))(x, y).sum()))(
        params
    )
    assert str(program).count("jaxconv_kernel_grad") == 3  # two convolutions and a dense layer


def test_an_ensemble_vmap_over_weights() -> None:
    params, _, x, y = setup()
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a, a + 1]), params)
    agree(lambda r: jax.vmap(jax.grad(lambda p: loss(p, x, y, r))), many)


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable], ids=["nothing", "dots"])
def test_checkpoint(policy: Any) -> None:
    params, _, x, y = setup()
    agree(lambda r: jax.grad(jax.checkpoint(lambda p: loss(p, x, y, r), policy=policy)), params)


def test_scan_over_layers() -> None:
    _, _, x, _ = setup()
    w = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 3, 2, 2)) / 4)

    def deep(r: str) -> Callable[[Any], Any]:
        def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jaxconv.tanh(
                jaxconv.max_pool(jaxconv.conv(h, w, rules=r), 3, stride=1, padding=1, rules=r), rules=r
            ), None

        return jax.grad(lambda w: (jax.lax.scan(step, x, w)[0] ** 2).sum())

    agree(deep, w)


def test_cond() -> None:
    params, _, x, y = setup()

    def either(r: str) -> Callable[[Any], Any]:
        def branch(p: Any) -> jax.Array:
            return jax.lax.cond(x.sum() > 0, lambda p: loss(p, x, y, r), lambda p: 2 * loss(p, -x, y, r), p)

        return jax.grad(branch)

    agree(either, params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_jit_with_a_batch_sharded_input(kind: AxisType) -> None:
    params, _, x, y = setup()
    exact = jax.jit(jax.value_and_grad(lambda p: loss(p, x, y, "autodiff", train=False)))(params)
    mesh = cpu_mesh(kind, data=4)
    sharded, labels = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    step = jax.jit(jax.value_and_grad(lambda p, x, y: loss(p, x, y, "fast", train=False)))
    ours = step(jax.device_put(params, NamedSharding(mesh, P())), sharded, labels)
    assert_agree(ours, exact)
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(ours))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(rules: str, check_vma: bool) -> None:
    params, _, x, y = setup()
    exact = jax.jit(jax.grad(lambda p: loss(p, x, y, "autodiff", train=False)))(params)
    mesh = cpu_mesh(AxisType.Auto, data=4)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=check_vma
    )
    def step(p: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(lambda p: loss(p, x, y, rules, train=False) / 4)(p)
        # With check_vma, the transpose of "p is the same everywhere" has summed over the devices already.
        return grads if check_vma else jax.lax.psum(grads, "data")

    assert_agree(jax.jit(step)(params, x, y), exact)
