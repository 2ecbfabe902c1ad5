"""Builds the native engine into the wheel, where there is a C++ compiler for it; without one the wheel is pure Python.

`building.py` of the engine does it. It is loaded by its path: neither jax nor jaxconv is there while a wheel is built.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "jaxconv/engines/onednn/_native.so"


class NativeEngine(BuildHookInterface):
    def dependencies(self) -> list[str]:
        """What building needs beside hatchling: nothing where there is nothing to build, so nothing is downloaded."""
        return [] if self._why_not() else self.config["native"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        building = self._building()
        # An editable wheel leads to the checkout, so the library belongs there; any other carries its own.
        self.folder = tempfile.TemporaryDirectory()
        target = Path(self.root) / NATIVE if version == "editable" else Path(self.folder.name) / "_native.so"
        try:
            if why := self._why_not():
                raise building.Unbuildable(why)
            building.build(target)
        except building.Unbuildable as why:
            self.app.display_warning(f"jaxconv without its native engine, pure Python: {why}")
            return
        if version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"
            build_data["force_include"][str(target)] = NATIVE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()

    def _why_not(self) -> str | None:
        building = self._building()
        try:
            return building.elsewhere() or (building.compiler() and None)
        except building.Unbuildable as why:
            return str(why)

    def _building(self) -> Any:
        path = Path(self.root) / NATIVE
        spec = importlib.util.spec_from_file_location("building", path.with_name("building.py"))
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
