"""Data sets are read whole and checked, hostile files run nothing, and every failure says what to do.

The real files are read where `JAXCONV_DATA` names their folder; all else runs on files the tests write.
"""

import errno
import gzip
import hashlib
import importlib
import io
import lzma
import os
import pickle
import re
import socket
import struct
import sys
import tarfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import data

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


# --------------------------------------------------------------------------------------------- tiny originals


def packed(*header: int, body: bytes = b"") -> bytes:
    return gzip.compress(struct.pack(f">{len(header)}I", *header) + body)


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    return packed(magic or 0x0800 + array.ndim, *array.shape, body=array.astype(np.uint8).tobytes())


RNG = np.random.default_rng(7)
TRAIN, TEST = (RNG.integers(0, 256, (n, 4, 3), np.uint8) for n in (5, 2))
MNIST: Files = {
    TRAIN_IMAGES: idx(TRAIN),
    TRAIN_LABELS: idx(np.array([3, 1, 4, 0, 9])),
    TEST_IMAGES: idx(TEST),
    TEST_LABELS: idx(np.array([2, 7])),
}


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


# Pickle's opcodes: c names a global, K and J push an integer, U and T a string, ] } N list, dict, None;
# ( is a mark, \x85 to \x87 and t make tuples, R calls, b sets a state, a e u s append and store.
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
DTYPE = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def matrix(shape: tuple[int, int], raw: bytes, dtype: bytes = DTYPE) -> bytes:
    rows, columns = shape
    return EMPTY + b"(K\1" + integer(rows) + integer(columns) + b"\x86" + dtype + b"\x89" + raw + b"tb"


def batch(pixels: bytes, labels: bytes) -> bytes:
    """A pickle as Python 2 wrote those of CIFAR-10: today's `pickle` cannot, its str is another type."""
    return b"\x80\x02}(U\4data" + pixels + b"U\6labels" + labels + b"u."


def label_list(*labels: int) -> bytes:
    return b"](" + b"".join(map(integer, labels)) + b"e"


def rows_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    return batch(matrix((rows.shape[0], rows.shape[1]), string(rows.tobytes())), label_list(*labels))


ROWS = {name: RNG.integers(0, 256, (2, 3072), np.uint8) for name in data.BATCHES}
CIFAR_LABELS = {name: [at, 9 - at] for at, name in enumerate(data.BATCHES)}
CIFAR: Files = {name: rows_batch(ROWS[name], CIFAR_LABELS[name]) for name in data.BATCHES}


def tar_gz(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in reversed(files.items()):
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
        link = tarfile.TarInfo("cifar-10-batches-py/link")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        tar.addfile(link)
    return buffer.getvalue()


CIFAR_TAR = tar_gz({**CIFAR, "readme.html": b"not a batch"})


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


def publish(patch: Patch, name: str, files: Files, *mirrors: str) -> None:
    """Makes `files` the originals of the data set, served at `mirrors`."""
    sums = {file: (len(raw), md5(raw)) for file, raw in files.items()}
    urls = mirrors or ("http://mirror.invalid/{file}",)
    patch.setitem(data.SOURCES, name, data.SOURCES[name]._replace(files=sums, mirrors=urls))


def write(folder: Path, files: Files) -> None:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def tree(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure(*args: object, **options: bool) -> str:
    with pytest.raises(data.DataError) as caught:
        data.load(*args, **options)  # type: ignore[arg-type]
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- IDX files


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


# ------------------------------------------------------------------------------------------------- download


class Page(NamedTuple):
    body: bytes
    announced: int | None = None  # length in the header, where it is not the truth
    silent: bool = False  # never answers
    garbled: bool = False  # does not speak HTTP


class Mirror(NamedTuple):
    url: str
    pages: dict[str, Page]
    asked: list[str]


@pytest.fixture
def mirror(monkeypatch: Patch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "*")
    pages: dict[str, Page] = {}
    asked: list[str] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            page = pages.get(self.path)
            if page is None:
                return self.send_error(404)
            if page.silent:
                over.wait()
                return None
            if page.garbled:
                self.wfile.write(page.body)
                return None
            self.send_response(200)
            self.send_header("Content-Length", str(len(page.body) if page.announced is None else page.announced))
            self.end_headers()
            self.wfile.write(page.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Mirror(f"http://127.0.0.1:{server.server_port}", pages, asked)
        over.set()
        server.shutdown()
        thread.join()


def test_download(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST, mirror.url + "/one/{file}", mirror.url + "/two/{file}")
    mirror.pages.update({f"/one/{file}": Page(raw) for file, raw in MNIST.items()})
    first = data.load("mnist", tmp_path / "new")
    assert tree(tmp_path / "new" / "mnist") == MNIST
    assert mirror.asked == [f"/one/{file}" for file in MNIST]
    second = data.load("mnist", tmp_path / "new")
    assert len(mirror.asked) == len(MNIST), "a file that is there was downloaded again"
    for loaded in (first, second):
        np.testing.assert_array_equal(loaded.train_images, TRAIN[..., None])


def test_download_of_the_cifar10_archive(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "cifar10", {**CIFAR, data.ARCHIVE: CIFAR_TAR}, f"{mirror.url}/{data.ARCHIVE}")
    mirror.pages[f"/{data.ARCHIVE}"] = Page(CIFAR_TAR)
    assert_is_cifar(data.load("cifar10", tmp_path))
    assert tree(tmp_path) == {f"cifar10/{data.ARCHIVE}": CIFAR_TAR}


RAW = MNIST[TRAIN_IMAGES]


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (None, "HTTP Error 404: Not Found"),
        (
            Page(RAW[:30], announced=len(RAW)),
            f"expected {len(RAW)} bytes with md5 {md5(RAW)}, found 30 with md5",
        ),
        (Page(RAW[:-1] + b"?"), f"found {len(RAW)} with md5 {md5(RAW[:-1] + b'?')}"),
        (Page(RAW + bytes(99)), f"found at least {len(RAW) + 1} with md5"),
        (Page(b"", silent=True), "timed out"),
        (Page(b"220 ready", garbled=True), "220 ready"),
    ],
    ids=["404", "truncated", "corrupted", "endless", "silent", "garbled"],
)
def test_a_failing_mirror(
    page: Page | None, complaint: str, mirror: Mirror, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(data, "TIMEOUT", 0.2 if page and page.silent else data.TIMEOUT)
    publish(monkeypatch, "mnist", MNIST, mirror.url + "/one/{file}", mirror.url + "/two/{file}")
    write(tmp_path / "mnist", rest := {file: raw for file, raw in MNIST.items() if file != TRAIN_IMAGES})
    if page:
        mirror.pages[f"/one/{TRAIN_IMAGES}"] = page

    message = failure("mnist", tmp_path)
    first, *tried, remedy = message.splitlines()
    assert first == f"{tmp_path / 'mnist' / TRAIN_IMAGES} is missing and no mirror has it:"
    assert tried[0].startswith(f"  {mirror.url}/one/{TRAIN_IMAGES}: ") and complaint in tried[0]
    assert tried[1:] == [f"  {mirror.url}/two/{TRAIN_IMAGES}: HTTP Error 404: Not Found"]
    assert remedy.startswith("JAXCONV_DATA or --data-dir")
    assert tree(tmp_path / "mnist") == rest

    mirror.pages[f"/two/{TRAIN_IMAGES}"] = Page(RAW)
    np.testing.assert_array_equal(data.load("mnist", tmp_path).train_images, TRAIN[..., None])
    assert tree(tmp_path / "mnist") == MNIST


def test_no_network(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        publish(monkeypatch, "mnist", MNIST, url + "/one/{file}", url + "/two/{file}")
        message = failure("mnist", tmp_path)
    assert message.startswith(f"{tmp_path / 'mnist' / TRAIN_IMAGES} is missing and no mirror has it:\n")
    for place in ("one", "two"):
        assert re.search(rf"\n  {url}/{place}/{TRAIN_IMAGES}: .*refused", message)
    assert tree(tmp_path) == {}


class Interrupted(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise KeyboardInterrupt


def test_interrupted_while_receiving(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST)
    monkeypatch.setattr(data, "TIMEOUT", 12.5)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: {12.5: Interrupted()}[timeout])
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", tmp_path)
    assert tree(tmp_path) == {}


def test_interrupted_while_saving(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    def replace(part: Path, path: Path) -> None:
        assert part.parent == path.parent and part.read_bytes() == RAW
        raise KeyboardInterrupt

    publish(monkeypatch, "mnist", MNIST, mirror.url + "/{file}")
    mirror.pages[f"/{TRAIN_IMAGES}"] = Page(RAW)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", tmp_path)
    assert tree(tmp_path) == {}


def test_disk_full(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    def replace(part: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(monkeypatch, "mnist", MNIST, mirror.url + "/{file}")
    mirror.pages[f"/{TRAIN_IMAGES}"] = Page(RAW)
    monkeypatch.setattr(os, "replace", replace)
    message = failure("mnist", tmp_path)
    assert message.startswith(f"{tmp_path / 'mnist' / TRAIN_IMAGES} is missing and cannot be written: ")
    assert "No space left on device; JAXCONV_DATA or --data-dir" in message
    assert tree(tmp_path) == {}


def test_a_folder_that_cannot_be_made_costs_no_download(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST, mirror.url + "/{file}")
    (tmp_path / "file").write_bytes(b"the user's")
    message = failure("mnist", tmp_path / "file" / "inner")
    path = tmp_path / "file" / "inner" / "mnist" / TRAIN_IMAGES
    assert message.startswith(f"{path} is missing and cannot be written: ")
    assert "JAXCONV_DATA or --data-dir" in message
    assert mirror.asked == []
    assert tree(tmp_path) == {"file": b"the user's"}


# -------------------------------------------------------------------------------------------------- CIFAR-10


def nhwc(rows: np.ndarray) -> np.ndarray:
    return np.stack([plane.reshape(-1, 32, 32) for plane in np.split(rows, 3, axis=1)], axis=-1)


def assert_is_cifar(loaded: data.Dataset) -> None:
    *train, test = data.BATCHES
    images = np.concatenate([nhwc(ROWS[name]) for name in train])
    np.testing.assert_array_equal(loaded.train_images, images, strict=True)
    np.testing.assert_array_equal(loaded.test_images, nhwc(ROWS[test]), strict=True)
    assert loaded.train_labels.tolist() == [label for name in train for label in CIFAR_LABELS[name]]
    assert loaded.test_labels.tolist() == CIFAR_LABELS[test]
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == np.int32
    assert loaded.train_images.flags.c_contiguous and loaded.test_images.flags.c_contiguous


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


PIXELS = string(bytes(2 * 3072))
TWO = matrix((2, 3072), PIXELS)


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


# ------------------------------------------------------------------------------------------ hostile pickles


def shell(mark: Path) -> bytes:
    return string(f'echo > "{mark}"'.encode())


def expression(mark: Path) -> bytes:
    return string(f"open({str(mark)!r}, 'w').close()".encode())


def text(value: object) -> bytes:
    raw = str(value).encode()
    return b"X" + struct.pack("<i", len(raw)) + raw


# Each leaves its mark when Python's own unpickler reads it; the text is what ours must refuse it with.
EXECUTING: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system by REDUCE": (lambda mark: b"cos\nsystem\n" + shell(mark) + b"\x85R.", "os.system"),
    "os.system by INST": (lambda mark: b"(" + shell(mark) + b"ios\nsystem\n.", "os.system"),
    "os.system by OBJ": (lambda mark: b"(cos\nsystem\n" + shell(mark) + b"o.", "os.system"),
    "eval as Python 2 names it": (
        lambda mark: b"\x80\x02c__builtin__\neval\n" + expression(mark) + b"\x85R.",
        "__builtin__.eval",
    ),
    "eval by STACK_GLOBAL": (
        lambda mark: b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + expression(mark) + b"\x85R.",
        "builtins.eval",
    ),
    "a file made by a class": (
        lambda mark: b"\x80\x02c_io\nFileIO\n" + text(mark) + b"U\1w\x86R.",
        "_io.FileIO",
    ),
    "a method of numpy's array": (
        lambda mark: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93" + EMPTY + text(mark) + b"\x86R.",
        "numpy.ndarray.tofile",
    ),
    "among a batch's labels": (
        lambda mark: batch(TWO, b"](cos\nsystem\n" + shell(mark) + b"\x85Re"),
        "os.system",
    ),
    "in an array's dtype": (
        lambda mark: batch(matrix((2, 3072), PIXELS, b"cos\nsystem\n" + shell(mark) + b"\x85R"), label_list(1)),
        "os.system",
    ),
}


@pytest.mark.parametrize("attack", EXECUTING)
def test_a_hostile_pickle_executes_nothing(attack: str, tmp_path: Path) -> None:
    make, asked = EXECUTING[attack]
    mark = tmp_path / "mark"
    with pytest.raises(data.DataError, match=rf"refused: it asks for {re.escape(asked)}, which no CIFAR-10"):
        data.unpickle(make(mark))
    assert not mark.exists()


@pytest.mark.parametrize("attack", EXECUTING)
def test_the_hostile_pickles_are_hostile(attack: str, tmp_path: Path) -> None:
    make, _ = EXECUTING[attack]
    mark = tmp_path / "mark"
    try:
        opened = pickle.loads(make(mark), encoding="ASCII")
    except (TypeError, ValueError):
        pass  # what it builds around the call need not fit together
    else:
        getattr(opened, "close", int)()
    assert mark.exists()


NOT_UINT8 = "refused: it holds an array that is not a plain uint8 matrix"
POINTERS = (  # a field of objects, eight bytes long, with flags that say there is none
    b"cnumpy\ndtype\nU\2V8K\0K\1\x87R(K\3U\1|N(U\1at}U\1acnumpy\ndtype\nU\2O8\x85RK\0\x86sK\x08K\1K\0tb"
)
REFUSED = {
    "PERSID": (b"P../../x\n.", "persistent"),
    "BINPERSID": (b"\x80\x02U\1xQ.", "persistent"),
    "extension code": (b"\x80\x02\x82\x01.", "unregistered extension code 1"),
    "another name of numpy": (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
    "another name of multiarray": (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
    "copy_reg": (b"\x80\x02ccopy_reg\n_reconstructor\n.", "copy_reg._reconstructor"),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__base__\x93.", "numpy.ndarray.__base__"),
    "forged pointers": (batch(matrix((1, 8), string(b"A" * 8), POINTERS), label_list(1)), NOT_UINT8),
    "object dtype": (batch(matrix((1, 1), b"]Na", DTYPE.replace(b"u1", b"O8")), label_list(1)), NOT_UINT8),
    "float dtype": (batch(matrix((1, 768), PIXELS, DTYPE.replace(b"u1", b"f8")), label_list(1)), NOT_UINT8),
    "Fortran order": (batch(TWO.replace(b"\x89" + PIXELS, b"\x88" + PIXELS), label_list(1, 2)), NOT_UINT8),
    "list for bytes": (batch(matrix((1, 1), b"]Na"), label_list(1)), NOT_UINT8),
    "attribute of a class": (b"cnumpy\ndtype\nN}U\6matrixNs\x86b.", "__setstate__"),
    "cut string": (b"\x80\x02T\xff\xff\xff\x7f.", "truncated"),
    "no pickle": (b"\xff\x00", "invalid load key"),
    "empty": (b"", "Ran out of input"),
}


@pytest.mark.parametrize(("raw", "complaint"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_or_broken_pickle_is_refused(raw: bytes, complaint: str) -> None:
    before = dict(vars(data._Inert))
    with pytest.raises(data.DataError, match=f"^not the pickle of a CIFAR-10 batch .*{re.escape(complaint)}"):
        data.unpickle(raw)
    assert dict(vars(data._Inert)) == before, "the pickle changed the class that stands in for numpy's"


def test_a_hostile_batch_meets_the_checksum_first(tmp_path: Path, monkeypatch: Patch) -> None:
    def never(raw: bytes) -> None:
        raise AssertionError("unpickled before the checksum")

    publish(monkeypatch, "cifar10", CIFAR)
    monkeypatch.setattr(data, "unpickle", never)
    write(tmp_path / "cifar10", {**CIFAR, "data_batch_1": b"cos\nsystem\n."})
    assert f"expected {len(CIFAR['data_batch_1']):,} bytes with md5" in failure("cifar10", tmp_path)


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
