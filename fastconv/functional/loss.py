"""Losses, with torch's names and meaning.

``reduction`` is "mean", "sum" or "none": a scalar of the input's dtype, summed in float64, or one loss an element.
Arrays are float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import elementwise, losses, memory
from fastconv.kernels import loss as kernels


def cross_entropy(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                  reduction: str = "mean", label_smoothing: float = 0.0, ignore_index: int = -100) -> Any:
    """-log softmax(input)[target], fused so that nothing overflows, as ``torch.nn.functional.cross_entropy``.

    Args:
        input: logits (N, C), (N, C, d1, ...) or (C,).
        target: integer labels (N,), (N, d1, ...) or (), from 0 to C - 1.
        weight: (C,) weighs the classes; then the mean is the weighted one.
        label_smoothing: e in [0, 1] replaces the one-hot row by (1 - e) onehot + e/C.
        ignore_index: samples with this label have no loss, and do not count in the mean.

    Returns:
        A scalar, or with ``reduction="none"`` the losses in the shape of the target.

    Raises:
        ValueError: naming the first label out of range, and where it stands.
    """
    found = losses.classified(input, target, weight, reduction, ignore_index)
    smoothing = found.rows.dtype.type(losses.smoothing(label_smoothing))
    each = memory.empty(found.labels.shape, found.rows.dtype)
    kernels.cross_entropy.twin(found.rows.size * 5 * elementwise.MICROSECONDS)(
        each, found.rows.reshape(-1), found.labels, found.weight, found.total_weight, smoothing,
        found.rows_a_block)
    return losses.reduced(each.reshape(found.shape), reduction, found.divisor)


def cross_entropy_with_gradient(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                                reduction: str = "mean", label_smoothing: float = 0.0,
                                ignore_index: int = -100) -> tuple[Any, np.ndarray]:
    """:func:`cross_entropy`, and its gradient with respect to the input, in one pass.

    With ``reduction="none"`` the gradient is that of the losses' sum.
    """
    found = losses.classified(input, target, weight, reduction, ignore_index)
    scale = losses.scaled(1.0, found.shape, reduction, found.divisor)
    each, dx = losses.cross_entropy_of_rows(found, label_smoothing, scale)
    return losses.reduced(each.reshape(found.shape), reduction, found.divisor), found.like_input(dx)


def nll_loss(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
             reduction: str = "mean", ignore_index: int = -100) -> Any:
    """-input[target] of log-probabilities; arguments as for :func:`cross_entropy`."""
    found = losses.classified(input, target, weight, reduction, ignore_index)
    kept = found.labels >= 0
    labels = found.labels[kept]
    each = np.zeros(found.labels.shape, found.rows.dtype)
    each[kept] = -found.weight[labels] * found.rows[kept, labels]
    return losses.reduced(each.reshape(found.shape), reduction, found.divisor)


def binary_cross_entropy(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                         reduction: str = "mean") -> Any:
    """-[y log a + (1 - y) log(1 - a)] of probabilities a and targets y, each logarithm at least -100, as torch.

    Args:
        input, target: of one shape, from 0 to 1.
        weight: scales the losses; broadcasts to their shape.

    Raises:
        ValueError: naming the first number that is no probability (NaN is none), and where it stands.
    """
    a, y = losses.compared(input, target, reduction)
    losses.probabilities("input", a)
    return _elementwise(kernels.binary_cross_entropy, a, losses.probabilities("target", y), weight, reduction)


def binary_cross_entropy_with_logits(input: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *,
                                     reduction: str = "mean", pos_weight: np.ndarray | None = None) -> Any:
    """:func:`binary_cross_entropy` of sigmoid(input), without overflow or loss of precision.

    ``pos_weight`` scales the term of positive targets; it broadcasts to the input's shape.
    """
    z, y = losses.compared(input, target, reduction)
    losses.probabilities("target", y)
    positive = losses.factor("pos_weight", pos_weight, z)
    if positive is None:
        return _elementwise(kernels.binary_cross_entropy_with_logits, z, y, weight, reduction)
    each = (1 - y) * z + (1 + (positive - 1) * y) * elementwise.apply(kernels.softplus, None, -z)
    return _weighted(each, weight, reduction)


def mse_loss(input: np.ndarray, target: np.ndarray, *, reduction: str = "mean") -> Any:
    """(input - target)^2 of two arrays of one shape."""
    x, y = losses.compared(input, target, reduction)
    return _elementwise(kernels.squared_error, x, y, None, reduction)


def _elementwise(kernel: Any, x: np.ndarray, y: np.ndarray, weight: Any, reduction: str) -> Any:
    return _weighted(elementwise.apply(kernel, None, x, y), weight, reduction)


def _weighted(each: np.ndarray, weight: Any, reduction: str) -> Any:
    scale = losses.factor("weight", weight, each)
    if scale is not None:
        each *= scale
    return losses.reduced(each, reduction, each.size if reduction == "mean" else 1)
