"""Activations on arrays of any shape, and their gradients from what the forward pass leaves.

NaN follows torch: relu and leaky_relu keep it; the gradient of relu passes it, that of leaky_relu scales it.
"""

from __future__ import annotations

import numpy as np

from ..geometry import Array


def relu(input: Array) -> Array:
    """max(0, z)."""
    return np.maximum(input, 0)


def relu_grad(output: Array, grad_output: Array) -> Array:
    """dy where z > 0, else 0."""
    return np.where(output <= 0, 0, grad_output)


def leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    """z where z > 0, else negative_slope z."""
    return np.where(input > 0, input, negative_slope * input.astype(np.float64)).astype(input.dtype)


def leaky_relu_grad(input: Array, grad_output: Array, negative_slope: float = 0.01) -> Array:
    """dy where z > 0, else negative_slope dy."""
    dy = grad_output.astype(np.float64)
    return np.where(input > 0, dy, negative_slope * dy).astype(grad_output.dtype)


def tanh(input: Array) -> Array:
    """The hyperbolic tangent."""
    return np.tanh(input.astype(np.float64)).astype(input.dtype)


def tanh_grad(output: Array, grad_output: Array) -> Array:
    """dy (1 - tanh^2)."""
    y = output.astype(np.float64)
    return (grad_output * (1 - y * y)).astype(grad_output.dtype)


def sigmoid(input: Array) -> Array:
    """1 / (1 + exp(-z)), by exp(-|z|), which cannot overflow."""
    z = input.astype(np.float64)
    small = np.exp(-np.abs(z))
    return (np.where(z < 0, small, 1) / (1 + small)).astype(input.dtype)


def sigmoid_grad(output: Array, grad_output: Array) -> Array:
    """dy s(1 - s)."""
    y = output.astype(np.float64)
    return (grad_output * y * (1 - y)).astype(grad_output.dtype)


def softmax(input: Array, dim: int = -1) -> Array:
    """exp(z - max z) / sum, along `dim`."""
    exponentials = np.exp(_below_maximum(input, dim))
    return (exponentials / exponentials.sum(axis=dim, keepdims=True)).astype(input.dtype)


def softmax_grad(output: Array, grad_output: Array, dim: int = -1) -> Array:
    """dz = p (dy - sum(dy p))."""
    p, dy = output.astype(np.float64), grad_output.astype(np.float64)
    return (p * (dy - (dy * p).sum(axis=dim, keepdims=True))).astype(grad_output.dtype)


def log_softmax(input: Array, dim: int = -1) -> Array:
    """z - max z - log sum exp(z - max z), along `dim`."""
    z = _below_maximum(input, dim)
    return (z - np.log(np.exp(z).sum(axis=dim, keepdims=True))).astype(input.dtype)


def log_softmax_grad(output: Array, grad_output: Array, dim: int = -1) -> Array:
    """dz = dy - p sum(dy), where p = exp(output)."""
    p, dy = np.exp(output.astype(np.float64)), grad_output.astype(np.float64)
    return (dy - p * dy.sum(axis=dim, keepdims=True)).astype(grad_output.dtype)


def _below_maximum(input: Array, dim: int) -> Array:
    z = input.astype(np.float64)
    return z - z.max(axis=dim, keepdims=True)
