"""The CPU devices that `conftest.py` asks for, whatever device the rest of a test runs on."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import jax
from jax.sharding import AxisType, Mesh


def cpu_mesh(kind: AxisType, **sizes: int) -> Mesh:
    """A mesh of named axes, all of one kind."""
    devices = jax.devices("cpu")[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes), devices=devices)


def on_cpu() -> AbstractContextManager[None]:
    """Where JAX's own derivatives are exact: a GPU has no forward derivative of a maximum over windows that is."""
    return jax.default_device(jax.devices("cpu")[0])
