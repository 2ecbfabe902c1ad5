"""Is this gradient right? `check` asks in many ways, and says where it is not and what may be wrong.

What stands where:

    checking      `check`: one function under every kind of evidence
    problem       a function and arguments, made ready to be differentiated
    yardstick     the truth in float64, and how far rounding may take a right gradient from it
    rounding      automatic differentiation with noise in place of each rounding
    trial         what is compiled once, and how two gradients are compared
    evidence      the kinds of evidence        differences   slopes from values alone, by slope
                                               exercise      ties, and what was not tried
    suspects      which mistake explains what is wrong: made in a copy of the program by laboratory, said by hints
    report        the verdict, printed; where: which entries are wrong, in words
"""

from jaxconv.gradcheck.checking import KINDS, check
from jaxconv.gradcheck.report import Argument, Evidence, Finding, Report

__all__ = ["KINDS", "Argument", "Evidence", "Finding", "Report", "check"]
