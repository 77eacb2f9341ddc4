"""The gate of every loss: labels, probabilities, weights and reductions."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from fastconv import check, elementwise, memory
from fastconv.kernels import loss as kernels
from fastconv.kernels.activation import BLOCK

REDUCTIONS = ("mean", "sum", "none")


class Classified(NamedTuple):
    """Rows of scores, one a sample, and what their loss is made with."""

    rows: np.ndarray  # (samples, C)
    labels: np.ndarray  # (samples,) int64, -1 where ignored
    shape: tuple[int, ...]  # of the target
    weight: np.ndarray  # (C,)
    total_weight: Any  # their sum, a scalar of their dtype
    divisor: float  # of the mean: the sum of the labels' weights; 1 for the other reductions

    @property
    def rows_a_block(self) -> int:
        """Of a unit of parallel work: a few of its logits weigh as much as an element elsewhere."""
        return max(1, BLOCK // 8 // len(self.weight))

    def per_sample(self, scale: np.ndarray) -> np.ndarray:
        """One number, or one a label, as one a sample."""
        each = np.empty(self.shape, self.rows.dtype)
        each[...] = scale
        return each.reshape(-1)

    def like_input(self, rows: np.ndarray) -> np.ndarray:
        """Rows back in the input's order of dimensions."""
        if len(self.shape) < 2:
            return rows.reshape(*self.shape, -1)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(*self.shape, -1), -1, 1))


def classified(input: Any, target: Any, weight: Any, reduction: Any, ignore_index: int) -> Classified:
    """Checked scores (N, C), (N, C, d1, ...) or (C,) with labels (N,), (N, d1, ...) or ()."""
    check.one_of("reduction", reduction, REDUCTIONS)
    x = check.array("input", input)
    if x.ndim == 0:
        raise ValueError("input must have a dimension of classes, got a single number")
    axis = min(1, x.ndim - 1)
    classes = x.shape[axis]
    if classes == 0:
        raise ValueError(f"input must have at least one class, got shape {x.shape}")
    labels, counted = _labels(target, x.shape[:axis] + x.shape[axis + 1:], classes, ignore_index)
    rows = x if x.ndim < 3 else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    weights, total, divisor = _ones(classes, x.dtype), x.dtype.type(classes), float(counted)
    if weight is not None:
        weights = check.array("weight", weight, 1, x.dtype)
        check.shape("weight", weights, (classes,), "(one number a class)")
        total, divisor = x.dtype.type(weights.sum(dtype=np.float64)), weights[labels[labels >= 0]].sum(dtype=np.float64)
    return Classified(rows.reshape(-1, classes), labels.reshape(-1), labels.shape, weights, total,
                      float(divisor) if reduction == "mean" else 1.0)


@functools.lru_cache(maxsize=64)
def _ones(classes: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(classes, dtype)


def _labels(target: Any, shape: tuple[int, ...], classes: int, ignore_index: int) -> tuple[np.ndarray, int]:
    """Checked labels as contiguous int64, -1 where ignored, and how many are not."""
    array = np.asarray(target)
    if array.dtype.kind not in "iu":
        raise TypeError(f"target must be integer class labels, got {array.dtype}; of one-hot rows or probabilities "
                        "write target.argmax(1)")
    check.shape("target", array, shape, "(a label for each row of classes)")
    plain = array.dtype == np.int64 and array.flags.carray and not 0 <= ignore_index < classes
    if plain and kernels.all_labels(array.reshape(-1), classes):
        return array, array.size
    labels = np.array(array, np.int64, order="C")
    labels[array == ignore_index] = -1
    outside = labels.view(np.uint64) >= classes  # negative ones too
    if outside.any():
        wrong = outside & (array != ignore_index)
        if wrong.any():
            first = _first(wrong)
            raise ValueError(f"target must be labels from 0 to {classes - 1}, got {array[first]} at {list(first)}")
    return labels, int(np.count_nonzero(labels >= 0))


def _first(flags: np.ndarray) -> tuple[int, ...]:
    return tuple(map(int, np.argwhere(flags)[0]))


def smoothing(value: float) -> float:
    """A label smoothing from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {value}")
    return float(value)


def cross_entropy_of_rows(found: Classified, label_smoothing: float,
                          scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss (samples,) and gradient (samples, C), the latter times ``scale``: one number, or one a sample."""
    kind = found.rows.dtype
    each, dx = memory.empty(found.labels.shape, kind), memory.empty(found.rows.shape, kind)
    kernels.cross_entropy_with_gradient.twin(dx.size * 8 * elementwise.MICROSECONDS)(
        each, dx.reshape(-1), found.rows.reshape(-1), found.labels, found.weight, found.total_weight,
        kind.type(smoothing(label_smoothing)), found.per_sample(scale), found.rows_a_block)
    return each, dx


def compared(input: Any, target: Any, reduction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two checked arrays of one shape and dtype, and a checked reduction."""
    check.one_of("reduction", reduction, REDUCTIONS)
    return elementwise.pair_of("input", input, "target", target)


def probabilities(name: str, array: np.ndarray) -> np.ndarray:
    """The array, once all of it is in [0, 1]; NaN is not."""
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        first = _first(~((array >= 0) & (array <= 1)))
        raise ValueError(f"{name} must be probabilities from 0 to 1, got {array[first]} at {list(first)}")
    return array


def factor(name: str, value: Any, like: np.ndarray) -> np.ndarray | None:
    """A weight that broadcasts to the shape of the losses, or None."""
    if value is None:
        return None
    array = check.array(name, value, None, like.dtype)
    try:
        return np.broadcast_to(array, like.shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to shape {like.shape}, got {array.shape}") from None


def reduced(losses: np.ndarray, reduction: str, divisor: float) -> Any:
    """The losses themselves, or their sum in float64 over ``divisor``, as a scalar of their dtype."""
    if reduction == "none":
        return losses
    total = kernels.total(losses.reshape(-1))
    return losses.dtype.type(total / divisor if divisor else np.nan)  # a mean over no element is NaN, as torch's


def scaled(grad_output: Any, shape: tuple[int, ...], reduction: str, divisor: float) -> np.ndarray:
    """The gradient of each element's loss: a scalar, or for "none" an array of ``shape``."""
    gradient = np.asarray(grad_output, np.float64)
    allowed = ((), shape) if reduction == "none" else ((),)
    if gradient.shape not in allowed:
        raise ValueError(f'grad_output must be a number{" or of shape " * (len(allowed) > 1)}'
                         f"{shape if len(allowed) > 1 else ''} for reduction={reduction!r}, got shape {gradient.shape}")
    return gradient / divisor if divisor else np.full_like(gradient, np.nan)
