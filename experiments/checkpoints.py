"""Checkpoints of a run: by orbax, beside the training, whole or not at all.

A checkpoint holds what is carried from step to step (weights, state, moments, loss scale, step), the run's
configuration, and what it has measured. Keys and the order of the examples are functions of the seed and the step, so
they need not be held. Orbax copies the arrays, writes them in the background into a folder with a name of its own, and
renames that when all of it is on the disk: what has the name of a checkpoint is one. A checksum of the arrays lies
beside them, since a bit that has changed on the disk is part of an array like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import config as configuration
from experiments.config import Config, UsageError

if sys.platform != "win32":
    import fcntl

FOLDER = "checkpoints"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written; the message names the folder, the reason, and what is still good."""


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the folder of a run, and hold it: no other program takes it until this one ends, however it ends.

    Raises:
      UsageError: it cannot be made, or another program holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}.") from error
    if sys.platform == "win32":  # has no lock of a folder
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(
            f"--out {out} is in use by another run. Wait until it has ended, or name another folder."
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def checksum(arrays: Any) -> int:
    """Of all the bits of a pytree."""
    total = 0
    for a in jax.tree.leaves(arrays):
        whole = np.asarray(a.addressable_data(0))  # each device has all of it
        total = zlib.crc32(np.ascontiguousarray(whole).view(np.uint8).data, total)
    return total


class Checkpoints:
    """The checkpoints in the folder of a run, of which the last `keep` stay; None to read and leave all as it is.

    Raises:
      CheckpointError: when one cannot be written, from `save` (of it or of the one before) or `close`.
    """

    def __init__(self, out: Path, keep: int | None = None) -> None:
        self.folder, self.keep = out.absolute() / FOLDER, keep
        self._manager: ocp.CheckpointManager | None = None
        self._chosen: int | None = None

    @property
    def manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            for library in ("absl", "asyncio"):  # orbax tells of every file, and of each error several times
                logging.getLogger(library).setLevel(logging.CRITICAL)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=self.keep is not None, read_only=self.keep is None
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def delete(self) -> None:
        """All at once, by another name, so that half of a run is never taken for one."""
        gone = self.folder.with_name(f".{FOLDER}.deleted")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def save(self, step: int, carry: Any, journal: dict[str, Any]) -> None:
        """Begin to write; what is carried may be updated in place as soon as this returns."""
        if step in self.steps():  # the same step has the same bits
            return
        arrays = ocp.args.StandardSave(carry._asdict())
        journal = {**journal, "checksum": checksum(carry)}
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

    def last(self) -> int:
        """The step of the last checkpoint when this was first asked: all that is read is of one."""
        if self._chosen is None:
            if not (held := self.steps()):
                raise UsageError(f"{self.folder} holds no checkpoint. Name the folder that a run was given as --out.")
            self._chosen = held[-1]
        return self._chosen

    def journal(self) -> dict[str, Any]:
        """What the last checkpoint says of its run."""
        return self._read(journal=ocp.args.JsonRestore())["journal"]

    def carry(self, like: Any) -> Any:
        """What the last checkpoint carries, with the shapes, dtypes and devices of `like`."""
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like._asdict())
        carry = type(like)(**self._read(arrays=ocp.args.StandardRestore(abstract))["arrays"])
        if checksum(carry) != self.journal()["checksum"]:
            raise self._damaged("its arrays are not those that were written")
        return carry

    def _read(self, **items: Any) -> Any:
        step = self.last()
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(_reason(error)) from error

    def _damaged(self, reason: str) -> UsageError:
        path = self.folder / str(self.last())
        if not path.exists():
            return UsageError(f"{path} has just made room for a later one, of a run that goes on. Ask again.")
        earlier = [step for step in self.steps() if step < self.last()]
        rest = f"--resume continues from step {earlier[-1]:,}" if earlier else "--overwrite begins again"
        return UsageError(
            f"{path} is damaged or no checkpoint of this run: {reason}. It is left as it is; move it away, and {rest}."
        )

    def config(self) -> tuple[Config, int, dict[str, Any]]:
        """The configuration of the run, the fingerprint of its images, and what it has measured."""
        journal = self.journal()
        try:
            journal["checksum"]
            return configuration.from_json(journal["config"]), journal["data"], journal["measured"]
        except (KeyError, TypeError) as error:
            raise self.foreign(error) from error

    def foreign(self, error: Exception) -> UsageError:
        return UsageError(
            f"{self.folder / str(self.last())} was written by another program or version: {error!r}. It is left as it "
            "is; continue it with that version, or name another folder."
        )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first; of a long one how it begins and ends."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "") or repr(error)
    return line if len(line) <= 200 else f"{line[:80]} … {line[-120:]}"
