"""Per-example gradient norms: those of `vmap(grad)`, without a kernel gradient per example."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from jaxconv import models
from jaxconv.geometry import conv_geometry
from jaxconv.transforms.per_example import Factors, _squared_norms, gram_is_cheaper, squared_norms
from tests.support import oracle
from tests.support.cases import CASES, FEW, Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import FEW_TRANSPOSED, spatial_and_taps
from tests.support.sampling import chosen

SIZE = 3


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return cotangent(shape, seed=seed)


def by_vmap(loss: Callable[..., Any], params: Any, batch: Any) -> Any:
    """What the function promises to equal."""
    return jax.vmap(lambda example: optax.tree.norm(jax.grad(loss)(params, example)))(batch)


def assert_equal_to_vmap(loss: Callable[..., Any], params: Any, batch: Any, rtol: float = 1e-10) -> None:
    got, want = (jax.jit(partial(f, loss))(params, batch) for f in (jaxconv.per_example_grad_norms, by_vmap))
    assert got.shape == want.shape and got.dtype == want.dtype and float(want.min()) > 0
    np.testing.assert_allclose(got, want, rtol=rtol)


def kernel_gradients(loss: Callable[..., Any], params: Any, batch: Any) -> int:
    """How many kernels' gradients are computed for each example after all."""
    return str(jax.make_jaxpr(partial(jaxconv.per_example_grad_norms, loss))(params, batch)).count(
        "jaxconv_kernel_grad["
    )


# Lengths from factors


def factors(case: Case, batch: int) -> Factors:
    layout = case.options.get("layout", "NHWC")
    defaults = {"stride": 1, "padding": "SAME", "dilation": 1, "groups": 1}
    geometry = conv_geometry("test", case.x, case.w, **{**defaults, **case.options, "layout": layout})
    g = jax.eval_shape(partial(jaxconv.conv, **case.options), *arrays(case)).shape
    return Factors(jnp.asarray(random(batch, *case.x)), jnp.asarray(random(batch, *g, seed=1)), geometry)


def from_loops(case: Case, of: Factors) -> list[float]:
    gradient = partial(oracle.conv_kernel_grad, kernel_shape=spatial_and_taps(case)[1], **case.options)
    return [float((gradient(np.asarray(x), np.asarray(g)) ** 2).sum()) for x, g in zip(of.x, of.g, strict=True)]


@pytest.mark.parametrize("gram", [True, False], ids=["gram", "direct"])
@pytest.mark.parametrize("case", [*CASES, *(in_layout(case, "NCHW") for case in FEW)], ids=str)
def test_both_forms_are_the_length_of_the_gradient_in_numpy_loops(case: Case, gram: bool) -> None:
    of = factors(case, SIZE)
    np.testing.assert_allclose(squared_norms(of, gram), from_loops(case, of), rtol=1e-11)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_examples_can_be_taken_any_number_at_a_time(at_once: int) -> None:
    of = factors(FEW[1], 5)
    for gram in (True, False):
        np.testing.assert_allclose(_squared_norms(of, gram, at_once), from_loops(FEW[1], of), rtol=1e-11)


def test_the_cheaper_form_counts_fewer_products_and_takes_less_memory() -> None:
    sizes = range(1, 40)
    for positions, inputs, outputs in itertools.product(sizes, sizes, sizes):
        gram = positions**2 * (inputs + outputs) < positions * inputs * outputs
        assert gram_is_cheaper(positions, inputs, outputs) == gram
        assert not gram or 2 * positions**2 < inputs * outputs / 2
    assert gram_is_cheaper(1, 3136, 128) and not gram_is_cheaper(196, 288, 64)


def test_nothing_is_rounded_below_zero() -> None:
    """All patches alike and the δ's of sum 0: the gradient is 0, and its square must have a root."""
    case = Case((1, 64, 64), (1, 64, 64), {"padding": "VALID"})
    of = factors(case, 16)
    x = jnp.broadcast_to(of.x[:, :, :1], of.x.shape).astype(jnp.float32)
    g = (of.g - of.g.mean(2, keepdims=True)).astype(jnp.float32)
    assert bool((squared_norms(Factors(x, g, of.geometry), gram=True) >= 0).all())


# The whole function


def one_kernel(op: Callable[..., Any], case: Case) -> tuple[Callable[..., Any], Any, Any]:
    """A loss that is no quadratic form, of a kernel and a bias."""
    x, w = arrays(case)
    weights = cotangent(jax.eval_shape(partial(op, **case.options), x, w).shape)

    def loss(params: Any, x: Any) -> Any:
        y = op(x, params["w"], **case.options)
        return jnp.sum(jnp.sin(y) * weights) + jnp.sum(params["scale"] * y)

    return loss, {"w": jnp.asarray(w), "scale": jnp.full(weights.shape, 0.3)}, jnp.asarray(random(SIZE, *x.shape))


OPS = [
    *[(jaxconv.conv, case) for case in FEW],
    *[(jaxconv.conv, in_layout(case, "NCHW")) for case in FEW],
    *[(jaxconv.conv_transpose, case) for case in FEW_TRANSPOSED],
    *[(jaxconv.conv_transpose, in_layout(FEW_TRANSPOSED[2], "NCHW"))],
    *[(jaxconv.dense, Case((*leading, 5), (5, 4), {})) for leading in ((), (1,), (7,), (2, 3))],
]


@pytest.mark.parametrize(("op", "case"), OPS, ids=lambda a: getattr(a, "__name__", str(a)))
def test_every_kernel_is_measured_by_its_factors(op: Callable[..., Any], case: Case) -> None:
    loss, params, batch = one_kernel(op, case)
    assert_equal_to_vmap(loss, params, batch)
    assert kernel_gradients(loss, params, batch) == 0


SMALL = {
    "article": (models.article, (12, 12, 1)),
    "cnn": (models.cnn, (8, 8, 1)),
    "vgg": (partial(models.vgg, widths=(4, 8)), (8, 8, 3)),
    "convnext": (partial(models.convnext, widths=(8, 16), depth=1), (8, 8, 3)),
}


def network(name: str, dtype: Any = jnp.float64) -> tuple[Callable[..., Any], Any, Any]:
    """A training loss of one image, with a label and a key of its own, and a state closed over."""
    build, image = SMALL[name]
    net = build(5)
    params, state, _ = net.init(jax.random.key(0), (1, *image))
    params, state = jax.tree.map(lambda a: a.astype(dtype), (params, state))

    def loss(params: Any, example: Any) -> Any:
        logits, _ = net.apply(params, state, example["x"][None], train=True, key=example["key"])
        return jaxconv.softmax_cross_entropy(logits, example["y"][None]).sum()

    x = jnp.asarray(random(4, *image), dtype)
    return loss, params, {"x": x, "y": np.arange(4) % 5, "key": jax.random.split(jax.random.key(1), 4)}


@pytest.mark.parametrize("name", chosen(SMALL, {"article", "cnn", "vgg"}))
def test_a_network_is_measured_without_one_kernel_gradient(name: str) -> None:
    loss, params, batch = network(name)
    assert_equal_to_vmap(loss, params, batch, 1e-9)
    assert kernel_gradients(loss, params, batch) == 0


X, W = jnp.asarray(random(SIZE, 4, 6)), jnp.asarray(random(6, 6, seed=1))


def layer(w: Any, x: Any) -> Any:
    return jnp.sin(jaxconv.dense(x, w))


# Programs around a layer: (loss of w and x, kernel gradients that have to be computed).
PROGRAMS: dict[str, tuple[Callable[..., Any], int]] = {
    "jit": (lambda w, x: jax.jit(lambda w: jax.jit(layer)(w, x).sum())(w), 0),
    "checkpoint": (lambda w, x: jax.checkpoint(layer)(w, x).sum(), 0),
    "checkpoint of jit": (lambda w, x: jax.checkpoint(jax.jit(layer))(w, x).sum(), 0),
    "vmap": (lambda w, x: jax.vmap(partial(layer, w))(x).sum(), 0),
    "transposed": (lambda w, x: layer(-w.T[::-1].reshape(6, 6), x).sum(), 0),
    "callback": (lambda w, x: (jax.debug.callback(lambda _: None, x), layer(w, x).sum())[1], 0),
    "narrowed": (lambda w, x: layer(w.astype(jnp.float32), x.astype(jnp.float32)).sum().astype(jnp.float64), 0),
    "used twice": (lambda w, x: layer(w, layer(w, x)).sum(), 2),
    "used once more": (lambda w, x: layer(w, x).sum() + (w**2).sum(), 1),
    "scaled": (lambda w, x: layer(3 * w, x).sum(), 1),
    "masked": (lambda w, x: layer(w * W.T, x).sum(), 1),
    "one of several": (lambda w, x: layer(jnp.stack([w, w**2])[1], x).sum(), 1),
    "scan": (lambda w, x: jax.lax.scan(lambda x, _: (layer(w, x), None), x, None, length=2)[0].sum(), 1),
    "cond": (lambda w, x: jax.lax.cond(x.sum() > 0, layer, lambda w, x: x @ w, w, x).sum(), 1),
    "another's layer": (lambda w, x: jnp.sin(x @ w).sum(), 0),
    "without a rule": (lambda w, x: jnp.sin(jaxconv.dense(x, w, rules="autodiff")).sum(), 0),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_not_seen_through_is_computed(name: str) -> None:
    loss, computed = PROGRAMS[name]
    assert_equal_to_vmap(loss, W, X, 1e-6 if name == "narrowed" else 1e-10)
    assert kernel_gradients(loss, W, X) == computed


def test_a_gradient_rounded_to_integers_is_computed() -> None:
    """A rule that quantises: the numbers change, so the factors no longer tell."""

    @jax.custom_vjp
    def quantised(w: Any) -> Any:
        return w

    quantised.defvjp(lambda w: (w, None), lambda _, g: (g.astype(jnp.int32).astype(g.dtype),))
    assert_equal_to_vmap(lambda w, x: layer(quantised(w), 9 * x).sum(), W, X)


def test_one_gradient_of_two_parameters_counts_twice() -> None:
    assert_equal_to_vmap(lambda params, x: layer(params[0] + params[1], x).sum(), [W, 2 * W], X)


def test_parameters_that_are_not_used_add_nothing() -> None:
    def loss(params: Any, x: Any) -> Any:
        return layer(params["w"], x).sum()

    got = jaxconv.per_example_grad_norms(loss, {"w": W, "idle": W, "none": None}, X)
    np.testing.assert_allclose(got, by_vmap(loss, {"w": W}, X), rtol=1e-10)
    np.testing.assert_array_equal(jaxconv.per_example_grad_norms(lambda params, x: x.sum(), W, X), np.zeros(SIZE))
    np.testing.assert_array_equal(jaxconv.per_example_grad_norms(lambda params, x: x.sum(), {}, X), np.zeros(SIZE))


def test_it_is_a_function_like_any_other() -> None:
    """Eager, closed over what is traced, mapped over, and differentiated."""

    def norms(scale: Any, w: Any, x: Any) -> Any:
        return jaxconv.per_example_grad_norms(lambda w, x: (scale * layer(w, x)).sum(), w, x)

    def reference(scale: Any, w: Any, x: Any) -> Any:
        return by_vmap(lambda w, x: (scale * layer(w, x)).sum(), w, x)

    np.testing.assert_allclose(norms(2.0, W, X), reference(2.0, W, X), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(norms)(2.0, W, X), reference(2.0, W, X), rtol=1e-10)
    many = jnp.stack([W, 2 * W])
    got = jax.jit(jax.vmap(norms, (None, 0, None)))(2.0, many, X)
    np.testing.assert_allclose(got, [reference(2.0, w, X) for w in many], rtol=1e-10)
    a, b = (jax.jit(jax.grad(lambda w, f=f: f(2.0, w, X).sum()))(W) for f in (norms, reference))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_checkpoint_still_computes_again() -> None:
    """What was not to be stored is behind a barrier, so that it is not taken from the forward pass."""
    loss, _ = PROGRAMS["checkpoint"]
    assert "optimization_barrier" in str(jax.make_jaxpr(partial(jaxconv.per_example_grad_norms, loss))(W, X))


# Precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_summed_in_float32(dtype: Any) -> None:
    x, weights, w = (jnp.asarray(random(*shape), dtype) for shape in ((SIZE, 40, 300), (40, 50), (300, 50)))
    got = jaxconv.per_example_grad_norms(lambda w, x: jnp.sum(jaxconv.dense(x, w) * weights), w, x)
    wide = [np.einsum("pc,po->co", np.asarray(a, np.float64), np.asarray(weights, np.float64)) for a in x]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [np.linalg.norm(a) for a in wide], rtol=1e-5)


def test_a_network_in_bfloat16() -> None:
    loss, params, batch = network("article", jnp.bfloat16)
    got = jax.jit(partial(jaxconv.per_example_grad_norms, loss))(params, batch)
    exact = jax.jit(partial(by_vmap, loss))(*network("article")[1:])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_result_is_as_wide_as_the_widest_parameter(dtype: Any) -> None:
    def loss(params: Any, x: Any) -> Any:
        return layer(params["w"], x.astype(dtype)).sum() + params["b"].sum().astype(dtype)

    params = {"w": W.astype(dtype), "b": jnp.zeros(6, jnp.float32)}
    got = jaxconv.per_example_grad_norms(loss, params, X)
    assert got.dtype == dtype


# Memory


def shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Of everything a program computes, at any depth."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            if hasattr(inner, "eqns"):
                yield from shapes(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(("side", "gram"), [(4, True), (8, False)], ids=["gram", "direct"])
def test_no_batch_of_kernel_gradients_is_held(side: int, gram: bool) -> None:
    """Kernels larger than all that the layers read and write: nothing as large as N of them, traced or compiled."""

    def loss(params: Any, x: Any) -> Any:
        y = jaxconv.relu(jaxconv.conv(x[None], params["conv"]))
        return jnp.sin(jaxconv.dense(y.reshape(1, y.size), params["dense"])).sum()

    params = {"conv": jnp.ones((3, 3, 32, 64), jnp.float32), "dense": jnp.ones((side**2 * 64, 32), jnp.float32)}
    batch = jnp.ones((16, side, side, 32), jnp.float32)
    assert gram_is_cheaper(side**2, 9 * 32, 64) == gram
    norms, reference = (
        partial(jaxconv.per_example_grad_norms, loss),
        jax.vmap(lambda p, x: optax.tree.norm(jax.grad(loss)(p, x)), (None, 0)),
    )
    limit = 16 * min(a.size for a in params.values())
    largest = [max(int(np.prod(s)) for s in shapes(jax.make_jaxpr(f)(params, batch).jaxpr)) for f in (norms, reference)]
    assert largest[0] < limit <= largest[1]
    memory = [jax.jit(f).lower(params, batch).compile().memory_analysis() for f in (norms, reference)]
    assert memory[0].temp_size_in_bytes < 4 * limit < memory[1].temp_size_in_bytes


# What is refused


def test_a_loss_that_is_no_number_is_refused() -> None:
    said = r"per_example_grad_norms: loss\(params, example\) must be one floating number, but is "
    with pytest.raises(ValueError, match=said + r"float64\[4, 6\]\. .* give them x\[None\] and return loss"):
        jaxconv.per_example_grad_norms(layer, W, X)
    with pytest.raises(ValueError, match=said + r"\('float64\[\]', 'float64\[4, 6\]'\)\."):
        jaxconv.per_example_grad_norms(lambda w, x: (layer(w, x).sum(), x), W, X)
    with pytest.raises(ValueError, match=said + r"int64\[\]\."):
        jaxconv.per_example_grad_norms(lambda w, x: layer(w, x).argmax(), W, X)


def test_a_batch_without_a_common_axis_is_refused() -> None:
    def loss(w: Any, example: Any) -> Any:
        raise AssertionError("before any work")

    with pytest.raises(ValueError, match=r"share their leading axis, .* found: batch\['x'\] 3, batch\['y'\] 4\. What"):
        jaxconv.per_example_grad_norms(loss, W, {"x": X, "y": np.zeros(4)})
    with pytest.raises(ValueError, match=r"batch\[1\] must be an array with a leading axis of examples, but is 2\."):
        jaxconv.per_example_grad_norms(loss, W, (X, 2))
    with pytest.raises(ValueError, match=r"per_example_grad_norms: .* but found: no array\."):
        jaxconv.per_example_grad_norms(loss, W, ())


def test_a_batch_of_nothing_has_no_norms() -> None:
    got = jaxconv.per_example_grad_norms(lambda w, x: layer(w, x).sum(), W, X[:0])
    assert got.shape == (0,) and got.dtype == jnp.float64
    with pytest.raises(ValueError, match="must be one floating number"):
        jaxconv.per_example_grad_norms(layer, W, X[:0])
