"""Activations and dropout, forward. Arrays of any shape, float32 or float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, elementwise, memory
from fastconv.kernels import activation as kernels


def relu(input: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """max(0, input); NaN stays NaN."""
    return elementwise.apply(kernels.relu, out, check.array("input", input))


def leaky_relu(input: np.ndarray, negative_slope: float = 0.01, *, out: np.ndarray | None = None) -> np.ndarray:
    """input where it is positive, else negative_slope * input."""
    return elementwise.apply(kernels.leaky_relu, out, check.array("input", input), negative_slope)


def tanh(input: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """The hyperbolic tangent, within 3 units in the last place."""
    return elementwise.apply(kernels.tanh, out, check.array("input", input))


def sigmoid(input: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """1 / (1 + exp(-input)), within 3 units in the last place."""
    return elementwise.apply(kernels.sigmoid, out, check.array("input", input))


def softmax(input: np.ndarray, dim: int = -1, *, out: np.ndarray | None = None) -> np.ndarray:
    """exp(input) over its sum along ``dim``, computed from input - max so that nothing overflows."""
    return elementwise.along(kernels.softmax, dim, out, input=check.array("input", input))


def log_softmax(input: np.ndarray, dim: int = -1, *, out: np.ndarray | None = None) -> np.ndarray:
    """log(softmax(input, dim)), without the loss of precision: z - max z - log sum exp(z - max z)."""
    return elementwise.along(kernels.log_softmax, dim, out, input=check.array("input", input))


def dropout(input: np.ndarray, p: float = 0.5, training: bool = True, *,
            rng: np.random.Generator | int | None = None) -> np.ndarray:
    """In training zeroes each element with probability ``p`` and scales the rest by 1/(1 - p); else a copy.

    Args:
        rng: a NumPy generator or a seed, of which the mask is a function, whatever the number of threads.
    """
    if not training:
        elementwise.keep_scale(p)
        return check.array("input", input).copy()
    return dropout_with_mask(input, p, rng=rng)[0]


def dropout_with_mask(input: np.ndarray, p: float = 0.5, *,
                      rng: np.random.Generator | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """:func:`dropout` in training, and the mask of what was kept (uint8, 1 is kept), as its gradient takes it."""
    x, scale = check.array("input", input), elementwise.keep_scale(p)
    key: Any = np.random.default_rng(rng).integers(2**64, dtype=np.uint64)
    y, mask = memory.empty(x.shape, x.dtype), memory.empty(x.shape, np.uint8)
    threshold = np.uint64(min(int(p * 2**64), 2**64 - 1))
    kernels.dropout.twin(x.size * 1e-3)(y.reshape(-1), mask.reshape(-1), x.reshape(-1), key, threshold,
                                        x.dtype.type(scale))
    return y, mask
