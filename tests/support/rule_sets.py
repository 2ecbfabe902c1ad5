"""The rule sets that every test of all of them goes through."""

from jaxconv.rules import RULE_SETS

RULES = tuple(RULE_SETS)  # the written ones
ALL_RULES = (*RULES, "autodiff")
