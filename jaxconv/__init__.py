"""Convolutional networks in JAX with hand-written backward passes.

What stands where; each imports only what stands above it:

    geometry      static shape algebra: integers, no jax
    windows       one tap read and written, padding, tiles; forward: the mathematics through lax, without rules
    rules         backward passes as values: textbook, rotated, fast; ConvRules for yours
    primitives    the three maps of a convolution, and linear pairs, closed under differentiation and vmap
    ops           the public functions: arguments are checked, a rule becomes a gradient (binding)
    layers        ops as (init, apply) pairs; models: networks of them

and beside the layers, from ops, the instruments:

    transforms    a traced program read in several ways: automatic, manual, per_example_grad_norms; MixedPrecision
    gradcheck     check        comparison    compare        tuning        tune
    explanation   explain
    commands      python -m jaxconv
"""

from jaxconv import layers, models, rules
from jaxconv.comparison import compare
from jaxconv.explanation import explain
from jaxconv.gradcheck import check
from jaxconv.ops import binding, sharded
from jaxconv.ops.activation import elu, gelu, leaky_relu, relu, relu6, sigmoid, silu, softplus, tanh
from jaxconv.ops.batch_norm import batch_norm
from jaxconv.ops.conv import conv, conv_bias_grad, conv_input_grad, conv_kernel_grad
from jaxconv.ops.conv_general_dilated import conv_general_dilated
from jaxconv.ops.conv_transpose import (
    conv_transpose,
    conv_transpose_bias_grad,
    conv_transpose_input_grad,
    conv_transpose_kernel_grad,
)
from jaxconv.ops.dense import dense
from jaxconv.ops.dropout import dropout
from jaxconv.ops.loss import mean_squared_error, softmax_cross_entropy
from jaxconv.ops.max_pool import max_pool, max_unpool
from jaxconv.ops.norm import group_norm, instance_norm, layer_norm, rms_norm
from jaxconv.ops.pad import pad
from jaxconv.ops.plan import plan
from jaxconv.ops.pool import avg_pool, global_avg_pool, lp_pool
from jaxconv.rules import ConvRules
from jaxconv.transforms import MixedPrecision, automatic, manual, per_example_grad_norms
from jaxconv.tuning import load_rules, tune

__all__ = [
    "ConvRules",
    "MixedPrecision",
    "automatic",
    "avg_pool",
    "batch_norm",
    "binding",
    "check",
    "compare",
    "conv",
    "conv_bias_grad",
    "conv_general_dilated",
    "conv_input_grad",
    "conv_kernel_grad",
    "conv_transpose",
    "conv_transpose_bias_grad",
    "conv_transpose_input_grad",
    "conv_transpose_kernel_grad",
    "dense",
    "dropout",
    "elu",
    "explain",
    "gelu",
    "global_avg_pool",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "layers",
    "leaky_relu",
    "load_rules",
    "lp_pool",
    "manual",
    "max_pool",
    "max_unpool",
    "mean_squared_error",
    "models",
    "pad",
    "per_example_grad_norms",
    "plan",
    "relu",
    "relu6",
    "rms_norm",
    "rules",
    "sharded",
    "sigmoid",
    "silu",
    "softmax_cross_entropy",
    "softplus",
    "tanh",
    "tune",
]
