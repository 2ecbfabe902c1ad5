"""Four small, real image-classification data sets as NumPy arrays: NHWC pixels, int32 labels, ten classes.

    digits         1,797 images   8 x 8  x 1   shipped with scikit-learn, nothing to download
    mnist         70,000 images  28 x 28 x 1   http://yann.lecun.com/exdb/mnist/
    fashion-mnist 70,000 images  28 x 28 x 1   https://github.com/zalandoresearch/fashion-mnist
    cifar10       60,000 images  32 x 32 x 3   https://www.cs.toronto.edu/~kriz/cifar.html

The files are the originals, in `<data_dir>/<name>/`, downloaded there where they are missing. Each is checked
against its published size and md5 (an unpacked one against what the published one unpacks to) before anything
parses it, and CIFAR-10's pickles go through an unpickler that builds containers, numbers and bytes, and calls nothing.
"""

import gzip
import hashlib
import importlib
import io
import lzma
import os
import pickle
import sys
import tarfile
import urllib.request
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Part = tuple[Pixels, Labels]
Original = tuple[int, str]  # size in bytes and md5 of a published file


class DataError(Exception):
    """A data set cannot be had: the message says which file, what is wrong with it, and what to do."""


class Dataset(NamedTuple):
    """Images (N, H, W, C) with labels (N,) from 0, and what `normalised` needs to know of the pixels."""

    name: str
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, over the training pixels / scale
    std: tuple[float, ...]
    scale: int  # value of the brightest pixel


class Source(NamedTuple):
    """The published files of a data set, where they are served, and the published facts about them."""

    files: Mapping[str, Original]  # packed, as they are served, and unpacked
    mirrors: tuple[str, ...]  # `{file}` stands for the file's name
    classes: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
SOURCES = {
    "mnist": Source(
        files={
            "train-images-idx3-ubyte.gz": (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            "train-labels-idx1-ubyte.gz": (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            "t10k-images-idx3-ubyte.gz": (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            "t10k-labels-idx1-ubyte.gz": (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
            "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/{file}",
            "https://storage.googleapis.com/cvdf-datasets/mnist/{file}",
        ),
        classes="0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion-mnist": Source(
        files={
            "train-images-idx3-ubyte.gz": (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            "train-labels-idx1-ubyte.gz": (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            "t10k-images-idx3-ubyte.gz": (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            "t10k-labels-idx1-ubyte.gz": (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            "train-images-idx3-ubyte": (47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "train-labels-idx1-ubyte": (60_008, "9018921c3c673c538a1fc5bad174d6f9"),
            "t10k-images-idx3-ubyte": (7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
            "t10k-labels-idx1-ubyte": (10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
        },
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{file}",
        ),
        classes="T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot",
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": Source(
        files={
            ARCHIVE: (170_498_071, "c58f30108f718f92721af3b95e74349a"),
            "data_batch_1": (31_035_704, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": (31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": (31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": (31_035_696, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": (31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": (31_035_526, "40351d587109b95175f43aff81a1287e"),
        },
        mirrors=(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",),
        classes="airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
}
NAMES = ("digits", *SOURCES)
TIMEOUT = 30.0  # seconds without a byte before a mirror is given up
ELSEWHERE = "JAXCONV_DATA or --data-dir can name another folder that holds the data sets"


def load(name: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """The whole data set `name`, its files checked against their published sums.

    Args:
        name: one of `NAMES`.
        data_dir: folder that holds a folder `name` with the original files; `default_data_dir()` if None.
            For CIFAR-10 those are the six batches, plain or `.xz`, or else the published archive; for the others the
            four IDX files, `.gz` or unpacked.
        download: whether to fetch files that are missing. A file that is there is never replaced.

    Raises:
        ValueError: no data set is called `name`.
        DataError: a file is missing, damaged or not what it claims to be.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    if name == "digits":
        return _digits()
    source = SOURCES[name]
    folder = Path(default_data_dir() if data_dir is None else data_dir).expanduser() / name
    train, test = (_cifar10 if name == "cifar10" else _mnist)(folder, source, download)
    return Dataset(name, *train, *test, tuple(source.classes.split(", ")), source.mean, source.std, scale=255)


def default_data_dir() -> Path:
    """`$JAXCONV_DATA`, or else the folder `jaxconv` in the user's cache."""
    if chosen := os.environ.get("JAXCONV_DATA"):
        return Path(chosen)
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "jaxconv"


def normalised(images: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[np.float32]:
    """(images / scale - mean) / std, per channel: zero mean and unit variance over the training images."""
    pixels, mean, std = (np.asarray(given, np.float32) for given in (images, dataset.mean, dataset.std))
    return (pixels / np.float32(dataset.scale) - mean) / std


def batches(
    count: int, batch_size: int, rng: np.random.Generator | None = None, *, drop_last: bool = False
) -> Iterator[npt.NDArray[np.intp]]:
    """Index arrays that hold each of 0..count-1 once, shuffled if `rng` is given; the last may be short.

    >>> [indices.tolist() for indices in batches(5, 2)]
    [[0, 1], [2, 3], [4]]

    Args:
        drop_last: leave out a last batch shorter than `batch_size` (with its examples).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.arange(count) if rng is None else rng.permutation(count)
    stop = count - count % batch_size if drop_last else count
    return (order[start : start + batch_size] for start in range(0, stop, batch_size))


def _digits() -> Dataset:
    try:
        digits = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        remedy = 'pip install "jaxconv[experiments]"'
        raise DataError(f"the digits data set comes with scikit-learn, which is missing: {remedy}") from error
    images, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int32)
    rng = np.random.default_rng(0)  # part of the data set: one split for every seed a training may use
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        held_out[rng.choice(members, round(len(members) / 5), replace=False)] = True
    train, test = (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])
    mean, std = float((train[0] / 16).mean()), float((train[0] / 16).std())
    return Dataset("digits", *train, *test, tuple("0123456789"), (mean,), (std,), scale=16)


def _mnist(folder: Path, source: Source, download: bool) -> tuple[Part, Part]:
    def kept(name: str) -> Path:
        packed, plain = folder / f"{name}.gz", folder / name
        return plain if os.path.isfile(plain) and not os.path.exists(packed) else packed

    def idx(path: Path, rank: int) -> Pixels:
        # IDX: the magic number 0x0800 + rank (0x08: unsigned bytes), `rank` big-endian sizes, then the bytes.
        raw = _read(path, source, download)
        with _blaming(path, source):
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
            magic, *sizes = np.frombuffer(raw, ">u4", count=1 + rank).tolist()
            if magic != 0x0800 + rank:
                raise DataError(f"expected the magic number {0x0800 + rank}, found {magic}")
            return np.frombuffer(raw, np.uint8, offset=4 * (1 + rank)).reshape(sizes)

    def part(stem: str) -> Part:
        images, path = idx(kept(f"{stem}-images-idx3-ubyte"), 3), kept(f"{stem}-labels-idx1-ubyte")
        labels = idx(path, 1)
        with _blaming(path, source):
            return _paired(images[..., None], labels.tolist())

    return part("train"), part("t10k")


def _cifar10(folder: Path, source: Source, download: bool) -> tuple[Part, Part]:
    parts: list[Part] = []
    members: dict[str, bytes] = {}
    for name in BATCHES:
        kept = (folder / f"{inner}{name}{xz}" for inner in ("", "cifar-10-batches-py/") for xz in ("", ".xz"))
        if path := next(filter(os.path.isfile, kept), None):
            raw = _read(path, source, download)
        else:
            try:
                members = members or _members(folder / ARCHIVE, source, download)
            except DataError as error:
                raise DataError(f"{folder / name} (plain or .xz) is missing, and {error}") from error
            path, raw = folder / ARCHIVE / name, members.get(name, b"")
        with _blaming(path, source):
            parts.append(_parse_batch(raw))
    images, labels = zip(*parts[:-1], strict=True)
    return (np.concatenate(images), np.concatenate(labels)), parts[-1]


def _members(path: Path, source: Source, download: bool) -> dict[str, bytes]:
    """The batches in the archive, unpacked in memory and in one pass: gzip cannot seek back."""
    packed = _read(path, source, download)
    with _blaming(path, source), tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        files = ((PurePosixPath(entry.name).name, tar.extractfile(entry)) for entry in tar if entry.isfile())
        return {name: _verified(file.read(), source.files[name]) for name, file in files if file and name in BATCHES}


def _parse_batch(raw: bytes) -> Part:
    match unpickle(raw):
        case {b"data": np.ndarray() as rows, b"labels": list(labels)} if rows.shape[1] == 3 * 32 * 32:
            nhwc = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return _paired(np.ascontiguousarray(nhwc), labels)
    raise DataError("expected b'data' with rows of 3,072 bytes, and a list b'labels'")


class _Inert:
    """Keeps what the pickle would call a function with and the state it would set; acts on neither."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state

    def matrix(self) -> Pixels:
        """What numpy would have made of them, for a uint8 matrix in C order only."""
        match self:
            case _Inert(state=(1, (int(rows), int(columns)), _Inert(args=(b"u1", *_)), False, bytes(raw))):
                return np.frombuffer(raw, np.uint8).reshape(rows, columns)
        raise pickle.UnpicklingError("refused: it holds an array that is not a plain uint8 matrix")


class _Unpickler(pickle.Unpickler):
    # Not even numpy's own names are handed out: dtype.__setstate__ believes the flags in the pickle, so that
    # eight bytes of the file can pose as a pointer to an object.
    def find_class(self, module: str, name: str) -> type[_Inert]:
        asked = f"{module}.{name}"
        if asked not in ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"):
            raise pickle.UnpicklingError(f"refused: it asks for {asked}, which no CIFAR-10 batch needs")
        return _Inert


def unpickle(data: bytes) -> dict[bytes, Any]:
    """Decodes a CIFAR-10 batch, uint8 matrices included, without importing or calling anything it names.

    Raises:
        DataError: the pickle is damaged, or names or holds anything that no CIFAR-10 batch does.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        return {key: value.matrix() if isinstance(value, _Inert) else value for key, value in batch.items()}
    except Exception as error:  # damaged opcodes can raise nearly everything
        raise DataError(f"not the pickle of a CIFAR-10 batch ({type(error).__name__}: {error})") from error


def _paired(images: Pixels, labels: list[Any]) -> Part:
    if len(images) != len(labels):
        raise DataError(f"expected one label for each of {len(images)} images, found {len(labels)} labels")
    for label in labels:
        if type(label) is not int or not 0 <= label <= 9:
            raise DataError(f"expected labels in 0..9, found {label!r}")
    return images, np.array(labels, np.int32)


def _verified(raw: bytes, original: Original) -> bytes:
    (size, md5), found = original, hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if (len(raw), found) != original:
        more = "at least " if len(raw) > size else ""
        raise DataError(f"expected {size:,} bytes with md5 {md5}, found {more}{len(raw):,} with md5 {found}")
    return raw


def _urls(path: Path, source: Source) -> list[str]:
    served = path.name.removesuffix(".gz") + ".gz"
    return [mirror.format(file=served) for mirror in source.mirrors]


@contextmanager
def _blaming(path: Path, source: Source) -> Iterator[None]:
    """Adds to whatever is found wrong inside which file it is about, and the remedy."""
    try:
        yield
    except (DataError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(
            f"{path} cannot be used: {error}. The file is left as it is; move it away to have it downloaded "
            f"again from {' or '.join(_urls(path, source))}; {ELSEWHERE}"
        ) from error


def _read(path: Path, source: Source, download: bool) -> bytes:
    """The verified bytes of a published file, unpacked if it is kept as .xz, downloaded if it is missing."""
    original = source.files[path.name.removesuffix(".xz")]
    if os.path.exists(path):
        with _blaming(path, source), lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            # One byte too many is enough to tell, and a file that unpacks without end does no harm.
            return _verified(file.read(original[0] + 1), original)
    if download:
        return _download(path, original, _urls(path, source))
    raise DataError(
        f"{path} is missing ({original[0]:,} bytes, md5 {original[1]}) and downloading is off. "
        f"Get it from {' or '.join(_urls(path, source))}; {ELSEWHERE}"
    )


def _download(path: Path, original: Original, urls: list[str]) -> bytes:
    """Saves and returns what `_fetch` brings; nothing half-written outlives the call, however it ends."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # two processes may want the same file
    try:
        with _folder(path.parent):
            try:
                with part.open("wb") as file:  # opened first: a folder that cannot be written costs no download
                    raw = _fetch(path, original, urls)
                    file.write(raw)
                os.replace(part, path)
            finally:
                with suppress(OSError):
                    part.unlink()
    except OSError as error:
        raise DataError(f"{path} is missing and cannot be written: {error}; {ELSEWHERE}") from error
    return raw


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes a folder, says so, and takes back what it made if nothing came to lie in it."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    if len(made) > 1:  # not only the data set is new here: the name may be mistyped
        print(f"{path.parent} does not exist and is made", file=sys.stderr)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty, or gone
                folder.rmdir()


def _fetch(path: Path, original: Original, urls: list[str]) -> bytes:
    """The bytes of `path` from the first mirror that serves them unharmed."""
    failures = ""
    for url in urls:
        print(f"downloading {url} ({original[0]:,} bytes)", file=sys.stderr)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                return _verified(response.read(original[0] + 1), original)
        except (DataError, OSError, HTTPException) as error:
            failures += f"\n  {url}: {error}"
    raise DataError(f"{path} is missing and no mirror has it:{failures}\n{ELSEWHERE}")
