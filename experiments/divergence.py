"""When a training is lost, and what to change."""

from __future__ import annotations

import math

# An untrained network errs by ln(classes) or so. A healthy run never comes back from a thousand times that.
GROWTH = 1e3


class DivergedError(ArithmeticError):
    """The loss is no number any more, or absurdly large. The message says where, from what to what, and the remedy."""


class Watch:
    """Follows the loss from step to step, and raises `DivergedError` when it leaves what training can mend.

    Args:
      remedies: what the user may change, as words that follow "Try".
      first, last: the first loss and the last of a training that goes on; NaN for one that begins.
    """

    def __init__(self, remedies: str, first: float = math.nan, last: float = math.nan) -> None:
        self.remedies = remedies
        self.first, self.last = first, last

    def __call__(self, loss: float, where: str) -> None:
        """`loss` is that of the weights at `where`: "step 12 of 440"."""
        if math.isfinite(loss) and not loss > GROWTH * self.first:
            self.first = loss if math.isnan(self.first) else self.first
            self.last = loss
        elif math.isnan(self.first):
            raise DivergedError(
                f"the loss is {loss:.4g} at {where}, before any weight has changed. "
                "The training is not to blame, but the images, or numbers too narrow for them: try a wider --dtype."
            )
        else:
            raise DivergedError(
                f"the training diverged: the loss is {loss:.4g} at {where}; it was {self.last:.4g} before, and "
                f"{self.first:.4g} at the first step. Try {self.remedies}."
            )

    def scale(self, scale: float | None, where: str) -> None:
        """`scale` is what a loss in float16 is multiplied by; None in other dtypes."""
        if scale is not None and scale < 1:
            raise DivergedError(
                f"the training diverged: at {where} the gradients overflow float16 even when the loss is multiplied by "
                f"{scale:g}. Try {self.remedies}."
            )
