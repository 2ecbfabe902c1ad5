"""The maps that production runs: the same names and signatures, the formulation chosen for speed.

`choice` decides, from a platform, a dtype and integers; the modules beside it hold the formulations:

    products   windows that do not overlap: reshape and one matrix product
    shifts     depthwise: sums of shifted copies
    blocks     grouped: neighbouring groups merged into dense blocks
    phases     dilated inputs (strided input gradients, transposed convolutions): one convolution per residue class
    folds      input gradients of few channels: one product, then overlap-add
    patches    dense kernel gradients: matrix products over the patches of a few examples at a time

Formulations work channels-last and on unflipped kernels; other layouts are transposed here, as XLA's CPU backend does
for its own convolutions. Where nothing beats `lax`, `lax` it is: the formulas of `rotated`.

Each module says what was measured: how many times longer `lax` takes, on 2 cores of an Intel Xeon with AVX-512, jax
0.10.2, float32, 2026-11-22. The first figures are those of `python -m experiments.benchmark`, whose results are in
`experiments/results/benchmark.json`; those of what was tried and left come from single races of the same layers.

Numbers that are not finite: a NaN or an infinity is multiplied by zeros here that `lax` never sees (those of merged
groups and merged phases, and of rows that fill up a step), and may turn up in more entries of the result than there.
"""

from jaxconv.rules.fast.maps import conv, input_grad, kernel_grad

__all__ = ["conv", "input_grad", "kernel_grad"]
