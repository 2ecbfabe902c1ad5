"""`manual(f)` is called as f is, and whatever f does beside convolutions is what it was."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import io_callback
from jax.extend.core import primitives as known

import jaxconv
from jaxconv.transforms.manual import _MADE
from tests.support.agreement import compilations
from tests.support.replaced import assert_close, conv, max_pool, primitives, program, random, weighted

X, W = random(2, 4, 4, 2), 0.3 * random(3, 3, 2, 2, seed=1)


class Settings:
    """No pytree."""

    mode = "same"


def test_arguments_and_results_are_those_of_f() -> None:
    seen: list[Any] = []

    def f(params: dict[str, Any], *xs: Any, mode: str, scale: float = 2.0, **more: Any) -> dict[str, Any]:
        seen.append((params, xs, mode, scale, more))
        y = conv(xs[0], params["w"]) * scale
        return {"y": (y, [None, "text"]), "n": 3, "what": mode, "f": params["act"], "array": np.arange(2), "more": more}

    params = {"w": jnp.asarray(W), "act": jnp.tanh, "none": None, "settings": Settings(), "flag": True}
    numbers, key, raw = np.float64(3.0), jax.random.key(0), jax.random.PRNGKey(1)
    got = jaxconv.manual(f)(params, X, numbers, mode="same", key=key, raw=raw, list=[1, 2.5, "b"])
    given, xs, mode, scale, more = seen[0]
    assert (mode, scale) == ("same", 2.0) and xs[0] is X and xs[1] is numbers and type(more["list"][1]) is float
    assert given["act"] is jnp.tanh and given["settings"] is params["settings"] and given["flag"] is True
    assert jnp.issubdtype(more["key"].dtype, jax.dtypes.prng_key) and more["raw"].dtype == np.uint32
    want = f(params, X, numbers, mode="same", key=key, raw=raw, list=[1, 2.5, "b"])
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert {**got, "y": 0, "array": 0, "more": 0} == {**want, "y": 0, "array": 0, "more": 0}
    assert type(got["array"]) is np.ndarray and got["y"][1] == [None, "text"]
    assert_close(got["y"][0], want["y"][0])
    assert got["more"]["key"] == key and (got["more"]["raw"] == raw).all() and got["more"]["list"] == [1, 2.5, "b"]


def test_random_numbers_are_the_same_for_keys_of_both_kinds() -> None:
    def f(x: Any, key: Any) -> Any:
        noise, key = jax.random.normal(key, x.shape), jax.random.split(key)[0]
        return conv(x + noise, W), key

    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        (y, new), (want, wanted) = jaxconv.manual(f)(X, key), f(X, key)
        assert new.dtype == wanted.dtype and bool((new == wanted).all())
        assert_close(y, want)


def test_dtypes_and_weak_types_of_results() -> None:
    def f(x: Any, number: Any) -> Any:
        y = conv(x, W.astype(np.float32))
        return y, 2.0 * number, jax.jit(lambda n: n + 1)(number), y.sum() * number, number

    weak, x = jnp.asarray(1.5), X.astype(np.float32)
    for number in (jax.jit(lambda: 2.0)(), jnp.float32(2), weak, 2.0):
        got, want = jaxconv.manual(f)(x, number), f(x, number)
        assert [jax.typeof(y) for y in got] == [jax.typeof(y) for y in want]
        assert [type(y) for y in got] == [type(y) for y in want]


def test_static_arguments_of_a_jit() -> None:
    @functools.partial(jax.jit, static_argnums=2, static_argnames="mode")
    def f(x: Any, w: Any, times: int, *, mode: str) -> Any:
        for _ in range(times):
            x = conv(x, w) if mode == "conv" else x
        return x

    assert_close(jaxconv.manual(f)(X, W, 2, mode="conv"), f(X, W, 2, mode="conv"))
    around = jax.jit(jaxconv.manual(lambda x, n: f(x, W, n, mode="conv")), static_argnums=1)
    assert_close(around(X, 2), f(X, W, 2, mode="conv"))


def test_functions_methods_and_their_names() -> None:
    class Model:
        def __init__(self, w: Any) -> None:
            self.w = w

        @jaxconv.manual
        def loss(self, x: Any) -> Any:
            """What a net is trained on."""
            return jnp.sum(conv(x, self.w) ** 2)

        @functools.partial(jaxconv.manual, rules="rotated", engine="xla")
        def other(self, x: Any) -> Any:
            return jnp.sum(conv(x, self.w) ** 2)

    model = Model(jnp.asarray(W))
    assert (Model.loss.__name__, Model.loss.__doc__) == ("loss", "What a net is trained on.")
    assert primitives(model.loss, X)["jaxconv_conv"] == primitives(model.other, X)["jaxconv_conv"] == 1
    want = jax.grad(lambda x: jnp.sum(conv(x, W) ** 2))(X)
    assert_close(jax.grad(model.loss)(X), want)
    assert_close(jax.grad(functools.partial(Model.loss, model))(X), want)
    assert repr(Model.other).endswith("rules='rotated', engine='xla')")
    assert Model.loss.report(model, X).function == "loss"


def test_what_is_printed_and_called_back_happens_once_and_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def note(text: str) -> Callable[..., Any]:
        return lambda x: calls.append(f"{text} {float(x):.0f}") or np.zeros(())

    def f(x: Any) -> Any:
        def body(c: Any, i: Any) -> Any:
            jax.debug.print("step {}", i, ordered=True)
            io_callback(note("body"), jax.ShapeDtypeStruct((), np.float64), i, ordered=True)
            return conv(c, W), None

        jax.debug.print("before", ordered=True)
        y, _ = lax.scan(body, x, jnp.arange(3.0))
        io_callback(note("after"), jax.ShapeDtypeStruct((), np.float64), 7.0, ordered=True)
        jax.debug.print("after", ordered=True)
        return y

    said = ["before", "step 0.0", "step 1.0", "step 2.0", "after"]
    for call in (jaxconv.manual(f), jax.jit(jaxconv.manual(f)), jaxconv.manual(jax.jit(f))):
        calls.clear()
        call(X)
        jax.effects_barrier()
        assert capfd.readouterr().out.splitlines() == said
        assert calls == ["body 0", "body 1", "body 2", "after 7"]


def test_names_and_lines_are_kept() -> None:
    def f(x: Any) -> Any:
        with jax.named_scope("block"):
            y = jax.jit(lambda x: jnp.sin(conv(x, W)))(jnp.cos(x))
            for name in ("transpose", "transpose(jvp(x))"):  # a user's names, not JAX's
                with jax.named_scope(name):
                    y = jnp.exp(conv(y, W))
            return y

    def named(f: Callable[..., Any]) -> list[tuple[str, str]]:
        found = [(eqn.primitive.name.removeprefix("jaxconv_"), eqn.source_info) for eqn in program(f, X)]
        kept = {"conv": "conv_general_dilated"}
        return [(kept.get(name, name), str(info.name_stack)) for name, info in found]

    assert named(jaxconv.manual(f)) == named(f)
    assert named(jax.named_scope("around")(jaxconv.manual(f))) == named(jax.named_scope("around")(f))
    assert primitives(jaxconv.manual(f), X)["conv_general_dilated"] == 0
    (ours, *_) = (eqn for eqn in program(jaxconv.manual(f), X) if eqn.primitive.name == "jaxconv_conv")
    (lax_, *_) = (eqn for eqn in program(f, X) if eqn.primitive == known.conv_general_dilated_p)
    frames = [next(iter(eqn.source_info.traceback.frames)).file_name for eqn in (ours, lax_)]
    assert frames[0] == frames[1]


def test_a_jit_keeps_its_parameters_and_compiles_once() -> None:
    """A training loop that runs eagerly around a compiled step which gives its parameters away."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(w: Any, x: Any) -> Any:
        return w - 0.1 * jnp.sum(conv(x, w) ** 2) * w

    (eqn,) = [e for e in program(jaxconv.manual(step), jnp.asarray(W), X) if e.params.get("name") == "step"]
    (own,) = [e for e in program(step, jnp.asarray(W), X) if e.params.get("name") == "step"]
    for name in eqn.params.keys() - {"jaxpr"}:
        assert eqn.params[name] == own.params[name]
    assert eqn.params["donated_invars"] == (True, False)
    trained, want, x = jaxconv.manual(step), step, jnp.asarray(X)
    w = first = jnp.array(W)
    w = trained(w, x)
    assert first.is_deleted()
    with compilations() as compiled:
        for _ in range(3):
            w = trained(w, x)
    assert compiled == []
    v = jnp.array(W)
    for _ in range(4):
        v = want(v, x)
    assert_close(w, v)


def test_programs_that_are_gone_are_forgotten() -> None:
    before = len(_MADE)
    f = jax.jit(lambda x: conv(x, W))
    jaxconv.manual(f)(X)
    assert len(_MADE) == before + 1
    del f
    jax.clear_caches()
    gc.collect()
    assert len(_MADE) == before


def asks_about_convolutions(primitive: Any, *avals: Any, **params: Any) -> bool:
    return primitive is known.conv_general_dilated_p and params["feature_group_count"] == 1


POLICIES: dict[str, Any] = {
    "everything is computed again": None,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "by name": jax.checkpoint_policies.save_only_these_names("kept"),
    "all but a name": jax.checkpoint_policies.save_anything_except_these_names("kept", "other"),
    "convolutions": asks_about_convolutions,
    "convolutions or names": jax.checkpoint_policies.save_from_both_policies(
        asks_about_convolutions, jax.checkpoint_policies.save_only_these_names("kept")
    ),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_saves_what_it_saved(policy: str) -> None:
    """By the number of elements, which are all different: a dense layer's result is saved as a matrix."""

    @functools.partial(jax.checkpoint, policy=POLICIES[policy])
    def f(x: Any, w: Any, d: Any) -> Any:
        y = checkpoint_name(jnp.sin(conv(jnp.sin(x), w))[:, :3], "kept")
        z = checkpoint_name(jnp.cos(lax.conv_general_dilated(y, w, (2, 1), "SAME", dimension_numbers=NHWC)), "other")
        return jnp.exp(jnp.exp(z[:, :, :3] @ d)[:, :1] @ d.T)

    d = 0.1 * random(2, 5)

    def residuals(f: Callable[..., Any]) -> set[int]:
        saved = jax.eval_shape(lambda *xs: jax.vjp(f, *xs)[1], jnp.asarray(X), jnp.asarray(W), jnp.asarray(d))
        return {a.size for a in jax.tree.leaves(saved)}

    assert residuals(jaxconv.manual(f)) == residuals(f)
    got, want = (jax.jit(jax.grad(weighted(g), (0, 1, 2)))(X, W, d) for g in (jaxconv.manual(f), f))
    assert_close(got, want)


NHWC = ("NHWC", "HWIO", "NHWC")


def test_a_policy_is_told_of_what_it_knows() -> None:
    """A policy of the user's never meets a primitive of this library where JAX has an equation of its own."""

    def met(f: Callable[..., Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        def policy(primitive: Any, *_: Any, **params: Any) -> bool:
            found.setdefault(primitive.name, params)
            return False

        jax.make_jaxpr(jax.grad(weighted(f(jax.checkpoint(net, policy=policy)))))(X)
        return found

    def net(x: Any) -> Any:
        y = lax.conv_general_dilated(jnp.sin(x), W, (2, 1), ((1, 2), (0, 1)), dimension_numbers=NHWC)
        z = lax.reduce_window(y @ W[0, 0], 0.0, lax.add, (1, 2, 2, 1), (1, 1, 2, 1), "SAME")
        return jnp.sin(max_pool(z, padding="SAME"))

    ours, own = met(jaxconv.manual), met(lambda f: f)
    known_to_lax = {name.removeprefix("jaxconv_") for name in ours if name.startswith("jaxconv_")}
    assert not known_to_lax & {"conv", "window_sum", "max_pool", "remember_winner"}
    for name in ("conv_general_dilated", "dot_general", "reduce_window_sum", "reduce_window_max"):
        assert name in ours and own[name].keys() - {"out_sharding"} <= ours[name].keys()
    for name in ("window_strides", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count"):
        assert ours["conv_general_dilated"][name] == own["conv_general_dilated"][name]
    for name in ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"):
        assert ours["reduce_window_sum"][name] == own["reduce_window_sum"][name]


def test_exported_with_sizes_that_are_not_known() -> None:
    """A convolution of an unknown batch stays; the program beside it does not change."""
    shape = jax.export.symbolic_shape("b, 4, 4, 2")
    x = jax.ShapeDtypeStruct(shape, np.float64)

    def f(x: Any) -> Any:
        return max_pool(jnp.tanh(conv(x, W)))

    with pytest.warns(
        UserWarning, match="nothing in f is replaced: conv_general_dilated stays, since a size is symbol"
    ):
        exported = jax.export.export(jax.jit(jaxconv.manual(f)), platforms=["cpu"])(x)
    assert_close(exported.call(X), jax.jit(f)(X))
    known_size = jax.export.export(jax.jit(jaxconv.manual(f)), platforms=["cpu"])(X)
    assert_close(known_size.call(X), jax.jit(f)(X))


def test_another_context_is_another_program() -> None:
    """What was made of a program of float64 is not taken where there is none."""
    f = jax.jit(lambda x: max_pool(conv(x, jnp.asarray(W, x.dtype))))
    g = jaxconv.manual(f)
    for x64 in (True, False, True):
        with jax.enable_x64(x64):
            x = jnp.asarray(X, np.float32)
            assert_close(g(x), f(x), 1e-6)
            assert_close(jax.grad(weighted(g))(x), jax.grad(weighted(f))(x), 1e-6)
