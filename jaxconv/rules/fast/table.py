"""What was measured to be the fastest, call by call, on one device.

A table is a value: frozen, hashable, equal to another that says the same. It is consulted where its device computes,
under the jaxlib it was made with; elsewhere it says so once, and the built-in choice is taken.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import Any

from jaxconv.engines import machine
from jaxconv.rules.fast.formulation import Call


@dataclass(frozen=True)
class Entry:
    """What was measured of one call.

    Attributes:
      call: on the platform of the table, whoever may compute.
      winner: the label of the formulation to take.
      built_in: the label of the one that is taken without a table.
      seconds: of every formulation that was raced, by its label: the median.
    """

    call: Call
    winner: str
    built_in: str
    seconds: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Table:
    """Entries, and what they were measured on.

    Attributes:
      entries: one a call.
      platform: as JAX names it: "cpu", "gpu", "tpu".
      device: its kind, as `machine.kind` names it.
      jaxlib: the version.
      date: of the measurement, as ISO 8601 has it.
    """

    entries: tuple[Entry, ...]
    platform: str
    device: str
    jaxlib: str
    date: str

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        """What is known of this process and its device is not another's."""
        return Table, (self.entries, self.platform, self.device, self.jaxlib, self.date)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.entries, self.platform, self.device, self.jaxlib))

    @functools.cached_property
    def _winners(self) -> dict[Call, str]:
        return {entry.call: entry.winner for entry in self.entries}

    def winner(self, call: Call) -> str | None:
        """The label of what a call should take, if it was measured on the device that it will run on."""
        if call.platform != self.platform or not self._is_of_here:
            return None
        return self._winners.get(asked(call))

    @functools.cached_property
    def _is_of_here(self) -> bool:
        """Whether this is the device, or there is none of the kind here: then it is a program for another machine."""
        here = machine.kind(self.platform)
        if here is None or (here, machine.jaxlib()) == (self.device, self.jaxlib):
            return True
        warnings.warn(
            f"rules: they were measured on {self.device} with jaxlib {self.jaxlib}, and this is {here} with jaxlib "
            f"{machine.jaxlib()}: the built-in choices are taken. Measure again: jaxconv.tune(f, *args).",
            stacklevel=2,
        )
        return False


def asked(call: Call) -> Call:
    """A call as tables have it: by whom it may be computed does not matter, since who may not is no candidate."""
    return replace(call, engine="auto")


def sizes_known(call: Call) -> bool:
    """Whether a call can be measured: no size is symbolic, and none is 0."""
    g: Any = call.geometry
    return all(isinstance(n, int) and n > 0 for n in (call.batch, call.inputs, call.outputs, *g.spatial, *g.out))
