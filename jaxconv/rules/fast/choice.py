"""Which formulation a call takes: an engine's, else the first that pays, else XLA's own convolution.

A table of what was measured on the device at hand comes before everything else. Without one an engine is asked first,
if the call allows one and the platform has one; it says why not when it does not take a call.

A formulation pays where it was measured to be faster; its own file says where, beside the thresholds and the rows of
`experiments/results/benchmark-xeon.json` that justify them. Those are a CPU's. Anywhere else the only choice is the
exact one: a layer without spatial axes is a matrix product. Of the dtype it matters only whether it has 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax.numpy as jnp

from jaxconv.rules.fast import blocks, borders, depths, folds, full, library, native, patches, phases, products, shifts
from jaxconv.rules.fast.formulation import Call, Formulation
from jaxconv.rules.fast.table import Table

EMPTY = "there is nothing to compute"
EIGHT_BITS = "some floats of 8 bits have no zero to pad with"
UNKNOWN = "a size is symbolic"
ELSEWHERE = "on this platform nothing else has been measured to be faster"
UNBEATEN = "nothing that was tried is faster here"
UNPROVEN = "legal, but not measured to be faster here"

# In order of preference.
FILES = (products, shifts, phases, blocks, folds, patches, borders, depths)


def offers(call: Call) -> Iterator[Formulation]:
    """Whatever can compute a call, `lax` apart."""
    for file in FILES:
        yield from file.offers(call)
    if call.map == "input_grad":
        yield from full.offers(call, offers(call.full()))


def candidates(call: Call) -> Iterator[Formulation]:
    """Every formulation that is legal for a call, in this order; the first is to be taken.

    An engine's if it pays, those inside XLA that pay, an engine's otherwise, `lax`, and the others. Of those called
    "full" there is one for every formulation of the convolution inside.

    Raises:
      ValueError: the call names an engine that does not take it.
    """
    only = _only_lax(call)
    computed = only or native.offer(call)
    named = call.engine not in ("auto", "xla")
    engine = computed if isinstance(computed, Formulation) else None
    if engine and (engine.pays or named):
        yield engine
    elif named:
        raise ValueError(f'engine="{call.engine}" cannot compute this {call.map}: {computed}. engine="auto" can.')
    if only:
        yield library.offer(call, only)
        return
    measured, others = call.platform == "cpu" or call.geometry.rank == 0, []
    for formulation in offers(call):
        if formulation.pays and measured:
            yield formulation
        else:
            others.append(formulation)
    why_not = next((other.why_not for other in others if other.why_not), UNBEATEN) if measured else ELSEWHERE
    if engine and not engine.pays and not named:
        yield engine
    if not engine and call.engine == "auto" and call.platform == native.PLATFORM:
        why_not = f"{why_not}; {computed}"
    yield library.offer(call, why_not)
    for other in others:
        yield replace(other, pays=False, why=other.why_not or UNPROVEN)


def chosen(call: Call, table: Table | None = None) -> Formulation:
    """The formulation that a call takes, what the maps compute with and `plan` reports: a table's, if it has one."""
    asked = table is not None and call.engine in ("auto", "xla") and _only_lax(call) is None
    label = table.winner(call) if table and asked else None
    if label is not None:
        for formulation in candidates(call):
            if formulation.label == label:
                return replace(formulation, why="measured to be the fastest here")
    return next(candidates(call))


def _only_lax(call: Call) -> str | None:
    """Why nothing but `lax` will do, where that is so."""
    geometry, sizes = call.geometry, (call.batch, call.inputs, call.outputs)
    if jnp.issubdtype(call.dtype, jnp.floating) and jnp.dtype(call.dtype).itemsize < 2:
        return EIGHT_BITS
    if geometry.rank == 0 and 0 not in sizes:
        return None
    if not all(isinstance(size, int) for size in (*sizes, *geometry.spatial)):
        return UNKNOWN
    return EMPTY if 0 in (*sizes, *geometry.spatial, *geometry.out) else None
