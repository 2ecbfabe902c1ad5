"""The maps as JAX primitives: closed under differentiation and under `vmap`.

This is the only file that speaks to `jax.interpreters`. It defines two kinds of primitive.

**The trio.** `conv(x, w)`, `input_grad(g, w)` and `kernel_grad(x, g)` are the three partial gradients of one
trilinear form, so each is bilinear, its JVP is itself applied to tangents, and its transposes are the other
two. Batching maps them onto themselves as well: a batch on the data folds into N, a batch on the kernel into
its channels, a batch on both multiplies the groups. Every order of derivative and every nesting of `vmap` is
then again a program of these three, and XLA never sees a gradient that was not written here.

The rule set that computes them is a static parameter: a rule of the user's is called with one ordinary convolution,
never with a batch of them that would fold into one. A batch on both operands is the exception: groups are what it
would become, and since a rule may know of none, it is mapped over by `vmap` as it stands.

**Linear pairs.** The derivative of a max pool, an average pool, a border or a bias is a linear map; a pair
holds the map and its hand-written transpose, each the other's gradient. Integer residuals (the taps that a
max pool remembers) ride along undifferentiated.

A primitive is called through a cached `jit` when it is called eagerly, so dispatch costs what `lax` costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxconv import forward
from jaxconv.geometry import Geometry
from jaxconv.rules import NAMED, ConvRules

FAST = NAMED["fast"]

# What each primitive computes, as plain JAX: how automatic differentiation would see it.
PLAIN: dict[Primitive, Callable[..., jax.Array]] = {}


# One definition for all: eager call, shape rule, lowering


def _define(
    name: str,
    compute: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    on_cpu: Callable[..., jax.Array] | None = None,
    result: Callable[..., jax.ShapeDtypeStruct] | None = None,
) -> Primitive:
    """A primitive that lowers to `compute`, on a CPU to `on_cpu`; its result is as `result` says, or as computed."""
    primitive = Primitive(f"jaxconv_{name}")
    PLAIN[primitive] = plain

    @functools.lru_cache(maxsize=4096)
    def program(static: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
        def call(*operands: jax.Array) -> jax.Array:
            return primitive.bind(*operands, **dict(static))

        call.__name__ = call.__qualname__ = primitive.name
        return jax.jit(call)

    def eager(*operands: jax.Array, **static: Any) -> jax.Array:
        with jax.disable_jit(False):  # jit is how a primitive runs at all: without it this would recurse
            return program(tuple(static.items()))(*operands)

    @functools.lru_cache(maxsize=4096)
    def computed(operands: tuple[jax.ShapeDtypeStruct, ...], static: tuple[tuple[str, Any], ...]) -> Any:
        return jax.eval_shape(functools.partial(compute, **dict(static)), *operands)

    def abstract(*operands: Any, **static: Any) -> Any:
        key = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands)
        out = result(*key, **static) if result else computed(key, tuple(static.items()))
        first = operands[0]
        sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(out.shape)))
        return first.update(shape=out.shape, dtype=out.dtype, weak_type=False, sharding=sharding)

    primitive.def_impl(eager)
    primitive.def_abstract_eval(abstract)
    everywhere = mlir.lower_fun(compute, multiple_results=False)
    mlir.register_lowering(primitive, everywhere)
    if on_cpu is not None:
        here = mlir.lower_fun(on_cpu, multiple_results=False)

        def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **static: Any) -> Any:
            return (everywhere if _distributed(ctx) else here)(ctx, *operands, **static)

        mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


def _distributed(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the program runs on several devices: a loop over examples would gather what is split between them."""
    split = getattr(ctx.module_context.axis_context, "num_devices", 1) != 1
    return split or any(_varying(aval) for aval in ctx.avals_in)


def _varying(aval: Any) -> frozenset[Any]:
    """The manual mesh axes over which a value differs, under `shard_map`."""
    known = getattr(aval, "vma", None)
    return known if known is not None else aval.manual_axis_type.varying


def alike(*operands: Any) -> list[Any]:
    """Operands marked as varying over the same axes of a `shard_map`; the transpose of the mark is a `psum`."""
    varying = [_varying(jax.typeof(a)) for a in operands]
    union = frozenset().union(*varying)
    return [
        lax.pcast(a, tuple(sorted(union - own)), to="varying") if union - own else a
        for a, own in zip(operands, varying, strict=True)
    ]


def _explicit_mesh(operands: Sequence[Any]) -> Any:
    """The mesh whose axes are part of the operands' types ("explicit sharding"), if there is one."""
    for a in operands:
        mesh = jax.typeof(a).sharding.mesh
        if not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def _bind(primitive: Primitive, specs: Callable[..., tuple[Any, ...]], *operands: Any, **static: Any) -> Any:
    """Bind under any mesh. Under an explicit one the partitioner works inside and `specs` names the outcome."""
    operands = tuple(alike(*operands))
    mesh = _explicit_mesh(operands)
    if mesh is None:
        return primitive.bind(*operands, **static)
    out = NamedSharding(mesh, PartitionSpec(*specs(*(_spec(a) for a in operands), **static)))
    inner = jax.sharding.auto_axes(lambda *a: primitive.bind(*a, **static), out_sharding=out)
    return inner(*operands)


def _spec(a: Any) -> tuple[Any, ...]:
    aval = jax.typeof(a)
    return (*aval.sharding.spec, *[None] * (aval.ndim - len(aval.sharding.spec)))


# The trio


class _Map(NamedTuple):
    """One of the three maps: its primitive, and for each array where its two free axes live."""

    primitive: Primitive
    bind: Callable[..., jax.Array]


def _trio_map(name: str, arrays: str) -> _Map:
    """A primitive for a map of that name; `arrays` names its two operands and its result, each one of x, w and y."""
    definition = getattr(forward, name)

    def alike_in_dtype(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both operands in the dtype of δ, if it is one of them: it may be wider than the kernel it meets."""
        common = b.dtype if arrays[1] == "y" else a.dtype
        return jnp.asarray(a, common), jnp.asarray(b, common)

    def result(a: Any, b: Any, *, geometry: Geometry, dtype: Any, depth: int, **_: Any) -> jax.ShapeDtypeStruct:
        shapes = dict(zip(arrays, (a.shape[depth:], b.shape[depth:]), strict=False))
        return jax.ShapeDtypeStruct((*a.shape[:depth], *_result_shape(shapes, arrays[2], geometry)), dtype)

    def compute(
        a: jax.Array, b: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, engine: str, rules: ConvRules,
        depth: int, platform: str | None = None,
    ) -> jax.Array:  # fmt: skip
        del engine  # who computes; there is one engine so far
        a, b = alike_in_dtype(a, b)
        wider = dtype if arrays[2] == "y" and dtype != a.dtype else None
        options = {"precision": precision, "preferred_element_type": wider}
        if rules == FAST:
            options["platform"] = platform
        given = {option: value for option, value in options.items() if value is not None}  # a rule may know of none

        def call(a: jax.Array, b: jax.Array) -> jax.Array:
            return getattr(rules, name)(a, b, geometry, **given)

        for _ in range(depth):
            call = jax.vmap(call)
        return _checked(name, call(a, b), result(a, b, geometry=geometry, dtype=dtype, depth=depth))

    def plain(
        a: jax.Array, b: jax.Array, *, geometry: Geometry, precision: Any, dtype: Any, depth: int, **_: Any
    ) -> jax.Array:
        options = {"preferred_element_type": dtype} if arrays[2] == "y" else {}

        def call(a: jax.Array, b: jax.Array) -> jax.Array:
            return definition(a, b, geometry, precision=precision, **options)

        for _level in range(depth):
            call = jax.vmap(call)
        return call(*alike_in_dtype(a, b)).astype(dtype)

    primitive = _define(name, compute, plain, functools.partial(compute, platform="cpu"), result)
    through_jit = primitive.impl

    def eager(*operands: Any, **static: Any) -> jax.Array:
        """A rule that somebody wrote runs as it was written: it may print what it sees, or be NumPy."""
        return (through_jit if static["rules"] == FAST else compute)(*operands, **static)

    primitive.def_impl(eager)

    def specs(a: Any, b: Any, *, geometry: Geometry, depth: int, **_: Any) -> tuple[Any, ...]:
        """Batch and channel axes keep their sharding; a contracted axis is summed over its devices."""
        place = geometry.layout._asdict()
        keep: list[Any] = [None] * (geometry.rank + 2)
        for source, spec in zip(arrays[:2], (a[depth:], b[depth:]), strict=True):
            for there, here in _SHARED[source + arrays[2]]:
                sharding = spec[place[source][there]]
                if geometry.groups > 1 and (there, here) == (1, 1):  # c counts one group in w, all of them in x
                    continue
                if sharding not in keep:  # a mesh axis can split one axis only: the first operand's has it
                    keep[place[arrays[2]][here]] = sharding
        return (*(None if sharding in keep else sharding for sharding in a[:depth]), *keep)

    return _Map(primitive, functools.partial(_bind, primitive, specs))


def _result_shape(shapes: dict[str, tuple[int, ...]], result: str, geometry: Geometry) -> tuple[int, ...]:
    """The shape of the one of x, w and y that the other two make."""
    place, groups = geometry.layout, geometry.groups
    match result:
        case "y":
            return geometry.y_shape(shapes["x"][place.x[0]], shapes["w"][place.w[0]])
        case "x":
            return geometry.x_shape(shapes["y"][place.y[0]], shapes["w"][place.w[1]] * groups)
    return geometry.w_shape(shapes["x"][place.x[1]] // groups, shapes["y"][place.y[1]])


def _checked(name: str, value: Any, expected: jax.ShapeDtypeStruct) -> jax.Array:
    """What a rule returned, in the dtype it is wanted in, if it has the shape."""
    shape = getattr(value, "shape", None)
    if shape != expected.shape:
        found = f"is {type(value).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(
            f"rules.{name} must return an array of shape {expected.shape}, but what it returned {found}. "
            "The geometry it is called with knows the shape: geometry.x_shape, .w_shape, .y_shape."
        )
    return jnp.asarray(value, expected.dtype)


# Which (batch, channel) axis of one array is which of another: N, c and o of the trilinear form.
_SHARED = {
    "xy": [(0, 0)], "wy": [(0, 1)],
    "yx": [(0, 0)], "wx": [(1, 1)],
    "xw": [(1, 1)], "yw": [(1, 0)],
}  # fmt: skip

_conv = _trio_map("conv", "xwy")
_input_grad = _trio_map("input_grad", "ywx")
_kernel_grad = _trio_map("kernel_grad", "xyw")


def _transposes(of: _Map, first: Callable[..., jax.Array], second: Callable[..., jax.Array]) -> None:
    """Register the gradients of a bilinear map in its two operands."""

    def in_first(ct: jax.Array, a: Any, b: jax.Array, *, dtype: Any, **static: Any) -> jax.Array:
        return first(ct, b, dtype=a.aval.dtype, **static)

    def in_second(ct: jax.Array, a: jax.Array, b: Any, *, dtype: Any, **static: Any) -> jax.Array:
        return second(ct, a, dtype=b.aval.dtype, **static)

    ad.defbilinear(of.primitive, in_first, in_second)


_transposes(
    _conv,
    lambda ct, w, **static: _input_grad.bind(ct, w, **static),
    lambda ct, x, **static: _kernel_grad.bind(x, ct, **static),
)
_transposes(
    _input_grad,
    lambda ct, w, **static: _conv.bind(ct, w, **static),
    lambda ct, g, **static: _kernel_grad.bind(ct, g, **static),
)
_transposes(
    _kernel_grad,
    lambda ct, g, **static: _input_grad.bind(g, ct, **static),
    lambda ct, x, **static: _conv.bind(x, ct, **static),
)


def _fold(a: jax.Array, batch: int, axis: int, groups: int = 1) -> jax.Array:
    """Merge the batch axis into `axis` (counted without it), inside each of `groups` blocks."""
    a = jnp.moveaxis(a, batch, 0)
    size, shape = a.shape[0], a.shape[1:]
    a = a.reshape(size, *shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    a = jnp.moveaxis(a, 0, axis + 1)
    return a.reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def _unfold(a: jax.Array, size: int, axis: int, groups: int = 1) -> jax.Array:
    """The inverse of `_fold`; the batch axis comes first."""
    shape = a.shape
    a = a.reshape(*shape[:axis], groups, size, shape[axis] // (groups * size), *shape[axis + 1 :])
    a = jnp.moveaxis(a, axis + 1, 0)
    return a.reshape(size, *shape[:axis], shape[axis] // size, *shape[axis + 1 :])


class _Folding(NamedTuple):
    """Where a batch goes: into which axis (batch or channel) of the operand and of the result.

    `inside` says that the axis holds all groups, so the batch has to be folded inside each of them.
    """

    operand: int
    result: int
    inside_operand: bool = False
    inside_result: bool = False


_BATCH, _CHANNEL = 0, 1  # positions in a layout's spec; for a kernel these are (out, in)

# What a batch on the first operand alone, or on the second alone, folds into.
_FOLDINGS = {
    "xwy": (_Folding(_BATCH, _BATCH), _Folding(0, _CHANNEL, True, True)),
    "ywx": (_Folding(_BATCH, _BATCH), _Folding(1, _CHANNEL, False, True)),
    "xyw": (_Folding(_CHANNEL, 1, True, False), _Folding(_CHANNEL, 0, True, True)),
}
# The axis that carries the groups of each array.
_GROUP_AXIS = {"x": _CHANNEL, "y": _CHANNEL, "w": 0}


def _batching(of: _Map, arrays: str) -> None:
    """Register `vmap`: fold a batch into an axis that the map does not sum over, or into the groups.

    A written rule need not know of groups: a batch on both operands stays one, in `depth` leading axes.
    """

    def rule(operands: Sequence[jax.Array], dims: Sequence[int | None], **static: Any) -> tuple[jax.Array, int]:
        geometry: Geometry = static["geometry"]
        depth: int = static["depth"]
        place = {array: [depth + axis for axis in spec] for array, spec in geometry.layout._asdict().items()}
        (a, b), (i, j) = operands, dims
        if 0 in (operand.shape[dim] for operand, dim in zip(operands, dims, strict=True) if dim is not None):
            single = [
                jax.ShapeDtypeStruct(a.shape if d is None else a.shape[:d] + a.shape[d + 1 :], a.dtype)
                for a, d in zip(operands, dims, strict=True)
            ]
            out = jax.eval_shape(functools.partial(of.bind, **static), *single)
            return jnp.zeros((0, *out.shape), out.dtype), 0
        if i is not None and j is not None and static["rules"] != FAST:
            a, b = jnp.moveaxis(a, i, 0), jnp.moveaxis(b, j, 0)
            return of.bind(a, b, **{**static, "depth": depth + 1}), 0
        if i is not None and j is not None:
            size = a.shape[i]
            a = _fold(a, i, place[arrays[0]][_GROUP_AXIS[arrays[0]]])
            b = _fold(b, j, place[arrays[1]][_GROUP_AXIS[arrays[1]]])
            out = of.bind(a, b, **{**static, "geometry": geometry.with_groups(geometry.groups * size)})
            return _unfold(out, size, place[arrays[2]][_GROUP_AXIS[arrays[2]]]), 0
        which = 0 if i is not None else 1
        folding, groups = _FOLDINGS[arrays][which], geometry.groups
        pair, dim = [a, b], i if i is not None else j
        assert dim is not None
        size = pair[which].shape[dim]
        axis = place[arrays[which]][folding.operand]
        pair[which] = _fold(pair[which], dim, axis, groups if folding.inside_operand else 1)
        out = of.bind(*pair, **static)
        axis = place[arrays[2]][folding.result]
        return _unfold(out, size, axis, groups if folding.inside_result else 1), 0

    batching.primitive_batchers[of.primitive] = rule


_batching(_conv, "xwy")
_batching(_input_grad, "ywx")
_batching(_kernel_grad, "xyw")


def conv(
    x: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂g with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _conv.bind(x, w, geometry=geometry, **_static(precision, dtype, engine, rules))


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂x with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _input_grad.bind(g, w, geometry=geometry, **_static(precision, dtype, engine, rules))


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, *, precision: Any, dtype: Any, engine: str, rules: ConvRules = FAST
) -> jax.Array:
    """∂T/∂w with every transformation of JAX, computed by `rules`; the result has dtype `dtype`."""
    return _kernel_grad.bind(x, g, geometry=geometry, **_static(precision, dtype, engine, rules))


def _static(precision: Any, dtype: Any, engine: str, rules: ConvRules) -> dict[str, Any]:
    return {"precision": precision, "dtype": jnp.dtype(dtype), "engine": engine, "rules": rules, "depth": 0}


# Reverse mode only

_mark = Primitive("jaxconv_reverse_only")
_marked_tangent = Primitive("jaxconv_reverse_only_tangent")
PLAIN[_mark] = lambda x, **_: x


def _refuse(*_: Any, rules: str) -> Any:
    raise TypeError(
        f'rules="{rules}" has reverse mode only: it is bound by jax.custom_vjp, which knows no jvp, jacfwd, hessian or '
        'linearize. rules="fast" has them all.'
    )


def _mark_jvp(primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[jax.Array, Any]:
    (x,), (t,) = primals, tangents
    return x, t if type(t) is ad.Zero else _marked_tangent.bind(t, **static)


_mark.def_impl(PLAIN[_mark])
_mark.def_abstract_eval(PLAIN[_mark])
mlir.register_lowering(_mark, mlir.lower_fun(PLAIN[_mark], multiple_results=False))
ad.primitive_jvps[_mark] = _mark_jvp
batching.primitive_batchers[_mark] = lambda operands, dims, **static: (_mark.bind(*operands, **static), dims[0])
# A tangent may be transposed, never computed: not by a call, a compiled program or, before either, under `vmap`.
_marked_tangent.def_impl(_refuse)
_marked_tangent.def_abstract_eval(PLAIN[_mark])
mlir.register_lowering(_marked_tangent, mlir.lower_fun(_refuse, multiple_results=False))
ad.deflinear2(_marked_tangent, lambda ct, _, **__: [ct])
batching.primitive_batchers[_marked_tangent] = _refuse


def reverse_only(x: jax.Array, rules: str) -> jax.Array:
    """x, for a `jax.custom_vjp`: reverse mode passes through, forward mode is told which rules have it."""
    return _mark.bind(x, rules=rules)


# Linear pairs


class LinearPair(NamedTuple):
    """A linear map and its transpose, functions (x, *integers, static=...) -> y, linear in x.

    Args:
      apply, transpose: as primitives, each the derivative of the other, under every transformation.
      plain, plain_transpose: the functions they were made of.
    """

    apply: Callable[..., jax.Array]
    transpose: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    plain_transpose: Callable[..., jax.Array]

    @property
    def transposed(self) -> LinearPair:
        """The same pair, entered by its other door."""
        return LinearPair(self.transpose, self.apply, self.plain_transpose, self.plain)


def linear_pair(name: str, apply: Callable[..., jax.Array], transpose: Callable[..., jax.Array]) -> LinearPair:
    """Two primitives from two functions (x, *residuals, static) -> y, each the transpose of the other.

    Residuals are integers. Under `vmap` the pair keeps its rule: `depth` leading axes are mapped over.
    """

    def mapped(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def compute(*operands: jax.Array, static: Any, depth: int) -> jax.Array:
            call = functools.partial(function, static=static)
            for _ in range(depth):
                call = jax.vmap(call)
            return call(*operands)

        return compute

    there = _define(name, mapped(apply), mapped(apply))
    back = _define(f"{name}_transpose", mapped(transpose), mapped(transpose))
    binders = {p: functools.partial(_bind_pair, p) for p in (there, back)}
    for primitive, other in ((there, back), (back, there)):
        _register_linear(primitive, binders[primitive], binders[other])
    forth, fro = (lambda x, *r, static, p=p: binders[p](x, *r, static=static, depth=0) for p in (there, back))
    return LinearPair(forth, fro, apply, transpose)


def _bind_pair(primitive: Primitive, *operands: Any, **static: Any) -> jax.Array:
    def specs(x: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        """Axes that keep their size keep their sharding."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
        out = jax.eval_shape(functools.partial(primitive.bind, **static), *shapes).shape
        kept = [s if n == m else None for s, n, m in zip(x, operands[0].shape, out, strict=False)]
        return (*kept, *[None] * (len(out) - len(kept))) if len(out) == len(x) else (None,) * len(out)

    return _bind(primitive, specs, *operands, **static)


def _register_linear(primitive: Primitive, bind: Callable[..., jax.Array], back: Callable[..., jax.Array]) -> None:
    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **static: Any) -> tuple[jax.Array, Any]:
        (_, *residuals), (t, *_) = primals, tangents
        # Integers have no tangents, so that of x is the one that brought us here.
        return bind(*primals, **static), bind(t, *residuals, **static)

    def transpose(ct: Any, x: Any, *residuals: Any, **static: Any) -> list[Any]:
        dx = ad.Zero(x.aval) if type(ct) is ad.Zero else back(ct, *residuals, **static)
        return [dx, *[None] * len(residuals)]

    def batch(operands: Sequence[Any], dims: Sequence[Any], *, depth: int, **static: Any) -> tuple[jax.Array, int]:
        size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
        # Every operand gets the batch: broadcasting is outside, so its transpose sums where it should.
        operands = [batching.bdim_at_front(a, d, size) for a, d in zip(operands, dims, strict=True)]
        return bind(*operands, depth=depth + 1, **static), 0

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
