"""`manual(f).report` and `python -m jaxconv manual`: what they say, and what is warned of and refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.__main__ import main
from jaxconv.engines.onednn import loading
from tests.support.replaced import NHWC, conv, max_pool, random, weighted

X, W = random(2, 6, 6, 3, dtype=np.float32), random(3, 3, 3, 16, dtype=np.float32, seed=1)
ASK = "Apply manual to the part of f that JAX can trace."
TAKEN = (
    "is replaced: its convolutions, pools or norms belong to a gradient that JAX has taken already. Take it of what "
    "manual returns: jax.grad(manual(loss)), not manual(jax.grad(loss))."
)


def net(x: Any, w: Any, d: Any) -> Any:
    def body(y: Any, _: Any) -> Any:
        depthwise = jnp.ones((3, 3, 1, 16), y.dtype) * w[0, 0, 0, 0]
        return lax.conv_general_dilated(
            y, depthwise, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=16
        ), None

    y, _ = lax.scan(body, jax.jit(conv)(x, w), None, length=2)
    y = max_pool(y) + lax.reduce_window(y, np.float32(0), lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    return own((y @ d).reshape(2, -1) @ d.reshape(1, -1).repeat(y.shape[1] * y.shape[2] * 4, 0), w)


@jax.custom_vjp
def own(y: Any, w: Any) -> Any:
    return y.sum() + conv(jnp.ones((1, 4, 4, 3), w.dtype) * w[0, 0, 0, 0], w).sum()


own.defvjp(lambda y, w: (own(y, w), (y, w)), lambda saved, g: (saved[0] * g, saved[1] * g))
D = random(16, 4, dtype=np.float32)


@pytest.fixture(scope="module")
def report() -> Any:
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return jaxconv.manual(net, engine="xla").report(X, W, D)


def test_a_report_says_what_is_replaced_by_what(report: Any) -> None:
    said = [(row.equation, row.op, row.count) for row in report.replaced]
    assert said == [
        ("conv_general_dilated", "conv_general_dilated", 1),
        ("conv_general_dilated", "conv_general_dilated", 1),
        ("reduce_window_max", "max_pool", 1),
        ("reduce_window_sum", "sum over windows", 1),
        ("dot_general", "dense", 1),
    ]
    first, depthwise, most, *_ = report.replaced
    assert first.operands == ("f32[2,6,6,3]", "f32[3,3,3,16]") and first.results == ("f32[2,6,6,16]",)
    assert "replaced.py:" in first.source and first.source.endswith("(conv)")
    assert "test_manual_report.py:" in depthwise.source and depthwise.source.endswith("body)")
    assert [name for name, _ in most.plan] == ["pool", "gradient"]


def test_a_report_has_the_choices_of_plan(report: Any) -> None:
    platform = jax.default_backend()
    plans = [
        jaxconv.plan(X.shape, W.shape, engine="xla", platform=platform),
        jaxconv.plan((2, 6, 6, 16), (3, 3, 1, 16), groups=16, engine="xla", platform=platform),
    ]
    assert [dict(row.plan) for row in report.replaced[:2]] == [plan._asdict() for plan in plans]


def test_a_report_says_what_is_left_and_why(report: Any) -> None:
    products = "it is a product of two matrices, and its gradient two such products"
    mine = "it has a derivative of its own, which stays"
    assert report.counts == {
        "replaced": {
            "conv_general_dilated": 2,
            "reduce_window_max": 1,
            "reduce_window_sum": 1,
            "dot_general": 1,
        },
        "left": {products: {"dot_general": 1}, mine: {"custom_vjp_call": 1}},
    }
    (kept,) = [row for row in report.left if row.why == mine]
    assert kept.inside == (("conv_general_dilated", 1),)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        later = jaxconv.manual(jax.grad(jax.jit(lambda w: jnp.sum(conv(X, w) ** 2)))).report(W)
        solve = jaxconv.manual(lambda w: lax.custom_linear_solve(lambda x: x + conv(x, w), X, lambda m, b: b)).report
        closed = solve(random(3, 3, 3, 3, dtype=np.float32))
    taken = "it belongs to a gradient that JAX has taken already"
    assert later.counts["left"] == {taken: {"conv_general_dilated": 1}}
    why = "manual does not read the programs that this equation holds"
    assert closed.counts["left"] == {why: {"custom_linear_solve": 1}}


def test_a_report_has_a_norm_as_one_row() -> None:
    def f(x: Any, scale: Any) -> Any:
        centred = x - x.mean((0, 1, 2), keepdims=True)
        return jax.nn.relu(centred * lax.rsqrt((centred * centred).mean((0, 1, 2)) + np.float32(1e-5)) * scale)

    x, scale = (jnp.asarray(random(*shape, dtype=np.float32)) for shape in ((2, 6, 6, 16), (1, 1, 1, 16)))
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        (row,) = jaxconv.manual(f).report(x, scale).replaced
        (plain,) = jaxconv.manual(f, rules="autodiff").report(x, scale).replaced
        (row64,) = jaxconv.manual(f).report(x[..., :3], scale[..., :3]).replaced
    assert (row.equation, row.op, row.count) == ("normalisation", "norm over axes 0, 1, 2", 1)
    assert row.operands[0] == "f32[2,6,6,16]" and row.operands[-1] == "f32[1,1,1,16]"
    assert row.results == ("f32[2,6,6,16]",) and "test_manual_report.py:" in row.source
    assert [name for name, _ in row.plan] == ["norm", "gradient"]
    natively = loading.why_off() is None and jax.default_backend() == "cpu"
    assert dict(row.plan)["gradient"].formulation == ("native" if natively else "XLA")
    assert dict(row64.plan)["gradient"].formulation == "XLA"
    assert {choice.formulation for _, choice in plain.plan} == {"lax"}


def test_a_report_says_where_a_layer_is_called() -> None:
    """And no line of the package that it is of."""
    from flax import linen

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        layer = linen.Conv(2, (3, 3))
        params = layer.init(jax.random.key(0), X)
        (row,) = jaxconv.manual(lambda x: layer.apply(params, x)).report(X).replaced
    assert "test_manual_report.py:" in row.source and "<lambda>" in row.source


def test_equal_rows_are_one_with_their_number() -> None:
    def f(x: Any) -> Any:
        for _ in range(3):
            x = conv(x, np.ones((3, 3, 3, 3), np.float32))
        return x

    with jax.enable_x64(False):
        (row,) = jaxconv.manual(f).report(X).replaced
    assert row.count == 3


def test_a_report_is_a_table_and_json(report: Any) -> None:
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("manual(net): equations replaced 5, left 2; rules fast, engine xla, on ")
    for line in (
        "  1 × conv_general_dilated  f32[2,6,6,3] f32[3,3,3,16] → f32[2,6,6,16]",
        "  1 × reduce_window_max  f32[2,6,6,16] → f32[2,3,3,16]",
        "left: it has a derivative of its own, which stays",
    ):
        assert line in lines
    assert "1 × conv_general_dilated in it" in str(report)
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["function"] == "net" and loaded["counts"] == report.counts
    assert loaded["replaced"][0]["plan"]["kernel_grad"].keys() == {"formulation", "why", "holds"}
    assert loaded["left"][1]["inside"] == {"conv_general_dilated": 1}


def test_a_long_report_is_cut_short_by_reason() -> None:
    def f(x: Any) -> Any:
        return [x[:n] @ x.T for n in range(1, 7)]

    with jax.enable_x64(False):
        text = str(jaxconv.manual(f).report(jnp.ones((8, 2), np.float32)))
    assert text.count("1 × dot_general") == 3 and text.endswith("3 × dot_general, elsewhere")


@pytest.mark.parametrize("rules", ["textbook", "rotated", "autodiff", "own"])
def test_a_report_of_other_rules_names_them(rules: str) -> None:
    rotated = jaxconv.rules.RULE_SETS["rotated"]
    own = jaxconv.ConvRules(rotated.input_grad, rotated.kernel_grad)
    with jax.enable_x64(False):
        report = jaxconv.manual(conv, rules=own if rules == "own" else rules).report(X, W)
    plan = dict(report.replaced[0].plan)
    expected = {"autodiff": "lax", "own": "own rules"}.get(rules, rules)
    assert (report.rules, plan["conv"].formulation) == (rules, "lax")
    assert plan["input_grad"].formulation == plan["kernel_grad"].formulation == expected


NOTHING = {
    "no convolution": (
        lambda: (lambda x: jnp.sum(x @ x.T), jnp.ones((2, 2))),
        "manual: nothing in f is replaced: it has no convolution, pool or norm that a rule of this library stands for.",
    ),
    "no array": (
        lambda: (lambda x: x + 1, 3),
        "manual: nothing in f is replaced: it has no convolution, pool or norm that a rule of this library stands for.",
    ),
    "ours": (
        lambda: (lambda x: jaxconv.conv(x, jnp.ones((2, 2, 3, 1))), random(1, 3, 3, 3)),
        "manual: nothing in f is replaced: its rules are this library's already.",
    ),
    "manual within": (
        lambda: (jax.jit(jaxconv.manual(lambda x: conv(x, random(3, 3, 3, 2)))), random(1, 3, 3, 3)),
        "manual: nothing in f is replaced: its rules are this library's already.",
    ),
    "integers": (
        lambda: (lambda x: conv(x, jnp.ones((2, 2, 3, 1), np.int32)), np.ones((1, 3, 3, 3), np.int32)),
        "manual: nothing in f is replaced: conv_general_dilated stays, since int32 has no gradient.",
    ),
    "after grad": (
        lambda: (jax.grad(lambda w: jnp.sum(conv(random(1, 4, 4, 2), w))), random(3, 3, 2, 2)),
        f"manual: of f only the forward pass {TAKEN}",
    ),
    "a transposed map": (
        lambda: (
            lambda g: jax.vjp(lambda x: max_pool(x), random(1, 4, 4, 2) + 0 * g.sum())[1](g)[0],
            random(1, 2, 2, 2),
        ),
        f"manual: of f only the forward pass {TAKEN}",
    ),
    "after grad of a square": (
        lambda: (jax.grad(lambda w: jnp.sum(conv(random(1, 4, 4, 2), w) ** 2)), random(3, 3, 2, 2)),
        f"manual: of f only the forward pass {TAKEN}",
    ),
    "after grad of a jit": (
        lambda: (jax.value_and_grad(jax.jit(lambda w: jnp.sum(conv(random(1, 4, 4, 2), w) ** 2))), random(3, 3, 2, 2)),
        f"manual: of f only the forward pass {TAKEN}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_is_replaced_there_is_a_warning(case: str) -> None:
    f, x = NOTHING[case][0]()
    g = jaxconv.manual(lambda x: f(x))
    g.__name__ = "f"
    with pytest.warns(UserWarning) as caught:
        got = g(x)
    assert [str(warning.message) for warning in caught] == [NOTHING[case][1]]
    assert caught[0].filename == __file__
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.allclose(a, b)), got, f(x)))


def test_a_gradient_inside_what_is_replaced_is_no_reason_to_warn() -> None:
    """A penalty on a gradient, or a directional derivative, beside a convolution that is replaced."""

    def penalty(w: Any) -> Any:
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, w))))(random(1, 4, 4, 2))
        return jnp.sum(conv(random(1, 4, 4, 2), w)) + jnp.sum(inner**2)

    def slope(w: Any) -> Any:
        x = random(1, 4, 4, 2)
        return jnp.sum(jax.jvp(lambda x: jnp.sin(conv(x, w)), (x,), (x,))[1])

    for f in (penalty, slope):
        got, want = (jax.jit(jax.grad(g))(random(3, 3, 2, 2, seed=2)) for g in (jaxconv.manual(f), f))
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_what_is_no_function_of_jax_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^manual: f must be a function, but is int\.$"):
        jaxconv.manual(3)
    with pytest.raises(ValueError, match=r"^manual: rules must be"):
        jaxconv.manual(conv, rules="quick")
    with pytest.raises(ValueError, match=r"^manual: engine must be"):
        jaxconv.manual(conv, engine="cuda")
    x = jnp.ones(3)
    for f in (lambda x: float(x[0]), lambda x: x if x.sum() > 0 else -x, lambda x: x[x > 0], np.asarray,
              lambda x: range(x.astype(int)[0])):  # fmt: skip
        with pytest.raises((TypeError, IndexError)) as caught:
            jaxconv.manual(f)(x)
        assert caught.value.__notes__[-1] == (
            "jaxconv.manual traces f, as jax.jit does, to read its equations: f must not ask for the values of arrays. "
            + ASK
        )


def test_manual_of_manual_is_itself() -> None:
    f = jaxconv.manual(conv)
    with pytest.warns(UserWarning) as caught:
        assert jaxconv.manual(f, rules="rotated") is f
    assert [str(warning.message) for warning in caught] == [
        "manual: f is manual already, and stays as it is. For other rules, give the function that it was made of: "
        "manual(f.__wrapped__, rules=…)."
    ]
    assert caught[0].filename == __file__


FILE = """
import jax, jax.numpy as jnp, numpy as np, jaxconv
from jax import lax

rng = np.random.default_rng(0)
example_args = rng.standard_normal((3, 3, 2, 8)).astype("f"), rng.standard_normal((2, 6, 6, 2)).astype("f")

def loss(w, x):
    y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jax.nn.silu(lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")))

@jaxconv.manual
def decorated(w, x): return loss(w, x)

def product(w, x): return w[0, 0] @ w[0, 0].T

def asks(w, x): return float(w.sum())
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield str(path)


def test_the_command_reports_and_races(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "found.json"
    words = ["--seconds", "0.05", "--json", str(written), "--rules", "rotated", "--engine", "xla", "--seed", "3"]
    assert main(["manual", f"{file}:loss", *words]) == 0
    out, found = capsys.readouterr().out, json.loads(written.read_text())
    assert out.startswith("manual(loss): equations replaced 2, left 0; rules rotated, engine xla, on ")
    assert "compare(before, after): every gradient is right" in out and max(map(len, out.splitlines())) <= 80
    assert found["report"]["rules"] == "rotated" and found["report"]["engine"] == "xla"
    assert [c["name"] for c in found["race"]["contestants"]] == ["before", "after"]


def test_the_command_takes_a_function_that_is_manual_already(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manual", f"{file}:decorated", "--seconds", "0.05"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("manual(decorated): equations replaced 2") and "after" in out


def test_the_command_says_wrong_and_unknown(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = jaxconv.rules.RULE_SETS["rotated"]
    wrong = jaxconv.ConvRules(right.input_grad, lambda x, g, geometry: 1.01 * right.kernel_grad(x, g, geometry))
    monkeypatch.setitem(jaxconv.rules.RULE_SETS, "rotated", wrong)
    assert main(["manual", f"{file}:loss", "--rules", "rotated", "--seconds", "0.05"]) == 1
    assert "1 of 2 gradients WRONG" in capsys.readouterr().out
    assert main(["manual", f"{file}:product", "--json", str(tmp_path / "found.json")]) == 0
    out, error = capsys.readouterr()
    assert "manual: nothing in product is replaced" in out and "there is no race" in error
    assert json.loads((tmp_path / "found.json").read_text())["race"] is None
    assert main(["manual", f"{file}:asks"]) == 2
    assert ASK in capsys.readouterr().err
    assert main(["manual", f"{file}:nothing"]) == 2
    assert main(["manual", f"{file}:loss", "--json", str(tmp_path)]) == 2


def test_check_accepts_what_manual_makes(as_a_user: None) -> None:
    """Of a net with everything that is replaced, wherever it may be."""

    def f(x: Any, w: Any, d: Any) -> Any:
        y = jax.jit(conv)(x, w)
        y, _ = lax.scan(lambda c, _: (jnp.tanh(conv(c, w)), None), y, None, length=2)
        y = lax.cond(y[0, 0, 0, 0] > 0, lambda y: conv(y, w), lambda y: conv(y, 2 * w), y)
        y = jax.checkpoint(lambda y: max_pool(y) + 0.1)(y)
        y = y + lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
        return jax.vmap(lambda y: conv(y[None], w)[0] @ d)(y)

    x, w, d = (
        random(2, 4, 4, 2, dtype="f"),
        0.5 * random(3, 3, 2, 2, dtype="f", seed=1),
        random(2, 3, dtype="f", seed=2),
    )
    report = jaxconv.check(jaxconv.manual(f), x, w, d, reference=f)
    assert report.verdict == "right", report


def test_check_finds_a_wrong_rule_in_what_manual_makes(as_a_user: None) -> None:
    right = jaxconv.rules.RULE_SETS["rotated"]
    rules = {
        "dx": jaxconv.ConvRules(lambda g, w, geometry: -right.input_grad(g, w, geometry), right.kernel_grad),
        "dw": jaxconv.ConvRules(right.input_grad, lambda x, g, geometry: right.kernel_grad(x, g, geometry)[::-1]),
    }
    x, w = random(1, 4, 3, 2, dtype="f"), random(2, 2, 2, 3, dtype="f", seed=1)
    skip = [kind for kind in jaxconv.gradcheck.KINDS if kind not in ("structure", "automatic")]
    loss = jax.jit(weighted(lambda x, w: jnp.sin(conv(x, w))))
    for rule in rules.values():
        report = jaxconv.check(jaxconv.manual(loss, rules=rule), x, w, reference=loss, skip=skip)
        assert report.verdict == "wrong"


def test_no_warning_where_something_is_replaced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxconv.manual(jax.jit(conv))(X, W)
