"""A folder of one's own images: trains like the same images by name, and says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tyro
from rich.console import Console

from experiments import data, machine, own_data, streaming, train
from experiments.config import Config, UsageError, dataset_of, from_json
from experiments.trainer import Trainer

QUIET = Console(quiet=True)

pytestmark = pytest.mark.usefixtures("as_a_user")


def small(**changes: Any) -> Config:
    """Of the digits, by name or not."""
    return dataclasses.replace(Config(model="article", epochs=1, batch_size=64), **changes).resolved()


def write(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in zip(own_data.FILES, arrays, strict=True):
        np.save(folder / name, array)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Twelve images in colour of three classes, and six to test on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (18, 6, 5, 3)).astype(np.uint8)
    labels = np.arange(18) % 3
    return write(tmp_path / "own", images[:12], labels[:12], images[12:], labels[12:])


# A run


def test_training_leaves_the_bits_that_the_same_images_leave_by_name(tmp_path: Path) -> None:
    """The digits, without an axis for their one channel, and with labels in bytes."""
    digits = data.load("digits")
    arrays = (digits.train_images[..., 0], digits.train_labels, digits.test_images[..., 0], digits.test_labels)
    write(tmp_path, *(array.astype(np.uint8) for array in arrays))
    by_name, own = (Trainer(config, dataset_of(config)) for config in (small(), small(data=tmp_path)))
    assert own.train_steps(6).tolist() == by_name.train_steps(6).tolist() and own.evaluate() == by_name.evaluate()
    for ours, theirs in zip(jax.tree.leaves(own.carry), jax.tree.leaves(by_name.carry), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_run_knows_its_folder_wherever_it_is_continued(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named like a data set, too."""
    out, digits = own.parent / "run", own.rename(own.parent / "digits")
    monkeypatch.chdir(digits.parent)
    changes = {"model": "cnn", "batch_size": 4, "out": out}
    summary = train.run(small(data=Path("./digits"), **changes), QUIET)
    monkeypatch.chdir(digits)
    assert summary["config"]["data"] == str(digits) == str(small(data=Path("../digits")).data)
    found = train.evaluate(Config(evaluate=out), QUIET)
    assert found == (summary["test_loss"], summary["test_accuracy"])
    with pytest.raises(UsageError, match=r"started with --data \S+/digits, but this one says --data digits\."):
        train.run(small(resume=True, **changes), QUIET)


def test_a_name_is_a_data_set_and_anything_else_a_folder(tmp_path: Path) -> None:
    asked = [tyro.cli(Config, args=["--data", data]).data for data in ("mnist", "./mnist", "minst")]
    assert asked == ["mnist", Path("mnist"), Path("minst")]
    config = Config(data=Path("./mnist")).resolved()
    assert config.data == Path("mnist").absolute() and config.augment == () and config.batch_size == 128
    assert from_json(json.loads(json.dumps(config.to_json()))) == config


# What is read


def test_what_standardises_is_that_of_the_training_images(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of one image and of all."""
    one = own_data.load(own)
    monkeypatch.setattr(own_data, "PIECE", 1)
    assert own_data.load(own).mean == one.mean and own_data.load(own).std == one.std
    ours = data.normalised(one.train_images, one).astype(float)
    np.testing.assert_allclose(ours.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(ours.std((0, 1, 2)), 1, rtol=1e-6)
    assert one.scale == one.train_images.max() and one.classes == ("0", "1", "2")


def test_the_images_stay_in_their_files_and_are_cut_there(own: Path) -> None:
    few = dataset_of(Config(data=own, examples=4))
    assert isinstance(few.train_images, np.memmap) and few.train_images.shape == (4, 6, 5, 3)
    assert len(few.test_labels) == 4 and few.mean == own_data.load(own).mean and len(few.classes) == 3


def test_a_large_file_is_counted_in_little_memory(own: Path) -> None:
    shape = (4000, 64, 64, 3)
    images = np.lib.format.open_memmap(own / "train_images.npy", "w+", np.uint8, shape)
    images[:2] = np.random.default_rng(0).integers(0, 255, (2, *shape[1:]))
    np.save(own / "train_labels.npy", np.arange(4000) % 3)
    np.save(own / "test_images.npy", images[:6])
    tracemalloc.start()
    try:
        own_data.load(own)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes / 4


@pytest.mark.parametrize(("limit", "fits"), [("4000", True), ("2000", False), ("max", True)])
def test_small_files_live_on_the_device(
    limit: str, fits: bool, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,620 bytes of images, on a CPU in a container."""

    class Cpu:
        def memory_stats(self) -> None:
            return None

    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(machine, "CONTAINER", tmp_path / "memory.max")
    assert streaming.fits(own_data.load(own), Cpu()) == fits  # type: ignore[arg-type]


# What is wrong


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Any]:
    return lambda folder: np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda own: own.rename(own.with_name("moved")),
            "own is no folder, and no data set of the name: digits, ",
        ),
        (
            lambda own: (own / "test_labels.npy").unlink(),
            "test_labels.npy is missing. A folder of your own images",
        ),
        (lambda own: (own / "test_images.npy").write_bytes(b"GIF89a" * 20), "test_images.npy cannot be read: "),
        (lambda own: (own / "train_images.npy").write_bytes((own / "train_images.npy").read_bytes()[:-1]), "be read: "),
        (edit("train_labels", lambda a: a.astype(object)), "train_labels.npy cannot be read: "),
        (edit("train_images", lambda a: a[:0]), "train_images.npy is empty: its shape is (0, 6, 5, 3)."),
        (edit("train_images", lambda a: a[0, 0]), "(N, H, W, C) or (N, H, W), but its shape is (5, 3)."),
        (edit("test_images", lambda a: a / 255), "test_images.npy must hold uint8, 0 to 255, but holds float64."),
        (edit("train_images", lambda a: np.zeros((12, 3, 6, 6), np.uint8)), "(12, 3, 6, 6) is that of (N, C, H, W)."),
        (
            edit("test_images", lambda a: a[:, 1:]),
            "the shape of the training images, (6, 5, 3), but theirs is (5, 5",
        ),
        (edit("train_images", lambda a: a | [0, 255, 0]), "must hold uint8, 0 to 255, but holds int64."),
        (edit("train_images", lambda a: a | np.uint8([0, 255, 0])), "channel 1 has one value in all images and says"),
        (edit("train_labels", lambda a: a / 1), "must hold one integer for each image, but holds float64 of the shape"),
        (edit("test_labels", lambda a: a[:, None]), "but holds int64 of the shape (6, 1)."),
        (edit("train_labels", lambda a: a[1:]), "must hold a label for each image, but there are 11 for 12."),
        (
            edit("train_labels", lambda a: a + 1),
            "labels 0 to 2, as it holds 3 different ones, but they are between 1",
        ),
        (edit("train_labels", lambda a: a * 2), "as it holds 3 different ones, but they are between 0 and 4."),
        (edit("train_labels", lambda a: a - 1), "but they are between -1 and 1. Number the classes from 0"),
        (edit("train_labels", lambda a: a * 0), "train_labels.npy holds one label only."),
        (
            edit("test_labels", lambda a: a + 1),
            "labels 0 to 2, as train_labels.npy does, but they are between 1",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_folder_is_said(spoil: Callable[[Path], Any], message: str, own: Path) -> None:
    spoil(own)
    with pytest.raises(data.DataError, match=re.escape(message)):
        train.run(small(data=own, batch_size=4), QUIET)
