"""Gradients of the operations of :mod:`fastconv.functional`, each under its operation's name.

``<op>_input``, ``<op>_weight`` and ``<op>_bias`` where there are several, as in torch.nn.grad.
"""

from .activation import dropout, leaky_relu, log_softmax, relu, sigmoid, softmax, tanh
from .conv import (
    conv2d_bias,
    conv2d_input,
    conv2d_max_pool2d_weight,
    conv2d_weight,
    conv_transpose2d_input,
    conv_transpose2d_weight,
)
from .linear import linear_bias, linear_input, linear_weight
from .loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    nll_loss,
)
from .norm import batch_norm, batch_norm_eval
from .pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d, max_pool2d_bias, max_unpool2d

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_eval",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_max_pool2d_weight",
    "conv2d_weight",
    "conv_transpose2d_input",
    "conv_transpose2d_weight",
    "cross_entropy",
    "dropout",
    "leaky_relu",
    "linear_bias",
    "linear_input",
    "linear_weight",
    "log_softmax",
    "max_pool2d",
    "max_pool2d_bias",
    "max_unpool2d",
    "mse_loss",
    "nll_loss",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
