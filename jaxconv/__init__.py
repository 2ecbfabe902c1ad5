"""Convolutional networks in JAX with hand-written backward passes: readable, proven, fast."""

from jaxconv.ops.conv import conv, conv_bias_grad, conv_input_grad, conv_kernel_grad
from jaxconv.ops.conv_general_dilated import conv_general_dilated
from jaxconv.ops.conv_transpose import (
    conv_transpose,
    conv_transpose_bias_grad,
    conv_transpose_input_grad,
    conv_transpose_kernel_grad,
)
from jaxconv.rules import ConvRules

__all__ = [
    "ConvRules",
    "conv",
    "conv_bias_grad",
    "conv_general_dilated",
    "conv_input_grad",
    "conv_kernel_grad",
    "conv_transpose",
    "conv_transpose_bias_grad",
    "conv_transpose_input_grad",
    "conv_transpose_kernel_grad",
]
