"""What a command says while it works, what it writes, and what it refuses before any work."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Seconds without a word.
SILENCE = 10.0


class CannotRunError(Exception):
    """There is no verdict, and this is why."""


def say(text: str) -> None:
    """What is not the result goes to stderr, at once."""
    print(f"jaxconv: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Says now and again that work which takes long is still going on."""
    over = threading.Event()

    def speak() -> None:
        for count in itertools.count(1):
            if over.wait(SILENCE):
                return
            say(f"still {what}, {count * SILENCE:.0f} s")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()


def write_json(report: Any, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n")


def can_draw(option: str, path: Path | None) -> None:
    if path and importlib.util.find_spec("matplotlib") is None:
        raise CannotRunError(f"{option} needs matplotlib. pip install jaxconv[experiments]")
    can_write(path)


def can_write(path: Path | None) -> None:
    """Refuse before any work what could not be written after it."""
    if path and (path.is_dir() or not path.resolve().parent.is_dir()):
        raise CannotRunError(f"{path} cannot be written: {'it is' if path.is_dir() else 'its folder is not'} a folder.")
