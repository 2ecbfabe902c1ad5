"""A fixture for calls that must be refused in time."""

import importlib
import pkgutil
from typing import Any

import pytest

from jaxconv import ops
from jaxconv.ops import binding, conv
from tests.support.operands_ops import COMPUTED

COMPUTING = (binding.apply, binding.linear, conv.convolve)
MODULES = [importlib.import_module(module.name) for module in pkgutil.walk_packages(ops.__path__, "jaxconv.ops.")]


@pytest.fixture
def nothing_may_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an op computes with, under whichever name, raises."""

    def computed(*args: Any, **options: Any) -> Any:
        raise AssertionError(COMPUTED)

    for module in MODULES:
        for name, value in list(vars(module).items()):
            if any(value is function for function in COMPUTING):
                monkeypatch.setattr(module, name, computed)
