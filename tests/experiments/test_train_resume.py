"""A run that was killed goes on from its last checkpoint, to the same bits; nothing good is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import checkpoints, data, survival, train
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.config import CIRCUMSTANCES, Config, UsageError, from_json

QUIET = Console(quiet=True)

pytestmark = [
    pytest.mark.usefixtures("as_a_user"),
    # When orbax fails, what it was doing in other threads fails, too, with nobody there to be told.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def small(**changes: Any) -> Config:
    return dataclasses.replace(Config(model="article", epochs=2), **changes)


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """What no handler of the program's knows."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: type[BaseException] = Killed) -> None:
    """The call that begins at this step does not come."""
    train_steps = train.Trainer.train_steps

    def stopping(self: train.Trainer, count: int) -> np.ndarray:
        if self.step == step:
            raise how
        return train_steps(self, count)

    monkeypatch.setattr(train.Trainer, "train_steps", stopping)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run of two epochs, and one that was killed after 30 of its 44 steps."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train.run(small(out=whole), QUIET)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            stop_at(patch, 30)
            train.run(small(out=killed, checkpoint_every=6), QUIET)
    deadline = time.monotonic() + 60
    while Checkpoints(killed).steps() != [24, 30]:  # written in the background
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return whole, killed


@pytest.fixture
def killed(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run that was killed."""
    shutil.copytree(runs[1], tmp_path / "killed")
    return tmp_path / "killed"


def test_a_killed_process_is_continued_to_the_same_bits(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """By `kill -9`, as soon as there is a checkpoint, somewhere in the first of two epochs."""
    out = tmp_path / "run"
    process = survival.start(survival.Options(epochs=2, checkpoint_every=5), out, "--steps-per-call", "1")
    deadline = time.monotonic() + 240
    while not Checkpoints(out).steps():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "summary.json").exists()
    train.run(small(out=out, resume=True), QUIET)
    assert survival.same(runs[0], out)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_twenty_kills_change_nothing(dtype: str, tmp_path: Path) -> None:
    assert survival.run(survival.Options(kills=20, dtype=dtype), tmp_path, QUIET)


def test_a_run_is_continued_from_its_last_checkpoint(runs: tuple[Path, Path], killed: Path) -> None:
    taken, train_steps = [], train.Trainer.train_steps

    def watched(self: train.Trainer, count: int) -> np.ndarray:
        taken.append((self.step, count))
        return train_steps(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "train_steps", watched)
        summary = train.run(small(out=killed, resume=True, steps_per_call=8), QUIET)
    assert taken == [(30, 8), (38, 6)] and summary["status"] == "finished"
    assert survival.same(runs[0], killed)
    assert set(train.FILES) | {checkpoints.FOLDER} == {path.name for path in killed.iterdir()}


@pytest.mark.thorough
def test_a_run_on_one_device_is_continued_on_four(runs: tuple[Path, Path], killed: Path) -> None:
    train.run(small(out=killed, resume=True, devices=4), QUIET)
    whole, ours = (json.loads((out / "metrics.jsonl").read_text().splitlines()[-1]) for out in (runs[0], killed))
    np.testing.assert_allclose(list(ours.values()), list(whole.values()), rtol=1e-5)


def test_a_finished_run_is_left_as_it_is(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = shutil.copytree(runs[0], tmp_path / "run")
    before, console = held(out), Console(record=True)
    summary = train.run(small(out=out, resume=True), console)
    assert summary == json.loads((runs[0] / "summary.json").read_text()) and held(out) == before
    assert "nothing is left to do" in console.export_text()
    (out / "summary.json").unlink()  # killed just before it was written
    assert train.run(small(out=out, resume=True), QUIET)["status"] == "finished"
    assert held(out).keys() == before.keys() and survival.same(runs[0], out)


def test_a_run_at_a_constant_rate_may_become_longer(tmp_path: Path) -> None:
    whole, grown = (small(out=tmp_path / name, schedule="constant") for name in ("whole", "grown"))
    train.run(whole, QUIET)
    train.run(dataclasses.replace(grown, epochs=1), QUIET)
    train.run(dataclasses.replace(grown, resume=True), QUIET)
    assert survival.same(tmp_path / "whole", tmp_path / "grown")
    with pytest.raises(UsageError, match=r"started with --epochs 2, but this one says --epochs 1. Say --epochs 2"):
        train.run(dataclasses.replace(grown, epochs=1, resume=True), QUIET)


def test_where_and_how_it_computes_is_not_part_of_a_run(runs: tuple[Path, Path], killed: Path) -> None:
    train.run(small(out=killed, resume=True, data_on="host", loop=True, steps_per_call=4), QUIET)
    assert survival.same(runs[0], killed)


def test_an_interrupted_run_leaves_a_checkpoint_of_its_last_step(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 13, KeyboardInterrupt)
        train.run(small(out=tmp_path, steps_per_call=13), QUIET)
    assert Checkpoints(tmp_path).steps() == [13]
    with pytest.raises(UsageError, match=r"Say --resume to continue it from step 13, or --overwrite to delete it"):
        train.run(small(out=tmp_path), QUIET)
    assert train.run(small(out=tmp_path, resume=True), QUIET)["status"] == "finished"
    assert survival.same(runs[0], tmp_path)


def test_a_folder_without_a_checkpoint_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the first one, or never run: the same command serves."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 0)
        train.run(small(out=tmp_path, resume=True), QUIET)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 2)
        train.run(small(out=tmp_path, resume=True), QUIET)


def test_the_last_few_are_kept_and_overwriting_deletes_them(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 0)
        train.run(small(out=killed, overwrite=True), QUIET)
    assert Checkpoints(killed).steps() == [] and (killed / "metrics.jsonl").read_text() == ""


def test_evaluate_says_how_good_a_checkpoint_is(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[-1])
    monkeypatch.setattr("sys.argv", ["train", "--evaluate", str(runs[0])])
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        assert train.main() == 0
    said = capsys.readouterr().out
    assert f"test accuracy {last['test_accuracy']:.2%}, test loss {last['test_loss']:.4f}" in said
    assert train.evaluate(Config(evaluate=runs[0]), QUIET) == (last["test_loss"], last["test_accuracy"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, r"--evaluate takes the run as it is, but --dtype float16 says something else. Leave it"),
        ({"data": "mnist"}, r"--data mnist says something else"),
        ({"data": Path("elsewhere")}, r"--data elsewhere: the run in .* learned from digits. Leave it out"),
    ],
)
def test_an_evaluation_does_not_ignore_options(changes: dict[str, Any], message: str, killed: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train.evaluate(Config(evaluate=killed, **changes), QUIET)


def test_whoever_reads_changes_nothing(killed: Path) -> None:
    """Not even what a checkpoint that is being written has so far."""
    (killed / checkpoints.FOLDER / "31.orbax-checkpoint-tmp").mkdir()
    before = sorted(killed.rglob("*"))
    train.evaluate(Config(evaluate=killed), QUIET)
    assert sorted(killed.rglob("*")) == before


def test_what_is_read_is_of_one_checkpoint(killed: Path) -> None:
    """Though another is finished in the meantime, or even takes its place."""
    store = Checkpoints(killed)
    store.config()
    (killed / checkpoints.FOLDER / "30").rename(killed / checkpoints.FOLDER / "36")
    assert store.last() == 30 and Checkpoints(killed).last() == 36
    with pytest.raises(UsageError, match=r"30 has just made room for a later one, of a run that goes on. Ask again"):
        store.config()
    store.close()


def test_a_run_does_not_go_on_with_other_images(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    changed = digits.train_images.copy()
    changed[0, 0, 0] += 1
    mean = float((changed / 16).mean())
    others = [
        digits._replace(train_images=changed, mean=(mean,)),
        digits._replace(train_labels=digits.train_labels[::-1]),
    ]
    before = held(killed)
    for other in others:
        monkeypatch.setattr(data, "load", lambda *_, other=other: other)
        for ask in (train.run, train.evaluate):
            with pytest.raises(
                UsageError, match=r"digits holds other images or labels than those that the run was begun"
            ):
                ask(small(out=killed, resume=True) if ask is train.run else Config(evaluate=killed), QUIET)
    assert held(killed) == before


def test_a_folder_is_of_one_run_at_a_time(killed: Path) -> None:
    before = held(killed)
    with checkpoints.claimed(killed):
        for how in ("resume", "overwrite"):
            with pytest.raises(UsageError, match=r"is in use by another run. Wait until it has ended, or name"):
                train.run(small(out=killed, **{how: True}), QUIET)
    assert held(killed) == before
    train.run(small(out=killed, resume=True), QUIET)


def test_float16_carries_its_scale(tmp_path: Path) -> None:
    config = small(dtype="float16", epochs=1, out=tmp_path / "run")
    train.run(config, QUIET)
    with survival.restored(tmp_path / "run") as trainer:
        fresh = trainer.policy.init()
        assert trainer.carry.scaling.calm == trainer.steps and fresh.calm == 0


# What is no checkpoint of this run


def test_a_folder_that_is_no_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / checkpoints.FOLDER / "2024").mkdir(parents=True)
    (tmp_path / checkpoints.FOLDER / "2024" / "thesis.txt").write_text("years of work")
    before = held(tmp_path)
    not_of_a_run = "holds a folder checkpoints, but no metrics.jsonl: it is not that of a run"
    for changes, message in (
        ({}, not_of_a_run),
        ({"overwrite": True}, not_of_a_run),
        ({"resume": True}, "or no checkpoint of this run"),
    ):
        with pytest.raises(UsageError, match=message):
            train.run(small(out=tmp_path, **changes), QUIET)
    assert held(tmp_path) == before


def test_half_of_a_run_that_is_deleted_is_none(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while --overwrite deletes: there is no checkpoint then, and --overwrite begins again."""
    rmtree, deleted = shutil.rmtree, []

    def killed_at_once(path: Path, **options: Any) -> None:
        if path.is_dir():
            deleted.append(next(path.rglob("*")))
            raise Killed
        rmtree(path, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", killed_at_once)
        train.run(small(out=killed, overwrite=True), QUIET)
    assert deleted and Checkpoints(killed).steps() == []
    with pytest.raises(UsageError, match=r"no checkpoint to continue from. Say --overwrite to begin again"):
        train.run(small(out=killed, resume=True), QUIET)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 0)
        train.run(small(out=killed, overwrite=True), QUIET)
    assert {path.name for path in killed.iterdir()} <= {*train.FILES, checkpoints.FOLDER}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.25}, r"started with --learning-rate 0.001, but this one says --learning-rate 0.25. Say"),
        ({"epochs": 3}, r"started with --epochs 2, but this one says --epochs 3 \(the cosine schedule depends on it\)"),
        ({"examples": 640}, r"started with --examples None, but this one says --examples 640. Say --examples None"),
        ({"model": "cnn"}, r"started with --model article, but"),
        ({"batch_size": 32}, r"started with --batch-size 64, but this one says --batch-size 32"),
        ({"augment": ("crop", "flip")}, r"but this one says --augment crop flip"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_another_configuration_is_refused(changes: dict[str, Any], message: str, killed: Path) -> None:
    before = held(killed)
    with pytest.raises(UsageError, match=message):
        train.run(small(out=killed, resume=True, **changes), QUIET)
    assert held(killed) == before


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: largest(path).write_bytes(largest(path).read_bytes()[:100]),
        lambda path: (path / "journal" / "metadata").write_text("{"),
        lambda path: flip_a_bit(largest(path)),
        lambda path: shutil.rmtree(path / "arrays"),
        lambda path: shutil.rmtree(path / "journal"),
    ],
    ids=["arrays cut", "journal cut", "another bit", "no arrays", "no journal"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    break_it: Any, runs: tuple[Path, Path], killed: Path
) -> None:
    last = killed / checkpoints.FOLDER / "30"
    break_it(last)
    before = held(killed)
    with pytest.raises(UsageError) as error:
        train.run(small(out=killed, resume=True), QUIET)
    assert f"{last} is damaged" in str(error.value) and "--resume continues from step 24" in str(error.value)
    assert held(killed) == before
    last.rename(killed / "away")
    train.run(small(out=killed, resume=True), QUIET)
    assert survival.same(runs[0], killed)


def test_a_checkpoint_of_something_else_is_refused(killed: Path) -> None:
    import orbax.checkpoint as ocp

    path = killed / checkpoints.FOLDER / "40"
    with ocp.StandardCheckpointer() as foreign:
        foreign.save(path.absolute(), {"w": np.ones(3)})
    before = held(killed)
    with pytest.raises(UsageError, match=r"checkpoints/40 is damaged or no checkpoint of this run"):
        train.run(small(out=killed, resume=True), QUIET)
    assert held(killed) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda journal: journal | {"config": journal["config"] | {"pruning": 0.5}}, "pruning"),
        (lambda journal: journal["config"].pop("clip") or journal, "clip"),
        (lambda journal: journal | {"measured": journal["measured"] | {"joules": 1.0}}, "joules"),
        (lambda journal: {k: v for k, v in journal.items() if k != "checksum"}, "checksum"),
        (lambda journal: {k: v for k, v in journal.items() if k != "data"}, "data"),
    ],
    ids=["later", "earlier", "more measured", "no checksum", "no fingerprint"],
)
def test_a_checkpoint_of_another_version_is_refused(change: Any, name: str, killed: Path) -> None:
    journal = killed / checkpoints.FOLDER / "30" / "journal" / "metadata"
    content = json.loads(journal.read_text())
    content = change(content)
    journal.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"was written by another program or version: .*'{name}'"):
        train.run(small(out=killed, resume=True), QUIET)


def test_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no checkpoint. Name the folder that a run was given as --out"):
        train.evaluate(Config(evaluate=tmp_path), QUIET)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UsageError, match=r"no checkpoint to continue from. Say --overwrite to begin again"):
        train.run(small(out=tmp_path, resume=True), QUIET)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: to a program that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_a_run_and_leaves_the_checkpoints_that_are_good(
    runs: tuple[Path, Path], killed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = {name: raw for name, raw in held(killed).items() if name.startswith(checkpoints.FOLDER)}
    with pytest.raises(CheckpointError) as error, no_room(4096):
        train.run(small(out=killed, resume=True, checkpoint_every=6, keep=9), QUIET)
    assert "cannot take a checkpoint: " in str(error.value)
    assert "The one of step 30 is good: make room, and say --resume." in str(error.value)
    assert good.items() <= held(killed).items()
    train.run(small(out=killed, resume=True), QUIET)
    assert survival.same(runs[0], killed)


def test_a_configuration_is_what_its_json_says() -> None:
    config = small(out=Path("a"), rules=Path("b.json"), augment=("flip",), data="cifar10").resolved()
    assert from_json(json.loads(json.dumps(config.to_json()))) == config
    assert set(CIRCUMSTANCES) < {field.name for field in dataclasses.fields(Config)}
