"""Checkpoints, loops and branches around convolutions differentiate as they do around anything else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import checkpoint_policies as policies
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxconv
from tests.support.agreement import agree, each_rule, oracle
from tests.support.cases import cotangent

X = cotangent((2, 5, 4, 2), seed=3)
KERNELS = cotangent((3, 3, 2, 1, 2), seed=4)  # of three layers
DELTA = cotangent(X.shape, seed=5)

layer = partial(jaxconv.conv, groups=2, padding="SAME_LOWER")


def gradient(network: Callable[..., jax.Array]) -> Callable[..., Callable[..., Any]]:
    """rules -> the loss of a network with its gradients in the kernels and in x."""

    def of(rules: str) -> Callable[..., Any]:
        def loss(kernels: Any, x: Any, delta: Any) -> jax.Array:
            return jnp.sum(delta * network(partial(layer, rules=rules), kernels, x))

        return jax.value_and_grad(loss, (0, 1))

    return of


def plain(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
    """Residual layers, one after the other."""
    for w in kernels:
        x = x + conv(x, w) ** 2
    return x


def assert_equals_plain(network: Callable[..., jax.Array], rules: tuple[str, ...] = ("fast", "rotated")) -> None:
    agree(each_rule(gradient(network), rules), oracle(gradient(plain), rules), KERNELS, X, DELTA)


POLICIES = {
    "default": None,
    "everything": policies.everything_saveable,
    "nothing": policies.nothing_saveable,
    "dots": policies.dots_saveable,
    "only-z": policies.save_only_these_names("z"),
    "all-but-z": policies.save_anything_except_these_names("z"),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_checkpoint_changes_no_gradient(policy: Any) -> None:
    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        @partial(jax.checkpoint, policy=policy)
        def block(x: Any, w: Any) -> jax.Array:
            return x + checkpoint_name(conv(x, w), "z") ** 2

        for w in kernels:
            x = block(x, w)
        return x

    assert_equals_plain(network)


def test_scan_over_stacked_kernels() -> None:
    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.scan(lambda x, w: (x + conv(x, w) ** 2, None), x, kernels)[0]

    assert_equals_plain(network)


def test_checkpoint_inside_scan() -> None:
    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.scan(jax.checkpoint(lambda x, w: (x + conv(x, w) ** 2, None)), x, kernels)[0]

    assert_equals_plain(network)


def test_fori_loop_over_stacked_kernels() -> None:
    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.fori_loop(0, len(kernels), lambda i, x: x + conv(x, kernels[i]) ** 2, x)

    assert_equals_plain(network)


def test_map_over_examples() -> None:
    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.map(lambda example: plain(conv, kernels, example[None])[0], x)

    assert_equals_plain(network)


def test_map_over_batches_of_examples() -> None:
    """`batch_size` maps with vmap inside."""

    def network(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.map(lambda example: plain(conv, kernels, example[None])[0], x, batch_size=2)

    assert_equals_plain(network)


@pytest.mark.parametrize("taken", [True, False])
def test_cond_differentiates_the_branch_that_it_takes(taken: bool) -> None:
    def branching(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return lax.cond(jnp.asarray(taken), lambda x: plain(conv, kernels, x), lambda x: x + conv(x, kernels[0]), x)

    def chosen(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
        return plain(conv, kernels, x) if taken else x + conv(x, kernels[0])

    agree(gradient(branching)("fast"), gradient(chosen)("autodiff"), KERNELS, X, DELTA)


def looping(conv: Callable[..., jax.Array], kernels: Any, x: Any) -> jax.Array:
    """A while loop: its trip count is not known when it is differentiated."""

    def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
        i, x = state
        return i + 1, x + conv(x, kernels[i]) ** 2

    return lax.while_loop(lambda state: state[0] < len(kernels), body, (0, x))[1]


def test_forward_mode_through_a_while_loop() -> None:
    def push(network: Callable[..., jax.Array], rules: str) -> Callable[..., Any]:
        return lambda primals, tangents: jax.jvp(partial(network, partial(layer, rules=rules)), primals, tangents)

    tangents = cotangent(KERNELS.shape, seed=6), cotangent(X.shape, seed=7)
    agree(push(looping, "fast"), push(plain, "autodiff"), (KERNELS, X), tangents)


def test_vmap_of_a_while_loop_with_a_trip_count_per_example() -> None:
    """The loop runs until the last example is done and masks the others."""

    def stopped(conv: Callable[..., jax.Array], kernels: Any, x: Any, steps: Any) -> jax.Array:
        def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
            i, x = state
            return i + 1, x + conv(x[None], kernels[i])[0] ** 2

        return lax.while_loop(lambda state: state[0] < steps, body, (0, x))[1]

    def ours(kernels: Any, x: Any) -> jax.Array:
        return jax.vmap(partial(stopped, layer, kernels))(x, jnp.asarray([1, 3]))

    def theirs(kernels: Any, x: Any) -> jax.Array:
        conv = partial(layer, rules="autodiff")
        return jnp.concatenate([plain(conv, kernels[:1], x[:1]), plain(conv, kernels, x[1:])])

    agree(ours, theirs, KERNELS, X)


def test_a_checkpoint_that_saves_nothing_recomputes_the_convolution() -> None:
    def convolutions(policy: Any) -> int:
        f = jax.checkpoint(lambda x: layer(jnp.sin(layer(x, KERNELS[0])), KERNELS[1]).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(f))(np.asarray(X))).count("jaxconv_conv[")

    assert convolutions(policies.nothing_saveable) > convolutions(policies.everything_saveable)
