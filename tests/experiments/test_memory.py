"""A program that begins again with large pages: once, and only where that helps."""

import os
import sys
from pathlib import Path

import pytest

from experiments import memory

ON_REQUEST, ALWAYS = "always [madvise] never", "[always] madvise never"


@pytest.mark.parametrize(
    ("pages", "tunables", "libc", "helps"),
    [
        (ON_REQUEST, "", "glibc 2.35", True),
        (ON_REQUEST, "glibc.malloc.check=1", "glibc 2.41", True),
        (ON_REQUEST, "glibc.malloc.hugetlb=0", "glibc 2.36", False),
        (ON_REQUEST, "", "glibc 2.34", False),
        (ON_REQUEST, "", "musl 1.2", False),
        (ALWAYS, "", "glibc 2.36", False),
        (None, "", "glibc 2.36", False),
    ],
)
def test_it_helps_where_the_system_gives_to_who_asks(
    pages: str | None, tunables: str, libc: str, helps: bool, tmp_path: Path
) -> None:
    file = tmp_path / "enabled"
    file.write_text(pages or "")
    assert memory._helps(file if pages else tmp_path / "none", tunables, libc) == helps


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such pages")
def test_the_program_begins_again_with_its_own_arguments_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(memory, "_helps", lambda pages, tunables, libc: memory.TUNABLE not in tunables)
    monkeypatch.setattr(os, "execve", lambda *program: begun.append(program))
    monkeypatch.setenv(memory.VARIABLE, "glibc.malloc.check=1")
    memory.in_large_pages()
    (path, arguments, environment) = begun.pop()
    assert path == sys.executable and arguments == [sys.executable, *sys.orig_argv[1:]]
    assert environment[memory.VARIABLE] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    monkeypatch.setenv(memory.VARIABLE, environment[memory.VARIABLE])
    memory.in_large_pages()
    assert begun == []
