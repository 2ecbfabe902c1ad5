"""Imports point one way: geometry → windows → forward → engines → rules → primitives → ops → layers → models.

Beside the layers stand the instruments, transforms → gradcheck → comparison → explanation → the command line:
they use the ops, and no layer uses them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["geometry", "windows", "forward", "engines", "rules", "primitives", "ops", "layers", "models"]
INSTRUMENTS = ["transforms", "gradcheck", "comparison", "tuning", "explanation", "commands", "__main__"]
ALLOWED = {
    "": ORDER + INSTRUMENTS[:-2],
    **{stage: ORDER[: i + 1] for i, stage in enumerate(ORDER)},
    **{stage: ORDER[: ORDER.index("ops") + 1] + INSTRUMENTS[: i + 1] for i, stage in enumerate(INSTRUMENTS)},
}
OUTSIDE = {
    "geometry": set(),
    "windows": {"jax", "numpy"},
    "forward": {"jax", "numpy"},
    "engines": {
        *("jax", "numpy"),
        *("concurrent", "ctypes", "hashlib", "importlib", "os", "pathlib", "platform", "re", "shlex", "shutil"),
        *("subprocess", "sys", "tempfile", "threading"),
    },
    "rules": {"jax", "numpy", "inspect", "warnings"},
    "primitives": {"jax", "numpy"},
    "ops": {"jax", "numpy", "inspect"},
    "layers": {"jax", "numpy", "inspect", "json", "os", "pathlib"},
    "models": {"jax", "numpy"},
    "transforms": {
        *("jax", "numpy"),
        *("inspect", "pathlib", "sys", "sysconfig", "textwrap", "types", "warnings", "weakref"),
    },
    "gradcheck": {"jax", "numpy", "contextlib", "os", "pathlib", "re"},
    "comparison": {"jax", "numpy", "matplotlib", "pathlib", "re", "statistics", "time"},
    "tuning": {"jax", "numpy", "datetime", "json", "pathlib", "statistics", "sys", "time"},
    "explanation": {"jax", "numpy", "matplotlib", "hashlib", "importlib", "io", "json", "pathlib", "re", "xml"},
    "commands": {
        *("jax", "jaxconv", "numpy"),
        *("argparse", "contextlib", "importlib", "json", "pathlib", "platform", "sys", "threading", "warnings"),
    },
    "__main__": {"jax", "argparse", "sys"},
}
STDLIB = {"__future__", "collections", "dataclasses", "functools", "itertools", "math", "operator", "typing"}
FILES = sorted((ROOT / "jaxconv").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
FOLDER = ROOT / "jaxconv" / "rules"
RULES = [path for path in FILES if path.is_relative_to(FOLDER) and path != FOLDER / "__init__.py"]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


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
            found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return found


def test_every_file_belongs_to_a_stage() -> None:
    assert {stage(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    own = stage(path)
    inside = {module for module in imports(path) if module.startswith("jaxconv.")}
    above = {module for module in inside if module.split(".")[1] not in ALLOWED[own]}
    allowed = STDLIB | OUTSIDE.get(own, set())
    outside = {module for module in set(imports(path)) - inside if module.split(".")[0] not in allowed}
    assert (above, outside) == (set(), set()), f"{path.name} imports from above, and from outside, what it may not"


def test_geometry_is_integers_only() -> None:
    found = [module for path in FILES if stage(path) == "geometry" for module in imports(path)]
    assert found and not any(module.split(".")[0] in ("jax", "numpy") for module in found)


def test_who_speaks_to_the_interpreters() -> None:
    def speakers(module: str) -> set[str]:
        return {stage(path) for path in FILES if any(name.startswith(module) for name in imports(path))}

    assert speakers("jax.interpreters") == {"primitives"}
    assert speakers("jax.extend") == {"primitives", "transforms", "gradcheck"}


@pytest.mark.parametrize("path", [*FILES, *EXPERIMENTS], ids=named)
def test_nothing_imports_private_jax_or_relatively(path: Path) -> None:
    assert not any("jax._src" in module or module.startswith(".") for module in imports(path))


@pytest.mark.parametrize("path", RULES, ids=named)
def test_the_rules_know_nothing_of_each_other_but_fast_of_rotated(path: Path) -> None:
    """Each is a file or a folder of rules/; only what stands beside them, rules/__init__.py, knows them all."""
    own, *_ = path.relative_to(FOLDER).parts
    known = {own.removesuffix(".py")} | ({"rotated"} if own == "fast" else set())
    met = [module.split(".")[2:3] for module in imports(path) if f"{module}.".startswith("jaxconv.rules.")]
    assert all(name and name[0] in known for name in met), f"{path.name} knows of {met}"
