"""A function as a program: traced, and read equation by equation.

`program` traces a function and has the one walk through its equations. `automatic` takes every hand-written rule out,
and `manual` puts those of this library in, `replacements` being its table. `precision` carries floats in another dtype,
`per_example` takes the lengths of gradients without the gradients. `mixed_precision` reads nothing: it differentiates a
scaled loss.
"""

from jaxconv.transforms.automatic import automatic
from jaxconv.transforms.manual import manual
from jaxconv.transforms.mixed_precision import MixedPrecision
from jaxconv.transforms.per_example import per_example_grad_norms

__all__ = ["MixedPrecision", "automatic", "manual", "per_example_grad_norms"]
