"""Networks to train, measure and take apart: from the articles' three layers to a small ConvNeXt.

Each builder takes the number of classes and returns a `Layer` from NHWC images to logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxconv.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    LayerScale,
    MaxPool,
    residual,
    serial,
)
from jaxconv.ops.activation import gelu, relu, relu6, tanh


def article(classes: int = 10) -> Layer:
    """The CNN of A. Saraswat's article: conv 3×3 with 8 filters, ReLU, max pool 2×2, fully connected."""
    return serial(Conv(8, 3, padding="VALID"), Activation(relu), MaxPool(2), Flatten(), Dense(classes))


def cnn(classes: int = 10) -> Layer:
    """conv 32 – pool – conv 64 – pool – dense 128: enough for 99 % on MNIST."""
    return serial(
        Conv(32, 3), Activation(relu), MaxPool(2),
        Conv(64, 3), Activation(relu), MaxPool(2),
        Flatten(), Dense(128), Activation(relu), Dropout(0.25), Dense(classes),
    )  # fmt: skip


def lenet5(classes: int = 10) -> Layer:
    """LeNet-5 (LeCun et al., 1998) for 28×28 images, with fully connected maps in its second convolution."""
    return serial(
        Conv(6, 5), Activation(tanh), AvgPool(2),
        Conv(16, 5, padding="VALID"), Activation(tanh), AvgPool(2),
        Flatten(), Dense(120), Activation(tanh), Dense(84), Activation(tanh), Dense(classes),
    )  # fmt: skip


def _conv_bn(features: int, taps: int, *, scale: float = 1.0, **options: Any) -> list[Layer]:
    """A convolution whose bias is the batch norm's."""
    return [Conv(features, taps, bias=False, **options), BatchNorm(scale_init=scale)]


def vgg(classes: int = 10, widths: Sequence[int] = (32, 64, 128)) -> Layer:
    """A small VGG: two 3×3 convolutions with batch norm and a pool per width."""
    stages: list[Layer] = []
    for width in widths:
        for _ in range(2):
            stages += [*_conv_bn(width, 3), Activation(relu)]
        stages.append(MaxPool(2))
    return serial(*stages, Flatten(), Dense(256), Activation(relu), Dropout(0.5), Dense(classes))


def _basic_block(inputs: int, features: int, stride: int) -> Layer:
    body = serial(*_conv_bn(features, 3, stride=stride), Activation(relu), *_conv_bn(features, 3, scale=0.0))
    same = stride == 1 and inputs == features
    shortcut = None if same else serial(*_conv_bn(features, 1, stride=stride))
    return serial(residual(body, shortcut), Activation(relu))


def resnet18(classes: int = 10, width: int = 64) -> Layer:
    """ResNet-18 (He et al., 2016) with the 3×3 stem without pooling that CIFAR's 32×32 images want."""
    blocks, inputs = [], width
    for stage in range(4):
        for i in range(2):
            features = width * 2**stage
            blocks.append(_basic_block(inputs, features, 2 if stage and not i else 1))
            inputs = features
    return serial(*_conv_bn(width, 3), Activation(relu), *blocks, GlobalAvgPool(), Dense(classes))


def _inverted_residual(inputs: int, features: int, stride: int, expansion: int) -> Layer:
    hidden = inputs * expansion
    expand = [] if expansion == 1 else [*_conv_bn(hidden, 1), Activation(relu6)]
    body = serial(*expand, *_conv_bn(hidden, 3, stride=stride, groups=None), Activation(relu6), *_conv_bn(features, 1))
    return residual(body) if stride == 1 and inputs == features else body


# (expansion, channels, repeats, stride) of each stage
_MOBILE_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 2, 2), (6, 64, 3, 2), (6, 96, 2, 1))


def mobilenet_v2(
    classes: int = 10, stages: Sequence[tuple[int, int, int, int]] = _MOBILE_STAGES, stem: int = 32, head: int = 384
) -> Layer:
    """A MobileNet-V2-like net (Sandler et al., 2018) for 32×32: depthwise 3×3 between 1×1 convolutions."""
    blocks, inputs = [], stem
    for expansion, features, repeats, stride in stages:
        for i in range(repeats):
            blocks.append(_inverted_residual(inputs, features, stride if not i else 1, expansion))
            inputs = features
    last = [*_conv_bn(head, 1), Activation(relu6), GlobalAvgPool(), Dense(classes)]
    return serial(*_conv_bn(stem, 3), Activation(relu6), *blocks, *last)


def _convnext_block(width: int) -> Layer:
    return residual(
        serial(
            Conv(width, 7, groups=None), LayerNorm(), Dense(4 * width), Activation(gelu), Dense(width), LayerScale(1e-2)
        )
    )


def convnext(classes: int = 10, widths: Sequence[int] = (48, 96, 192), depth: int = 2, patch: int = 2) -> Layer:
    """A ConvNeXt-like net (Liu et al., 2022): patchify stem, depthwise 7×7, layer norm, GELU, layer scale."""
    stages: list[Layer] = []
    for i, width in enumerate(widths):
        entry = [Conv(width, patch, stride=patch, padding="VALID"), LayerNorm()]
        stages += entry if i == 0 else [LayerNorm(), Conv(width, 2, stride=2)]
        stages += [_convnext_block(width) for _ in range(depth)]
    return serial(*stages, GlobalAvgPool(), LayerNorm(), Dense(classes))


MODELS = {
    "article": article,
    "cnn": cnn,
    "lenet5": lenet5,
    "vgg": vgg,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "convnext": convnext,
}
