"""Whatever a reader may run is run here: docstring examples, the README's program, and what it promises."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxconv

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Pages for several devices, which a process has from its start or not at all.
APART = [page for page in PAGES if "jax_num_cpu_devices" in page.read_text()]
# Whatever can be imported; a shared library of an engine, where it was built, looks like a module and is none.
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxconv.__path__, "jaxconv.") if "._native" not in m.name)
PUBLIC = sorted(name for name in jaxconv.__all__ if not inspect.ismodule(getattr(jaxconv, name)))
DOCUMENTED = {
    **{name: getattr(jaxconv, name) for name in PUBLIC},
    **{f"binding.{name}": getattr(jaxconv.binding, name) for name in jaxconv.binding.__all__},
    **{f"sharded.{name}": getattr(jaxconv.sharded, name) for name in jaxconv.sharded.__all__},
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    if name == "jaxconv.comparison.race":  # counts the operations of compiled programs
        command = [sys.executable, "-m", "doctest", "-o", "NORMALIZE_WHITESPACE", "jaxconv/comparison/race.py"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, check=True, timeout=300)
        return
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isclass(DOCUMENTED[name])])
def test_every_public_class_says_what_it_is_made_of(name: str) -> None:
    assert "Args:" in (inspect.getdoc(DOCUMENTED[name]) or "")


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not inspect.isclass(DOCUMENTED[name])])
def test_every_public_function_has_an_example_its_errors_and_its_source(name: str) -> None:
    doc = inspect.getdoc(DOCUMENTED[name]) or ""
    assert ">>> " in doc and "Source:" in doc, f"{name} lacks an example or its source"
    refers = re.search(r"Args, Returns and Raises are those of `(\w+)`", doc)
    assert refers or all(f"{part}:" in doc for part in ("Args", "Returns", "Raises")), name


def prints(code: str) -> list[str]:
    """The lines that a block of the README prints, for a user of JAX's defaults."""
    printed = io.StringIO()
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        contextlib.redirect_stdout(printed),
    ):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("code", [code for code in blocks("python") if "print(report)" not in code])
def test_the_readme_prints_what_its_comments_say(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    promised = [
        line.split("# ", 1)[1]
        for line in code.splitlines()
        if "print(" in line and "# " in line
        for _ in range(4 if line.startswith("    ") else 1)  # the loop over four rule sets
    ]
    assert promised and prints(code) == promised


def test_the_readme_prints_the_report_it_shows() -> None:
    """Line by line in this order, as far as it is shown."""
    (code,) = [code for code in blocks("python") if "print(report)" in code]
    (report,) = blocks("text")
    lines = iter(digitless("\n".join(prints(code))))
    assert all(line in lines for line in digitless(report) if line != ["…"])


def digitless(report: str) -> list[list[str]]:
    """The words of each line; the figures differ between machines."""
    return [re.sub(r"-?[0-9][0-9.]*(e[+-][0-9]+)?", "#", line).split() for line in report.splitlines()]


@pytest.mark.parametrize("name", sorted(jaxconv.__all__))
def test_the_readme_lists_every_public_name(name: str) -> None:
    """As a word of code in the first column of a table under "What there is"; `conv_transpose_…` is a family."""
    (section,) = re.findall(r"^## What there is\n(.*?)^## ", README, re.S | re.M)
    columns = re.findall(r"^\| (.*?) \|", section, re.M)
    listed = {word for cell in columns for code in re.findall(r"`(.*?)`", cell) for word in re.findall(r"[\w…]+", code)}
    families = tuple(word.removesuffix("…") for word in listed if word.endswith("…"))
    assert name in listed or name.startswith(families)


def test_the_readme_has_one_command_to_train_and_one_to_test() -> None:
    commands = blocks("bash")
    assert len(commands) == 2 and all(len(c.strip().splitlines()) == 1 for c in commands)
    train, test = commands
    assert train.strip().endswith("-m experiments.train") and "pytest" in test
    assert all("-m venv" in c and "pip install" in c for c in commands)


BESIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "jaxconv" / "engines" / "onednn" / "README.md"]


@pytest.mark.parametrize("page", [*BESIDE, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links and all((page.parent / link).exists() for link in links)


def promised(code: str) -> list[str]:
    return [line.split("  # ", 1)[1] for line in code.splitlines() if line.lstrip().startswith("print(")]


@pytest.mark.parametrize("page", APART, ids=lambda page: page.name)
def test_a_page_in_a_process_of_its_own_prints_what_its_comments_say(page: Path) -> None:
    code = "\n".join(blocks("python", page.read_text()))
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert promised(code) and done.stdout.splitlines() == promised(code)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in APART], ids=lambda page: page.stem)
def test_a_page_prints_what_its_comments_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for code in blocks("python", page.read_text()):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page.name, "exec"), session)
            # A matrix is printed over several lines, in the comment on one.
            assert printed.getvalue().replace("\n ", " ").splitlines() == promised(code)
    drawn = re.findall(r'\.figure\("(.*?)"\)', page.read_text())
    assert all((tmp_path / name).stat().st_size > 0 for name in drawn)
