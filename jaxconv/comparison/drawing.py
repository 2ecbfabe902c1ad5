"""A race as one picture: what each gradient costs, and where it errs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.comparison.report import Comparison, shortened

NAME = 24  # characters of a contestant's name beside its bars and above its map


def draw(comparison: Comparison, path: str | Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("compare: figure needs matplotlib. pip install jaxconv[experiments]") from error
    count = len(comparison.contestants)
    bars, maps = 1.2 + 0.5 * max(2, count), 3.8  # inches
    figure = Figure(figsize=(4 + 2.6 * max(2, count), bars + maps), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(bars, maps))[:, 0]
    figure.suptitle(f"Gradient of {shortened(comparison.function, 60)}: {comparison.machine}")
    _costs(comparison, above)
    _errors(comparison, below)
    figure.savefig(path, format="png", dpi=120)


def _costs(comparison: Comparison, figure: Any) -> None:
    names, places = [shortened(c.name, NAME) for c in comparison.contestants], np.arange(len(comparison.contestants))
    run, memory = figure.subplots(1, 2)
    median = np.array([1e3 * c.seconds for c in comparison.contestants])
    low, high = (np.array([1e3 * c.quartiles[i] for c in comparison.contestants]) for i in (0, 1))
    bars = run.barh(places, median, xerr=[median - low, high - median], color="0.6", edgecolor="black")
    run.bar_label(bars, fmt="%.3g", padding=4)
    run.set(xlabel="run time (ms), median and quartiles")
    for shift, key, colour in ((-0.2, "temporary_bytes", "0.35"), (0.2, "residual_bytes", "0.8")):
        sizes = [getattr(c, key) / 1e6 for c in comparison.contestants]
        bars = memory.barh(
            places + shift, sizes, 0.4, color=colour, edgecolor="black", label=key.removesuffix("_bytes")
        )
        memory.bar_label(bars, fmt="%.3g", padding=4)
    memory.set(xlabel="memory (MB)")
    memory.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for axes in (run, memory):
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.margins(x=0.3)


def _errors(comparison: Comparison, figure: Any) -> None:
    """One map for each gradient, all of the same argument and in the same colours."""
    argument = comparison.order[0]
    agreement = [list(c.agreement.values())[argument] for c in comparison.contestants]
    maps = [_flat(a.errors) for a in agreement]
    norm, colours, ticks = _scale(np.concatenate([np.ravel(m[0]) for m in maps]))
    all_axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, c, a, (errors, kept) in zip(all_axes, comparison.contestants, agreement, maps, strict=True):
        errors = np.where(np.isfinite(errors), errors, 10 * norm.vmax)
        image = axes.imshow(errors, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        verdict = f"{'right: at most' if a.ok else 'WRONG by'} {a.bounds:.2g} bounds"
        axes.set_title(f"{shortened(c.name, NAME)}\n{verdict}", color="black" if a.ok else "#b2182b", fontsize="medium")
        labels = [f"axis {axis}, {a.errors.shape[axis]} entries" for axis in kept]
        axes.set(xticks=[], yticks=[], xlabel=labels.pop() if labels else "", ylabel=labels.pop() if labels else "")
    lost = any(not np.isfinite(errors).all() for errors, _ in maps)
    label = "error (bounds)" + "; black: no number" * lost
    bar = figure.colorbar(image, ax=all_axes, label=label, ticks=list(ticks), extend="max" if lost else "neither")
    bar.ax.set_yticklabels(ticks.values())
    bar.ax.axhline(1, color="black", linewidth=3)
    figure.suptitle(f"error in {shortened(comparison.arguments[argument], 60)}", fontsize="medium")


def _scale(errors: np.ndarray) -> tuple[Any, Any, dict[float, str]]:
    """Norm, colours and ticks: grey and linear up to the bound, red and logarithmic beyond, black for no number.

    Each has half of the scale, and printed in grey the red is darker.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize, SymLogNorm

    ticks = {0.0: "0", 0.5: "0.5", 1.0: "limit 1"}
    top = float(errors[np.isfinite(errors)].max(initial=0))
    if errors.max(initial=0) <= 1:
        return Normalize(0, 1), LinearSegmentedColormap.from_list("within", ["white", "0.65"]), ticks
    decades = max(1, math.ceil(math.log10(max(top, 1))))
    norm = SymLogNorm(linthresh=1, linscale=decades, vmin=0, vmax=10.0**decades, base=10)
    limit = float(norm(1.0))
    stops = [(0, "white"), (limit, "0.65"), (limit, "#e0604d"), (1, "#67001f")]
    ticks |= {10.0**d: f"1e{d}" for d in range(1, decades + 1, math.ceil(decades / 4))}
    return norm, LinearSegmentedColormap.from_list("beyond", stops).with_extremes(over="black"), ticks


def _flat(errors: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Two axes of an array, the longest, and which they are; the worst over the others."""
    if errors.ndim < 2:
        return errors.reshape(1, -1), list(range(errors.ndim))
    keep = sorted(np.argsort(errors.shape, kind="stable")[-2:])
    return errors.max(tuple(a for a in range(errors.ndim) if a not in keep)), list(map(int, keep))
