"""The pictures of a run, as PNG files; readable in grey."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from experiments.files import write_atomically


def save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def curve(metrics: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over the epochs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epoch = [m["epoch"] for m in metrics]
    loss.plot(epoch, [m["train_loss"] for m in metrics], "k--", label="train")
    loss.plot(epoch, [m["test_loss"] for m in metrics], "C0-o", markersize=3, label="test")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    loss.legend(frameon=False)
    best = max(metrics, key=lambda m: m["test_accuracy"])
    accuracy.plot(epoch, [100 * m["test_accuracy"] for m in metrics], "C0-o", markersize=3)
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)", title=f"best {best['test_accuracy']:.2%}")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    save(figure, path)


def first_kernel(params: Any) -> np.ndarray:
    """The first convolution kernel (HWIO) of a network, in the order of its layers."""
    if isinstance(params, dict):
        if "w" in params and np.ndim(params["w"]) == 4:
            return np.asarray(params["w"], np.float32)
        params = list(params.values())
    for child in params if isinstance(params, list) else []:
        try:
            return first_kernel(child)
        except LookupError:
            continue
    raise LookupError("no convolution kernel")


def filters(params: Any, path: Path) -> None:
    """The kernels of the first layer, each scaled to its own range; in colour where the input has three channels."""
    w = first_kernel(params)
    count = w.shape[-1]
    columns = math.ceil(math.sqrt(2 * count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4), layout="constrained")
    figure.suptitle(f"first layer: {count} kernels of {w.shape[0]}×{w.shape[1]}×{w.shape[2]}", fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.axis("off")
    for axes, kernel in zip(grid, np.moveaxis(w, -1, 0), strict=False):
        low, high = kernel.min(), kernel.max()
        image = (kernel - low) / (high - low if high > low else 1)
        axes.imshow(image if image.shape[-1] == 3 else image.mean(-1), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
    save(figure, path)


def agreement(losses: dict[str, list[float]], reference: str, path: Path) -> None:
    """The loss curves of several rule sets over each other, and how far each is from the reference."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    above, apart = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(losses.items()):
        # The widest line is drawn first, so that curves that coincide are all seen.
        above.plot(curve, color=f"C{i}", linewidth=8 - 2 * i, alpha=0.9, label=name)
    above.set(xlabel="step", ylabel="training loss (nats)", title="the curves, widest first")
    above.legend(frameon=False)
    exact = np.asarray(losses[reference])
    for i, (name, curve) in enumerate(losses.items()):
        if name != reference:
            difference = np.abs(np.asarray(curve) - exact) / np.abs(exact)
            apart.plot(
                np.maximum(difference, 1e-17),
                color=f"C{i}",
                marker="os^"[i % 3],
                markersize=3,
                linestyle="none",
                label=name,
            )
    apart.set(
        xlabel="step", ylabel="relative difference", yscale="log", title=f"distance from {reference}; floor 1e-17"
    )
    apart.legend(frameon=False)
    for axes in (above, apart):
        axes.grid(alpha=0.3)
    save(figure, path)
