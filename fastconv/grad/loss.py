"""Gradients of losses with respect to their input.

Arguments are those of the loss, and ``grad_output``, the gradient of what the loss returns: a number, or with
``reduction="none"`` also an array of the losses' shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import elementwise, losses, memory
from fastconv.kernels import activation
from fastconv.kernels import loss as kernels


def cross_entropy(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                  reduction: str = "mean", label_smoothing: float = 0.0, ignore_index: int = -100,
                  grad_output: Any = 1.0) -> np.ndarray:
    """softmax(input) sum(a) - a for each sample, where a = (1 - e) weight[t] onehot(t) + e/C weight.

    Without weight and smoothing this is p - onehot(t), over N for the mean.
    """
    found = losses.classified(input, target, weight, reduction, ignore_index)
    scale = losses.scaled(grad_output, found.shape, reduction, found.divisor)
    return found.like_input(losses.cross_entropy_of_rows(found, label_smoothing, scale)[1])


def nll_loss(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *, reduction: str = "mean",
             ignore_index: int = -100, grad_output: Any = 1.0) -> np.ndarray:
    """-weight[t] at the label t of each sample, else 0; over the sum of weight[t] for the mean."""
    found = losses.classified(input, target, weight, reduction, ignore_index)
    scale = found.per_sample(losses.scaled(grad_output, found.shape, reduction, found.divisor))
    kept = np.flatnonzero(found.labels >= 0)
    labels = found.labels[kept]
    dx = memory.zeros(found.rows.shape, found.rows.dtype)
    dx[kept, labels] = -found.weight[labels] * scale[kept]
    return found.like_input(dx)


def binary_cross_entropy(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                         reduction: str = "mean", grad_output: Any = 1.0) -> np.ndarray:
    """(a - y) / (a (1 - a)), the denominator at least 1e-12, as torch."""
    a, y = losses.compared(input, target, reduction)
    losses.probabilities("input", a)
    losses.probabilities("target", y)
    return _elementwise(kernels.binary_cross_entropy_gradient, a, y, 1, weight, reduction, grad_output)


def binary_cross_entropy_with_logits(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                                     reduction: str = "mean", pos_weight: np.ndarray | None = None,
                                     grad_output: Any = 1.0) -> np.ndarray:
    """sigmoid(z) - y; with ``pos_weight`` (1 - y) - (1 + (pos_weight - 1) y) sigmoid(-z)."""
    z, y = losses.compared(input, target, reduction)
    losses.probabilities("target", y)
    positive = losses.factor("pos_weight", pos_weight, z)
    if positive is None:
        kernel = kernels.binary_cross_entropy_with_logits_gradient
        return _elementwise(kernel, z, y, 1, weight, reduction, grad_output)
    dx = (1 - y) - (1 + (positive - 1) * y) * elementwise.apply(activation.sigmoid, None, -z)
    scale = losses.scaled(grad_output, dx.shape, reduction, dx.size if reduction == "mean" else 1)
    return _weighted(dx * scale.astype(dx.dtype), weight)


def mse_loss(input: np.ndarray, target: np.ndarray, *, reduction: str = "mean",
             grad_output: Any = 1.0) -> np.ndarray:
    """2 (input - target)."""
    x, y = losses.compared(input, target, reduction)
    return _elementwise(kernels.squared_error_gradient, x, y, 2, None, reduction, grad_output)


def _elementwise(kernel: Any, x: np.ndarray, y: np.ndarray, times: int, weight: Any, reduction: str,
                 grad_output: Any) -> np.ndarray:
    scale = losses.scaled(grad_output, x.shape, reduction, x.size if reduction == "mean" else 1)
    if scale.ndim == 0:
        return _weighted(elementwise.apply(kernel, None, x, y, times * float(scale)), weight)
    dx = elementwise.apply(kernel, None, x, y, times)
    dx *= scale.astype(dx.dtype)
    return _weighted(dx, weight)


def _weighted(dx: np.ndarray, weight: Any) -> np.ndarray:
    scale = losses.factor("weight", weight, dx)
    if scale is not None:
        dx *= scale
    return dx
