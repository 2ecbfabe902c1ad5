"""tune: every formulation of every convolution in a gradient is raced, and the winners are rules like any others."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv import tuning
from jaxconv.commands.loading import CONVENTION
from jaxconv.engines import machine
from jaxconv.engines.onednn import loading
from jaxconv.geometry import conv_geometry
from jaxconv.rules import RULE_SETS, fast, is_fast
from jaxconv.rules.fast import choice
from jaxconv.rules.fast.formulation import Call
from jaxconv.rules.fast.table import Entry, Table
from jaxconv.tuning import TunedRules, load_rules, tune

QUICK: dict[str, Any] = {"seconds": 0.002, "progress": False}


def arrays(*shapes: tuple[int, ...], dtype: Any = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def network(rules: Any = "fast") -> Callable[..., jax.Array]:
    """A loss with a convolution of every kind: grouped, strided, transposed, dense."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        y = jaxconv.conv(x, params["first"], stride=2, rules=rules)
        y = jaxconv.conv(jaxconv.relu(y, rules=rules), params["depthwise"], groups=4, rules=rules)
        y = jaxconv.conv_transpose(y, params["up"], stride=2, rules=rules)
        return jaxconv.dense(y.reshape(y.shape[0], -1), params["last"], rules=rules).sum()

    return loss


def parameters() -> tuple[dict[str, jax.Array], jax.Array]:
    shapes = {"first": (3, 3, 2, 4), "depthwise": (3, 3, 1, 4), "up": (2, 2, 3, 4), "last": (6 * 6 * 3, 5)}
    values = arrays(*shapes.values(), (3, 6, 6, 2))
    return dict(zip(shapes, values[:-1], strict=True)), values[-1]


@pytest.fixture(scope="module")
def rules() -> TunedRules:
    return tune(network(), *parameters(), **QUICK)


def forced(rules: TunedRules, label: Callable[[Entry], str]) -> TunedRules:
    """The same table with other winners."""
    table = rules.table
    entries = tuple(dataclasses.replace(entry, winner=label(entry)) for entry in table.entries)
    return TunedRules(dataclasses.replace(table, entries=entries))


# What is raced


def test_every_call_of_the_gradient_is_raced_and_no_other(rules: TunedRules) -> None:
    found = sorted((e.call.map, e.call.inputs, e.call.outputs, e.call.geometry.taps) for e in rules.table.entries)
    # conv_transpose is an input gradient, and its gradients are the other two; x is not differentiated
    assert found == sorted([
        ("conv", 2, 4, (3, 3)), ("kernel_grad", 2, 4, (3, 3)),
        ("conv", 4, 4, (3, 3)), ("kernel_grad", 4, 4, (3, 3)), ("input_grad", 4, 4, (3, 3)),
        ("input_grad", 3, 4, (2, 2)), ("conv", 3, 4, (2, 2)), ("kernel_grad", 3, 4, (2, 2)),
        ("conv", 108, 5, ()), ("kernel_grad", 108, 5, ()), ("input_grad", 108, 5, ()),
    ])  # fmt: skip


def test_argnums_says_what_is_differentiated() -> None:
    x, w = arrays((2, 5, 5, 2), (3, 3, 2, 3))
    for argnums, maps in (
        (0, {"conv", "input_grad"}),
        (1, {"conv", "kernel_grad"}),
        ((0, -1), {"conv", "input_grad", "kernel_grad"}),
    ):
        found = tune(lambda x, w: jaxconv.conv(x, w).sum(), x, w, argnums=argnums, **QUICK)
        assert {entry.call.map for entry in found.table.entries} == maps


def test_all_that_is_legal_is_raced(rules: TunedRules) -> None:
    for entry in rules.table.entries:
        legal = {c.label for c in choice.candidates(dataclasses.replace(entry.call, engine="auto"))}
        assert {entry.winner, entry.built_in, "lax"} <= set(dict(entry.seconds)) == legal
        assert all(seconds > 0 for _, seconds in entry.seconds)


def test_the_engine_can_be_left_out() -> None:
    x, w = arrays((2, 5, 5, 2), (3, 3, 2, 3))
    found = tune(lambda w: jaxconv.conv(x, w).sum(), w, engine="xla", **QUICK)
    assert not {"onednn", "depthwise"} & {label for entry in found.table.entries for label, _ in entry.seconds}


def test_a_batch_of_gradients_is_one_call() -> None:
    x, w = arrays((6, 5, 5, 2), (3, 3, 2, 3))

    def loss(w: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: jaxconv.conv(x[None], w).sum())(x).sum()

    found = tune(loss, w, **QUICK)
    assert {(e.call.map, e.call.batch) for e in found.table.entries} == {("conv", 6), ("kernel_grad", 6)}


def test_a_function_of_another_library_is_tuned_through_manual() -> None:
    x, w = arrays((2, 2, 5, 5), (3, 2, 3, 3))

    def loss(w: jax.Array) -> jax.Array:
        return jax.lax.conv(x, w, (1, 1), "SAME").sum()

    with pytest.raises(
        ValueError, match=r"^tune: there is no convolution of this library in f's gradient\. Of a .*manual"
    ):
        tune(loss, w, **QUICK)
    found = tune(jaxconv.manual(loss), w, **QUICK)
    assert {entry.call.map for entry in found.table.entries} == {"conv", "kernel_grad"}
    np.testing.assert_allclose(jax.grad(jaxconv.manual(loss, rules=found))(w), jax.grad(loss)(w), rtol=1e-5, atol=1e-5)


def test_the_winner_is_ahead_by_more_than_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = arrays((2, 3, 5, 5, 2), (2, 3, 3, 2, 3))

    def against(times: dict[str, list[float]]) -> set[tuple[str, str]]:
        def race(calls: dict[str, Any], seconds: float) -> dict[str, list[float]]:
            return {label: times.get(label, [9.0] * 4) for label in calls}

        monkeypatch.setattr(tuning, "race", race)
        monkeypatch.setattr(tuning, "_timed", lambda run: 1.0)
        found = tune(lambda w: jaxconv.conv(x, w).sum(), w, engine="xla", **QUICK)
        return {(entry.call.map, entry.winner) for entry in found.table.entries}

    # built in are lax and patches
    clear = {"lax": [4.0, 4.1, 4.2, 4.3], "patches": [2.0, 2.1, 2.2, 2.3]}
    assert against(clear) == {("conv", "lax"), ("kernel_grad", "patches")}
    assert against({"lax": [1.0, 1.1, 1.2, 1.3], "patches": [2.0, 2.1, 2.2, 2.3]}) >= {("kernel_grad", "lax")}
    assert against({"lax": [1.9, 2.0, 2.1, 9.0], "patches": [2.0, 2.1, 2.2, 2.3]}) >= {("kernel_grad", "patches")}


def test_a_formulation_that_is_wrong_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = arrays((2, 5, 6, 6, 3), (2, 3, 3, 3, 4))
    right = fast.maps.choice.patches.kernel_grad
    for broken in (lambda dw: 1.01 * dw, lambda dw: dw[::-1], lambda dw: dw.at[(0,) * 5].add(0.1)):
        monkeypatch.setattr(choice.patches, "kernel_grad", lambda *a, broken=broken: broken(right(*a)))
        found = tune(lambda w: jaxconv.conv(x, w, padding=0).sum(), w, engine="xla", **QUICK)
        (entry,) = (e for e in found.table.entries if e.call.map == "kernel_grad")
        assert "patches" not in dict(entry.seconds) and entry.winner != "patches"
        assert entry.built_in == "patches"


def test_a_memory_limit_leaves_out_what_holds_more() -> None:
    x, w = arrays((4, 12, 12, 3), (3, 3, 3, 4))

    def raced(memory: float) -> set[str]:
        found = tune(lambda w: jaxconv.conv(x, w).sum(), w, engine="xla", memory=memory, **QUICK)
        (entry,) = (e for e in found.table.entries if e.call.map == "conv")
        return set(dict(entry.seconds))

    assert raced(1) < raced(1e9)


def test_what_is_not_reached_is_left_to_the_built_in_choice() -> None:
    found = tune(network(), *parameters(), budget=1e-9, **QUICK)
    assert found.table.entries == ()
    params, x = parameters()
    np.testing.assert_array_equal(network(found)(params, x), network()(params, x))


def test_an_interruption_keeps_what_is_known(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    raced, calls = tuning._raced, []

    def interrupted(*args: Any) -> Entry:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(None)
        return raced(*args)

    monkeypatch.setattr(tuning, "_raced", interrupted)
    found = tune(network(), *parameters(), **QUICK)
    assert len(found.table.entries) == 2
    assert capsys.readouterr().err == "jaxconv.tune: 2 of 11 calls were measured\n"
    calls.extend([None] * 5)
    monkeypatch.setattr(tuning, "_raced", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tune(network(), *parameters(), **QUICK)


def test_progress_is_said_on_stderr(capsys: Any) -> None:
    x, w = arrays((2, 5, 2), (3, 2, 3))
    tune(lambda w: jaxconv.conv(x, w).sum(), w, seconds=0.002)
    said = capsys.readouterr()
    assert said.out == "" and "jaxconv.tune: 2 of 2: " in said.err


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tune: argnums must count the 2 arguments, but 7 is none of them\."):
        tune(network(), *parameters(), argnums=7)
    with pytest.raises(ValueError, match=r"^tune: engine must be .auto. or .xla., which leave a choice"):
        tune(network(), *parameters(), engine="onednn")


@pytest.mark.parametrize(("option", "value"), [("seconds", 0), ("budget", -1.0), ("memory", 0.0)])
def test_limits_are_positive(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^tune: {option} must be positive, but is {value}\."):
        tune(network(), *parameters(), **{option: value})


# What is made of it


def test_a_table_is_obeyed(rules: TunedRules) -> None:
    """Whatever a table says is computed that way, and is right."""
    params, x = parameters()
    want = jax.grad(network("autodiff"))(params, x)
    for number in range(0, max(len(entry.seconds) for entry in rules.table.entries), 2):
        mine = forced(rules, lambda entry, number=number: entry.seconds[number % len(entry.seconds)][0])
        got = jax.jit(jax.grad(network(mine)))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)
        for entry in mine.table.entries:
            taken = choice.chosen(dataclasses.replace(entry.call, engine="auto"), mine.table)
            assert (taken.label, taken.why) == (entry.winner, "measured to be the fastest here")


def test_plan_tells(rules: TunedRules) -> None:
    mine = forced(rules, lambda entry: "lax")
    options = {"stride": 2, "platform": "cpu"}
    plan = jaxconv.plan((3, 6, 6, 2), (3, 3, 2, 4), rules=mine, **options)
    assert (plan.conv.formulation, plan.conv.why) == ("lax", "measured to be the fastest here")
    assert plan.input_grad == jaxconv.plan((3, 6, 6, 2), (3, 3, 2, 4), **options).input_grad  # was not measured
    with pytest.raises(ValueError, match=r"^plan: rules must be .fast. or what tune returns, but is 'rotated'"):
        jaxconv.plan((3, 6, 6, 2), (3, 3, 2, 4), rules="rotated")


def test_rules_are_a_value(rules: TunedRules, tmp_path: Path) -> None:
    rules.save(tmp_path / "rules.json")
    again = load_rules(tmp_path / "rules.json")
    assert again == rules and hash(again) == hash(rules) and again is not rules
    assert forced(rules, lambda entry: "lax") != rules
    assert is_fast(rules) and rules != RULE_SETS["fast"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.conv = None  # type: ignore[misc]
    traced = []

    @jax.jit
    def f(w: jax.Array) -> jax.Array:
        traced.append(None)
        return w

    step = jax.jit(lambda params, x, rules: network(rules)(params, x), static_argnums=2)
    params, x = parameters()
    step(params, x, rules), step(params, x, again)
    assert step._cache_size() == 1


def test_a_table_has_a_line_for_every_call(rules: TunedRules) -> None:
    first, header, *lines = str(rules).splitlines()
    assert first == repr(rules) and header.split() == ["map", "layer", "winner", "ms", "lax", "built", "in"]
    assert len(lines) == len(rules.table.entries)
    assert any("3×6², 2→4, 3/2" in line for line in lines) and any("4 groups" in line for line in lines)


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a device that is no word": lambda given: given.update(device={}),
    "an entry that is no table": lambda given: given.update(entries=["a"]),
    "a winner that was not raced": lambda given: given["entries"][0].update(winner="another"),
    "a winner that is no word": lambda given: given["entries"][0].update(winner=["lax"]),
    "no time at all": lambda given: given["entries"][0]["seconds"].update(lax=0),
    "times that are no table": lambda given: given["entries"][0].update(seconds=[1.0]),
    "a geometry that is no table": lambda given: given["entries"][0].update(geometry=[]),
    "a batch that is no number": lambda given: given["entries"][0].update(batch="2"),
    "a map that there is not": lambda given: given["entries"][0].update(map="correlate"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_when_it_is_read(damage: str, rules: TunedRules, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    rules.save(path)
    given = json.loads(path.read_text())
    DAMAGE[damage](given)
    path.write_text(json.dumps(given))
    with pytest.raises(ValueError, match=r"^load_rules: .*rules\.json holds no rules"):
        load_rules(path)


def test_rules_travel_without_what_is_known_of_a_process(rules: TunedRules) -> None:
    """A hash of strings is another in every process, and whether this is the device is to be asked there."""
    hash(rules), rules.table.winner(rules.table.entries[0].call)
    assert {"_hash", "_is_of_here"} <= set(vars(rules.table))
    again = pickle.loads(pickle.dumps(rules))
    assert again == rules and not {"_hash", "_is_of_here", "_winners"} & set(vars(again.table))


def test_an_engine_that_is_named_computes(rules: TunedRules) -> None:
    mine = forced(rules, lambda entry: "lax")
    call = next(entry.call for entry in rules.table.entries if entry.call.map == "conv" and entry.call.geometry.rank)
    wanted = {"auto": "lax", "xla": "lax"} | ({"onednn": "onednn"} if loading.why_off() is None else {})
    for engine, label in wanted.items():
        assert choice.chosen(dataclasses.replace(call, engine=engine), mine.table).label == label


def test_written_rules_beside_a_tuned_one_are_written_rules(rules: TunedRules) -> None:
    mixed = jaxconv.ConvRules(RULE_SETS["textbook"].input_grad, RULE_SETS["textbook"].kernel_grad, rules.conv)
    assert not is_fast(mixed)
    params, x = parameters()
    got, want = (jax.grad(network(r))(params, x) for r in (mixed, "textbook"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_a_formulation_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*args: Any) -> jax.Array:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: more memory than there is\nand more words")

    x, w = arrays((4, 12, 12, 3), (3, 3, 3, 4))
    monkeypatch.setattr(choice.patches, "kernel_grad", full)
    found = tune(lambda w: jaxconv.conv(x, w).sum(), w, engine="xla", **QUICK)
    assert all("patches" not in dict(entry.seconds) for entry in found.table.entries)
    assert capsys.readouterr().err == "jaxconv.tune: patches fails: RESOURCE_EXHAUSTED: more memory than there is\n"


@pytest.mark.parametrize("content", ["", "{}", '{"format": "another"}', '{"format": "jaxconv rules", "entries": [1]}'])
def test_a_file_that_holds_no_rules(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^load_rules: .*rules\.json holds no rules that TunedRules\.save wrote"):
        load_rules(path)


def elsewhere(rules: TunedRules, **about: str) -> TunedRules:
    return TunedRules(dataclasses.replace(rules.table, **about))


def test_another_device_or_jaxlib_is_said_and_takes_the_built_in_choice(rules: TunedRules) -> None:
    params, x = parameters()
    slow = forced(rules, lambda entry: entry.seconds[-1][0])
    for about in ({"device": "another CPU"}, {"jaxlib": "0.0.1"}):
        other = elsewhere(slow, **about)
        with pytest.warns(UserWarning, match="rules: they were measured on .*: the built-in choices are taken") as said:
            got = jax.jit(network(other))(params, x)
        assert len(said) == 1
        np.testing.assert_array_equal(got, jax.jit(network())(params, x))


def test_rules_of_another_platform_are_for_that_platform(rules: TunedRules) -> None:
    params, x = parameters()
    other = elsewhere(forced(rules, lambda entry: "lax"), platform="tpu", device="a TPU")
    np.testing.assert_array_equal(jax.jit(network(other))(params, x), jax.jit(network())(params, x))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_table_of_an_accelerator_is_compiled_for_it(platform: str) -> None:
    """Depthwise by shifted copies, as a table says, where the built-in choice is lax's convolution."""
    x, w = arrays((2, 6, 6, 4), (3, 3, 1, 4))
    device = "gpu" if platform == "cuda" else "tpu"
    geometry = conv_geometry("conv", x.shape, w.shape, groups=4)
    call = Call("conv", device, x.dtype, geometry, 2, 4, 4, engine="auto")
    mine = TunedRules(
        Table((Entry(call, "shifts", "lax", ()),), device, "an accelerator", machine.jaxlib(), "2026-01-01")
    )

    def text(rules: Any) -> str:
        f = jax.jit(lambda x, w: jaxconv.conv(x, w, groups=4, rules=rules))
        return str(jax.export.export(f, platforms=[platform])(x, w).mlir_module())

    assert "stablehlo.convolution" in text("fast") and "stablehlo.convolution" not in text(mine)


def test_every_transformation_takes_them(rules: TunedRules) -> None:
    """Those of another geometry than the table's as well: they are the fast rules."""
    x, w = arrays((2, 5, 5, 4), (3, 3, 4, 4), dtype=jnp.float64)

    def f(rules: Any) -> Callable[..., jax.Array]:
        return lambda x, w: jnp.sin(jaxconv.conv(x, w, stride=2, rules=rules)).sum()

    for transform in (
        lambda f: jax.hessian(f, 1)(x[:1], w[..., :1]),
        lambda f: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], w),
        lambda f: jax.vmap(jax.grad(f, 1))(x[:, None], jnp.stack([w, 2 * w])),
        lambda f: jax.jvp(f, (x, w), (w[:2, :1, :1, :1] * x, w))[1],
        lambda f: jax.grad(jax.checkpoint(f))(x, w),
    ):
        np.testing.assert_allclose(transform(f(rules)), transform(f("autodiff")), rtol=1e-12, atol=1e-12)


def test_check_accepts_them(rules: TunedRules) -> None:
    params, x = parameters()
    assert jaxconv.check(lambda w, x: jnp.sin(jaxconv.conv(x, w, stride=2, rules=rules)), params["first"], x).ok


def test_layers_take_them(rules: TunedRules) -> None:
    from jaxconv.models import MODELS

    net = MODELS["cnn"]()
    params, state, _ = net.init(jax.random.key(0), (1, 8, 8, 1))
    x = jnp.ones((1, 8, 8, 1))
    got, want = (net.apply(params, state, x.astype(jnp.float32), train=False, rules=r)[0] for r in (rules, "fast"))
    np.testing.assert_array_equal(got, want)


def test_gradients_per_example_know_them(rules: TunedRules) -> None:
    x, w = arrays((3, 6, 6, 2), (3, 3, 2, 4))

    def norms(rules: Any) -> jax.Array:
        return jaxconv.per_example_grad_norms(lambda w, x: jaxconv.conv(x[None], w, rules=rules).sum(), w, x)

    np.testing.assert_allclose(norms(rules), norms("fast"), rtol=1e-6)


# The command


FILE = """
import jax, jax.numpy as jnp, jaxconv
def loss(w, x): return jaxconv.conv(x, w).sum()
def plain(w, x): return jax.lax.conv(x, w, (1, 1), "SAME").sum()
loss_args = jnp.ones((3, 3, 2, 3)), jnp.ones((2, 5, 5, 2))
plain_args = jnp.ones((3, 2, 3, 3)), jnp.ones((2, 2, 5, 5))
"""


def test_the_command_writes_what_load_rules_reads(tmp_path: Path, capsys: Any) -> None:
    from jaxconv.__main__ import main

    path, out = tmp_path / "my.py", tmp_path / "rules.json"
    path.write_text(FILE)
    assert main(["tune", f"{path}:loss", "--out", str(out), "--seconds", "0.002", "--engine", "xla"]) == 0
    rules = load_rules(out)
    assert capsys.readouterr().out == f"{rules}\n"
    assert {entry.call.map for entry in rules.table.entries} == {"conv", "kernel_grad"}
    assert main(["tune", f"{path}:plain", "--seconds", "0.002"]) == 2
    assert "manual" in capsys.readouterr().err
    assert main(["tune", f"{path}:plain", "--seconds", "0.002", "--manual"]) == 0
    assert main(["tune", f"{path}:loss", "--out", str(tmp_path / "no" / "rules.json")]) == 2
    assert "loss_args" in CONVENTION and json.loads(out.read_text())["device"] == machine.kind("cpu")
