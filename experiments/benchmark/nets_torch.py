"""PyTorch twins of `jaxconv.models`, with the same parameters in the same order, and their training step.

A window of stride 2 is centred (padding 1), where SAME pads an even size at its end alone: the same work, and for odd
sizes the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.benchmark.peers_torch import device, images, wait
from experiments.benchmark.race import Contestant


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, nn.Identity() if shortcut is None else shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class LayerScale(nn.Module):
    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class ChannelsLast(nn.Sequential):
    """Layers that work on the last axis; in channels_last memory both permutations are views."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Flatten(nn.Module):
    """In the order of NHWC."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class GlobalAvgPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def cnn(image: Sequence[int], classes: int = 10) -> nn.Module:
    height, width, channels = image
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Dropout(0.25),
        nn.Linear(128, classes),
    )  # fmt: skip


def _conv_bn(inputs: int, features: int, taps: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, features, taps, stride, padding=taps // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(features)]


def resnet18(image: Sequence[int], classes: int = 10, width: int = 64) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        for i in range(2):
            features, stride = width * 2**stage, 2 if stage and not i else 1
            body = nn.Sequential(*_conv_bn(inputs, features, 3, stride), nn.ReLU(), *_conv_bn(features, features, 3))
            same = stride == 1 and inputs == features
            shortcut = None if same else nn.Sequential(*_conv_bn(inputs, features, 1, stride))
            blocks += [Residual(body, shortcut), nn.ReLU()]
            inputs = features
    stem = [*_conv_bn(image[-1], width, 3), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, GlobalAvgPool(), nn.Linear(inputs, classes))


def mobilenet_v2(
    image: Sequence[int],
    classes: int = 10,
    *,
    stages: Sequence[tuple[int, int, int, int]],
    stem: int = 32,
    head: int = 384,
) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = stem
    for expansion, features, repeats, first_stride in stages:
        for i in range(repeats):
            stride, hidden = first_stride if not i else 1, inputs * expansion
            expand = [] if expansion == 1 else [*_conv_bn(inputs, hidden, 1), nn.ReLU6()]
            depthwise = [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
            body = nn.Sequential(*expand, *depthwise, *_conv_bn(hidden, features, 1))
            blocks.append(Residual(body) if stride == 1 and inputs == features else body)
            inputs = features
    first, last = [*_conv_bn(image[-1], stem, 3), nn.ReLU6()], [*_conv_bn(inputs, head, 1), nn.ReLU6()]
    return nn.Sequential(*first, *blocks, *last, GlobalAvgPool(), nn.Linear(head, classes))


def convnext(
    image: Sequence[int], classes: int = 10, *, widths: Sequence[int], depth: int = 2, patch: int = 2
) -> nn.Module:
    def norm(width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=1e-6)

    def block(width: int) -> nn.Module:
        dense = [nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)]
        depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        return Residual(nn.Sequential(depthwise, ChannelsLast(norm(width), *dense, LayerScale(width, 1e-2))))

    stages: list[nn.Module] = []
    inputs = image[-1]
    for i, width in enumerate(widths):
        if i == 0:
            stages += [nn.Conv2d(inputs, width, patch, patch), ChannelsLast(norm(width))]
        else:
            stages += [ChannelsLast(norm(inputs)), nn.Conv2d(inputs, width, 2, 2)]
        stages += [block(width) for _ in range(depth)]
        inputs = width
    return nn.Sequential(*stages, GlobalAvgPool(), norm(inputs), nn.Linear(inputs, classes))


NETS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn, "resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "convnext": convnext,
}  # fmt: skip


def ordered(params: Any) -> Iterator[np.ndarray]:
    """jaxconv's parameters in the order, and with the order of axes, that PyTorch has."""
    if isinstance(params, list):
        children = params
    elif isinstance(params, dict):
        children = [params[name] for name in ("body", "shortcut", "w", "scale", "b", "bias") if name in params]
    else:
        a = np.asarray(params)
        yield np.moveaxis(a, (-1, -2), (0, 1)) if a.ndim > 1 else a
        return
    for child in children:
        yield from ordered(child)


def twin(net: str, options: dict[str, Any], params: Any, image: Sequence[int]) -> nn.Module:
    """The PyTorch module, with jaxconv's parameters, which must be all that it has."""
    module = NETS[net](image, **options)
    own, given = list(module.parameters()), [torch.tensor(a) for a in ordered(params)]
    if [p.shape for p in own] != [a.shape for a in given]:
        raise ValueError(f"the PyTorch twin of {net} has other parameters.")
    with torch.no_grad():
        for p, a in zip(own, given, strict=True):
            p.copy_(a)
    return module.to(device(), memory_format=torch.channels_last)


def training(module: nn.Module, optimizer: torch.optim.Optimizer, x: np.ndarray, labels: Any, dtype: str) -> Contestant:
    """A training step, eager; 16 bits by autocast."""
    pixels, target = images(x, "float32", "channels_last"), torch.from_numpy(np.asarray(labels, np.int64)).to(device())
    module.train()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device().type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = nn.functional.cross_entropy(module(pixels).float(), target, reduction="sum")
        loss.backward()
        optimizer.step()
        return loss.detach()

    wait(step())
    return Contestant(step, wait, None)


def optimizer(name: str, rate: float, module: nn.Module) -> torch.optim.Optimizer:
    parameters = module.parameters()
    if name == "adam":
        return torch.optim.Adam(parameters, rate)
    return torch.optim.SGD(parameters, rate, momentum=0.9)
