"""A function as a program: its arrays, its equations, and the one walk through them.

A traced function is a list of equations, some of which hold programs themselves: loops, branches, `jit`, `checkpoint`,
`shard_map`, rules. A transform is a table of what it does with which primitive. `interpret` evaluates a program by it
(`by_table`), equation after equation; `within` evaluates an equation that holds programs with these read likewise.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core import primitives as known
from jax.extend.source_info_util import current_name_stack, user_context

# What a transform does with an equation, given its operands: (eqn, operands) -> results.
Step = Callable[[JaxprEqn, list[Any]], list[Any]]
# What becomes of a program that an equation holds: (program, operands) -> results.
Read = Callable[[ClosedJaxpr, Sequence[Any]], list[Any]]

# Equations that call a program once, and where they keep it.
CALLS = {known.jit_p: "jaxpr", known.closed_call_p: "call_jaxpr", known.remat_p: "jaxpr"}


class Leaves(NamedTuple):
    """The arrays of a tree, and the tree they are taken from.

    Attributes:
      arrays: flat.
      keys: the path of each in the tree.
      paths: what each is called, such as `params['w']`.
      held: what is no array and stays where it is, by its path.
      place: from as many arrays to the tree with these in place of its own.
    """

    arrays: list[jax.Array]
    keys: list[tuple[Any, ...]]
    paths: list[str]
    held: dict[str, Any]
    place: Callable[[Sequence[Any]], Any]


def leaves_of(function: str, tree: Any, named: Callable[[tuple[Any, ...]], str]) -> Leaves:
    """The arrays of a tree, each named after its path; the rest is held.

    Held are functions, strings, integers and booleans of Python, and whatever else JAX makes no array of. A float of
    Python is an array, unless it is an attribute: those of a module (a rate, an epsilon) are settings.

    Raises:
      TypeError: when arrays lie where JAX cannot reach them, in an object that is no pytree.
    """
    entries, structure = jax.tree.flatten_with_path(tree)
    paths, leaves = [named(path) for path, _ in entries], [leaf for _, leaf in entries]
    there = [i for i, (path, leaf) in enumerate(entries) if _is_array(path, leaf, float | complex)]
    held = {path: leaf for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)) if i not in set(there)}
    for path, leaf in held.items():
        if _hides_arrays(leaf):
            raise TypeError(f"{function}: {path} {_remedy(function, leaf)}")

    def place(arrays: Sequence[Any]) -> Any:
        placed = list(leaves)
        for i, array in zip(there, arrays, strict=True):
            placed[i] = array
        return jax.tree.unflatten(structure, placed)

    arrays, keys = [jnp.asarray(leaves[i]) for i in there], [entries[i][0] for i in there]
    return Leaves(arrays, keys, [paths[i] for i in there], held, place)


def _is_array(path: Sequence[Any], leaf: Any, numbers: Any) -> bool:
    """Whether JAX should see a leaf as an array; `numbers` are the types of Python that it sees so."""
    if isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__"):
        return True
    if isinstance(leaf, np.ndarray | np.generic):
        return bool(jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_)
    setting = bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return isinstance(leaf, numbers) and not setting


def _hides_arrays(leaf: Any, depth: int = 4) -> bool:
    """Whether an object that is no pytree has floating arrays as attributes, or objects that have."""
    leaf = getattr(leaf, "__self__", leaf)
    if depth == 0 or isinstance(leaf, type | types.ModuleType | types.FunctionType) or not hasattr(leaf, "__dict__"):
        return False
    try:
        attributes = jax.tree.leaves(list(vars(leaf).values()))
    except (TypeError, ValueError):  # a dict whose keys have no order
        return False
    return any(
        jnp.issubdtype(a.dtype, jnp.inexact) if isinstance(a, jax.Array | np.ndarray) else _hides_arrays(a, depth - 1)
        for a in attributes
    )


def _remedy(function: str, leaf: Any) -> str:
    """What an object is that hides arrays, and the three lines that hand them over."""
    kind = type(getattr(leaf, "__self__", leaf))
    split, state, again = "arrays = {'w': model.w, ...}", "arrays", f"{kind.__name__}(**arrays)"
    for library, lines in (
        ("flax.nnx", ("graphdef, state = nnx.split(model)", "state", "nnx.merge(graphdef, state)")),
        ("flax.linen", ("module, variables = model.unbind()", "variables", "module.bind(variables)")),
    ):
        if any(c.__module__.startswith(library) for c in kind.__mro__):
            split, state, again = lines
    return (
        f"is a {kind.__name__}, no pytree, so that JAX cannot reach the arrays in it. Hand them over:\n"
        f"    {split}\n    def g({state}, *args): return f({again}, *args)\n    jaxconv.{function}(g, {state}, ...)\n"
        f"If they are constants, bind them: lambda *args: f(model, *args)."
    )


class Program(NamedTuple):
    """A function traced at example arguments.

    Attributes:
      closed: its equations.
      leaves: the arrays among the example arguments, flat.
      paths: what each is called, such as `params['w']`.
      held: what among the arguments is no array, by its path.
      call: from flat arrays to the arrays among f's results, by calling f.
      result: from flat results to those of the function.
    """

    closed: ClosedJaxpr
    leaves: list[jax.Array]
    paths: list[str]
    held: dict[str, Any]
    call: Callable[[Sequence[Any]], list[Any]]
    result: Callable[[Sequence[jax.Array]], Any]


def trace(function: str, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
    """Trace f; `function` is who asks, for the error message. What is no array is held, in arguments and results."""
    names = _parameter_names(f, len(args))
    given = leaves_of(function, (args, kwargs), lambda path: _named(path, names))
    result: Callable[[Sequence[Any]], Any] = given.place

    def call(leaves: Sequence[Any]) -> list[Any]:
        nonlocal result
        args, kwargs = given.place(leaves)
        entries, structure = jax.tree.flatten_with_path(f(*args, **kwargs))
        arrays = [_is_array(path, leaf, bool | int | float | complex) for path, leaf in entries]
        others = [None if array else leaf for array, (_, leaf) in zip(arrays, entries, strict=True)]
        result = functools.partial(_placed, structure, others)
        return [leaf for array, (_, leaf) in zip(arrays, entries, strict=True) if array]

    try:
        closed = jax.make_jaxpr(lambda *leaves: call(leaves))(*given.arrays)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        numbers = [path for path, x in zip(given.paths, given.arrays, strict=True) if not x.shape and _counts(x.dtype)]
        if not numbers:
            raise
        raise TypeError(
            f"{function}: f needs the value of {' or '.join(numbers)} while it is traced, where arrays have none. "
            f"Give it as a number of Python, which is held: {numbers[0]}.item()."
        ) from error
    except TypeError as error:
        if not given.held or "Error interpreting argument" not in str(error):
            raise
        listed = [f"{path} ({type(leaf).__name__})" for path, leaf in given.held.items()]
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise TypeError(
            f"{function}: f takes nothing but arrays, as jax.jit makes it, and not {', '.join(listed[:3])}{more}. Give "
            f"what it was made of, for {function} compiles it itself; or, of an Equinox module, eqx.filter_jit of that."
        ) from error
    return Program(closed, given.arrays, given.paths, given.held, call, result)


def _counts(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_)


def _placed(structure: Any, around: Sequence[Any], arrays: Sequence[Any]) -> Any:
    """A tree of arrays where `around` has None, and of what else it has."""
    rest = iter(arrays)
    return jax.tree.unflatten(structure, [next(rest) if other is None else other for other in around])


def parted(tree: Any) -> tuple[list[jax.Array], Callable[[Sequence[Any]], Any]]:
    """The arrays of JAX in a tree, and what puts as many in their places; the rest of it stays."""
    leaves, structure = jax.tree.flatten(tree)
    there = [isinstance(leaf, jax.Array) for leaf in leaves]
    around = [None if array else leaf for array, leaf in zip(there, leaves, strict=True)]
    arrays = [leaf for array, leaf in zip(there, leaves, strict=True) if array]
    return arrays, functools.partial(_placed, structure, around)


def _parameter_names(f: Callable[..., Any], count: int) -> list[str]:
    """What f calls each of `count` positional arguments, as far as it has names for them."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    skipped = 0 if rest == "args" and len(names) == 0 else len(names)
    return [*names, *(f"{rest}[{i - skipped}]" for i in range(len(names), count))]


def _named(path: Sequence[Any], names: Sequence[str]) -> str:
    side, first, *rest = path
    name = names[first.idx] if side.idx == 0 else first.key
    return f"{name}{jax.tree_util.keystr(tuple(rest))}"


# The walk


def entry(table: Mapping[Any, Any], eqn: JaxprEqn) -> Any:
    """What a table has for an equation's primitive, or None; a primitive that JAX keeps to itself goes by its name."""
    return table.get(eqn.primitive, table.get(eqn.primitive.name))


def by_table(table: Mapping[Any, Step], otherwise: Step) -> Step:
    """What `table` says of an equation's primitive; `otherwise` is for those that are not in it."""

    def evaluate(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        return (entry(table, eqn) or otherwise)(eqn, operands)

    return evaluate


def interpret(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    operands: Sequence[Any],
    evaluate: Step,
    literal: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """The results of a program whose every equation is evaluated by `evaluate(eqn, operands)`.

    What it evaluates to keeps the equation's names, line of source and context.
    """
    values: dict[Any, Any] = {}

    def read(var: Any) -> Any:
        return literal(var.val) if isinstance(var, Literal) else values[var]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        written, stack = eqn.source_info, current_name_stack() + eqn.source_info.name_stack
        with user_context(written.traceback, name_stack=stack), eqn.ctx.manager:
            values.update(zip(eqn.outvars, evaluate(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def bind(eqn: JaxprEqn, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """The results of an equation's own primitive, as a list."""
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(results) if eqn.primitive.multiple_results else [results]


# What is known of an equation


def is_transposed(eqn: JaxprEqn) -> bool:
    """Whether reverse mode made an equation."""
    return "transpose" in _transformed(eqn)


def is_differentiated(eqn: JaxprEqn) -> bool:
    """Whether an equation is part of a derivative that JAX has taken already: of its forward pass, or of the rest."""
    return not {"jvp", "transpose"}.isdisjoint(_transformed(eqn))


def _transformed(eqn: JaxprEqn) -> set[str]:
    """The transformations that an equation went through. A user's scopes are names in the same list."""
    return {part.name for part in eqn.source_info.name_stack.stack if type(part).__name__ == "Transform"}


def is_on_explicit_axes(v: Any) -> bool:
    """Whether the type of an operand says how its axes are split."""
    mesh = v.aval.sharding.mesh
    return not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types


# The programs within


def programs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Those that an equation holds."""
    return [program for value in eqn.params.values() for program in _programs(value)]


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation here and in the programs within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in programs(eqn):
            yield from equations(inner)


def contains(jaxpr: Jaxpr, wanted: Callable[[JaxprEqn], bool]) -> bool:
    """Whether an equation here, or in a program within, is wanted."""
    return any(map(wanted, equations(jaxpr)))


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an equation calls once, if that is all it does."""
    where = CALLS.get(eqn.primitive)
    return None if where is None else _closed(eqn.params[where])


def within(
    eqn: JaxprEqn,
    operands: Sequence[Any],
    params: dict[str, Any],
    read: Read,
    like: Callable[[Any], Any] = lambda aval: aval,
    retraced: Callable[[ClosedJaxpr], ClosedJaxpr] | None = None,
) -> list[Any]:
    """An equation's results, at these parameters, each program it holds read by `read` at operands `like` its own.

    `retraced` makes of a program what `read` makes of it, for who keeps what has been made.
    """
    step = entry(_REBUILT, eqn)
    if step is not None:
        return step(operands, params, read)

    def rewritten(given: Any) -> Any:
        program = _closed(given)
        changed = retraced(program) if retraced else retrace(read, program, like)
        return changed if isinstance(given, ClosedJaxpr) else changed.jaxpr

    return bind(eqn, operands, {name: _mapped(rewritten, value) for name, value in params.items()})


def retrace(read: Read, program: ClosedJaxpr, like: Callable[[Any], Any] = lambda aval: aval) -> ClosedJaxpr:
    """What `read` makes of a program, as a program on operands `like` its own."""
    avals: list[Any] = program.in_avals
    return jax.make_jaxpr(lambda *operands: read(program, operands))(*map(like, avals))


def _checkpointed(operands: Sequence[Any], params: dict[str, Any], read: Read) -> list[Any]:
    body = functools.partial(read, _closed(params["jaxpr"]))
    return jax.checkpoint(lambda *a: body(a), prevent_cse=params["prevent_cse"], policy=params["policy"])(*operands)


def _sharded(operands: Sequence[Any], params: dict[str, Any], read: Read) -> list[Any]:
    body = functools.partial(read, _closed(params["jaxpr"]))
    sharded = jax.shard_map(
        lambda *a: tuple(body(a)),
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=params["out_specs"],
        axis_names=params["newly_manual_axes"],
        check_vma=params["check_vma"],
    )
    return list(sharded(*operands))


# Equations that are made anew around what they hold; others take a program in another's place.
_REBUILT = {known.remat_p: _checkpointed, "shard_map": _sharded}


def _programs(value: Any) -> list[Jaxpr]:
    leaves = jax.tree.leaves(value, is_leaf=_is_program)
    return [_closed(leaf).jaxpr for leaf in leaves if _is_program(leaf)]


def _mapped(f: Callable[[Any], Any], value: Any) -> Any:
    """A parameter with f of each program in it."""
    if not _programs(value):
        return value
    return jax.tree.map(lambda a: f(a) if _is_program(a) else a, value, is_leaf=lambda a: a is None or _is_program(a))


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _closed(program: Any) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
