"""tune: the fastest formulation of every convolution in a function's gradient, measured here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxconv
from jaxconv.commands.loading import CONVENTION, load
from jaxconv.commands.speaking import can_write


def add(command: Callable[..., Any]) -> None:
    """The parser, made by `command(name, run, …)`."""
    tune = command("tune", _tune, help="which formulation of each convolution is the fastest here?", epilog=CONVENTION)
    tune.add_argument("function", metavar="path.py:function", help="what jax.grad is to be taken of")
    tune.add_argument("--out", type=Path, metavar="FILE", help="write the rules, for jaxconv.load_rules")
    tune.add_argument("--argnums", type=int, nargs="+", default=[0], metavar="N", help="what is differentiated")
    tune.add_argument("--manual", action="store_true", help="of a function that knows nothing of this library")
    tune.add_argument("--engine", default="auto", choices=("auto", "xla"), help="who may compute")
    tune.add_argument("--seconds", type=float, default=0.2, help="how long to race each call")
    tune.add_argument("--budget", type=float, default=math.inf, help="seconds for all; the largest calls come first")
    tune.add_argument("--memory", type=float, default=math.inf, help="bytes that a formulation may hold")


def _tune(options: Any) -> int:
    can_write(options.out)
    function, args, _ = load(options.function)
    rules = jaxconv.tune(
        jaxconv.manual(function, engine=options.engine) if options.manual else function,
        *args,
        argnums=options.argnums,
        engine=options.engine,
        seconds=options.seconds,
        budget=options.budget,
        memory=options.memory,
    )
    print(rules)
    if options.out:
        rules.save(options.out)
    return 0
