"""From `_native.so` to handlers that XLA knows: once, when a kernel is first asked for, or the reason why not.

Nothing is loaded by an import.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import threading
from pathlib import Path
from typing import NamedTuple

import jax

LIBRARY = Path(__file__).parent / "_native.so"
# Functions of `csrc`, each a handler that XLA calls by its name.
CONVOLUTION = "jaxconv_onednn_convolution"
HANDLERS = (CONVOLUTION, "jaxconv_threads", "jaxconv_windows", "jaxconv_norm_gradient", "jaxconv_depthwise_kernel_grad")
BUILD = "python -m jaxconv.engines.onednn.building"
# What csrc/about.cc calls by numbers, in the words of oneDNN's own messages.
INSTRUCTION_SETS = {
    0x1: "sse41", 0x3: "avx", 0x7: "avx2", 0xF: "avx2_vnni", 0x1F: "avx2_vnni_2", 0x27: "avx512_core",
    0x67: "avx512_core_vnni", 0xE7: "avx512_core_bf16", 0x1EF: "avx512_core_fp16", 0xFEF: "avx512_core_amx",
    0x1FEF: "avx512_core_amx_fp16",
}  # fmt: skip
SPIN = "0"  # see `_preload`
_once = threading.Lock()


class Unavailable(ImportError):
    """There is no native engine here."""


class Reason(NamedTuple):
    """Why there is no native engine here, and the command that brings it, if there is one."""

    text: str
    remedy: str | None = BUILD


class About(NamedTuple):
    """What computes when the engine does."""

    onednn: str
    instruction_set: str
    threads: int


def library() -> ctypes.CDLL:
    """The native library, its handlers known to XLA.

    Raises:
      Unavailable: with the reason.
    """
    found = _found()
    if isinstance(found, Reason):
        raise Unavailable(f"the native engine is off: {found.text}")
    return found


def off() -> Reason | None:
    """Why there is no native engine here, and what brings it; None if there is one."""
    found = _found()
    return found if isinstance(found, Reason) else None


def why_off() -> str | None:
    """Why there is no native engine here; None if there is one."""
    reason = off()
    return reason.text if reason else None


def why_not_on(platform: str) -> str | None:
    """Why no kernel of the native engine computes on a platform; None where they do."""
    if platform != "cpu":
        return "the native engine computes on CPUs"
    return f"the native engine is off: {off}" if (off := why_off()) else None


def about() -> About:
    """What computes: oneDNN's version, its instruction set, and the threads, as XLA says when it is asked."""
    numbers = _numbers(library().jaxconv_onednn_version)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        threads = jax.ffi.ffi_call("jaxconv_threads", jax.ShapeDtypeStruct((), "int32"))()
    return About(".".join(map(str, numbers[:3])), INSTRUCTION_SETS.get(numbers[3], hex(numbers[3])), int(threads))


def _found() -> ctypes.CDLL | Reason:
    with _once:
        return _loaded(LIBRARY)


@functools.cache
def _loaded(path: Path) -> ctypes.CDLL | Reason:
    """A library with its handlers registered, or why there is none."""
    from jaxconv.engines.onednn import building  # not above: it is a program too, and would already be imported then

    if why := building.elsewhere():
        return Reason(why, None)
    if not path.exists():
        return Reason("it was not built when jaxconv was installed")
    try:
        _preload()
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return _missing(str(error))
    library.jaxconv_sources.restype = ctypes.c_char_p
    try:
        sources, here = building.fingerprint(), building.interface(building.jaxlib_headers())
    except (OSError, building.Unbuildable) as error:
        return Reason(f"whether it fits its sources and jaxlib cannot be read: {error}", None)
    if misfit := _misfit(library, sources, here):
        return misfit
    for name in HANDLERS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _missing(error: str) -> Reason:
    """A message of the dynamic linker in words."""
    if "libgomp.so" in error:
        return Reason("libgomp.so.1, the runtime of OpenMP, is not on this machine", "apt-get install libgomp1")
    if "libdnnl.so" in error:
        return Reason("libdnnl.so.3, oneDNN itself, is not installed", "pip install onednn-cpu-gomp==2023.2.0")
    return Reason(f"it cannot be loaded: {error}")


def _misfit(library: ctypes.CDLL, sources: str, here: tuple[int, int]) -> Reason | None:
    """Why a library does not fit what it meets: these sources, jaxlib with its interface, oneDNN."""
    if library.jaxconv_sources().decode() != sources:
        return Reason("it was built from other sources than those beside it")
    major, minor, *onednn = _numbers(library.jaxconv_built_with)
    # A minor version adds to its interface; XLA itself refuses handlers that may expect more than it has.
    if here[0] != major or here[1] < minor:
        return Reason(
            f"it was built for version {major}.{minor} of XLA's foreign function interface, "
            f"and jaxlib {importlib.metadata.version('jaxlib')} has {here[0]}.{here[1]}"
        )
    loaded = _numbers(library.jaxconv_onednn_version)
    if loaded[:2] < onednn[:2] or loaded[0] != onednn[0]:
        return Reason("it was built with oneDNN {}.{}, and {}.{} is loaded".format(*onednn[:2], *loaded[:2]))
    return None


def _numbers(function: ctypes._NamedFuncPointer) -> list[int]:
    """The four numbers that a function of csrc/about.cc writes."""
    numbers = (ctypes.c_int64 * 4)()
    function(numbers)
    return list(numbers)


def _preload() -> None:
    """oneDNN itself, from wherever its package is; the library finds it by its name then.

    Its OpenMP threads are told not to spin while they wait for the next call: XLA's threads need the cores in between.
    libgomp reads that once, as it is loaded. Who has said something about it is left alone.

    Measured (the benchmark's training step of the MNIST CNN; 2 cores of an AMD EPYC that other programs wanted too, a
    load of 2.4 to 7; jax 0.10.2, 2026-11-26; two processes a value, one of 0): with GOMP_SPINCOUNT 0 a step took 51 ms,
    with 1,000 54 and 106, with 10,000 118 and 127, with libgomp's own 300,000 214 and 249, as long as without oneDNN.
    """
    from jaxconv.engines.onednn import building  # not at the top: see `_loaded`

    try:
        dnnl = building.packaged("onednn-cpu-gomp", "libdnnl.so.3")
    except building.Unbuildable:  # then the linker says what is missing
        return
    passive = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if passive:
        os.environ["GOMP_SPINCOUNT"] = SPIN
    try:
        ctypes.CDLL(str(dnnl))
    finally:
        if passive:
            del os.environ["GOMP_SPINCOUNT"]
