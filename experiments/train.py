"""Train a CNN with hand-written gradients on real images, and write down what happened.

    python -m experiments.train                            # 8×8 digits, under a minute on two cores
    python -m experiments.train --data mnist --epochs 5    # 60,000 digits
    python -m experiments.train --data FOLDER              # images of your own, in .npy files
    python -m experiments.train --rules textbook           # the same run by the articles' sums
    python -m experiments.train --out run --resume         # goes on where it was killed
    python -m experiments.train --evaluate run             # how good its last checkpoint is
    python -m experiments.train --devices 4                # each batch shared by four devices
    python -m experiments.train --distributed --out run    # and by all processes of a Slurm job or a TPU pod

The images live on the device, where they are shuffled and augmented. There a compiled loop takes as many steps as fill
about a second (`--steps-per-call`) before the host looks; on a CPU the host begins them one by one, without waiting.
Images that would take more than half of the device's memory (a CPU's is the machine's) are streamed to it. None of that
changes what is computed.

A FOLDER of your own holds `train_images.npy` and `test_images.npy`, uint8 (N, H, W, C) or (N, H, W), and
`train_labels.npy` and `test_labels.npy`, integers from 0 without gaps. They are mapped, so they may be larger than the
memory, and read once before the first step, for mean and standard deviation.

`--weight-decay` is of kernels, the arrays of two or more axes: no bias decays, and no scale or shift of a norm.

With `--out DIR` a run leaves `metrics.jsonl` (a line an epoch), `times.jsonl` (how long each took), `summary.json`,
`curve.png`, `filters.png` and checkpoints, one after each epoch and every `--checkpoint-every` steps, of which the last
`--keep` stay. It keeps what it has measured when it ends early: by Ctrl-C or SIGTERM, or because the loss left all
bounds. After any end, `kill -9` included, `--resume` continues it from the last checkpoint, and what it then leaves
is equal bit for bit, but for times, to what it would have left without the interruption on the same devices.

Processes that train together (`--distributed`; `--coordinator`, `--processes` and `--process` where no cluster says
who they are) share one folder. When one of them dies the others end within a minute, and all go on with `--resume`, as
many as there are then.

Exit status: 0 when it has finished, 1 when it diverged, 2 when it could not run, 130 after Ctrl-C, 143 after SIGTERM;
134 (SIGABRT) when JAX has ended it because another process has died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape

from experiments import checkpoints, data, plots
from experiments.checkpoints import CheckpointError, Checkpoints, claimed
from experiments.config import (
    Config,
    UsageError,
    check,
    check_data,
    check_evaluate,
    check_same,
    check_together,
    dataset_of,
    fingerprint,
    remedies,
)
from experiments.devices import join, leads, together
from experiments.divergence import DivergedError, Watch
from experiments.files import write_atomically
from experiments.machine import version
from experiments.memory import in_large_pages
from experiments.pace import Pace
from experiments.progress import Tick, progress
from experiments.stopping import between_steps, raise_on_signals, received
from experiments.trainer import Trainer

FILES = ("metrics.jsonl", "times.jsonl", "summary.json", "curve.png", "filters.png")


@dataclass
class Measured:
    """What a run knows of itself beside its weights; part of a checkpoint."""

    metrics: list[dict[str, Any]] = field(default_factory=list)  # an entry an epoch, as in the file
    times: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the steps of the epoch under way
    first: float = float("nan")  # what `Watch` goes by
    last: float = float("nan")

    def write(self, out: Path) -> None:
        for name, rows in (("metrics", self.metrics), ("times", self.times)):
            write_atomically(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def prepare_folder(config: Config, store: Checkpoints, trainer: Trainer) -> Measured:
    """Make the folder of a run, or find out where the run that it holds is to go on."""
    out = config.out
    assert out is not None
    held = [name for name in (*FILES, checkpoints.FOLDER) if (out / name).exists()]
    if checkpoints.FOLDER in held and FILES[0] not in held and not config.resume:
        raise UsageError(
            f"--out {out} holds a folder {checkpoints.FOLDER}, but no {FILES[0]}: it is not that of a run. Name "
            "another folder."
        )
    if held and not (config.overwrite or config.resume):
        step = max(store.steps(), default=0)
        raise UsageError(
            f"--out {out} holds a run already ({', '.join(held)}). Say --resume to continue it from step {step:,}, or "
            "--overwrite to delete it, or name another folder."
        )
    measured = Measured()
    if config.resume and store.steps():
        then, images, journal = store.config()
        check_same(config, then, out)
        check_data(trainer.dataset, images, config)
        try:
            measured = Measured(**journal)
        except TypeError as error:
            raise store.foreign(error) from error
        trainer.carry = store.carry(trainer.carry)
    elif config.resume and (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text():
        raise UsageError(
            f"--resume: {out} holds metrics, but {store.folder} no checkpoint to continue from. Say --overwrite to "
            "begin again, or name another folder."
        )
    together(0)  # all processes have looked before one writes
    if leads():
        try:
            if config.overwrite:
                store.delete()
            measured.write(out)
        except OSError as error:
            raise UsageError(f"--out {out} cannot be written: {error.strerror}.") from error
        for name in FILES[2:] if trainer.step < trainer.steps else ():
            (out / name).unlink(missing_ok=True)
    together(0)
    return measured


def epochs(trainer: Trainer, tick: Tick, measured: Measured | None = None) -> Iterator[dict[str, Any]]:
    """Train; yield what each epoch measured. `tick(step, loss)` is called between two calls of the compiled loop.

    Args:
      measured: what is added to; of a run that goes on, what it had measured.

    Raises:
      DivergedError: when a loss leaves all bounds, or no loss scale is small enough. What has been yielded stands.
    """
    config = trainer.config
    assert config.epochs is not None
    measured = Measured() if measured is None else measured
    watch, pace = Watch(remedies(config), measured.first, measured.last), Pace(config.steps_per_call)
    while len(measured.metrics) < config.epochs:
        started, before = time.perf_counter(), len(measured.losses)
        while len(measured.losses) < trainer.per_epoch:
            done = trainer.step
            left = trainer.per_epoch - len(measured.losses)
            if config.checkpoint_every is not None:
                left = min(left, config.checkpoint_every - done % config.checkpoint_every)
            called, count = time.perf_counter(), together(pace(left))
            losses = [float(loss) for loss in trainer.train_steps(count)]
            pace.took(count, time.perf_counter() - called)
            for step, loss in enumerate(losses, done + 1):
                watch(loss, f"step {step:,} of {trainer.steps:,}")
            watch.scale(trainer.loss_scale, f"step {trainer.step:,} of {trainer.steps:,}")
            measured.losses += losses
            measured.first, measured.last = watch.first, watch.last
            tick(trainer.step, losses[-1])
        seconds, taken = time.perf_counter() - started, len(measured.losses) - before
        test_loss, test_accuracy = trainer.evaluate()
        watch(test_loss, f"the test images after step {trainer.step:,}")
        row = {
            "epoch": len(measured.metrics) + 1,
            "train_loss": float(np.mean(measured.losses)),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": float(trainer.schedule(trainer.step - 1)),
        }
        rate = taken * trainer.batch_size / seconds
        measured.times.append({"epoch": row["epoch"], "steps": taken, "seconds": seconds, "examples_per_second": rate})
        measured.metrics.append(row)
        measured.losses = []
        measured.first, measured.last = watch.first, watch.last
        yield row


def environment() -> dict[str, Any]:
    """What a reader needs to know to believe a number."""
    device = jax.devices()[0]
    packages = ("jaxconv", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "cpu_count": os.cpu_count(),
    }


def run(config: Config, console: Console) -> dict[str, Any]:
    """Train as `config` says; return the summary, which is also written to `config.out`."""
    started = time.perf_counter()
    config = config.resolved()
    check_together(vars(config))
    with precision(config.dtype):
        dataset = dataset_of(config)
        check_together({"data": fingerprint(dataset)})
        check(config, len(dataset.train_labels))
        trainer = Trainer(config, dataset)
        if config.out is None:
            return _run(config, trainer, Measured(), None, console, started)
        with claimed(config.out) if leads() else contextlib.nullcontext():
            store = Checkpoints(config.out, config.keep)
            measured = prepare_folder(config, store, trainer)
            if done := finished(config.out):
                console.print(f"{escape(str(config.out))} holds the whole run: nothing is left to do", highlight=False)
                return done
            return _run(config, trainer, measured, store, console, started)


def finished(out: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended as it should; one that goes on has none."""
    try:
        summary = json.loads((out / "summary.json").read_text())
        return summary if summary["status"] == "finished" else None
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written, or in the middle of that
        return None


def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """JAX has float64 only while x64 is enabled."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def _run(
    config: Config, trainer: Trainer, measured: Measured, store: Checkpoints | None, console: Console, started: float
) -> dict[str, Any]:
    size = sum(a.size for a in jax.tree.leaves(trainer.params))
    console.print(
        f"[bold]{config.model}[/] with {size:,} parameters on {len(trainer.dataset.train_labels):,} images of "
        f"{escape(str(config.data))}, rules={config.rules}, {jax.devices()[0].platform}"
    )
    if trainer.step:
        console.print(f"going on from step {trainer.step:,} of {trainer.steps:,}", highlight=False)
    summary: dict[str, Any] = {
        "status": "interrupted",
        "config": config.to_json(),
        **environment(),
        "parameters": size,
    }

    images = fingerprint(trainer.dataset)

    def save() -> None:
        if store is not None:
            journal = {"config": config.to_json(), "data": images, "measured": dataclasses.asdict(measured)}
            store.save(trainer.step, trainer.carry, journal)

    try:
        with between_steps(together) as stop, progress(console, trainer.steps, trainer.step) as show:

            def tick(step: int, loss: float) -> None:
                show(step, loss)
                stop()
                if config.checkpoint_every and step % config.checkpoint_every == 0 and step % trainer.per_epoch:
                    save()

            for row in epochs(trainer, tick, measured):
                if config.out is not None and leads():
                    measured.write(config.out)
                save()
                console.print(
                    f"epoch {row['epoch']:3d}   train loss {row['train_loss']:.4f}   test loss {row['test_loss']:.4f}"
                    f"   accuracy {row['test_accuracy']:.2%}   "
                    f"{measured.times[-1]['examples_per_second']:,.0f} images/s",
                    soft_wrap=True,
                    highlight=False,
                )
        summary["status"] = "finished"
    except KeyboardInterrupt as interrupt:
        summary["signal"] = received(interrupt).name
        save()
        kept = "what the finished epochs measured" if store is None else "a checkpoint: --resume continues from it"
        console.print(f"[yellow]interrupted[/] after step {trainer.step:,}: keeping {kept}", highlight=False)
    except DivergedError as error:
        summary |= {"status": "diverged", "reason": str(error)}
        console.print(f"[red]stopped:[/] {error}", soft_wrap=True, highlight=False)
    if store is not None:
        store.close()
    last = measured.metrics[-1] if measured.metrics else {}
    # The first epoch compiles; a run of one epoch has no other.
    timed = measured.times[1:] or measured.times
    examples = sum(row["steps"] for row in timed) * trainer.batch_size
    summary |= {
        "epochs_finished": len(measured.metrics),
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        "seconds": time.perf_counter() - started,
        "examples_per_second": examples / sum(row["seconds"] for row in timed) if timed else None,
    }
    if config.out is not None and leads():
        if summary["status"] != "diverged":
            plots.filters(jax.device_get(trainer.params), config.out / "filters.png")
        if measured.metrics:
            plots.curve(measured.metrics, config.out / "curve.png")
        write_atomically(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: it says that all is
    return summary


@contextlib.contextmanager
def restored(out: Path, data_dir: Path | None = None, folder: Path | None = None) -> Iterator[Trainer]:
    """The last checkpoint in the folder of a run, in the precision of that run.

    Args:
      data_dir: where the original files are now, if they have moved.
      folder: where the images of one's own are now.
    """
    store = Checkpoints(out)
    config, images, _ = store.config()
    if folder is not None and not isinstance(config.data, Path):
        raise UsageError(f"--data {folder}: the run in {out} learned from {config.data}. Leave it out.")
    moved = config.data if folder is None else folder
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir, data=moved)
    with precision(config.dtype):
        trainer = Trainer(config, dataset_of(config))
        check_data(trainer.dataset, images, config)
        trainer.carry = store.carry(trainer.carry)
        store.close()
        yield trainer


def evaluate(config: Config, console: Console) -> tuple[float, float]:
    """Loss and accuracy, on the test part, of the last checkpoint in the folder that `--evaluate` names."""
    assert config.evaluate is not None
    check_evaluate(config)
    with restored(config.evaluate, config.data_dir, config.data if isinstance(config.data, Path) else None) as trainer:
        loss, accuracy = trainer.evaluate()
    images = f"{len(trainer.dataset.test_labels):,} test images of {escape(str(trainer.config.data))}"
    console.print(
        f"{trainer.config.model} on {images}, "
        f"step {trainer.step:,} of {trainer.steps:,}: test accuracy [bold]{accuracy:.2%}[/], test loss {loss:.4f}",
        soft_wrap=True,
        highlight=False,
    )
    return loss, accuracy


def told() -> str:
    """What each process says at its beginning, since JAX may end it before it can say anything at its end."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: when another one ends this one does, within "
        "a minute, and all go on from the last checkpoint with --out DIR --resume."
    )


def refused(reason: str, console: Console) -> int:
    """Say why a run cannot go on, in whichever process; the exit status."""
    console.quiet = False
    console.print(f"[red]error:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    if jax.process_count() > 1:
        sys.stdout.flush()
        if leads():
            time.sleep(2)  # the others end with this one, and say it first
        os._exit(2)  # the usual end waits for the other processes
    return 2


def main() -> int:
    console = Console()
    config = tyro.cli(Config, description=__doc__)
    raise_on_signals()
    try:
        if config.distributed or config.coordinator or config.processes is not None or config.process is not None:
            join(config.coordinator, config.processes, config.process)
            console.quiet = not leads()
            print(told(), file=sys.stderr)
        if config.evaluate is not None:
            evaluate(config, console)
            return 0
        summary = run(config, console)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        return refused(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on, most likely because another one has "
            f"ended: {str(error).splitlines()[0]}. Start all of them again with --resume.",
            console,
        )
    except (UsageError, CheckpointError, data.DataError, ValueError, OSError) as error:
        room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return refused(f"{error}" + (". Make room, and say --resume." if room else ""), console)
    except KeyboardInterrupt as interrupt:  # before the first step, or while pictures were drawn
        console.print("[yellow]interrupted[/]")
        return 128 + received(interrupt)
    if summary["status"] == "interrupted":
        return 128 + signal.Signals[summary["signal"]]
    if summary["status"] == "diverged":
        return 1
    console.print(
        f"test accuracy [bold]{summary['test_accuracy']:.2%}[/], test loss {summary['test_loss']:.4f}, "
        f"{summary['seconds']:.1f} s in all"
    )
    return 0


if __name__ == "__main__":
    in_large_pages()
    sys.exit(main())
