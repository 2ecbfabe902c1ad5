"""Who computes on a platform, beside XLA, which needs no code of its own.

An engine is a folder: what it computes with, how it is found, and a file for each kind of kernel that says for a call
whether the engine takes it, and if not, why not. Nothing here is needed: without an engine everything runs on XLA.

    onednn    on CPUs: convolutions by oneDNN, windows and standardisations by kernels of its own
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Native(NamedTuple):
    """A call of an engine's: the function that XLA calls by its name, and what it is told beside the arrays."""

    target: str
    attributes: dict[str, Any]
