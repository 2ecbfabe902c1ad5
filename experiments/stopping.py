"""Ctrl-C and SIGTERM end a training between two steps, with all it has measured written down."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(KeyboardInterrupt):
    """The program was asked to end. `signal` says by which of `SIGNALS`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def received(interrupt: KeyboardInterrupt) -> signal.Signals:
    """Which signal an interrupt came from. The exit status that shells expect of it is 128 more."""
    return interrupt.signal if isinstance(interrupt, StopSignal) else signal.SIGINT


def raise_on_signals() -> Callable[[], None]:
    """From now on either signal raises `StopSignal`, wherever the program is.

    If that is in a callback of the interpreter's, such as one of the garbage collector, the exception is lost there. So
    a function is handed out that raises it again, to be called now and then.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        raise StopSignal(number)

    def poll() -> None:
        if received:
            raise StopSignal(received[0])

    for number in SIGNALS:
        signal.signal(number, stop)
    return poll


@contextmanager
def between_steps(agreed: Callable[[int], int] = int) -> Iterator[Callable[[], None]]:
    """Inside, a signal waits until the function that is handed out is called, which raises `StopSignal`.

    So no step is torn in two. A second signal does not wait, and ends the program.

    Args:
      agreed: what all processes that train together make of the number of a signal, 0 for none.
    """
    received: list[int] = []

    def keep(number: int, frame: Any) -> None:
        del frame
        if received:
            sys.exit(128 + number)
        received.append(number)
        # A handler may run in the middle of a print, which cannot be entered twice.
        os.write(2, b"stopping after this step; once more to stop at once\n")

    def poll() -> None:
        if number := agreed(received[0] if received else 0):
            raise StopSignal(number)

    listening = threading.current_thread() is threading.main_thread()  # Python gives signals to no other
    before = {number: signal.signal(number, keep) for number in SIGNALS if listening}
    try:
        yield poll
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
