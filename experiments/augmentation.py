"""What a training does to images so that it never sees one twice: crop, flip and cutout.

Each is a pure function of a key and a batch of standardised images, (n, h, w, c), and part of the compiled step. The
images are standardised already, so the zeros that come in at a border, and in a hole, are the mean colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Name = Literal["crop", "flip", "cutout"]

# For 32×32 images: moved by up to 4 pixels (He et al., 2016), a hole of 16 (DeVries and Taylor, 2017).
MOVED, HOLE = 1 / 8, 1 / 2


def crop(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image moved by up to an eighth of its size along each axis: padded, and cropped at random."""
    n, *size, channels = images.shape
    widths = [int(MOVED * length) for length in size]
    padded = jnp.pad(images, [(0, 0), *((width, width) for width in widths), (0, 0)])
    corners = jax.random.randint(key, (n, 2), 0, 2 * jnp.asarray(widths) + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (*corner, jnp.zeros_like(corner[0])), (*size, channels))

    return jax.vmap(cut)(padded, corners)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Every other image, on average, mirrored left to right."""
    mirrored = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def cutout(key: jax.Array, images: jax.Array) -> jax.Array:
    """A square hole, half as long as the image, about a random pixel of each; part of it may lie outside."""
    n, *size, _ = images.shape
    inside = jnp.ones((n, 1, 1, 1), bool)
    for axis, (length, own) in enumerate(zip(size, jax.random.split(key), strict=True)):
        first = jax.random.randint(own, (n, 1), 0, length) - int(HOLE * length) // 2
        here = jnp.arange(length)[None] - first
        along = (here >= 0) & (here < int(HOLE * length))
        inside &= jnp.expand_dims(along, (2, 3) if axis == 0 else (1, 3))
    return jnp.where(inside, jnp.zeros_like(images), images)


AUGMENTATIONS: dict[Name, Callable[[jax.Array, jax.Array], jax.Array]] = {"crop": crop, "flip": flip, "cutout": cutout}

# Digits and clothes are centred, and mirrored digits are none.
USUAL: Mapping[object, tuple[Name, ...]] = {"cifar10": ("crop", "flip", "cutout")}


def augmented(key: jax.Array, images: jax.Array, names: Sequence[Name]) -> jax.Array:
    """The images after each named augmentation in turn."""
    for number, name in enumerate(names):
        images = AUGMENTATIONS[name](jax.random.fold_in(key, number), images)
    return images
