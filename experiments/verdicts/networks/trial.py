"""One network, one dtype, one seed before the judges; and how large a wrong network's fault is."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxconv
from experiments.verdicts.case import Case
from experiments.verdicts.judges import JUDGES, SAID, setting
from experiments.verdicts.networks.network import Network, sound


class Gain(NamedTuple):
    """How far a wrong network's gradient is from the right one, in the argument where that stands out most.

    Attributes:
      where: the argument.
      fault: ‖wrong − right‖ / ‖right‖, in float64; ∞ where the right one is 0.
      rounding: ‖right in the dtype − right‖ / ‖right‖: what the format itself does there.
      excess: the largest error of an entry of the one in units of the largest of the other.
      entries: the part of the entries that is off by more than 1e-6 of the largest.
    """

    where: str
    fault: float
    rounding: float
    excess: float
    entries: float


def gain(network: Network, dtype: str, seed: int) -> Gain | None:
    """How large the fault is. None where it does not exceed the format's own error: where a unit that it concerns is
    dead, or where 16 bits put a unit on the other side of its kink."""
    with setting("float64"):
        right, wrong = (_gradient(network, "float64", seed, op) for op in (sound, network.op))
    with setting(dtype):
        rounded = _gradient(network, dtype, seed, sound)
    found = []
    for path, truth in right.items():
        fault, rounding = np.abs(wrong[path] - truth), np.abs(rounded[path] - truth)
        if fault.any():
            size, least = np.linalg.norm(truth), np.finfo(np.float64).tiny
            relative, own = (float(np.linalg.norm(d) / max(size, least)) for d in (fault, rounding))
            excess = float(fault.max() / max(rounding.max(), least))
            found.append(Gain(path, relative, own, excess, float((fault > 1e-6 * np.abs(truth).max()).mean())))
    largest = max(found, key=lambda g: g.excess, default=None)
    return None if largest is None or largest.excess <= 1 else largest


def _gradient(network: Network, dtype: str, seed: int, op: Any) -> dict[str, np.ndarray]:
    f, arguments = network.build(seed, dtype, op)
    gradients = jax.jit(jax.grad(f, tuple(range(len(arguments))), allow_int=True))(*arguments)
    leaves = jax.tree_util.tree_flatten_with_path(gradients)[0]
    return {
        jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
        for path, leaf in leaves
        if leaf.dtype != jax.dtypes.float0
    }


class Outcome(NamedTuple):
    """What one judge says of one network, dtype and seed.

    Attributes:
      accepted: whether it accepts the gradient; None where it has no word on it.
      kinds: of `jaxconv.check`, each kind of evidence with verdict and error in bounds.
      worst: its worst finding, or what went wrong.
      gain: of a wrong network, how large the fault is.
    """

    name: str
    dtype: str
    seed: int
    right: bool
    judge: str
    accepted: bool | None
    seconds: float
    kinds: dict[str, tuple[str, float]]
    worst: str
    gain: Gain | None


def trial(
    network: Network, dtype: str, seed: int, right: bool, judges: tuple[str, ...] = tuple(JUDGES)
) -> list[Outcome]:
    """Every judge's word; none where the seed's numbers do not show the fault. `check` is asked for its report."""
    size = None if right else gain(network, dtype, seed)
    if not right and size is None:
        return []
    found = []
    with setting(dtype):
        for judge in judges:
            start = time.perf_counter()
            kinds: dict[str, tuple[str, float]] = {}
            try:
                f, arguments = network.build(seed, dtype)
                if judge == "jaxconv.check":
                    ok, kinds, worst = examined(jaxconv.check(f, *arguments))
                else:
                    ok, worst = JUDGES[judge](Case(network.name, f, partial(_same, arguments)), dtype), ""
            except Exception as error:
                ok, worst = None, f"{type(error).__name__}: {str(error)[:300]}"
            took = round(time.perf_counter() - start, 2)
            found.append(Outcome(network.name, dtype, seed, right, judge, ok, took, kinds, worst, size))
    jax.clear_caches()
    return found


def _same(arguments: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    return arguments


def examined(report: Any) -> tuple[bool | None, dict[str, tuple[str, float]], str]:
    """Whether it is accepted, None if undecided; verdict and error by kind; the worst finding."""
    kinds = {e.name: (e.verdict, float(f"{e.ratio:.3g}")) for e in report.evidence}
    findings = [(f, e.name) for e in report.evidence if e.verdict == "wrong" for f in e.findings]
    worst, kind = max(findings, key=lambda f: f[0].ratio, default=(None, ""))
    others = "; ".join(f"{name}: {verdict}" for name, (verdict, _) in kinds.items() if verdict != "ok")
    return SAID[report.verdict], kinds, f"{kind}: {worst}" if worst else others
