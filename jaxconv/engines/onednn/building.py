"""Build the native engine: csrc/*.cc to one shared library, with the C++ compiler that there is.

    python -m jaxconv.engines.onednn.building     # into the package as it is installed here

Needs neither jax nor jaxconv to be imported, so that an installation can run it: headers are found by where their
packages keep them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = tuple(sorted(HERE.glob("csrc/*.cc")))
TARGET = HERE / "_native.so"
# From the package to where pip puts the data of a wheel, such as libdnnl.so.3: <prefix>/lib/python3.x/site-packages/…
RPATH = "$ORIGIN/../../../../.."
# Vectors are passed between functions that are all inlined: what their ABI would be is of no interest.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
)


class Unbuildable(RuntimeError):
    """Why the engine cannot be built here."""


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
        if file.match(name):
            return Path(file.locate()).resolve()
    raise Unbuildable(f"the package {distribution} has no file {name}")


def includes() -> list[Path]:
    """The folders of the headers of XLA's FFI and of oneDNN."""
    jaxlib = importlib.util.find_spec("jaxlib")
    if jaxlib is None or not jaxlib.submodule_search_locations:
        raise Unbuildable("the package jaxlib is not installed")
    onednn = packaged("onednn-devel-cpu-gomp", "include/oneapi/dnnl/dnnl.hpp")
    return [Path(jaxlib.submodule_search_locations[0]) / "include", onednn.parents[2]]


def build(target: Path = TARGET, extra: Sequence[str] = ()) -> Path:
    """Compile and link; the library, or `Unbuildable` with what the compiler said."""
    library = packaged("onednn-cpu-gomp", "libdnnl.so.3")
    headers = [part for folder in includes() for part in ("-isystem", str(folder))]
    command = [
        *shlex.split(compiler()), *FLAGS, *extra, *headers, *map(str, SOURCES), "-o", str(target),
        str(library), f"-Wl,-rpath,{RPATH}", "-Wl,--no-undefined",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unbuildable(f"the compiler refuses: {shlex.join(command)}\n{done.stderr.strip()}")
    return target


if __name__ == "__main__":
    print(build())
