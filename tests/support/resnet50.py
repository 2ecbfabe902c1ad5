"""ResNet-50 (He et al., 2016) in Flax Linen: the size of a model that people have."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 around a shortcut; the stride is that of the 3×3."""

    features: int
    stride: int
    train: bool

    def normed(self, y: Any, features: int, taps: int, stride: int = 1) -> Any:
        y = nn.Conv(features, (taps, taps), stride, use_bias=False)(y)
        return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(y)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(self.normed(x, self.features, 1))
        y = nn.relu(self.normed(y, self.features, 3, self.stride))
        y = self.normed(y, 4 * self.features, 1)
        same = x.shape == y.shape
        return nn.relu(y + (x if same else self.normed(x, 4 * self.features, 1, self.stride)))


class ResNet50(nn.Module):
    classes: int = 1000
    train: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.Conv(64, (7, 7), 2, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(y))
        y = nn.max_pool(y, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for i in range(blocks):
                y = Bottleneck(64 * 2**stage, 2 if stage and not i else 1, self.train)(y)
        return nn.Dense(self.classes)(y.mean((1, 2)))
