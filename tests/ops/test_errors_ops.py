"""A mistake is named before anything is computed: function, argument, the violated equation and the remedy."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jaxconv as jc

X = np.ones((2, 6, 6, 4), np.float32)
C = np.ones(4, np.float32)  # one number per channel
W = np.ones((4, 2), np.float32)
Z = np.ones((2, 5), np.float32)  # logits
Y, AT = np.ones((2, 3, 3, 4), np.float32), np.zeros((2, 3, 3, 4), np.int32)
STATE = {"mean": C, "var": C}
KEY = jax.random.key(0)

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


def batch_norm(x: Any = X, scale: Any = C, bias: Any = C, state: Any = STATE, **options: Any) -> Any:
    return jc.batch_norm(x, scale, bias, state, **{"train": True, **options})


def entropy(labels: Any, logits: Any = Z, **options: Any) -> Any:
    return jc.softmax_cross_entropy(logits, labels, **options)


@pytest.fixture(autouse=True)
def _nothing_may_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*args: Any, **options: Any) -> Any:
        raise AssertionError("the mistake went unnoticed until the computation")

    for info in pkgutil.iter_modules(jc.ops.__path__, "jaxconv.ops."):
        module = importlib.import_module(info.name)
        for name in ("apply", "linear", "convolve"):
            if getattr(vars(module).get(name), "__module__", module.__name__) != module.__name__:
                monkeypatch.setattr(module, name, computed)


def check(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


FLOATING = "floating (float32, bfloat16, float16 or, under x64, float64)"


@pytest.mark.parametrize("name", EVERY)
def test_x_must_be_floating(name: str) -> None:
    call, tail = EVERY[name], f"{name}: x.dtype must be {FLOATING}, but is %s. Convert it: x.astype(jnp.float32)."
    check(lambda: call(X.astype(np.int32)), TypeError, tail % "int32")
    check(lambda: call(X.astype(bool)), TypeError, tail % "bool")
    check(lambda: call(X.astype(np.complex64)), TypeError, tail % "complex64")


@pytest.mark.parametrize("name", EVERY)
def test_rules_must_be_known(name: str) -> None:
    choice = "textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad)"
    for wrong in ("slow", None, ["fast"]):
        message = f"{name}: rules must be one of {choice}, but is {wrong!r}."
        check(lambda wrong=wrong: EVERY[name](X, rules=wrong), ValueError, message)


@pytest.mark.parametrize("name", [*SPATIAL, "batch_norm"])
def test_layout_must_be_known(name: str) -> None:
    for wrong in ("NWHC", "nhwc", None):
        message = f"{name}: layout must be one of NHWC, NCHW, for any number of spatial axes, but is {wrong!r}."
        check(lambda wrong=wrong: EVERY[name](X, layout=wrong), ValueError, message)


@pytest.mark.parametrize("name", SPATIAL)
def test_x_must_have_a_batch_axis(name: str) -> None:
    message = (
        f"{name}: x must have a batch, a channel and at least 1 spatial axis (NWC), "
        "but x.shape = (6, 4) has 2 < 3 axes. A single example needs a batch axis: x[None]."
    )
    check(lambda: SPATIAL[name](X[0, 0]), ValueError, message)


@pytest.mark.parametrize("name", EVERY)
def test_x_must_be_an_array(name: str) -> None:
    for wrong, kind in (({"x": 1}, "dict"), (None, "NoneType"), ([[1.0, 2.0], [3.0]], "list")):
        check(lambda wrong=wrong: EVERY[name](wrong), TypeError, f"{name}: x must be an array, but is {kind}.")


PAIRS = "an int, one int per axis or (lo, hi) pairs"
PADDINGS = "one of SAME, SAME_LOWER, VALID, CAUSAL, an int, one int per spatial axis or (lo, hi) pairs"
VARY = "Give it an axis of size 1 where it does not vary: where[:, None] or where[None]."
RESOLVED = "Pass the window, stride, padding, dilation and ceil_mode of the max_pool."

# (call, error, message)
MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # windows
    (lambda: jc.max_pool(X, None), TypeError, "max_pool: window must be an int, but is None."),
    (lambda: jc.max_pool(X, 2.0), TypeError, "max_pool: window must be an int, but is 2.0."),
    (lambda: jc.max_pool(X, True), TypeError, "max_pool: window must be an int, but is True."),
    (
        lambda: jc.max_pool(X, "2"),
        TypeError,
        "max_pool: window must be an int or one int per spatial axis, but is '2'.",
    ),
    (
        lambda: jc.max_pool(X, 2, return_indices=1),
        TypeError,
        "max_pool: return_indices must be True or False, but is 1.",
    ),
    (lambda: jc.max_pool(X, 0), ValueError, "max_pool: window must be at least 1, but 0 < 1."),
    (lambda: jc.max_pool(X, (2, 0)), ValueError, "max_pool: window[1] must be at least 1, but 0 < 1."),
    (
        lambda: jc.max_pool(X, (2, 2, 1)),
        ValueError,
        "max_pool: window must be an int or have one entry per spatial axis, but len(window) = 3 != 2.",
    ),
    (lambda: jc.avg_pool(X, 2, stride=0), ValueError, "avg_pool: stride must be at least 1, but 0 < 1."),
    (
        lambda: jc.avg_pool(X, 2, stride=(2,)),
        ValueError,
        "avg_pool: stride must be an int or have one entry per spatial axis, but len(stride) = 1 != 2.",
    ),
    (lambda: jc.lp_pool(X, 2, 2, dilation=-1), ValueError, "lp_pool: dilation must be at least 1, but -1 < 1."),
    (lambda: jc.max_pool(X, 2, padding="FULL"), ValueError, f"max_pool: padding must be {PADDINGS}, but is 'FULL'."),
    (
        lambda: jc.max_pool(X, 2, padding="CAUSAL"),
        ValueError,
        'max_pool: padding="CAUSAL" needs exactly 1 spatial axis, but there are 2. Give (lo, hi) pairs instead.',
    ),
    (lambda: jc.max_pool(X, 2, padding=1.5), TypeError, f"max_pool: padding must be {PADDINGS}, but is 1.5."),
    (
        lambda: jc.max_pool(X, 2, padding=(1, "1")),
        TypeError,
        "max_pool: padding[1] must be an int or a (lo, hi) pair, but is '1'.",
    ),
    (
        lambda: jc.max_pool(X, 2, padding=((0, 0), (1, 1), (1, 1), (0, 0))),
        ValueError,
        f"max_pool: padding must have one entry per spatial axis, but len(padding) = 4 != 2. Give {PAIRS}.",
    ),
    (
        lambda: jc.max_pool(X, 2, padding=((1, 2, 3), 1)),
        ValueError,
        "max_pool: padding[0] must be a (lo, hi) pair, but has 3 entries.",
    ),
    (
        lambda: jc.max_pool(X, 2, padding=((1, 2), (0, 0.5))),
        TypeError,
        "max_pool: padding[1][1] must be an int, but is 0.5.",
    ),
    (
        lambda: jc.max_pool(X, 2, padding=(0, -4)),
        ValueError,
        "max_pool: padding must not crop more than there is, but spatial axis 1 has 6 elements and 6 + -4 + -4 < 0.",
    ),
    # pools
    (
        lambda: jc.max_unpool(Y, AT.astype(np.float32), 2, 6),
        TypeError,
        "max_unpool: indices.dtype must be an integer, but is float32.",
    ),
    (
        lambda: jc.max_unpool(Y, AT[:1], 2, 6),
        ValueError,
        "max_unpool: indices.shape must be what max_pool gives for spatial (6, 6), "
        f"but (1, 3, 3, 4) != (2, 3, 3, 4). {RESOLVED}",
    ),
    (
        lambda: jc.max_unpool(Y, AT, 3, 6),
        ValueError,
        "max_unpool: y.shape must be what max_pool gives for spatial (6, 6), "
        f"but (2, 3, 3, 4) != (2, 2, 2, 4). {RESOLVED}",
    ),
    (
        lambda: jc.max_unpool(Y, AT, 2, X.shape),
        ValueError,
        "max_unpool: spatial_shape must be an int or have one entry per spatial axis, but len(spatial_shape) = 4 != 2.",
    ),
    (lambda: jc.max_unpool(Y, AT, 2, -1), ValueError, "max_unpool: spatial_shape must be at least 0, but -1 < 0."),
    (lambda: jc.lp_pool(X, 2, None), TypeError, "lp_pool: p must be a number, but is None."),
    (lambda: jc.lp_pool(X, 2, True), TypeError, "lp_pool: p must be a number, but is True."),
    *(
        (
            lambda p=p: jc.lp_pool(X, 2, p),
            ValueError,
            f"lp_pool: p must satisfy 1 <= p < inf, but is {p}. For p = inf, take max_pool(abs(x)).",
        )
        for p in (0.5, np.inf, np.nan)
    ),
    (
        lambda: jc.global_avg_pool(X[:, :, :0]),
        ValueError,
        "global_avg_pool: every spatial size must be at least 1, but x.shape = (2, 6, 0, 4).",
    ),
    # borders
    (
        lambda: jc.pad(X, 1, mode="constant"),
        ValueError,
        "pad: mode must be one of zero, circular, reflect, edge, but is 'constant'.",
    ),
    (lambda: jc.pad(X, "SAME"), ValueError, f"pad: padding must be {PAIRS}, but is 'SAME'."),
    (
        lambda: jc.pad(X, ((0, 7), 0), mode="circular"),
        ValueError,
        'pad: mode "circular" can add at most 6 elements to spatial axis 0 of size 6, '
        "but padding[0] = (0, 7). Pad twice, or take another mode.",
    ),
    (
        lambda: jc.pad(X, (0, 6), mode="reflect"),
        ValueError,
        'pad: mode "reflect" can add at most 5 elements to spatial axis 1 of size 6, '
        "but padding[1] = (6, 6). Pad twice, or take another mode.",
    ),
    (
        lambda: jc.pad(X[:, :0], 1, mode="edge"),
        ValueError,
        'pad: mode "edge" can add at most 0 elements to spatial axis 0 of size 0, '
        "but padding[0] = (1, 1). Pad twice, or take another mode.",
    ),
    (
        lambda: jc.pad(X, -4),
        ValueError,
        "pad: padding must not crop more than there is, but spatial axis 0 has 6 elements and 6 + -4 + -4 < 0.",
    ),
    # activations
    (lambda: jc.leaky_relu(X, None), TypeError, "leaky_relu: negative_slope must be a number, but is None."),
    (lambda: jc.elu(X, "1"), TypeError, "elu: alpha must be a number, but is '1'."),
    # normalisation
    (lambda: batch_norm(eps="a"), TypeError, "batch_norm: eps must be a number, but is 'a'."),
    (lambda: jc.layer_norm(X, eps=-1.0), ValueError, "layer_norm: eps must be at least 0, but -1.0 < 0."),
    (lambda: batch_norm(momentum=2), ValueError, "batch_norm: momentum must satisfy 0 <= momentum <= 1, but is 2."),
    (
        lambda: batch_norm(X[0, 0, 0]),
        ValueError,
        "batch_norm: x must have a batch, a channel (NC), "
        "but x.shape = (4,) has 1 < 2 axes. A single example needs a batch axis: x[None].",
    ),
    *(
        (
            lambda state=state: batch_norm(state=state),
            ValueError,
            f'batch_norm: state must be {{"mean": (c,), "var": (c,)}}, but has {has}.',
        )
        for state, has in ((None, "None"), ({}, "[]"), ({"mean": C, "variance": C}, "['mean', 'variance']"))
    ),
    (
        lambda: batch_norm(state={"mean": C, "var": C[:1]}),
        ValueError,
        'batch_norm: state["var"] must hold one number per channel, but its shape (1,) != (4,).',
    ),
    (
        lambda: batch_norm(state={"mean": C.astype(int), "var": C}),
        TypeError,
        f'batch_norm: state["mean"].dtype must be {FLOATING}, but is int64. '
        'Convert it: state["mean"].astype(jnp.float32).',
    ),
    (
        lambda: batch_norm(scale=C[:2]),
        ValueError,
        "batch_norm: scale must hold one number per channel, but scale.shape = (2,) != (4,).",
    ),
    (
        lambda: jc.instance_norm(X, C, C.astype(np.float64)),
        TypeError,
        "instance_norm: bias.dtype must be x.dtype or float32, but float64 does not go with float32. "
        "Convert it: bias.astype(x.dtype).",
    ),
    (
        lambda: batch_norm(X[:0]),
        ValueError,
        "batch_norm: there is nothing to normalise over: axes (0, 1, 2) of x.shape = (0, 6, 6, 4).",
    ),
    (
        lambda: jc.layer_norm(X, axis=4),
        ValueError,
        "layer_norm: axis must name an axis of x, but 4 is not in [-4, 4).",
    ),
    (lambda: jc.rms_norm(X, axis=(1, 2)), TypeError, "rms_norm: axis must be an int, but is (1, 2)."),
    (
        lambda: jc.layer_norm(X[..., :0]),
        ValueError,
        "layer_norm: there is nothing to normalise over: axes (3,) of x.shape = (2, 6, 6, 0).",
    ),
    (
        lambda: jc.group_norm(X, 3),
        ValueError,
        "group_norm: groups must divide the channels, but 4 % 3 = 1 (x is NHWC).",
    ),
    (lambda: jc.group_norm(X, 0), ValueError, "group_norm: groups must be at least 1, but 0 < 1."),
    (lambda: jc.group_norm(X, None), TypeError, "group_norm: groups must be an int, but is None."),
    # dense and dropout
    (
        lambda: jc.dense(X, C),
        ValueError,
        "dense: w must be a (c, o) matrix, but w.shape = (4,) has 1 != 2 axes.",
    ),
    (
        lambda: jc.dense(X, np.ones((144, 2), np.float32)),
        ValueError,
        "dense: x.shape[-1] must equal w.shape[0], but x.shape = (2, 6, 6, 4) and w.shape = (144, 2). "
        "Did you forget to flatten? x.reshape(x.shape[0], -1).",
    ),
    (
        lambda: jc.dense(X, W.astype(np.float64)),
        TypeError,
        "dense: w.dtype must equal x.dtype, but float64 != float32. Convert one: w.astype(x.dtype).",
    ),
    (
        lambda: jc.dense(X, W, C),
        ValueError,
        "dense: b must hold one number per output channel, but b.shape = (4,) != (2,). "
        "A bias per position is an addition: y + b.",
    ),
    (
        lambda: jc.dense(X, W, np.ones(2)),
        TypeError,
        "dense: b.dtype must equal x.dtype, but float64 != float32. Convert one: b.astype(x.dtype).",
    ),
    *(
        (
            lambda rate=rate: jc.dropout(X, rate, KEY),
            ValueError,
            f"dropout: rate must satisfy 0 <= rate < 1, but is {rate}.",
        )
        for rate in (1, -0.1, np.nan)
    ),
    (lambda: jc.dropout(X, None, KEY), TypeError, "dropout: rate must be a number, but is None."),
    (
        lambda: jc.dropout(X, 0.5, None),
        TypeError,
        "dropout: key must be a jax.random key, but is None. Make one: jax.random.key(seed).",
    ),
    # losses
    (
        lambda: entropy([1, 5]),
        ValueError,
        "softmax_cross_entropy: labels must satisfy 0 <= label < logits.shape[-1] = 5, but they range from 1 to 5. "
        "Are they counted from 1?",
    ),
    (
        lambda: entropy(np.ones((2, 5), int)),
        ValueError,
        "softmax_cross_entropy: integer labels must have shape logits.shape[:-1], but (2, 5) != (2,). "
        "One-hot labels must be floating: labels.astype(jnp.float32).",
    ),
    (
        lambda: entropy(np.ones(2, np.float32)),
        ValueError,
        "softmax_cross_entropy: one-hot labels must have logits' shape, but (2,) != (2, 5). "
        "Class numbers must be integers: labels.astype(jnp.int32).",
    ),
    (
        lambda: entropy(np.ones(2, bool)),
        TypeError,
        "softmax_cross_entropy: labels.dtype must be an integer or floating, but is bool.",
    ),
    (
        lambda: entropy([0, 1], Z.astype(int)),
        TypeError,
        f"softmax_cross_entropy: logits.dtype must be {FLOATING}, but is int64. "
        "Convert it: logits.astype(jnp.float32).",
    ),
    (
        lambda: entropy([0, 1], Z[:, :0]),
        ValueError,
        "softmax_cross_entropy: logits need a last axis of classes, but logits.shape = (2, 0).",
    ),
    (
        lambda: entropy([0, 1], label_smoothing=1),
        ValueError,
        "softmax_cross_entropy: label_smoothing must satisfy 0 <= label_smoothing < 1, but is 1.",
    ),
    (
        lambda: entropy([0, 1], label_smoothing=None),
        TypeError,
        "softmax_cross_entropy: label_smoothing must be a number, but is None.",
    ),
    (
        lambda: entropy([0, 1], rules="p - y"),
        ValueError,
        "softmax_cross_entropy: rules must be one of textbook, rotated, fast, autodiff "
        "or a ConvRules(input_grad, kernel_grad), but is 'p - y'.",
    ),
    (
        lambda: entropy([0, 1], where=[1, 0]),
        TypeError,
        "softmax_cross_entropy: where.dtype must be bool, but is int64. Compare: where != 0.",
    ),
    (
        lambda: entropy([0, 1], where=np.ones(5, bool)),
        ValueError,
        "softmax_cross_entropy: where must have the shape of the losses or the logits, or 1 along an axis, "
        f"but (5,) does not broadcast to (2,) or (2, 5). {VARY}",
    ),
    (
        lambda: entropy([0, 1], where=True),
        ValueError,
        "softmax_cross_entropy: where must have the shape of the losses or the logits, or 1 along an axis, "
        f"but () does not broadcast to (2,) or (2, 5). {VARY}",
    ),
    (
        lambda: entropy([0, 7], where=np.array([True, True])),
        ValueError,
        "softmax_cross_entropy: labels must satisfy 0 <= label < logits.shape[-1] = 5, but they range from 0 to 7. "
        "Are they counted from 1?",
    ),
    (
        lambda: jc.mean_squared_error(Z, Z, where=np.ones(2, bool)),
        ValueError,
        "mean_squared_error: where must have the shape of the predictions, or 1 along an axis, "
        f"but (2,) does not broadcast to (2, 5). {VARY}",
    ),
    (
        lambda: jc.mean_squared_error(Z, Z, where=np.ones((2, 3), bool)),
        ValueError,
        "mean_squared_error: where must have the shape of the predictions, or 1 along an axis, "
        f"but (2, 3) does not broadcast to (2, 5). {VARY}",
    ),
    (
        lambda: jc.mean_squared_error(Z, Z[:1]),
        ValueError,
        "mean_squared_error: targets.shape must equal predictions.shape, but (1, 5) != (2, 5). "
        "Broadcasting here is almost always a bug; reshape one of them.",
    ),
    (
        lambda: jc.mean_squared_error(Z, Z.astype(np.float64)),
        TypeError,
        "mean_squared_error: targets.dtype must equal predictions.dtype, but float64 != float32.",
    ),
    (
        lambda: jc.mean_squared_error(Z, Z.astype(int)),
        TypeError,
        f"mean_squared_error: targets.dtype must be {FLOATING}, but is int64. Convert it: targets.astype(jnp.float32).",
    ),
    (
        lambda: jc.mean_squared_error(Z[:0], Z[:0]),
        ValueError,
        "mean_squared_error: predictions must have at least one element, but have shape (0, 5).",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES, ids=[message[:60] for *_, message in MISTAKES])
def test_a_mistake_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    check(call, error, message)


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
    with pytest.raises(
        (TypeError, ValueError), match=f"^{re.escape(start)}\\b" if start[-1] != "]" else re.escape(start)
    ):
        call()


@pytest.mark.parametrize("name", ["p", "negative_slope", "alpha", "eps", "momentum", "rate", "label_smoothing"])
def test_a_numpy_scalar_is_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(AssertionError, match="until the computation"):  # it gets as far as the computation
        calls[name]()
