"""check and compare: is this gradient right, and which is faster?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxconv
from jaxconv.commands.loading import CONVENTION, load
from jaxconv.commands.speaking import can_draw, can_write, working, write_json


def add(command: Callable[..., Any]) -> None:
    """The parser, made by `command(name, run, …)`."""
    check = command("check", _check, help="is this gradient right?", epilog=CONVENTION)
    check.add_argument("function", metavar="path.py:function")
    check.add_argument("--order", type=int, default=1, choices=(1, 2), help="2: the gradient's gradient as well")
    check.add_argument("--skip", nargs="*", default=[], metavar="KIND", help="kinds of evidence to leave out")
    check.add_argument(
        "--cuts",
        nargs="*",
        metavar="NAME",
        help="arguments that stop_gradient cuts off on purpose; all, if none is named",
    )
    compare = command("compare", _compare, help="which gradient is faster?", epilog=CONVENTION)
    compare.add_argument(
        "function",
        nargs="+",
        metavar="path.py:function",
        help="one races its own automatic gradient; several each other",
    )
    compare.add_argument("--seconds", type=float, default=2.0, help="how long to time")
    compare.add_argument("--png", type=Path, metavar="FILE", help="draw time, memory and errors")
    for sub in (check, compare):
        sub.add_argument("--seed", type=int, default=0, help="of the cotangents")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
        sub.add_argument("--x64", action="store_true", help="allow float64 arguments")


def _check(options: Any) -> int:
    can_write(options.json)
    function, args, reference = load(options.function)
    with working(f"checking {options.function}"):
        report = jaxconv.check(
            function,
            *args,
            reference=reference,
            order=options.order,
            seed=options.seed,
            skip=options.skip,
            cuts=True if options.cuts == [] else options.cuts or (),
        )
    _report(report, options)
    return {"right": 0, "wrong": 1, "undecided": 2}[report.verdict]


def _compare(options: Any) -> int:
    can_draw("--png", options.png)
    can_write(options.json)
    loaded = [load(function) for function in options.function]
    function, args, _ = loaded[0]
    contestants = {name: f for name, (f, *_) in zip(options.function, loaded, strict=True)}
    with working(f"comparing {' with '.join(options.function)}"):
        report = jaxconv.compare(
            function if len(loaded) == 1 else contestants, *args, seconds=options.seconds, seed=options.seed
        )
    _report(report, options)
    if options.png:
        report.figure(options.png)
    return 0 if report.ok else 1


def _report(report: Any, options: Any) -> None:
    print(report)
    write_json(report, options.json)
