"""The maps that production runs: the same names and signatures, the formulation chosen for speed.

What stands where:

    maps          the three maps: ask `choice`, bring the arrays into the layout, compute
    choice        which formulation a call takes; all that are legal for it
    table         what was measured to be the fastest for which call, on one device
    formulation   what a call is, and what a formulation is: a value that computes, and says why and what it holds

and the formulations, a file each, which ends in what it offers for a call:

    native        by an engine, where the platform has one that takes the call
    products      windows that do not overlap: reshape and one matrix product
    shifts        depthwise: sums of shifted copies
    phases        dilated inputs (strided input gradients, transposed convolutions): one convolution per residue class
    blocks        grouped: neighbouring groups merged into dense blocks
    folds         input gradients of few channels: one product, then overlap-add
    patches       dense kernel gradients: matrix products over the patches of a few examples at a time
    borders       unpadded: one output too many, cropped
    depths        three dimensions: a sum of convolutions in two
    full          input gradients as the full convolutions they are, by one of the above
    library       where nothing beats `lax`, `lax` it is: the formulas of `rotated`

Each says what was measured: how many times longer `lax` takes, on 2 cores of an Intel Xeon with AVX-512, jax 0.10.2,
float32, 2026-11-22. The first figures, and those of rows, are those of `python -m experiments.benchmark`, whose results
are in `experiments/results/benchmark-xeon.json`; "EPYC" is the same command on 2 cores of an AMD EPYC with AVX-512,
2026-11-25. What was tried and left comes from single races of the same layers.

Numbers that are not finite: a NaN or an infinity is multiplied by zeros here that `lax` never sees (those of merged
groups and merged phases, and of rows that fill up a step), and may turn up in more entries of the result than there.
"""

from jaxconv.rules.fast.maps import Measured, conv, input_grad, kernel_grad

__all__ = ["Measured", "conv", "input_grad", "kernel_grad"]
