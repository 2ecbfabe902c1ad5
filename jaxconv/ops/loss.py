"""Losses: p − y for softmax with cross-entropy, 2 (p − t) / m for the mean square."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxconv import forward
from jaxconv.ops.arguments import Rules, as_array, check_rules, floating, known, number
from jaxconv.ops.binding import Derivative, apply
from jaxconv.windows import widened


def _entropy_forward(_: None, logits: jax.Array, targets: jax.Array) -> Any:
    loss, masked = forward.softmax_cross_entropy(logits, targets), jnp.isneginf(logits)
    peak = jnp.where(jnp.isneginf(top := logits.max(-1, keepdims=True)), 0, top)
    unnormalised = jnp.exp(logits - peak)
    total = unnormalised.sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)  # every class is masked: there is nothing to normalise
    log_p = jnp.where(masked, 0, logits - peak - jnp.log(total))
    return loss, (unnormalised / total, log_p, jnp.where(masked, 0, targets))


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


_ENTROPY = Derivative(
    primal=lambda _, logits, targets: forward.softmax_cross_entropy(logits, targets),
    forward=_entropy_forward,
    tangent=_entropy_tangent,
    cotangent=_entropy_cotangent,
)


def _check_where(function: str, where: Any, like: str, *shapes: tuple[int, ...]) -> jax.Array:
    """`where` as a mask that broadcasts to the one of `shapes` with as many axes."""
    where = as_array(function, "where", where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{function}: where.dtype must be bool, but is {where.dtype}. Compare: where != 0.")
    for shape in shapes:
        if where.ndim == len(shape) and all(n in (1, m) for n, m in zip(where.shape, shape, strict=True)):
            return where
    raise ValueError(
        f"{function}: where must have the shape of {like}, or 1 along an axis, "
        f"but {where.shape} does not broadcast to {' or '.join(map(str, shapes))}. "
        "Give it an axis of size 1 where it does not vary: where[:, None] or where[None]."
    )


def _check_labels(labels: jax.Array, classes: int, kept: jax.Array | None) -> None:
    """Known labels are checked at once; traced ones cannot be, and give NaN where they are wrong."""
    values, mask = known(labels), True if kept is None else known(kept)
    if values is None or mask is None:
        return
    values = values[np.broadcast_to(mask, values.shape)]
    if values.size and (values.min() < 0 or values.max() >= classes):
        hint = "Are they counted from 1?" if values.min() >= 0 else "To leave examples out, pass where=labels >= 0."
        raise ValueError(
            f"softmax_cross_entropy: labels must satisfy 0 <= label < logits.shape[-1] = {classes}, "
            f"but they range from {values.min()} to {values.max()}. {hint}"
        )


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    rules: Rules = "fast",
) -> jax.Array:
    """−Σ_c t_c log softmax(z)_c for every example; the gradient in z is softmax(z) − t.

    A class whose logit is −∞ is masked: it has probability 0, gradient 0 and takes no smoothing, so the loss is
    finite as long as the label itself is not masked; a masked label costs ∞, and passes no gradient. An example
    that is nothing but padding, every class masked and the target empty, has loss 0 and gradient 0.

    Args:
      logits: (..., classes), floating.
      labels: integers of shape (...), or probabilities ("one-hot") of logits' shape. A wrong integer raises; inside
        `jit`, where values are unknown, it makes its example's loss NaN.
      label_smoothing: ε in t ← (1 − ε) t + ε / m, m the number of classes that are not masked.
      where: booleans, true for what takes part; None is true everywhere. Of shape (...), an axis of which may be 1,
        it leaves out examples: their loss and gradients are exactly 0 whatever their logits (NaN too) and labels
        are. Of shape (..., classes) it leaves out classes, as logits of −∞ do.
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

      The `ignore_index` of other frameworks, here −100, and their mean over the examples that count:

      >>> labels = jnp.array([2, -100])
      >>> counts = labels != -100
      >>> losses = jaxconv.softmax_cross_entropy(jnp.zeros((2, 4)), labels, where=counts)
      >>> losses, losses.sum() / jnp.maximum(counts.sum(), 1)
      (Array([1.3862944, 0.       ], dtype=float32), Array(1.3862944, dtype=float32))

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
    z, kept = widened(logits), None
    if where is not None:
        where = _check_where(function, where, "the losses or the logits", logits.shape[:-1], logits.shape)
        where = where if where.ndim == logits.ndim else where[..., None]
        z, kept = jnp.where(where, z, -jnp.inf), where.any(-1)
    valid = None
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # 8 bits cannot meet 300 classes
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"{function}: integer labels must have shape logits.shape[:-1], "
                f"but {labels.shape} != {logits.shape[:-1]}. "
                "One-hot labels must be floating: labels.astype(jnp.float32)."
            )
        _check_labels(labels, classes, kept)
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
    if kept is not None:
        targets = jnp.where(kept[..., None], targets, 0)
        valid = None if valid is None else valid | ~kept
    if label_smoothing:
        present = (z > -jnp.inf).astype(z.dtype)
        share = present / jnp.maximum(present.sum(-1, keepdims=True), 1)
        targets = (1 - label_smoothing) * targets + label_smoothing * share
    loss = apply(rules, _ENTROPY, None, z, targets)
    return loss if valid is None else jnp.where(valid, loss, jnp.nan)


def _square_forward(_: None, predictions: jax.Array, targets: jax.Array, count: jax.Array) -> Any:
    return forward.mean_squared_error(predictions, targets, count), (predictions - targets, count)


def _square_tangent(_: None, saved: Any, dp: Any, dt: Any, __: None) -> jax.Array:
    error, count = saved
    difference = -dt if dp is None else dp if dt is None else dp - dt
    return (2 / count) * (error * difference).sum()


def _square_cotangent(_: None, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    error, count = saved
    dp = (2 / count) * g * error
    return dp, -dp, None


_SQUARE = Derivative(
    primal=lambda _, predictions, targets, count: forward.mean_squared_error(predictions, targets, count),
    forward=_square_forward,
    tangent=_square_tangent,
    cotangent=_square_cotangent,
)


def mean_squared_error(
    predictions: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None, rules: Rules = "fast"
) -> jax.Array:
    """(1/m) Σ (p − t)² over all m elements; the gradient in p is 2 (p − t) / m.

    Args:
      predictions: any shape with at least one element, floating.
      targets: of the same shape and dtype.
      where: booleans of that shape, or 1 along any axis: true for the elements that take part, and that m counts;
        None is true everywhere. What is left out has gradient exactly 0, whatever it is (NaN too), and if
        everything is, the loss is 0.
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
      >>> jaxconv.mean_squared_error(p, jnp.array([0.0, jnp.nan]), where=jnp.array([True, False]))
      Array(1., dtype=float32)

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
    p, t = widened(predictions), widened(targets)
    count: Any = p.size
    if where is not None:
        where = _check_where(function, where, "the predictions", p.shape)
        count = jnp.maximum(jnp.broadcast_to(where, p.shape).sum(), 1)
        p, t = jnp.where(where, p, 0), jnp.where(where, t, 0)
    return apply(rules, _SQUARE, None, p, t, jnp.asarray(count, p.dtype))
