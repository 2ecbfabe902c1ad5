"""`python -m jaxconv check|compare|explain|doctor`: gradients judged, raced and explained from the command line.

Exit status: 0 when all is right, 1 when a gradient is wrong, 2 when it could not be found out, 130 after Ctrl-C.
Results go to stdout, and what is going on to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from jaxconv.geometry import LAYOUTS
from jaxconv.gradcheck import KINDS
from jaxconv.ops.arguments import ENGINES
from jaxconv.rules import NAMED

CONVENTION = """
The file says what to call a function with. For `loss` that is `loss_args`, else `example_args`: a tuple, or a function
of no arguments that returns one. Check compares with `loss_reference` if the file defines it.

    # my_ops.py
    def loss(w, x): ...
    def loss_args(): return jnp.ones((3, 3)), jnp.ones((8, 3))

    python -m jaxconv check my_ops.py:loss
"""


SPATIAL = """
Shapes are those of x and w in the layout: n,h,w,c and h,w,c/groups,o for NHWC, with any number of spatial axes. Spatial
options take one number, or one per axis; a padding that starts with a minus sign is written with an equals sign:

    python -m jaxconv explain 1,7,7,1 3,3,1,1 --stride 2 --padding=-1:0,1:1 --html recipe.html

In place of shapes, a file and a function of x and w in it: which convolution that is, is found by asking it. The file
says with which arrays, as for check:

    python -m jaxconv explain my_layers.py:layer --figure layer.png
"""


# Seconds without a word.
SILENCE = 10.0


class CannotRunError(Exception):
    """There is no verdict, and this is why."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if getattr(options, "x64", False):
        jax.config.update("jax_enable_x64", True)
    try:
        return options.run(options)
    except Exception as error:
        known = isinstance(error, CannotRunError | TypeError | ValueError | MemoryError | OSError)
        _say(str(error) if known else f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _say(text: str) -> None:
    """What is not the result goes to stderr, at once."""
    print(f"jaxconv: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _working(what: str) -> Iterator[None]:
    """Says now and again that work which takes long is still going on."""
    over = threading.Event()

    def speak() -> None:
        for count in itertools.count(1):
            if over.wait(SILENCE):
                return
            _say(f"still {what}, {count * SILENCE:.0f} s")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m jaxconv", description=__doc__, formatter_class=_Plain)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[Any], int], **about: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, formatter_class=_Plain, **about)
        sub.set_defaults(run=run)
        return sub

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
    explain.add_argument("--rules", default="fast", choices=(*NAMED, "autodiff"), help="whose sums to read")
    explain.add_argument("--entry", type=_entry, metavar="dx[0,1,2,0]", help="the sum of this entry alone")
    explain.add_argument("--latex", action="store_true", help="LaTeX instead of text")
    explain.add_argument("--json", type=Path, metavar="FILE", help="write the explanation as JSON")
    explain.add_argument("--figure", type=Path, metavar="FILE", help="draw it: .svg, .png, .pdf, or a moving .gif")
    explain.add_argument("--frames", type=int, metavar="N", help="how many positions of the kernel to draw")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write an interactive page")
    doctor = command("doctor", _doctor, help="what is installed, and do the rules work on this machine?")
    doctor.add_argument("--quick", action="store_true", help="in seconds: fewer layers, in float32, by one evidence")
    return parser


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written."""


# check, compare


def _check(options: Any) -> int:
    _can_write(options.json)
    function, args, reference = _load(options.function)
    with _working(f"checking {options.function}"):
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
    _can_draw("--png", options.png)
    _can_write(options.json)
    loaded = [_load(function) for function in options.function]
    function, args, _ = loaded[0]
    contestants = {name: f for name, (f, *_) in zip(options.function, loaded, strict=True)}
    with _working(f"comparing {' with '.join(options.function)}"):
        report = jaxconv.compare(
            function if len(loaded) == 1 else contestants, *args, seconds=options.seconds, seed=options.seed
        )
    _report(report, options)
    if options.png:
        report.figure(options.png)
    return 0 if report.ok else 1


def _report(report: Any, options: Any) -> None:
    print(report)
    _write_json(report, options.json)


def _write_json(report: Any, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n")


def _can_draw(option: str, path: Path | None) -> None:
    if path and importlib.util.find_spec("matplotlib") is None:
        raise CannotRunError(f"{option} needs matplotlib. pip install jaxconv[experiments]")
    _can_write(path)


def _can_write(path: Path | None) -> None:
    """Refuse before any work what could not be written after it."""
    if path and (path.is_dir() or not path.resolve().parent.is_dir()):
        raise CannotRunError(f"{path} cannot be written: {'it is' if path.is_dir() else 'its folder is not'} a folder.")


def _load(target: str) -> tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any] | None]:
    """The function that `path.py:function` names, its example arguments, and its reference if it has one."""
    path, colon, name = target.rpartition(":")
    if not colon or not path or not name:
        raise CannotRunError(f"the function must be given as path.py:function, but is {target!r}.")
    if not Path(path).is_file():
        raise CannotRunError(f"{path} is not a file.")
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(f"_jaxconv_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise CannotRunError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CannotRunError(f"{path} fails: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        defined = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise CannotRunError(f"{path} defines no function {name!r}; it defines {defined}.")
    example = getattr(module, f"{name}_args", getattr(module, "example_args", None))
    if example is None:
        raise CannotRunError(f"{path} must define {name}_args or example_args, a tuple of arguments for {name}.")
    try:
        args = example() if callable(example) else example
    except (Exception, SystemExit) as error:
        raise CannotRunError(f"the arguments for {name} fail: {type(error).__name__}: {error}") from error
    if not isinstance(args, tuple | list):
        raise CannotRunError(f"{name}_args must be a tuple, but is {type(args).__name__}. For one argument write (x,).")
    return function, tuple(args), getattr(module, f"{name}_reference", None)


# explain


def _explain(options: Any) -> int:
    _can_draw("--figure", options.figure)
    _can_write(options.json)
    _can_write(options.html)
    explanation = jaxconv.explain(
        *_explained(options), stride=options.stride, padding=options.padding,
        dilation=options.dilation, input_dilation=options.input_dilation, groups=options.groups,
        flip_kernel=options.flip_kernel, layout=options.layout, rules=options.rules,
    )  # fmt: skip
    # What cannot be shown is refused before anything is written.
    said = explanation.equation(*options.entry) if options.entry else explanation
    page = explanation.html() if options.html else ""
    if options.figure:
        with _working(f"drawing {options.figure}"):
            explanation.figure(options.figure, frames=options.frames)
    if options.html:
        options.html.write_text(page, encoding="utf-8")
    _write_json(explanation, options.json)
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
    function, args, _ = _load(options.input_shape)
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


# doctor

# The evidence of the quick form: every entry, with automatic differentiation in float64.
QUICK = {"structure", "automatic"}


def _doctor(options: Any) -> int:
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in ("jaxconv", "jax", "jaxlib", "numpy", "optax"):
        print(f"{package} {_version(package) or 'NOT INSTALLED'}")
    optional = {p: _version(p) for p in ("matplotlib", "rich", "tyro", "scikit-learn", "flax", "pytest")}
    print("optional: " + ", ".join(f"{package} {version or 'not installed'}" for package, version in optional.items()))
    sys.stdout.flush()
    _say("looking for devices")
    print("devices: " + ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()))
    print(f"rules: {', '.join(NAMED)}, autodiff; engines: {', '.join(ENGINES)}")
    float64 = "on" if jnp.asarray(0.0).dtype == jnp.float64 else "off"
    precision = jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]
    print(f"float64: {float64}; matmul precision: {precision}")
    print("self-check:", flush=True)
    samples, skip = (_quick_samples(), set(KINDS) - QUICK) if options.quick else (_samples(), set())
    if not options.quick:
        _say("this takes about a minute; --quick takes seconds")
    wrong = 0
    for count, (name, function, args) in enumerate(samples, 1):
        _say(f"checking {count} of {len(samples)}: {name}")
        with _working(f"checking {name}"):
            report = jaxconv.check(function, *args, skip=sorted(skip))
        wrong += not report.ok
        print(f"  {name}: {report.verdict if report.verdict != 'wrong' else 'WRONG'}", flush=True)
        if not report.ok:
            print(report, flush=True)
    print("all gradients are right" if not wrong else f"{wrong} gradients are WRONG: please report this output")
    return 1 if wrong else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


Sample = tuple[str, Callable[..., Any], tuple[Any, ...]]


def _samples() -> list[Sample]:
    """Small layers that between them use every primitive of the library."""

    def block(x: jax.Array, w: jax.Array, b: jax.Array, rules: str) -> jax.Array:
        return _pools(_convolution(x, w, b, rules), rules)

    samples: list[Sample] = []
    for dtype in (jnp.float32, jnp.bfloat16):
        args = _arguments(dtype, (2, 9, 8, 4), (3, 3, 2, 6), (6,))
        for rules in NAMED:
            samples.append((f"{jnp.dtype(dtype).name}, rules={rules!r}", functools.partial(block, rules=rules), args))
    return samples


def _quick_samples() -> list[Sample]:
    """What compiles in a second each: the convolution under every rule set, and what is around it under the default."""
    x, w, b = _arguments(jnp.float32, (2, 5, 4, 4), (2, 2, 2, 6), (6,))
    samples: list[Sample] = [
        (f"convolution, rules={rules!r}", functools.partial(_convolution, rules=rules), (x, w, b)) for rules in NAMED
    ]
    return [*samples, ("activation, pools and padding, rules='fast'", functools.partial(_pools, rules="fast"), (x,))]


def _convolution(x: jax.Array, w: jax.Array, b: jax.Array, rules: str) -> jax.Array:
    return jaxconv.conv(x, w, b, stride=2, padding=((1, 0), (2, 1)), groups=2, rules=rules)


def _pools(x: jax.Array, rules: str) -> jax.Array:
    y = jaxconv.max_pool(jaxconv.silu(x, rules=rules), 2, stride=1, rules=rules)
    return jaxconv.avg_pool(jaxconv.pad(y, 1, mode="reflect"), 2, rules=rules)


def _arguments(dtype: Any, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)  # jax.random would compile for longer than a quick check takes
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)


if __name__ == "__main__":
    sys.exit(main())
