"""`check` says whether a gradient is right, where it is not, what may be wrong, and when it cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.gradcheck import KINDS, Report
from tests.support.judged import COSTLY, normal, ruled, square

pytestmark = pytest.mark.usefixtures("as_a_user")


# What is right


def test_a_right_gradient_passes_every_kind() -> None:
    x, w, b = normal(2, 6, 5, 3), normal(3, 3, 3, 2, seed=1), normal(2, seed=2)

    def layer(x: Any, w: Any, b: Any) -> Any:
        return jaxconv.conv(x, w, b, stride=2)

    report = jaxconv.check(layer, x, w, b)
    report.raise_if_failed()
    assert [e.name for e in report.evidence] == list(KINDS)
    assert all(e.verdict == "ok" for e in report.evidence if e.name != "ties"), "a convolution has no ties"
    assert all(e.ratio <= 1 for e in report.evidence if not np.isnan(e.ratio))
    assert report["automatic"].ratio > 0, "float32 rounds, and the report says by how much"
    assert report.arguments == ("x float32[2, 6, 5, 3]", "w float32[3, 3, 3, 2]", "b float32[2]")


def test_strict_promotion_is_respected() -> None:
    x, w = normal(2, 6, 5, 3), normal(3, 3, 3, 2, seed=1)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert jaxconv.check(jaxconv.conv, x, w, order=2).ok


def test_trees_integers_and_several_results() -> None:
    def loss(params: Any, labels: Any) -> Any:
        logits = params["w"] * params["b"]
        return {"loss": jaxconv.softmax_cross_entropy(logits, labels), "best": logits.argmax(-1), "norm": logits.sum()}

    report = jaxconv.check(loss, {"w": normal(3, 4), "b": normal(4)}, jnp.array([1, 3, 0]), skip=COSTLY)
    assert report.ok and report.arguments == ("params['b'] float32[4]", "params['w'] float32[3, 4]")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_bound_is_the_dtypes_own(dtype: Any) -> None:
    """A rule off by a hundredth is wrong in float32 and float16, and as good as any in eight bits of precision."""
    f = ruled(lambda x: jnp.sin(x), lambda d: (d * 1.01,))
    report = jaxconv.check(f, normal(50, dtype=dtype), skip=COSTLY)
    assert report.ok is (dtype == jnp.bfloat16)


def test_float64() -> None:
    with jax.enable_x64(True):
        x = normal(50, dtype=jnp.float64)
        assert jaxconv.check(jnp.tanh, x, skip=COSTLY).ok
        assert not jaxconv.check(ruled(jnp.tanh, lambda d: (d * (1 + 1e-12),)), x, skip=COSTLY).ok


def test_empty_arrays_and_scalars() -> None:
    assert jaxconv.check(lambda x, y: (x * 2).sum() + y**2, jnp.zeros((0, 3)), jnp.float32(1.5)).ok


@jax.custom_vjp
def called_back(x: Any) -> Any:
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


called_back.defvjp(lambda x: (called_back(x), x), lambda x, g: (g * jnp.cos(x),))


def turned(x: Any) -> Any:
    """A recurrence of complex numbers."""

    def step(c: Any, t: Any) -> Any:
        return c * lax.complex(jnp.cos(t), jnp.sin(t)), c.real

    return lax.scan(step, jnp.complex64(1), x)[1]


# Right gradients that are awkward to judge: at the edge of a domain or of a dtype's range, through complex numbers,
# random ones and foreign code.
AWKWARD: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "log near 0": (jnp.log, ([0.01, 5.0, 3.0, 0.2],)),
    "arccos near 1": (jnp.arccos, ([0.999, 0.1, -0.5],)),
    "sqrt at 0": (jnp.sqrt, ([0.0, 1.0, 2.0],)),
    "1/x overflows in its gradient": (lambda x: 1 / x, ([1e-20, 1.0, 2.0],)),
    "squares of tiny numbers": (jnp.square, ([1e-20, 3e-20],)),
    "a complex recurrence": (turned, ([0.3, 1.0, -2.0],)),
    "a spectrum": (lambda x: jnp.abs(jnp.concatenate([jnp.fft.rfft(x), jnp.ones(2, jnp.complex64)])), (range(8),)),
    "a key": (lambda x: x * jax.random.normal(jax.random.key(0), x.shape), ([1.0, 2.0],)),
    "foreign code": (called_back, ([1.0, 2.0],)),
    "a donated argument": (jax.jit(jnp.sin, donate_argnums=0), ([1.0, 2.0],)),
    "a large mean": (lambda x: jaxconv.layer_norm(x + 1000), (range(8),)),
    "a saturated tanh": (jaxconv.tanh, ([0.5, 9.0, 15.0, 30.0, -40.0],)),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_right_gradient_is_right(name: str) -> None:
    f, values = AWKWARD[name]
    jaxconv.check(f, *(jnp.asarray(np.array(v, np.float32)) for v in values)).raise_if_failed()


def test_a_key_may_be_an_argument() -> None:
    assert jaxconv.check(
        lambda key, x: x * jax.random.normal(key, x.shape), jax.random.key(0), normal(4), skip=COSTLY
    ).ok


def test_a_formula_without_a_digit_is_said_to_have_none() -> None:
    """x·(sin² x + (1 + cos 2x)/2) is x, whose slope is 1. Far out the terms of its derivative cancel."""

    def f(x: jax.Array) -> jax.Array:
        return x * (jnp.sin(x) ** 2 + (1 + jnp.cos(2 * x)) / 2)

    report = jaxconv.check(f, jnp.array([1e18]), skip=COSTLY)
    assert report.verdict == report["differences"].verdict == "undecided"
    assert "no digit, even in float64" in report["differences"].about


# What is wrong, and the hint

X = normal(4, 6, 6, 3)


HINTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "sign": (lambda d: -d, "The sign is wrong."),
    "factor": (lambda d: 1.001 * d, "It is 1.001 times the right gradient."),
    "a small factor": (lambda d: (1 - 5e-5) * d, "It is 1 − 5e-05 times the right gradient."),
    "zero": (jnp.zeros_like, "It is zero everywhere: this argument is not differentiated."),
    "flip": (lambda d: d[:, ::-1], "Axis 1 is flipped."),
    "rotation": (lambda d: d[:, ::-1, ::-1], "Axes 1 and 2 are both flipped: rotated by 180°."),
    "transposition": (lambda d: d.swapaxes(1, 2), "Axes 1, 2 are transposed."),
    "reshape": (lambda d: d.transpose(3, 0, 1, 2).reshape(d.shape), "A reshape kept the shape."),
    "roll": (lambda d: jnp.roll(d, 2, 1), "It is rolled by +2 along axis 1."),
    "off by one": (lambda d: jnp.pad(d[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0))), "It is off by one along axis 1."),
    "dropped": (lambda d: d.at[:, :, -1].set(0), "Along axis 2 of 6 only the last, index 5 is dropped: zero."),
    "place": (lambda d: d.at[:, 2].multiply(1.3), "Along axis 1 of 6 only index 2 is wrong."),
    "mean": (lambda d: d - d.mean(0, keepdims=True), "does not depend on axis 0: a term that is constant along it"),
}


@pytest.mark.parametrize("name", HINTS)
def test_a_usual_mistake_is_named(name: str) -> None:
    change, hint = HINTS[name]
    report = jaxconv.check(ruled(square, lambda d: (change(d),)), X, skip=COSTLY)
    (finding,) = report["automatic"].findings
    assert not report.ok and report["automatic"].verdict == "wrong"
    assert hint in finding.hint
    assert finding.where.startswith("args[0][") and finding.ratio > 1 and finding.ulps > 1
    with pytest.raises(AssertionError, match="the gradient is WRONG"):
        report.raise_if_failed()


def test_an_unsummed_batch_is_named() -> None:
    x, w = normal(3, 5, 5, 2), normal(3, 3, 2, 2, seed=1)

    def conv(x: Any, w: Any) -> Any:
        return jaxconv.conv(x, w, rules=rules)

    rules = jaxconv.ConvRules(
        jaxconv.rules.rotated.input_grad,
        lambda x, g, geometry: jaxconv.rules.rotated.kernel_grad(x[:1], g[:1], geometry),
    )
    (finding,) = jaxconv.check(conv, x, w, skip=COSTLY)["automatic"].findings
    assert finding.where.startswith("w[")
    assert finding.hint == "It is that of the first example alone: the sum over the batch is missing."


def test_exchanged_arguments_and_ignored_cotangents_are_named() -> None:
    swapped = ruled(lambda a, b: a * jnp.sin(b), lambda da, db: (db, da))
    hints = [f.hint for f in jaxconv.check(swapped, normal(5), normal(5, seed=1), skip=COSTLY)["automatic"].findings]
    assert hints == ["It is the gradient of args[1].", "It is the gradient of args[0]."]
    loss = jax.custom_vjp(lambda x: x * x)
    loss.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x,))
    report = jaxconv.check(loss, normal(5), skip=COSTLY)
    assert report["automatic"].findings[0].hint == "The cotangent is ignored: taken to be all ones."
    assert report["linearity"].verdict == "wrong" and report["zeros"].verdict == "wrong"


# Evidence that nothing else gives


def verdicts(f: Callable[..., Any], *args: Any, **options: Any) -> dict[str, str]:
    report = jaxconv.check(f, *args, **options)
    assert not report.ok
    return {e.name: e.verdict for e in report.evidence}


def test_structure() -> None:
    f = jax.custom_vjp(square)
    f.defvjp(lambda x: (x * x, x), lambda x, g: ((2 * x * g)[:2],))
    assert verdicts(f, normal(5)) == {"structure": "wrong"}
    f = jax.custom_vjp(square)
    f.defvjp(lambda x: (x * x, x), lambda x, g: ((2 * x * g).astype(jnp.bfloat16),))
    assert "bfloat16[5] instead of float32[5]" in jaxconv.check(f, normal(5))["structure"].about


def test_forward() -> None:
    """The rule's own forward pass returns another value; its gradient is right."""
    f = jax.custom_vjp(square)
    f.defvjp(lambda x: (x * x + 1, x), lambda x, g: (2 * x * g,))
    assert [name for name, v in verdicts(f, normal(5), skip=COSTLY).items() if v == "wrong"] == ["forward"]


def test_vmap() -> None:
    """The rule for batches is wrong, for examples right."""

    @jax.custom_batching.custom_vmap
    def backward(x: Any, g: Any) -> Any:
        return 2 * x * g

    @backward.def_vmap
    def _(size: Any, batched: Any, x: Any, g: Any) -> Any:
        return 2 * x[::-1] * g, True

    f = jax.custom_vjp(square)
    f.defvjp(lambda x: (x * x, x), lambda x, g: (backward(x, g),))
    assert [name for name, v in verdicts(f, normal(5)).items() if v == "wrong"] == ["vmap"]


def test_state() -> None:
    """A function that is another one each time it is traced."""
    random = np.random.default_rng(0)
    found = verdicts(lambda x: x * random.random(), normal(5))
    assert found["forward"] == "wrong" and found["jit"] == "wrong"


def test_symbolic_zeros() -> None:
    """Wrong only if the other argument is a constant."""
    f = jax.custom_vjp(lambda x, y: x * y)

    def forward(x: Any, y: Any) -> Any:
        return x.value * y.value, (x.value, y.value, 1.0 if y.perturbed else 2.0)

    f.defvjp(forward, lambda kept, g: (kept[2] * g * kept[1], g * kept[0]), symbolic_zeros=True)
    assert [name for name, v in verdicts(f, normal(5), normal(5, seed=1), skip=COSTLY).items() if v == "wrong"] == [
        "zeros"
    ]


def test_second_order_on_request() -> None:
    """The gradient is right, its own gradient is not."""
    slope = ruled(lambda x: jnp.cos(x), lambda d: (2 * d,))
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * slope(x),))
    assert jaxconv.check(f, normal(5)).ok
    report = jaxconv.check(f, normal(5), order=2)
    assert [e.name for e in report.evidence if e.verdict == "wrong"] == ["second order"]
    assert report["second order"].findings[0].where.startswith("x[")
    assert jaxconv.check(jnp.sin, normal(5), order=2).ok


def test_a_reference_of_ones_own() -> None:
    """f computes what it should not; only the reference knows."""

    def leaky(x: Any) -> Any:
        return jnp.where(x > 0, x, 0.1 * x)

    x = normal(20)
    assert jaxconv.check(leaky, x).ok
    assert jaxconv.check(leaky, x, reference=lambda x: jnp.maximum(x, 0.1 * x)).ok
    assert not jaxconv.check(leaky, x, reference=lambda x: jnp.maximum(x, 0.01 * x), skip=COSTLY).ok
    with pytest.raises(ValueError, match=r"reference must return what leaky returns, but float32\[\] != float32\[20\]"):
        jaxconv.check(leaky, x, reference=jnp.sum)


# The report


def test_the_report_is_a_table_and_json() -> None:
    report = jaxconv.check(ruled(square, lambda d: (jnp.full_like(d, jnp.nan),)), normal(3), skip=COSTLY)
    assert isinstance(report, Report)
    lines = str(report).splitlines()
    assert lines[0].startswith("check(f): the gradient is WRONG.") and "args[0] float32[3]" in lines[0]
    assert lines[1].split() == ["evidence", "verdict", "error/bound", "what", "was", "compared"]
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["ok"] is False and loaded["function"] == "f"
    (automatic,) = [e for e in loaded["evidence"] if e["name"] == "automatic"]
    assert automatic["ratio"] == "inf" and automatic["findings"][0]["value"] == "nan"
    with pytest.raises(KeyError, match="no evidence is called 'vmap'; there is structure"):
        report["vmap"]


def test_the_same_seed_gives_the_same_report() -> None:
    first, again, other = (jaxconv.check(jnp.tanh, normal(9), seed=seed, skip=COSTLY).to_dict() for seed in (0, 0, 1))
    assert first == again != other
