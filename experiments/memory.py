"""Memory in pages of 2 MiB, for programs that compute on a CPU.

A program of XLA's takes its temporary memory from the system in each run and gives it back, so each run meets all of
its pages for the first time, and in pages of 4 KiB that is a third of the time of a training step of many small layers.
glibc asks for large pages if it is told to before a process starts.

Measured: milliseconds per training step without and with large pages, 2 cores of an AMD EPYC, Linux 6, glibc 2.36,
jax 0.10.2, float32, the native engine on, 2026-11-26: MNIST CNN 37 and 26, ResNet-18 668 and 590, MobileNet-V2-like 330
and 217, two ConvNeXt blocks 340 and 247.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

TUNABLE, VARIABLE = "glibc.malloc.hugetlb", "GLIBC_TUNABLES"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_large_pages() -> None:
    """Begin this program again with large pages, where the system gives them to who asks and nobody has chosen."""
    if sys.platform == "linux" and _helps(PAGES, os.environ.get(VARIABLE, ""), os.confstr("CS_GNU_LIBC_VERSION") or ""):
        chosen = ":".join(filter(None, (os.environ.get(VARIABLE), f"{TUNABLE}=1")))
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: chosen})


def _helps(pages: Path, tunables: str, libc: str) -> bool:
    """Whether glibc (2.35 or later) would ask, the system would give, and nobody has said whether it should."""
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", libc)
    try:
        on_request = "[madvise]" in pages.read_text()
    except OSError:
        return False
    return (
        on_request and TUNABLE not in tunables and version is not None and tuple(map(int, version.groups())) >= (2, 35)
    )
