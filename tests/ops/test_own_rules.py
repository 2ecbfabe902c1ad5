"""Rules of the caller's: a whole network takes them, and one that breaks its contract is named."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import Activation, BatchNorm, Conv, Dense, Flatten, Layer, MaxPool, residual, serial
from jaxconv.rules import RULE_SETS, ConvRules, rotated
from tests.ops.test_models import SMALL
from tests.support.cases_ops import OPS, Op, assert_close
from tests.support.refusal import refusal
from tests.support.rule_sets import ALL_RULES

MINE = ConvRules(rotated.input_grad, rotated.kernel_grad)


def thrice(rule: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *args, **options: 3 * rule(*args, **options)


# Whole networks

NET = serial(
    Conv(4, 3, stride=2), BatchNorm(), Activation(jaxconv.relu), MaxPool(2, stride=1),
    residual(Conv(4, 3, groups=2)), Flatten(), Dense(3),
)  # fmt: skip


def gradient(net: Layer, shape: tuple[int, ...], rules: Any) -> Any:
    params, state, out = net.init(jax.random.key(0), shape)
    params, state = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state))
    x, labels = jax.random.normal(jax.random.key(1), shape, jnp.float64), jnp.arange(shape[0]) % out[-1]

    def loss(params: Any) -> jax.Array:
        logits, _ = net.apply(params, state, x, train=True, key=jax.random.key(2), rules=rules)
        return jaxconv.softmax_cross_entropy(logits, labels, rules=rules).mean()

    return jax.grad(loss)(params)


def test_every_kernel_of_a_network_takes_the_callers_rule_and_nothing_else_does() -> None:
    mine = dataclasses.replace(MINE, kernel_grad=thrice(MINE.kernel_grad))
    ours, exact = jax.jit(lambda: [gradient(NET, (2, 6, 6, 2), rules) for rules in (mine, "autodiff")])()
    scaled = jax.tree.map_with_path(lambda path, a: 3 * a if path[-1].key == "w" else a, exact)
    size = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(exact))  # a bias before a batch norm has gradient 0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(scaled), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_takes_the_callers_rules(name: str) -> None:
    build, shape = SMALL[name]
    made = set()

    def seen(*args: Any, **options: Any) -> jax.Array:
        dw = rotated.kernel_grad(*args, **options)
        made.add(dw.shape)
        return dw

    net = build(3)
    params, *_ = jax.eval_shape(lambda key: net.init(key, shape)[:2], jax.random.key(0))
    jax.jit(lambda: gradient(net, shape, ConvRules(rotated.input_grad, seen))).lower()
    assert made == {a.shape for path, a in jax.tree.leaves_with_path(params) if path[-1].key == "w"}


@pytest.mark.parametrize("op", [op for op in OPS if op.name != "dense"], ids=str)
def test_an_op_without_a_kernel_is_fast_under_the_callers_rules(op: Op) -> None:
    args = [jnp.asarray(a) for a in op.arguments(2)]

    def program(rules: Any) -> str:
        return str(jax.make_jaxpr(functools.partial(op.call, rules=rules))(*args))

    said = {rules: re.sub(r"0x[0-9a-f]+", "", program(rules)) for rules in (*ALL_RULES, MINE)}
    assert said[MINE] == said["fast"] != said["rotated"]


# The contract

X, W = np.ones((1, 5, 4, 2), np.float32), np.ones((3, 2, 2, 6), np.float32)


def conv(rules: ConvRules, **options: Any) -> Any:
    return jax.grad(lambda x, w: jaxconv.conv(x, w, rules=rules, **options).sum(), (0, 1))(X, W)


def conv_transpose(rules: ConvRules, **options: Any) -> Any:
    x, w = X, W.swapaxes(2, 3)
    return jax.grad(lambda x, w: jaxconv.conv_transpose(x, w, rules=rules, **options).sum(), (0, 1))(x, w)


def dense(rules: ConvRules, **options: Any) -> Any:
    return jax.grad(lambda x, w: jaxconv.dense(x, w, rules=rules, **options).sum(), (0, 1))(X, W[0, 0])


def conv_input_grad(rules: ConvRules, **options: Any) -> Any:
    return jaxconv.conv_input_grad(np.ones((1, 5, 4, 6), np.float32), W, (5, 4), rules=rules, **options)


def conv_kernel_grad(rules: ConvRules, **options: Any) -> Any:
    return jaxconv.conv_kernel_grad(X, np.ones((1, 5, 4, 6), np.float32), (3, 2), rules=rules, **options)


def two(x: Any, g: Any) -> Any:
    return x


def strict(x: Any, g: Any, geometry: Any, factor: Any) -> Any:
    return x


def forgetful(x: Any, g: Any, geometry: Any) -> None:
    rotated.kernel_grad(x, g, geometry)


def both(g: Any, w: Any, geometry: Any) -> Any:
    return rotated.input_grad(g, w, geometry), w


def flat(x: Any, g: Any, geometry: Any) -> Any:
    return rotated.kernel_grad(x, g, geometry).sum()


def exchanged(x: Any, g: Any, geometry: Any) -> Any:
    return rotated.kernel_grad(x, g, geometry).swapaxes(-1, -2)


def one_example(g: Any, w: Any, geometry: Any) -> Any:
    return rotated.input_grad(g, w, geometry)[:, :1]


def counted(g: Any, w: Any, geometry: Any) -> Any:
    return rotated.input_grad(g, w, geometry).astype(int)


def halved(x: Any, g: Any, geometry: Any) -> Any:
    return rotated.kernel_grad(x, g, geometry).astype(jnp.bfloat16)


def turned(x: Any, w: Any, geometry: Any) -> Any:
    return rotated.conv(x, w, geometry).swapaxes(1, 2)


def dw(rule: Any) -> ConvRules:
    return ConvRules(rotated.input_grad, rule)


def dx(rule: Any) -> ConvRules:
    return ConvRules(rule, rotated.kernel_grad)


# (call, error, message)
BROKEN: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no function": (
        lambda: dw(None),
        TypeError,
        "ConvRules: kernel_grad must be a function, but is None.",
    ),
    "too few arguments": (
        lambda: jaxconv.conv(X, W, rules=dw(two)),
        TypeError,
        "conv: rules.kernel_grad must take (x, g, geometry), but `two` takes (x, g).",
    ),
    "too many arguments": (
        lambda: jaxconv.dense(X, W[0, 0], rules=dw(strict)),
        TypeError,
        "dense: rules.kernel_grad must take (x, g, geometry), but `strict` takes (x, g, geometry, factor).",
    ),
    "an option that it does not know": (
        lambda: conv(dw(exchanged), precision="highest"),
        TypeError,
        "conv: precision is passed on to rules.kernel_grad, but `exchanged` takes (x, g, geometry). "
        "Add *, precision=None to it, or do not ask for it.",
    ),
    "None": (
        lambda: conv(dw(forgetful)),
        TypeError,
        "conv: rules.kernel_grad must return dw, an array of shape (3, 2, 2, 6), but `forgetful` returned None. "
        "Is its `return` missing?",
    ),
    "two arrays": (
        lambda: dense(dx(both)),
        TypeError,
        "dense: rules.input_grad must return dx, an array of shape (20, 2), but `both` returned a tuple, not an array.",
    ),
    "a number": (
        lambda: conv_kernel_grad(dw(lambda x, g, z: 1.0)),
        TypeError,
        "conv_kernel_grad: rules.kernel_grad must return dw, an array of shape (3, 2, 2, 6), "
        "but `<lambda>` returned a float, not an array.",
    ),
    "a sum": (
        lambda: conv_transpose(dw(flat)),
        ValueError,
        "conv_transpose: rules.kernel_grad must return dw of shape (3, 2, 6, 2), but `flat` returned shape ().",
    ),
    "channels exchanged": (
        lambda: conv(dw(exchanged)),
        ValueError,
        "conv: rules.kernel_grad must return dw of shape (3, 2, 2, 6), but `exchanged` returned shape (3, 2, 6, 2). "
        "Are its axes in another order?",
    ),
    "one row of many": (
        lambda: conv_input_grad(dx(one_example)),
        ValueError,
        "conv_input_grad: rules.input_grad must return dx of shape (1, 5, 4, 2), "
        "but `one_example` returned shape (1, 1, 4, 2).",
    ),
    "the input gradient of a transposed convolution": (
        lambda: conv_transpose(ConvRules(rotated.input_grad, rotated.kernel_grad, turned)),
        ValueError,
        "conv_transpose: rules.conv must return y of shape (1, 5, 4, 2), but `turned` returned shape (1, 4, 5, 2). "
        "Are its axes in another order?",
    ),
    "integers": (
        lambda: conv(dx(counted)),
        TypeError,
        "conv: rules.input_grad must return dx in float32 or wider, but `counted` returned int64. "
        "Convert it: .astype(float32).",
    ),
    "fewer bits": (
        lambda: conv_transpose(dw(halved)),
        TypeError,
        "conv_transpose: rules.kernel_grad must return dw in float32 or wider, but `halved` returned bfloat16. "
        "Convert it: .astype(float32).",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_rule_that_breaks_its_contract_is_named(mistake: str) -> None:
    call, error, message = BROKEN[mistake]
    assert refusal(call, error).startswith(message)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_network_names_the_op_whose_rule_it_is(jit: bool) -> None:
    net = serial(Flatten(), Dense(3))
    run = functools.partial(gradient, net, (2, 2, 2, 1))
    with pytest.raises(ValueError, match=r"^dense: rules\.kernel_grad must return dw of shape \(4, 3\), but `flat`"):
        jax.jit(run, static_argnums=0)(dw(flat)) if jit else run(dw(flat))


def test_an_error_inside_a_rule_says_whose_it_was() -> None:
    with pytest.raises(IndexError) as info:
        dense(dw(lambda x, g, geometry: x[:, :, geometry.stride[1]]))
    assert info.value.__notes__[:1] == [
        "dense: raised in rules.kernel_grad = `<lambda>`, called with arrays of shape (20, 2) and (20, 6) and a "
        "geometry of 0 spatial axes."
    ]


def test_what_a_rule_returns_wider_is_rounded_once() -> None:
    def wide(x: jax.Array, g: jax.Array, geometry: Any) -> jax.Array:
        assert x.dtype == g.dtype == jnp.bfloat16
        return rotated.kernel_grad(x.astype(jnp.float32), g.astype(jnp.float32), geometry)

    x, w = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    got = jax.grad(lambda w: jaxconv.conv(x, w, rules=dw(wide)).sum())(w)
    want = jax.grad(lambda w: jaxconv.conv(X, w, rules="rotated").sum())(W).astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)


def test_a_rule_in_numpy_runs_where_values_are_known() -> None:
    def by_hand(x: Any, g: Any, geometry: Any) -> np.ndarray:
        return np.asarray(rotated.kernel_grad(np.asarray(x), np.asarray(g), geometry))

    _, pull = jax.vjp(lambda w: jaxconv.conv(X, w, rules=dw(by_hand)), W)
    (got,) = pull(np.ones((1, 5, 4, 6), np.float32))
    np.testing.assert_array_equal(got, conv_kernel_grad(MINE))


# Forward mode

FIRST = jnp.array([[[0, 0], [2, 2], [4, 4]]])  # the first tap of each window of two
KINDS: dict[str, Callable[..., jax.Array]] = {
    "conv": lambda x, rules: jaxconv.conv(x, jnp.ones((2, 2, 2)), rules=rules),
    "bias": lambda x, rules: jaxconv.conv(jnp.ones((1, 3, 2)), jnp.ones((2, 2, 2)), x[0, 0], rules=rules),
    "conv_transpose": lambda x, rules: jaxconv.conv_transpose(x, jnp.ones((2, 2, 2)), rules=rules),
    "dense": lambda x, rules: jaxconv.dense(x, jnp.ones((2, 2)), rules=rules),
    "relu": lambda x, rules: jaxconv.relu(x, rules=rules),
    "pad": lambda x, rules: jaxconv.pad(x, 1, rules=rules),
    "max_unpool": lambda x, rules: jaxconv.max_unpool(x, FIRST, 2, 6, rules=rules),
}
KERNELS = ("conv", "bias", "conv_transpose", "dense")
FORWARD: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jvp of jit": lambda f, x: jax.jvp(jax.jit(f), (x,), (x,)),
    "jit of jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "scan": lambda f, x: jax.jvp(lambda x: jax.lax.scan(lambda c, _: (c, f(c)), x, length=2), (x,), (x,)),
}
REFUSED = (
    'rules="%s" has reverse mode only: it is bound by jax.custom_vjp, which knows no jvp, jacfwd, hessian or '
    'linearize. rules="fast" has them all.'
)


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("name", [name for name in KINDS if name not in KERNELS])
def test_forward_mode_says_which_rules_have_it(name: str, mode: str) -> None:
    x = jnp.ones((1, 3, 2))
    for rules in ("textbook", "rotated"):
        f = functools.partial(KINDS[name], rules=rules)
        assert refusal(functools.partial(FORWARD[mode], f, x), TypeError).startswith(REFUSED % rules)
    for rules in ("fast", MINE):
        FORWARD[mode](functools.partial(KINDS[name], rules=rules), x)


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_forward_mode_under_all_rules(name: str, mode: str) -> None:
    """Their derivatives are the three maps again, whoever wrote them."""
    x = jnp.arange(6.0).reshape(1, 3, 2)
    exact = FORWARD[mode](functools.partial(KINDS[name], rules="autodiff"), x)
    for rules in ("textbook", "rotated", MINE):
        got = FORWARD[mode](functools.partial(KINDS[name], rules=rules), x)
        assert_close(got, exact)


def test_a_whole_network_has_forward_mode_under_the_callers_rules() -> None:
    params, state, _ = NET.init(jax.random.key(0), (2, 6, 6, 2))
    params, state = jax.tree.map(lambda a: a.astype(jnp.float64), (params, state))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 2), jnp.float64)

    def push(rules: Any) -> Any:
        return jax.jvp(lambda x: NET.apply(params, state, x, train=True, rules=rules)[0], (x,), (jnp.sin(x),))

    assert_close(*jax.jit(lambda: (push(MINE), push("autodiff")))(), rtol=1e-11)


@pytest.mark.parametrize("rules", ["textbook", "rotated"])
def test_forward_over_reverse_of_an_op_without_a_kernel_is_no_forward_mode_of_its_rule(rules: str) -> None:
    """A gradient is plain JAX, which can be pushed forward; only the rule itself cannot."""
    x = jnp.array([[-1.0, 2.0, 3.0]])

    def loss(x: jax.Array, rules: str) -> jax.Array:
        return (jaxconv.tanh(x, rules=rules) ** 2).sum()

    np.testing.assert_allclose(jax.hessian(loss)(x, rules), jax.hessian(loss)(x, "autodiff"), rtol=1e-12, atol=1e-15)


def test_the_mark_is_gone_where_nothing_is_left_of_the_rules() -> None:
    f = functools.partial(KINDS["relu"], rules="rotated")
    x = jnp.ones((1, 3, 2))
    assert "reverse_only" in str(jax.make_jaxpr(f)(x))
    assert "reverse_only" not in str(jax.make_jaxpr(jaxconv.automatic(f))(x))
    assert "reverse_only" not in jax.jit(jax.grad(lambda x: f(x).sum())).lower(x).as_text()
    assert set(RULE_SETS) == {"textbook", "rotated", "fast"}
