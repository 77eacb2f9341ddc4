"""Gradients of the linear layer."""

from __future__ import annotations

import math

import numpy as np

from fastconv import check, memory
from fastconv.kernels import gemm
from fastconv.kernels.conv_bias import bias_gradient


def linear_input(weight: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """``dx = dy W``: (..., features in) from weight (features out, features in), grad_output (..., features out)."""
    dy = check.array("grad_output", grad_output)
    w = check.array("weight", weight, 2, dy.dtype)
    outputs, features = w.shape
    _last_dimension("grad_output", dy, outputs)
    dx = memory.empty((*dy.shape[:-1], features), dy.dtype)
    rows = math.prod(dy.shape[:-1])
    if dx.size:
        product = gemm.Product(rows, features, outputs, outputs, 1, features, 1, dy.dtype.char)
        gemm.run(dx.reshape(rows, features), dy.reshape(rows, outputs), w, None, product)
    return dx


def linear_weight(input: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """``dW = dy^T x``: (features out, features in) from input (..., features in), grad_output (..., features out)."""
    x = check.array("input", input)
    dy = check.array("grad_output", grad_output, x.ndim, x.dtype)
    if x.ndim < 1:
        raise ValueError("input must have at least 1 dimension, got 0")
    if x.shape[:-1] != dy.shape[:-1]:
        raise ValueError(f"grad_output must have the dimensions of input but the last, {x.shape[:-1]}, "
                         f"got shape {dy.shape}")
    outputs, features = dy.shape[-1], x.shape[-1]
    dw = memory.empty((outputs, features), x.dtype)
    if dw.size:
        rows = x.size // features
        product = gemm.Product(outputs, features, rows, 1, outputs, features, 1, x.dtype.char)
        gemm.run(dw, dy.reshape(rows, outputs), x.reshape(rows, features), None, product)
    return dw


def linear_bias(grad_output: np.ndarray) -> np.ndarray:
    """``db = sum of dy over samples``: (features out,)."""
    dy = check.array("grad_output", grad_output)
    if dy.ndim < 1:
        raise ValueError("grad_output must have at least 1 dimension, got 0")
    return bias_gradient(dy, channels_last=True)


def _last_dimension(name: str, array: np.ndarray, size: int) -> None:
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(f"{name} must have {size} features in its last dimension, got shape {array.shape}")
