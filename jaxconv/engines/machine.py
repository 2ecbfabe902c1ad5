"""What a program runs on, as a name by which measurements can be told to be of it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform as host
from pathlib import Path

import jax


@functools.cache
def kind(platform: str) -> str | None:
    """The device that JAX computes on for a platform, as its maker calls it; a CPU with its cores. None without one."""
    try:
        device = jax.devices(platform)[0].device_kind
    except RuntimeError:
        return None
    return f"{processor() or host.machine()}, {os.cpu_count()} cores" if platform == "cpu" else device


def processor() -> str:
    """The CPU as its maker calls it; "" where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return host.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def jaxlib() -> str:
    """The version of XLA, as that of the package it comes in."""
    return importlib.metadata.version("jaxlib")
