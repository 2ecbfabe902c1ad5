"""A function in a user's file, and the arguments that the file calls it with."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxconv.commands.speaking import CannotRunError

CONVENTION = """
The file says what to call a function with. For `loss` that is `loss_args`, else `example_args`: a tuple, or a function
of no arguments that returns one. Check compares with `loss_reference` if the file defines it.

    # my_ops.py
    def loss(w, x): ...
    def loss_args(): return jnp.ones((3, 3)), jnp.ones((8, 3))

    python -m jaxconv check my_ops.py:loss
"""


def load(target: str) -> tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any] | None]:
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
