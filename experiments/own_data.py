"""Images of one's own, as `numpy.save` writes them: four files in a folder, larger than the memory if need be.

    train_images.npy   uint8 (N, H, W, C), or (N, H, W) for one channel
    train_labels.npy   integers (N,): 0, 1, …, K − 1, and an image of each class
    test_images.npy    other images of the same size
    test_labels.npy    and their labels

The files are mapped into memory, so that of the images only those are read that are asked for. What standardises them
is taken from one pass over the training images, which counts how often each channel has each of its 256 values. Counts
are exact in whatever pieces they are made; a core makes them of 600 MB a second (AMD EPYC, numpy 2.4.6, 2026-11-26).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.data import NAMES, DataError, Dataset, Pixels

Integers = npt.NDArray[np.integer[Any]]

FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
EXPECTED = f"A folder of your own images holds {', '.join(FILES)}: uint8 (N, H, W, C) or (N, H, W), and integers (N,)"
PIECE = 1 << 20  # bytes counted at a time


def load(folder: Path) -> Dataset:
    """The images and labels in a folder, and what standardises them.

    Raises:
      DataError: a file is missing or cannot be read, or they do not fit together.
    """
    if not folder.is_dir():
        raise DataError(f"--data {folder} is no folder, and no data set of the name: {', '.join(NAMES)}. {EXPECTED}.")
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing. {EXPECTED}.")
    train, test = (_images(folder / f"{part}_images.npy") for part in ("train", "test"))
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{folder}: the images to test on must have the shape of the training images, {train.shape[1:]}, but "
            f"theirs is {test.shape[1:]}."
        )
    train_labels, test_labels = (
        _labels(folder / f"{part}_labels.npy", images) for part, images in (("train", train), ("test", test))
    )
    classes = len(np.unique(train_labels))
    if classes < 2:
        raise DataError(f"{folder / FILES[1]} holds one label only. There is nothing to learn.")
    _numbered(folder / FILES[1], train_labels, classes, f"as it holds {classes} different ones")
    _numbered(folder / FILES[3], test_labels, classes, f"as {FILES[1]} does")
    brightest, mean, std = _statistics(folder / FILES[0], train)
    train_part, test_part = (train, train_labels.astype(np.int32)), (test, test_labels.astype(np.int32))
    return Dataset(str(folder), *train_part, *test_part, tuple(map(str, range(classes))), mean, std, brightest)


def _opened(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Write it with numpy.save.") from error
    if not array.size:
        raise DataError(f"{path} is empty: its shape is {array.shape}. {EXPECTED}.")
    return array


def _images(path: Path) -> Pixels:
    images = _opened(path)
    if images.ndim not in (3, 4):
        raise DataError(f"{path} must have the axes (N, H, W, C) or (N, H, W), but its shape is {images.shape}.")
    if images.dtype != np.uint8:
        raise DataError(f"{path} must hold uint8, 0 to 255, but holds {images.dtype}.")
    if images.ndim == 3:
        return images[..., None]
    _, first, height, width = images.shape
    if first < 5 <= height == width:
        raise DataError(
            f"{path} must have the axes (N, H, W, C), but its shape {images.shape} is that of (N, C, H, W). Save "
            "numpy.moveaxis(images, 1, -1)."
        )
    return images


def _labels(path: Path, images: Pixels) -> Integers:
    labels = _opened(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} must hold one integer for each image, but holds {labels.dtype} of the shape {labels.shape}."
        )
    if len(labels) != len(images):
        raise DataError(f"{path} must hold a label for each image, but there are {len(labels)} for {len(images)}.")
    return labels


def _numbered(path: Path, labels: Integers, classes: int, why: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{path} must hold the labels 0 to {classes - 1}, {why}, but they are between {low} and {high}. Number the "
            "classes from 0 and without gaps."
        )


def _statistics(path: Path, images: Pixels) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """The brightest value, and mean and standard deviation of each channel in parts of it."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    rows = max(1, PIECE // images[0].size)
    for first in range(0, len(images), rows):
        pixels = images[first : first + rows].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    if len(constant := np.flatnonzero((counts > 0).sum(1) == 1)):
        raise DataError(f"{path}: channel {constant[0]} has one value in all images and says nothing. Leave it out.")
    values, total = np.arange(256), counts[0].sum()
    brightest = int(values[counts.any(0)].max())
    mean = counts @ values / total
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / total)
    return brightest, tuple((mean / brightest).tolist()), tuple((std / brightest).tolist())
