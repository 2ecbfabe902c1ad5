"""Wrong gradients of right functions, broken as hand-written gradients have been broken before: the whole list."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import stop_gradient as constant

import jaxconv
from experiments.verdicts.broken import ONLY32, Backward, case, of, on, seeing, with_gradient, with_tangent
from experiments.verdicts.case import Case, arrays, integers
from experiments.verdicts.wrong_convolutions import CONVOLUTIONS

# Bias, dense, and products

X, B = (3, 6, 7, 4), (4,)


def biased(x: jax.Array, b: jax.Array) -> jax.Array:
    return x + lax.broadcast_in_dim(b, x.shape, (x.ndim - 1,))


dense = partial(jaxconv.dense, rules="autodiff")
kept = np.random.default_rng(0).random((4, 5)) < 0.6
repeated = np.array([0, 2, 2, 1, 2], np.int32)

LINEAR: dict[str, tuple[Any, Backward, Any]] = {
    "bias: the mean, not the sum": (biased, lambda a, g, true: (g, g.mean((0, 1, 2))), (X, B)),
    "bias: only the first example": (biased, lambda a, g, true: (g, g[0].sum((0, 1))), (X, B)),
    "bias: only the first position": (biased, lambda a, g, true: (g, g[:, 0, 0].sum(0)), (X, B)),
    "bias: divided by the batch": (biased, on(1, lambda d: d / 3), (X, B)),
    "dense: the kernel is not transposed": (dense, lambda a, g, true: (g @ a[1], true[1]), ((5, 4), (4, 4))),
    "dense: dw transposed": (dense, on(1, jnp.transpose), ((5, 4), (4, 4))),
    "dense: dw averaged over the batch": (dense, on(1, lambda d: d / 5), ((5, 4), (4, 3))),
    "dense: dw and dx in each other's place": (dense, lambda a, g, true: true[::-1], ((4, 4), (4, 4))),
    "dense: only the first position of a sequence": (
        dense,
        lambda a, g, true: (true[0], jnp.einsum("nc,no->co", a[0][:, 0], g[:, 0])),
        ((3, 2, 4), (4, 3)),
    ),
    "product: each its own factor": (jnp.multiply, lambda a, g, true: (g * a[0], g * a[1]), ((3, 4), (3, 4))),
    "quotient: the denominator's sign": (
        lambda a, b: a / (2 + b * b),
        on(1, jnp.negative),
        ((3, 4), (3, 4)),
    ),
    "embedding: a row read twice is written, not added": (
        lambda table: table[repeated],
        lambda a, g, true: (jnp.zeros_like(a[0]).at[repeated].set(g),),
        ((4, 3),),
    ),
    "cumsum: not reversed": (jnp.cumsum, lambda a, g, true: (jnp.cumsum(g),), ((9,),)),
    "sort: not permuted back": (jnp.sort, lambda a, g, true: (g,), ((9,),)),
    "dropout: the scale forgotten": (lambda x: jnp.where(kept, x / 0.6, 0), on(0, lambda d: 0.6 * d), ((4, 5),)),
    "dropout: the mask inverted": (
        lambda x: jnp.where(kept, x / 0.6, 0),
        lambda a, g, true: (jnp.where(kept, 0, g / 0.6),),
        ((4, 5),),
    ),
    "dropout: no mask": (lambda x: jnp.where(kept, x / 0.6, 0), lambda a, g, true: (g / 0.6,), ((4, 5),)),
}


# Windows and borders. `spread` sends g to the taps of 2×2 windows, in shares.

IMAGE = (2, 5, 6, 3)
max_pool = partial(jaxconv.max_pool, window=2, stride=1, rules="autodiff")


def taps(x: jax.Array) -> jax.Array:
    """(4, n, h − 1, w − 1, c): what each tap of a 2×2 window of stride 1 reads."""
    h, w = x.shape[1] - 1, x.shape[2] - 1
    return jnp.stack([x[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)])


def spread(x: jax.Array, g: jax.Array, shares: Any) -> tuple[jax.Array]:
    shares = jnp.broadcast_to(shares, (4, *g.shape)).astype(g.dtype)
    (dx,) = jax.vjp(taps, x)[1](shares * jnp.broadcast_to(g, shares.shape))
    return (dx,)


def overwritten(a: Any, g: jax.Array, true: Any) -> tuple[jax.Array]:
    """Each window writes to its maximum; what another window had put there is lost."""
    winner, dx = taps(a[0]).argmax(0), jnp.zeros_like(a[0])
    h, w = g.shape[1:3]
    for k, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        dx = dx.at[:, i : i + h, j : j + w].set(jnp.where(winner == k, g, dx[:, i : i + h, j : j + w]))
    return (dx,)


avg_pool = partial(jaxconv.avg_pool, window=(3, 2), stride=2, padding=1, rules="autodiff")
LAST = np.arange(4).reshape(4, 1, 1, 1, 1) == 3
PADS = ((2, 1), (1, 2))


def border(mode: str) -> Callable[[jax.Array], jax.Array]:
    return partial(jaxconv.pad, padding=PADS, mode=mode, rules="autodiff")


def inside(a: Any, g: jax.Array, true: Any) -> tuple[jax.Array]:
    """The border's part of g is not folded back."""
    return (g[:, 2:-1, 1:-2],)


def symmetric(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *PADS, (0, 0)), mode="symmetric")


WINDOWS: dict[str, tuple[Any, Backward]] = {
    "max pool: to the last tap": (max_pool, lambda a, g, true: spread(a[0], g, LAST)),
    "max pool: spread evenly": (max_pool, lambda a, g, true: spread(a[0], g, 0.25)),
    "max pool: to every tap": (max_pool, lambda a, g, true: spread(a[0], g, 1)),
    "max pool: overlapping windows overwrite": (max_pool, overwritten),
    "max pool: to the minimum": (max_pool, lambda a, g, true: spread(a[0], g, taps(a[0]) == taps(a[0]).min(0)[None])),
    "avg pool: not divided": (avg_pool, on(0, lambda d: 6 * d)),
    "avg pool: divided by the padded count": (avg_pool, of(partial(avg_pool, count_padding=True))),
    "avg pool: divided by the real count": (partial(avg_pool, count_padding=True), of(avg_pool)),
    "avg pool: to the maximum": (
        avg_pool,
        of(partial(jaxconv.max_pool, window=(3, 2), stride=2, padding=1, rules="autodiff")),
    ),
    "global avg pool: not divided": (jaxconv.global_avg_pool, on(0, lambda d: 30 * d)),
    "lp pool: the sign of x forgotten": (
        partial(jaxconv.lp_pool, window=2, p=3, rules="autodiff"),
        lambda a, g, true: (jnp.sign(a[0]) * true[0],),
    ),
    "lp pool: the outer power forgotten": (
        partial(jaxconv.lp_pool, window=2, p=3, rules="autodiff"),
        of(lambda x: jaxconv.avg_pool(4 / 3 * jnp.abs(x) ** 3, 2, rules="autodiff")),
    ),
    "circular border: not folded back": (border("circular"), inside),
    "reflected border: not folded back": (border("reflect"), inside),
    "edge border: not folded back": (border("edge"), inside),
    "circular border: folded at the wrong end": (border("circular"), of(border("edge"))),
    "reflected border: the edge counted twice": (border("reflect"), of(symmetric)),
    "zero border: off by one": (border("zero"), lambda a, g, true: (g[:, 1:-2, 1:-2],)),
    "upsampling: only the first copy": (lambda x: x.repeat(2, 1), lambda a, g, true: (g[:, ::2],)),
}


def tied(dtype: Any) -> tuple[jax.Array]:
    return (integers("tied", 3, IMAGE).astype(dtype),)


def paid_to_each(a: Any, g: jax.Array, true: Any) -> tuple[jax.Array]:
    return spread(a[0], g, taps(a[0]) == max_pool(a[0])[None])


# Normalisation: a standardisation that can treat its statistics as constants is the wrong one to differentiate


def standardised(
    x: jax.Array, axes: Any, eps: float = 1e-5, mean: Any = lambda m: m, var: Any = lambda v: v, centred: bool = True
) -> jax.Array:
    centre = mean(x.mean(axes, keepdims=True)) if centred else 0
    square = ((x - x.mean(axes, keepdims=True)) ** 2 if centred else x**2).mean(axes, keepdims=True)
    return (x - centre) * lax.rsqrt(var(square) + eps)


def scaled(normalise: Any, axes: Any = (-1,), **options: Any) -> Callable[..., jax.Array]:
    """normalise(x) · scale + bias."""

    def f(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return biased(normalise(x, axes, **options) * jnp.broadcast_to(scale, x.shape), bias)

    return f


def grouped(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return jaxconv.group_norm(x, 2, scale, bias, rules="autodiff")


layer_norm = partial(jaxconv.layer_norm, rules="autodiff")
rms_norm = partial(jaxconv.rms_norm, rules="autodiff")
batch_norm = scaled(standardised, (0, 1, 2))
NORMALISED = ((3, 2, 2, 4), B, B)

NORMS: dict[str, tuple[Any, Backward, float]] = {
    "layer norm: no mean term": (layer_norm, of(scaled(standardised, mean=constant)), math.inf),
    "layer norm: no x̂ term": (layer_norm, of(scaled(standardised, var=constant)), math.inf),
    "layer norm: σ forgotten": (
        layer_norm,
        lambda a, g, true: (true[0] * jnp.sqrt(a[0].var(-1, keepdims=True)), *true[1:]),
        0.2,
    ),
    "layer norm: the scale's gradient lacks x̂": (
        layer_norm,
        lambda a, g, true: (true[0], g.sum((0, 1, 2)), true[2]),
        math.inf,
    ),
    "layer norm: dx lacks the scale": (
        layer_norm,
        lambda a, g, true: (jax.vjp(layer_norm, a[0], jnp.ones_like(a[1]), a[2])[1](g)[0], *true[1:]),
        math.inf,
    ),
    "layer norm: the bias's gradient is scaled": (layer_norm, lambda a, g, true: (*true[:2], true[2] * a[1]), 0.5),
    "layer norm: eps forgotten": (partial(layer_norm, eps=0.5), of(layer_norm), math.inf),
    "batch norm: statistics taken for constants": (
        batch_norm,
        of(scaled(standardised, (0, 1, 2), mean=constant, var=constant)),
        0.3,
    ),
    "batch norm: unbiased variance": (
        batch_norm,
        of(scaled(standardised, (0, 1, 2), var=lambda v: v * 12 / 11)),
        0.04,
    ),
    "batch norm: each example on its own": (batch_norm, of(scaled(standardised, (1, 2))), math.inf),
    "batch norm: the scale's gradient averaged": (batch_norm, on(1, lambda d: d / 12), math.inf),
    "rms norm: layer norm's mean term": (rms_norm, of(layer_norm), math.inf),
    "rms norm: no x̂ term": (rms_norm, of(scaled(standardised, centred=False, var=constant)), 0.3),
    "group norm: one group": (grouped, of(scaled(standardised, (1, 2, 3))), 0.3),
}


# Activations: a wrong slope, of x

ACTIVATIONS: dict[str, tuple[Any, Callable[[jax.Array], Any], float]] = {
    "relu: passes all": (jaxconv.relu, lambda x: 1, math.inf),
    "relu: leaks": (jaxconv.relu, lambda x: jnp.where(x > 0, 1, 0.01), 0.01),
    "leaky relu: does not leak": (partial(jaxconv.leaky_relu, negative_slope=0.2), lambda x: x > 0, 0.2),
    "relu6: no upper clip": (lambda x: jaxconv.relu6(6 * x), lambda x: jnp.where(x > 0, 6, 0), math.inf),
    "elu: alpha forgotten": (partial(jaxconv.elu, alpha=0.5), lambda x: jnp.exp(jnp.minimum(x, 0)), 0.3),
    "sigmoid: s": (jaxconv.sigmoid, jaxconv.sigmoid, math.inf),
    "sigmoid: s (1 − s) of s": (jaxconv.sigmoid, lambda x: (s := jaxconv.sigmoid(jaxconv.sigmoid(x))) * (1 - s), 0.2),
    "tanh: 1 − t": (jaxconv.tanh, lambda x: 1 - jnp.tanh(x), math.inf),
    "softplus: σ(−x)": (jaxconv.softplus, lambda x: jaxconv.sigmoid(-x), math.inf),
    "silu: σ(x) alone": (jaxconv.silu, jaxconv.sigmoid, 0.3),
    "exact gelu: Φ(x) alone": (partial(jaxconv.gelu, approximate=False), lambda x: 0.5 * lax.erfc(-x / 2**0.5), 0.2),
    "exact gelu: by a sigmoid": (
        partial(jaxconv.gelu, approximate=False),
        jax.vmap(jax.grad(lambda x: x * jax.nn.sigmoid(1.702 * x))),
        0.02,
    ),
    "exact gelu: by the tanh approximation": (
        partial(jaxconv.gelu, approximate=False),
        jax.vmap(jax.grad(jaxconv.gelu)),
        3e-4,
    ),
    "sine: cos 1 % off beyond 1": (jnp.sin, lambda x: jnp.cos(x) * jnp.where(jnp.abs(x) > 1, 1.01, 1), 5e-3),
    "absolute value: 1": (jnp.abs, lambda x: 1, math.inf),
    "square: x": (jnp.square, lambda x: x, math.inf),
    "exp: by its tangent": (jnp.exp, lambda x: 1 + x, 0.3),
    "cube: of a constant": (lambda x: x**3, lambda x: 3 * jnp.mean(x**2), math.inf),
}


def pointwise(primal: Callable[..., Any], slope: Callable[[jax.Array], Any]) -> Callable[..., Any]:
    return with_gradient(primal, lambda a, g, true: (g * jnp.asarray(slope(a[0])).astype(g.dtype),))


# Losses and the like

entropy = partial(jaxconv.softmax_cross_entropy, rules="autodiff")
smoothed = partial(entropy, label_smoothing=0.2)
squares = partial(jaxconv.mean_squared_error, rules="autodiff")


def labelled(name: str) -> Callable[[Any], tuple[Any, ...]]:
    return lambda dtype: (*arrays(name, dtype, (6, 5)), integers(name, 5, (6,)))


ENTROPIES: dict[str, tuple[Any, Backward, float]] = {
    "divided by the batch": (entropy, on(0, lambda d: d / 6), math.inf),
    "t − p": (entropy, on(0, jnp.negative), math.inf),
    "p alone": (entropy, lambda a, g, true: (g[:, None] * jax.nn.softmax(a[0].astype(g.dtype)), None), math.inf),
    "the smoothing forgotten": (smoothed, of(entropy), 0.1),
    "g taken for ones": (entropy, seeing(jnp.ones_like, entropy), math.inf),
    "the labels off by one": (entropy, of(lambda z, t: entropy(z, (t + 1) % 5)), math.inf),
}
OTHERS: dict[str, tuple[Any, Backward, Any, float]] = {
    "mean square: the 2 forgotten": (squares, on(0, lambda d: d / 2), ((3, 4), (3, 4)), math.inf),
    "mean square: the sum's": (squares, on(0, lambda d: 12 * d), ((3, 4), (3, 4)), math.inf),
    "mean square: of the targets forgotten": (squares, on(1, jnp.zeros_like), ((3, 4), (3, 4)), math.inf),
    "mean square: the targets' sign": (squares, lambda a, g, true: (true[0], true[0]), ((3, 4), (3, 4)), math.inf),
    "mean square: g ignored": (squares, seeing(jnp.ones_like, squares), ((3, 4), (3, 4)), math.inf),
    "softmax: the diagonal alone": (jax.nn.softmax, lambda a, g, true: (g * bell(a[0]),), ((4, 5),), 0.3),
    "log-softmax: the sum forgotten": (jax.nn.log_softmax, lambda a, g, true: (g,), ((4, 5),), 0.5),
    "maximum: the mean's": (lambda x: x.max(-1), of(lambda x: x.mean(-1)), ((4, 5),), math.inf),
    "norm: not normalised": (jnp.linalg.norm, lambda a, g, true: (g * a[0],), ((9,),), math.inf),
    "variance: the divisor": (lambda x: x.var(-1), of(lambda x: x.var(-1, ddof=1)), ((3, 11),), 0.1),
}
SOLVES: dict[str, tuple[Any, Backward]] = {
    "solve: not transposed": (jnp.linalg.solve, lambda a, g, true: (true[0], jnp.linalg.solve(a[0], g))),
    "inverse: the sign": (lambda a, b: jnp.linalg.inv(a) @ b, on(0, jnp.negative)),
    "determinant: the inverse is not transposed": (
        lambda a, b: jnp.linalg.det(a) * b,
        on(0, lambda d: d.swapaxes(0, 1)),
    ),
}


def bell(x: jax.Array) -> jax.Array:
    return (p := jax.nn.softmax(x)) * (1 - p)


def solvable(name: str) -> Callable[[Any], tuple[Any, ...]]:
    def arguments(dtype: Any) -> tuple[Any, ...]:
        a, b = arrays(name, dtype, (3, 3), (3, 3))
        return 0.5 * a + 2 * jnp.eye(3, dtype=dtype), b

    return arguments


# Rules for tangents, and wrong functions inside other ones


def bent(x: jax.Array) -> jax.Array:
    return _bent(x)


_bent = with_gradient(jnp.tanh, lambda a, g, true: (g * (1 - jnp.tanh(a[0])),))


def recurrent(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.scan(lambda h, x: (bent(x + h @ w), None), jnp.zeros_like(x[0]), x)[0]


def network(parameters: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = biased(jaxconv.conv(x, parameters["w"]), parameters["b"])
    return h.mean((1, 2)), bent(h.mean((0, 1, 2)))


TANGENTS: dict[str, tuple[Any, Any, float]] = {
    "sin scaled by 1.001": (jnp.sin, lambda a, t, true: 1.001 * true, 1e-3),
    "sin by sin": (jnp.sin, lambda a, t, true: t[0] * jnp.sin(a[0]), math.inf),
    "arctan without its denominator": (jnp.arctan, lambda a, t, true: t[0], 0.3),
    "log-sum-exp by the mean": (
        lambda x: jax.nn.logsumexp(x, -1),
        lambda a, t, true: t[0].mean(-1),
        0.3,
    ),
}
INSIDE: dict[str, tuple[Any, Any]] = {
    "jit": (jax.jit(bent), ((4, 3),)),
    "vmap": (jax.vmap(bent), ((4, 3),)),
    "checkpoint": (jax.checkpoint(lambda x: 2 * bent(x)), ((4, 3),)),
    "scan": (recurrent, ((5, 2, 3), (3, 3))),
    "cond": (lambda x: lax.cond(x.sum() > -1e3, bent, jnp.tanh, x), ((4, 3),)),
    "fori_loop": (lambda x: lax.fori_loop(0, 3, lambda _, x: bent(2 * x), x), ((4, 3),)),
    "jit of vmap of jit": (jax.jit(jax.vmap(jax.jit(lambda x: bent(2 * x)))), ((4, 3),)),
    "the second output": (lambda x: (jnp.sin(x), bent(x)), ((4, 3),)),
    "conv without its gradient": (
        lambda x, w: jaxconv.conv(with_gradient(jnp.sin, lambda a, g, true: (g,))(x), w),
        ((2, 5, 5, 2), (3, 3, 2, 2)),
    ),
}


def parameters_and_x(dtype: Any) -> tuple[Any, ...]:
    x, w, b = arrays("a tree of parameters", dtype, (2, 4, 4, 2), (3, 3, 2, 3), (3,))
    return {"w": w, "b": b}, x


WRONG: list[Case] = [
    *CONVOLUTIONS,
    *(case(k, with_gradient(f, b), *shapes) for k, (f, b, shapes) in LINEAR.items()),
    *(case(k, with_gradient(f, b), IMAGE) for k, (f, b) in WINDOWS.items()),
    Case("max pool: a tie paid to each", with_gradient(max_pool, paid_to_each), tied),
    *(case(k, with_gradient(f, b), *NORMALISED, gain=gain) for k, (f, b, gain) in NORMS.items()),
    *(case(k, pointwise(f, slope), (40,), gain=gain) for k, (f, slope, gain) in ACTIVATIONS.items()),
    case("relu: the mask of g", with_gradient(jaxconv.relu, lambda a, g, true: (jaxconv.relu(g),)), (40,)),
    *(
        Case(f"cross-entropy: {k}", with_gradient(f, b), labelled(k), gain=gain)
        for k, (f, b, gain) in ENTROPIES.items()
    ),
    *(case(k, with_gradient(f, b), *shapes, gain=gain) for k, (f, b, shapes, gain) in OTHERS.items()),
    *(Case(k, with_gradient(f, b), solvable(k), ONLY32, 0.2) for k, (f, b) in SOLVES.items()),
    *(case(f"tangent: {k}", with_tangent(f, t), (6, 4), gain=gain) for k, (f, t, gain) in TANGENTS.items()),
    *(case(f"inside: {k}", f, *shapes) for k, (f, shapes) in INSIDE.items()),
    Case("inside: a tree of parameters", network, parameters_and_x),
]
