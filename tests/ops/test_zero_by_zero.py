"""Where a formula would divide 0 by 0 or multiply 0 by ∞, every rule set has the right value and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.cases_ops import normal

RULES = ("textbook", "fast", "autodiff")  # without a kernel, "rotated" is what "textbook" is
INF = np.inf


class Point(NamedTuple):
    """A function of x and `rules`, a point x, and there the value and the derivative of Σ δ y."""

    name: str
    f: Callable[..., jax.Array]
    x: np.ndarray
    y: np.ndarray
    dx: Callable[[np.ndarray], np.ndarray]

    def __str__(self) -> str:
        return self.name


def flat(name: str, f: Callable[..., jax.Array], x: Any, y: Any = 0) -> Point:
    """A point with derivative 0, and the same value everywhere."""
    x = np.array(x, float)
    shape = jax.eval_shape(partial(f, rules="fast"), x).shape
    return Point(name, f, x, np.full(shape, float(y)), lambda g: np.zeros_like(x))


def through(name: str, f: Callable[..., jax.Array], x: Any, y: Any, slopes: Any) -> Point:
    """A point of an elementwise function."""
    return Point(name, f, np.array(x, float), np.array(y, float), lambda g: g * np.array(slopes, float))


def alone(name: str, pool: Callable[..., jax.Array], y: Any, slope: float = 1) -> Point:
    """A pool of one element, 5, in the middle of so much padding that only 2 of 6 windows hold it."""
    f = partial(pool, window=2, stride=1, padding=3)
    y = np.reshape([*y, 5 * slope, 5 * slope, *y], (1, 6, 1))
    return Point(name, f, np.full((1, 1, 1), 5.0), y, lambda g: slope * g[:, 2:4].sum(1, keepdims=True))


def entropy(labels: Any, **options: Any) -> Callable[..., jax.Array]:
    return lambda z, rules: jaxconv.softmax_cross_entropy(z, labels, rules=rules, **options)


def with_state(var: float, **options: Any) -> Callable[..., jax.Array]:
    def f(x: Any, rules: str) -> jax.Array:
        state = {"mean": jnp.full(x.shape[-1], 3.0), "var": jnp.full(x.shape[-1], var)}
        return jaxconv.batch_norm(x, None, None, state, rules=rules, **options)[0]

    return f


CONSTANT, EDGES = np.full((2, 2, 4), 3.0), [-INF, -1e38, -1e4, -100, 100, 1e4, 1e38, INF]
ZERO_TO_X = [0, 0, 0, 0, 100, 1e4, 1e38, INF], [0, 0, 0, 0, 1, 1, 1, 1]

POINTS = [
    # nothing to choose from, and nothing chosen
    flat("entropy-padding", entropy(np.zeros((2, 3))), np.full((2, 3), -INF)),
    flat(
        "entropy-padding-in-the-labels",
        lambda t, rules: jaxconv.softmax_cross_entropy(np.full((2, 3), -INF), t, label_smoothing=0.2, rules=rules),
        np.zeros((2, 3)),
    ),
    flat("entropy-impossible", entropy(np.array([0, 1])), [[-INF, -INF], [2, -INF]], INF),
    flat("entropy-left-out", entropy(np.array([7, -9]), where=np.zeros(2, bool)), [[np.nan, 1], [INF, -INF]]),
    flat(
        "mean_squared_error-left-out",
        lambda x, rules: jaxconv.mean_squared_error(x, x + 1, where=np.zeros((2, 1), bool), rules=rules),
        [[np.nan, 1, 2], [INF, -INF, 0]],
    ),
    # nothing varies
    flat("layer_norm-constant", partial(jaxconv.layer_norm, eps=0.0), CONSTANT),
    flat(
        "layer_norm-eps-underflows",
        lambda x, rules: jaxconv.layer_norm(x.astype(np.float32), eps=1e-50, rules=rules).astype(float),
        CONSTANT,
    ),
    flat("rms_norm-zero", partial(jaxconv.rms_norm, eps=0.0), 0 * CONSTANT),
    flat("instance_norm-constant", partial(jaxconv.instance_norm, eps=0.0), CONSTANT),
    flat("group_norm-of-one", partial(jaxconv.group_norm, groups=4, eps=0.0), normal((2, 1, 4))),
    flat("batch_norm-constant", with_state(1.0, train=True, eps=0.0), CONSTANT),
    flat("batch_norm-inference", with_state(0.0, train=False, eps=0.0), CONSTANT),
    # windows of nothing but padding, or of zeros
    alone("max_pool", jaxconv.max_pool, [-INF, -INF]),
    alone("avg_pool", jaxconv.avg_pool, [0, 0]),
    alone("avg_pool-count_padding", partial(jaxconv.avg_pool, count_padding=True), [0, 0], 0.5),
    *(alone(f"lp_pool-{p}", partial(jaxconv.lp_pool, p=p), [0, 0]) for p in (1, 2.5)),
    *(flat(f"lp_pool-{p}-zeros", partial(jaxconv.lp_pool, window=2, p=p), np.zeros((1, 4, 2))) for p in (1, 2.5)),
    flat("avg_pool-nothing", partial(jaxconv.avg_pool, window=2, padding=2), np.zeros((1, 0, 2))),
    # nothing to sum
    flat("dense-nothing", lambda x, rules: jaxconv.dense(x, np.zeros((0, 3)), rules=rules), np.zeros((2, 0))),
    flat("conv-nothing", lambda x, rules: jaxconv.conv(x, np.zeros((3, 0, 2)), rules=rules), np.zeros((1, 4, 0))),
    # 0 · ∞
    through("silu-far", jaxconv.silu, EDGES, [0, 0, 0, -100 / (1 + np.exp(100)), *ZERO_TO_X[0][4:]],
            [0, 0, 0, (1 - 100) / (1 + np.exp(100)), *ZERO_TO_X[1][4:]]),
    through("gelu-far", jaxconv.gelu, EDGES, *ZERO_TO_X),
    through("gelu-exact-far", partial(jaxconv.gelu, approximate=False), EDGES, *ZERO_TO_X),
    through("softplus-far", jaxconv.softplus, [-INF, -1e38, 1e38, INF], [0, 0, 1e38, INF], [0, 0, 1, 1]),
    through("tanh-far", jaxconv.tanh, [-INF, -1e38, 1e38, INF], [-1, -1, 1, 1], [0, 0, 0, 0]),
    through("elu-far", jaxconv.elu, [-INF, -1e38, 1e38, INF], [-1, -1, 1e38, INF], [0, 0, 1, 1]),
]  # fmt: skip


def every_derivative(point: Point, rules: str, x: Any, g: Any, v: Any) -> Any:
    """y, dx, its derivative along v, and if there is a forward mode the tangent of y along v."""
    f = partial(point.f, rules=rules)

    def gradient(x: Any) -> Any:
        y, pullback = jax.vjp(f, x)
        return pullback(jnp.asarray(g, y.dtype))[0]

    second = jax.grad(lambda x: jnp.vdot(gradient(x), v))(x)
    return f(x), gradient(x), second, jax.jvp(f, (x,), (v,))[1] if rules in ("fast", "autodiff") else None


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_value_and_derivatives(point: Point) -> None:
    """Of two examples under vmap, with other δ; the second derivative is 0 at all these points."""
    g, v = normal((2, *point.y.shape)), np.broadcast_to(normal(point.x.shape, 2), (2, *point.x.shape))
    xs = np.stack([point.x, point.x])

    def every(xs: Any, g: Any, v: Any) -> Any:
        return {rules: jax.vmap(partial(every_derivative, point, rules))(xs, g, v) for rules in RULES}

    found = jax.jit(every)(xs, g, v)
    for rules, (y, dx, second, _) in found.items():
        for i in range(2):
            np.testing.assert_allclose(y[i], point.y, rtol=1e-15, atol=1e-300, err_msg=rules)
            np.testing.assert_allclose(dx[i], point.dx(g[i]), rtol=1e-14, atol=1e-300, err_msg=rules)
            np.testing.assert_allclose(second[i], 0, atol=1e-15, err_msg=rules)
    forwards = {rules: (dx, tangent) for rules, (_, dx, _, tangent) in found.items() if tangent is not None}
    assert forwards.keys() == {"fast", "autodiff"}
    for rules, (dx, tangent) in forwards.items():
        for i in range(2):
            np.testing.assert_allclose(np.vdot(tangent[i], g[i]), np.vdot(v[i], dx[i]), rtol=1e-13, err_msg=rules)
