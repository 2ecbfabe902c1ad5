"""What the devices do to train on an image that is spread over them: what they hold, and what they send."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv import sharded
from tests.support.devices import cpu_mesh

MIB = 2**20
# More than a device needs for its quarter of the volume below, less than one needs for all of it.
LIMIT = 4 * MIB
STEPS = 5


class Ops(NamedTuple):
    """The ops of a network, on a whole volume or on a shard."""

    conv: Callable[..., jax.Array]
    max_pool: Callable[..., jax.Array]
    avg_pool: Callable[..., jax.Array]

    @staticmethod
    def of(module: Any, **options: Any) -> Ops:
        """XLA's own convolutions, whose memory XLA knows."""
        conv, *pools = (partial(getattr(module, name), **options) for name in Ops._fields)
        return Ops(partial(conv, engine="xla"), *pools)


def step(ops: Ops, mean: Callable[[jax.Array], jax.Array], params: Any, x: jax.Array, target: jax.Array) -> Any:
    """One step of gradient descent: the loss and the new parameters."""

    def loss(params: Any) -> jax.Array:
        z = jaxconv.relu(ops.conv(x, *params[0]))
        z = jaxconv.relu(ops.conv(ops.max_pool(z, 2), *params[1]))
        z = ops.conv(ops.avg_pool(z, 3, stride=1, padding="SAME"), *params[2])
        return mean(jnp.mean((z - target) ** 2))

    value, gradient = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - np.float32(0.05) * g, params, gradient)


def training(n: int) -> tuple[Any, ...]:
    """Parameters, a volume of n³ and what to make of it."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return np.float32(0.2) * rng.standard_normal(shape).astype(np.float32)

    kernels = (3, 3, 3, 1, 4), (3, 3, 3, 4, 4), (1, 1, 1, 4, 1)
    params = [(normal(*kernel), np.zeros(kernel[-1], np.float32)) for kernel in kernels]
    return params, normal(1, n, n, n, 1), 1 + normal(1, n // 2, n // 2, n // 2, 1)


@functools.cache
def spread() -> Any:
    """The step on a 2×2 mesh, two axes of the volume split."""
    ops = Ops.of(sharded, split=("depth", "rows", None))
    mesh, cut = cpu_mesh(AxisType.Auto, depth=2, rows=2), P(None, "depth", "rows")
    mapped = jax.shard_map(
        partial(step, ops, lambda loss: lax.pmean(loss, ("depth", "rows"))),
        mesh=mesh, in_specs=(P(), cut, cut), out_specs=P(),
    )  # fmt: skip
    return jax.jit(mapped).lower(*training(32))


@functools.cache
def compiled() -> Any:
    return spread().compile()


def held(program: Any) -> int:
    """Bytes on one device: what it is given, what it makes on the way and what it returns."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_nothing_is_gathered() -> None:
    """The parameters' gradients are summed, and borders are sent; no device ever has the volume."""
    program = compiled().as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    assert "collective-permute" in program and "all-reduce" in program


def test_a_message_to_each_neighbour_and_back() -> None:
    """Two for each split axis: where the two wide kernels and the average read, and where the δ of what is no datum
    goes home. A window beside the next and a kernel of one tap need none."""
    assert spread().as_text().count("stablehlo.collective_permute") == 2 * 2 * (3 + 2)


def test_a_volume_that_is_too_large_for_a_device_trains_on_four() -> None:
    args = training(32)
    whole = jax.jit(partial(step, Ops.of(jaxconv), lambda loss: loss)).lower(*args).compile()
    assert held(compiled()) < LIMIT < held(whole)
    losses: dict[str, list[float]] = {}
    for name, program in (("spread", compiled()), ("whole", whole)):
        params, *data = jax.device_put(args, program.input_shardings[0])
        for _ in range(STEPS):
            loss, params = program(params, *data)
            losses.setdefault(name, []).append(float(loss))
    assert losses["spread"] == sorted(losses["spread"], reverse=True)
    assert losses["spread"][-1] < 0.7 * losses["spread"][0]
    np.testing.assert_allclose(losses["spread"], losses["whole"], rtol=1e-4)


@pytest.mark.parametrize("op", ["conv", "max_pool", "avg_pool"])
def test_each_op_sends_borders_only(op: str) -> None:
    """A line of four shards, forward and backward: every message is the halo, however long the image."""
    x, w = np.ones((1, 64, 4, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
    options: dict[str, Any] = {"split": ("rows", None), "padding": "SAME", "stride": 1}

    def pulled(x: Any, w: Any) -> Any:
        y, pullback = jax.vjp(
            lambda x: sharded.conv(x, w, **options) if op == "conv" else getattr(sharded, op)(x, 3, **options), x
        )
        return pullback(y)[0]

    mesh, cut = cpu_mesh(AxisType.Auto, rows=4), P(None, "rows")
    program = jax.jit(jax.shard_map(pulled, mesh=mesh, in_specs=(cut, P()), out_specs=cut)).lower(x, w)
    sent = [line for line in program.as_text().splitlines() if "collective_permute" in line]
    assert len(sent) == 4 and all("(tensor<1x1x4x8xf32>)" in line for line in sent)
    text = program.compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" not in text
