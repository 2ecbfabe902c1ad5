"""How many steps one call of a compiled loop takes."""

from __future__ import annotations

SECONDS = 1.0  # a call: what Ctrl-C may have to wait, and nothing beside what starting a call costs


class Pace:
    """Steps a call: as many as were asked for, or as many as take about a second.

    The first call compiles, and the second one is timed, so both have one step. How many it is changes no result.
    """

    def __init__(self, asked: int | None) -> None:
        self.asked, self.calls, self.steps = asked, 0, 1

    def __call__(self, left: int) -> int:
        """How many of the `left` steps to take next."""
        return min(self.steps if self.asked is None else self.asked, left)

    def took(self, count: int, seconds: float) -> None:
        self.calls += 1
        if self.calls > 1:
            self.steps = max(1, int(count * SECONDS / seconds))
