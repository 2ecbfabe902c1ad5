"""manual: what the rules of this library replace in a function of a user's file, and what that gains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from jaxconv.commands.loading import CONVENTION, load
from jaxconv.commands.speaking import can_write, say, working, write_json
from jaxconv.ops.arguments import ENGINES
from jaxconv.rules import RULE_SETS
from jaxconv.transforms.manual import Manual


def add(command: Callable[..., Any]) -> None:
    """The parser, made by `command(name, run, …)`."""
    manual = command("manual", _manual, help="what do hand-written rules replace, and gain?", epilog=CONVENTION)
    manual.add_argument("function", metavar="path.py:function", help="decorated with manual or not")
    manual.add_argument("--rules", default="fast", choices=(*RULE_SETS, "autodiff"), help="whose gradients")
    manual.add_argument("--engine", default="auto", choices=ENGINES, help="who computes the convolutions")
    manual.add_argument("--seconds", type=float, default=2.0, help="how long to time")
    manual.add_argument("--seed", type=int, default=0, help="of the cotangents")
    manual.add_argument("--json", type=Path, metavar="FILE", help="write report and race as JSON")
    manual.add_argument("--x64", action="store_true", help="allow float64 arguments")


class _Findings(NamedTuple):
    """The report of what is replaced, and the race of before and after, if there is one."""

    report: Any
    race: Any

    def to_dict(self) -> dict[str, Any]:
        return {"report": self.report.to_dict(), "race": self.race and self.race.to_dict()}


def _manual(options: Any) -> int:
    can_write(options.json)
    before, args, _ = load(options.function)
    before = before.__wrapped__ if isinstance(before, Manual) else before
    after = jaxconv.manual(before, rules=options.rules, engine=options.engine)
    report = after.report(*jax.tree.map(_array, args))
    print(report, flush=True)
    race = _race(before, after, args, options) if report.replaced else None
    if race:
        print(f"\n{race}")
    else:
        say("before and after are the same: there is no race")
    write_json(_Findings(report, race), options.json)
    return 1 if race and not race.ok else 0


def _array(leaf: Any) -> Any:
    """An array of JAX for one of NumPy, of which f would make constants."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype != object else leaf


def _race(before: Callable[..., Any], after: Callable[..., Any], args: tuple[Any, ...], options: Any) -> Any:
    contestants = {"before": before, "after": after}
    with working(f"comparing {options.function} before and after"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "manual: ", UserWarning)  # the report has said it
        return jaxconv.compare(contestants, *args, seconds=options.seconds, seed=options.seed)
