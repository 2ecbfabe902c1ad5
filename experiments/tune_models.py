"""Tune every network of `jaxconv.models` on this machine, and race its training step with the rules that won.

    python -m experiments.tune_models --out experiments/results/tuned --engine xla
    python -m experiments.tune_models --models cnn convnext

For each network the gradient of its training loss is tuned (`jaxconv.tune`); the rules are written to `--out`, where
`experiments.train --rules FILE` and `jaxconv.load_rules` find them. Then three compiled training steps take turns: by
these rules, by the built-in choices, and by `jax.grad` of plain lax; that they agree is checked first. Each line is the
median time with tuned rules in ms, and how many times as long the other two take. With `--engine xla` the native engine
is left out of all of it, pools and norms included.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

import jaxconv
from experiments.benchmark.race import Budget, agree, race, ratios, spread
from experiments.benchmark.rows import DEEP_TOLERANCE, native
from experiments.benchmark.steps import STEPS, Network, objective, training
from experiments.config import UsageError
from experiments.files import as_json, write_atomically
from experiments.machine import machine
from experiments.memory import in_large_pages
from jaxconv.models import MODELS

TUNED, BUILT_IN, REFERENCE = "tuned", "built-in", "jax.grad"
IMAGE = {"article": (28, 28, 1), "lenet5": (28, 28, 1), "vgg": (32, 32, 3)}
NETWORKS = {
    **{net: Network(net, net, 128, image, "adam") for net, image in IMAGE.items()},
    **{step.net: step for step in STEPS},
}


@dataclass(frozen=True)
class Options:
    """Tune the networks of jaxconv.models on this machine."""

    models: tuple[Literal["article", "cnn", "lenet5", "vgg", "resnet18", "mobilenet_v2", "convnext"], ...] = ()
    """Which; by default all."""
    engine: Literal["auto", "xla"] = "auto"
    """Whether the native engine may compute."""
    seconds: float = 0.2
    """How long to race each convolution."""
    race_seconds: float = 5.0
    """How long the training steps take turns."""
    small: bool = False
    """Shrunken networks, to try the command."""
    out: Path | None = None
    """Folder for the rules and tuned.json."""


def tuned(network: Network, options: Options) -> tuple[Any, dict[str, Any]]:
    """The rules of a network, and what is measured of it."""
    params, state, x, labels = network.arrays()
    layer, fixed = network.layer(), (state, jnp.asarray(x), jnp.asarray(labels), jax.random.key(1))
    loss = objective(layer, "fast")
    started = time.perf_counter()
    rules = jaxconv.tune(
        lambda params, *fixed: loss(params, *fixed)[0],
        params, *fixed, engine=options.engine, seconds=options.seconds, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    columns: dict[str, Any] = {TUNED: rules, BUILT_IN: "fast", REFERENCE: "autodiff"}
    contestants = {
        name: training(objective(layer, by), network.optimizer, params, state, x, labels, "float32")
        for name, by in columns.items()
    }
    for name, c in contestants.items():
        agree(name, c.result, contestants[REFERENCE].result, DEEP_TOLERANCE["float32"])
    budget = Budget(options.race_seconds, least=5, most=200)
    times = race(contestants, budget, pipelined=jax.default_backend() != "cpu")
    changed = sum(entry.winner != entry.built_in for entry in rules.table.entries)
    return rules, {
        "network": network.name,
        "tuning_seconds": round(seconds, 1),
        "calls": len(rules.table.entries),
        "changed": changed,
        "ms": {name: spread([t * 1e3 for t in each]) for name, each in times.items()},
        "ratio": {name: ratios(times[name], times[TUNED]) for name in (BUILT_IN, REFERENCE)},
        "date": datetime.date.today().isoformat(),
    }


def main(options: Options, console: Console) -> list[dict[str, Any]]:
    names: Sequence[str] = options.models or tuple(MODELS)
    if options.out is not None and not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: its folder {options.out.parent} does not exist.")
    rows = []
    for name in names:
        network = NETWORKS[name].shrunk() if options.small and name in {s.net for s in STEPS} else NETWORKS[name]
        network = replace(network, batch=4) if options.small else network
        with native(options.engine == "auto"):
            rules, row = tuned(network, options)
        rows.append({"model": name, **row})
        ours = row["ms"][TUNED]["median"]
        against = "   ".join(f"{other} {row['ratio'][other]['median']:.2f}" for other in (BUILT_IN, REFERENCE))
        console.print(
            f"{name:13s} {ours:8.1f} ms   {against}   "
            f"{row['changed']} of {row['calls']} calls changed, tuned in {row['tuning_seconds']:.0f} s"
        )
        if options.out is not None:
            options.out.mkdir(exist_ok=True)
            rules.save(options.out / f"{name}.json")
            about = {**machine("jax", "jaxlib"), "engine": options.engine}
            write_atomically(options.out / "tuned.json", as_json({**about, "rows": rows}) + "\n")
    return rows


if __name__ == "__main__":
    in_large_pages()
    main(tyro.cli(Options), Console())
