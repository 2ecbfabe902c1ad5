"""What a run says: lines as rows finish, a summary, and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.figure import Figure
from rich.table import Table

from experiments.benchmark.rows import OURS, PEERS, REFERENCE
from experiments.plots import save

# A row is slower, or takes more memory, than JAX's own gradient when it is beyond these.
SLOWER = 0.95
LARGER = 1.25
_GREYS = {
    "waiting": ("^", "white"),
    "flax": ("o", "white"), "flax+manual": ("o", "black"),
    "equinox": ("s", "white"), "equinox+manual": ("s", "black"),
    "torch": ("D", "black"),
}  # fmt: skip


def _grid(columns: tuple[str, ...]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=54)
    for column in ("ms", *columns, "memory"):
        width = 20 if column == REFERENCE else max(10, len(column) + 2)
        grid.add_column(width=width, justify="right", no_wrap=True)
    return grid


def header(columns: tuple[str, ...]) -> Table:
    grid = _grid(columns)
    grid.add_row("row", f"{OURS} ms", *(f"{c} ×" for c in columns), "memory ×", style="bold")
    return grid


def line(row: dict[str, Any], columns: tuple[str, ...]) -> Table:
    """Our time in ms, everybody's ratio to it (for JAX's own gradient from the 10th to the 90th percentile), and ours
    to its temporary memory."""
    grid = _grid(columns)
    if "ms" in row:
        ms = row["ms"][OURS]["median"]
        own = f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}"
        cells = [own, *(_ratio(row, c) for c in columns), _times(row["temporary_ratio"])]
        grid.add_row(row["row"], *cells, style="red" if row["ratio"][REFERENCE]["median"] < SLOWER else "")
    else:
        grid.add_row(row["row"], "failed", style="red")
    return grid


def _ratio(row: dict[str, Any], column: str) -> str:
    if column not in row["ratio"]:
        return "–"
    ratio = row["ratio"][column]
    between = f"  ({ratio['p10']:.2f}–{ratio['p90']:.2f})" if column == REFERENCE else ""
    return f"{ratio['median']:.2f}{between}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say together: geometric means of the ratios, and the rows where JAX's own gradient is better."""
    timed = [row for row in rows if "ms" in row]
    found: dict[str, Any] = {"rows": len(timed), "failed": [row["row"] for row in rows if row["failed"]]}
    if not timed:
        return found
    ratio = {row["row"]: row["ratio"][REFERENCE]["median"] for row in timed}
    memory = {row["row"]: row["temporary_bytes"] for row in timed}
    return found | {
        "geometric_mean": {
            column: math.exp(sum(logs) / len(logs))
            for column in (REFERENCE, *PEERS)
            if (logs := [math.log(row["ratio"][column]["median"]) for row in timed if column in row["ratio"]])
        },
        "worst": min(ratio, key=lambda name: ratio[name]),
        "slower": {name: value for name, value in ratio.items() if value < SLOWER},
        "larger": {
            name: size for name, size in memory.items()
            if size and None not in size.values() and size[OURS] > LARGER * size[REFERENCE]
        },
    }  # fmt: skip


def summary_lines(rows: list[dict[str, Any]]) -> list[str]:
    found = summary(rows)
    lines = [f"{found['rows']} rows"]
    if found["rows"]:
        by_name = {row["row"]: row for row in rows}
        means = ", ".join(f"{column} {mean:.2f}" for column, mean in found["geometric_mean"].items())
        lines.append(f"geometric mean of their time / ours: {means}")
        lines.append(f"worst against {REFERENCE}: {_ratio(by_name[found['worst']], REFERENCE)}  {found['worst']}")
        lines.append(f"below {SLOWER}: {len(found['slower'])}")
        lines += [f"  {_ratio(by_name[name], REFERENCE)}  {name}" for name in found["slower"]]
        lines.append(f"temporary memory above {LARGER} times that of {REFERENCE}: {len(found['larger'])}")
        lines += [
            f"  {size[OURS] / 1e6:.3g} MB instead of {size[REFERENCE] / 1e6:.3g} MB  {name}"
            for name, size in found["larger"].items()
        ]
    lines += [f"failed: {row['row']}: {c}: {why}" for row in rows for c, why in row["failed"].items()]
    return lines


def picture(report: dict[str, Any], path: Path) -> None:
    """Per row: how many times as long JAX's own gradient takes as ours, as a bar, and as the peers, as markers."""
    rows = [row for row in report["rows"] if "ms" in row]
    figure = Figure(figsize=(10, 1.6 + 0.21 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ratios = [row["ratio"][REFERENCE] for row in rows]
    middle = [r["median"] for r in ratios]
    whiskers = [[r["median"] - r["p10"] for r in ratios], [r["p90"] - r["median"] for r in ratios]]
    axes.barh(
        range(len(rows)), [m - 1 for m in middle], left=1, color="0.75", edgecolor="0.3", linewidth=0.6,
        label=f"{OURS} (whiskers: 10th to 90th percentile)",
    )  # fmt: skip
    axes.errorbar(middle, range(len(rows)), xerr=whiskers, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    for peer, (marker, fill) in _GREYS.items():
        places = [(i, row["ms"]) for i, row in enumerate(rows) if peer in row["ms"]]
        if places:
            axes.plot(
                [ms[REFERENCE]["median"] / ms[peer]["median"] for _, ms in places], [i for i, _ in places],
                marker, color="black", markerfacecolor=fill, markersize=4, linestyle="none", label=peer,
            )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.set(
        xscale="log", yticks=range(len(rows)), yticklabels=[row["row"] for row in rows],
        xlabel=f"{REFERENCE}'s time divided by theirs: right of 1 is faster than JAX's own gradient",
        title=f"{report['machine']['device']}: {report['machine']['processor']}, {report['dtype']}",
    )  # fmt: skip
    plain = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    low, high = axes.get_xlim()
    axes.xaxis.set_minor_formatter(plain if high < 10 * low else matplotlib.ticker.NullFormatter())
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.invert_yaxis()
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    save(figure, path)
