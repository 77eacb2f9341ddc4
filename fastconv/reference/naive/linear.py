"""The fully connected layer: x (..., in), w (out, in), y (..., out) = x w^T + b."""

from __future__ import annotations

import numpy as np

from ..geometry import Array


def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x w^T + b."""
    y = input.astype(np.float64) @ weight.T.astype(np.float64)
    return (y if bias is None else y + bias).astype(input.dtype)


def linear_input(weight: Array, grad_output: Array) -> Array:
    """dx = dy w."""
    return (grad_output.astype(np.float64) @ weight.astype(np.float64)).astype(grad_output.dtype)


def linear_weight(input: Array, grad_output: Array) -> Array:
    """dw = dy^T x, summed over every leading axis."""
    x, dy = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (input, grad_output))
    return (dy.T @ x).astype(input.dtype)


def linear_bias(grad_output: Array) -> Array:
    """db = the sum of dy over every leading axis."""
    dy = grad_output.reshape(-1, grad_output.shape[-1])
    return dy.sum(axis=0, dtype=np.float64).astype(grad_output.dtype)
