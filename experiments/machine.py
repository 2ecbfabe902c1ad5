"""What a reader needs to know of a machine to believe a number."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax

from jaxconv.engines.machine import processor

CONTAINER = Path("/sys/fs/cgroup/memory.max")


def machine(*packages: str) -> dict[str, Any]:
    """Date, hardware and versions; a package that is not installed has the version None."""
    return {
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        **_driver(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def memory() -> float:
    """Bytes of memory there are: in the machine, or in the container if that has fewer; where nobody says, no end."""
    if sys.platform == "win32":
        return float("inf")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max" is a container without a limit
        limits.append(int(CONTAINER.read_text()))
    return min(limits)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> dict[str, str]:
    """The driver and the CUDA of a GPU; nothing of another device."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return {}
    found = re.search(r"\d+(\.\d+)+", first)
    return {"driver": found[0]} if found and jax.default_backend() == "gpu" else {}
