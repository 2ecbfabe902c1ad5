"""Where the arrays of a training are: on one device, or a copy of all but the batch on each of several.

That is all there is to data parallelism under `jit`: the batch is split over the devices, and the program means what it
means on one. The compiler sums gradients, statistics of batch norms, losses and counts over all of them, and no line of
a model knows. Several processes, one or more devices each, run the same program on one mesh.
"""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

WAIT = 120  # seconds until all processes must have come
HEARTBEAT = 10  # seconds of silence after which a process is taken for dead


class Devices:
    """The first `count` devices of each process, as one mesh with the axis "batch"."""

    def __init__(self, count: int) -> None:
        own = [device for device in jax.devices() if device.id in _first(device.process_index, count)]
        self.count = len(own)
        self.mesh = None if self.count == 1 else Mesh(np.array(own), ("batch",), axis_types=(AxisType.Auto,))
        self.everywhere, self.in_parts = (
            SingleDeviceSharding(own[0]) if self.mesh is None else NamedSharding(self.mesh, spec)
            for spec in (PartitionSpec(), PartitionSpec("batch"))
        )

    def put(self, tree: Any) -> Any:
        """Arrays of the host, the same in every process, on every device."""
        return _placed(tree, self.everywhere)

    def put_batch(self, tree: Any) -> Any:
        """Arrays of the host, the same in every process, of which each device gets its part of the batch."""
        return _placed(tree, self.in_parts)

    def split(self, batch: jax.Array) -> jax.Array:
        """Inside a compiled program: a part of the batch on each device."""
        return batch if self.mesh is None else jax.lax.with_sharding_constraint(batch, self.in_parts)


def _placed(tree: Any, where: Sharding) -> Any:
    def one(a: Any) -> jax.Array:
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(one, tree)


def _first(process: int, count: int) -> set[int]:
    return {device.id for device in [d for d in jax.devices() if d.process_index == process][:count]}


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes; what is not said is found out from the cluster.

    Raises:
      ValueError: they cannot be found, or one does not come.
    """
    said = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in said.items() if value is None]
    if 0 < len(missing) < len(said):
        raise ValueError(
            f"--coordinator, --processes and --process go together, but {' and '.join(missing)} is missing. Say all "
            "three, or none where Slurm, Open MPI or a TPU pod started the processes."
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process must satisfy 0 <= process < {processes}, but is {process}.")
    patience = threading.Timer(WAIT, _give_up, [coordinator])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=WAIT + 60, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--distributed: the processes have not met: {str(error).splitlines()[0]}") from error
    finally:
        patience.cancel()


def _give_up(coordinator: str | None) -> None:
    """End before JAX does, whose runtime aborts the program without a word of what was asked."""
    where = "" if coordinator is None else f" at {coordinator}"
    print(
        f"error: the processes have not met{where} within {WAIT} seconds. Start all of them, with the same "
        "--coordinator and --processes, and --process from 0.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)


def differing(words: Mapping[str, str]) -> list[str]:
    """The names of what is not the same in all processes; each must ask."""
    if jax.process_count() == 1:
        return []
    own = np.array([zlib.crc32(word.encode()) for word in words.values()], np.uint32)
    everybodys = np.reshape(multihost_utils.process_allgather(own), (-1, len(own)))
    return [name for name, column in zip(words, everybodys.T, strict=True) if len(set(column.tolist())) > 1]


def leads() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return jax.process_index() == 0


def together(value: int) -> int:
    """The largest of the processes' values; each must ask."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))
