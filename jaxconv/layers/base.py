"""What a layer is, and what all of them share: the dtype they compute in, and what is checked when they are built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.geometry import integer, per_axis, resolve_padding

Params = Any
State = Any
Shape = tuple[int, ...]
P = ParamSpec("P")


class Origin:
    """The call that built a layer: what it is called, and how to build it again, of other parts."""

    def __init__(self, build: Callable[..., Layer], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.build, self.args, self.options = build, args, options

    @property
    def parts(self) -> list[Layer]:
        """The layers that it is made of, as they were given."""
        return [a for a in (*self.args, *self.options.values()) if isinstance(a, Layer)]

    def again(self, change: Callable[[Layer], Layer]) -> Layer:
        """The same of changed parts."""

        def changed(a: Any) -> Any:
            return change(a) if isinstance(a, Layer) else a

        return self.build(*map(changed, self.args), **{name: changed(a) for name, a in self.options.items()})


class _Pair(NamedTuple):
    init: Callable[[jax.Array, Shape], tuple[Params, State, Shape]]
    apply: Callable[..., tuple[jax.Array, State]]


class Layer(_Pair):
    """A pair of pure functions; see the module's head for their contract. Printed, it is the call that built it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxconv import layers
      >>> net = layers.serial(layers.Conv(8, 3), layers.Activation(jax.nn.relu), layers.Flatten(), layers.Dense(10))
      >>> params, state, shape = net.init(jax.random.key(0), (1, 8, 8, 1))
      >>> y, state = net.apply(params, state, jnp.ones((4, 8, 8, 1)), rules="rotated", dtype=jnp.bfloat16)
      >>> shape, y.shape, y.dtype
      ((1, 10), (4, 10), dtype(bfloat16))
      >>> net
      serial(Conv(8, 3), Activation(relu), Flatten(), Dense(10))
    """

    origin: Origin | None = None  # no part of the pair: one that is changed was built by no call

    def __repr__(self) -> str:
        if self.origin is None:
            return f"Layer({_word(self.init)}, {_word(self.apply)})"
        known = inspect.signature(self.origin.build).parameters
        said = {name: value for name, value in self.origin.options.items() if not _same(value, known[name].default)}
        words = [*map(_word, self.origin.args), *(f"{name}={_word(value)}" for name, value in said.items())]
        return f"{self.origin.build.__name__}({', '.join(words)})"


def _same(value: Any, default: Any) -> bool:
    """Whether an option says what it would be anyway."""
    return type(value) is type(default) and bool(value == default)


def _word(value: Any) -> str:
    """A value as its user wrote it, about."""
    if isinstance(value, functools.partial):
        return _word(value.func)
    return getattr(value, "__name__", repr(value))


def built(build: Callable[P, Layer]) -> Callable[P, Layer]:
    """A function that builds layers, whose layers know how they were built."""

    @functools.wraps(build)
    def call(*args: P.args, **options: P.kwargs) -> Layer:
        made = Layer(*build(*args, **options))
        made.origin = Origin(call, args, options)
        return made

    return call


def on_host() -> bool:
    """Whether parameters may be made on the host: not where a mesh says how arrays are split."""
    return bool(jax.sharding.get_abstract_mesh().empty)


def constant(shape: int | Shape, value: float) -> jax.Array:
    """Parameters of one value, in float32; made on the host, where no shape is compiled for."""
    if on_host():
        return jax.device_put(np.full(shape, value, np.float32))
    return jnp.full(shape, value, jnp.float32)


def layer(
    init: Callable[[jax.Array, Shape], tuple[Params, State, Shape]],
    compute: Callable[..., tuple[jax.Array, State]],
    held_in: Callable[[Any], Any] = lambda dtype: dtype,
) -> Layer:
    """A layer that computes in the dtype it is told; `held_in` says in which one its parameters then take part.

    The parameters themselves stay as they are, and so do their gradients: a conversion's transpose converts back.
    """

    def apply(
        params: Params,
        state: State,
        x: jax.Array,
        *,
        train: bool = False,
        key: Any = None,
        rules: Any = "fast",
        dtype: Any = None,
    ) -> tuple[jax.Array, State]:
        if dtype is not None:
            x = converted(x, dtype)
            params = jax.tree.map(lambda p: p.astype(held_in(x.dtype)), params)
        return compute(params, state, x, train=train, key=key, rules=rules)

    return Layer(init, apply)


def converted(x: Any, dtype: Any) -> jax.Array:
    """x in the dtype that a network computes in."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"apply: dtype must be floating, such as jnp.bfloat16, but is {dtype!r}.")
    return jnp.asarray(x, dtype)


def check_layer(function: str, name: str, value: Any) -> None:
    """A layer, or what to make of a function."""
    if not isinstance(value, Layer):
        remedy = " A function goes in an Activation." if callable(value) else ""
        raise TypeError(f"{function}: {name} must be a Layer, but is {value!r}.{remedy}")


def check_windows(function: str, padding: Any, **options: tuple[Any, int]) -> None:
    """Options per spatial axis, each with its least value, as far as they can be judged before an input is seen.

    How many axes there are is what the first sequence among them says.
    """
    given = [value for value, _ in options.values()] + [padding]
    rank = next((len(v) for v in given if isinstance(v, Sequence) and not isinstance(v, str)), 1)
    for name, (value, least) in options.items():
        per_axis(function, name, value, rank, least)
    resolve_padding(function, padding, [2**31] * rank, [1] * rank, [1] * rank)


def check_features(function: str, features: Any, groups: Any = 1) -> None:
    """The number of outputs, a multiple of the groups."""
    features = integer(function, "features", features, 1)
    if features % integer(function, "groups", groups, 1):
        raise ValueError(f"{function}: groups must divide features, but {features} % {groups} = {features % groups}.")


def check_large_enough(function: str, spatial: Shape, out: Shape) -> None:
    """A layer must leave something of what it reads."""
    if 0 in out:
        raise ValueError(
            f"{function}: the input is too small: spatial {spatial} becomes {out}. Use larger images or another model."
        )
