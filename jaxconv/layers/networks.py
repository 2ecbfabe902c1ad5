"""Layers put together."""

from __future__ import annotations

from typing import Any

import jax

from jaxconv.layers.base import Layer, Params, Shape, State, built, check_layer, converted


@built
def serial(*layers: Layer) -> Layer:
    """One layer after the other; params and state are lists."""
    for i, layer in enumerate(layers):
        check_layer("serial", f"layers[{i}]", layer)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        params, state = [], []
        for i, layer in enumerate(layers):
            p, s, shape = layer.init(jax.random.fold_in(key, i), shape)
            params.append(p)
            state.append(s)
        return params, state, shape

    def apply(
        params: Params, state: State, x: jax.Array, *, key: Any = None, **options: Any
    ) -> tuple[jax.Array, State]:
        new = []
        for i, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
            own = None if key is None else jax.random.fold_in(key, i)
            x, s = layer.apply(p, s, x, key=own, **options)
            new.append(s)
        return x, new

    return Layer(init, apply)


@built
def residual(body: Layer, shortcut: Layer | None = None) -> Layer:
    """body(x) + shortcut(x); without a shortcut, + x. δ goes down both ways and adds up."""
    branches = {"body": body, **({} if shortcut is None else {"shortcut": shortcut})}
    for name, branch in branches.items():
        check_layer("residual", name, branch)

    def init(key: jax.Array, shape: Shape) -> tuple[Params, State, Shape]:
        made = {name: b.init(jax.random.fold_in(key, i), shape) for i, (name, b) in enumerate(branches.items())}
        out = made["body"][2]
        other = made["shortcut"][2] if "shortcut" in made else shape
        if out != other:
            raise ValueError(f"residual: the two branches must agree in shape, but {out} != {other}. Add a shortcut.")
        return {n: m[0] for n, m in made.items()}, {n: m[1] for n, m in made.items()}, out

    def apply(
        params: Params, state: State, x: jax.Array, *, key: Any = None, dtype: Any = None, **options: Any
    ) -> tuple[jax.Array, State]:
        if dtype is not None:
            x, options = converted(x, dtype), {**options, "dtype": dtype}
        total: Any = None if shortcut is not None else x
        new = {}
        for i, (name, branch) in enumerate(branches.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            y, new[name] = branch.apply(params[name], state[name], x, key=own, **options)
            total = y if total is None else total + y
        return total, new

    return Layer(init, apply)
