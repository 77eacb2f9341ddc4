"""Gradients of activations and dropout. Arrays of any shape, float32 or float64."""

from __future__ import annotations

import numpy as np

from fastconv import check, elementwise
from fastconv.kernels import activation as kernels


def relu(output: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """grad_output where the output is positive, else 0."""
    return elementwise.apply(kernels.relu_gradient, None,
                             *elementwise.pair_of("output", output, "grad_output", grad_output))


def leaky_relu(input: np.ndarray, grad_output: np.ndarray, negative_slope: float = 0.01) -> np.ndarray:
    """grad_output where the input is positive, else negative_slope * grad_output."""
    return elementwise.apply(kernels.leaky_relu_gradient, None,
                             *elementwise.pair_of("input", input, "grad_output", grad_output), negative_slope)


def tanh(output: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """grad_output (1 - output^2)."""
    return elementwise.apply(kernels.tanh_gradient, None,
                             *elementwise.pair_of("output", output, "grad_output", grad_output))


def sigmoid(output: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """grad_output output (1 - output)."""
    return elementwise.apply(kernels.sigmoid_gradient, None,
                             *elementwise.pair_of("output", output, "grad_output", grad_output))


def softmax(output: np.ndarray, grad_output: np.ndarray, dim: int = -1) -> np.ndarray:
    """output (grad_output - sum(output grad_output)), the sum along ``dim``."""
    y, dy = elementwise.pair_of("output", output, "grad_output", grad_output)
    return elementwise.along(kernels.softmax_gradient, dim, None, output=y, grad_output=dy)


def log_softmax(output: np.ndarray, grad_output: np.ndarray, dim: int = -1) -> np.ndarray:
    """grad_output - exp(output) sum(grad_output), the sum along ``dim``."""
    y, dy = elementwise.pair_of("output", output, "grad_output", grad_output)
    return elementwise.along(kernels.log_softmax_gradient, dim, None, output=y, grad_output=dy)


def dropout(mask: np.ndarray, grad_output: np.ndarray, p: float = 0.5) -> np.ndarray:
    """grad_output / (1 - p) where the mask kept the element, else 0.

    Args:
        mask: uint8, from :func:`fastconv.functional.dropout_with_mask`.
        grad_output: of the mask's shape.
    """
    dy, scale = check.array("grad_output", grad_output), elementwise.keep_scale(p)
    flags = np.asarray(mask)
    if flags.dtype != np.uint8:
        raise TypeError(f"mask must be uint8, as dropout_with_mask returns it, got {flags.dtype}")
    check.shape("mask", flags, dy.shape, "as grad_output")
    return elementwise.apply(kernels.kept, None, dy, np.ascontiguousarray(flags), scale)
