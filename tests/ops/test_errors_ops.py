"""A mistake is named before anything is computed: function, argument, the violated equation and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv as jc
from tests.support.operands_ops import (
    AT,
    COMPUTED,
    FLOATING,
    KEY,
    STATE,
    C,
    W,
    X,
    Y,
    Z,
    batch_norm,
    entropy,
)
from tests.support.refusal import refusal

pytestmark = pytest.mark.usefixtures("nothing_may_be_computed")

# Every function, as one of x; those in SPATIAL also have a layout.
POINTWISE = {f.__name__: f for f in (jc.relu, jc.relu6, jc.sigmoid, jc.tanh, jc.softplus, jc.silu, jc.gelu, jc.elu)}
SPATIAL: dict[str, Callable[..., Any]] = {
    "max_pool": partial(jc.max_pool, window=2),
    "avg_pool": partial(jc.avg_pool, window=2),
    "lp_pool": partial(jc.lp_pool, window=2, p=2),
    "global_avg_pool": jc.global_avg_pool,
    "pad": partial(jc.pad, padding=1),
    "group_norm": partial(jc.group_norm, groups=2),
    "instance_norm": jc.instance_norm,
}
EVERY: dict[str, Callable[..., Any]] = {
    **POINTWISE,
    **SPATIAL,
    "leaky_relu": jc.leaky_relu,
    "dense": lambda x, **options: jc.dense(x, W, **options),
    "dropout": partial(jc.dropout, rate=0.5, key=KEY),
    "layer_norm": jc.layer_norm,
    "rms_norm": jc.rms_norm,
    "batch_norm": partial(jc.batch_norm, scale=C, bias=C, state=STATE, train=True),
}


# What else computes, but not from one x.
OTHERS: dict[str, Callable[..., Any]] = {
    "max_unpool": partial(jc.max_unpool, Y, AT - 1, 2, 6),
    "softmax_cross_entropy": partial(entropy, [0, 1]),
    "mean_squared_error": partial(jc.mean_squared_error, Z, Z),
}
RIGHT: dict[str, Callable[[], Any]] = {**{name: partial(call, X) for name, call in EVERY.items()}, **OTHERS}


def test_every_op_is_here() -> None:
    """Each public function with rules, but the convolutions, which have their own table."""
    public = {name: getattr(jc, name) for name in jc.__all__}
    ruled = {name: f for name, f in public.items() if callable(f) and "rules" in inspect.signature(f).parameters}
    ops = {n for n, f in ruled.items() if f.__module__.startswith("jaxconv.ops.") and "conv" not in n}
    assert set(RIGHT) == ops - {"plan"}  # which takes shapes


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_call_gets_as_far_as_the_computation(name: str) -> None:
    """So a wrong one that got there too would be seen."""
    assert refusal(RIGHT[name], AssertionError) == COMPUTED


@pytest.mark.parametrize("name", EVERY)
def test_x_must_be_floating(name: str) -> None:
    call, tail = EVERY[name], f"{name}: x.dtype must be {FLOATING}, but is %s. Convert it: x.astype(jnp.float32)."
    for dtype in ("int32", "bool", "complex64"):
        assert refusal(partial(call, X.astype(dtype)), TypeError) == tail % dtype


@pytest.mark.parametrize("name", EVERY)
def test_rules_must_be_known(name: str) -> None:
    choice = "textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad)"
    for wrong in ("slow", None, ["fast"]):
        message = f"{name}: rules must be one of {choice}, but is {wrong!r}."
        assert refusal(partial(EVERY[name], X, rules=wrong), ValueError) == message


@pytest.mark.parametrize("name", [*SPATIAL, "batch_norm"])
def test_layout_must_be_known(name: str) -> None:
    for wrong in ("NWHC", "nhwc", None):
        message = f"{name}: layout must be one of NHWC, NCHW, for any number of spatial axes, but is {wrong!r}."
        assert refusal(partial(EVERY[name], X, layout=wrong), ValueError) == message


@pytest.mark.parametrize("name", SPATIAL)
def test_x_must_have_a_batch_axis(name: str) -> None:
    message = (
        f"{name}: x must have a batch, a channel and at least 1 spatial axis (NWC), "
        "but x.shape = (6, 4) has 2 < 3 axes. A single example needs a batch axis: x[None]."
    )
    assert refusal(partial(SPATIAL[name], X[0, 0]), ValueError) == message


@pytest.mark.parametrize("name", EVERY)
def test_x_must_be_an_array(name: str) -> None:
    for wrong, kind in (({"x": 1}, "dict"), (None, "NoneType"), ([[1.0, 2.0], [3.0]], "list")):
        assert refusal(partial(EVERY[name], wrong), TypeError) == f"{name}: x must be an array, but is {kind}."


# (how the message has to begin, call): whatever else it says, it names the function and the argument.
PLAUSIBLE: list[tuple[str, Callable[[], Any]]] = [
    ("dense: w", lambda: jc.dense(X, None)),
    ("max_unpool: y", lambda: jc.max_unpool(None, AT, 2, 6)),
    ("max_unpool: indices", lambda: jc.max_unpool(Y, None, 2, 6)),
    ("max_unpool: indices", lambda: jc.max_unpool(Y, (Y, AT), 2, 6)),
    ("gelu: approximate", lambda: jc.gelu(X, approximate="none")),
    ("batch_norm: momentum", lambda: batch_norm(momentum=None)),
    ("batch_norm: momentum", lambda: batch_norm(momentum="0.9")),
    ('batch_norm: state["mean"]', lambda: batch_norm(state={"mean": None, "var": C})),
    ("batch_norm: scale", lambda: batch_norm(X.astype(np.float64))),
    ("layer_norm: scale", lambda: jc.layer_norm(X.astype(np.float64), C)),
    ("rms_norm: scale", lambda: jc.rms_norm(X, C.astype(np.float64))),
    ("dropout: key", lambda: jc.dropout(X, 0.5, 0)),
    ("dropout: key", lambda: jc.dropout(X, 0.5, jax.random.split(KEY, 3))),
    ("softmax_cross_entropy: logits", lambda: entropy([0, 1], None)),
    ("softmax_cross_entropy: labels", lambda: entropy(None)),
    ("softmax_cross_entropy: where", lambda: entropy([0, 1], where="mask")),
    ("mean_squared_error: where", lambda: jc.mean_squared_error(Z, Z, where={})),
    ("mean_squared_error: predictions", lambda: jc.mean_squared_error(None, Z)),
    ("mean_squared_error: targets", lambda: jc.mean_squared_error(Z, None)),
]


@pytest.mark.parametrize(("start", "call"), PLAUSIBLE, ids=[f"{i}-{start}" for i, (start, _) in enumerate(PLAUSIBLE)])
def test_a_plausible_mistake_does_not_escape_as_an_error_of_jax_or_python(start: str, call: Callable[[], Any]) -> None:
    message = refusal(call, TypeError, ValueError)
    assert message.startswith(start) and not message[len(start)].isalnum()


@pytest.mark.parametrize("name", ["p", "negative_slope", "alpha", "eps", "momentum", "rate", "label_smoothing"])
def test_a_numpy_scalar_is_a_number(name: str) -> None:
    half = np.float32(0.5)
    calls = {
        "p": lambda: jc.lp_pool(X, 2, 4 * half),
        "negative_slope": lambda: jc.leaky_relu(X, half),
        "alpha": lambda: jc.elu(X, half),
        "eps": lambda: jc.layer_norm(X, eps=half),
        "momentum": lambda: batch_norm(momentum=half),
        "rate": lambda: jc.dropout(X, half, KEY),
        "label_smoothing": lambda: entropy([0, 1], label_smoothing=half),
    }
    assert refusal(calls[name], AssertionError) == COMPUTED
