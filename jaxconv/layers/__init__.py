"""Layers as pairs of pure functions over plain pytrees, and two ways to put them together.

A layer is `init(key, shape) -> (params, state, shape)` and `apply(params, state, x) -> (y, state)`. Shapes
include the batch axis, whose size does not matter. `params` is what an optimiser updates, `state` what the
forward pass updates (running statistics); both are nested dicts and lists of arrays, empty where a layer has
none. `apply` also takes

    train   whether batch norms use and record the batch's statistics, and dropouts drop
    key     a `jax.random` key, for dropouts in training
    rules   the backward pass of every op in the network. A `ConvRules` is that of every kernel's; the others are "fast"
    dtype   the floating dtype to compute in, such as `jnp.bfloat16`; by default that of x. Parameters, their gradients
            and running statistics stay float32, and so do the statistics of every norm

Options are checked when a layer is built, shapes at `init`. A layer of your own is a `Layer(init, apply)`.

What parameters start at is an option of every layer that has any: `kernel_init`, `bias_init`, `scale_init` take what
`jax.nn.initializers` makes, a function `(key, shape, dtype) -> array` of yours, or a number. `summary(net, shape)` says
what each layer costs. `save(path, (params, state))` writes both to one file, which `load(path, (params, state))` reads.

`kernels` holds the layers with a kernel, `norms` those that standardise, `plain` those without parameters, `networks`
what puts layers together; `summaries` what is said of them, `files` what is kept of them.
"""

from jaxconv.layers.base import Layer, Params, Shape, State
from jaxconv.layers.files import load, save
from jaxconv.layers.initial import Initializer
from jaxconv.layers.kernels import Conv, ConvTranspose, Dense
from jaxconv.layers.networks import residual, serial
from jaxconv.layers.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LayerScale, RMSNorm
from jaxconv.layers.plain import Activation, AvgPool, Dropout, Flatten, GlobalAvgPool, LpPool, MaxPool, Pad
from jaxconv.layers.summaries import Cost, Summary, summary

__all__ = [
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Cost",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "Initializer",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LayerScale",
    "LpPool",
    "MaxPool",
    "Pad",
    "Params",
    "RMSNorm",
    "Shape",
    "State",
    "Summary",
    "load",
    "residual",
    "save",
    "serial",
    "summary",
]
