"""The classic mistakes, in any number of axes, layout, dilation and groups: `check` names each, and where it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.geometry import Geometry
from jaxconv.gradcheck import KINDS, Report
from jaxconv.gradcheck.where import where
from jaxconv.rules import ConvRules, rotated
from tests.support.judged import normal

ALONE = tuple(kind for kind in KINDS if kind != "automatic")
SLOW = ("adjoint", "zeros", "linearity", "vmap", "jit", "determinism")
Rule = Callable[[Any, Any, Geometry], Any]


pytestmark = pytest.mark.usefixtures("as_a_user")


def hint(report: Report, path: str) -> str:
    (found,) = [f.hint for f in report["automatic"].findings if f.argument == path]
    return found


# Convolutions: (shape of x, shape of w, options), in 1 to 3 dimensions.
SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 9, 2), (3, 2, 3), {}),
    "2-D dilated, grouped": ((2, 8, 7, 4), (3, 2, 2, 6), {"dilation": 2, "groups": 2}),
    "2-D strided, NCHW": ((2, 3, 7, 8), (4, 3, 3, 3), {"stride": 2, "layout": "NCHW", "padding": 1}),
    "2-D upsampled": ((2, 4, 5, 2), (3, 3, 2, 2), {"input_dilation": 2, "padding": 1}),
    "3-D, NCHW": ((1, 2, 5, 4, 5), (2, 2, 3, 2, 3), {"layout": "NCHW"}),
}
EVEN: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 9, 2), (4, 2, 3), {}),
    "2-D": ((2, 6, 7, 2), (2, 2, 2, 3), {}),
    "2-D, one axis even, NCHW": ((2, 2, 6, 7), (3, 2, 3, 4), {"layout": "NCHW"}),
    "2-D upsampled, lopsided": ((2, 4, 5, 2), (2, 2, 2, 2), {"input_dilation": 2, "padding": ((0, 1), (0, 1))}),
    "2-D dilated by 3, grouped": ((2, 8, 9, 4), (2, 2, 2, 4), {"dilation": 3, "groups": 2}),
}


def judged(setting: Any, dx: Rule = rotated.input_grad, dw: Rule = rotated.kernel_grad) -> Report:
    x, w, options = setting
    f = partial(jaxconv.conv, rules=ConvRules(dx, dw), **options)
    report = jaxconv.check(lambda x, w: f(x, w), normal(*x), normal(*w, seed=1), skip=ALONE)
    assert not report.ok
    return report


def off(z: Geometry, by: int = 0, exchanged: bool = False) -> Geometry:
    """The padding moved by as many taps along each axis, with alternating signs, or its ends exchanged."""
    moves = [d * by * (-1) ** axis for axis, d in enumerate(z.dilation)]
    pads = [(hi, lo) if exchanged else (lo + m, hi - m) for (lo, hi), m in zip(z.padding, moves, strict=True)]
    return replace(z, padding=tuple(pads))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_missing_rotation_of_the_kernel(name: str) -> None:
    report = judged(SETTINGS[name], lambda g, w, z: rotated.input_grad(g, jnp.flip(w, z.layout.w[2:]), z))
    rank = len(SETTINGS[name][0])
    axes = range(2, rank) if "NCHW" in name else range(rank - 2)
    *most, last = map(str, axes)
    along = f"axes {', '.join(most)} and {last}" if most else f"axis {last}"
    assert hint(report, "x") == (
        f"It is what w flipped along {along} would give: the kernel is not rotated on the way back, or once too often."
    )
    assert report.by_argument["w"].verdict == "ok"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_kernel_gradient_shifted_along_all_axes(name: str) -> None:
    report = judged(SETTINGS[name], dw=lambda x, g, z: rotated.kernel_grad(x, g, off(z, 1)))
    several = "The kernel's gradient is shifted by +1 tap along spatial axis 0 and -1 tap along spatial"
    assert hint(report, "w").startswith("It is off by one along axis 0." if "1-D" in name else several)


@pytest.mark.parametrize("name", ["2-D dilated, grouped", "2-D strided, NCHW"])
def test_an_input_gradient_shifted_along_two_axes(name: str) -> None:
    def shifted(g: Any, w: Any, z: Geometry) -> Any:
        dx, axes = rotated.input_grad(g, w, z), z.layout.x[2:]
        pads = [(0, 0) if axis not in axes else ((1, -1), (-1, 1))[axes.index(axis)] for axis in range(dx.ndim)]
        return jax.lax.pad(dx, jnp.float32(0), [(lo, hi, 0) for lo, hi in pads])

    first = 2 if "NCHW" in name else 1
    report = judged(SETTINGS[name], shifted)
    assert hint(report, "x") == f"It is shifted by +1 along axis {first} and -1 along axis {first + 1}."


def test_a_roll_along_two_axes() -> None:
    f = with_gradient(jnp.sin, lambda d: jnp.roll(d, (3, -1), (0, 2)))
    report = jaxconv.check(f, normal(8, 3, 5), skip=ALONE)
    assert hint(report, "x") == "It is rolled by +3 along axis 0 and -1 along axis 2."


@pytest.mark.parametrize("argument", ["x", "w"])
@pytest.mark.parametrize("name", EVEN)
def test_a_backward_pass_padded_as_if_an_even_size_were_symmetric(name: str, argument: str) -> None:
    rules: dict[str, Any] = {
        "x": {"dx": lambda g, w, z: rotated.input_grad(g, w, off(z, exchanged=True))},
        "w": {"dw": lambda x, g, z: rotated.kernel_grad(x, g, off(z, exchanged=True))},
    }
    said = hint(judged(EVEN[name], **rules[argument]), argument)
    assert said.startswith(f"The {'dx' if argument == 'x' else 'dw'} is that of the padding (")
    assert said.endswith("not padded symmetrically, but with one more at the end.")


def test_padding_that_is_lopsided_on_purpose() -> None:
    setting = ((2, 6, 7, 2), (3, 3, 2, 3), {"padding": ((2, 0), (0, 1))})
    report = judged(setting, lambda g, w, z: rotated.input_grad(g, w, off(z, exchanged=True)))
    assert hint(report, "x") == "The dx is that of the padding (0, 2), (1, 0), not (2, 0), (0, 1)."


def test_a_convolution_without_a_convolution() -> None:
    """Written as a sum over taps; its rule forgets to turn round."""

    def conv(x: Any, w: Any) -> Any:
        return sum(w[k] * x[k : k + 6] for k in range(3))

    f = jax.custom_vjp(conv)
    f.defvjp(
        lambda x, w: (conv(x, w), (x, w)),
        lambda kept, g: (jax.vjp(conv, kept[0], kept[1][::-1])[1](g)[0], jax.vjp(conv, *kept)[1](g)[1]),
    )
    report = jaxconv.check(f, normal(8), normal(3, seed=1), skip=ALONE)
    assert hint(report, "x").startswith("It is what w flipped along axis 0 would give: the kernel is not rotated")


def test_the_convolution_of_a_network_is_found() -> None:
    """The second of two forgets the rotation: everything before it is wrong, nothing after it."""
    wrong = ConvRules(lambda g, w, z: rotated.input_grad(g, w[::-1, ::-1], z), rotated.kernel_grad)

    def net(params: Any, x: Any) -> Any:
        y = jaxconv.tanh(jaxconv.conv(x, params["first"], params["bias"]))
        return jnp.sin(jaxconv.conv(y, params["second"], stride=2, rules=wrong))

    params = {"bias": normal(3, seed=1), "first": normal(3, 3, 2, 3, seed=2), "second": normal(3, 3, 3, 2, seed=3)}
    report = jaxconv.check(net, params, normal(2, 5, 5, 2), skip=ALONE)
    verdicts = {path: a.verdict for path, a in report.by_argument.items()}
    assert verdicts.pop("params['second']") == "ok" and set(verdicts.values()) == {"wrong"}
    for path in verdicts:
        assert hint(report, path).startswith(
            "The gradient in the input of convolution 2 of 2 is what the kernel flipped along spatial axes 0 and 1"
        )


def test_integers_and_loops_are_left_alone() -> None:
    """Maxima and sums of integers have no gradient; a convolution in a loop stays as it is."""
    wrong = ConvRules(lambda g, w, z: rotated.input_grad(g, w[::-1, ::-1], z), rotated.kernel_grad)

    def net(x: Any, w: Any) -> Any:
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(jaxconv.conv(x, w)), None), x, None, length=2)
        steps = (x > 0).astype(jnp.int32).max() + jnp.arange(3).max()
        return jax.jit(partial(jaxconv.conv, rules=wrong))(x, w) * steps

    report = jaxconv.check(net, normal(2, 4, 4, 2), normal(3, 3, 2, 2, seed=1), skip=ALONE)
    assert hint(report, "x").startswith(
        "The gradient in the input is what the kernel flipped along spatial axes 0 and 1"
    )


# Biases, pools


def with_gradient(f: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f of one argument, with a changed gradient."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, d: (change(jax.vjp(f, x)[1](d)[0]),))
    return lambda x: g(x)


SUMS: dict[str, tuple[Callable[[Any], Any], int, str]] = {
    "over the rows, as in NCHW": (lambda g: g.sum((0, 2, 3)), 3, "over axes 0, 1 and 2, but is over axes 0, 2 and 3."),
    "of NCHW, over the columns": (lambda g: g.sum((0, 1, 2)), 1, "over axes 0, 2 and 3, but is over axes 0, 1 and 2."),
    "over the batch alone": (lambda g: g[:, 0, 0].sum(0), 3, "along axes 1 and 2 only the first is taken."),
    "of the last row": (lambda g: g[:, -1].sum((0, 1)), 3, "along axis 1 only the last is taken."),
    "over everything": (lambda g: jnp.full(4, g.sum()), 3, "over axes 0, 1 and 2, but is over axes 0, 1, 2 and 3."),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_bias_summed_over_the_wrong_axes(name: str) -> None:
    total, axis, said = SUMS[name]

    def plain(x: Any, b: Any) -> Any:
        return x + jnp.expand_dims(b, tuple(a for a in range(4) if a != axis))

    f = jax.custom_vjp(plain)
    f.defvjp(lambda x, b: (plain(x, b), None), lambda _, g: (g, total(g)))
    report = jaxconv.check(
        lambda x, b: jnp.sin(f(jnp.cos(x), b)) ** 2, normal(3, 4, 4, 4), normal(4, seed=1), skip=ALONE
    )
    assert hint(report, "b").startswith("δ should be summed over axes 0, ") and hint(report, "b").endswith(said)
    assert report.by_argument["x"].verdict == "ok"


def windowed(x: Any) -> Any:
    return jaxconv.max_pool(x, 3, stride=2, padding=1)


def reshaped(x: Any) -> Any:
    return x.reshape(2, 3, 2, 3, 2, 2).max((2, 4))


@pytest.mark.parametrize("pool", [windowed, reshaped])
def test_ties_that_are_paid_twice(pool: Callable[[Any], Any]) -> None:
    """Each entry equal to a window's maximum gets all of the window's δ."""
    size, stride, pad = (3, 2, 1) if pool is windowed else (2, 2, 0)

    def backward(kept: Any, g: Any) -> Any:
        x, y = kept
        edged = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-jnp.inf)
        dx = jnp.zeros_like(edged)
        for i in range(size):
            for j in range(size):
                tap = (slice(None), slice(i, i + 5, stride), slice(j, j + 5, stride))
                dx = dx.at[tap].add(jnp.where(edged[tap] == y, g, 0))
        return (dx[:, pad : pad + 6, pad : pad + 6],)

    f = jax.custom_vjp(pool)
    f.defvjp(lambda x: (pool(x), (x, pool(x))), backward)
    ties = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6, 6, 2)), jnp.float32)
    report = jaxconv.check(lambda x: jnp.sin(f(jnp.sin(x))), ties, skip=SLOW)
    assert not report.ok and "Ties are paid more than once: each of the winners gets all" in str(report)
    found = report.by_argument["x"]
    assert found.verdict == "wrong" and 1 < found.wrong < 144
    assert "Ties" not in str(jaxconv.check(pool, ties, skip=SLOW))


def test_ties_are_made_where_there_are_none() -> None:
    f = jax.custom_vjp(reshaped)
    f.defvjp(
        lambda x: (reshaped(x), (x, reshaped(x))),
        lambda kept, g: (jnp.where(kept[0] == spread(kept[1]), spread(g), 0),),
    )
    report = jaxconv.check(f, normal(2, 6, 6, 2), skip=SLOW)
    found = report.by_argument["x"]
    assert report["automatic"].verdict == "ok" and found.verdict == "wrong" and found.evidence == ("ties",)
    assert found.wrong > 1 and found.where and "Ties are paid more than once" in report["ties"].findings[0].hint


def spread(y: Any) -> Any:
    return y.repeat(2, 1).repeat(2, 2)


# Which argument, how many entries, where

CENTRE = np.zeros((2, 6, 7, 3), bool)
CENTRE[:, 1:-1, 1:-1] = True


def mask(*index: Any) -> np.ndarray:
    found = np.zeros((2, 6, 7, 3), bool)
    found[index] = True
    return found


SCATTERED = np.random.default_rng(0).random((2, 6, 7, 3)) < 0.3
PLACES: dict[str, np.ndarray] = {
    "": mask() & False,
    "everywhere": mask(),
    "the last of 6 along axis 1": mask(slice(None), -1),
    "the first 2 of 6 along axis 1": mask(slice(None), slice(2)),
    "index 1 of 3 along axis 3": mask(..., 1),
    "2 to 4 of 7 along axis 2": mask(slice(None), slice(None), slice(2, 5)),
    "every 2nd from index 1 of 6 along axis 1": mask(slice(None), slice(1, None, 2)),
    "every 3rd from index 0 of 7 along axis 2": mask(slice(None), slice(None), slice(0, None, 3)),
    "both ends of 7 along axis 2": mask(slice(None), slice(None), [0, -1]),
    "all but index 2 of 6 along axis 1": mask(slice(None), [0, 1, 3, 4, 5]),
    "0, 1, 4 of 6 along axis 1": mask(slice(None), [0, 1, 4]),
    "the first of 2 along axis 0 and the last of 3 along axis 3": mask(0, ..., -1),
    "everywhere but 1 to 4 of 6 along axis 1 and 1 to 5 of 7 along axis 2": ~CENTRE,
    "scattered": SCATTERED,
    "scattered over index 1 of 3 along axis 3": SCATTERED & mask(..., 1),
    "nearly everywhere in the last of 6 along axis 1": mask(slice(None), -1) & ~mask(0, -1, 2, 0),
    "nearly everywhere": mask() & ~mask(0, 2, 2, 0) & ~mask(1, 3, 2, 2),
}


@pytest.mark.parametrize("said", PLACES)
def test_where_entries_are_wrong_in_words(said: str) -> None:
    assert where(PLACES[said]) == said


def test_a_number_is_wrong_everywhere() -> None:
    assert where(np.array(True)) == "everywhere" and where(np.zeros(0, bool)) == ""


def test_each_argument_has_its_own_verdict() -> None:
    """In fields, in JSON and in the table, the wrong first; and those that are right in one line if they are many."""

    def f(params: Any, x: Any) -> Any:
        w = with_gradient(lambda w: w * 1.0, lambda d: d.at[..., 2].multiply(1.1).at[0, 0, 2].set(0))(params["w"])
        return jaxconv.conv(x, w, params["b"]) * params["scale"]

    params = {"b": normal(4, seed=1), "scale": jnp.float32(2), "w": normal(3, 2, 3, 4, seed=2)}
    report = jaxconv.check(f, params, normal(2, 5, 5, 3), skip=("adjoint", "vmap"))
    found = report.by_argument
    assert list(found) == ["params['b']", "params['scale']", "params['w']", "x"]
    assert [a.verdict for a in found.values()] == ["ok", "ok", "wrong", "ok"]
    w = found["params['w']"]
    assert (w.wrong, w.size, w.where) == (21, 72, "scattered") and "automatic" in w.evidence and "jit" not in w.evidence
    assert found["x"] == replace(found["x"], path="x", wrong=0, size=150, where="", evidence=())
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))["by_argument"]
    assert loaded[2] == {
        **{"path": "params['w']", "verdict": "wrong", "wrong": 21, "size": 72, "where": "scattered"},
        "evidence": list(w.evidence),
    }
    lines = [line.split() for line in str(report).splitlines()]
    head = lines.index(["argument", "verdict", "wrong", "entries", "where"])
    assert lines[head + 1] == ["params['w']", "WRONG", "21", "of", "72", "scattered"]
    assert lines[head + 2] == ["params['b']", "ok"]
    finding = report["automatic"].findings[0]
    assert (finding.argument, finding.wrong, finding.size, finding.place) == ("params['w']", 21, 72, "scattered")


def test_many_right_arguments_share_a_line() -> None:
    def f(xs: Any, y: Any) -> Any:
        return sum(jnp.sin(x) for x in xs) + with_gradient(jnp.sin, jnp.negative)(y)

    report = jaxconv.check(f, [normal(2, seed=i) for i in range(9)], normal(2), skip=SLOW)
    assert [line for line in str(report).splitlines() if line.startswith("9 others")] == ["9 others  ok"]


def test_a_right_report_has_no_table_of_arguments() -> None:
    report = jaxconv.check(jnp.sin, normal(3), skip=SLOW)
    assert "wrong entries" not in str(report) and report.by_argument["x"].verdict == "ok"


def test_an_argument_of_the_wrong_dtype_is_wrong_as_a_whole() -> None:
    f = jax.custom_vjp(lambda x, y: x * y)
    f.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, g: ((g * kept[1]).astype(jnp.bfloat16), g * kept[0]))
    found = jaxconv.check(f, normal(5), normal(5, seed=1), skip=SLOW).by_argument
    assert found["x"].verdict == "wrong" and found["x"].evidence[0] == "structure" and found["y"].verdict == "ok"


def test_what_nobody_looked_at_is_undecided() -> None:
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), lambda _, g: (g, g))
    report = jaxconv.check(f, normal(3))
    assert not report.ok and report.by_argument["x"].verdict == "undecided"
    assert "must produce a tuple of length equal to the number of arguments" in report["structure"].about
    assert report["structure"].about.endswith("primal input structure PyTreeDef((*,)).")  # all that JAX says


# Numbers


def test_where_the_truth_is_zero_there_are_no_ulps() -> None:
    """The gradient of a clipped argument is 0: nothing rounds, and 4e45 units in its last place would say nothing."""
    f = with_gradient(lambda x: jnp.clip(x, -1, 1), lambda d: d + 0.5)
    report = jaxconv.check(f, jnp.array([-3.0, 0.5, 2.0]), skip=("vmap", "jit"))
    at_zero = [f for e in report.evidence for f in e.findings if f.expected == 0]
    assert at_zero and all(math.isnan(f.ulps) and "ulps" not in str(f) for f in at_zero)
    ulps = [f["ulps"] for e in json.loads(json.dumps(report.to_dict()))["evidence"] for f in e["findings"]]
    assert None in ulps and all(u is None or u < 1e12 for u in ulps)
