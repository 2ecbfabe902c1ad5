"""What a reader needs to know of a machine to believe a number."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from jaxconv.engines.machine import processor


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
