"""CIFAR-10 in all the layouts it is kept in, checked batch by batch."""

import gzip
import lzma
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from tests.support.originals import (
    CIFAR,
    CIFAR_LABELS,
    CIFAR_TAR,
    EMPTY,
    PIXELS,
    ROWS,
    TWO,
    Files,
    Patch,
    assert_is_cifar,
    batch,
    failure,
    integer,
    label_list,
    matrix,
    md5,
    publish,
    string,
    tar_gz,
    tree,
    write,
)


def test_the_tiny_batches_are_what_numpy_reads() -> None:
    for name, raw in CIFAR.items():
        oracle = pickle.loads(raw, encoding="bytes")
        np.testing.assert_array_equal(oracle[b"data"], ROWS[name], strict=True)
        ours = data.unpickle(raw)
        np.testing.assert_array_equal(ours[b"data"], oracle[b"data"], strict=True)
        assert ours[b"labels"] == oracle[b"labels"] == CIFAR_LABELS[name]


INNER = "cifar-10-batches-py/"
XZ = {f"{name}.xz": lzma.compress(raw) for name, raw in CIFAR.items()}
CIFAR_LAYOUTS: dict[str, Files] = {
    "plain": CIFAR,
    "xz": XZ,
    "plain inside": {INNER + name: raw for name, raw in CIFAR.items()},
    "xz inside": {INNER + name: raw for name, raw in XZ.items()},
    "archive": {data.ARCHIVE: CIFAR_TAR},
    "mixed": {
        "data_batch_2.xz": XZ["data_batch_2.xz"],
        "test_batch": CIFAR["test_batch"],
        data.ARCHIVE: CIFAR_TAR,
    },
    "plain before others": {**CIFAR, **dict.fromkeys(XZ, b"bad"), data.ARCHIVE: b"bad"},
    "xz before inner": {**XZ, **dict.fromkeys((INNER + name for name in CIFAR), b"bad")},
}


@pytest.mark.parametrize("layout", CIFAR_LAYOUTS)
def test_cifar10_layouts(layout: str, tmp_path: Path, monkeypatch: Patch) -> None:
    files = CIFAR_LAYOUTS[layout]
    publish(monkeypatch, "cifar10", {**CIFAR, data.ARCHIVE: CIFAR_TAR})
    write(tmp_path / "cifar10", files)
    assert_is_cifar(data.load("cifar10", tmp_path, download=False))
    assert tree(tmp_path / "cifar10") == files, "reading left something on the disk"


def test_a_missing_batch_and_archive(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "cifar10", {**CIFAR, data.ARCHIVE: CIFAR_TAR}, f"http://one.invalid/{data.ARCHIVE}")
    write(tmp_path / "cifar10", {name: raw for name, raw in CIFAR.items() if name != "data_batch_4"})
    folder = tmp_path / "cifar10"
    message = failure("cifar10", tmp_path, download=False)
    assert message.startswith(
        f"{folder / 'data_batch_4'} (plain or .xz) is missing, and {folder / data.ARCHIVE} is missing "
        f"({len(CIFAR_TAR):,} bytes, md5 {md5(CIFAR_TAR)})"
    )
    assert f"http://one.invalid/{data.ARCHIVE}" in message


WRONG = CIFAR["data_batch_2"][:-4] + b"\0u.."


@pytest.mark.parametrize(
    ("file", "raw", "complaint"),
    [
        (
            "data_batch_2",
            WRONG,
            f"expected {len(WRONG):,} bytes with md5 {md5(CIFAR['data_batch_2'])}, found",
        ),
        ("data_batch_2", CIFAR["data_batch_2"][:100], "found 100 with md5"),
        ("data_batch_2", CIFAR["data_batch_2"] + bytes(9), f"found at least {len(WRONG) + 1:,} with md5"),
        ("data_batch_2.xz", lzma.compress(WRONG), f"found {len(WRONG):,} with md5 {md5(WRONG)}"),
        ("data_batch_2.xz", XZ["data_batch_2.xz"][:-20], "ended before the end-of-stream marker"),
        ("data_batch_2.xz", b"plain text", "Input format not supported"),
        (data.ARCHIVE, CIFAR_TAR[:-1], f"expected {len(CIFAR_TAR):,} bytes with md5 {md5(CIFAR_TAR)}, found"),
    ],
    ids=["wrong", "truncated", "long", "wrong xz", "truncated xz", "no xz", "truncated archive"],
)
def test_a_damaged_batch_is_named_and_kept(
    file: str, raw: bytes, complaint: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    publish(monkeypatch, "cifar10", {**CIFAR, data.ARCHIVE: CIFAR_TAR}, f"http://one.invalid/{data.ARCHIVE}")
    files = {name: kept for name, kept in CIFAR.items() if name != "data_batch_2"} | {file: raw}
    write(tmp_path / "cifar10", files)
    message = failure("cifar10", tmp_path)
    assert f"{tmp_path / 'cifar10' / file} cannot be used: " in message
    assert complaint in message
    assert f"move it away to have it downloaded again from http://one.invalid/{data.ARCHIVE}" in message
    assert tree(tmp_path / "cifar10") == files


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        (CIFAR_TAR[:-40], "ended before the end-of-stream marker"),
        (gzip.compress(b"no tar at all"), "file could not be opened successfully|truncated header"),
        (
            tar_gz({**CIFAR, "data_batch_3": WRONG}),
            f"md5 {md5(CIFAR['data_batch_3'])}, found .* md5 {md5(WRONG)}",
        ),
        (tar_gz({"data_batch_1": CIFAR["data_batch_1"]}), "data_batch_2 cannot be used: .*Ran out of input"),
    ],
    ids=["cut gzip", "no tar", "wrong member", "missing member"],
)
def test_inconsistent_archive(archive: bytes, complaint: str, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "cifar10", {**CIFAR, data.ARCHIVE: archive})
    write(tmp_path / "cifar10", {data.ARCHIVE: archive})
    message = failure("cifar10", tmp_path)
    assert str(tmp_path / "cifar10" / data.ARCHIVE) in message
    assert re.search(complaint, message)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (batch(TWO, label_list(1, 10)), "expected labels in 0..9, found 10"),
        (batch(TWO, label_list(-1, 1)), "expected labels in 0..9, found -1"),
        (batch(TWO, b"](" + string(b"1") + integer(1) + b"e"), "expected labels in 0..9, found b'1'"),
        (batch(TWO, b"](\x88\x89e"), "expected labels in 0..9, found True"),
        (batch(TWO, label_list(1)), "expected one label for each of 2 images, found 1 labels"),
        (batch(TWO, integer(3)), "expected b'data' with rows of 3,072 bytes, and a list b'labels'"),
        (batch(string(b"pixels"), label_list(1)), "expected b'data' with rows of 3,072 bytes"),
        (
            batch(matrix((4, 1536), PIXELS), label_list(1, 2, 3, 4)),
            "expected b'data' with rows of 3,072 bytes",
        ),
        (batch(matrix((3, 3072), PIXELS), label_list(1, 2)), "cannot reshape array of size 6144 into shape"),
        (batch(matrix((-2, -3072), PIXELS), label_list(1, 2)), "can only specify one unknown dimension"),
        (batch(EMPTY, label_list(1, 2)), "not a plain uint8 matrix"),
        (b"\x80\x02]q\0.", "'list' object has no attribute 'items'"),
        (b"\x80\x02}(U\4data", "unexpected MARK|pickle|Ran out of input"),
    ],
    ids=[
        "10",
        "-1",
        "bytes",
        "bool",
        "few",
        "no list",
        "no array",
        "narrow",
        "short",
        "negative",
        "unbuilt",
        "list",
        "cut",
    ],
)
def test_inconsistent_batch(raw: bytes, complaint: str, tmp_path: Path, monkeypatch: Patch) -> None:
    files = {**CIFAR, "data_batch_5": raw}
    publish(monkeypatch, "cifar10", files)
    write(tmp_path / "cifar10", files)
    message = failure("cifar10", tmp_path)
    assert message.startswith(f"{tmp_path / 'cifar10' / 'data_batch_5'} cannot be used: ")
    assert re.search(complaint, message)
