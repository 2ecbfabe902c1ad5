"""Types that a result of this library cannot have stay `lax`'s: weak ones, axes of a mesh, floats without −∞."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from tests.support.devices import cpu_mesh
from tests.support.replaced import NHWC, conv, max_pool, primitives, random

pytestmark = pytest.mark.filterwarnings("ignore:manual. nothing in:UserWarning")


def sums(x: Any) -> Any:
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def test_a_weakly_typed_result_stays_one() -> None:
    weak = jnp.full((1, 4, 4, 1), 1.0)
    assert weak.weak_type
    kernel = jnp.full((1, 1, 1, 1), 2.0)
    calls: list[Callable[[Any], Any]] = [sums, max_pool, lambda x: conv(x, kernel), lambda x: x @ kernel[0, 0]]
    for f in calls:
        got, want = jaxconv.manual(f)(weak), f(weak)
        assert jax.typeof(got) == jax.typeof(want) and got.weak_type
        assert (got * jnp.bfloat16(2)).dtype == jnp.bfloat16
    strong = weak.astype(jnp.float32) * np.float32(1)
    assert not strong.weak_type and primitives(jaxconv.manual(sums), strong)["jaxconv_window_sum"] == 1


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, jnp.bfloat16], ids=str)
def test_pools_of_floats_without_infinity(dtype: Any) -> None:
    x = jnp.asarray(random(1, 4, 4, 1), dtype)
    for reduction, start in ((lax.max, jnp.finfo(dtype).min), (lax.min, jnp.finfo(dtype).max)):

        def f(x: Any, reduction: Any = reduction, start: Any = start) -> Any:
            return lax.reduce_window(x, np.asarray(start, dtype), reduction, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")

        got, want = jaxconv.manual(f)(x), f(x)
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))
        assert not np.isnan(np.asarray(got, np.float32)).any()


EXPLICIT: dict[str, tuple[Callable[..., Any], tuple[int, ...], P]] = {
    "dense, both axes split": (lambda x: x + x @ jnp.ones((10, 10), x.dtype), (4, 6, 10), P("a", "b", None)),
    "dense, the second axis split": (lambda x: x @ jnp.ones((10, 3), x.dtype), (4, 6, 10), P(None, "b", None)),
    "a pool with two leading axes": (
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 1, 2, 2, 1), (1, 1, 2, 2, 1), "VALID"),
        (4, 2, 4, 4, 4),
        P("a", "b", None, None, None),
    ),
    "a pool of images": (max_pool, (4, 4, 4, 3), P("a", None, None, None)),
    "batch groups": (
        lambda x: lax.conv_general_dilated(
            x, jnp.ones((2, 4, 6), x.dtype), (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"), batch_group_count=2
        ),
        (4, 5, 4),
        P("a", None, None),
    ),
    "a convolution": (
        lambda x: lax.conv_general_dilated(x, jnp.ones((3, 3, 3, 4), x.dtype), (1, 1), "SAME", dimension_numbers=NHWC),
        (4, 4, 4, 3),
        P("a", None, None, None),
    ),
}


@pytest.mark.parametrize("case", EXPLICIT)
def test_axes_of_an_explicit_mesh_stay_where_they_are(case: str) -> None:
    f, shape, spec = EXPLICIT[case]
    mesh = cpu_mesh(AxisType.Explicit, a=2, b=2)
    with jax.set_mesh(mesh):
        x = jax.device_put(random(*shape), NamedSharding(mesh, spec))
        got, want = jax.jit(jaxconv.manual(f))(x), jax.jit(f)(x)
        assert jax.typeof(got) == jax.typeof(want)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_attributes_of_f_are_not_those_of_manual() -> None:
    class Net:
        def __init__(self) -> None:
            self.report = 3

        def __call__(self, x: Any) -> Any:
            return max_pool(x)

    f = jaxconv.manual(Net())
    assert [row.op for row in f.report(jnp.ones((1, 4, 4, 1), jnp.float32)).replaced] == ["max_pool"]


def test_a_product_of_a_batch_is_told_as_one() -> None:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def f(x: Any, w: Any) -> Any:
        return jax.checkpoint(lambda x, w: jnp.sin(x @ w), policy=policy)(x, w)

    def residuals(f: Callable[..., Any]) -> list[tuple[int, ...]]:
        x, w = jnp.ones((7, 2, 3, 4)), jnp.ones((7, 4, 5))
        saved = jax.eval_shape(lambda x, w: jax.vjp(jax.vmap(f), x, w)[1], x, w)
        return sorted(a.shape for a in jax.tree.leaves(saved))

    assert residuals(jaxconv.manual(f)) == residuals(f)
