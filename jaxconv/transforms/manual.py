"""The rules of this library for a function that was written without them: the inverse of `automatic`.

f is traced, and each of its equations for which a rule stands (`replacements`), a norm counting as one (`norms`), is
evaluated by the op of this library, here and in the programs that equations hold. All others are evaluated as they are.
"""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import primitives as known
from jax.extend.source_info_util import reset_name_stack

from jaxconv import primitives
from jaxconv.ops.arguments import Rules, check_engine, check_kernel_rules
from jaxconv.transforms import stateful
from jaxconv.transforms.norms import grouped
from jaxconv.transforms.program import bind, contains, interpret, parted, programs, retrace, within
from jaxconv.transforms.replacements import TAKEN, Replacement, decisions, holds, in_lax, met, replaces
from jaxconv.transforms.report import Report, report


def manual(f: Callable[..., Any], *, rules: Rules = "fast", engine: str = "auto") -> Manual:
    """`f` with hand-written rules: `jax.grad(manual(f))` is f's gradient by the rules and engines of this library.

    f is traced, and convolutions, pools, norms and dense layers on more axes than two are evaluated by this library in
    `lax`'s place, in library code that f calls too, and inside `jit`, `scan`, `while_loop`, `cond`, `checkpoint`,
    `vmap`, `pmap` and `shard_map`. The values of f do not change, but for rounding. A function with a derivative of its
    own (`custom_vjp`, `custom_jvp`) keeps it, and whatever no rule stands for is left exactly as it is;
    `manual(f).report` says what became of what. Under `jit` nothing of this is left once f has been compiled.

    Take the gradient of what `manual` returns: of a gradient that JAX has taken already, only JAX's own is left.

    Args:
      f: any function that JAX can trace. Positional and keyword arguments and the result are pytrees; whatever in
        them is no array of JAX (a mode, a number, a NumPy array, a module's activation) is f's as it is. What f changes
        in modules of Flax NNX that it is given (batch statistics, random counts) is changed in these.
      rules: as in `conv`: "fast", "textbook", "rotated", a `ConvRules`, or "autodiff", which changes nothing.
      engine: who computes the convolutions: "auto", "xla" or "onednn", as in `conv`.

    Returns:
      A function of the same arguments with the same results, in every mode and order of differentiation that the
      rules have. It also works as a decorator, of methods too.

    Raises:
      TypeError: f is not a function; when called, f asks for the values of arrays, so that JAX cannot trace it, or
        changes variables of a module of Flax Linen that is being called.
      ValueError: `rules` or `engine` is unknown.

    Warns:
      UserWarning: f is manual already; when called, nothing in f is replaced, and why.

    Example:
      >>> import jax, jax.numpy as jnp, jaxconv
      >>> def loss(w, x):  # in a library that knows nothing of this one
      ...     return jnp.square(jax.lax.conv(x, w, (1, 1), "SAME")).sum()
      >>> w, x = jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(1, 1, 2, 2)
      >>> jax.grad(jaxconv.manual(loss))(w, x).ravel()
      Array([28.], dtype=float32)

    Source: `automatic`, the other way round: a gradient is that of the equations that are evaluated.
    """
    function = "manual"
    if not callable(f):
        raise TypeError(f"{function}: f must be a function, but is {type(f).__name__}.")
    rules = check_kernel_rules(function, rules)
    check_engine(function, engine)
    if isinstance(f, Manual):
        warnings.warn(
            f"{function}: f is manual already, and stays as it is. For other rules, give the function that it was made "
            "of: manual(f.__wrapped__, rules=…).",
            stacklevel=2,
        )
        return f
    return Manual(f, rules, engine)


class Manual:
    """A function and the rules that its gradient is to be taken by, as `manual` returns it."""

    def __init__(self, f: Callable[..., Any], rules: Rules, engine: str) -> None:
        functools.update_wrapper(self, f, updated=())  # f's attributes are f's
        self.__wrapped__ = f
        self._rules, self._engine = rules, engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        read: list[Jaxpr] = []

        def call(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closed, arrays, result = traced(f, args, kwargs)
            read.append(closed.jaxpr)
            return result(_read(self._rules, self._engine, closed, arrays))

        result = stateful.called(call, self.__wrapped__, args, kwargs)
        if text := _warning(read[0], self):
            warnings.warn(text, stacklevel=2)
        return result

    def report(self, *args: Any, **kwargs: Any) -> Report:
        """What is replaced in f by what, and what is left, with lines of source and reasons; nothing is computed.

        Args:
          args, kwargs: as f takes them.

        Returns:
          A `Report`: a table of 80 columns when printed, `.to_dict()` for JSON. Of each equation that is replaced it
          has the types of operands and results, the line it stands on, the op of this library, and what computes its
          value and its gradients on the default platform, with the reason, as `plan` gives it. A program that XLA
          splits over several devices keeps to "lax", whatever is said here. Of what is left it has why: products of two
          matrices, dtypes without a gradient, functions with a derivative of their own that hold a convolution, parts
          of a gradient that JAX has taken already, programs that `manual` does not enter. Equal rows are one, with
          their number; the body of a loop is counted once.

        Raises:
          TypeError: f asks for the values of arrays, so that JAX cannot trace it.
          ValueError: `engine` names one that cannot compute a convolution of f.

        Example:
          >>> import jax, jax.numpy as jnp, jaxconv
          >>> def loss(w, x):
          ...     return jnp.square(jax.lax.conv(x, w, (1, 1), "SAME")).sum()
          >>> report = jaxconv.manual(loss, engine="xla").report(jnp.ones((4, 3, 5, 5)), jnp.ones((8, 3, 9, 9)))
          >>> report.replaced[0].op, dict(report.replaced[0].plan)["input_grad"].formulation
          ('conv_general_dilated', 'lax')
          >>> report.counts["left"]
          {}

        Source: the decisions that the evaluation of `manual(f)` makes.
        """
        read: list[Jaxpr] = []

        def call(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append(traced(f, args, kwargs)[0].jaxpr)

        stateful.called(call, self.__wrapped__, args, kwargs, assign=False)
        return report(_name(self), read[0], self._rules, self._engine, _warning(read[0], self))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"manual({self.__wrapped__!r}, rules={self._rules!r}, engine={self._engine!r})"


_VALUES_ASKED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def traced(
    f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ClosedJaxpr, list[jax.Array], Callable[[Sequence[Any]], Any]]:
    """f's equations, the arrays among its arguments, and what makes its result of theirs.

    Whatever is no array of JAX is f's as it was given, and what f returns beside arrays is returned.
    """
    arrays, place = parted((args, kwargs))
    result: Callable[[Sequence[Any]], Any] = place

    def flat(*arrays: Any) -> list[Any]:
        nonlocal result
        args, kwargs = place(arrays)
        made, result = parted(f(*args, **kwargs))
        return made

    try:
        with reset_name_stack():
            closed = jax.make_jaxpr(flat)(*arrays)
    except _VALUES_ASKED as error:
        error.add_note(
            "jaxconv.manual traces f, as jax.jit does, to read its equations: f must not ask for the values of arrays. "
            "Apply manual to the part of f that JAX can trace."
        )
        raise
    except stateful.errors() as error:
        error.add_note(stateful.REMEDY.format("f changed an object that is no argument."))
        raise
    return closed, arrays, lambda results: result(results)


def _read(rules: Rules, engine: str, closed: ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """The results of a program, the rules of this library in place of lax's."""
    here = {id(eqn): decision for eqn, decision in decisions(closed.jaxpr)}
    read = functools.partial(_read, rules, engine)

    def evaluate(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        decision = here.get(id(eqn))
        if isinstance(decision, Replacement):
            return decision.compute(rules, engine, *operands)
        if not (holds(eqn) and any(map(replaces, programs(eqn)))):
            return bind(eqn, operands, eqn.params)
        params = eqn.params
        if params.get("policy") is not None:
            params = params | {"policy": functools.partial(_as_lax_is_asked, params["policy"])}
        return within(eqn, operands, params, read, retraced=functools.partial(_retraced, rules, engine))

    return interpret(grouped(closed.jaxpr), closed.consts, operands, evaluate)


# What has been made of programs that JAX keeps, such as those of a `jit`, so that it also keeps what it compiles.
_MADE: weakref.WeakKeyDictionary[ClosedJaxpr, dict[Any, ClosedJaxpr]] = weakref.WeakKeyDictionary()


def _retraced(rules: Rules, engine: str, program: ClosedJaxpr) -> ClosedJaxpr:
    made = _MADE.setdefault(program, {})
    if (rules, engine) not in made:
        made[rules, engine] = retrace(functools.partial(_read, rules, engine), program)
    return made[rules, engine]


def _as_lax_is_asked(policy: Callable[..., Any], primitive: Any, *avals: Any, **params: Any) -> Any:
    """What a policy of `jax.checkpoint`, which knows lax, says of a primitive that may be ours."""
    primitive, params = in_lax(primitive, avals, params)
    return policy(primitive, *avals, **params)


def _name(f: Manual) -> str:
    return getattr(f, "__name__", type(f.__wrapped__).__name__)


def _warning(jaxpr: Jaxpr, f: Manual) -> str:
    """Why the gradient of f's program is what it was; empty where it is not."""
    if replaces(jaxpr, before_gradients=True):
        return ""
    what, why = (
        "nothing in {} is replaced",
        "it has no convolution, pool or norm that a rule of this library stands for",
    )
    left: dict[str, JaxprEqn] = {}
    for eqn, said, _ in met(jaxpr):
        if isinstance(said, str) and eqn.primitive != known.dot_general_p:
            left.setdefault(said, eqn)
    if TAKEN in left:
        what = "of {} only the forward pass is replaced" if replaces(jaxpr) else what
        why = (
            "its convolutions, pools or norms belong to a gradient that JAX has taken already. Take it of what manual "
            "returns: jax.grad(manual(loss)), not manual(jax.grad(loss))"
        )
    elif replaces(jaxpr):  # in a derivative of forward mode
        return ""
    elif contains(jaxpr, lambda eqn: eqn.primitive in primitives.PLAIN):
        why = "its rules are this library's already"
    elif left:
        reason, eqn = next(iter(left.items()))
        why = f"{eqn.primitive} stays, since {reason}"
    return f"manual: {what.format(_name(f))}: {why}."
