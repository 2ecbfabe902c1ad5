"""A race as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxconv.comparison.report import Comparison


def draw(comparison: Comparison, path: str | Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("compare: figure needs matplotlib. pip install jaxconv[experiments]") from error
    names = [c.name for c in comparison.contestants]
    figure = Figure(figsize=(4 + 2.6 * max(2, len(names)), 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.2))[:, 0]
    figure.suptitle(f"Gradient of {comparison.function}: {comparison.machine}")
    run, memory = above.subplots(1, 2)
    median = np.array([1e3 * c.seconds for c in comparison.contestants])
    low, high = (np.array([1e3 * c.quartiles[i] for c in comparison.contestants]) for i in (0, 1))
    bars = run.barh(names, median, xerr=[median - low, high - median], color="0.6", edgecolor="black")
    run.bar_label(bars, fmt="%.3g", padding=4)
    run.set(xlabel="run time (ms), median and quartiles")
    places = np.arange(len(names))
    for shift, key, colour in ((-0.2, "temporary_bytes", "0.35"), (0.2, "residual_bytes", "0.8")):
        sizes = [getattr(c, key) / 1e6 for c in comparison.contestants]
        bars = memory.barh(
            places + shift, sizes, 0.4, color=colour, edgecolor="black", label=key.removesuffix("_bytes")
        )
        memory.bar_label(bars, fmt="%.3g", padding=4)
    memory.set(xlabel="memory (MB)", yticks=places, yticklabels=names)
    memory.legend(frameon=False)
    for axes in (run, memory):
        axes.invert_yaxis()
        axes.margins(x=0.2)
    for axes, c in zip(below.subplots(1, len(names), squeeze=False)[0], comparison.contestants, strict=True):
        argument, worst = max(c.agreement.items(), key=lambda item: item[1].bounds)
        image = axes.imshow(_flat(worst.errors), cmap="Greys", vmin=0, aspect="auto")
        below.colorbar(image, ax=axes, label="error (bounds)")
        axes.set(title=f"{c.name}: {argument}", xticks=[], yticks=[])
    figure.savefig(path, format="png", dpi=120)


def _flat(errors: np.ndarray) -> np.ndarray:
    """Two axes of an array, the longest; the worst over the others."""
    if errors.ndim < 2:
        return errors.reshape(1, -1)
    keep = sorted(np.argsort(errors.shape, kind="stable")[-2:])
    return errors.max(tuple(a for a in range(errors.ndim) if a not in keep))
