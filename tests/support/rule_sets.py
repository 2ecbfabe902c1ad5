"""The rule sets that every test of all of them goes through."""

from jaxconv.rules import NAMED

RULES = tuple(NAMED)  # the written ones
ALL_RULES = (*RULES, "autodiff")
