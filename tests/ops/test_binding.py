"""The building blocks: an op of one's own, from its parts, under every value of `rules=` and every transformation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv import binding
from jaxconv.geometry import conv_geometry
from jaxconv.rules import CONV, INPUT_GRAD, KERNEL_GRAD, RULE_SETS, TRIO, Map, rotated
from tests.support.cases_ops import assert_close
from tests.support.refusal import refusal
from tests.support.rule_sets import ALL_RULES

MINE = jaxconv.ConvRules(rotated.input_grad, rotated.kernel_grad)


# A non-linear op: scale · x² where a mask allows it. Each part can say when it runs.


def square(calls: list[str] | None = None, cotangents: Callable[..., Any] | None = None) -> binding.Derivative:
    def ran(part: str) -> None:
        if calls is not None:
            calls.append(part)

    def primal(scale: float, x: jax.Array, mask: jax.Array) -> jax.Array:
        ran("primal")
        return jnp.where(mask, scale * x * x, 0)

    def forward(scale: float, x: jax.Array, mask: jax.Array) -> Any:
        ran("forward")
        return jnp.where(mask, scale * x * x, 0), (x, mask)

    def slope(scale: float, saved: Any) -> jax.Array:
        x, mask = saved
        return jnp.where(mask, 2 * scale * x, 0)

    def tangent(scale: float, saved: Any, t: Any, _: Any) -> jax.Array:
        ran("tangent")
        return slope(scale, saved) * t

    def cotangent(scale: float, saved: Any, g: jax.Array) -> Any:
        ran("cotangent")
        return cotangents(saved, g) if cotangents else (slope(scale, saved) * g, None)

    return binding.Derivative(primal, forward, tangent, cotangent)


@dataclass
class Times:
    """A linear map that has no hash."""

    factor: float

    def __call__(self, x: jax.Array, static: None) -> jax.Array:
        return self.factor * x


def test_a_linear_map_needs_no_hash() -> None:
    triple = binding.linear_pair("triple", Times(3.0), Times(3.0))
    y, back = jax.vjp(lambda x: binding.linear("fast", triple, None, x), jnp.ones(2))
    assert (y == 3).all() and (back(y)[0] == 9).all()


X, MASK = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.array([[True, False], [True, True], [False, True]])
RUNS = {
    "textbook": ["forward", "cotangent"],
    "rotated": ["forward", "cotangent"],
    "fast": ["forward", "tangent"],
    "autodiff": ["primal"],
    MINE: ["forward", "tangent"],
}


@pytest.mark.parametrize("rules", RUNS, ids=lambda rules: rules if isinstance(rules, str) else "ConvRules")
def test_rules_say_which_parts_of_a_non_linear_op_make_its_gradient(rules: Any) -> None:
    calls: list[str] = []
    rule = square(calls)
    dx = jax.grad(lambda x: binding.apply(rules, rule, 3.0, x, MASK).sum())(X)
    np.testing.assert_array_equal(dx, np.where(MASK, 6 * X, 0))
    assert calls[-len(RUNS[rules]) :] == RUNS[rules]


def test_a_non_linear_op_has_every_mode_under_fast() -> None:
    rule = square()

    def f(x: jax.Array, rules: str = "fast") -> jax.Array:
        return binding.apply(rules, rule, 3.0, x, MASK)

    along = jnp.sin(X)
    for transform in (
        lambda f: jax.jacfwd(f)(X),
        lambda f: jax.hessian(lambda x: (f(x) ** 2).sum())(X),
        lambda f: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (X,), (along,)),
        lambda f: jax.jit(jax.vmap(jax.grad(lambda x: f(x).sum())))(jnp.stack([X, 2 * X])),
        lambda f: jax.grad(lambda x: jax.lax.scan(lambda c, _: (f(c) / 9, None), x, length=3)[0].sum())(X),
    ):
        assert_close(transform(f), transform(lambda x: f(x, "autodiff")))


def test_without_hand_written_rules_only_the_value_is_left() -> None:
    wrong = square(cotangents=lambda saved, g: (0 * g, None))
    f = lambda x: binding.apply("rotated", wrong, 3.0, x, MASK).sum()  # noqa: E731
    assert not jax.grad(f)(X).any()
    np.testing.assert_array_equal(jax.grad(jaxconv.automatic(f))(X), np.where(MASK, 6 * X, 0))


# A linear map: a few elements, from where an integer says.


def _take(x: jax.Array, start: jax.Array, static: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, static)


def _put(g: jax.Array, start: jax.Array, static: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(6, g.dtype), g, start, 0)


PART = binding.linear_pair("part", _take, _put)
LINE, START = jnp.arange(6.0), jnp.int32(2)


@pytest.mark.parametrize("rules", [*ALL_RULES, MINE], ids=lambda r: r if isinstance(r, str) else "ConvRules")
def test_a_linear_map_and_its_transpose_are_each_others_gradient(rules: Any) -> None:
    def there(x: jax.Array) -> jax.Array:
        return binding.linear(rules, PART, 3, x, START)

    def back(g: jax.Array) -> jax.Array:
        return binding.linear(rules, PART.transposed, 3, g, START)

    np.testing.assert_array_equal(there(LINE), [2, 3, 4])
    np.testing.assert_array_equal(back(jnp.ones(3)), [0, 0, 1, 1, 1, 0])
    g, d = jnp.array([1.0, 2, 3]), jnp.arange(6.0) ** 2
    np.testing.assert_array_equal(jax.grad(lambda x: (g * there(x)).sum())(LINE), [0, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(jax.grad(lambda g: (d * back(g)).sum())(g), [4, 9, 16])
    batched = jax.vmap(jax.grad(lambda x: (g * there(x)).sum()))(jnp.stack([LINE, LINE]))
    np.testing.assert_array_equal(batched, [[0, 0, 1, 2, 3, 0]] * 2)


def test_the_transpose_that_was_written_is_what_runs() -> None:
    twice = binding.linear_pair("twice", _take, lambda g, start, static: 2 * _put(g, start, static))
    for rules, factor in (("fast", 2), ("rotated", 2), ("textbook", 2), ("autodiff", 1)):
        dx = jax.grad(lambda x, rules=rules: binding.linear(rules, twice, 3, x, START).sum())(LINE)
        np.testing.assert_array_equal(dx, factor * np.array([0, 0, 1, 1, 1, 0]))


def test_a_linear_map_has_every_mode_under_fast() -> None:
    f = lambda x, rules="fast": binding.linear(rules, PART, 3, x, START)  # noqa: E731
    np.testing.assert_array_equal(jax.jacfwd(f)(LINE), np.eye(6)[2:5])
    np.testing.assert_array_equal(jax.jacrev(f)(LINE), np.eye(6)[2:5])
    np.testing.assert_array_equal(jax.linear_transpose(f, LINE)(jnp.ones(3))[0], [0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(jax.hessian(lambda x: (f(x) ** 2).sum())(LINE), 2 * np.diag([0, 0, 1, 1, 1, 0]))
    assert "jaxconv_part_transpose" in str(jax.make_jaxpr(jax.grad(lambda x: f(x).sum()))(LINE))


# A bilinear map: one of the trio, on a geometry of one's own.

OPERANDS = {
    CONV: ((1, 5, 4), (2, 2, 6)),
    INPUT_GRAD: ((1, 2, 6), (2, 2, 6)),
    KERNEL_GRAD: ((1, 5, 4), (1, 2, 6)),
}
GEOMETRY = conv_geometry("test", *OPERANDS[CONV], stride=2, padding=((0, -1),), groups=2)


def operands(of: Map) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(OPERANDS[of])]


@pytest.mark.parametrize("of", TRIO, ids=lambda of: of.name)
@pytest.mark.parametrize("rules", [*ALL_RULES, MINE], ids=lambda r: r if isinstance(r, str) else "ConvRules")
def test_a_map_of_the_trio_and_its_derivatives_are_those_of_jax(rules: Any, of: Map) -> None:
    def f(a: jax.Array, b: jax.Array, rules: Any = rules) -> jax.Array:
        return binding.bilinear(rules, of, GEOMETRY, a, b)

    a, b = operands(of)
    assert f(a, b).shape == of.shape(GEOMETRY, a.shape, b.shape)
    for transform in (
        lambda f: f(a, b),
        lambda f: jax.grad(lambda a, b: (f(a, b) ** 3).sum(), (0, 1))(a, b),
        lambda f: jax.jvp(f, (a, b), (jnp.sin(a), jnp.cos(b))),
        lambda f: jax.jit(jax.vmap(f))(jnp.stack([a, 2 * a]), jnp.stack([b, 3 * b])),
    ):
        assert_close(transform(f), transform(lambda a, b: f(a, b, "autodiff")))


@pytest.mark.parametrize("rules", ["textbook", "rotated", "fast"])
@pytest.mark.parametrize("of", TRIO, ids=lambda of: of.name)
def test_the_maps_of_the_rule_set_run_and_no_others(of: Map, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is scaled, so that the result says whose it is."""
    factors = {CONV: 2.0, INPUT_GRAD: 3.0, KERNEL_GRAD: 5.0}

    def scaled(of: Map) -> Callable[..., jax.Array]:
        return lambda a, b, geometry: factors[of] * getattr(rotated, of.name)(a, b, geometry)

    monkeypatch.setitem(RULE_SETS, rules, jaxconv.ConvRules(*map(scaled, (INPUT_GRAD, KERNEL_GRAD, CONV))))
    a, b = operands(of)
    y, pullback = jax.vjp(lambda a, b: binding.bilinear(rules, of, GEOMETRY, a, b), a, b)
    right, right_pullback = jax.vjp(lambda a, b: binding.bilinear("autodiff", of, GEOMETRY, a, b), a, b)
    assert_close(y, factors[of] * right)
    for back, got, want in zip(of.transposes, pullback(y), right_pullback(y), strict=True):
        assert_close(got, factors[back] * want)


@pytest.mark.parametrize("rules", ALL_RULES)
def test_a_map_has_the_dtype_that_is_asked_for(rules: str) -> None:
    a, b = (a.astype(jnp.bfloat16) for a in operands(CONV))
    assert binding.bilinear(rules, CONV, GEOMETRY, a, b).dtype == jnp.bfloat16
    assert binding.bilinear(rules, CONV, GEOMETRY, a, b, dtype=jnp.float32).dtype == jnp.float32


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "binding.apply: rules must be one of textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad), "
    "but is 'quick'.": (lambda: binding.apply("quick", square(), 1.0, X, MASK), ValueError),
    "binding.linear: rules must be one of textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad), "
    "but is None.": (lambda: binding.linear(None, PART, 3, LINE, START), ValueError),
    "binding.bilinear: rules must be one of textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad), "
    "but is 'quick'.": (lambda: binding.bilinear("quick", CONV, GEOMETRY, *operands(CONV)), ValueError),
    "binding.bilinear: engine must be one of auto, xla, onednn, but is 'gpu'.": (
        lambda: binding.bilinear("fast", CONV, GEOMETRY, *operands(CONV), engine="gpu"),
        ValueError,
    ),
    "rules.conv must return an array of shape (1, 2, 6), but what it returned has shape (2, 1, 6).": (
        lambda: binding.bilinear(
            jaxconv.ConvRules(rotated.input_grad, rotated.kernel_grad, lambda *a: rotated.conv(*a).swapaxes(0, 1)),
            CONV, GEOMETRY, *operands(CONV),
        ),
        ValueError,
    ),
    "binding.apply: static must be hashable, but is [3]. Make it of tuples and numbers; an array is an operand.": (
        lambda: binding.apply("fast", square(), [3], X, MASK),
        TypeError,
    ),
    "binding.linear: static must be hashable, but is {}. Make it of tuples and numbers; an array is an operand.": (
        lambda: binding.linear("autodiff", PART, {}, LINE, START),
        TypeError,
    ),
    "binding.apply: derivative.cotangent must return a tuple of one entry per operand, but 1 entries != 2.": (
        lambda: jax.grad(
            lambda x: binding.apply("rotated", square(cotangents=lambda s, g: (g,)), 1.0, x, MASK).sum()
        )(X),
        ValueError,
    ),
    "binding.linear_pair: transpose must be a function, but is None.": (
        lambda: binding.linear_pair("part", _take, None),
        TypeError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message: str) -> None:
    call, error = MISTAKES[message]
    assert refusal(call, error).startswith(message)
