"""Equinox: twins of `jaxconv.models` with the same parameters, channels first, of one example, batched by `vmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.maps import Function

BATCH = "batch"


class Residual(eqx.nn.StatefulLayer):
    body: eqx.nn.Sequential
    shortcut: eqx.nn.Sequential | None = None

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        y, state = self.body(x, state, key=key)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state, key=key)
        return y + x, state


class LayerScale(eqx.Module):
    scale: jax.Array

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return x * self.scale


class EachPosition(eqx.Module):
    """A module of channels, at each position of an image."""

    inner: Any

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return jax.vmap(jax.vmap(self.inner, 1, 1), 1, 1)(x)


def _key() -> jax.Array:
    """Of values that are all replaced."""
    return jax.random.key(0)


def _conv(inputs: int, features: int, taps: int, stride: int = 1, **options: Any) -> eqx.nn.Conv2d:
    return eqx.nn.Conv2d(inputs, features, taps, stride, **{"padding": "SAME"} | options, key=_key())


def _linear(inputs: int, features: int) -> eqx.nn.Linear:
    return eqx.nn.Linear(inputs, features, key=_key())


def _function(f: Callable[[Any], Any]) -> eqx.nn.Lambda:
    return eqx.nn.Lambda(f)


def _global_avg_pool(x: Any) -> Any:
    return x.mean((1, 2))


def cnn(image: Sequence[int], classes: int = 10) -> eqx.nn.Sequential:
    height, width, channels = image
    relu, pool = _function(jax.nn.relu), eqx.nn.MaxPool2d(2, 2)
    flat = 64 * (height // 4) * (width // 4)
    return eqx.nn.Sequential([
        _conv(channels, 32, 3), relu, pool,
        _conv(32, 64, 3), relu, pool,
        _function(jnp.ravel), _linear(flat, 128), relu, eqx.nn.Dropout(0.25), _linear(128, classes),
    ])  # fmt: skip


def _conv_bn(inputs: int, features: int, taps: int, stride: int = 1, groups: int = 1) -> list[Any]:
    return [
        _conv(inputs, features, taps, stride, groups=groups, use_bias=False),
        eqx.nn.BatchNorm(features, BATCH, momentum=0.9, mode="batch"),
    ]


def resnet18(image: Sequence[int], classes: int = 10, width: int = 64) -> eqx.nn.Sequential:
    relu, inputs = _function(jax.nn.relu), width
    blocks: list[Any] = []
    for stage in range(4):
        for i in range(2):
            features, stride = width * 2**stage, 2 if stage and not i else 1
            body = eqx.nn.Sequential([*_conv_bn(inputs, features, 3, stride), relu, *_conv_bn(features, features, 3)])
            same = stride == 1 and inputs == features
            shortcut = None if same else eqx.nn.Sequential(_conv_bn(inputs, features, 1, stride))
            blocks.append(eqx.nn.Sequential([Residual(body, shortcut), relu]))
            inputs = features
    last: list[Any] = [_function(_global_avg_pool), _linear(inputs, classes)]
    return eqx.nn.Sequential([*_conv_bn(image[-1], width, 3), relu, *blocks, *last])


def mobilenet_v2(
    image: Sequence[int],
    classes: int = 10,
    *,
    stages: Sequence[tuple[int, int, int, int]],
    stem: int = 32,
    head: int = 384,
) -> eqx.nn.Sequential:
    relu6, inputs = _function(jax.nn.relu6), stem
    blocks: list[Any] = []
    for expansion, features, repeats, first_stride in stages:
        for i in range(repeats):
            stride, hidden = first_stride if not i else 1, inputs * expansion
            expand = [] if expansion == 1 else [*_conv_bn(inputs, hidden, 1), relu6]
            depthwise = _conv_bn(hidden, hidden, 3, stride, hidden)
            body = eqx.nn.Sequential([*expand, *depthwise, relu6, *_conv_bn(hidden, features, 1)])
            blocks.append(Residual(body) if stride == 1 and inputs == features else body)
            inputs = features
    last = [*_conv_bn(inputs, head, 1), relu6, _function(_global_avg_pool), _linear(head, classes)]
    return eqx.nn.Sequential([*_conv_bn(image[-1], stem, 3), relu6, *blocks, *last])


def convnext(
    image: Sequence[int], classes: int = 10, *, widths: Sequence[int], depth: int = 2, patch: int = 2
) -> eqx.nn.Sequential:
    def block(width: int) -> Residual:
        depthwise = _conv(width, width, 7, groups=width)
        dense = [_linear(width, 4 * width), _function(jax.nn.gelu), _linear(4 * width, width)]
        scale = LayerScale(jnp.ones(width))
        each = [EachPosition(layer) for layer in (eqx.nn.LayerNorm(width), *dense, scale)]
        return Residual(eqx.nn.Sequential([depthwise, *each]))

    stages: list[Any] = []
    inputs = image[-1]
    for i, width in enumerate(widths):
        norm = EachPosition(eqx.nn.LayerNorm(inputs if i else width))
        conv = _conv(inputs, width, 2 if i else patch, 2 if i else patch, padding="SAME" if i else "VALID")
        stages += [norm, conv] if i else [conv, norm]
        stages += [block(width) for _ in range(depth)]
        inputs = width
    last: list[Any] = [_function(_global_avg_pool), eqx.nn.LayerNorm(inputs), _linear(inputs, classes)]
    return eqx.nn.Sequential([*stages, *last])


NETS: dict[str, Callable[..., eqx.nn.Sequential]] = {
    "cnn": cnn, "resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "convnext": convnext,
}  # fmt: skip


def _filled(module: Any, params: Any) -> Any:
    """The module with jaxconv's parameters in place of its own."""
    if isinstance(module, eqx.nn.Sequential):
        pairs = zip(module.layers, params, strict=True)
        return eqx.tree_at(lambda m: m.layers, module, tuple(_filled(layer, given) for layer, given in pairs))
    if isinstance(module, Residual):
        shortcut = None if module.shortcut is None else _filled(module.shortcut, params["shortcut"])
        return Residual(_filled(module.body, params["body"]), shortcut)
    if isinstance(module, EachPosition):
        return EachPosition(_filled(module.inner, params))
    own, structure = jax.tree.flatten(eqx.filter(module, eqx.is_inexact_array))
    given = _as_equinox_has_them(params)
    if [a.shape for a in own] != [a.shape for a in given]:
        raise ValueError(f"{[a.shape for a in own]} != {[a.shape for a in given]}")
    return eqx.combine(jax.tree.unflatten(structure, given), module)


def _as_equinox_has_them(params: dict[str, jax.Array]) -> list[jax.Array]:
    """The parameters of one layer, in the order of the fields of Equinox's."""
    if "w" not in params:
        return [params[name] for name in ("scale", "bias") if name in params]
    w = params["w"]
    rank = w.ndim - 2
    weight = jnp.moveaxis(w, (-1, -2), (0, 1))
    return [weight, params["b"].reshape(-1, *(1,) * rank)] if "b" in params else [weight]


def _channels_first(params: Any, image: tuple[int, int, int]) -> Any:
    """The CNN's parameters for images that are flattened channels first."""
    height, width, _ = image
    flattened = next(i for i, layer in enumerate(params) if layer and layer["w"].ndim == 2)
    w = params[flattened]["w"]
    w = jnp.moveaxis(w.reshape(height // 4, width // 4, -1, w.shape[1]), 2, 0).reshape(w.shape)
    return [layer | {"w": w} if i == flattened else layer for i, layer in enumerate(params)]


def twin(net: str, options: dict[str, Any], params: Any, image: tuple[int, int, int]) -> tuple[Any, Any]:
    """The Equinox module and its state, with jaxconv's parameters, which must be all that it has."""
    module, state = eqx.nn.make_with_state(NETS[net])(image, **options)
    try:
        return _filled(module, _channels_first(params, image) if net == "cnn" else params), state
    except (KeyError, ValueError) as error:
        raise ValueError(f"the Equinox twin of {net} has other parameters: {error}.") from error


def images(x: np.ndarray) -> np.ndarray:
    """(n, h, w, c) as Equinox's (n, c, h, w)."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def objective(module: eqx.Module) -> tuple[Function, Any]:
    """The loss of a batch, and the new state, as a function of the parameters; and the parameters."""
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def loss(params: Any, state: Any, x: Any, labels: Any, key: Any) -> tuple[Any, Any]:
        module = eqx.combine(params, static)
        of_each = jax.vmap(lambda x, state, key: module(x, state, key=key), (0, None, 0), (0, None), axis_name=BATCH)
        logits, state = of_each(x, state, jax.random.split(key, x.shape[0]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype("float32"), labels)
        return losses.sum(), state

    return loss, params
