"""A test asserts: nothing that it compares may be skipped by a condition on what it found."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("*.py"))


def asserts(node: ast.AST) -> bool:
    """An assertion, a `pytest.raises`, or the call of something named assert_…"""
    called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
    return isinstance(node, ast.Assert) or called.startswith("assert_") or called == "raises"


def conditional(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            yield from (inner.lineno for inner in ast.walk(node) if asserts(inner))  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assertion_stands_under_an_if(path: Path) -> None:
    assert list(conditional(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_tests_holds_one_promise(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
