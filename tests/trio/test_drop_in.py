"""`jaxconv.conv_general_dilated` stands wherever `lax.conv_general_dilated` does: values, gradients, errors, Flax."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from tests.support.agreement import GROUPED, agree
from tests.support.cases import cotangent
from tests.support.devices import cpu_mesh
from tests.support.rule_sets import RULES

CONVS = (jaxconv.conv_general_dilated, lax.conv_general_dilated)


class Call(NamedTuple):
    """One call: the shapes of its operands and its other arguments."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        shapes = "*".join("x".join(map(str, shape)) for shape in (self.lhs, self.rhs))
        options = [*map(str, self.args), *(f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items())]
        return "-".join([shapes, *options]).replace(" ", "").replace("'", "")

    def operands(self, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
        if np.issubdtype(dtype, np.complexfloating):
            return tuple(a + 1j * a[::-1] for a in self.operands())
        return cotangent(self.lhs, dtype, seed=1), cotangent(self.rhs, dtype, seed=2)

    def __call__(self, conv: Callable[..., jax.Array], lhs: Any, rhs: Any) -> jax.Array:
        return conv(lhs, rhs, *self.args, **self.options)

    def pulled(self, conv: Callable[..., jax.Array]) -> Callable[..., Any]:
        """(lhs, rhs, δ) -> y and the gradients in both operands."""

        def run(lhs: Any, rhs: Any, delta: Any) -> Any:
            y, pullback = jax.vjp(lambda lhs, rhs: self(conv, lhs, rhs), lhs, rhs)
            return y, *pullback(delta)

        return run


def numbered(lhs: str, rhs: str, out: str) -> dict[str, Any]:
    return {"dimension_numbers": (lhs, rhs, out)}


CALLS = [
    # dimension numbers: the default, TensorFlow's, mixed ones, exotic ones, spatial axes that change places
    Call((2, 3, 7), (4, 3, 3), ((2,), "SAME"), {}),
    Call((2, 3, 5, 6), (4, 3, 3, 2), ((1, 2), "VALID"), {"dimension_numbers": None}),
    Call((1, 2, 4, 3, 5), (2, 2, 2, 3, 2), ((1, 2, 1), "SAME_LOWER"), {}),
    Call((2, 5, 6, 3), (3, 2, 3, 4), ((2, 1), "SAME"), numbered("NHWC", "HWIO", "NHWC")),
    Call((2, 3, 5, 6), (3, 2, 3, 4), ((1, 1), ((1, 0), (0, 2))), numbered("NCHW", "HWIO", "NHWC")),
    Call((3, 5, 6, 2), (3, 3, 2, 4), ((1, 1), ((-1, 2), (1, -1))), numbered("CHWN", "IHWO", "HNCW")),
    Call((6, 2, 3, 5), (2, 4, 3, 3), ((2, 3), ((0, 1), (1, 1))), numbered("WNCH", "WOHI", "CWNH")),
    Call((2, 3, 5, 6), (4, 3, 3, 2), ((2, 1), ((0, 0), (1, 0))),
         {"dimension_numbers": lax.ConvDimensionNumbers((0, 1, 3, 2), (0, 1, 2, 3), (0, 2, 3, 1))}),
    # dilations of both operands, as lists and as NumPy integers
    Call((2, 3, 7), (4, 3, 3), ([1], [(4, 0)]), {"rhs_dilation": [2]}),
    Call((2, 2, 4, 3), (3, 2, 2, 3), ((1, 1), np.asarray([[1, 2], [2, 2]])), {"lhs_dilation": (2, 3)}),
    Call((1, 2, 4, 4), (2, 2, 2, 2), (np.asarray([3, 1]), ((3, 1), (0, 2))),
         {"lhs_dilation": (2, 1), "rhs_dilation": (1, 3)}),
    # groups of features and of the batch
    Call((2, 6, 5), (4, 3, 2), ((2,), "SAME"), {"feature_group_count": 2}),
    Call((2, 5, 4, 4), (3, 3, 1, 8), ((2, 1), "SAME"),
         {**numbered("NHWC", "HWIO", "NHWC"), "feature_group_count": 4, "rhs_dilation": (1, 2)}),
    Call((6, 2, 5), (6, 2, 3), ((1,), "SAME"), {"batch_group_count": 3}),
    Call((5, 6, 2, 4), (4, 3, 2, 2), ((2, 1), ((1, 2), (0, 1))),
         {**numbered("HWCN", "OHWI", "CNHW"), "batch_group_count": 2, "lhs_dilation": (1, 2)}),
    # no spatial axes: a matrix product
    Call((4, 3), (5, 3), ((), ()), {}),
    Call((3, 4), (3, 5), ((), "SAME"), numbered("CN", "IO", "CN")),
    Call((4, 6), (4, 3), ((), ()), {"feature_group_count": 2}),
    Call((4, 3), (6, 3), ((), ()), {"batch_group_count": 2}),
    # the other arguments
    Call((2, 3, 5), (4, 3, 3), ((1,), "SAME"), {"precision": "highest"}),
    Call((2, 3, 5), (4, 3, 3), ((1,), "SAME"), {"precision": (lax.Precision.HIGH, lax.Precision.DEFAULT)}),
    Call((2, 3, 5), (4, 3, 3), ((1,), "SAME"), {"preferred_element_type": np.float64}),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_values_and_gradients_are_those_of_lax(call: Call) -> None:
    operands = call.operands()
    y = jax.eval_shape(lambda *a: call(lax.conv_general_dilated, *a), *operands)
    agree(*map(call.pulled, CONVS), *operands, cotangent(y.shape, seed=3))


@pytest.mark.parametrize(
    ("call", "dtype"),
    [(CALLS[0], np.complex64), (CALLS[13], np.complex128)],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_complex_values_and_gradients_are_those_of_lax(call: Call, dtype: Any) -> None:
    operands = [a.astype(dtype) for a in call.operands(dtype)]
    y = jax.jit(lambda *a: call(lax.conv_general_dilated, *a))(*operands)
    agree(*map(call.pulled, CONVS), *operands, np.asarray(y))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="cuDNN convolves 8-bit integers alone, and saturates")
@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.int64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("call", [CALLS[3], CALLS[13], CALLS[15]], ids=str)
def test_integers_convolve_as_in_lax_overflow_included(call: Call, dtype: Any) -> None:
    operands = [(100 * a).astype(np.int64).astype(dtype) for a in call.operands()]
    got, want = (jax.jit(lambda *a, conv=conv: call(conv, *a))(*operands) for conv in CONVS)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


WIDER = [(np.int8, np.int32), (np.int8, np.float32), (jnp.bfloat16, np.float32), (np.float32, np.float64)]


@pytest.mark.parametrize(("dtype", "preferred"), WIDER, ids=lambda dtype: dtype.__name__)
def test_preferred_element_type_is_the_accumulator(dtype: Any, preferred: Any) -> None:
    call = CALLS[0]._replace(options={"preferred_element_type": preferred})
    operands = [(100 * a).astype(dtype) for a in call.operands()]
    got, want = (jax.jit(lambda *a, conv=conv: call(conv, *a))(*operands) for conv in CONVS)
    assert got.dtype == want.dtype == preferred
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("batch_group_count", [1, 2])
def test_vmap_agrees_with_lax(batch_group_count: int) -> None:
    call = Call((4, 3, 5), (4, 3, 3), ((2,), "SAME"), {"batch_group_count": batch_group_count})
    lhs, rhs = (np.stack([a, 2 * a], -1) for a in call.operands())

    def mapped(conv: Callable[..., jax.Array]) -> Callable[..., Any]:
        def gradient(lhs: Any, rhs: Any) -> Any:
            return jax.grad(lambda *a: jnp.sum(call(conv, *a) ** 2), (0, 1))(lhs, rhs)

        return jax.vmap(gradient, -1)

    agree(*map(mapped, CONVS), lhs, rhs)


def test_the_signature_is_that_of_lax() -> None:
    ours, theirs = (inspect.signature(conv).parameters.values() for conv in CONVS)
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


X, W = (2, 4, 6, 5), (4, 4, 3, 3)
PAIRS = ((1, 1), (1, 1))
MISTAKES = [
    Call((2, 4, 6), W, ((1, 1), "SAME"), {}),
    Call(X, (4, 3, 3, 3), ((1, 1), "SAME"), {}),
    Call(X, W, ((1,), "SAME"), {}),
    Call(X, W, ((1,), PAIRS), {}),
    Call(X, W, (2, PAIRS), {}),
    Call(X, W, ((1.5, 1), PAIRS), {}),
    Call(X, W, ((1, 1), "WRAP"), {}),
    Call(X, W, ((1, 1), 1), {}),
    Call(X, W, ((1, 1), (1, 1)), {}),
    Call(X, W, ((1, 1), ((1, 1),)), {}),
    Call(X, W, ((1, 1), ((0.5, 1), (1, 1))), {}),
    Call(X, W, ((1, 1), ((-7, -1), (0, 0))), {}),
    Call(X, W, ((1, 1), "SAME"), {"lhs_dilation": (2, 1)}),
    Call(X, W, ((1, 1), PAIRS), {"lhs_dilation": (0, 1)}),
    Call(X, W, ((1, 1), PAIRS), {"rhs_dilation": (0, 1)}),
    Call(X, W, ((1, 1), "SAME"), {"dimension_numbers": ("NCHW", "OIHW")}),
    Call(X, W, ((1, 1), "SAME"), numbered("NCHW", "OIH", "NCHW")),
    Call(X, W, ((1, 1), "SAME"), numbered("NCHW", "OIHW", "NCHH")),
    Call(X, W, ((1, 1), "SAME"), numbered("NHWC", "HWIO", "NHWC")),
    Call(X, W, ((1, 1), "SAME"), {"feature_group_count": 0}),
    Call(X, W, ((1, 1), "SAME"), {"feature_group_count": 3}),
    Call(X, (3, 2, 3, 3), ((1, 1), "SAME"), {"feature_group_count": 2}),
    Call(X, W, ((1, 1), "SAME"), {"batch_group_count": 0}),
    Call(X, W, ((1, 1), "SAME"), {"batch_group_count": 3}),
    Call(X, (3, 4, 3, 3), ((1, 1), "SAME"), {"batch_group_count": 2}),
    Call(X, (4, 2, 3, 3), ((1, 1), "SAME"), {"batch_group_count": 2, "feature_group_count": 2}),
    Call(X, W, ((1, 1), "SAME"), {"precision": "exact"}),
    Call(X, W, ((1, 1), "SAME"), {"preferred_element_type": np.float16}),
    Call(X, W, ((1, 1), "SAME"), {"preferred_element_type": np.int32}),
]


def error(conv: Callable[..., jax.Array], call: Call, *operands: Any) -> tuple[type[Exception], str]:
    with pytest.raises(Exception) as info:
        call(conv, *operands)
    return info.type, str(info.value)


@pytest.mark.parametrize("call", MISTAKES, ids=str)
def test_a_bad_call_raises_the_error_of_lax(call: Call) -> None:
    ours, theirs = (error(conv, call, *call.operands()) for conv in CONVS)
    assert ours == theirs


def test_operands_of_two_dtypes_raise_the_error_of_lax() -> None:
    call = CALLS[0]
    lhs, rhs = call.operands()
    ours, theirs = (error(conv, call, lhs, rhs.astype(np.float32)) for conv in CONVS)
    assert ours == theirs


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=str)
def test_out_sharding_places_the_result(spec: P) -> None:
    mesh = cpu_mesh(AxisType.Explicit, data=4)
    call = Call((4, 3, 5), (4, 3, 3), ((2,), "SAME"), {"out_sharding": spec})
    operands = call.operands()
    delta = cotangent((4, 4, 3), seed=3)
    with jax.set_mesh(mesh):
        lhs = jax.device_put(operands[0], P("data"))
        y, *gradients = jax.jit(call.pulled(jaxconv.conv_general_dilated))(
            lhs, jax.device_put(operands[1], P()), jax.device_put(delta, spec)
        )
    for a, s in zip((y, *gradients), (spec, P("data"), P()), strict=True):
        assert a.sharding.is_equivalent_to(NamedSharding(mesh, s), a.ndim)
    got = jax.tree.map(np.asarray, (y, *gradients))
    agree(lambda *_: got, call._replace(options={}).pulled(lax.conv_general_dilated), *operands, delta)


def test_out_sharding_resolves_a_kernel_sharded_like_the_batch() -> None:
    """Fully sharded data parallelism: lax needs `out_sharding` here, and so the caller gives it."""
    mesh = cpu_mesh(AxisType.Explicit, data=4)
    call = Call((4, 3, 5), (4, 3, 3), ((2,), "SAME"), {"out_sharding": P("data")})
    operands = call.operands()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, P("data")) for a in operands]
        got = np.asarray(jax.jit(lambda *a: call(jaxconv.conv_general_dilated, *a))(*placed))
    plain = call._replace(options={})
    agree(lambda *_: got, lambda *a: plain(lax.conv_general_dilated, *a), *operands)


# Flax

LAYERS: list[dict[str, Any]] = [
    {"kernel_size": (3, 2), "strides": (2, 1), "feature_group_count": 2},
    {"kernel_size": (3, 3), "padding": "CIRCULAR", "kernel_dilation": 2},
    {"kernel_size": 3, "padding": "CAUSAL"},
    {"kernel_size": (3,), "padding": ((2, 1),), "input_dilation": 2, "use_bias": False},
    {"kernel_size": (3, 3), "dtype": jnp.bfloat16, "feature_group_count": 4},
]
OPTIONS = {
    "conv_general_dilated": jaxconv.conv_general_dilated,
    "conv_general_dilated_cls": lambda: jaxconv.conv_general_dilated,
}


def inputs(layer: dict[str, Any]) -> np.ndarray:
    """A batch of the layer's rank, with four channels, in float32 whatever the layer computes in."""
    rank = 1 if layer["kernel_size"] == 3 else len(layer["kernel_size"])
    return cotangent((2, *(7, 6)[:rank], 4), np.float32)


def random(variables: Any) -> Any:
    return jax.tree.map(lambda a: cotangent(a.shape, a.dtype, seed=a.ndim), variables)


def assert_trains_alike(ours: Callable[..., Any], theirs: Callable[..., Any], layer: Any, *args: Any) -> None:
    """Two layers (variables, x) -> y give one output and one gradient of Σ δ·y²."""
    y = jax.eval_shape(theirs, *args)
    delta = cotangent(y.shape, y.dtype)

    def step(apply: Callable[..., Any]) -> Callable[..., Any]:
        def loss(variables: Any, x: Any, delta: Any) -> Any:
            y = apply(variables, x)
            return jnp.sum(delta * y**2).astype(jnp.float32), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)

    agree(step(ours), step(theirs), *args, delta, eps=float(jnp.finfo(layer.get("dtype", np.float32)).eps))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_linen_layer_trains_alike(layer: dict[str, Any], option: str) -> None:
    ours, theirs = nn.Conv(8, **layer, **{option: OPTIONS[option]}), nn.Conv(8, **layer)
    x = inputs(layer)
    variables = random(jax.eval_shape(theirs.init, jax.random.key(0), x))
    assert_trains_alike(ours.apply, theirs.apply, layer, variables, x)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_an_nnx_layer_trains_alike(layer: dict[str, Any]) -> None:
    def functional(**option: Any) -> tuple[Callable[..., Any], Any]:
        """(state, x) -> y, and the state's shape."""
        definition, state = nnx.split(nnx.eval_shape(lambda: nnx.Conv(4, 8, **layer, **option, rngs=nnx.Rngs(0))))
        return lambda state, x: nnx.merge(definition, state)(x), nnx.to_pure_dict(state)

    (ours, state), (theirs, _) = functional(conv_general_dilated=OPTIONS["conv_general_dilated"]), functional()
    assert_trains_alike(ours, theirs, layer, random(state), inputs(layer))


# In the place of lax's own


def test_whoever_puts_it_in_the_place_of_lax_s_own_gets_these_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules that are written through `lax` still end there, and so does the drop-in."""
    mine = jaxconv.ConvRules(jaxconv.rules.rotated.input_grad, jaxconv.rules.textbook.kernel_grad)
    module, x = nn.Conv(8, (3, 2), feature_group_count=2), inputs({"kernel_size": (3, 2)})
    variables = random(jax.eval_shape(module.init, jax.random.key(0), x))
    call = CALLS[0]
    delta = cotangent((2, 4, 4), seed=3)

    def hand_written(*args: Any) -> Any:
        *operands, delta = args
        pulled = {r: jax.vjp(partial(GROUPED, rules=r), *operands)[1](delta) for r in (*RULES, "autodiff", mine)}
        return list(pulled.values())

    def trained(variables: Any, x: Any) -> Any:
        return jax.value_and_grad(lambda variables: jnp.sum(module.apply(variables, x) ** 2))(variables)

    arguments = GROUPED.arguments()
    right = (
        jax.jit(hand_written)(*arguments),
        jax.jit(trained)(variables, x),
        call.pulled(CONVS[1])(*call.operands(), delta),
    )
    jax.clear_caches()  # what has been traced has looked `lax` up already
    monkeypatch.setattr(jax.lax, "conv_general_dilated", jaxconv.conv_general_dilated)
    assert "jaxconv_kernel_grad" in str(jax.make_jaxpr(trained)(variables, x))
    got = hand_written(*arguments), jax.jit(trained)(variables, x), call.pulled(CONVS[0])(*call.operands(), delta)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if a.dtype == np.float32 else 1e-12)
    with pytest.raises(ValueError, match="padding"):
        jax.lax.conv_general_dilated(*call.operands(), (2,), 1)


def test_lax_s_own_is_looked_up_once_in_one_file() -> None:
    """A second place that asks `lax` when it is called would be a way back into the drop-in."""
    package = Path(jaxconv.__file__).parent
    places = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("lax.conv_general_dilated")
    ]
    assert places == ["forward.py"]
