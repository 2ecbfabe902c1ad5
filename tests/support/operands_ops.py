"""Operands for calls of all ops but the convolutions that are to be refused before anything is computed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import jaxconv as jc

X = np.ones((2, 6, 6, 4), np.float32)
C = np.ones(4, np.float32)  # one number per channel
W = np.ones((4, 2), np.float32)
Z = np.ones((2, 5), np.float32)  # logits
Y, AT = np.ones((2, 3, 3, 4), np.float32), np.zeros((2, 3, 3, 4), np.int32)
STATE = {"mean": C, "var": C}
KEY = jax.random.key(0)
FLOATING = "floating (float32, bfloat16, float16 or, under x64, float64)"

COMPUTED = "the mistake went unnoticed until the computation"


def batch_norm(x: Any = X, scale: Any = C, bias: Any = C, state: Any = STATE, **options: Any) -> Any:
    return jc.batch_norm(x, scale, bias, state, **{"train": True, **options})


def entropy(labels: Any, logits: Any = Z, **options: Any) -> Any:
    return jc.softmax_cross_entropy(logits, labels, **options)
