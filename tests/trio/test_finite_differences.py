"""Gradients are slopes: central differences in float64, with a tolerance derived from the function itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.ops.arguments import RULES
from tests.support import oracle
from tests.support.cases import FEW, Case, cotangent
from tests.support.cases_transposed import FEW_TRANSPOSED

EPS = float(np.finfo(np.float64).eps)
Operands = dict[str, Any]


# Bilinear maps: no curvature, so any step will do, and integers leave no rounding


@pytest.mark.parametrize(
    ("op", "case"),
    [*(("conv", case) for case in FEW), *(("conv_transpose", case) for case in FEW_TRANSPOSED)],
    ids=str,
)
def test_the_slope_of_a_bilinear_map_is_exact(op: str, case: Case) -> None:
    rng, layer = np.random.default_rng(3), getattr(jaxconv, op)
    y = jax.eval_shape(lambda x, w: layer(x, w, **case.options), jnp.zeros(case.x), jnp.zeros(case.w))
    x, w, u, v, g = (rng.integers(-9, 9, shape).astype(float) for shape in (case.x, case.w, case.x, case.w, y.shape))

    def loss(x: jax.Array, w: jax.Array, rules: str) -> jax.Array:
        return jnp.vdot(g, layer(x, w, **case.options, rules=rules))

    @jax.jit
    def slopes(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        along_u = loss(x + u, w, "autodiff") - loss(x - u, w, "autodiff")
        along_v = loss(x, w + v, "autodiff") - loss(x, w - v, "autodiff")
        return along_u / 2, along_v / 2

    @jax.jit
    def gradients(x: jax.Array, w: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {rules: jax.grad(loss, (0, 1))(x, w, rules) for rules in RULES}

    for rules, (dx, dw) in gradients(x, w).items():
        assert (np.vdot(dx, u), np.vdot(dw, v)) == slopes(x, w), rules


# A small network


class Net(NamedTuple):
    """Two layers of the library, the second `op`, with a sine between: Σ c · (op(sin(conv(x, w1) + b1), w2) + b2)."""

    x: tuple[int, ...]
    w1: tuple[int, ...]
    w2: tuple[int, ...]
    op: str
    options1: dict[str, Any]
    options2: dict[str, Any]

    def __str__(self) -> str:
        return f"conv-{self.op}-{'x'.join(map(str, self.x))}"

    def layers(self, library: Any, **options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The two layers by `jaxconv` or by the loops."""
        second = getattr(library, self.op)
        return (
            lambda x, w, b: library.conv(x, w, b, **self.options1, **options),
            lambda x, w, b: second(x, w, b, **self.options2, **options),
        )

    def loss(self, a: Operands, rules: str) -> jax.Array:
        first, second = self.layers(jaxconv, rules=rules)
        return jnp.vdot(a["c"], second(jnp.sin(first(a["x"], a["w1"], a["b1"])), a["w2"], a["b2"]))

    def operands(self) -> Operands:
        outputs = self.w2[-2] * self.options2.get("groups", 1) if self.op == "conv_transpose" else self.w2[-1]
        shapes = {"x": self.x, "w1": self.w1, "b1": self.w1[-1:], "w2": self.w2, "b2": (outputs,)}
        a = {name: cotangent(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
        first, second = self.layers(oracle)
        return {**a, "c": cotangent(second(first(a["x"], a["w1"], a["b1"]), a["w2"], a["b2"]).shape, seed=9)}


NETS = [
    Net(
        (2, 9, 2), (3, 2, 4), (2, 2, 4), "conv",
        {"stride": 2, "padding": "CAUSAL"}, {"groups": 2, "padding": ((3, -1),)},
    ),
    Net(
        (2, 6, 7, 4), (3, 2, 2, 4), (3, 3, 4, 3), "conv",
        {"groups": 2, "dilation": (1, 2), "flip_kernel": True}, {"stride": 3, "padding": ((2, 0), (-1, 2))},
    ),
    Net(
        (1, 5, 6, 2), (3, 3, 2, 4), (2, 3, 1, 4), "conv_transpose",
        {"stride": 2, "padding": 1}, {"stride": (2, 3), "groups": 2, "padding": "VALID", "output_padding": 1},
    ),
]  # fmt: skip


def tolerance_and_step(net: Net, a: Operands, name: str, v: np.ndarray) -> tuple[float, float]:
    """How far a central difference of the loss may lie from its slope, at the best step.

    Along one operand, z = conv(x, w1) + b1 moves at a constant speed z', and `second` is linear. So with φ the loss,

        |φ'''| ≤ M = Σ |c| · second(|z'|³, |w2|)      (w2 and b2 do not move z: M = 0)
        |(φ(h) − φ(−h)) / 2h − φ'(0)| ≤ h²·M/6 + ε/h,

    where ε bounds the rounding of one φ. By the rule K·eps·S, with one more summand for the rounding of the operand
    that moves: z errs by (K1 + 1)·eps·S1 and its sine by eps more; y by what `second` makes of that and by
    (K2 + 1)·eps·S2, where |sin| ≤ 1; the sum of N entries of c·y by N·eps·Σ |c|·S2. The best step has h³ = 3ε/M.
    """
    first, second = net.layers(oracle)
    x, w1, b1, w2, b2, c = (np.abs(value) + (np.abs(v) if key == name else 0) for key, value in a.items())
    ones = {key: np.ones_like(value) for key, value in a.items()}
    z_error = (first(ones["x"], ones["w1"], ones["b1"]) + 1) * EPS * first(x, w1, b1) + EPS
    unit, none = np.ones_like(z_error), np.zeros_like(b2)
    roundings = second(unit, ones["w2"], ones["b2"]) + 1 + c.size
    rounding = np.vdot(c, second(z_error, w2, none) + roundings * EPS * second(unit, w2, b2))

    still = np.zeros_like(b1)
    moves = {"x": (v, a["w1"], still), "w1": (a["x"], v, still), "b1": (0 * a["x"], a["w1"], v)}
    speed = np.abs(first(*moves[name])) if name in moves else 0 * unit
    curvature = np.vdot(c, second(speed**3, w2, none))
    if not curvature:
        return float(rounding), 1.0
    step = np.cbrt(3 * rounding / curvature)
    tolerance = step**2 * curvature / 6 + rounding / step
    assert tolerance < 1e-6 * np.vdot(c, second(speed, w2, none)), "the tolerance hides a slope wrong by a millionth"
    return float(tolerance), float(step)


def directions(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Two random directions and three coordinates."""
    rng = np.random.default_rng(11)
    coordinates = []
    for flat in rng.choice(np.prod(shape), min(3, np.prod(shape)), replace=False):
        coordinates.append(np.zeros(shape))
        coordinates[-1].flat[flat] = 1
    return [*rng.standard_normal((2, *shape)), *coordinates]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_the_gradient_of_a_network_is_its_slope(net: Net) -> None:
    a = net.operands()
    loss = jax.jit(lambda a: net.loss(a, "fast"))
    gradients = jax.jit(lambda a: {rules: jax.grad(net.loss)(a, rules) for rules in RULES})(a)
    for name in ("x", "w1", "b1", "w2", "b2"):
        for v in directions(a[name].shape):
            tolerance, h = tolerance_and_step(net, a, name, v)
            slope = (loss({**a, name: a[name] + h * v}) - loss({**a, name: a[name] - h * v})) / (2 * h)
            for rules, gradient in gradients.items():
                error = abs(float(np.vdot(gradient[name], v) - slope))
                assert error <= tolerance, f"{rules}: {name} errs by {error:.2g} > {tolerance:.2g} at step {h:.2g}"
