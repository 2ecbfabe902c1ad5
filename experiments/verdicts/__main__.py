"""How often is a verdict on a gradient right? Three judges, hundreds of right and wrong gradients.

Every wrong gradient of `wrong.py` and every right one of `right.py`, in each dtype where the error exceeds what the
dtype itself does, goes before `jaxconv.check`, `jax.test_util.check_grads` and a comparison for a cotangent of ones.
The outcome, with versions and date, is in `experiments/results/verdicts.json`; the README has the table.

    python -m experiments.verdicts --jobs 2 --out experiments/results/verdicts.json
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import rich
import tyro
from rich.progress import track
from rich.table import Table

from experiments.files import write_atomically
from experiments.machine import machine
from experiments.verdicts.bench import confusion, mistakes, seconds, verdicts
from experiments.verdicts.case import Case
from experiments.verdicts.right import RIGHT
from experiments.verdicts.wrong import WRONG


@dataclass(frozen=True)
class Options:
    """Right and wrong gradients before three judges."""

    filter: str = ""
    """Only cases whose name contains this."""
    jobs: int = 1
    """Processes; one core each."""
    out: Path | None = None
    """Write the outcome as JSON."""


def main(options: Options) -> None:
    cases: list[tuple[Case, bool]] = [*((c, False) for c in WRONG), *((c, True) for c in RIGHT)]
    tasks = [(c.name, dtype, right) for c, right in cases if options.filter in c.name for dtype in c.dtypes]
    if not tasks:
        raise SystemExit(f"no case has {options.filter!r} in its name")
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        outcome = track(pool.map(verdicts, tasks, chunksize=4), "judging", total=len(tasks))
        found = [verdict for case in outcome for verdict in case]
    rows = confusion(found)
    table = Table("judge", "dtypes", "wrong, rejected", "right, accepted", "no verdict")
    for row in rows:
        rejected, accepted = f"{row['wrong rejected']} of {row['wrong']}", f"{row['right accepted']} of {row['right']}"
        table.add_row(row["judge"], row["dtypes"], rejected, accepted, str(row["no verdict"]))
    rich.print(table)
    wrong = mistakes(found)
    for mistake in wrong["jaxconv.check"]:
        rich.print(f"jaxconv.check is mistaken: {mistake}")
    if options.out:
        report = {"machine": machine("jax"), "confusion": rows, "seconds": seconds(found), "mistakes": wrong}
        write_atomically(options.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
