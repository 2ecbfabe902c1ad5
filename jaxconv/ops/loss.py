"""Losses: p − y for softmax with cross-entropy, 2 (p − t) / m for the mean square."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.forward import wide
from jaxconv.ops.binding import Rule, apply
from jaxconv.ops.wiring import as_array, check_rules, floating, number


def _entropy_forward(_: None, logits: jax.Array, targets: jax.Array) -> Any:
    loss = forward.softmax_cross_entropy(logits, targets)
    peak = jnp.where(jnp.isneginf(top := logits.max(-1, keepdims=True)), 0, top)
    unnormalised = jnp.exp(logits - peak)
    total = unnormalised.sum(-1, keepdims=True)
    log_p = jnp.where(jnp.isneginf(logits), 0, logits - peak - jnp.log(total))
    return loss, (unnormalised / total, log_p, targets)


def _entropy_tangent(_: None, saved: Any, dlogits: Any, dtargets: Any) -> jax.Array:
    dz, dt = _entropy_cotangent(None, saved, None)
    parts = [(d * t).sum(-1) for d, t in ((dz, dlogits), (dt, dtargets)) if t is not None]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _entropy_cotangent(_: None, saved: Any, g: Any) -> tuple[jax.Array, jax.Array]:
    """dz = g · (p Σt − t), and dt = −g · log p; a masked class has neither."""
    p, log_p, targets = saved
    g = jnp.ones(p.shape[:-1], p.dtype) if g is None else g
    g = jnp.expand_dims(g, -1)
    return g * (p * targets.sum(-1, keepdims=True) - targets), -g * log_p


_ENTROPY = Rule(
    primal=lambda _, logits, targets: forward.softmax_cross_entropy(logits, targets),
    forward=_entropy_forward,
    tangent=_entropy_tangent,
    cotangent=_entropy_cotangent,
)


def _check_labels(labels: Any, classes: int) -> None:
    """Concrete labels are checked at once; traced ones cannot be, and give NaN where they are wrong."""
    if isinstance(labels, jax.core.Tracer) or labels.size == 0:
        return
    low, high = int(np.min(np.asarray(labels))), int(np.max(np.asarray(labels)))
    if low < 0 or high >= classes:
        raise ValueError(
            f"softmax_cross_entropy: labels must satisfy 0 <= label < logits.shape[-1] = {classes}, "
            f"but they range from {low} to {high}. Are they counted from 1?"
        )


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: float = 0.0, rules: str = "fast"
) -> jax.Array:
    """−Σ_c t_c log softmax(z)_c for every example; the gradient in z is softmax(z) − t.

    A class whose logit is −∞ is masked: it has probability 0, gradient 0 and takes no smoothing, so the loss is
    finite as long as the label itself is not masked.

    Args:
      logits: (..., classes), floating.
      labels: integers of shape (...), or probabilities ("one-hot") of logits' shape. A wrong integer raises; inside
        `jit`, where values are unknown, it makes its example's loss NaN.
      label_smoothing: ε in t ← (1 − ε) t + ε / m, m the number of classes that are not masked.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      One loss per example, shape (...), in nats; float32 for 16-bit logits, else the logits' dtype. Take its mean.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> z = jnp.zeros((1, 4))
      >>> jaxconv.softmax_cross_entropy(z, jnp.array([2]))
      Array([1.3862944], dtype=float32)
      >>> jax.grad(lambda z: jaxconv.softmax_cross_entropy(z, jnp.array([2])).sum())(z)
      Array([[ 0.25,  0.25, -0.75,  0.25]], dtype=float32)

    Source: d/dz (log Σ exp z − Σ t z) = p − t.
    """
    function = "softmax_cross_entropy"
    logits, labels = floating(function, "logits", logits), as_array(function, "labels", labels)
    check_rules(function, rules)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{function}: logits need a last axis of classes, but logits.shape = {logits.shape}.")
    label_smoothing = number(function, "label_smoothing", label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"{function}: label_smoothing must satisfy 0 <= label_smoothing < 1, but is {label_smoothing:g}."
        )
    classes = logits.shape[-1]
    z = wide(logits)
    valid = None
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # 8 bits cannot meet 300 classes
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"{function}: integer labels must have shape logits.shape[:-1], "
                f"but {labels.shape} != {logits.shape[:-1]}. "
                "One-hot labels must be floating: labels.astype(jnp.float32)."
            )
        _check_labels(labels, classes)
        valid = (labels >= 0) & (labels < classes)
        targets = jax.nn.one_hot(labels, classes, dtype=z.dtype)
    elif jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != logits.shape:
            raise ValueError(
                f"{function}: one-hot labels must have logits' shape, but {labels.shape} != {logits.shape}. "
                "Class numbers must be integers: labels.astype(jnp.int32)."
            )
        targets = labels.astype(z.dtype)
    else:
        raise TypeError(f"{function}: labels.dtype must be an integer or floating, but is {labels.dtype}.")
    if label_smoothing:
        present = (z > -jnp.inf).astype(z.dtype)
        share = present / jnp.maximum(present.sum(-1, keepdims=True), 1)
        targets = (1 - label_smoothing) * targets + label_smoothing * share
    loss = apply(rules, _ENTROPY, None, z, targets)
    return loss if valid is None else jnp.where(valid, loss, jnp.nan)


def _square_forward(_: None, predictions: jax.Array, targets: jax.Array) -> Any:
    return forward.mean_squared_error(predictions, targets), predictions - targets


def _square_tangent(_: None, error: jax.Array, dp: Any, dt: Any) -> jax.Array:
    difference = -dt if dp is None else dp if dt is None else dp - dt
    return (2 / error.size) * (error * difference).sum()


def _square_cotangent(_: None, error: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    dp = (2 / error.size) * g * error
    return dp, -dp


_SQUARE = Rule(
    primal=lambda _, predictions, targets: forward.mean_squared_error(predictions, targets),
    forward=_square_forward,
    tangent=_square_tangent,
    cotangent=_square_cotangent,
)


def mean_squared_error(predictions: ArrayLike, targets: ArrayLike, *, rules: str = "fast") -> jax.Array:
    """(1/m) Σ (p − t)² over all m elements; the gradient in p is 2 (p − t) / m.

    Args:
      predictions: any shape with at least one element, floating.
      targets: of the same shape and dtype.
      rules: "fast", "textbook", "rotated" or "autodiff".

    Returns:
      A scalar; float32 for 16-bit operands, else their dtype.

    Raises:
      ValueError, TypeError: naming the argument, the equation it violates with its numbers, and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> p, t = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
      >>> jax.value_and_grad(jaxconv.mean_squared_error)(p, t)
      (Array(2.5, dtype=float32), Array([ 1., -2.], dtype=float32))

    Source: the chain rule.
    """
    function = "mean_squared_error"
    predictions, targets = floating(function, "predictions", predictions), floating(function, "targets", targets)
    check_rules(function, rules)
    if predictions.dtype != targets.dtype:
        raise TypeError(
            f"{function}: targets.dtype must equal predictions.dtype, but {targets.dtype} != {predictions.dtype}."
        )
    if predictions.shape != targets.shape:
        raise ValueError(
            f"{function}: targets.shape must equal predictions.shape, but {targets.shape} != {predictions.shape}. "
            "Broadcasting here is almost always a bug; reshape one of them."
        )
    if predictions.size == 0:
        raise ValueError(f"{function}: predictions must have at least one element, but have shape {predictions.shape}.")
    return apply(rules, _SQUARE, None, wide(predictions), wide(targets))
