"""How far a training is: a bar on a terminal, lines where nothing can be redrawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Tick = Callable[[int, float], None]  # (steps done, loss of the last)

EVERY = 10.0  # seconds between lines


@contextmanager
def progress(console: Console, total: int, done: int = 0) -> Iterator[Tick]:
    """Shows how many of `total` steps are done, as often as the function that is handed out is called."""
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("training", total=total, completed=done)
            yield lambda step, loss: bar.update(task, completed=step)
    else:
        console.print(f"{total - done:,} steps, of which the first compiles", highlight=False)
        yield _lines(console, total)


def _lines(console: Console, total: int) -> Tick:
    """One line for the first call, which compiles, then one every few seconds."""
    started = said = time.perf_counter()
    first: tuple[int, float] | None = None

    def tick(step: int, loss: float) -> None:
        nonlocal first, said
        now = time.perf_counter()
        if first is None:
            first, left = (step, now), ""
        elif now - said >= EVERY:
            left = f", about {(total - step) * (now - first[1]) / (step - first[0]):,.0f} s left"
        else:
            return
        said = now
        text = f"step {step:,} of {total:,}   loss {loss:.4g}   {now - started:,.1f} s{left}"
        console.print(text, highlight=False, soft_wrap=True)

    return tick
