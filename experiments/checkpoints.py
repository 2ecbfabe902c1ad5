"""Checkpoints of a run: by orbax, beside the training, whole or not at all.

A checkpoint holds what is carried from step to step (weights, state, moments, loss scale, step), the run's
configuration, and what it has measured. Keys and the order of the examples are functions of the seed and the step, so
they need not be held. Orbax copies the arrays, writes them in the background into a folder with a name of its own, and
renames that when all of it is on the disk: what has the name of a checkpoint is one.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments import config as configuration
from experiments.config import Config, UsageError

FOLDER = "checkpoints"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written; the message names the folder, the reason, and what is still good."""


class Checkpoints:
    """The checkpoints in the folder of a run, of which the last `keep` stay.

    Raises:
      CheckpointError: when one cannot be written, from `save` (of it or of the one before) or `close`.
    """

    def __init__(self, out: Path, keep: int = 1) -> None:
        self.folder, self.keep = out.absolute() / FOLDER, keep
        self._manager: ocp.CheckpointManager | None = None

    @property
    def manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            for library in ("absl", "asyncio"):  # orbax tells of every file, and of each error several times
                logging.getLogger(library).setLevel(logging.CRITICAL)
            options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, step: int, carry: Any, journal: dict[str, Any]) -> None:
        """Begin to write; what is carried may be updated in place as soon as this returns."""
        if step in self.steps():  # the same step has the same bits
            return
        arrays = ocp.args.StandardSave(carry._asdict())
        try:
            self.manager.save(step, args=ocp.args.Composite(arrays=arrays, journal=ocp.args.JsonSave(journal)))
        except Exception as error:  # orbax and what it is built on raise many kinds, and so does the thread before
            raise self._failed(error) from error

    def close(self) -> None:
        """Wait for what is being written."""
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.wait_until_finished()
                manager.close()
            except Exception as error:
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        self._manager = None
        held = self.steps()
        good = f"The one of step {held[-1]:,} is good: make room" if held else "There is none yet: make room"
        return CheckpointError(f"{self.folder} cannot take a checkpoint: {_reason(error)}. {good}, and say --resume.")

    def journal(self) -> dict[str, Any]:
        """What the last checkpoint says of its run."""
        return self._read(journal=ocp.args.JsonRestore())["journal"]

    def carry(self, like: Any) -> Any:
        """What the last checkpoint carries, with the shapes, dtypes and devices of `like`."""
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like._asdict())
        return type(like)(**self._read(arrays=ocp.args.StandardRestore(abstract))["arrays"])

    def _read(self, **items: Any) -> Any:
        held = self.steps()
        if not held:
            raise UsageError(f"{self.folder} holds no checkpoint. Name the folder that a run was given as --out.")
        path = self.folder / str(held[-1])
        try:
            return self.manager.restore(held[-1], args=ocp.args.Composite(**items))
        except Exception as error:
            rest = f"--resume continues from step {held[-2]:,}" if len(held) > 1 else "--overwrite begins again"
            raise UsageError(
                f"{path} is damaged or no checkpoint of this run: {_reason(error)}. It is left as it is; move it "
                f"away, and {rest}."
            ) from error

    def config(self) -> tuple[Config, dict[str, Any]]:
        """The configuration of the run, and what it has measured."""
        journal = self.journal()
        try:
            return configuration.from_json(journal["config"]), journal["measured"]
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{self.folder / str(self.steps()[-1])} was written by another program or version: {error!r}. It "
                "is left as it is; continue it with that version, or name another folder."
            ) from error


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first; of a long one how it begins and ends."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "") or repr(error)
    return line if len(line) <= 200 else f"{line[:80]} … {line[-120:]}"
