"""A convolution explained: the recipe of each of its three maps, and the products that make up every entry.

What stands where:

    asking         `explain`: from shapes or a function to an explanation
    finding        which convolution a function is; layer: what its axes are; fitting: how its window moves
    explained      `Explanation`, what is known of a convolution
    equations      an entry and its products
    reading        which products an entry is the sum of, found by asking the rule
    meetings       which products it should be the sum of
    recipes        what is dilated, padded, rotated and moved, in numbers
    verification   recipe, equations and the gradient that really runs, against each other
    writing        text and LaTeX            drawing   pictures, of grids            page   an interactive page
"""

from jaxconv.explanation.asking import explain
from jaxconv.explanation.equations import Equation
from jaxconv.explanation.explained import Explanation
from jaxconv.explanation.recipes import Recipe

__all__ = ["Equation", "Explanation", "Recipe", "explain"]
