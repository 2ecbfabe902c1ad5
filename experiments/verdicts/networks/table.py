"""Many trials in many processes, and what they come to."""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax

from experiments.verdicts.bench import WORDS, confusion
from experiments.verdicts.networks.right import RIGHT
from experiments.verdicts.networks.trial import Gain, Outcome, trial
from experiments.verdicts.networks.wrong import WRONG

Task = tuple[str, str, int, bool, tuple[str, ...]]


def tasks(filter: str, seeds: Sequence[int], right: Sequence[bool], judges: tuple[str, ...]) -> list[Task]:
    """Every network, dtype and seed; a name is `<network> <dtype>`, and `filter` any part of it."""
    return [
        (network.name, dtype, seed, sound, judges)
        for seed in seeds
        for sound in right
        for network in (RIGHT if sound else WRONG)
        for dtype in network.dtypes
        if filter in f"{network.name} {dtype}"
    ]


def perform(task: Task) -> list[Outcome]:
    name, dtype, seed, right, judges = task
    network = next(n for n in (RIGHT if right else WRONG) if n.name == name)
    return trial(network, dtype, seed, right, judges)


def outcomes(todo: Sequence[Task], jobs: int, log: Path | None) -> Iterator[list[Outcome]]:
    """As they come; each also as a line of JSON in `log`. What is there already is not tried again."""
    known = recorded(log) if log and log.exists() else {}
    done = [[known[(*task[:4], judge)] for judge in task[4] if (*task[:4], judge) in known] for task in todo]
    yield from filter(None, done)
    todo = [task for task, found in zip(todo, done, strict=True) if len(found) < len(task[4])]
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), share, (cache,)) as pool,
    ):
        for future in as_completed([pool.submit(perform, task) for task in todo]):
            found = future.result()
            if log:
                with log.open("a") as file:
                    file.writelines(json.dumps(plain(o._asdict()), ensure_ascii=False) + "\n" for o in found)
            yield found


def share(cache: str) -> None:
    """Compile every program once for all processes and seeds; where JAX_COMPILATION_CACHE_DIR says, if it does."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def recorded(log: Path) -> dict[tuple[Any, ...], Outcome]:
    """The outcomes of an earlier run, by name, dtype, seed, soundness and judge."""
    known = {}
    for line in log.read_text().splitlines():
        row = json.loads(line)
        kinds = {kind: (verdict, float(ratio)) for kind, (verdict, ratio) in row["kinds"].items()}
        sizes: dict[str, Any] = {key: v if key == "where" else float(v) for key, v in (row["gain"] or {}).items()}
        found = Outcome(**(row | {"kinds": kinds, "gain": Gain(**sizes) if sizes else None}))
        known[found.name, found.dtype, found.seed, found.right, found.judge] = found
    return known


def plain(value: Any) -> Any:
    """As JSON takes it: named tuples by name, and words for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return plain(value._asdict()) if hasattr(value, "_asdict") else [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def margins(found: Sequence[Outcome]) -> dict[str, Any]:
    """How near `jaxconv.check` came to a mistake, in bounds: the largest error of a right network, by kind of evidence,
    and the smallest of a wrong one, each with its network."""
    right: dict[str, tuple[float, str]] = {}
    wrong = (float("inf"), "")
    for o in found:
        if not o.kinds:
            continue
        name = f"{o.name}, {o.dtype}, seed {o.seed}"
        ratios = {kind: ratio for kind, (_, ratio) in o.kinds.items() if ratio == ratio}
        if o.right:
            for kind, ratio in ratios.items():
                right[kind] = max(right.get(kind, (0.0, "")), (ratio, name))
        else:
            wrong = min(wrong, (max(ratios.values(), default=float("inf")), name))
    return {"right, at most": right, "wrong, at least": wrong}


def mistakes(found: Sequence[Outcome]) -> dict[str, list[str]]:
    """For each judge: what it rejected that is right, accepted that is wrong, or had no word on."""
    wrongly: dict[str, list[str]] = {}
    for o in found:
        own = wrongly.setdefault(o.judge, [])
        if o.accepted is not o.right:
            size = "" if o.gain is None else f" (fault {o.gain.fault:.2g}, {o.gain.excess:.2g} × rounding)"
            about, verdict = f": {o.worst}" if o.worst else "", WORDS[o.accepted]
            own.append(f"{'right' if o.right else 'wrong'}, {verdict}: {o.name}, {o.dtype}, seed {o.seed}{size}{about}")
    return {judge: sorted(own) for judge, own in wrongly.items()}


def seeds(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of each network what `jaxconv.check` said, from which seeds: so a later run may go on with others."""
    rows: dict[tuple[bool, str, str], dict[str, Any]] = {}
    for o in sorted((o for o in found if o.judge == "jaxconv.check"), key=lambda o: (not o.right, o.seed)):
        row = rows.setdefault((o.right, o.name, o.dtype), {"network": o.name, "dtype": o.dtype, "right": o.right})
        row.setdefault(WORDS[o.accepted], []).append(o.seed)
    return list(rows.values())


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    judges = dict.fromkeys(o.judge for o in found)
    return {
        "networks": {
            "right": len({(o.name, o.dtype) for o in found if o.right}),
            "wrong": len({(o.name, o.dtype) for o in found if not o.right}),
            "seeds": len({o.seed for o in found}),
        },
        "confusion": confusion(found, ("float32",)),
        "seconds": {j: round(statistics.median(o.seconds for o in found if o.judge == j), 2) for j in judges},
        "margins": plain(margins(found)),
        "mistakes": mistakes(found),
        "seeds": seeds(found),
    }
