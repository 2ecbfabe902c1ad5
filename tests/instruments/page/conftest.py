"""One browser for all tests of the page; without Chromium or Playwright they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.instruments.page.looking import Look, Snapshot, Visitor, snapshot
from tests.support.cases import Case


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium: apt install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visitor(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    return Visitor(browser, tmp_path_factory.mktemp("page"))


@pytest.fixture
def visit(visitor: Visitor) -> Iterator[Visitor]:
    yield visitor
    visitor.leave()


@pytest.fixture(scope="module")
def first_sight(visitor: Visitor) -> Look:
    """The page of a case as it opens, looked at once for all tests."""
    shots: dict[str, Snapshot] = {}

    def look(case: Case) -> Snapshot:
        if str(case) not in shots:
            shots[str(case)] = snapshot(visitor(case))
            visitor.leave()
        return shots[str(case)]

    return look
