"""How the native engine comes into a process, and what is said where it does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxconv.commands import doctor
from jaxconv.engines.onednn import building, loading

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(loading.why_off() is not None, reason=f"the native engine is off: {loading.why_off()}")


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the library, which is the one that is loaded."""
    path = tmp_path / "_native.so"
    path.write_bytes(loading.LIBRARY.read_bytes())
    monkeypatch.setattr(loading, "LIBRARY", path)
    return path


def off(reason: str, remedy: str | None = loading.BUILD) -> None:
    assert loading.off() == (reason, remedy)
    with pytest.raises(loading.Unavailable) as error:
        loading.library()
    assert str(error.value) == f"the native engine is off: {reason}"
    assert doctor._engine() == f"off: {reason}" + (f"; to turn it on: {remedy}" if remedy else "")


def test_it_was_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "LIBRARY", tmp_path / "_native.so")
    off("it was not built when jaxconv was installed")


def test_on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    off(f"it is for Linux on x86-64, and this is Darwin on {platform.machine()}", None)


def test_it_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "_native.so"
    path.write_text("no library")
    monkeypatch.setattr(loading, "LIBRARY", path)
    off(f"it cannot be loaded: {path}: file too short")


@built
@pytest.mark.parametrize(
    "needed, reason, remedy",
    [
        ("libgomp.so", "libgomp.so.1, the runtime of OpenMP, is not on this machine", "apt-get install libgomp1"),
        ("libdnnl.so", "libdnnl.so.3, oneDNN itself, is not installed", "pip install onednn-cpu-gomp==2023.2.0"),
    ],
)
def test_what_it_needs_is_missing(copy: Path, needed: str, reason: str, remedy: str) -> None:
    """The name of what it needs, changed to one that no machine has."""
    name = next(name for name in (f"{needed}.1", f"{needed}.3") if f"{name}\0".encode() in copy.read_bytes())
    copy.write_bytes(copy.read_bytes().replace(f"{name}\0".encode(), f"{needed}.0\0".encode()))
    off(reason, remedy)


@built
def test_it_was_built_from_other_sources(copy: Path) -> None:
    """As after a `git pull` beneath an editable installation."""
    copy.write_bytes(copy.read_bytes().replace(building.fingerprint().encode(), b"0" * 16))
    off("it was built from other sources than those beside it")


@built
@pytest.mark.parametrize("older", [-1, 1], ids=["minor", "major"])
def test_it_was_built_for_another_jaxlib(copy: Path, monkeypatch: pytest.MonkeyPatch, older: int) -> None:
    """Unless refused here, its handlers would keep XLA from starting on CPUs at all."""
    major, minor = building.interface(building.jaxlib_headers())
    here = (major, minor - 1) if older == -1 else (major + 1, minor)
    monkeypatch.setattr(building, "interface", lambda headers: here)
    off(
        f"it was built for version {major}.{minor} of XLA's foreign function interface, "
        f"and jaxlib {importlib.metadata.version('jaxlib')} has {here[0]}.{here[1]}"
    )


@built
def test_a_jaxlib_without_headers(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "jaxlib_headers", lambda: tmp_path)
    missing = f"[Errno 2] No such file or directory: '{tmp_path}/xla/ffi/api/c_api.h'"
    off(f"whether it fits its sources and jaxlib cannot be read: {missing}", None)


@built
def test_another_onednn_is_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = loading._numbers
    monkeypatch.setattr(loading, "_numbers", lambda of: numbers(of) if "built" in of.__name__ else [3, 1, 4, 0])
    off("it was built with oneDNN 3.2, and 3.1 is loaded")


@built
def test_doctor_says_what_computes() -> None:
    assert loading.off() is None
    words = doctor._engine().split()
    assert words[:1] + words[2:3] + words[4:5] == ["oneDNN", "with", "on"] and words[1].startswith("3.")
    assert words[3] in loading.INSTRUCTION_SETS.values() and 1 <= int(words[5]) <= (os.cpu_count() or 1)


@built
def test_doctor_says_that_jax_has_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with JAX_PLATFORMS=cuda."""

    def local_devices(backend: str) -> None:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert doctor._engine() == "idle: JAX does not compute on the CPU here: Unknown backend cpu"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, which must end well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**kept, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


PRELUDE = """
import os, sys, threading
from pathlib import Path
def loaded(): return any(name in Path("/proc/self/maps").read_text() for name in ("libdnnl", "libgomp", "_native"))
def team(): return sum("jaxconv-onednn" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())
import jax, jaxconv, numpy as np
"""

USED = """
x, w = np.ones((8, 32, 32, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
def convolved(i):
    y = jaxconv.conv(i * x, w, engine="onednn")
    assert float(y[0, 1, 1, 0]) == i * 144, y[0, 1, 1, 0]
"""


@built
def test_from_import_to_end() -> None:
    """Lazily, once for all threads, one team of workers for all of them, no trace in the environment, a quiet end."""
    done = run(
        "assert not loaded()\n"
        "before = dict(os.environ)\n"
        "child = os.fork()\n"
        "from jaxconv.engines.onednn import loading\n"
        "found = []\n"
        "threads = [threading.Thread(target=lambda: found.append(loading.library())) for i in range(8)]\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
        "assert loaded() and len(found) == 8 and len(set(map(id, found))) == 1\n"
        f"{USED}\n"
        "assert child or not convolved(1) and not os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "failed = []\n"
        "threading.excepthook = failed.append\n"
        "threads = [threading.Thread(target=lambda i=i: [convolved(i) for _ in range(20)]) for i in range(8)]\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
        "assert not failed, failed\n"
        "assert 1 <= team() <= len(os.sched_getaffinity(0)), team()\n"
        "assert dict(os.environ) == before\n"
        "jaxconv.conv(np.ones((64, 64, 64, 64), np.float32), np.ones((3, 3, 64, 64), np.float32), engine='onednn')\n",
        OMP_DISPLAY_ENV="verbose",
    )
    assert f"GOMP_SPINCOUNT = '{loading.SPIN}'" in done.stderr  # what libgomp has read


@built
@pytest.mark.parametrize(
    "said, means",
    [
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
    ],
    ids=["count", "policy"],
)
def test_what_the_user_said_of_waiting_is_left_alone(said: dict[str, str], means: str) -> None:
    done = run(
        "from jaxconv.engines.onednn import loading\nloading.library()\n"
        f"assert {{name: os.environ[name] for name in {list(said)}}} == {said}",
        OMP_DISPLAY_ENV="verbose", **said,
    )  # fmt: skip
    assert means in done.stderr


@built
def test_beside_the_openmp_of_another_package() -> None:
    """scikit-learn brings a libgomp under a name of its own, with its own settings."""
    pytest.importorskip("sklearn")
    done = run(f"import sklearn.cluster, sklearn.ensemble\n{USED}\nconvolved(2)", OMP_DISPLAY_ENV="verbose")
    shown = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert shown[-1].endswith(f"GOMP_SPINCOUNT = '{loading.SPIN}'")
    assert len(shown) == 1 or not shown[0].endswith(f"'{loading.SPIN}'")


@built
@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}], ids=["limit", "dynamic"])
def test_fewer_threads_than_were_asked_for(limit: dict[str, str]) -> None:
    """oneDNN counts on as many as it asked OpenMP for: waiting for one that is not there would be for ever."""
    run(f"{USED}\nconvolved(3)\njax.block_until_ready(jax.grad(lambda w: jaxconv.conv(x, w).sum())(w))", **limit)


@built
def test_a_child_of_a_process_that_has_computed() -> None:
    """oneDNN's thread is not in the child, which starts its own: to ask oneDNN something, as XLA computes no more."""
    run(
        f"{USED}\nconvolved(1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit('onednn' not in str(jaxconv.plan((8, 40, 40, 16), (3, 3, 16, 16), platform='cpu')))\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
