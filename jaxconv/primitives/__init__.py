"""The maps as JAX primitives: closed under differentiation and under `vmap`.

This package alone speaks to `jax.interpreters`.

    define      one definition for all: eager call, shape rule, lowering
    mesh        operands on several devices: marked alike, bound under explicit axes
    trio        the three maps of a convolution: what they compute, and their derivatives
    batching    `vmap` of the three
    linear      a linear map and its transpose
    several     the same for a map of several arrays
    native      lowering to an engine on a CPU
    kernel      what an engine computes where XLA is slow, without a derivative of its own
    reverse     the mark of what has reverse mode only

**The trio.** `conv(x, w)`, `input_grad(g, w)` and `kernel_grad(x, g)` are the three partial gradients of one
trilinear form, so each is bilinear, its JVP is itself applied to tangents, and its transposes are the other
two: the table is `jaxconv.rules.Map`. Batching maps them onto themselves as well: a batch on the data folds into N, a
batch on the kernel into its channels, a batch on both multiplies the groups. Every order of derivative and every
nesting of `vmap` is then again a program of these three, and XLA never sees a gradient that was not written here.

The rule set that computes them is a static parameter: a rule of the user's is called with one ordinary convolution,
never with a batch of them that would fold into one. A batch on both operands is the exception: groups are what it
would become, and since a rule may know of none, it is mapped over by `vmap` as it stands.

**Linear pairs.** The derivative of a max pool, an average pool, a border or a bias is a linear map; a pair
holds the map and its hand-written transpose, each the other's gradient. Integer residuals (the taps that a
max pool remembers) ride along undifferentiated.

**Kernels.** What an engine computes of a pool or of a norm: several results; plain JAX on other platforms, and when it
is differentiated.

A primitive is called through a cached `jit` when it is called eagerly, so dispatch costs what `lax` costs.
"""

from jaxconv.primitives import batching  # noqa: F401  registers what it defines
from jaxconv.primitives.define import PLAIN, plainly
from jaxconv.primitives.kernel import kernel
from jaxconv.primitives.linear import LinearPair, linear_pair
from jaxconv.primitives.mesh import alike, varying
from jaxconv.primitives.reverse import reverse_only
from jaxconv.primitives.several import SeveralPair, several_pair
from jaxconv.primitives.trio import PRIMITIVES, bilinear

__all__ = [
    "PLAIN",
    "PRIMITIVES",
    "LinearPair",
    "SeveralPair",
    "alike",
    "bilinear",
    "kernel",
    "linear_pair",
    "plainly",
    "reverse_only",
    "several_pair",
    "varying",
]
