"""Flax: the layers of the table, and twins of `jaxconv.models` with the same parameters in the same tree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from experiments.benchmark.layers import Conv, Pool
from experiments.benchmark.maps import Function


def conv(layer: Conv) -> Function:
    size = (layer.taps,) * layer.rank
    options: dict[str, Any] = {"strides": layer.stride, "kernel_dilation": layer.dilation, "use_bias": False}
    if layer.rank == 0:
        module: nn.Module = nn.Dense(layer.outputs, use_bias=False)
    elif layer.transposed:
        low = layer.span - 1 - layer.border
        around = [(low, low + layer.output_padding)] * layer.rank
        options |= {"strides": (layer.stride,) * layer.rank, "transpose_kernel": True}
        module = nn.ConvTranspose(layer.outputs, size, padding=around, **options)
    else:
        module = nn.Conv(layer.outputs, size, padding=layer.border, feature_group_count=layer.groups, **options)
    return lambda x, w: module.apply({"params": {"kernel": w}}, x)


def pool(layer: Pool) -> Function:
    window, stride = (layer.window,) * 2, (layer.stride,) * 2
    if layer.kind == "max":
        return lambda x: nn.max_pool(x, window, stride, layer.padding)
    return lambda x: nn.avg_pool(x, window, stride, layer.padding, count_include_pad=False)


# Networks


class Residual(nn.Module):
    body: nn.Module
    shortcut: nn.Module | None = None

    def __call__(self, x: Any) -> Any:
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


class LayerScale(nn.Module):
    initial: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:])


def _flatten(x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


def _global_avg_pool(x: Any) -> Any:
    return x.mean((1, 2))


def cnn(classes: int = 10, *, train: bool) -> nn.Module:
    pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    return nn.Sequential([
        nn.Conv(32, (3, 3)), nn.relu, pool,
        nn.Conv(64, (3, 3)), nn.relu, pool,
        _flatten, nn.Dense(128), nn.relu, nn.Dropout(0.25, deterministic=not train), nn.Dense(classes),
    ])  # fmt: skip


def _conv_bn(features: int, taps: int, stride: int = 1, groups: int = 1, *, train: bool) -> list[Any]:
    return [
        nn.Conv(features, (taps, taps), stride, feature_group_count=groups, use_bias=False),
        nn.BatchNorm(use_running_average=not train, momentum=0.9),
    ]


def resnet18(classes: int = 10, width: int = 64, *, train: bool) -> nn.Module:
    conv_bn = functools.partial(_conv_bn, train=train)
    blocks, inputs = [], width
    for stage in range(4):
        for i in range(2):
            features, stride = width * 2**stage, 2 if stage and not i else 1
            body = nn.Sequential([*conv_bn(features, 3, stride), nn.relu, *conv_bn(features, 3)])
            same = stride == 1 and inputs == features
            shortcut = None if same else nn.Sequential(conv_bn(features, 1, stride))
            blocks.append(nn.Sequential([Residual(body, shortcut), nn.relu]))
            inputs = features
    return nn.Sequential([*conv_bn(width, 3), nn.relu, *blocks, _global_avg_pool, nn.Dense(classes)])


def mobilenet_v2(
    classes: int = 10, *, stages: Sequence[tuple[int, int, int, int]], stem: int = 32, head: int = 384, train: bool
) -> nn.Module:
    conv_bn = functools.partial(_conv_bn, train=train)
    blocks, inputs = [], stem
    for expansion, features, repeats, first_stride in stages:
        for i in range(repeats):
            stride, hidden = first_stride if not i else 1, inputs * expansion
            expand = [] if expansion == 1 else [*conv_bn(hidden, 1), nn.relu6]
            body = nn.Sequential([*expand, *conv_bn(hidden, 3, stride, hidden), nn.relu6, *conv_bn(features, 1)])
            blocks.append(Residual(body) if stride == 1 and inputs == features else body)
            inputs = features
    last = [*conv_bn(head, 1), nn.relu6, _global_avg_pool, nn.Dense(classes)]
    return nn.Sequential([*conv_bn(stem, 3), nn.relu6, *blocks, *last])


def convnext(classes: int = 10, *, widths: Sequence[int], depth: int = 2, patch: int = 2, train: bool) -> nn.Module:
    del train  # it does the same in training and in inference

    def block(width: int) -> nn.Module:
        dense = [nn.Dense(4 * width), nn.gelu, nn.Dense(width)]
        depthwise = nn.Conv(width, (7, 7), feature_group_count=width)
        return Residual(nn.Sequential([depthwise, nn.LayerNorm(), *dense, LayerScale(1e-2)]))

    stages: list[Any] = []
    for i, width in enumerate(widths):
        entry = [nn.Conv(width, (patch, patch), patch, padding="VALID"), nn.LayerNorm()]
        stages += entry if i == 0 else [nn.LayerNorm(), nn.Conv(width, (2, 2), 2)]
        stages += [block(width) for _ in range(depth)]
    return nn.Sequential([*stages, _global_avg_pool, nn.LayerNorm(), nn.Dense(classes)])


NETS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn, "resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "convnext": convnext,
}  # fmt: skip


def renamed(tree: Any) -> Any:
    """jaxconv's parameters or state as Flax names them; what holds no array is left out."""
    if isinstance(tree, list):
        tree = {f"layers_{i}": child for i, child in enumerate(tree)}
    if not isinstance(tree, dict):
        return tree
    names = {"w": "kernel", "b": "bias"}
    return {names.get(name, name): renamed(child) for name, child in tree.items() if jax.tree.leaves(child)}


def twin(net: str, options: dict[str, Any], params: Any, state: Any, x: Any, *, train: bool) -> tuple[Any, Any, Any]:
    """The Flax module, with jaxconv's parameters and state, which must be all that it has."""
    module = NETS[net](**options, train=train)
    own = jax.eval_shape(module.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
    params, state = renamed(params), renamed(state)
    for name, given in (("params", params), ("batch_stats", state)):
        if jax.tree.map(lambda a: a.shape, own.get(name, {})) != jax.tree.map(lambda a: a.shape, given):
            raise ValueError(f"the Flax twin of {net} has other {name}.")
    return module, params, state


def objective(module: nn.Module) -> Function:
    """The loss of a batch, and the new state."""

    def loss(params: Any, state: Any, x: Any, labels: Any, key: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": state}
        logits, new = module.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype("float32"), labels)
        return losses.sum(), new.get("batch_stats", {})

    return loss
