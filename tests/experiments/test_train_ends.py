"""A training that ends early, by a signal or by its loss, says so and loses nothing; one that goes on speaks."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import checkpoints, progress, rules_agree, train, trainer
from experiments.divergence import GROWTH, DivergedError, Watch
from experiments.stopping import SIGNALS, StopSignal, between_steps, raise_on_signals

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
PNG = b"\x89PNG\r\n\x1a\n"


pytestmark = pytest.mark.usefixtures("as_a_user")


def small(**changes: Any) -> train.Config:
    """A run of a few seconds."""
    return dataclasses.replace(train.Config(model="article", epochs=1), **changes)


def log() -> Console:
    """What a file would hold, where the output is sent to one."""
    return Console(file=io.StringIO(), width=60)


def read(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_valid_metrics_and_summary(number: signal.Signals, status: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "--epochs", "100000", "--model", "article", "--out", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "stopping after this step" in errors and "Traceback" not in errors
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["signal"] == number.name
    assert summary["epochs_finished"] == len(rows) >= 1
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"]
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    assert set(held(tmp_path)) == set(train.FILES)


def test_a_signal_waits_for_the_end_of_a_step_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopSignal) as stop, between_steps() as poll:
        poll()
        signal.raise_signal(signal.SIGTERM)
        finished = True
        poll()
    assert finished and stop.value.signal is signal.SIGTERM
    with pytest.raises(SystemExit) as end, between_steps():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is before


def test_a_signal_whose_exception_was_lost_is_raised_again() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        poll = raise_on_signals()
        poll()
        with pytest.raises(StopSignal):  # where a callback of the interpreter's would lose it
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopSignal) as again:
            poll()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert again.value.signal is signal.SIGTERM


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """The step after so many is interrupted."""
    steps = train.Trainer.train_steps

    def interrupt(self: train.Trainer, count: int) -> np.ndarray:
        if self.step == after:
            raise KeyboardInterrupt
        return steps(self, count)

    monkeypatch.setattr(train.Trainer, "train_steps", interrupt)


def test_a_run_interrupted_in_its_first_epoch_has_a_summary_and_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)
        assert train.run(small(out=tmp_path), QUIET)["status"] == "interrupted"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] is None and (tmp_path / "metrics.jsonl").read_text() == ""
    before = held(tmp_path)
    with pytest.raises(
        train.UsageError, match=r"already \(metrics.jsonl, times.jsonl, summary.json, filters.png, check"
    ):
        train.run(small(out=tmp_path), QUIET)
    assert held(tmp_path) == before
    assert checkpoints.Checkpoints(tmp_path).steps() == [2]
    assert train.run(small(out=tmp_path, overwrite=True), QUIET)["status"] == "finished"


@pytest.mark.parametrize("name", train.FILES)
def test_each_file_of_a_run_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(train.UsageError, match="holds a run already"):
        train.run(small(out=tmp_path), QUIET)
    assert held(tmp_path) == {name: b""}


# Divergence


def test_a_training_that_diverges_stops_with_a_sentence_and_keeps_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate jumps in the second epoch: the first one stands."""
    monkeypatch.setattr(
        trainer, "learning_rate", lambda config, steps: lambda step: jax.numpy.where(step < 24, 0.1, 1e30)
    )
    monkeypatch.setattr(sys, "argv", ["train", "--model", "article", "--optimizer", "sgd", "--out", str(tmp_path)])
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        assert train.main() == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [row["epoch"] for row in rows] == [1] and summary["epochs_finished"] == 1
    assert summary["status"] == "diverged" and summary["test_loss"] == rows[0]["test_loss"]
    assert re.fullmatch(
        r"the training diverged: the loss is (nan|inf|\S+e\+\d+) at step 26 of 440; it was 0\.\d+ before, and \d\.\d+ "
        r"at the first step. Try a lower --learning-rate \(now 0.1\) or --clip 1 against long gradients.",
        summary["reason"],
    )
    assert f"stopped: {summary['reason']}" in capsys.readouterr().out
    assert set(held(tmp_path)) == {"metrics.jsonl", "times.jsonl", "summary.json", "curve.png"}


def test_weights_broken_by_the_last_step_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trainer, "learning_rate", lambda config, steps: lambda step: jax.numpy.where(step < 21, 0.1, 1e38)
    )
    summary = train.run(small(optimizer="sgd", out=tmp_path), QUIET)
    assert summary["status"] == "diverged" and "at the test images after step 22;" in summary["reason"]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([2.0, 3.0, float("nan")], "the loss is nan at step 3; it was 3 before, and 2 at the first step. Try less."),
        ([2.0, 0.5, float("inf")], "the loss is inf at step 3; it was 0.5 before, and 2 at the first step."),
        ([2.0, 1e-6, 2.001 * GROWTH], "the loss is 2001 at step 3; it was 1e-06 before"),
        ([float("nan")], "the loss is nan at step 1, before any weight has changed."),
    ],
    ids=["nan", "inf", "large", "from the start"],
)
def test_a_loss_out_of_bounds_is_an_error(losses: list[float], message: str) -> None:
    watch = Watch("less")
    for step, loss in enumerate(losses[:-1], 1):
        watch(loss, f"step {step}")
    with pytest.raises(DivergedError, match=re.escape(message)):
        watch(losses[-1], f"step {len(losses)}")


def test_a_spike_is_no_divergence() -> None:
    watch = Watch("less")
    for loss in (2.3, 1e-9, 2.3, 0.999 * GROWTH * 2.3, 0.0):
        watch(loss, "")


def test_rules_cannot_agree_on_what_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = rules_agree.Options(steps=8, learning_rate=1e6, dtype="float32", out=tmp_path / "a.png")
    with pytest.raises(DivergedError, match=r"at step \d; .* Try a lower --learning-rate"):
        rules_agree.run(options, QUIET)


# Progress


def test_a_file_gets_a_line_for_the_first_step_and_then_now_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 12.9, 13.0, 20.0, 23.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    console = log()
    with progress.progress(console, 1200) as tick:
        for step, loss in enumerate((2.5, 2.0, 1.5, 1.0, 0.25), 1):
            tick(step, loss)
    assert read(console).splitlines() == [
        "1,200 steps, of which the first compiles",
        "step 1 of 1,200   loss 2.5   3.0 s",
        "step 3 of 1,200   loss 1.5   13.0 s, about 5,985 s left",
        "step 5 of 1,200   loss 0.25   23.0 s, about 5,975 s left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with progress.progress(console, 4) as tick:
        for step in range(1, 5):
            tick(step, 1.0)
    assert "4/4" in read(console) and "━" in read(console) and "loss" not in read(console)


def test_a_run_speaks_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    console = log()
    train.run(small(steps_per_call=1), console)
    lines = read(console).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == [str(n) for n in range(1, 23)]
    assert sum(line.startswith("epoch ") for line in lines) == 1
