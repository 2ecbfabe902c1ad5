"""`compare` races gradients: who agrees, what each costs, and what the compiled program is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import pytest

import jaxconv
from jaxconv.comparison import OPERATIONS, Comparison
from jaxconv.comparison.race import race
from tests.support.judged import normal


def net(x: Any, w: Any) -> Any:
    return jaxconv.max_pool(jaxconv.conv(x, w, padding="VALID"), 2)


X, W = normal(2, 9, 9, 3), normal(2, 2, 3, 4, seed=1)


@pytest.fixture(scope="module")
def report() -> Comparison:
    return jaxconv.compare(net, X, W, seconds=0.05)


def test_a_function_races_its_automatic_gradient(report: Comparison) -> None:
    assert [c.name for c in report.contestants] == ["net", "automatic"]
    assert report.ok and report.arguments == ("x float32[2, 9, 9, 3]", "w float32[2, 2, 3, 4]")
    for c in report.contestants:
        assert 0 < c.quartiles[0] <= c.seconds <= c.quartiles[1] and c.compile_seconds > 0
        assert list(c.agreement) == ["x", "w"] and all(
            0 < a.bounds <= 1 and 0.1 < a.ulps < 100 for a in c.agreement.values()
        )
        assert c.agreement["w"].errors.shape == W.shape


def test_counts_are_those_of_the_programs(report: Comparison, tmp_path: Path) -> None:
    """Each of our gradients is a product; the pool's neither selects nor scatters, and keeps a byte."""
    (tmp_path / "net.py").write_text(
        "import jax, jaxconv\n"
        "def net(x, w): return jaxconv.max_pool(jaxconv.conv(x, w, padding='VALID', engine='xla'), 2)\n"
        "net_args = jax.numpy.ones((64, 9, 9, 3)), jax.numpy.ones((2, 2, 3, 32))\n"
    )
    command = [sys.executable, "-m", "jaxconv", "compare", "net.py:net", "--seconds", "0.05", "--json", "net.json"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "XLA_FLAGS": ""}, check=True, timeout=300)
    counts, automatic = (c["operations"] for c in json.loads((tmp_path / "net.json").read_text())["contestants"])
    assert tuple(counts) == OPERATIONS
    assert automatic["convolution"] == 3 and automatic["dot"] == 0
    assert 0 < counts["convolution"] < 3 and counts["dot"] == 2
    assert counts["scatter"] == counts["select-and-scatter"] == 0
    assert automatic["scatter"] + automatic["select-and-scatter"] == 1
    ours, theirs = report.contestants
    assert ours.flops > 0 and ours.bytes_accessed > 0 and ours.temporary_bytes > 0
    assert ours.residual_bytes == 4 * (X.size + W.size) + 2 * 4 * 4 * 4
    assert theirs.residual_bytes == 4 * (X.size + W.size + 2 * 8 * 8 * 4)


def test_several_functions_race_each_other() -> None:
    rules = {r: lambda x, w, r=r: jaxconv.conv(x, w, rules=r) for r in ("textbook", "rotated", "autodiff")}
    report = jaxconv.compare(rules, X, W, seconds=0.05)
    assert [c.name for c in report.contestants] == list(rules) and report.ok
    assert str(report).startswith("compare(textbook, rotated, autodiff): every gradient is right")
    assert report.function == "textbook, rotated, autodiff" and list(report["rotated"].agreement) == ["x", "w"]
    assert report["textbook"].operations["dot"] > 0 and report["rotated"].operations["dot"] == 0


def test_contestants_take_turns_in_changing_order() -> None:
    turns: list[str] = []
    times = race({name: lambda name=name: (turns.append(name), time.sleep(0.006)) for name in "ab"}, 0.05)
    assert len(times["a"]) == len(times["b"]) >= 3 and all(t > 0.005 for t in times["a"])
    assert "".join(turns).startswith("ab" + "ab" + "ba" + "ab"), "one call each to warm up, then the rounds"


def test_a_wrong_gradient_loses() -> None:
    def wrong(x: Any, g: Any, geometry: Any) -> Any:
        return 1.001 * jaxconv.rules.rotated.kernel_grad(x, g, geometry)

    rules = jaxconv.ConvRules(jaxconv.rules.rotated.input_grad, wrong)
    report = jaxconv.compare(lambda x, w: jaxconv.conv(x, w, rules=rules), X, W, seconds=0.05)
    ours, theirs = report.contestants
    assert not report.ok and ours.worst is ours.agreement["w"] and ours.worst.bounds > 10 > 1 > theirs.worst.bounds
    lines = str(report).splitlines()
    assert lines[0] == "compare(<lambda>): 1 of 2 gradients WRONG"
    of_w = [f"{c.agreement['w'].bounds:.2g}" for c in report.contestants]
    assert [line.split() for line in lines if "WRONG" in line][1:] == [
        ["gradient", "WRONG", "right"],
        ["w", "float32[2,", "2,", "3,", "4]", "WRONG", *of_w],
    ]


def test_a_kink_is_not_wrong() -> None:
    assert jaxconv.compare(jax.nn.relu, jnp.zeros(3), seconds=0.01).ok
    assert jaxconv.compare(jnp.sqrt, jnp.array([0.0, 1.0, 4.0]), seconds=0.01).ok


def test_a_rule_that_fails_gets_a_sentence() -> None:
    f = jax.custom_vjp(lambda x: x * x)
    f.defvjp(lambda x: (x * x, x), lambda x, g: (g[:1],))
    with pytest.raises(ValueError, match=r"<lambda>'s rule fails where automatic differentiation does not. ValueError"):
        jaxconv.compare(f, jnp.ones(3))


def test_table_json_and_picture(report: Comparison, tmp_path: Path) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "compare(net): every gradient is right" and f"jax {jax.__version__}" in lines[1]
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    assert ["net", "automatic"] in rows.values() and rows["gradient"] == ["right", "right"]
    assert {"run time", "compile time", "FLOPs", "residuals", "convolution"} <= set(rows)
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["ok"] is True and loaded["contestants"][1]["name"] == "automatic"
    assert set(loaded["contestants"][0]["agreement"]) == {"x", "w"}
    report.figure(tmp_path / "race.png")
    image = matplotlib.image.imread(tmp_path / "race.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    with pytest.raises(KeyError, match="no contestant is called 'flax'; there is net, automatic"):
        report["flax"]


def test_what_cannot_race_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"compare: net fails on these arguments\. TypeError: conv: x must be"):
        jaxconv.compare(net, "same", W)
    with pytest.raises(
        ValueError, match=r"compare: narrow must return what wide returns, but float32\[\] != float32\[2"
    ):
        jaxconv.compare({"wide": lambda x: x * x, "narrow": lambda x: (x * x).sum()}, X)
    with pytest.raises(ValueError, match=r"compare: tall fails on these arguments. ZeroDivisionError"):
        jaxconv.compare({"tall": lambda x: x / (1 // 0)}, X)
    with pytest.raises(ValueError, match="compare: f must name at least one function"):
        jaxconv.compare({}, X)
    with pytest.raises(ValueError, match="compare: seconds must be positive, but is 0"):
        jaxconv.compare(net, X, W, seconds=0)
    with pytest.raises(TypeError, match="compare: argmax returns int"):
        jaxconv.compare(jnp.argmax, X)
    loop = jax.custom_vjp(lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: 2 * c, x))
    loop.defvjp(lambda x: (loop(x), None), lambda _, g: (g,))
    with pytest.raises(TypeError, match="has no automatic gradient to race against"):
        jaxconv.compare(loop, jnp.ones(3))
