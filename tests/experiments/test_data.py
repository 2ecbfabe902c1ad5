"""Data sets as a caller sees them: the digits, names and folders, batches, and the real files.

The real files are read where `JAXCONV_DATA` names their folder; all else runs on files the tests write.
"""

import gzip
import hashlib
import importlib
import os
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import data
from tests.support.originals import MNIST, Patch, failure, publish, write

# ---------------------------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def test_digits_are_scikit_learns(digits: data.Dataset) -> None:
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    original = sorted((image.tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True))
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    ours = sorted(
        (image[..., 0].astype(float).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    assert ours == original, "train and test together are not every digit exactly once"
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8 and labels.dtype == np.int32
    assert digits.scale == 16 == images.max()


def test_digits_hold_out_a_fifth_of_every_class(digits: data.Dataset) -> None:
    test = np.bincount(digits.test_labels, minlength=10)
    everything = np.bincount(digits.train_labels, minlength=10) + test
    np.testing.assert_array_equal(test, np.round(everything / 5))
    assert len(digits.test_labels) == 359


def test_the_digits_split_is_fixed(digits: data.Dataset) -> None:
    np.random.seed(1)
    again = data.load("digits")
    for ours, other in zip(digits[1:5], again[1:5], strict=True):
        np.testing.assert_array_equal(ours, other, strict=True)
    # Accuracies measured by different versions of the library compare only on the same images.
    assert zlib.crc32(digits.test_images.tobytes()) == 754892343


def test_digits_without_scikit_learn(monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert 'scikit-learn, which is missing: pip install "jaxconv[experiments]"' in failure("digits")


def test_normalised_digits(digits: data.Dataset) -> None:
    pixels = data.normalised(digits.train_images, digits)
    assert pixels.dtype == np.float32 and pixels.shape == digits.train_images.shape
    np.testing.assert_allclose([pixels.mean(dtype=float), pixels.std(dtype=float)], [0, 1], atol=1e-6)


def test_normalised_is_per_channel(digits: data.Dataset) -> None:
    colours = digits._replace(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0), scale=255)
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    expected = np.broadcast_to(np.array([1, 3, 0.5], np.float32), images.shape)
    np.testing.assert_array_equal(data.normalised(images, colours), expected, strict=True)


# ------------------------------------------------------------------------------------------ names and folders


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="name must be one of digits, mnist, fashion-mnist, cifar10; got 'svhn'"):
        data.load("svhn")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"JAXCONV_DATA": "chosen", "XDG_CACHE_HOME": "cache"}, Path("chosen")),
        ("linux", {"XDG_CACHE_HOME": "cache"}, Path("cache", "jaxconv")),
        ("linux", {"JAXCONV_DATA": "", "XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "jaxconv"),
        ("darwin", {}, Path.home() / ".cache" / "jaxconv"),
        ("win32", {"LOCALAPPDATA": "local", "XDG_CACHE_HOME": "cache"}, Path("local", "jaxconv")),
        ("win32", {}, Path.home() / "AppData" / "Local" / "jaxconv"),
    ],
    ids=["chosen", "xdg", "empty", "mac", "windows", "bare windows"],
)
def test_default_data_dir(platform: str, variables: dict[str, str], expected: Path, monkeypatch: Patch) -> None:
    for name in ("JAXCONV_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert data.default_data_dir() == expected


def test_the_default_folder_is_used(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST)
    write(tmp_path / "mnist", MNIST)
    monkeypatch.setenv("JAXCONV_DATA", str(tmp_path))
    assert len(data.load("mnist", download=False).train_images) == 5


def test_a_folder_below_home(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST)
    write(tmp_path / "kept" / "mnist", MNIST)
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(tmp_path))
    assert len(data.load("mnist", "~/kept", download=False).train_images) == 5


# --------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("rng", [None, np.random.default_rng(3)], ids=["in order", "shuffled"])
@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(0, 3, []), (1, 3, [1]), (6, 3, [3, 3]), (7, 3, [3, 3, 1]), (5, 1, [1] * 5), (5, 9, [5])],
)
def test_batches_hold_every_index_once(
    count: int, batch_size: int, sizes: list[int], rng: np.random.Generator | None
) -> None:
    parts = list(data.batches(count, batch_size, rng))
    assert [len(part) for part in parts] == sizes
    assert sorted(int(index) for part in parts for index in part) == list(range(count))
    whole = [part for part in data.batches(count, batch_size, rng, drop_last=True)]
    assert [len(part) for part in whole] == [size for size in sizes if size == batch_size]


def test_batches_follow_the_generator() -> None:
    def order(rng: np.random.Generator | None) -> list[int]:
        return [int(index) for part in data.batches(100, 7, rng) for index in part]

    assert order(None) == list(range(100))
    assert order(np.random.default_rng(5)) == order(np.random.default_rng(5)) != order(None)
    rng = np.random.default_rng(5)
    assert order(rng) != order(rng), "two epochs came in the same order"


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_refuses_a_size(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        data.batches(10, batch_size)


# ------------------------------------------------------------------------------------------------- real files


class Facts(NamedTuple):
    shape: tuple[int, ...]
    train: list[int]  # images of each class
    test: list[int]
    first: str  # classes of the first training and test image
    pixel: list[int]  # the first bright one of the first training image, row by row


FACTS = {
    "mnist": Facts(
        (28, 28, 1),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        "5, 7",
        [3],
    ),
    "fashion-mnist": Facts((28, 28, 1), [6000] * 10, [1000] * 10, "ankle boot, ankle boot", [1]),
    "cifar10": Facts((32, 32, 3), [5000] * 10, [1000] * 10, "frog, cat", [59, 62, 63]),
}


@pytest.fixture(scope="module", params=FACTS)
def real(request: pytest.FixtureRequest) -> data.Dataset:
    if not os.environ.get("JAXCONV_DATA"):
        pytest.skip("JAXCONV_DATA does not name a folder with the original files")
    return data.load(request.param, download=False)


def test_real_images_and_labels(real: data.Dataset) -> None:
    facts = FACTS[real.name]
    assert real.train_images.shape == (sum(facts.train), *facts.shape)
    assert real.test_images.shape == (sum(facts.test), *facts.shape)
    assert real.train_images.dtype == real.test_images.dtype == np.uint8
    assert real.train_labels.dtype == real.test_labels.dtype == np.int32
    assert np.bincount(real.train_labels).tolist() == facts.train
    assert np.bincount(real.test_labels).tolist() == facts.test
    assert real.train_images.max() == real.scale
    assert ", ".join(real.classes[labels[0]] for labels in (real.train_labels, real.test_labels)) == facts.first
    pixels = real.train_images[0].reshape(-1, facts.shape[-1])
    assert pixels[pixels.any(axis=1)][0].tolist() == facts.pixel


def test_real_mean_and_std_are_the_published(real: data.Dataset) -> None:
    channels = real.train_images.shape[-1]
    counts = np.zeros((channels, 256))
    for images in np.array_split(real.train_images, 20):  # bincount widens its argument eightfold
        counts += [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(channels)]
    values, weights = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(weights @ values**2 - mean**2)
    assert tuple(mean.round(4)) == real.mean
    assert tuple(std.round(4)) == real.std


@pytest.mark.skipif("JAXCONV_DATA" not in os.environ, reason="JAXCONV_DATA does not name the original files")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files_unpack_to_the_sums_of_the_unpacked(name: str) -> None:
    files = data.SOURCES[name].files
    packed = [file for file in files if file.endswith(".gz")]
    for file in packed:
        raw = gzip.decompress((data.default_data_dir() / name / file).read_bytes())
        assert (len(raw), hashlib.md5(raw).hexdigest()) == files[file.removesuffix(".gz")], file
    assert len(packed) == 4
