"""Every claim of the four articles' scripts holds, and fails when the script, the article or a rule is made wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxconv
from experiments import data
from experiments.articles import by_hand, claims, code, derivation, general
from experiments.articles.claims import Claims, Rules
from jaxconv.rules import rotated

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
MNIST = pytest.mark.skipif("JAXCONV_DATA" not in os.environ, reason="JAXCONV_DATA does not name a folder with MNIST")
Part = Callable[..., None]


def failures(part: Part, *args: Any) -> list[str]:
    claims = Claims()
    part(claims, *args)
    assert any(claim.holds is not None for claim in claims.made)
    return [claim.text for claim in claims.failed]


def failures_of(part: Part, rules: Rules = "rotated", seed: int = 1) -> list[str]:
    """Of a part that takes rules and a generator."""
    return failures(part, rules, np.random.default_rng(seed))


def smoke(name: str) -> Claims:
    dataset, claims = data.load(name, download=False), Claims()
    few = dataset._replace(test_images=dataset.test_images[:100], test_labels=dataset.test_labels[:100])
    by_hand.prove(claims, by_hand.Options(images=300), few)
    return claims


# They hold


# "rotated" has the fewest programs to compile, and the wrong rules below share them.
# The derivation: four parts of the article and ten questions of its readers.
@pytest.mark.parametrize(
    ("script", "sections", "claims"), [(derivation, 14, 54), (code, 3, 17), (general, 4, 21)],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_all_claims_hold(script: Any, sections: int, claims: int) -> None:
    made = Claims()
    script.prove(made, "rotated", np.random.default_rng(0))
    assert [claim.text for claim in made.failed] == []
    assert len({claim.section for claim in made.made}) == sections
    assert sum(claim.holds is not None for claim in made.made) == claims


@pytest.mark.parametrize("rules", ["fast", "textbook", "autodiff"])
def test_they_hold_of_every_rule_set(rules: str) -> None:
    parts = (code.equations, general.answer, general.exercise, derivation.why_rotate, derivation.picture)
    assert [failures_of(part, rules) for part in parts] == [[]] * len(parts)


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=MNIST)])
def test_a_network_by_hand(name: str) -> None:
    claims = smoke(name)
    assert claims.failed == [] and sum(claim.holds is not None for claim in claims.made) == 22


@MNIST
@pytest.mark.thorough
def test_an_epoch_by_hand_reaches_97_percent_on_mnist() -> None:
    claims = Claims()
    by_hand.prove(claims, by_hand.Options(), data.load("mnist", download=False))
    assert claims.failed == [] and claims.made[-1].text.startswith("the default run, by hand: at least 97 %")


def test_a_script_as_a_user_runs_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.articles.code", "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 of 17 claims hold" in done.stdout
    assert done.stderr.splitlines()[-1] == "What the printed code does when it runs"


def test_a_failing_claim_is_named_and_is_the_exit_status(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["code"])
    monkeypatch.setitem(code.KERNEL_GRADIENT, 12, [(12, 11), (13, 12), (22, 21), (32, 22)])  # 32 for 23
    assert claims.main(code.prove, code.__doc__) == 1
    assert "claim failed: The equations, 3×3 input and 2×2 kernel: ∂W: printed = loops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--images", "3"], "--images must be at least 200"), (["--data-dir", "nowhere"], "train-images-idx3-ubyte.gz")],
    ids=["few images", "no data"],
)
def test_mistakes_of_a_user(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise data.DataError("train-images-idx3-ubyte.gz is missing")

    monkeypatch.setattr(data, "load", absent)
    monkeypatch.setattr(sys, "argv", ["by_hand", *arguments])
    assert by_hand.main() == 2 and message in capsys.readouterr().out


# They fail: wrong rules


def wrong_input_grad(change: Callable[..., Any]) -> jaxconv.ConvRules:
    """`change` is applied to the kernel, over all tap axes."""
    return jaxconv.ConvRules(lambda g, w, z: rotated.input_grad(g, change(w, z.layout.w[2:]), z), rotated.kernel_grad)


def wrong_kernel_grad(change: Callable[..., Any]) -> jaxconv.ConvRules:
    return jaxconv.ConvRules(rotated.input_grad, lambda x, g, z: change(rotated.kernel_grad(x, g, z), z.layout.w[2:]))


CHANGES: dict[str, Callable[..., Any]] = {
    "rotated once too often": lambda w, taps: jnp.flip(w, taps),
    "one axis flipped": lambda w, taps: jnp.flip(w, taps[0]),
    "scaled by 1.001": lambda w, taps: 1.001 * w,
}


EVERYTHING = [case for case in general.CASES if case.name == "everything"]


def every_change(cheap: Part, *parts: Part) -> Any:
    """One part with every change, the others with the least one."""
    pairs = [(cheap, change) for change in CHANGES] + [(part, "scaled by 1.001") for part in parts]
    ids = [f"{part.__module__.split('.')[-1]}.{part.__name__}-{change}" for part, change in pairs]
    return pytest.mark.parametrize(("part", "change"), pairs, ids=ids)


@every_change(
    code.equations, general.answer, general.left_out,
    derivation.derivation, derivation.network, derivation.why_rotate, derivation.strides,
)  # fmt: skip
def test_a_wrong_input_gradient_fails(part: Part, change: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(general, "CASES", EVERYTHING)
    assert failures_of(part, wrong_input_grad(CHANGES[change]))


@every_change(
    code.equations, general.exercise, general.left_out, derivation.derivation, derivation.network, derivation.perceptron
)
def test_a_wrong_kernel_gradient_fails(part: Part, change: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(general, "CASES", EVERYTHING)
    assert failures_of(part, wrong_kernel_grad(CHANGES[change]))


def test_exchanged_axes_fail() -> None:
    exchanged = jaxconv.ConvRules(
        lambda g, w, z: rotated.input_grad(g, w, z).swapaxes(1, 2),
        lambda x, g, z: rotated.kernel_grad(x, g, z).swapaxes(0, 1),
    )
    failed = failures_of(code.equations, exchanged)
    assert "∂W: printed = jaxconv" in failed and "∂W: the index pairs of all four equations" in failed


# They fail: wrong steps of a derivation, wrong tables


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: 1.001 * function(*args)


@pytest.mark.parametrize(
    ("script", "name", "wrong", "part"),
    [
        (derivation, "rot180", lambda w: w, derivation.derivation),
        (derivation, "rot180", lambda w: w, derivation.why_rotate),
        (derivation, "rot180", lambda w: w, derivation.full_correlation),
        (derivation, "rot180", lambda w: w, derivation.picture),
        (derivation, "rot180", lambda w: np.flip(w, 0), derivation.strides),
        (derivation, "CONVOLUTION", derivation.CORRELATION, derivation.derivation),
        (derivation, "CORRELATION", derivation.CONVOLUTION, derivation.perceptron),
        (derivation, "CORRELATION", derivation.CONVOLUTION, derivation.does_it_matter),
        (derivation, "sigmoid", scaled(derivation.sigmoid), derivation.network),
        (derivation, "backpropagate", scaled(derivation.backpropagate), derivation.network),
        (derivation, "kernel_gradient", scaled(derivation.kernel_gradient), derivation.network),
        (code, "backward", lambda dh, cache: [1.001 * a for a in backward(dh, cache)], code.loops),
        (code, "OUTPUT", {**code.OUTPUT, 12: [(11, 12), (12, 13), (21, 22), (22, 32)]}, code.equations),
        (general, "equation_7", scaled(general.equation_7), general.answer),
        (general, "equation_8", lambda d, w, depth: general.equation_7(d, w.swapaxes(0, 1).swapaxes(2, 3)),
         general.answer),
        (general, "loops", lambda *args: [1.001 * a for a in loops(*args)], general.left_out),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_wrong_step_fails(script: Any, name: str, wrong: Any, part: Part, monkeypatch: Any) -> None:
    assert failures_of(part) == []
    monkeypatch.setattr(script, name, wrong)
    assert failures_of(part)


backward, loops = code.backward, general.loops


@pytest.mark.parametrize(
    ("table", "entry", "pairs"),
    [
        ("OUTPUT_AGAIN", 11, [(11, 11), (12, 12), (21, 21), (22, 22)]),
        ("INPUT_GRADIENT", 23, [(12, 22), (22, 12)]),
        ("INPUT_GRADIENT", 33, [(22, 22)]),
        ("INPUT_GRADIENT", 11, [(11, 11), (11, 11)]),
        ("KERNEL_GRADIENT", 22, [(22, 11), (23, 12), (32, 21)]),
    ],
)
def test_a_corrected_misprint_fails_and_so_does_a_new_one(
    table: str, entry: int, pairs: list[tuple[int, int]], monkeypatch: Any
) -> None:
    monkeypatch.setitem(getattr(by_hand, table), entry, pairs)
    (failed,) = failures_of(by_hand.printed_equations)
    assert "misprinted" in failed


@pytest.fixture(scope="module")
def digits() -> tuple[by_hand.Net, np.ndarray, np.ndarray, np.ndarray]:
    dataset = data.load("digits")
    pixels = dataset.train_images[:160, ..., 0]
    net = by_hand.initial(np.random.default_rng(0), 8)
    return net, pixels, pixels / dataset.scale, dataset.train_labels[:160]


filters_back = by_hand.conv_back_filters


def test_a_network_with_a_wrong_layer_leaves_jaxconvs(digits: Any, monkeypatch: Any) -> None:
    net, _, images, labels = digits
    monkeypatch.setattr(by_hand, "softmax", scaled(by_hand.softmax))
    assert len(failures(by_hand.beside_jaxconv, net, images, labels, 0.01, "fast")) == 3


def test_a_wrong_rule_leaves_the_network_by_hand(digits: Any) -> None:
    net, _, images, labels = digits
    wrong = wrong_kernel_grad(CHANGES["scaled by 1.001"])
    assert len(failures(by_hand.beside_jaxconv, net, images, labels, 0.01, wrong)) == 3


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pool_back", by_hand.pool_back_ties),
        ("pool_back_ties", by_hand.pool_back),
        ("conv_back_x", scaled(by_hand.conv_back_x)),
        ("conv_back_filters", scaled(filters_back)),
        ("conv_back_filters", lambda x, dz: filters_back(x, dz).swapaxes(0, 1)),
        ("conv", lambda x, filters: by_hand.conv_loops(x, filters[::-1])),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_layer_that_differs_from_its_loops_fails(name: str, wrong: Any, digits: Any, monkeypatch: Any) -> None:
    _, pixels, *_ = digits
    assert failures(by_hand.layers, np.random.default_rng(0), pixels[:1]) == []
    monkeypatch.setattr(by_hand, name, wrong)
    assert failures(by_hand.layers, np.random.default_rng(0), pixels[:1])


def test_a_bias_that_learns_is_not_the_articles(digits: Any, monkeypatch: Any) -> None:
    net, _, images, labels = digits
    monkeypatch.setattr(by_hand, "scalar_bias", lambda gradient: gradient._replace(biases=gradient.biases[0]))
    assert failures(by_hand.biases, net, images, labels) == ["which is 0: at most 10 eps for 160 images"]


# The collector itself


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("equal", ([1.0, 2.0], [1.0, 2.0 + 1e-15])),
        ("equal", (np.ones(1), np.ones((1, 1)))),
        ("equal", ([np.nan], [np.nan])),
        ("equal", (np.zeros(3), np.zeros(3))),
        ("equal", ([], [])),
        ("differ", ([1.0], [1.0])),
        ("differ", (np.ones(1), np.zeros((1, 1)))),
        ("differ", ([], [])),
        ("close", (np.array([1 + 1e-14]), [1.0], 10)),
        ("close", ([np.ones(1), np.array([np.nan])], [np.ones(1), np.ones(1)], 10)),
        ("holds", (False,)),
        ("holds", ([],)),
        ("raises", (ValueError, lambda: None)),
    ],
)
def test_what_does_not_hold_fails(kind: str, args: tuple[Any, ...]) -> None:
    claims = Claims()
    getattr(claims, kind)("it does", *args)
    assert [claim.text for claim in claims.failed] == ["it does"] and claims.report(QUIET) == 1


def test_no_claim_is_no_success() -> None:
    claims = Claims()
    claims.figure("seconds", "3")
    assert claims.report(QUIET) == 1


def test_only_the_expected_error_counts() -> None:
    with pytest.raises(ZeroDivisionError):
        Claims().raises("it is a mistake", ValueError, lambda: 1 // 0)
