"""IDX files are read whole and checked, and every failure names the file and says what to do."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from tests.support.originals import (
    MNIST,
    TEST,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Files,
    Patch,
    failure,
    idx,
    md5,
    packed,
    publish,
    tree,
    write,
)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_whole(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, name, MNIST)
    write(tmp_path / name, MNIST)
    loaded = data.load(name, tmp_path, download=False)
    np.testing.assert_array_equal(loaded.train_images, TRAIN[..., None], strict=True)
    np.testing.assert_array_equal(loaded.test_images, TEST[..., None], strict=True)
    np.testing.assert_array_equal(loaded.train_labels, np.array([3, 1, 4, 0, 9], np.int32), strict=True)
    np.testing.assert_array_equal(loaded.test_labels, np.array([2, 7], np.int32), strict=True)
    assert (loaded.name, loaded.scale, len(loaded.classes)) == (name, 255, 10)


def unpacked(*files: str) -> Files:
    """MNIST with these files as gunzip leaves them."""
    return {
        file.removesuffix(".gz") if file in files else file: gzip.decompress(raw) if file in files else raw
        for file, raw in MNIST.items()
    }


@pytest.mark.parametrize("files", [tuple(MNIST), (TRAIN_LABELS, TEST_IMAGES)], ids=["all", "two of four"])
def test_unpacked_idx_files_are_read(files: tuple[str, ...], tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST | unpacked(*MNIST))
    write(tmp_path / "mnist", unpacked(*files))
    loaded = data.load("mnist", tmp_path, download=False)
    np.testing.assert_array_equal(loaded.train_images, TRAIN[..., None], strict=True)
    np.testing.assert_array_equal(loaded.test_images, TEST[..., None], strict=True)
    assert loaded.train_labels.tolist() == [3, 1, 4, 0, 9] and loaded.test_labels.tolist() == [2, 7]


@pytest.mark.parametrize("file", MNIST)
def test_an_unpacked_file_has_a_sum_of_its_own(file: str, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST | unpacked(*MNIST), "http://one.invalid/{file}")
    name = file.removesuffix(".gz")
    files = unpacked(*MNIST)
    right, wrong = md5(files[name]), files[name][:-1] + bytes([files[name][-1] ^ 1])
    write(tmp_path / "mnist", files | {name: wrong})
    message = failure("mnist", tmp_path)
    assert message.startswith(
        f"{tmp_path / 'mnist' / name} cannot be used: expected {len(wrong)} bytes with md5 {right}"
    )
    assert f"md5 {md5(wrong)}. " in message and f"from http://one.invalid/{file}; " in message
    assert tree(tmp_path / "mnist") == files | {name: wrong}


@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: raw[:-5],
        lambda raw: b"",
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw + b"\0",
    ],
    ids=["truncated", "empty", "one bit", "too long"],
)
@pytest.mark.parametrize("file", MNIST)
def test_a_damaged_file_is_named_and_kept(
    harm: Callable[[bytes], bytes], file: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    publish(monkeypatch, "mnist", MNIST, "http://one.invalid/{file}", "http://two.invalid/{file}")
    files = {**MNIST, file: harm(MNIST[file])}
    write(tmp_path / "mnist", files)
    message = failure("mnist", tmp_path)
    assert message.startswith(f"{tmp_path / 'mnist' / file} cannot be used: ")
    assert f"expected {len(MNIST[file])} bytes with md5 {md5(MNIST[file])}, found " in message
    assert f"{len(files[file])} with md5 {md5(files[file])}. " in message
    assert f"http://one.invalid/{file} or http://two.invalid/{file}" in message
    assert "JAXCONV_DATA or --data-dir" in message
    assert tree(tmp_path / "mnist") == files


@pytest.mark.parametrize(
    ("file", "raw", "complaint"),
    [
        (TRAIN_IMAGES, idx(TRAIN, magic=2052), "expected the magic number 2051, found 2052"),
        (TRAIN_LABELS, idx(TRAIN), "expected the magic number 2049, found 2051"),
        (TRAIN_IMAGES, gzip.compress(b"\0\0\x08\x03\0\0"), "buffer is smaller than requested size"),
        (TEST_LABELS, packed(2049, 3, body=b"\1\2"), r"size 2 into shape \(3,\)"),
        (TEST_IMAGES, packed(2051, 2, 4, 3, body=bytes(25)), r"size 25 into shape \(2,4,3\)"),
        (
            TEST_IMAGES,
            packed(2051, *[2**32 - 1] * 3),
            "array is too big|Maximum allowed dimension|into shape",
        ),
        (TRAIN_IMAGES, MNIST[TRAIN_IMAGES][:-9], "ended before the end-of-stream marker"),
        (TRAIN_IMAGES, b"plain text", "Not a gzipped file"),
        (TEST_IMAGES, MNIST[TEST_IMAGES][:10] + b"\xff" * 40, "while decompressing data: "),
    ],
    ids=["magic", "rank", "header", "few", "many", "huge", "cut gzip", "no gzip", "no deflate"],
)
def test_inconsistent_idx(file: str, raw: bytes, complaint: str, tmp_path: Path, monkeypatch: Patch) -> None:
    files = {**MNIST, file: raw}
    publish(monkeypatch, "mnist", files)
    write(tmp_path / "mnist", files)
    message = failure("mnist", tmp_path)
    assert message.startswith(f"{tmp_path / 'mnist' / file} cannot be used: ")
    assert re.search(complaint, message)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([3, 1, 4, 10, 9], "expected labels in 0..9, found 10"),
        ([3, 1, 4, 0], "expected one label for each of 5 images, found 4 labels"),
        ([3, 1, 4, 0, 9, 9], "expected one label for each of 5 images, found 6 labels"),
    ],
    ids=["range", "few", "many"],
)
def test_labels_do_not_fit(labels: list[int], complaint: str, tmp_path: Path, monkeypatch: Patch) -> None:
    files = {**MNIST, TRAIN_LABELS: idx(np.array(labels))}
    publish(monkeypatch, "mnist", files)
    write(tmp_path / "mnist", files)
    message = failure("mnist", tmp_path)
    assert message.startswith(f"{tmp_path / 'mnist' / TRAIN_LABELS} cannot be used: {complaint}. ")


def test_a_missing_file_without_download(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST, "http://one.invalid/{file}")
    write(tmp_path / "mnist", {file: raw for file, raw in MNIST.items() if file != TEST_LABELS})
    raw = MNIST[TEST_LABELS]
    assert failure("mnist", tmp_path, download=False) == (
        f"{tmp_path / 'mnist' / TEST_LABELS} is missing ({len(raw)} bytes, md5 {md5(raw)}) "
        f"and downloading is off. Get it from http://one.invalid/{TEST_LABELS}; "
        "JAXCONV_DATA or --data-dir can name another folder that holds the data sets"
    )


def test_a_folder_in_place_of_a_file(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST)
    (tmp_path / "mnist" / TRAIN_IMAGES).mkdir(parents=True)
    assert f"{tmp_path / 'mnist' / TRAIN_IMAGES} cannot be used: " in failure("mnist", tmp_path)
