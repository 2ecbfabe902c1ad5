"""Training images that stay on the host, in memory or in a memory-mapped file, and come a batch ahead of the step.

What a loader such as grain adds (its own shuffling, transformations in worker processes, a state of its own to be
checkpointed) is here part of the compiled step, or a function of the seed. What is left is to read rows, of which a
thread is capable: NumPy holds no lock while it copies them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

from experiments.data import Dataset
from experiments.machine import memory

AHEAD = 2  # batches: one that is read while another is on its way to the device
SHARE = 0.5  # of a device's memory, which activations and weights want, too

T = TypeVar("T")


def fits(dataset: Dataset, device: jax.Device) -> bool:
    """Whether the images may live on the device: they leave half of its memory, a CPU's being that of the machine."""
    limit = (device.memory_stats() or {}).get("bytes_limit", memory())
    return dataset.train_images.nbytes + dataset.test_images.nbytes <= SHARE * limit


def prefetched(batches: Iterator[T], ahead: int = AHEAD) -> Iterator[T]:
    """The same batches, each computed in a thread while those before it are used; none of them may be None."""
    with ThreadPoolExecutor(1) as thread:  # one: a generator is not entered twice
        pending = deque(thread.submit(next, batches, None) for _ in range(ahead))
        while (batch := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, batches, None))
            yield batch
