"""Imports point one way: geometry → windows → forward → rules → primitives → ops → layers → models → experiments.

Beside the layers stand the instruments, transforms → gradcheck → comparison → explanation → the command line:
they use the ops, and no layer uses them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["geometry", "windows", "forward", "rules", "primitives", "ops", "layers", "models"]
INSTRUMENTS = ["transforms", "gradcheck", "comparison", "explanation", "commands", "__main__"]
ALLOWED = {
    "": ORDER + INSTRUMENTS[:-2],
    **{stage: ORDER[: i + 1] for i, stage in enumerate(ORDER)},
    **{stage: ORDER[: ORDER.index("ops") + 1] + INSTRUMENTS[: i + 1] for i, stage in enumerate(INSTRUMENTS)},
}
OUTSIDE = {
    "geometry": set(),
    "windows": {"jax", "numpy"},
    "forward": {"jax", "numpy"},
    "rules": {"jax", "numpy", "inspect"},
    "primitives": {"jax", "numpy"},
    "ops": {"jax", "numpy", "inspect"},
    "layers": {"jax", "numpy"},
    "models": {"jax", "numpy"},
    "transforms": {"jax", "numpy", "inspect", "types"},
    "gradcheck": {"jax", "numpy", "contextlib", "os", "pathlib", "re"},
    "comparison": {"jax", "numpy", "matplotlib", "pathlib", "re", "statistics", "time"},
    "explanation": {"jax", "numpy", "matplotlib", "hashlib", "importlib", "io", "json", "pathlib", "re", "xml"},
    "commands": {
        *("jax", "jaxconv", "numpy"),
        *("argparse", "contextlib", "importlib", "json", "pathlib", "platform", "sys", "threading"),
    },
    "__main__": {"jax", "argparse", "sys"},
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
    assert {stage(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    own = stage(path)
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "jaxconv" and rest:
            assert rest[0] in ALLOWED[own], f"{path.name} imports {module} from above"
        else:
            assert top in STDLIB | OUTSIDE.get(own, set()), f"{path.name} imports {module}"


def test_geometry_is_integers_only() -> None:
    for path in FILES:
        if stage(path) == "geometry":
            assert not any(module.split(".")[0] in ("jax", "numpy") for module in imports(path))


def test_who_speaks_to_the_interpreters() -> None:
    def speakers(module: str) -> set[str]:
        return {stage(path) for path in FILES if any(name.startswith(module) for name in imports(path))}

    assert speakers("jax.interpreters") == {"primitives"}
    assert speakers("jax.extend") == {"primitives", "transforms", "gradcheck"}


def test_nothing_imports_private_jax() -> None:
    for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
        assert not any("jax._src" in module for module in imports(path)), path


def test_the_rules_know_nothing_of_each_other_but_fast_of_rotated() -> None:
    for path in (ROOT / "jaxconv" / "rules").glob("*.py"):
        if path.name not in ("__init__.py", "fast.py"):
            assert not any(module.startswith("jaxconv.rules") for module in imports(path)), path
