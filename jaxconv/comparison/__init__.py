"""Which gradient is faster? The race is in `race`, what it found in `report`, the picture of it in `drawing`."""

from jaxconv.comparison.race import compare
from jaxconv.comparison.report import OPERATIONS, Agreement, Comparison, Contestant

__all__ = ["OPERATIONS", "Agreement", "Comparison", "Contestant", "compare"]
