"""Layers as pairs of pure functions over plain pytrees, and three ways to put them together.

A layer is `init(key, shape) -> (params, state, shape)` and `apply(params, state, x) -> (y, state)`. Shapes
include the batch axis, whose size does not matter. `params` is what an optimiser updates, `state` what the
forward pass updates (running statistics); both are nested dicts and lists of arrays, empty where a layer has
none. `apply` also takes `train`, a `key` for randomness and the `rules` that every op in it will use.
"""

from jaxconv.layers.base import Layer, Params, Shape, State
from jaxconv.layers.kernels import Conv, Dense
from jaxconv.layers.networks import residual, serial
from jaxconv.layers.norms import BatchNorm, LayerNorm, LayerScale
from jaxconv.layers.plain import Activation, AvgPool, Dropout, Flatten, GlobalAvgPool, MaxPool

__all__ = [
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Layer",
    "LayerNorm",
    "LayerScale",
    "MaxPool",
    "Params",
    "Shape",
    "State",
    "residual",
    "serial",
]
