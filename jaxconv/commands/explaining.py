"""explain: a convolution's gradients as recipes, sums, pictures and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxconv
from jaxconv.commands.loading import load
from jaxconv.commands.speaking import CannotRunError, can_draw, can_write, working, write_json
from jaxconv.geometry import LAYOUTS
from jaxconv.rules import RULE_SETS

SPATIAL = """
Shapes are those of x and w in the layout: n,h,w,c and h,w,c/groups,o for NHWC, with any number of spatial axes. Spatial
options take one number, or one per axis; a padding that starts with a minus sign is written with an equals sign:

    python -m jaxconv explain 1,7,7,1 3,3,1,1 --stride 2 --padding=-1:0,1:1 --html recipe.html

In place of shapes, a file and a function of x and w in it: which convolution that is, is found by asking it. The file
says with which arrays, as for check:

    python -m jaxconv explain my_layers.py:layer --figure layer.png
"""


def add(command: Callable[..., Any]) -> None:
    """The parser, made by `command(name, run, …)`."""
    explain = command("explain", _explain, help="a convolution's gradients as recipes, sums, pictures", epilog=SPATIAL)
    explain.add_argument(
        "input_shape", nargs="?", default=(1, 5, 5, 1), type=_subject, help="of x, as 1,5,5,1; or path.py:function"
    )
    explain.add_argument("kernel_shape", nargs="?", type=_shape, help="of w, as 2,2,1,1")
    for name in ("stride", "dilation", "input-dilation"):
        explain.add_argument(f"--{name}", default=1, type=_per_axis, metavar="N[,N…]")
    explain.add_argument("--padding", default="SAME", type=_padding, metavar="SAME|VALID|N|N,N|LO:HI,LO:HI")
    explain.add_argument("--groups", default=1, type=int)
    explain.add_argument("--flip-kernel", action="store_true", help="the true convolution")
    explain.add_argument("--layout", default="NHWC", choices=LAYOUTS)
    explain.add_argument("--rules", default="fast", choices=(*RULE_SETS, "autodiff"), help="whose sums to read")
    explain.add_argument("--entry", type=_entry, metavar="dx[0,1,2,0]", help="the sum of this entry alone")
    explain.add_argument("--latex", action="store_true", help="LaTeX instead of text")
    explain.add_argument("--json", type=Path, metavar="FILE", help="write the explanation as JSON")
    explain.add_argument("--figure", type=Path, metavar="FILE", help="draw it: .svg, .png, .pdf, or a moving .gif")
    explain.add_argument("--frames", type=int, metavar="N", help="how many positions of the kernel to draw")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write an interactive page")


def _explain(options: Any) -> int:
    can_draw("--figure", options.figure)
    can_write(options.json)
    can_write(options.html)
    explanation = jaxconv.explain(
        *_explained(options), stride=options.stride, padding=options.padding,
        dilation=options.dilation, input_dilation=options.input_dilation, groups=options.groups,
        flip_kernel=options.flip_kernel, layout=options.layout, rules=options.rules,
    )  # fmt: skip
    # What cannot be shown is refused before anything is written.
    said = explanation.equation(*options.entry) if options.entry else explanation
    page = explanation.html() if options.html else ""
    if options.figure:
        with working(f"drawing {options.figure}"):
            explanation.figure(options.figure, frames=options.frames)
    if options.html:
        options.html.write_text(page, encoding="utf-8")
    write_json(explanation, options.json)
    print(said.latex() if options.latex else said)
    faults = explanation.faults()
    for fault in faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _explained(options: Any) -> tuple[Any, ...]:
    """The two shapes, or a function with its x and w."""
    if not isinstance(options.input_shape, str):
        return options.input_shape, options.kernel_shape or (2, 2, 1, 1)
    if options.kernel_shape:
        raise CannotRunError(f"{options.input_shape} takes no shape of w: its arguments are defined in the file.")
    function, args, _ = load(options.input_shape)
    if len(args) != 2:
        raise CannotRunError(
            f"a function to explain takes x and w, but {options.input_shape} has {len(args)} arguments."
        )
    return function, *args


def _integers(text: str, example: str, separator: str = ",") -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split(separator))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be written like {example}, but is {text!r}") from error


def _shape(text: str) -> tuple[int, ...]:
    return _integers(text, "1,5,5,1")


def _subject(text: str) -> str | tuple[int, ...]:
    """A shape, or path.py:function."""
    return text if ":" in text else _shape(text)


def _per_axis(text: str) -> int | tuple[int, ...]:
    numbers = _integers(text, "2 or 2,1")
    return numbers if len(numbers) > 1 else numbers[0]


def _padding(text: str) -> str | int | tuple[Any, ...]:
    """A word, a number, one per axis, or LO:HI per axis."""
    if text[:1].isalpha():
        return text
    return tuple(_integers(p, "1:0,2:1", ":") for p in text.split(",")) if ":" in text else _per_axis(text)


def _entry(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, indices = text.removesuffix("]").partition("[")
    return name, _integers(indices, "dx[0,1,2,0]")
