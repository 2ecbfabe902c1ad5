"""The rows of the table: what is measured, and how each column computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

import jaxconv
from experiments.benchmark import maps
from experiments.benchmark.layers import CONVS, POOLS, Conv, Pool
from experiments.benchmark.networks import NETWORKS
from experiments.benchmark.race import Budget, Contestant, agree, contestant, race, ratios, spread
from experiments.benchmark.steps import PER_EXAMPLE, RATES, STEPS, Network, objective, per_example, training
from jaxconv.engines.onednn import loading

if TYPE_CHECKING:
    from experiments.benchmark.trainings import Training

OURS, REFERENCE = "jaxconv", "jax.grad"
# Ours without an engine, so that XLA alone computes.
WITHOUT = "xla"
# A library's own network, and the same with this library's rules in it.
MANUAL = "+manual"
# Ours in a loop that waits for every step, in whole trainings.
WAITING = "waiting"
PEERS = (WITHOUT, WAITING, "flax", f"flax{MANUAL}", "equinox", f"equinox{MANUAL}", "torch")
RULES = {OURS: "fast", REFERENCE: "autodiff", WITHOUT: "fast"}
# How far two columns may be apart: a few roundings. In the whole gradient of a deep network there are many, and they
# put one ReLU in a million on the other side of its kink, which alone moves a gradient by a thousandth.
TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2, "float16": 8e-3}
DEEP_TOLERANCE = {"float32": 1e-2, "bfloat16": 6e-1, "float16": 8e-2}
# Accuracies after an epoch: programs that meet the examples in another order learn another network.
LEARNED_TOLERANCE = 0.05


class Setting(NamedTuple):
    """What the rows of one run have in common."""

    dtype: str = "float32"
    engine: str = "auto"

    def tolerance(self, kind: str) -> float:
        if kind == "training":
            return LEARNED_TOLERANCE
        # On a GPU float32 is multiplied with the 10 bits of TensorFloat-32.
        tf32 = self.dtype == "float32" and jax.default_backend() != "cpu"
        return (40 if tf32 else 1) * (DEEP_TOLERANCE if kind in ("step", "per-example") else TOLERANCE)[self.dtype]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: what is measured.
      kind: "convolution", "pool", "per-example", "step" or "training".
      build: from a column and a setting to that column's contestants: by variant ("" if there is one only), nobody
        where the column has no such thing.
      rounds: how many there are, each of one call, where a call takes so long that no budget says so; else None.
    """

    name: str
    kind: str
    build: Callable[[str, Setting], dict[str, Contestant]]
    rounds: int | None = None


def installed() -> tuple[str, ...]:
    """The peers that can be measured here: PyTorch only on the kind of device that JAX uses."""
    libraries = [peer for peer in PEERS if peer not in (WITHOUT, WAITING)]
    found = [WAITING, *(peer for peer in libraries if importlib.util.find_spec(peer.removesuffix(MANUAL)))]
    if jax.default_backend() == "cpu" and loading.why_off() is None:
        found.insert(0, WITHOUT)
    if "torch" in found and jax.default_backend() != "cpu":
        import torch

        if not torch.cuda.is_available():
            found.remove("torch")
    return tuple(found)


@contextlib.contextmanager
def native(on: bool) -> Iterator[None]:
    """Programs are compiled in here with the native engine, or as if there were none."""
    with contextlib.nullcontext() if on else mock.patch.object(loading, "why_off", lambda: "it is left out here"):
        yield


def conv_row(layer: Conv, program: str, network: str = "") -> Row:
    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        if column == "torch":
            from experiments.benchmark import peers_torch

            return peers_torch.conv(layer, program, setting.dtype)
        if column not in (*RULES, "flax"):
            return {}
        if column == "flax":
            from experiments.benchmark import peers_flax

            f = peers_flax.conv(layer)
        else:
            f = maps.lax_conv(layer) if column == REFERENCE else maps.jaxconv_conv(layer, setting.engine)
        arrays = (jnp.asarray(a, setting.dtype) for a in layer.arrays())
        return {"": contestant(maps.CONV_PROGRAMS[program](f), *arrays)}

    return Row(f"{network}: {layer.name} {program}" if network else f"{layer.name} {program}", "convolution", build)


def pool_row(layer: Pool, program: str) -> Row:
    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        if column == "torch":
            from experiments.benchmark import peers_torch

            return peers_torch.pool(layer, program, setting.dtype)
        if column not in (*RULES, "flax"):
            return {}
        if column == "flax":
            from experiments.benchmark import peers_flax

            f = peers_flax.pool(layer)
        else:
            f = maps.lax_pool(layer) if column == REFERENCE else maps.jaxconv_pool(layer)
        x, g = (jnp.asarray(a, setting.dtype) for a in layer.arrays())
        first = maps.pullback(f, x) if program == "backward" else x
        return {"": contestant(maps.POOL_PROGRAMS[program](f), first, g)}

    return Row(f"{layer.name} {program}", "pool", build)


def _flax(network: Network, params: Any, state: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    from experiments.benchmark import peers_flax

    module, params, state = peers_flax.twin(network.net, dict(network.options), params, state, x, train=True)
    return peers_flax.objective(module), params, state, x


def _equinox(network: Network, params: Any, state: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    from experiments.benchmark import peers_equinox

    module, state = peers_equinox.twin(network.net, dict(network.options), params, network.image)
    return *peers_equinox.objective(module), state, peers_equinox.images(x)


# A network and its arrays in another library: the loss, parameters, state and images.
TWINS: dict[str, Callable[..., tuple[Any, Any, Any, Any]]] = {"flax": _flax, "equinox": _equinox}


def step_row(network: Network) -> Row:
    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        params, state, x, labels = network.arrays()
        if column == "torch":
            from experiments.benchmark import nets_torch

            module = nets_torch.twin(network.net, dict(network.options), params, network.image)
            optimizer = nets_torch.optimizer(network.optimizer, RATES[network.optimizer], module)
            return {"": nets_torch.training(module, optimizer, x, labels, setting.dtype)}
        if column not in RULES:
            peer, mode, _ = column.partition(MANUAL)
            loss, params, state, x = TWINS[peer](network, params, state, x)
            loss = jaxconv.manual(loss, engine=setting.engine) if mode else loss
            own = training(loss, network.optimizer, params, state, x, labels, setting.dtype)
            return {"": dataclasses.replace(own, result=None)}  # another tree; a test compares the networks
        loss = objective(network.layer(), RULES[column])
        return {"": training(loss, network.optimizer, params, state, x, labels, setting.dtype)}

    return Row(f"{network.name} training step", "step", build)


def per_example_row(network: Network) -> Row:
    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        if column not in RULES:
            return {}
        params, state, x, labels = network.arrays()
        loss = objective(network.layer(), RULES[column], train=False)
        return {"": contestant(per_example(loss), params, state, jnp.asarray(x, setting.dtype), jnp.asarray(labels))}

    return Row(f"{network.name} per-example gradients", "per-example", build)


def training_row(training: Training) -> Row:
    def build(column: str, setting: Setting) -> dict[str, Contestant]:
        from experiments.benchmark import trainings

        if column == "torch":
            from experiments.benchmark import trainings_torch

            return {"": training.contestant(trainings_torch.training, dtype=setting.dtype)}
        # One to a goal compiles while it is timed, when the engine is no longer left out.
        if column not in (*RULES, WAITING) or (column == WITHOUT and training.goal is not None):
            return {}
        program = trainings.waiting if column == WAITING else trainings.ours
        return {"": training.contestant(program, dtype=setting.dtype, rules=RULES.get(column, "fast"))}

    return Row(training.name, "training", build, training.rounds)


def table(batch: int = 1) -> tuple[Row, ...]:
    """The rows, with batches so many times as large; but one gradient per example is enough of them as it is."""
    convs = [dataclasses.replace(layer, n=layer.n * batch) for layer in CONVS]
    pools = [dataclasses.replace(layer, n=layer.n * batch) for layer in POOLS]
    return (
        *(conv_row(layer, program) for layer in convs for program in maps.CONV_PROGRAMS),
        *(pool_row(layer, program) for layer in pools for program in maps.POOL_PROGRAMS),
        per_example_row(PER_EXAMPLE),
        *(step_row(dataclasses.replace(step, batch=step.batch * batch)) for step in STEPS),
    )


def network_table(batch: int = 1) -> tuple[Row, ...]:
    """The rows of the layers of known networks."""
    return tuple(
        conv_row(dataclasses.replace(layer, n=layer.n * batch), program, network)
        for network, layers in NETWORKS.items()
        for layer in layers
        for program in maps.CONV_PROGRAMS
    )


def training_table(batch: int = 1) -> tuple[Row, ...]:
    """The rows of whole trainings."""
    from experiments.benchmark.trainings import TRAININGS

    return tuple(training_row(training.enlarged(batch)) for training in TRAININGS)


class Rows(NamedTuple):
    """A table: its rows for batches so many times as large, and the peers that have any of them."""

    of: Callable[[int], tuple[Row, ...]]
    peers: tuple[str, ...]


TABLES = {
    "main": Rows(table, tuple(peer for peer in PEERS if peer != WAITING)),
    "networks": Rows(network_table, (WITHOUT, "flax", "torch")),
    "trainings": Rows(training_table, (WITHOUT, WAITING, "torch")),
}


def line_up(row: Row, setting: Setting, peers: tuple[str, ...]) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The contestants of a row as "column/variant", and why a column has none. All of them compute the same."""
    tolerance = setting.tolerance(row.kind)
    found: dict[str, Contestant] = {}
    failed: dict[str, str] = {}
    reference: dict[str, Any] | None = None
    for column in (REFERENCE, OURS, *peers):
        try:
            with native(column != WITHOUT):
                built = row.build(column, setting)
            for own in built.values():
                agree(column, own.result, reference, tolerance)
        except Exception as error:  # one column that fails, whatever the reason, must not cost the others their numbers
            failed[column] = f"{type(error).__name__}: {str(error)[:500]}"
            continue
        if column == REFERENCE:
            reference = built[""].result
        # Results are not needed any more, and may be large.
        found |= {f"{column}/{variant}": dataclasses.replace(own, result=None) for variant, own in built.items()}
    return found, failed


def measure(row: Row, setting: Setting, peers: tuple[str, ...], budget: Budget) -> dict[str, Any]:
    """One row of the report: times in ms, ratios to our time, bytes and compile seconds by column."""
    contestants, failed = line_up(row, setting, peers)
    outcome: dict[str, Any] = {"row": row.name, "kind": row.kind, "failed": failed}
    if failed.keys() & {OURS, REFERENCE}:
        return outcome
    if row.rounds is not None:
        rounds = min(row.rounds, budget.least)
        budget = Budget(0.0, rounds, rounds, single=True)
    times = race(contestants, budget, pipelined=jax.default_backend() != "cpu")
    best: dict[str, str] = {}  # of each column the variant with the lowest median
    for name in sorted(times, key=lambda name: spread(times[name])["median"]):
        best.setdefault(name.partition("/")[0], name)
    columns = [column for column in (OURS, REFERENCE, *peers) if column in best]
    ours = times[best[OURS]]
    compiled = [column for column in columns if contestants[best[column]].compile_seconds is not None]
    memory = {column: contestants[best[column]].temporary_bytes for column in compiled}
    return outcome | {
        "rounds": len(ours),
        "ms": {c: spread([1e3 * t for t in times[best[c]]]) for c in columns},
        "ratio": {c: ratios(times[best[c]], ours) for c in columns if c != OURS},
        "variant": {c: best[c].partition("/")[2] for c in columns if not best[c].endswith("/")},
        "compile_seconds": {c: contestants[best[c]].compile_seconds for c in compiled},
        "temporary_bytes": memory,
        "temporary_ratio": _quotient(memory.get(OURS), memory.get(REFERENCE)),
    }


def _quotient(ours: int | None, theirs: int | None) -> float | None:
    """ours / theirs; None where it is not a finite number."""
    if ours is None or theirs is None:
        return None
    return ours / theirs if theirs else 1.0 if not ours else None
