"""What a run leaves behind: whole files, never half of one, and JSON whose diff can be read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

WIDTH = 120


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path` and move into place, so that a crash or Ctrl-C leaves a whole file."""
    raw = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # A full disk does not say what did not fit.
            error.filename = str(path)
        raise


def as_json(content: Any, indent: str = "") -> str:
    """A row of a table is one line, however long; what fits into one line is one, too."""
    line = json.dumps(content, ensure_ascii=False)
    if not isinstance(content, dict | list) or len(indent) + len(line) < WIDTH:
        return line
    if isinstance(content, list):
        inside, (opening, closing) = [json.dumps(item, ensure_ascii=False) for item in content], "[]"
    else:
        named = [(json.dumps(key, ensure_ascii=False), as_json(value, indent + " ")) for key, value in content.items()]
        inside, (opening, closing) = [f"{key}: {value}" for key, value in named], "{}"
    return f"{opening}\n{indent} " + f",\n{indent} ".join(inside) + f"\n{indent}{closing}"
