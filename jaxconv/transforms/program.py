"""What JAX alone would have computed: a function with every hand-written rule taken out.

A traced function is a list of equations. One that carries a rule (`custom_vjp`, `custom_jvp`, `linear_call`, a
primitive of this library) also carries the plain computation that the rule is about, and evaluating that instead
leaves JAX nothing but its own derivatives. Equations that hold programs (loops, branches, `jit`, `checkpoint`,
`shard_map`) are evaluated with their programs treated likewise.

The same evaluation can carry every float in another precision, which is how a function that was written, traced and
is used in bfloat16 has an exact value and an exact gradient to be judged by.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core import primitives as known

from jaxconv import primitives

# Equations that carry a rule, and where they keep the computation it is about.
RULED = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "linear_call": "callee"}
# Equations that call a program once, and where they keep it.
_CALLS = {known.jit_p: "jaxpr", known.closed_call_p: "call_jaxpr", known.remat_p: "jaxpr"}
# Equations that mean something only at the precision they were traced in: they look at bits, or at foreign code.
_OPAQUE = {
    *("bitcast_convert_type", "nextafter", "random_gamma", "ffi_call", "pallas_call", "pure_callback", "io_callback"),
    *("custom_partitioning", "tpu_custom_call", "triton_kernel_call"),
}


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
        return program.result(program.run(program.leaves))

    return plain


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

    def run(self, leaves: Sequence[Any], floats: Any = None) -> list[Any]:
        """The results at `leaves`, without hand-written rules; with `floats`, every float in that dtype."""
        return _run(self.closed.jaxpr, self.closed.consts, leaves, floats)


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


# Evaluation


def has_rules(jaxpr: Jaxpr) -> bool:
    """Whether an equation here, or in a program within, carries a hand-written rule."""
    return contains(jaxpr, lambda eqn: eqn.primitive.name in RULED or eqn.primitive in primitives.PLAIN)


def contains(jaxpr: Jaxpr, wanted: Callable[[JaxprEqn], bool]) -> bool:
    """Whether an equation here, or in a program within, is wanted."""
    return any(map(wanted, equations(jaxpr)))


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation here and in the programs within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in _programs(value):
                yield from equations(inner)


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an equation calls once, if that is all it does."""
    if eqn.primitive not in _CALLS:
        return None
    program = eqn.params[_CALLS[eqn.primitive]]
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def is_opaque(eqn: JaxprEqn) -> bool:
    """Whether an equation computes from floats, but not at any other precision than its own."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    return eqn.primitive.name in _OPAQUE and any(jnp.issubdtype(a.dtype, jnp.floating) for a in avals)


def _programs(value: Any) -> list[Jaxpr]:
    leaves = jax.tree.leaves(value, is_leaf=_is_program)
    return [leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf for leaf in leaves if _is_program(leaf)]


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def interpret(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    operands: Sequence[Any],
    evaluate: Callable[[JaxprEqn, list[Any]], list[Any]],
    literal: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """The results of a program whose every equation is evaluated by `evaluate(eqn, operands)`."""
    values: dict[Any, Any] = {}

    def read(var: Any) -> Any:
        return literal(var.val) if isinstance(var, Literal) else values[var]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        with eqn.ctx.manager:
            values.update(zip(eqn.outvars, evaluate(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _run(jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Any], floats: Any) -> list[Any]:
    as_floats = functools.partial(carried, floats=floats)
    return interpret(jaxpr, [*map(as_floats, consts)], operands, functools.partial(evaluate, floats=floats), as_floats)


def evaluate(eqn: JaxprEqn, operands: list[Any], floats: Any) -> list[Any]:
    """One equation's results, its rule removed and its floats carried in `floats`, if given."""
    name, params = eqn.primitive.name, eqn.params
    if name in RULED:
        inner = params[RULED[name]]
        return _run(inner.jaxpr, inner.consts, operands, floats)
    if eqn.primitive in primitives.PLAIN:
        return [primitives.PLAIN[eqn.primitive](*operands, **_carried_params(params, floats))]
    programs = [inner for value in params.values() for inner in _programs(value)]
    if floats is None and not any(map(has_rules, programs)):
        return bind(eqn, operands, params)
    if eqn.primitive is known.remat_p:
        body = functools.partial(_run, params["jaxpr"], (), floats=floats)
        return jax.checkpoint(lambda *a: body(a), prevent_cse=params["prevent_cse"], policy=params["policy"])(*operands)
    if name == "shard_map":
        body = functools.partial(_run, params["jaxpr"], (), floats=floats)
        sharded = jax.shard_map(
            lambda *a: tuple(body(a)),
            mesh=params["mesh"],
            in_specs=params["in_specs"],
            out_specs=params["out_specs"],
            axis_names=params["newly_manual_axes"],
            check_vma=params["check_vma"],
        )
        return list(sharded(*operands))
    if floats is None:
        return bind(eqn, operands, _carried_params(params, None))
    if name == "reduce_precision":
        return operands
    if name in _OPAQUE:
        return _at_own_precision(eqn, operands, floats)
    return [carried(y, floats) for y in bind(eqn, operands, _carried_params(params, floats))]


def bind(eqn: JaxprEqn, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """The results of an equation's own primitive, as a list."""
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(results) if eqn.primitive.multiple_results else [results]


def _at_own_precision(eqn: JaxprEqn, operands: Sequence[Any], floats: Any) -> list[Any]:
    avals: list[Any] = [v.aval for v in eqn.invars]
    own = [x if jax.typeof(x).dtype == a.dtype else x.astype(a.dtype) for x, a in zip(operands, avals, strict=True)]
    return [carried(y, floats) for y in bind(eqn, own, eqn.params)]


# Precision


def _carried_dtype(dtype: Any, floats: Any) -> Any:
    """The dtype in which a dtype is carried: floats as `floats`, complex numbers as two of them, others as they are."""
    if floats is None or not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex64 if np.dtype(floats).itemsize == 4 else np.complex128)
    return np.dtype(floats)


def carried(x: Any, floats: Any) -> Any:
    """A value at the precision that floats are carried in."""
    own = jax.typeof(x).dtype
    dtype = _carried_dtype(own, floats)
    if dtype == own:
        return x
    with np.errstate(over="ignore"):  # the least float64 is −∞ in float32
        return jnp.asarray(x, dtype)


def _carried_params(params: dict[str, Any], floats: Any) -> dict[str, Any]:
    """An equation's parameters: its programs rewritten, and the dtypes it names changed."""

    def carried(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return _rewritten(value, floats)
        if isinstance(value, Jaxpr):
            return _rewritten(ClosedJaxpr(value, ()), floats).jaxpr
        return _carried_dtype(value, floats) if isinstance(value, np.dtype) else value

    def is_leaf(value: Any) -> bool:
        return value is None or _is_program(value)

    changed = {
        name: jax.tree.map(carried, value, is_leaf=is_leaf) if _programs(value) else carried(value)
        for name, value in params.items()
    }
    if floats is not None and "precision" in changed:
        changed["precision"] = None  # a recipe for narrower floats
    return changed


def _rewritten(closed: ClosedJaxpr, floats: Any) -> ClosedJaxpr:
    given: list[Any] = closed.in_avals
    avals = [a if floats is None else a.update(dtype=_carried_dtype(a.dtype, floats)) for a in given]
    return jax.make_jaxpr(lambda *operands: _run(closed.jaxpr, closed.consts, operands, floats))(*avals)
