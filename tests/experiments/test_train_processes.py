"""Two processes train as one does; when one is killed the other ends, and the run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import config, devices, train
from experiments.checkpoints import Checkpoints
from experiments.config import Config, UsageError

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
EPOCHS = 2

pytestmark = pytest.mark.usefixtures("as_a_user")


def started(out: Path, *more: str, own: Sequence[Sequence[str]] = ((), ())) -> list[subprocess.Popen[str]]:
    """Two processes, with options of all and of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "experiments.train", "--model", "article", "--epochs", str(EPOCHS), "--out", str(out)),
        *("--coordinator", address, "--processes", str(len(own)), *more),
    ]
    return [
        subprocess.Popen([*command, "--process", str(i), *options], cwd=ROOT, text=True,
                         env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i, options in enumerate(own)
    ]  # fmt: skip


def rows(out: Path) -> np.ndarray:
    return np.array([list(json.loads(line).values()) for line in (out / "metrics.jsonl").read_text().splitlines()])


def killed(out: Path, which: int) -> str:
    """Kill one of two as soon as there is a checkpoint; what the other says at its end."""
    processes = started(out, "--checkpoint-every", "3", "--steps-per-call", "1")
    try:
        deadline = time.monotonic() + 240
        while not Checkpoints(out).steps():
            assert time.monotonic() < deadline and not any(process.poll() for process in processes)
            time.sleep(0.01)
        processes[which].kill()
        said, _ = processes[1 - which].communicate(timeout=6 * devices.HEARTBEAT)
        assert processes[1 - which].returncode != 0
        return said
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def assert_like_one_process(out: Path, tmp_path: Path) -> None:
    train.run(Config(model="article", epochs=EPOCHS, out=tmp_path / "alone"), QUIET)
    np.testing.assert_allclose(rows(out), rows(tmp_path / "alone"), rtol=1e-4)


@pytest.mark.thorough
def test_when_one_is_killed_the_other_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    """Some steps by two processes and the others by one are those of one."""
    said = killed(tmp_path / "run", 1)
    assert "another one has ended" in said or "another task died" in said
    assert "process 0 of 2: when another one ends this one does" in said and "--resume" in said
    assert 0 < Checkpoints(tmp_path / "run").steps()[-1] < 44
    train.run(Config(model="article", epochs=EPOCHS, out=tmp_path / "run", resume=True), QUIET)
    assert_like_one_process(tmp_path / "run", tmp_path)


@pytest.mark.thorough
def test_two_processes_train_like_one_and_survive_the_first_ones_death(tmp_path: Path) -> None:
    said = killed(tmp_path / "run", 0)
    assert "another one has ended" in said or "another task died" in said or "coordination service" in said.lower()
    assert "process 1 of 2: when another one ends this one does" in said and "--resume" in said
    for process in started(tmp_path / "run", "--resume"):
        assert process.wait(240) == 0
        process.communicate()
    assert (tmp_path / "run" / "summary.json").exists()
    assert_like_one_process(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 2}, r"go together, but --coordinator and --process is missing. Say all three, or none"),
        ({"coordinator": "x:1", "processes": 2, "process": 2}, r"must satisfy 0 <= process < 2, but is 2"),
    ],
    ids=["alone", "third of two"],
)
def test_processes_that_cannot_meet(changes: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(Config(), **changes)
    with pytest.raises(ValueError, match=message):
        devices.join(config.coordinator, config.processes, config.process)


def test_a_process_that_waits_in_vain_says_so_and_ends() -> None:
    """JAX would abort the program."""
    code = "from experiments import devices; devices.WAIT = 1; devices.join('127.0.0.1:1', 2, 1)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done
    assert "error: the processes have not met at 127.0.0.1:1 within 1 seconds. Start all of them" in done.stderr


def test_what_differs_between_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[np.ndarray] = []

    def process_allgather(own: np.ndarray) -> np.ndarray:
        gathered.append(own)
        return np.stack(gathered)

    assert devices.differing({"seed": "0"}) == [] and not gathered  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(devices.multihost_utils, "process_allgather", process_allgather)
    assert devices.differing({"seed": "0", "epochs": "2", "out": "run"}) == []
    assert devices.differing({"seed": "1", "epochs": "2", "out": "runs"}) == ["seed", "out"]


@pytest.mark.parametrize(
    ("name", "is_refused"), [("seed", True), ("out", True), ("process", False), ("data_dir", False)]
)
def test_processes_of_different_trainings_are_refused(
    name: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(config, "differing", lambda words: [option for option in words if option == name])
    if not is_refused:
        config.check_together(vars(Config()))
        return
    with pytest.raises(
        UsageError, match=rf"--{name} must be the same in all processes, but is not: process 0 of 2 has"
    ):
        config.check_together(vars(Config()))


def test_a_signal_to_one_process_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is agreed on here is what another process has received; as a number of steps it is fifteen."""
    monkeypatch.setattr(train, "together", lambda own: int(signal.SIGTERM))
    summary = train.run(Config(model="article", epochs=2), QUIET)
    assert summary["status"] == "interrupted" and summary["signal"] == "SIGTERM" and summary["epochs_finished"] == 0


@pytest.mark.thorough
def test_two_processes_that_were_told_different_things_both_say_so(tmp_path: Path) -> None:
    processes = started(tmp_path / "run", own=[["--seed", "0"], ["--seed", "1"]])
    for process in processes:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 2 and "--seed must be the same in all processes" in said.replace("\n", " ")
    assert not (tmp_path / "run").exists()
