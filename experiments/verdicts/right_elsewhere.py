"""Right gradients of other people's functions, JAX's, optax's and Flax's, and of awkward arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jax import lax
from jax.scipy import special

import jaxconv
from experiments.verdicts.case import Case, arrays, generator, integers, normal

ALL = ("float32", "bfloat16", "float16", "float64")
LONG = ("float32", "float64")
Row = tuple[str, Callable[..., Any], tuple[tuple[int, ...], ...]]


def dealt(kinds: tuple[str, ...], rows: list[Row]) -> list[Case]:
    """A case for every (name, function, shapes of its arguments), the dtypes in turn."""
    named = ((f"{name} {dtype}", f, shapes, dtype) for (name, f, shapes), dtype in zip(rows, itertools.cycle(kinds)))
    return [Case(name, f, normal(name, *shapes), (dtype,)) for name, f, shapes, dtype in named]


def positive(a: jax.Array) -> jax.Array:
    """A well-conditioned symmetric matrix."""
    return a @ a.T + 2 * jnp.eye(a.shape[0], dtype=a.dtype)


def dominant(a: jax.Array) -> jax.Array:
    """A well-conditioned matrix."""
    return 0.3 * a + 2 * jnp.eye(a.shape[0], dtype=a.dtype)


def recurrent(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(x + h @ w)
        return h, h.sum(-1)

    return lax.scan(step, jnp.zeros_like(x[0]), x)


@jax.custom_jvp
def log1pexp(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, jnp.zeros_like(x))


log1pexp.defjvp(lambda x, t: (log1pexp(*x), t[0] * jax.nn.sigmoid(x[0])))


def iterate(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 60, lambda _, x: f(x), x)


@jax.custom_vjp
def fixed_point(a: jax.Array) -> jax.Array:
    """x = ½ cos(x + a), differentiated by the implicit function theorem."""
    return iterate(lambda x: 0.5 * jnp.cos(x + a), jnp.zeros_like(a))


def _implicit(x_and_a: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    x, a = x_and_a
    slope = -0.5 * jnp.sin(x + a)
    return (g * slope / (1 - slope),)


fixed_point.defvjp(lambda a: ((x := fixed_point(a)), (x, a)), _implicit)


def taylor(x: jax.Array) -> jax.Array:
    """exp by Horner's rule."""
    return lax.fori_loop(0, 8, lambda i, y: 1 + x * y / (8 - i).astype(x.dtype), jnp.ones_like(x))


def branched(x: jax.Array) -> jax.Array:
    return lax.cond(x.sum() > 0, jnp.sin, lambda x: x**2, x)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.einsum("qc,kc->qk", q, k) / 2) @ v


NN: list[Row] = [
    ("jax.nn.relu", jax.nn.relu, ((4, 5),)),
    ("jax.nn.relu6", lambda x: jax.nn.relu6(4 * x), ((4, 5),)),
    ("jax.nn.selu", jax.nn.selu, ((4, 5),)),
    ("jax.nn.gelu", jax.nn.gelu, ((4, 5),)),
    ("jax.nn.gelu exact", partial(jax.nn.gelu, approximate=False), ((4, 5),)),
    ("jax.nn.silu", jax.nn.silu, ((4, 5),)),
    ("jax.nn.swish", jax.nn.swish, ((4, 5),)),
    ("jax.nn.softmax", jax.nn.softmax, ((4, 5),)),
    ("jax.nn.log_softmax", jax.nn.log_softmax, ((4, 5),)),
    ("jax.nn.logsumexp", partial(jax.nn.logsumexp, axis=-1), ((4, 5),)),
    ("jax.nn.standardize", jax.nn.standardize, ((4, 5),)),
    ("jax.nn.celu", jax.nn.celu, ((4, 5),)),
    ("jax.nn.glu", jax.nn.glu, ((4, 6),)),
    ("jax.nn.softplus", jax.nn.softplus, ((4, 5),)),
    ("jax.nn.log_sigmoid", jax.nn.log_sigmoid, ((4, 5),)),
    ("jax.nn.mish", jax.nn.mish, ((4, 5),)),
    ("attention", attention, ((3, 4), (5, 4), (5, 4))),
    ("cumsum", lambda x: jnp.cumsum(x, -1), ((3, 6),)),
    ("sort", lambda x: jnp.sort(x, -1), ((3, 6),)),
    ("where", lambda x, y: jnp.where(x > 0, x * y, y**2), ((3, 6), (3, 6))),
    ("einsum", partial(jnp.einsum, "bij,bjk,k->bi"), ((2, 3, 4), (2, 4, 3), (3,))),
    ("matmul", jnp.matmul, ((2, 3, 4), (2, 4, 3))),
    (
        "lax.conv_general_dilated",
        lambda x, w: lax.conv_general_dilated(x, w, (2,), ((1, 2),), rhs_dilation=(2,)),
        ((2, 3, 7), (4, 3, 2)),
    ),
    ("lax.reduce_window sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 2), "SAME"), ((3, 7),)),
    ("scan", recurrent, ((5, 2, 3), (3, 3))),
    ("cond", branched, ((3, 4),)),
    ("fori_loop", taylor, ((3, 4),)),
    ("checkpoint", jax.checkpoint(lambda x, w: jnp.sin(jnp.tanh(x @ w) @ w)), ((3, 4), (4, 4))),
    ("vmap of jit", jax.vmap(jax.jit(lambda x: jax.nn.softmax(x) * x)), ((3, 4),)),
    ("switch", lambda x: lax.switch(1, [jnp.sin, jnp.exp, jnp.tanh], x), ((7,),)),
    ("associative scan", partial(lax.associative_scan, jnp.multiply), ((6,),)),
    ("several outputs", lambda x, y: {"sum": (x + y).sum(), "product": x * y}, ((3, 2), (3, 2))),
    ("a tuple within a tuple", lambda x: (x[0], (jnp.exp(x[1]), x.sum())), ((2, 3),)),
    ("log1pexp", log1pexp, ((4, 5),)),
    ("gather", lambda x: x[np.array([0, 2, 2, 1], np.int32)], ((3, 4),)),
    ("scatter", lambda x, y: x.at[np.array([0, 2, 2], np.int32)].add(y), ((3, 4), (3, 4))),
    ("a gradient", jax.grad(lambda x: jnp.sum(jnp.sin(x) * x)), ((5,),)),
    ("a scalar", jnp.sin, ((),)),
    ("an argument without effect", lambda x, y: jnp.sin(x), ((4,), (4,))),
    ("a constant", lambda x: jnp.ones(3, x.dtype), ((4,),)),
]

ANALYSIS: list[Row] = [
    ("solve", lambda a, b: jnp.linalg.solve(dominant(a), b), ((3, 3), (3, 2))),
    ("inv", lambda a: jnp.linalg.inv(dominant(a)), ((3, 3),)),
    ("cholesky", lambda a: jnp.linalg.cholesky(positive(a)), ((3, 3),)),
    ("det", lambda a: jnp.linalg.det(dominant(a)), ((3, 3),)),
    ("slogdet", lambda a: jnp.linalg.slogdet(dominant(a))[1], ((3, 3),)),
    ("eigvalsh", lambda a: jnp.linalg.eigvalsh(dominant(a + a.T)), ((3, 3),)),
    ("inv once more", lambda a: jnp.linalg.inv(dominant(a)), ((4, 4),)),
    ("solve of a positive matrix", lambda a, b: jax.scipy.linalg.solve(positive(a), b), ((3, 3), (3,))),
    ("logit", lambda x: special.logit(jax.nn.sigmoid(x)), ((9,),)),
    ("xlogy", lambda x, y: special.xlogy(x, 1 + y * y), ((9,), (9,))),
    ("expit", special.expit, ((9,),)),
    ("erf", special.erf, ((9,),)),
    ("gammaln", lambda x: special.gammaln(1 + x * x), ((9,),)),
    ("entr", lambda x: special.entr(0.1 + x * x), ((9,),)),
    ("logaddexp", jnp.logaddexp, ((9,), (9,))),
    ("sinc", jnp.sinc, ((9,),)),
    ("fixed point", fixed_point, ((5,),)),
    ("fixed point once more", lambda a: fixed_point(a) ** 2, ((5,),)),
    ("spectrum", lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2, ((8,),)),
    ("norm", jnp.linalg.norm, ((9,),)),
]

OPTAX: list[Row] = [
    (f"optax.{name}", f, shapes)
    for name, f, shapes in (
        ("softmax_cross_entropy", lambda z, t: optax.softmax_cross_entropy(z, jax.nn.softmax(t)), ((5, 4), (5, 4))),
        (
            "sigmoid_binary_cross_entropy",
            lambda z, t: optax.sigmoid_binary_cross_entropy(z, jax.nn.sigmoid(t)),
            ((9,), (9,)),
        ),
        ("huber_loss", optax.huber_loss, ((9,), (9,))),
        ("l2_loss", optax.l2_loss, ((9,), (9,))),
        ("cosine_similarity", lambda x, y: optax.cosine_similarity(x, y, epsilon=1e-6), ((5, 4), (5, 4))),
        ("hinge_loss", optax.hinge_loss, ((9,), (9,))),
        ("log_cosh", optax.log_cosh, ((9,), (9,))),
        (
            "poly_loss_cross_entropy",
            lambda z, t: optax.losses.poly_loss_cross_entropy(z, jax.nn.softmax(t), epsilon=1.0),
            ((5, 4), (5, 4)),
        ),
        (
            "kl_divergence",
            lambda z, t: optax.losses.kl_divergence(jax.nn.log_softmax(z), jax.nn.softmax(t)),
            ((5, 4), (5, 4)),
        ),
        ("safe_norm", lambda x: optax.safe_norm(x, 1e-3), ((9,),)),
        ("sigmoid_focal_loss", lambda z, t: optax.sigmoid_focal_loss(z, jax.nn.sigmoid(t)), ((9,), (9,))),
    )
]


# Integers and trees


def labelled(name: str, dtype: Any) -> tuple[Any, ...]:
    return (*arrays(name, dtype, (6, 5)), integers(name, 5, (6,)))


def affine(tree: dict[str, Any], x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ tree["w"] + jnp.broadcast_to(tree["layers"][0], (3, 2))) * tree["layers"][1]


def tree_and_x(name: str, dtype: Any) -> tuple[Any, ...]:
    w, b, s, x = arrays(name, dtype, (4, 2), (2,), (3, 2), (3, 4))
    return {"w": w, "layers": [b, s]}, x


CONV_MODULE = linen.Conv(3, (3, 3), conv_general_dilated=jaxconv.conv_general_dilated)
DENSE_MODULE = linen.Dense(2)


def conv_variables(dtype: Any) -> tuple[Any, ...]:
    kernel, bias, x = arrays("linen", dtype, (3, 3, 2, 3), (3,), (2, 4, 5, 2))
    return {"params": {"kernel": kernel, "bias": bias}}, x


def dense_variables(dtype: Any) -> tuple[Any, ...]:
    kernel, bias, x = arrays("linen", dtype, (5, 2), (2,), (3, 5))
    return {"params": {"kernel": kernel, "bias": bias}}, x


TREES = [
    *(
        Case(
            f"optax.softmax_cross_entropy_with_integer_labels {dtype}", f, partial(labelled, f"optax {dtype}"), (dtype,)
        )
        for f, dtype in itertools.product([optax.softmax_cross_entropy_with_integer_labels], ("float32", "bfloat16"))
    ),
    Case("embedding", lambda x, i: jnp.sin(x)[i % 6] * x, partial(labelled, "embedding"), ("float16",)),
    *(Case(f"a tree of parameters {dtype}", affine, partial(tree_and_x, dtype), (dtype,)) for dtype in ALL),
    Case("flax.linen.Conv", CONV_MODULE.apply, conv_variables, ("float32",)),
    Case("flax.linen.Dense", DENSE_MODULE.apply, dense_variables, ("float32",)),
]


# Awkward arguments: kinks, ties, nothing, one, and numbers far from 1


def steps(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    """Small multiples of a half, so that there are zeros and ties."""
    return lambda dtype: (jnp.asarray(generator(str(shape)).integers(-3, 4, shape) / 2, dtype),)


def times(*factors: float, offset: float = 0.0) -> Callable[..., Callable[[Any], tuple[Any, ...]]]:
    """Normal arrays, each times its factor."""

    def shaped(*shapes: tuple[int, ...]) -> Callable[[Any], tuple[Any, ...]]:
        def arguments(dtype: Any) -> tuple[Any, ...]:
            random = generator(str((factors, shapes)))
            pairs = zip(factors, shapes, strict=True)
            return tuple(jnp.asarray(f * random.standard_normal(s) + offset, dtype) for f, s in pairs)

        return arguments

    return shaped


X, W, C = (2, 5, 5, 2), (3, 3, 2, 3), (2,)
KINKS: list[tuple[str, Callable[..., Any], tuple[int, ...]]] = [
    ("relu", jaxconv.relu, (5, 6)),
    ("leaky_relu", jaxconv.leaky_relu, (5, 6)),
    ("relu6", lambda x: jaxconv.relu6(4 * x), (5, 6)),
    ("elu", partial(jaxconv.elu, alpha=2.0), (5, 6)),
    ("jax.nn.relu", jax.nn.relu, (5, 6)),
    ("jax.nn.relu6", lambda x: jax.nn.relu6(4 * x), (5, 6)),
    ("abs", jnp.abs, (5, 6)),
    ("max_pool", partial(jaxconv.max_pool, window=2, stride=1), X),
    ("max_pool of wide windows", partial(jaxconv.max_pool, window=3, stride=2, padding="SAME"), X),
    ("lp_pool", partial(jaxconv.lp_pool, window=2, p=2), X),
    ("maximum", lambda x: x.max(-1), (5, 6)),
    ("sort", jnp.sort, (5, 6)),
]
EXTREMES: list[tuple[str, Callable[..., Any], Any]] = [
    ("conv of tiny x", jaxconv.conv, times(1e-6, 1)(X, W)),
    ("conv of huge x", jaxconv.conv, times(1e4, 1)(X, W)),
    ("conv of tiny x and huge w", jaxconv.conv, times(1e-6, 1e4)(X, W)),
    ("conv of zeros", jaxconv.conv, times(0, 1)(X, W)),
    ("conv of a large mean", jaxconv.conv, times(1, 1, offset=100.0)(X, W)),
    ("dense of huge x", jaxconv.dense, times(1e4, 1e4)((3, 4), (4, 2))),
    ("lp_pool of tiny x", partial(jaxconv.lp_pool, window=2, p=2), times(1e-6)(X)),
    ("layer_norm of tiny x", jaxconv.layer_norm, times(1e-6)(X)),
    ("layer_norm of huge x", partial(jaxconv.layer_norm, axis=1), times(1e4)(X)),
    ("layer_norm of a large mean", partial(jaxconv.layer_norm, axis=1), times(1, offset=100.0)(X)),
    ("layer_norm of one channel", jaxconv.layer_norm, times(1, 1, 1)((3, 1), (1,), (1,))),
    ("rms_norm of tiny x", jaxconv.rms_norm, times(1e-6)(X)),
    ("cross-entropy of large logits", jax.nn.log_softmax, times(100)((4, 5))),
    ("tanh, saturated", jaxconv.tanh, times(20)((20,))),
    ("softplus, far out", jaxconv.softplus, times(100)((20,))),
    ("sigmoid, far out", jaxconv.sigmoid, times(20)((20,))),
    ("gelu, far out", jaxconv.gelu, times(10)((20,))),
    ("mean_squared_error of huge numbers", jaxconv.mean_squared_error, times(1e4, 1e4)((4, 3), (4, 3))),
]
EMPTY: list[tuple[str, Callable[..., Any], tuple[tuple[int, ...], ...]]] = [
    ("conv of no examples", jaxconv.conv, ((0, *X[1:]), W)),
    ("conv without a window that fits", partial(jaxconv.conv, padding="VALID"), ((2, 2, 2, 2), W)),
    ("dense of no examples", jaxconv.dense, ((0, 4), (4, 2), (2,))),
    ("relu of nothing", jaxconv.relu, ((0, 3),)),
    ("max_pool of no examples", partial(jaxconv.max_pool, window=2), ((0, *X[1:]),)),
    ("avg_pool of no examples", partial(jaxconv.avg_pool, window=2), ((0, *X[1:]),)),
    ("layer_norm of no examples", jaxconv.layer_norm, ((0, 2), C, C)),
    ("conv of one of everything", jaxconv.conv, ((1, 1, 1, 1), (1, 1, 1, 1), (1,))),
    ("conv of one element, mostly padding", jaxconv.conv, ((1, 1, 1, 1), (3, 3, 1, 2))),
    ("max_pool of one element", partial(jaxconv.max_pool, window=3, padding="SAME"), ((1, 1, 1, 1),)),
    ("global_avg_pool of one position", jaxconv.global_avg_pool, ((2, 1, 1, 3),)),
]

ELSEWHERE: list[Case] = [
    *dealt(ALL, NN),
    *dealt(LONG, ANALYSIS),
    *dealt(LONG, OPTAX),
    *TREES,
    *(
        Case(f"{name} at kinks {dtype}", f, steps(*shape), (dtype,))
        for (name, f, shape), dtype in zip(KINKS, itertools.cycle(("float32", "float64", "bfloat16")))
    ),
    *(Case(name, f, arguments, ("float32",)) for name, f, arguments in EXTREMES),
    *dealt(LONG, EMPTY),
]
