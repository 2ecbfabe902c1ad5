"""Meshes of the CPU devices that `conftest.py` asks for, whatever device the rest of a test runs on."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh


def cpu_mesh(kind: AxisType, **sizes: int) -> Mesh:
    """A mesh of named axes, all of one kind."""
    devices = jax.devices("cpu")[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes), devices=devices)
