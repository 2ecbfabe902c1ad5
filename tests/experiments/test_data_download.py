"""Missing files are downloaded from the first mirror that has them; nothing half-written is left."""

import errno
import io
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import data
from tests.support.originals import (
    CIFAR,
    CIFAR_TAR,
    MNIST,
    TRAIN,
    TRAIN_IMAGES,
    Patch,
    assert_is_cifar,
    failure,
    md5,
    publish,
    tree,
    write,
)


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
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_folder_is_named_and_not_left_behind(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(url: str, timeout: float) -> None:
        assert (tmp_path / "kept" / "tpyo" / "mnist").is_dir(), "made first: a folder that cannot be costs no download"
        raise OSError("unreachable")

    publish(monkeypatch, "mnist", MNIST)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    (tmp_path / "kept").mkdir()
    failure("mnist", tmp_path / "kept" / "tpyo")
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]
    assert f"{tmp_path / 'kept' / 'tpyo'} does not exist and is made" in capsys.readouterr().err


class Interrupted(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise KeyboardInterrupt


def test_interrupted_while_receiving(tmp_path: Path, monkeypatch: Patch) -> None:
    publish(monkeypatch, "mnist", MNIST)
    monkeypatch.setattr(data, "TIMEOUT", 12.5)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: {12.5: Interrupted()}[timeout])
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_saving(mirror: Mirror, tmp_path: Path, monkeypatch: Patch) -> None:
    def replace(part: Path, path: Path) -> None:
        assert part.parent == path.parent and part.read_bytes() == RAW
        raise KeyboardInterrupt

    publish(monkeypatch, "mnist", MNIST, mirror.url + "/{file}")
    mirror.pages[f"/{TRAIN_IMAGES}"] = Page(RAW)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


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
