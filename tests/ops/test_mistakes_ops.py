"""Each op's own mistakes, by their whole message: function, argument, the violated equation and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jaxconv as jc
from tests.support.operands_ops import (
    AT,
    FLOATING,
    KEY,
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
    assert refusal(call, error) == message
