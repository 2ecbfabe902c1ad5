"""`python -m jaxconv check|compare|manual|tune|explain|doctor`: gradients judged, raced, replaced, tuned, explained.

Exit status: 0 when all is right, 1 when a gradient is wrong, 2 when it could not be found out, 130 after Ctrl-C.
Results go to stdout, and what is going on to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxconv.commands import doctor, explaining, judging, replacing, tuning
from jaxconv.commands.speaking import CannotRunError, say


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if getattr(options, "x64", False):
        jax.config.update("jax_enable_x64", True)
    try:
        return options.run(options)
    except Exception as error:
        known = isinstance(error, CannotRunError | TypeError | ValueError | MemoryError | OSError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX_TRACEBACK_FILTERING" not in note]
        say("\n".join([text, *notes]))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m jaxconv", description=__doc__, formatter_class=_Plain)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[Any], int], **about: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, formatter_class=_Plain, **about)
        sub.set_defaults(run=run)
        return sub

    for commands_of in (judging, replacing, tuning, explaining, doctor):
        commands_of.add(command)
    return parser


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written."""


if __name__ == "__main__":
    sys.exit(main())
