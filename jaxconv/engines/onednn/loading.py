"""From `_native.so` to handlers that XLA knows: once, when a kernel is first asked for, or the reason why not."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from pathlib import Path

import jax

LIBRARY = Path(__file__).parent / "_native.so"
# Functions of `csrc`, each a handler that XLA calls by its name.
HANDLERS = ("jaxconv_onednn_convolution", "jaxconv_windows", "jaxconv_norm_gradient")
BUILD = "python -m jaxconv.engines.onednn.building"


class Unavailable(ImportError):
    """Why there is no native engine here."""


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The library with its handlers registered, or why there is none."""
    if not LIBRARY.exists():
        return "it was not built when jaxconv was installed"
    try:
        _preload()
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"it cannot be loaded: {error}"
    for name in HANDLERS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _preload() -> None:
    """oneDNN itself, from wherever its package is; the library finds it by its name then.

    Its OpenMP threads are told not to spin while they wait for the next call: XLA's threads need the cores in between.
    libgomp reads that once, as it is loaded. Who has said something about it is left alone.
    """
    try:
        files = importlib.metadata.files("onednn-cpu-gomp") or []
    except importlib.metadata.PackageNotFoundError:
        return
    passive = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if passive:
        os.environ["GOMP_SPINCOUNT"] = SPIN
    try:
        for file in files:
            if file.name == "libdnnl.so.3":
                ctypes.CDLL(str(file.locate()))
    finally:
        if passive:
            del os.environ["GOMP_SPINCOUNT"]


SPIN = "0"


def library() -> ctypes.CDLL:
    """The native library, its handlers known to XLA.

    Raises:
      Unavailable: with the reason.
    """
    loaded = _loaded()
    if isinstance(loaded, str):
        raise Unavailable(f"the native engine is off: {loaded}")
    return loaded


def why_off() -> str | None:
    """Why there is no native engine here; None if there is one."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None
