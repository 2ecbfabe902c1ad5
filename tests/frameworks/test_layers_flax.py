"""Every layer of Flax that convolves, pools or multiplies, with every option, through `manual`: Linen and NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import jaxconv
from tests.support.frameworks import assert_layer
from tests.support.sampling import sampled

# name -> (taps, options, the shape of x), for convolutions to 4 channels
SHARED: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "plain": ((3, 3), {}, (2, 6, 5, 2)),
    "one axis, taps as a number": (3, {}, (2, 7, 2)),
    "three axes": ((2, 1, 3), {}, (2, 4, 3, 5, 2)),
    "taps as a list": ([3, 2], {}, (2, 6, 5, 2)),
    "one example": ((3, 3), {}, (6, 5, 2)),
    "two batch axes": ((3, 3), {}, (2, 3, 6, 5, 2)),
    "strides, one each": ((3, 3), {"strides": (2, 3)}, (2, 7, 8, 2)),
    "strides, none": ((3, 3), {"strides": None}, (2, 6, 5, 2)),
    "stride beyond the window": ((2, 1), {"strides": (3, 2)}, (2, 7, 5, 2)),
    "VALID": ((3, 3), {"padding": "VALID"}, (2, 6, 5, 2)),
    "CIRCULAR": ((3, 4), {"padding": "CIRCULAR"}, (2, 6, 5, 2)),
    "CIRCULAR and strided": ((3, 4), {"padding": "CIRCULAR", "strides": (2, 2)}, (2, 6, 5, 2)),
    "padding as a number": ((3, 3), {"padding": 2}, (2, 6, 5, 2)),
    "padding, a number each": ((3, 3), {"padding": (0, 1)}, (2, 6, 5, 2)),
    "padding in pairs": ((3, 3), {"padding": ((0, 2), (1, 0)), "strides": (2, 2)}, (2, 6, 5, 2)),
    "kernel dilation": ((3, 2), {"kernel_dilation": (2, 3)}, (2, 8, 7, 2)),
    "kernel dilation, strided": ((3, 2), {"kernel_dilation": (2, 3), "strides": (2, 1)}, (2, 8, 7, 2)),
    "no bias": ((3, 3), {"use_bias": False}, (2, 6, 5, 2)),
    "mask": ((3, 3), {"mask": np.random.default_rng(1).integers(0, 2, (3, 3, 2, 4))}, (2, 6, 5, 2)),
    "precision": ((3, 3), {"precision": lax.Precision.HIGHEST}, (2, 6, 5, 2)),
}
CONV = {
    **SHARED,
    "one stride": ((3, 3), {"strides": 2}, (2, 7, 6, 2)),
    "REFLECT": ((3, 4), {"padding": "REFLECT"}, (2, 6, 5, 2)),
    "REFLECT, dilated": ((3, 2), {"padding": "REFLECT", "kernel_dilation": (1, 2)}, (2, 6, 5, 2)),
    "CAUSAL": (3, {"padding": "CAUSAL"}, (2, 7, 2)),
    "CAUSAL, dilated": (2, {"padding": "CAUSAL", "kernel_dilation": 3}, (2, 7, 2)),
    "one dilation": ((2, 2), {"kernel_dilation": 2}, (2, 6, 5, 2)),
    "input dilation": ((3, 3), {"input_dilation": (2, 1), "padding": ((1, 1), (0, 2))}, (2, 4, 5, 2)),
    "input dilation, strided": ((3, 3), {"input_dilation": 2, "strides": 3, "padding": 1}, (2, 4, 5, 2)),
    "groups": ((3, 3), {"feature_group_count": 2}, (2, 6, 5, 4)),
    "groups, strided and dilated": (
        (3, 2),
        {"feature_group_count": 2, "strides": 2, "kernel_dilation": (1, 2)},
        (2, 7, 6, 4),
    ),
    "depthwise": ((3, 3), {"feature_group_count": 4}, (2, 6, 5, 4)),
    "depthwise, two each": ((3, 3), {"feature_group_count": 2}, (2, 6, 5, 2)),
    "pointwise": ((1, 1), {}, (2, 6, 5, 2)),
    "pointwise, strided": ((1, 1), {"strides": 2}, (2, 6, 5, 2)),
}
TRANSPOSED = {
    **SHARED,
    "transposed kernel": ((3, 2), {"transpose_kernel": True, "strides": (2, 2)}, (2, 4, 5, 2)),
    "transposed kernel, CIRCULAR": (
        (3, 4),
        {"transpose_kernel": True, "strides": (2, 2), "padding": "CIRCULAR"},
        (2, 4, 5, 2),
    ),
}
TRANSPOSED["mask"] = ((3, 3), {"mask": SHARED["mask"][1]["mask"]}, (2, 6, 5, 2))
LOCAL = {
    name: case
    for name, case in CONV.items()
    if "feature_group_count" not in case[1] and not {"mask"} & case[1].keys() and name != "CIRCULAR and strided"
}
WIDE = {"param_dtype": jnp.float64}


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


def random_state(tree: Any) -> Any:
    """Biases too are not zero."""
    return jax.tree.map(lambda a: normal(*a.shape) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def assert_linen(module: nn.Module, x: Any, *more: Any, rules: bool = True) -> None:
    variables = random_state(module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, *more))
    kept = [name for name in ("batch_stats",) if name in variables]

    def apply(params: Any, x: Any) -> Any:
        made = module.apply(params, x, *more, mutable=kept)
        return made[0]

    if kept:  # a variance is not negative
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    assert_layer(apply, variables, x, rules=rules)


def assert_nnx(module: Any, x: Any, *more: Any, rules: bool = True) -> None:
    definition, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: Any, x: Any) -> Any:
        return nnx.merge(definition, params, rest, copy=True)(x, *more)

    assert_layer(apply, random_state(params), x, rules=rules)


@pytest.mark.parametrize("case", sampled(CONV))
def test_conv(case: Any) -> None:
    taps, options, shape = case
    assert_linen(nn.Conv(4, taps, **options, **WIDE), normal(*shape))
    assert_nnx(nnx.Conv(shape[-1], 4, taps, **options, **WIDE, rngs=nnx.Rngs(0)), normal(*shape))


@pytest.mark.parametrize("case", sampled(TRANSPOSED))
def test_conv_transpose(case: Any) -> None:
    taps, options, shape = case
    assert_linen(nn.ConvTranspose(4, taps, **options, **WIDE), normal(*shape))
    assert_nnx(nnx.ConvTranspose(shape[-1], 4, taps, **options, **WIDE, rngs=nnx.Rngs(0)), normal(*shape))


@pytest.mark.parametrize("case", sampled(LOCAL))
def test_conv_local(case: Any) -> None:
    taps, options, shape = case
    assert_linen(nn.ConvLocal(4, taps, **options, **WIDE), normal(*shape))


WINDOWS = {
    "one axis": ((3,), {}, (2, 7, 2)),
    "two": ((2, 3), {}, (2, 6, 5, 2)),
    "three": ((2, 1, 3), {}, (2, 4, 3, 5, 2)),
    "one example": ((2, 3), {}, (6, 5, 2)),
    "two batch axes": ((2, 3), {}, (2, 3, 6, 5, 2)),
    "strides": ((2, 3), {"strides": (2, 3)}, (2, 7, 7, 2)),
    "strides beyond the window": ((2, 1), {"strides": (3, 2)}, (2, 7, 7, 2)),
    "SAME": ((3, 2), {"padding": "SAME"}, (2, 6, 5, 2)),
    "SAME, strided": ((3, 2), {"padding": "SAME", "strides": (2, 2)}, (2, 6, 5, 2)),
    "padding in pairs": ((3, 2), {"padding": ((1, 0), (0, 1)), "strides": (2, 1)}, (2, 6, 5, 2)),
}
POOLS = {
    "max": nn.max_pool,
    "min": nn.pooling.min_pool,
    "average": nn.avg_pool,
    "average of what is there": lambda *a, **k: nn.avg_pool(*a, **k, count_include_pad=False),
    "sum": lambda x, window, strides=None, padding="VALID": nn.pool(x, 0.0, lax.add, window, strides, padding),
}


@pytest.mark.parametrize("case", sampled({f"{p}: {w}": (p, w) for p in POOLS for w in WINDOWS}, every=13))
def test_pools(case: Any) -> None:
    pool, name = case
    window, options, shape = WINDOWS[name]
    assert_layer(lambda x: POOLS[pool](x, window, **options), normal(*shape))


def test_a_pool_of_single_elements_and_one_by_a_function_of_its_own_stay() -> None:
    x = normal(2, 6, 5, 2)
    assert_layer(lambda x: nn.max_pool(x, (1, 1)), x, rules=False)

    def products(x: Any) -> Any:
        return nn.pool(x, 1.0, lax.mul, (2, 2), (1, 1), "VALID")

    with pytest.warns(UserWarning, match="reduced by a function of its own"):
        y = jaxconv.manual(products)(x)
    assert (y == products(x)).all()


R = {"rngs": nnx.Rngs(0)}
# name -> (the layer, the shape of x, whether a rule of ours stands for it)
OTHERS: dict[str, Any] = {
    "Dense on images": (lambda: nn.Dense(3, **WIDE), (2, 4, 5, 6), True),
    "Dense on rows": (lambda: nn.Dense(3, **WIDE), (4, 6), False),
    "Dense without bias": (lambda: nn.Dense(3, use_bias=False, **WIDE), (2, 4, 5, 6), True),
    "DenseGeneral, two axes": (lambda: nn.DenseGeneral((3, 2), axis=(-2, -1), **WIDE), (2, 3, 4, 5), True),
    "DenseGeneral, the first": (lambda: nn.DenseGeneral(3, axis=1, **WIDE), (2, 3, 4, 5), False),
    "DenseGeneral, a batch": (lambda: nn.DenseGeneral(3, batch_dims=(0,), **WIDE), (2, 4, 5), False),
    "Einsum": (lambda: nn.Einsum((5, 3), "abc,cd->abd", **WIDE), (2, 4, 5), True),
    "attention": (lambda: nn.MultiHeadDotProductAttention(2, **WIDE), (2, 5, 4), True),
    "weight norm": (lambda: Wrapped(), (2, 6, 5, 2), True),
    "a convolution that recurs": (lambda: nn.RNN(nn.ConvLSTMCell(3, (3, 3), **WIDE)), (2, 3, 5, 4, 2), True),
    "remat": (lambda: nn.remat(nn.Conv)(4, (3, 3), **WIDE), (2, 6, 5, 2), True),
    "jit": (lambda: nn.jit(nn.Conv)(4, (3, 3), **WIDE), (2, 6, 5, 2), True),
    "vmap": (
        lambda: nn.vmap(nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True})(4, (3, 3), **WIDE),
        (3, 2, 6, 5, 2),
        True,
    ),
    "BatchNorm": (lambda: nn.BatchNorm(use_running_average=False, **WIDE), (2, 4, 5, 6), True),
    "BatchNorm, no training": (lambda: nn.BatchNorm(use_running_average=True, **WIDE), (2, 4, 5, 6), False),
    "LayerNorm": (lambda: nn.LayerNorm(**WIDE), (2, 4, 6), True),
    "LayerNorm, slow variance": (lambda: nn.LayerNorm(use_fast_variance=False, use_bias=False, **WIDE), (2, 6), True),
    "LayerNorm, axes": (
        lambda: nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2), use_scale=False, **WIDE),
        (2, 4, 6),
        True,
    ),
    "RMSNorm": (lambda: nn.RMSNorm(**WIDE), (2, 4, 6), True),
    "InstanceNorm": (lambda: nn.InstanceNorm(**WIDE), (2, 4, 5, 6), True),
    "GroupNorm, one each": (lambda: nn.GroupNorm(6, **WIDE), (2, 4, 5, 6), True),
    "GroupNorm, several each": (lambda: nn.GroupNorm(3, **WIDE), (2, 4, 5, 6), False),
    "nnx.LayerNorm": (lambda: nnx.LayerNorm(6, **WIDE, **R), (2, 4, 6), True),
    "nnx.RMSNorm": (lambda: nnx.RMSNorm(6, **WIDE, **R), (2, 4, 6), True),
    "nnx.GroupNorm, several each": (lambda: nnx.GroupNorm(6, 3, **WIDE, **R), (2, 4, 5, 6), False),
    "nnx.Linear on images": (lambda: nnx.Linear(6, 3, **WIDE, **R), (2, 4, 5, 6), True),
    "nnx.Linear on rows": (lambda: nnx.Linear(6, 3, **WIDE, **R), (4, 6), False),
    "nnx.LinearGeneral": (lambda: nnx.LinearGeneral((4, 5), (3, 2), axis=(-2, -1), **WIDE, **R), (2, 3, 4, 5), True),
    "nnx.Einsum": (lambda: nnx.Einsum("abc,cd->abd", (5, 3), 3, **WIDE, **R), (2, 4, 5), True),
    "nnx.LoRALinear": (
        lambda: nnx.LoRALinear(6, 3, lora_rank=2, lora_param_dtype=jnp.float64, **WIDE, **R),
        (2, 4, 5, 6),
        True,
    ),
    "nnx.Conv in float64 of float32": (
        lambda: nnx.Conv(2, 4, (3, 3), preferred_element_type=jnp.float64, **WIDE, **R),
        (2, 6, 5, 2),
        True,
    ),
    "nnx.ConvTranspose likewise": (
        lambda: nnx.ConvTranspose(2, 4, (3, 3), (2, 2), preferred_element_type=jnp.float64, **WIDE, **R),
        (2, 6, 5, 2),
        True,
    ),
    "nnx.RNN": (lambda: nnx.RNN(nnx.GRUCell(3, 4, **WIDE, **R)), (2, 5, 3), False),
}


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.WeightNorm(nn.Conv(4, (3, 3), **WIDE), param_dtype=jnp.float64)(x)


@pytest.mark.parametrize("case", sampled(OTHERS))
def test_others(case: Any) -> None:
    made, shape, rules = case
    layer = made()
    {True: assert_linen, False: assert_nnx}[isinstance(layer, nn.Module)](layer, normal(*shape), rules=rules)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits(dtype: Any) -> None:
    """The same sums in the same dtype, so that the result is the same but for the order of summation."""
    module = nn.Conv(4, (3, 3), dtype=dtype)
    x = normal(2, 6, 5, 2).astype(jnp.float32)
    params = module.init(jax.random.key(0), x)
    got, want = (jax.jit(f)(params, x) for f in (jaxconv.manual(module.apply), module.apply))
    assert got.dtype == want.dtype == dtype
    np.testing.assert_allclose(*(np.asarray(y, np.float64) for y in (got, want)), rtol=0, atol=4 * jnp.finfo(dtype).eps)
