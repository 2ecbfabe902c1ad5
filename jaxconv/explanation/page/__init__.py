"""The page of a convolution: one HTML file that draws its forward and backward pass, number by number.

`assembling` puts it together from page.html, page.css and the scripts beside it; `told` finds what a rule does wrong.
"""

from jaxconv.explanation.page.assembling import html

__all__ = ["html"]
