"""An unpadded convolution, computed with one more output than there is and cropped.

XLA's CPU backend has two programs for convolutions in two dimensions. One writes the matrix of all patches,
(n·p) × (k·c), and takes what is not padded; the other does not. A column of zeros behind the last axis makes XLA take
the other, and the outputs that read it are cut off again:

    y = conv(x with s more columns)[..., :-1]

Measured: how many times longer `lax` takes, on 2 cores of an AMD EPYC with AVX-512, jax 0.10.2, float32, 2026-11-26, by
the patches there are, in millions: 8×112², 32→48, 3×3 (28) 3.5; 128×26², 32→64 (21) 2.6; 8×224², 3→64, 7/2 (14) 2.6;
8×56², 64→64 3×3 (13) 2.7, 5×5 3.1, dilation 2 2.6, to 16 channels 7.3; 8×28², 128→128 (6) 1.3; 8×14², 256→256 (3) 1.1;
8×14², 64→64 (0.7) 0.9; 128×28², 1→32 (0.8) 0.7. In one dimension 1.0, in three 0.9. Nothing is known of other CPUs, so
this is taken only where it was measured.

Arrays are channels-last: x (n, *spatial, c), w (*taps, c // groups, o) -> (n, *out, o).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax

from jaxconv.geometry import Geometry
from jaxconv.rules.fast import library
from jaxconv.rules.fast.formulation import Call, Formulation, Maps


def conv(x: jax.Array, w: jax.Array, geometry: Geometry, maps: Maps) -> jax.Array:
    """y without the outputs that are one too many."""
    *rest, (lo, hi) = geometry.padding
    wider = replace(geometry, padding=(*rest, (lo, hi + geometry.stride[-1])))
    return library.conv(x, w, wider, maps)[..., : geometry.out[-1], :]


def offers(call: Call) -> Iterator[Formulation]:
    """Of a convolution with spatial axes and nothing around them."""
    geometry = call.geometry
    if call.map == "conv" and geometry.rank and not call.dilated and not any(sum(geometry.padding, ())):
        why = "unpadded, for which XLA's CPU backend has a slower library"
        yield Formulation("border", conv, why, "y with one more column", pays=False)
