"""Race hand-written gradients against JAX's own, Flax, Equinox and PyTorch: layers, pools and whole training steps.

    python -m experiments.benchmark                                 # everything
    python -m experiments.benchmark --filter "8x56.*kernel_grad"    # rows whose name matches
    python -m experiments.benchmark --list                          # the names

All columns of a row are compiled, compared with each other and warmed up first; then they take turns in one process,
in changing order. A training to a goal begins from nothing each time, and compiles on the clock. `ms` is the median
time of ours, `×` the median over the rounds of their time divided by ours, with the 10th and 90th percentile; `memory`
is our temporary memory divided by that of jax.grad, as XLA counts it.

`--out` gets benchmark.json and benchmark.png after every row and on Ctrl-C. Rows that an earlier run left there on the
same machine with the same versions and options stay, each with its date, unless they are measured again.

The exit status is 0, 1 if a column failed or computed something else, 2 if the run could not start, 130 after Ctrl-C.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from experiments.benchmark.race import Budget
from experiments.benchmark.report import header, line, picture, summary, summary_lines
from experiments.benchmark.rows import REFERENCE, TABLES, Row, Setting, installed, measure
from experiments.config import UsageError
from experiments.files import as_json, write_atomically
from experiments.machine import machine
from experiments.memory import VARIABLE, in_large_pages
from experiments.stopping import raise_on_signals, received

PACKAGES = ("jaxconv", "jax", "jaxlib", "flax", "equinox", "torch")
Peer = Literal["xla", "waiting", "flax", "flax+manual", "equinox", "equinox+manual", "torch"]
QUICK = Budget(seconds=0.2, least=2, most=10)


@dataclass(frozen=True)
class Options:
    """Race hand-written gradients against JAX's own, Flax, Equinox and PyTorch."""

    filter: str = ""
    """Only rows whose name matches this regular expression; × may be written x, ² ^2 and → ->."""
    table: Literal["main", "networks", "trainings"] = "main"
    """Which rows there are: a few layers of every kind, pools and training steps; the layers of known networks; or
    whole trainings, which take minutes each."""
    engine: Literal["auto", "xla", "onednn"] = "auto"
    """Who computes jaxconv's convolutions; pools, dense layers and whole networks choose for themselves."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of all arrays; in training steps the weights stay float32."""
    columns: tuple[Peer, ...] | None = None
    """Beside jaxconv and jax.grad; by default what is installed. "xla" is jaxconv without its native engine, "waiting"
    a training whose host waits for every step, "+manual" another library's network with jaxconv's rules in it."""
    seconds: float = 3.0
    """How long the columns of a row take turns, within 7 and 100 rounds; whole trainings have 5, or 3 to a goal."""
    batch: int = 1
    """Multiplies the batch of layers, pools and training steps: a GPU has little to do with those of a CPU."""
    quick: bool = False
    """A few rounds per row: for trying it out."""
    out: Path = Path("runs/benchmark")
    """Folder for benchmark.json and benchmark.png."""
    list: bool = False
    """Name the rows and do nothing else."""


def chosen(pattern: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows whose name matches, as it is or in ASCII."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--filter {pattern!r} is not a regular expression: {error}.") from error
    ascii_ = str.maketrans({"×": "x", "²": "^2", "→": "->"})
    found = tuple(row for row in rows if wanted.search(row.name) or wanted.search(row.name.translate(ascii_)))
    if not found:
        raise UsageError(f"--filter {pattern!r} matches none of the {len(rows)} rows. --list names them.")
    return found


def peers(columns: tuple[str, ...] | None, table: str) -> tuple[str, ...]:
    here, has = installed(), TABLES[table].peers
    for column in columns or ():
        if column not in here:
            raise UsageError(f"--columns {column}: is not installed, or not for JAX's device: {jax.default_backend()}.")
        if column not in has:
            raise UsageError(f"--columns {column}: has no row in --table {table}, of which there are {', '.join(has)}.")
    return tuple(c for c in here if c in has) if columns is None else tuple(dict.fromkeys(columns))


def opened(options: Options) -> dict[str, Any]:
    """The report so far: that of an earlier run in the same setting, or a new one."""
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]]),
        "machine": machine(*PACKAGES) | {VARIABLE: os.environ.get(VARIABLE)},
        "table": options.table,
        "dtype": options.dtype,
        "engine": options.engine,
        "batch": options.batch,
        "quick": options.quick,
        "rows": [],
    }
    path = options.out / "benchmark.json"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text()) if path.exists() else report
        same, rows = _setting(earlier) == _setting(report), earlier["rows"]
        if same:
            write(report | {"rows": rows}, path)
    except OSError as error:
        raise UsageError(f"--out {options.out} cannot be used: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a report of this program. Name another folder.") from error
    if not same:
        raise UsageError(f"--out {options.out} holds rows of another machine, version or option. Name another folder.")
    return report | {"rows": rows}


def _setting(report: dict[str, Any]) -> Any:
    machine = {name: value for name, value in report["machine"].items() if name != "date"}
    return (
        machine,
        report.get("table", "main"),
        report["dtype"],
        report["engine"],
        report.get("batch", 1),
        report["quick"],
    )


def put(report: dict[str, Any], every: tuple[Row, ...], row: dict[str, Any]) -> None:
    """A row in its place, instead of an earlier one of that name."""
    order = {known.name: i for i, known in enumerate(every)}
    rows = [other for other in report["rows"] if other["row"] in order and other["row"] != row["row"]]
    report["rows"] = sorted([*rows, row], key=lambda r: order[r["row"]])


def write(report: dict[str, Any], path: Path) -> None:
    content = report | {"summary": summary(report["rows"])}
    write_atomically(path, as_json(content) + "\n")


def run(options: Options, console: Console, stop: Callable[[], None] = lambda: None) -> int:
    """Measure what the options say; `stop` is called between rows, and may raise."""
    every = TABLES[options.table].of(options.batch)
    rows, columns = chosen(options.filter, every), peers(options.columns, options.table)
    if options.list:
        for row in rows:
            console.print(row.name, highlight=False)
        return 0
    for name in ("seconds", "batch"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name} must be positive, but {getattr(options, name)} <= 0.")
    report = opened(options)
    if "torch" in columns:
        from experiments.benchmark.peers_torch import configure

        configure()
    setting = Setting(options.dtype, options.engine)
    budget = QUICK if options.quick else Budget(options.seconds, least=7, most=100)
    console.print(header((REFERENCE, *columns)))
    status, done = 0, []
    try:
        for row in rows:
            stop()
            outcome = measure(row, setting, columns, budget)
            done.append(outcome)
            put(report, every, outcome | {"date": datetime.datetime.now().isoformat("T", "seconds")})
            write(report, options.out / "benchmark.json")
            console.print(line(outcome, (REFERENCE, *columns)), highlight=False)
            jax.clear_caches()
            gc.collect()
    except KeyboardInterrupt as interrupt:
        console.print("[yellow]interrupted[/]: the finished rows are kept")
        status = 128 + received(interrupt)
    if any("ms" in row for row in report["rows"]):
        picture(report, options.out / "benchmark.png")
    for text in summary_lines(done):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return status or int(any(row["failed"] for row in done))


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 180)
    stop = raise_on_signals()
    try:
        return run(tyro.cli(Options, description=__doc__), console, stop)
    except UsageError as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 2


if __name__ == "__main__":
    in_large_pages()
    sys.exit(main())
