"""Neural-network operations on NumPy arrays, with torch.nn.functional's names, argument order and defaults.

float32 and float64, never mixed in a call. On top of torch's arguments there are, keyword-only, ``layout`` ("NCHW"
or "NHWC"), ``out`` and, for convolutions, ``algorithm``. The gradients are in :mod:`fastconv.grad`.
"""

from .activation import (
    dropout,
    dropout_with_mask,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from .conv import conv2d, conv2d_max_pool2d, conv_transpose2d, convolve2d
from .linear import linear
from .loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    cross_entropy_with_gradient,
    mse_loss,
    nll_loss,
)
from .norm import batch_norm, batch_norm_training
from .pool import (
    adaptive_avg_pool2d,
    avg_pool2d,
    max_pool2d,
    max_pool2d_with_positions,
    max_unpool2d,
)

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_training",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "conv2d_max_pool2d",
    "conv_transpose2d",
    "convolve2d",
    "cross_entropy",
    "cross_entropy_with_gradient",
    "dropout",
    "dropout_with_mask",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "max_pool2d_with_positions",
    "max_unpool2d",
    "mse_loss",
    "nll_loss",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
