"""Tiny data sets in the formats of the published ones, and how a test puts them in their place."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from experiments import data

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


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
PIXELS = string(bytes(2 * 3072))
TWO = matrix((2, 3072), PIXELS)


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
