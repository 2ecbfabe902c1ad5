"""The derived tolerance of a sum of products: |err| ≤ K·eps·S at every entry, nothing tuned."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


def error_in_bounds(
    actual: Any, exact: np.ndarray, summands: Any, magnitude: Any, eps: float | None = None
) -> np.ndarray:
    """The error of every entry in units of its bound; 0 where it is exact, ∞ where it is not and has to be.

    Let an entry be the sum of K products with absolute values summing to S. A product passes through at most K
    roundings, its own and K − 1 additions, in whatever order they are done; each is a factor 1 + δ with |δ| ≤ eps/2.
    To first order the sum therefore errs by at most K·eps/2·S. `exact` was summed as well, if only by NumPy in float64
    or by another rule in the same dtype, and has the same right to err: together K·eps·S. Where nothing is summed,
    K = 0 and the entry has to be 0.

    `eps` is that of the dtype in which sums are carried: by default float32 for the 16-bit floats, else `actual`'s own.
    The product of two 16-bit floats is exact in float32 (11 + 11 bits ≤ 24), so the bound holds of the float32 sum.
    That sum is then rounded once more, which moves a value v by half a ulp: at most eps16/2·|v|, or half the least
    subnormal, with |v| ≤ |exact| + K·eps·S.
    """
    info = jnp.finfo(actual.dtype)
    own = float(info.eps)
    carried = eps if eps is not None else min(own, float(jnp.finfo(jnp.float32).eps))
    actual = np.asarray(actual).astype(np.float64)
    assert actual.shape == exact.shape, f"shape {actual.shape} != {exact.shape}"
    bound = np.broadcast_to(summands * carried * magnitude, exact.shape)
    if own > carried:
        bound = bound + np.maximum(own / 2 * (np.abs(exact) + bound), float(info.smallest_subnormal) / 2)
    error = np.abs(actual - exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0, np.where(np.isnan(error), np.inf, error / bound))


def assert_within_bound(
    actual: Any, exact: np.ndarray, summands: Any, magnitude: Any, eps: float | None = None, what: str = "result"
) -> None:
    """Every entry of `actual` errs by at most its bound (see `error_in_bounds`); a failure names the worst one."""
    errors = error_in_bounds(actual, np.asarray(exact), summands, magnitude, eps)
    if errors.size and not errors.max() <= 1:
        worst = tuple(map(int, np.unravel_index(errors.argmax(), errors.shape)))
        raise AssertionError(
            f"{what}[{', '.join(map(str, worst))}] is {np.asarray(actual)[worst]}, but {exact[worst]} within K·eps·S, "
            f"K = {np.broadcast_to(summands, errors.shape)[worst]:g}, "
            f"S = {np.broadcast_to(magnitude, errors.shape)[worst]:g}: "
            f"the error is {errors[worst]:.3g} bounds; "
            f"{np.count_nonzero(~(errors <= 1))} of {errors.size} entries are wrong."
        )
