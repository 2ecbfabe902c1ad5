"""Hostile pickles execute nothing, and broken ones are refused with a reason."""

import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import data
from tests.support.originals import (
    CIFAR,
    DTYPE,
    EMPTY,
    PIXELS,
    TWO,
    Patch,
    batch,
    failure,
    label_list,
    matrix,
    publish,
    string,
    write,
)


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
