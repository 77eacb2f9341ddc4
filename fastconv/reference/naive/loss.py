"""Losses, and their gradients with respect to the input.

`reduction` is "mean", "sum" or "none"; the first two give a scalar of the input's type. Logits and
log-probabilities are (N, C), labels (N) integers; the other losses take any shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import Array
from .activation import log_softmax, sigmoid

GradOutput = float | Array


def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Array:
    """-sum_c a[i,c] log softmax(input)[i,c]; see `_coefficients` for a."""
    a, divisor = _coefficients(input.shape, target, weight, reduction, label_smoothing, ignore_index)
    return _weighted_sum(a, log_softmax(input.astype(np.float64)), divisor, reduction, input.dtype)


def cross_entropy_grad(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    grad_output: GradOutput = 1.0,
) -> Array:
    """p sum_c(a) - a, over the divisor of the mean."""
    a, divisor = _coefficients(input.shape, target, weight, reduction, label_smoothing, ignore_index)
    p = np.exp(log_softmax(input.astype(np.float64)))
    return (_column(grad_output) * (p * a.sum(axis=1, keepdims=True) - a) / divisor).astype(input.dtype)


def cross_entropy_with_gradient(input: Array, target: Array, weight: Array | None = None,
                                **options: Any) -> tuple[Array, Array]:
    """The loss and its gradient."""
    return cross_entropy(input, target, weight, **options), cross_entropy_grad(input, target, weight, **options)


def nll_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Array:
    """The same on log-probabilities."""
    a, divisor = _coefficients(input.shape, target, weight, reduction, 0.0, ignore_index)
    return _weighted_sum(a, input.astype(np.float64), divisor, reduction, input.dtype)


def nll_loss_grad(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    grad_output: GradOutput = 1.0,
) -> Array:
    """-a, over the divisor of the mean."""
    a, divisor = _coefficients(input.shape, target, weight, reduction, 0.0, ignore_index)
    return (_column(grad_output) * -a / divisor).astype(input.dtype)


def binary_cross_entropy(
    input: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Array:
    """-[y log a + (1-y) log(1-a)], each logarithm at least -100, as torch's."""
    a, y = input.astype(np.float64), target.astype(np.float64)
    with np.errstate(divide="ignore"):
        logs, complements = np.maximum(np.log(a), -100), np.maximum(np.log1p(-a), -100)
    return _reduced(-(y * logs + (1 - y) * complements), weight, reduction, input.dtype)


def binary_cross_entropy_grad(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    grad_output: GradOutput = 1.0,
) -> Array:
    """(a - y) / (a (1-a)), the denominator at least 1e-12, as torch's."""
    a, y = input.astype(np.float64), target.astype(np.float64)
    slope = (a - y) / np.maximum(a * (1 - a), 1e-12)
    return _elementwise_grad(slope, weight, reduction, grad_output, input.dtype)


def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Array:
    """(1-y) z + (1 + (pos_weight-1) y) log(1 + exp(-z)), without overflow."""
    z, y = input.astype(np.float64), target.astype(np.float64)
    softplus = np.maximum(-z, 0) + np.log1p(np.exp(-np.abs(z)))
    return _reduced((1 - y) * z + _positive(y, pos_weight) * softplus, weight, reduction, input.dtype)


def binary_cross_entropy_with_logits_grad(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
    grad_output: GradOutput = 1.0,
) -> Array:
    """(1-y) - (1 + (pos_weight-1) y) sigmoid(-z)."""
    z, y = input.astype(np.float64), target.astype(np.float64)
    slope = (1 - y) - _positive(y, pos_weight) * sigmoid(-z)
    return _elementwise_grad(slope, weight, reduction, grad_output, input.dtype)


def mse_loss(input: Array, target: Array, *, reduction: str = "mean") -> Array:
    """(x - y)^2."""
    difference = input.astype(np.float64) - target
    return _reduced(difference**2, None, reduction, input.dtype)


def mse_loss_grad(
    input: Array, target: Array, *, reduction: str = "mean", grad_output: GradOutput = 1.0
) -> Array:
    """2 (x - y)."""
    difference = input.astype(np.float64) - target
    return _elementwise_grad(2 * difference, None, reduction, grad_output, input.dtype)


def _coefficients(
    shape: tuple[int, ...],
    target: Array,
    weight: Array | None,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Array, float]:
    """How much of -log p[i,c] is in the loss, and what a mean divides by.

    a[i,c] = (1-e) weight[t] [c = t] + e/C weight[c] for label t and smoothing e, 0 where t is ignored;
    the divisor is the sum of weight[t], for a sum 1.
    """
    classes = shape[1]
    class_weight = np.ones(classes) if weight is None else weight.astype(np.float64)
    counted = np.flatnonzero(target != ignore_index)
    labels = target[counted]
    a = np.zeros(shape)
    a[counted] = label_smoothing / classes * class_weight
    a[counted, labels] += (1 - label_smoothing) * class_weight[labels]
    return a, class_weight[labels].sum() if reduction == "mean" else 1.0


def _weighted_sum(a: Array, log_p: Array, divisor: float, reduction: str, dtype: np.dtype) -> Array:
    losses = -np.multiply(a, log_p, out=np.zeros(a.shape), where=a != 0).sum(axis=1)  # 0 * -inf is no loss
    if reduction == "none":
        return losses.astype(dtype)
    with np.errstate(invalid="ignore"):  # a mean over no sample is NaN, as torch's
        return (losses.sum() / divisor).astype(dtype)


def _reduced(losses: Array, weight: Array | None, reduction: str, dtype: np.dtype) -> Array:
    losses = losses if weight is None else losses * weight
    if reduction == "none":
        return losses.astype(dtype)
    return (losses.mean() if reduction == "mean" else losses.sum()).astype(dtype)


def _elementwise_grad(
    slope: Array, weight: Array | None, reduction: str, grad_output: GradOutput, dtype: np.dtype
) -> Array:
    slope = slope if weight is None else slope * weight
    return (grad_output * slope / (slope.size if reduction == "mean" else 1)).astype(dtype)


def _positive(y: Array, pos_weight: Array | None) -> Array:
    return np.ones(y.shape) if pos_weight is None else 1 + (pos_weight - 1) * y


def _column(grad_output: GradOutput) -> Array:
    """One gradient a sample as a column, a scalar as it is."""
    return np.asarray(grad_output, np.float64)[..., None]
