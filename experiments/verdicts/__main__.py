"""How often is a verdict on a gradient right? Three judges, hundreds of right and wrong gradients.

Every wrong gradient of `wrong.py` and every right one of `right.py`, in each dtype where the error exceeds what the
dtype itself does, goes before `jaxconv.check`, `jax.test_util.check_grads` and a comparison for a cotangent of ones.
The outcome, with versions and date, is in `experiments/results/verdicts.json`; `docs/verdicts.md` has the table.

    python -m experiments.verdicts --jobs 2 --out experiments/results/verdicts.json

With `--networks` it is whole networks, each from several seeds: those of `networks/`, without a fault or with one wrong
rule somewhere inside. `--log` keeps every trial, with the error of each kind of evidence in bounds.

    python -m experiments.verdicts --networks --seeds 10 --jobs 2 --out experiments/results/networks.json
    python -m experiments.verdicts --networks --only right --filter "mlp 64-784-10" --judges jaxconv.check
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import rich
import tyro
from rich.progress import track
from rich.table import Table

from experiments.files import as_json, write_atomically
from experiments.machine import machine
from experiments.verdicts import bench
from experiments.verdicts.judges import JUDGES
from experiments.verdicts.networks import table as networks
from experiments.verdicts.right import RIGHT
from experiments.verdicts.wrong import WRONG

ROUTE = {"both": (False, True), "right": (True,), "wrong": (False,)}


@dataclass(frozen=True)
class Options:
    """Right and wrong gradients before three judges."""

    filter: str = ""
    """Only cases whose name contains this; a network's name ends in its dtype."""
    only: Literal["both", "right", "wrong"] = "both"
    """Which gradients."""
    jobs: int = 1
    """Processes; one core each."""
    out: Path | None = None
    """Write the outcome as JSON."""
    networks: bool = False
    """Whole networks instead of single functions. What follows is for them."""
    seeds: int = 1
    """How many draws of weights and data."""
    first_seed: int = 0
    """Where the seeds start."""
    judges: tuple[str, ...] = tuple(JUDGES)
    """Whom to ask."""
    log: Path | None = None
    """Append every trial as a line of JSON; those that are there already are not tried again."""


def of_functions(options: Options) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The confusion of the judges over single functions, and the report."""
    cases = [(c, right) for right in ROUTE[options.only] for c in (RIGHT if right else WRONG)]
    tasks = [(c.name, dtype, right) for c, right in cases if options.filter in c.name for dtype in c.dtypes]
    if not tasks:
        raise SystemExit(f"no case has {options.filter!r} in its name")
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        outcome = track(pool.map(bench.verdicts, tasks, chunksize=4), "judging", total=len(tasks))
        found = [verdict for case in outcome for verdict in case]
    rows = bench.confusion(found)
    return rows, {"confusion": rows, "seconds": bench.seconds(found), "mistakes": bench.mistakes(found)}


def of_networks(options: Options) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The confusion of the judges over whole networks, and the report."""
    if unknown := sorted(set(options.judges) - set(JUDGES)):
        raise SystemExit(f"the judges are {', '.join(JUDGES)}, not {', '.join(unknown)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    tasks = networks.tasks(options.filter, seeds, ROUTE[options.only], options.judges)
    if not tasks:
        raise SystemExit(f"no network has {options.filter!r} in its name")
    outcome = track(networks.outcomes(tasks, options.jobs, options.log), "judging", total=len(tasks))
    report = networks.summary([found for trial in outcome for found in trial])
    return report["confusion"], report


def main(options: Options) -> None:
    rows, report = of_networks(options) if options.networks else of_functions(options)
    table = Table("judge", "dtypes", "wrong, rejected", "right, accepted", "no verdict")
    for row in rows:
        rejected, accepted = f"{row['wrong rejected']} of {row['wrong']}", f"{row['right accepted']} of {row['right']}"
        table.add_row(row["judge"], row["dtypes"], rejected, accepted, str(row["no verdict"]))
    rich.print(table)
    for mistake in report["mistakes"].get("jaxconv.check", ()):
        print(f"jaxconv.check is mistaken: {mistake}")
    if options.out:
        write_atomically(options.out, as_json({"machine": machine("jax"), **report}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
