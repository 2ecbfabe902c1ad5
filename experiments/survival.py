"""Kill a training at random moments, continue it each time, and compare what it leaves with a run that nobody killed.

    python -m experiments.survival --kills 20

`kill -9` asks nobody: it may come while a checkpoint is written, or before there is one. The weights, moments and
`metrics.jsonl` at the end must be equal bit for bit. How many steps a call takes is another number after each kill,
since it may change nothing. Exit status: 0 if all are equal, 1 if not.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.train import restored


@dataclass(frozen=True)
class Options:
    """Kill a training on the digits, again and again."""

    kills: int = 20
    """How many processes to kill."""
    epochs: int = 6
    """Epochs of the training."""
    checkpoint_every: int = 5
    """Steps between checkpoints; 22 are an epoch."""
    dtype: str = "float32"
    """As `experiments.train` has it."""
    seed: int = 0
    """Of the moments."""


def start(options: Options, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "experiments.train", "--model", "article", "--epochs", str(options.epochs)),
        *("--checkpoint-every", str(options.checkpoint_every), "--dtype", options.dtype, "--out", str(out), *more),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}:\n{said}")  # type: ignore[arg-type]


def arrays(out: Path) -> list[np.ndarray]:
    """Everything that is carried at the end of a run."""
    with restored(out) as trainer:
        return [np.asarray(a) for a in jax.tree.leaves(trainer.carry)]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have left the same bits."""
    metrics = [(out / "metrics.jsonl").read_bytes() for out in (one, other)]
    pairs = list(zip(arrays(one), arrays(other), strict=True))
    return metrics[0] == metrics[1] != b"" and all(a.tobytes() == b.tobytes() for a, b in pairs)


def run(options: Options, folder: Path, console: Console) -> bool:
    """Whether every run that was killed ended like the one that was not."""
    rng, started = random.Random(options.seed), time.monotonic()
    finish(start(options, folder / "whole"))
    seconds = time.monotonic() - started
    kills, runs, equal = 0, 0, True
    while kills < options.kills:
        out = folder / f"killed-{runs}"
        while True:
            process = start(options, out, "--resume", "--steps-per-call", str(rng.randint(1, 9)))
            try:
                process.wait(rng.uniform(0, seconds) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
            finish(process)
            break
        runs, equal = runs + 1, equal and same(folder / "whole", out)
        console.print(f"run {runs}: {kills} killed so far; {'equal' if equal else 'NOT EQUAL'}", highlight=False)
    return equal


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(tyro.cli(Options, description=__doc__), Path(folder), Console()) else 1


if __name__ == "__main__":
    sys.exit(main())
