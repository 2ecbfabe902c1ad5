"""Build the native engine: csrc/*.cc to one shared library, with the C++ compiler that there is.

    python -m jaxconv.engines.onednn.building                          # into the package as it is installed here
    python -m jaxconv.engines.onednn.building TARGET -fsanitize=…      # elsewhere, with more flags

Needs neither jax nor jaxconv to be imported, so that an installation can run it (`hatch_build.py`): headers are found
by where their packages keep them.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE / "_native.so"
# From the package to where pip puts the data of a wheel, such as libdnnl.so.3: <prefix>/lib/python3.x/site-packages/…
RPATH = "$ORIGIN/../../../../.."
# Vectors are passed between functions that are all inlined: what their ABI would be is of no interest.
COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
# The runtime of OpenMP by its name: oneDNN is linked with this one, and `-fopenmp` of another compiler means another.
LINK = ("-shared", f"-Wl,-rpath,{RPATH}", "-Wl,--no-undefined", "-l:libgomp.so.1", "-lpthread")


class Unbuildable(RuntimeError):
    """Why the engine cannot be built here."""


def elsewhere() -> str | None:
    """Why this is a machine that the engine is not for; None if it is for it."""
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        return None
    return f"it is for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"


def compiler() -> str:
    """The command of the C++ compiler: $CXX, c++, g++ or clang++."""
    named = os.environ.get("CXX")
    for command in (named,) if named else ("c++", "g++", "clang++"):
        if shutil.which(shlex.split(command)[0]):
            return command
    raise Unbuildable(f"there is no C++ compiler ({f'CXX={named}' if named else 'c++, g++ or clang++'})")


def packaged(distribution: str, name: str) -> Path:
    """A file that a package has installed, by its name."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise Unbuildable(f"the package {distribution} is not installed") from None
    for file in files:
        if file.match(name) and (path := Path(str(file.locate())).resolve()).exists():
            return path
    raise Unbuildable(f"the package {distribution} has no file {name}")


def jaxlib_headers() -> Path:
    """The folder of the headers of XLA's foreign function interface."""
    jaxlib = importlib.util.find_spec("jaxlib")
    if jaxlib is None or not jaxlib.submodule_search_locations:
        raise Unbuildable("the package jaxlib is not installed")
    return Path(jaxlib.submodule_search_locations[0]) / "include"


def interface(headers: Path) -> tuple[int, int]:
    """The version of XLA's foreign function interface, major and minor, that headers define."""
    text = (headers / "xla/ffi/api/c_api.h").read_text()
    major, minor = (int(re.findall(rf"#define XLA_FFI_API_{part} (\d+)", text)[0]) for part in ("MAJOR", "MINOR"))
    return major, minor


def fingerprint() -> str:
    """What the sources in csrc are, in 16 digits, to be compared with what a library was built from."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "csrc").iterdir()):
        if path.suffix in (".h", ".cc", ".inc"):
            digest.update(f"{path.name}\0{path.read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()[:16]


def build(target: Path = TARGET, extra: Sequence[str] = ()) -> Path:
    """Compile and link, `extra` being flags for both; the library, or `Unbuildable` with what the compiler said."""
    if why := elsewhere():
        raise Unbuildable(why)
    command = shlex.split(compiler())
    dnnl = packaged("onednn-cpu-gomp", "libdnnl.so.3")
    headers = [jaxlib_headers(), packaged("onednn-devel-cpu-gomp", "include/oneapi/dnnl/dnnl.hpp").parents[2]]
    includes = [part for folder in headers for part in ("-isystem", str(folder))]
    sources = f'-DJAXCONV_SOURCES="{fingerprint()}"'
    try:
        # Beside the target, which is then replaced at once: who has the old library loaded keeps it whole.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
            steps, objects = [], []
            for source in sorted((HERE / "csrc").glob("*.cc")):
                objects.append(f"{folder}/{source.stem}.o")
                steps.append([*command, *COMPILE, *extra, sources, *includes, "-c", str(source), "-o", objects[-1]])
            with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(_run, steps))
            made = f"{folder}/{target.name}"
            _run([*command, *objects, str(dnnl), *LINK, *extra, "-o", made])
            os.replace(made, target)
    except OSError as error:
        raise Unbuildable(f"{target} cannot be written: {error}") from None
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unbuildable(f"the compiler refuses: {shlex.join(command)}\n{done.stderr.strip()}")


def main(target: str = str(TARGET), *extra: str) -> None:
    """Build, or end with a sentence."""
    try:
        print(f"built {build(Path(target), extra)}")
    except Unbuildable as why:
        sys.exit(f"the native engine cannot be built: {why}")


if __name__ == "__main__":
    main(*sys.argv[1:])
