"""Modules and whatever else is no array: `check`, `compare`, `automatic` and the norms take it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxconv
from tests.support.judged import normal
from tests.support.sampling import chosen

FAST = ("vmap", "jit", "zeros", "linearity")


pytestmark = pytest.mark.usefixtures("as_a_user")


@jax.custom_vjp
def wrong_tanh(x: Any) -> Any:
    return jnp.tanh(x)


wrong_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (1.01 * g / jnp.cosh(x) ** 2,))

# Each library's network: (activation) -> (a model, loss of it and one example, the arguments that are differentiated)
Network = tuple[Any, Callable[[Any, Any], Any], list[str]]


def equinox(activation: Callable[[Any], Any]) -> Network:
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: Any
        pool: Any
        dropout: Any
        head: Any
        scale: float
        count: jax.Array
        name: str
        nothing: Any = None

        def __init__(self, key: Any) -> None:
            self.conv = eqx.nn.Conv2d(1, 2, 3, key=key)
            self.pool = eqx.nn.MaxPool2d(2, stride=2)  # whose −∞ is a leaf
            self.dropout = eqx.nn.Dropout(0.3, inference=True)
            self.head = eqx.nn.MLP(8, 3, 4, 1, activation, key=key)
            self.scale, self.count, self.name = 2.0, jnp.arange(3), "net"

        def __call__(self, x: Any) -> Any:
            y = self.pool(self.conv(x[..., 0][None])).ravel() * self.scale
            assert self.name == "net"
            return self.head(self.dropout(y)) + self.count

    paths = [".conv.weight", ".conv.bias"]
    paths += [f".head.layers[{i}].{name}" for i in (0, 1) for name in ("weight", "bias")]
    return Net(jax.random.key(0)), lambda model, x: (model(x) ** 2).sum(), paths


def flax_nnx(activation: Callable[[Any], Any]) -> Network:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(1, 2, (3, 3), padding="VALID", rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.head = nnx.Linear(32, 3, rngs=rngs)
            self.activation, self.name, self.nothing = activation, "net", None

        def __call__(self, x: Any) -> Any:
            y = self.norm(self.conv(x[None]))  # in training, so that it changes its state
            return self.head(self.activation(self.dropout(y)).ravel())

    stored = [f".{layer}.value" for layer in ("conv.bias", "conv.kernel", "head.bias", "head.kernel")]
    norm = [f".norm.{name}.value" for name in ("bias", "mean", "scale", "var")]
    return Net(nnx.Rngs(0)), lambda model, x: (model(x) ** 2).sum(), sorted([*stored, *norm])


class Linen(linen.Module):
    activation: Callable[[Any], Any] = jnp.tanh

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.BatchNorm(use_running_average=True)(linen.Conv(2, (3, 3), padding="VALID")(x[None]))
        return linen.Dense(3)(self.activation(y).ravel())


def flax_linen(activation: Callable[[Any], Any]) -> Network:
    module = Linen(activation)
    variables = module.init(jax.random.key(0), normal(6, 6, 1))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)]
    return variables, lambda model, x: (module.apply(model, x) ** 2).sum(), paths


def haiku(activation: Callable[[Any], Any]) -> Network:
    hk = pytest.importorskip("haiku")

    def net(x: Any) -> Any:
        y = activation(hk.Conv2D(2, 3, padding="VALID")(x[None]))
        return (hk.Linear(3)(y.ravel()) ** 2).sum()

    f = hk.without_apply_rng(hk.transform(net))
    params = f.init(jax.random.key(0), normal(6, 6, 1))
    return (
        params,
        lambda model, x: f.apply(model, x),
        [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)],
    )


LIBRARIES = {"equinox": equinox, "nnx": flax_nnx, "linen": flax_linen, "haiku": haiku}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_module_is_differentiated_in_its_floating_arrays(library: str) -> None:
    model, loss, paths = LIBRARIES[library](jnp.tanh)
    report = jaxconv.check(loss, model, normal(6, 6, 1), skip=FAST)
    report.raise_if_failed()
    assert [a.split(" ")[0] for a in report.arguments] == [*(f"model{path}" for path in paths), "x"]


@pytest.mark.parametrize("library", chosen(LIBRARIES, {"linen", "haiku", "equinox"}))
def test_a_wrong_rule_in_a_module_is_found_and_removed(library: str) -> None:
    (model, loss, _), (right, right_loss, _) = (LIBRARIES[library](f) for f in (wrong_tanh, jnp.tanh))
    x = normal(6, 6, 1)
    report = jaxconv.check(loss, model, x, skip=FAST)
    assert not report.ok and report["automatic"].verdict == "wrong"
    got = jax.jit(jax.grad(lambda x: jaxconv.automatic(loss)(model, x)))(x)
    want = jax.jit(jax.grad(lambda x: right_loss(jax.tree.map(lambda leaf: leaf, right), x)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", chosen(LIBRARIES, {"linen", "haiku", "nnx"}))
def test_a_modules_examples_have_norms(library: str) -> None:
    """As many as examples, of what the library itself differentiates."""
    model, loss, _ = LIBRARIES[library](jnp.tanh)
    batch = normal(2, 6, 6, 1)

    def gradient(x: Any) -> Any:
        if library == "nnx":
            return jax.tree.leaves(nnx.grad(loss)(nnx.clone(model), x))
        if library == "equinox":
            return jax.tree.leaves(pytest.importorskip("equinox").filter_grad(loss)(model, x))
        return jax.grad(loss)(model, x)

    want = [optax.tree.norm(gradient(x)) for x in batch]
    np.testing.assert_allclose(jaxconv.per_example_grad_norms(loss, model, batch), want, rtol=1e-5)


def test_what_an_nnx_module_shares_is_one_parameter_and_its_state_none() -> None:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.second = self.first
            self.mean = nnx.BatchStat(jnp.ones(3))

    def loss(model: Any, x: Any) -> Any:
        return (model.second(jnp.tanh(model.first(x))) ** 2 * model.mean[...]).sum()

    model, batch = Tied(nnx.Rngs(0)), normal(4, 3)
    want = [optax.tree.norm(jax.tree.leaves(nnx.grad(loss)(model, x))) for x in batch]
    np.testing.assert_allclose(jaxconv.per_example_grad_norms(loss, model, batch), want, rtol=1e-5)


def test_integer_leaves_and_settings_have_no_norms() -> None:
    params = {"w": normal(3, 3), "steps": jnp.int32(4), "n": 2, "mode": "mean", "f": jnp.tanh, "none": None}
    params |= {"key": jax.random.key(0), "mask": jnp.array([True, False, True])}

    def loss(params: Any, x: Any) -> Any:
        assert params["mode"] == "mean"
        noise = jax.random.normal(params["key"], x.shape)
        return (params["f"](jaxconv.dense(x, params["w"])) ** params["n"] * noise * params["steps"])[
            params["mask"]
        ].sum()

    def masked(params: Any, x: Any) -> Any:
        return loss(params | {"mask": np.array([True, False, True])}, x)

    batch = normal(2, 3)
    want = [optax.tree.norm(jax.grad(lambda w, x=x: masked(params | {"w": w}, x))(params["w"])) for x in batch]
    got = jaxconv.per_example_grad_norms(masked, params, batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_compare_takes_a_module() -> None:
    model, loss, _ = flax_nnx(jnp.tanh)
    report = jaxconv.compare(loss, model, normal(6, 6, 1), seconds=0.01)
    assert report.ok and "model.conv.kernel.value" in report["automatic"].agreement


# Leaves of every kind


class Setting:
    """An object that JAX knows nothing of."""

    def __init__(self, power: int) -> None:
        self.power = power


SETTINGS: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "a word": ("double", lambda x, mode: {"double": 2 * jnp.sin(x)}[mode]),
    "a flag": (True, lambda x, up: jnp.sin(x) if up else -x),
    "a number": (3, lambda x, n: jnp.sin(x).reshape(n, -1)),
    "a function": (jnp.sin, lambda x, f: f(x)),
    "an object": (Setting(2), lambda x, setting: jnp.sin(x) ** setting.power),
    "a dtype": (jnp.dtype("float32"), lambda x, dtype: jnp.sin(x).astype(dtype)),
    "words of NumPy": (np.array(["sin"]), lambda x, names: getattr(jnp, str(names[0]))(x)),
    "nothing": (None, lambda x, none: jnp.sin(x)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_handed_through(name: str) -> None:
    setting, f = SETTINGS[name]
    x = normal(6)
    report = jaxconv.check(f, x, setting, skip=FAST)
    assert report.ok and report.arguments == ("x float32[6]",)
    np.testing.assert_array_equal(jaxconv.automatic(f)(x, setting), f(x, setting))


def test_what_is_no_array_is_returned_too() -> None:
    x = normal(3)
    got = jaxconv.automatic(lambda x: {"y": jnp.sin(x), "f": jnp.sin, "name": "sin", "n": 2, "none": None})(x)
    assert got["f"] is jnp.sin and got["name"] == "sin" and got["n"] == 2 and got["none"] is None
    np.testing.assert_array_equal(got["y"], jnp.sin(x))
    assert jaxconv.check(lambda x: (jnp.sin(x), "aux"), x, skip=FAST).ok


def test_a_float_of_python_is_an_argument_but_a_modules_is_a_setting() -> None:
    assert jaxconv.check(lambda x, a: a["b"] * x, normal(3), {"b": 2.0}, skip=FAST).arguments[1].startswith("a['b'] ")


# What cannot be reached


class Hidden:
    def __init__(self) -> None:
        self.layers = [{"w": normal(3)}]

    def __call__(self, x: Any) -> Any:
        return self.layers[0]["w"] * x


class NoTree(nnx.Module, pytree=False):
    def __init__(self) -> None:
        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.linear(x)


UNREACHABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "an object": (
        Hidden,
        r"model is a Hidden, no pytree, .* arrays = \{'w': model\.w, \.\.\.\}.* f\(Hidden\(\*\*arrays\), \*args\)",
    ),
    "a method": (lambda: Hidden().__call__, r"model is a Hidden, no pytree"),
    "flax.nnx": (NoTree, r"model is a NoTree, .* nnx\.split\(model\).* f\(nnx\.merge\(graphdef, state\), \*args\)"),
    "flax.linen": (
        lambda: Linen().bind(Linen().init(jax.random.key(0), normal(6, 6, 1))),
        r"model is a Linen, .* module, variables = model\.unbind\(\).* f\(module\.bind\(variables\), \*args\)",
    ),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_arrays_that_jax_cannot_reach_are_refused_with_the_lines_that_reach_them(name: str) -> None:
    build, message = UNREACHABLE[name]
    calls: dict[str, Callable[..., Any]] = {
        "check": jaxconv.check,
        "compare": jaxconv.compare,
        "automatic": lambda f, *args: jaxconv.automatic(f)(*args),
        "per_example_grad_norms": lambda f, model, x: jaxconv.per_example_grad_norms(
            lambda m, x: f(m, x).sum(), model, x
        ),
    }
    for function, call in calls.items():
        with pytest.raises(
            TypeError,
            match=f"(?s)^{function}: {message.replace('model is', 'params is' if 'norms' in function else 'model is')}",
        ) as raised:
            call(lambda model, x: model(x), build(), normal(2, 3))
        assert f"jaxconv.{function}(g, " in str(raised.value) and "0x" not in str(raised.value)


def test_the_lines_work() -> None:
    f, model, x = lambda model, x: model(x), NoTree(), normal(2, 3)
    graphdef, state = nnx.split(model)

    def g(state: Any, *args: Any) -> Any:
        return f(nnx.merge(graphdef, state), *args)

    assert jaxconv.check(g, state, x, skip=FAST).ok
    bound = Linen().bind(Linen().init(jax.random.key(0), normal(6, 6, 1)))
    module, variables = bound.unbind()
    assert jaxconv.check(lambda v, *args: f(module.bind(v), *args), variables, normal(6, 6, 1), skip=FAST).ok


def test_a_compiled_function_of_what_is_no_array_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"check: f takes nothing but arrays, .* not mode \(str\)\. Give what it was made"
    ):
        jaxconv.check(jax.jit(lambda x, mode: x), normal(3), "same")


def test_a_module_that_changes_is_an_argument() -> None:
    model, loss, _ = flax_nnx(jnp.tanh)
    with pytest.raises(
        ValueError, match=r"Cannot mutate BatchStat .* Hand the module over: check\(f, model, \.\.\.\)\.$"
    ):
        jaxconv.check(lambda x: loss(model, x), normal(6, 6, 1))


def test_no_message_has_an_address() -> None:
    def fails(x: Any, setting: Any) -> Any:
        raise ValueError(f"cannot use {setting!r} and {fails!r}")

    with pytest.raises(ValueError, match=r"cannot use <.*Setting object> and <function .*fails>") as raised:
        jaxconv.check(fails, normal(3), Setting(1))
    assert "0x" not in str(raised.value)
    with pytest.raises(ValueError, match=r"batch\[1\] must be an array .* but is Setting\.") as raised:
        jaxconv.per_example_grad_norms(fails, normal(3), (normal(3), Setting(1)))
    assert "0x" not in str(raised.value)
    with pytest.raises(
        TypeError, match=r"has no floating argument to differentiate, but int32, args\[1\] \(Setting\)"
    ) as raised:
        jaxconv.check(lambda *args: args[0], jnp.arange(3), Setting(1))
