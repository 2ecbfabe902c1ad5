"""A training in PyTorch, as its users write it: eager, channels last, images on the device, losses not waited for.

The network, what its weights start at, optimiser, schedule, batches and standardising are those of `experiments.train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import data
from experiments.benchmark.nets_torch import NETS
from experiments.benchmark.peers_torch import device
from experiments.config import Config


def started(module: nn.Module) -> nn.Module:
    """Kernels from a normal distribution of variance 2 / fan-in, biases at zero, as in `jaxconv.layers`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module.to(device(), memory_format=torch.channels_last)


def on_device(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(np.array(images)).to(device()).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(np.asarray(labels, np.int64)).to(device())


def training(config: Config, dataset: data.Dataset) -> Iterator[float]:
    """The accuracy on the test part after each epoch."""
    assert config.epochs is not None and config.batch_size is not None and config.learning_rate is not None
    if config.optimizer != "adam" or config.schedule not in ("constant", "cosine"):
        raise NotImplementedError(f"{config.optimizer} with the schedule {config.schedule} has no twin in PyTorch")
    torch.manual_seed(config.seed)
    module = started(NETS[config.model](dataset.train_images.shape[1:], len(dataset.classes)))
    images, labels = on_device(dataset.train_images, dataset.train_labels)
    tests = on_device(dataset.test_images, dataset.test_labels)
    mean, std = (torch.tensor(v, device=device()).reshape(1, -1, 1, 1) for v in (dataset.mean, dataset.std))
    per_epoch = len(labels) // config.batch_size
    optimizer = torch.optim.Adam(module.parameters(), config.learning_rate)
    scheduler: Any = (
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        if config.schedule == "constant"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * per_epoch)
    )

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.float() / dataset.scale - mean) / std
        with torch.autocast(device().type, getattr(torch, config.dtype), enabled=config.dtype != "float32"):
            return module(x.contiguous(memory_format=torch.channels_last)).float()

    for _ in range(config.epochs):
        module.train()
        order = torch.randperm(len(labels), device=device())
        for rows in order[: per_epoch * config.batch_size].split(config.batch_size):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits(images[rows]), labels[rows]).backward()
            optimizer.step()
            scheduler.step()
        module.eval()
        yield accuracy(logits, *tests)


@torch.inference_mode()
def accuracy(logits: Any, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 500) -> float:
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    hits = sum((logits(pixels).argmax(1) == expected).sum() for pixels, expected in batches)
    return float(hits) / len(labels)
