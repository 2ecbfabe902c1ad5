"""What JAX alone would have computed: a function with every hand-written rule taken out.

An equation that carries a rule (`custom_vjp`, `custom_jvp`, `linear_call`, a primitive of this library) also carries
the plain computation that the rule is about, and evaluating that instead leaves JAX nothing but its own derivatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import primitives as known

from jaxconv import primitives
from jaxconv.transforms.program import Read, Step, bind, by_table, contains, entry, interpret, programs, trace, within

# Equations that carry a rule, and where they keep the computation it is about.
_RULED = {known.custom_jvp_call_p: "call_jaxpr", known.custom_vjp_call_p: "call_jaxpr", "linear_call": "callee"}


def automatic(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` with every hand-written derivative removed: `jax.grad(automatic(f))` is what JAX alone would compute.

    `jax.custom_vjp`, `jax.custom_jvp`, `jax.custom_derivatives.linear_call` and the primitives of this library are
    replaced by the plain computation they stand for, wherever they are: in library code that f calls, and inside
    `jit`, `scan`, `while_loop`, `cond`, `checkpoint`, `vmap` and `shard_map`. The values of f do not change.

    Some rules are there because JAX alone has no derivative, such as one around a `while_loop`: reverse mode through
    `automatic(f)` then raises JAX's own error. Implicit solves (`jax.lax.custom_linear_solve`) and `stop_gradient`
    say what f is, not how it is differentiated, and stay. So does a gradient taken inside f, whose rule was used up
    when f was traced.

    Args:
      f: any function that JAX can trace. Positional and keyword arguments and the result are pytrees; whatever in
        them is no array (a mode, a flag, a number of groups, a module's activation) is handed through as it is. So are
        integers and booleans of Python, and its floats where they are attributes of an object.

    Returns:
      A function of the same arguments with the same results, differentiable as often as JAX can do it.

    Raises:
      TypeError: when called with an object that is no pytree and has arrays, which JAX cannot reach; the message has
        the lines that hand them over.

    Example:
      >>> import jax, jaxconv
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> square.defvjp(lambda x: (x * x, x), lambda x, g: (3 * x * g,))  # wrong: the factor is 2
      >>> print(jax.grad(square)(5.0), jax.grad(jaxconv.automatic(square))(5.0))
      15.0 10.0

    Source: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 3: a gradient is determined by the
      evaluation procedure alone.
    """

    @functools.wraps(f)
    def plain(*args: Any, **kwargs: Any) -> Any:
        program = trace("automatic", f, *args, **kwargs)
        return program.result(plainly(program.closed, program.leaves))

    return plain


def ruled(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The computation that an equation's rule is about, if it carries one."""
    where = entry(_RULED, eqn)
    return None if where is None else eqn.params[where]


def has_rules(jaxpr: Jaxpr) -> bool:
    """Whether an equation here, or in a program within, carries a hand-written rule."""
    return contains(jaxpr, lambda eqn: ruled(eqn) is not None or eqn.primitive in primitives.PLAIN)


def plainly(closed: ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """The results of a program without hand-written rules."""
    return interpret(closed.jaxpr, closed.consts, operands, _evaluate)


def unruled(read: Read) -> dict[Any, Step]:
    """The part of a table that reads, in place of an equation with a rule, the computation that the rule is about."""
    return {p: lambda eqn, operands: read(eqn.params[entry(_RULED, eqn)], operands) for p in _RULED}


def _other(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    if eqn.primitive in primitives.PLAIN:
        return primitives.plainly(eqn.primitive, *operands, **eqn.params)
    if not any(map(has_rules, programs(eqn))):
        return bind(eqn, operands, eqn.params)
    return within(eqn, operands, eqn.params, plainly)


_evaluate = by_table(unruled(plainly), _other)
