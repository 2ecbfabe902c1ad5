"""Imports point one way: geometry → forward → rules → primitives → ops → layers → models → experiments."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["geometry", "forward", "rules", "primitives", "ops", "layers", "models"]
OUTSIDE = {
    "geometry": set(),
    "forward": {"jax", "numpy"},
    "rules": {"jax", "numpy"},
    "primitives": {"jax", "numpy"},
    "ops": {"jax", "numpy"},
    "layers": {"jax", "numpy"},
    "models": {"jax", "numpy"},
}
STDLIB = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "operator", "typing"}
FILES = sorted((ROOT / "jaxconv").rglob("*.py"))


def stage(path: Path) -> str:
    """Which stage a file belongs to; "" for the package's own __init__."""
    first = path.relative_to(ROOT / "jaxconv").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module a file imports, in full, wherever in the file it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_file_belongs_to_a_stage() -> None:
    assert {stage(path) for path in FILES} == {"", *ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    own = stage(path)
    allowed = ORDER if own == "" else ORDER[: ORDER.index(own) + 1]
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "jaxconv":
            assert rest[0] in allowed, f"{path.name} imports {module} from above"
        else:
            assert top in STDLIB | OUTSIDE.get(own, set()), f"{path.name} imports {module}"


def test_geometry_is_integers_only() -> None:
    for path in FILES:
        if stage(path) == "geometry":
            assert not any(module.split(".")[0] in ("jax", "numpy") for module in imports(path))


def test_only_primitives_speak_to_the_interpreters() -> None:
    speakers = {
        stage(path)
        for path in FILES
        for module in imports(path)
        if module.startswith(("jax.interpreters", "jax.extend"))
    }
    assert speakers == {"primitives"}


def test_nothing_imports_private_jax() -> None:
    for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
        assert not any("jax._src" in module for module in imports(path)), path


def test_the_rules_know_nothing_of_each_other_but_fast_of_rotated() -> None:
    for path in (ROOT / "jaxconv" / "rules").glob("*.py"):
        if path.name not in ("__init__.py", "fast.py"):
            assert not any(module.startswith("jaxconv.rules") for module in imports(path)), path
