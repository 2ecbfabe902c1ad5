"""What building the native engine says where it cannot be built. That it can be is what `.ci/run` shows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxconv.engines.onednn import building

pytestmark = pytest.mark.skipif(building.elsewhere() is not None, reason=str(building.elsewhere()))


def refuses(said: str) -> None:
    with pytest.raises(building.Unbuildable, match=said):
        building.build(Path("nowhere.so"))


def test_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    refuses("it is for Linux on x86-64, and this is Linux on aarch64")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    refuses(r"there is no C\+\+ compiler \(CXX=/nowhere/c\+\+ -m64\)")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    refuses(r"there is no C\+\+ compiler \(c\+\+, g\+\+ or clang\+\+\)")


def test_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    refuses(r"the package onednn-cpu-gomp has no file libdnnl.so.3")

    def files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    refuses("the package onednn-cpu-gomp is not installed")


def test_as_a_program_it_ends_with_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A compiler that refuses: its command and what it said are in the message."""
    refusing = tmp_path / "refusing"
    refusing.write_text("#!/bin/sh\necho 'no such thing as a float' >&2\nexit 1\n")
    refusing.chmod(0o755)
    command = [sys.executable, building.__file__, str(tmp_path / "it.so"), "-Dmore"]
    done = subprocess.run(command, env={**os.environ, "CXX": str(refusing)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"the native engine cannot be built: the compiler refuses: {refusing} -std=c++17 ")
    assert " -Dmore " in done.stderr and done.stderr.endswith("\nno such thing as a float\n")
    assert list(tmp_path.iterdir()) == [refusing]


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(building.Unbuildable, match=r"missing/it\.so cannot be written: .*No such file"):
        building.build(tmp_path / "missing" / "it.so")


def test_the_fingerprint_is_that_of_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(building.HERE / "csrc", tmp_path / "csrc")
    before = building.fingerprint()
    monkeypatch.setattr(building, "HERE", tmp_path)
    (tmp_path / "csrc" / "notes.txt").write_text("no source")
    assert building.fingerprint() == before
    header = tmp_path / "csrc" / "handlers.h"
    header.write_text(header.read_text() + "// a word more\n")
    assert building.fingerprint() != before
