"""Gradients of batch normalisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastconv import check, memory, normalisation
from fastconv.check import Layout

Gradients = tuple[np.ndarray, np.ndarray, np.ndarray]


def batch_norm(input: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, inverse_std: np.ndarray,
               grad_output: np.ndarray, *, layout: Layout = "NCHW") -> Gradients:
    """Through the statistics of the batch: for each channel, with xhat = (x - mean) inverse_std,

    ``dx = weight inverse_std (dy - mean(dy) - xhat mean(dy xhat))``, ``dweight = sum(dy xhat)``,
    ``dbias = sum(dy)``.

    Args:
        input, weight, layout: those of the forward pass.
        mean, inverse_std: (C,), from :func:`fastconv.functional.batch_norm_training`.
        grad_output: of the input's shape and dtype.

    Returns:
        (grad_input, grad_weight, grad_bias); the latter two (C,).
    """
    found = _gathered(input, weight, mean, inverse_std, grad_output, layout)
    count = found.channels.elements
    offset, slope = found.bias / max(count, 1), found.weight * found.inverse_std / max(count, 1)
    return found.gradients(offset, slope)


def batch_norm_eval(input: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, inverse_std: np.ndarray,
                    grad_output: np.ndarray, *, layout: Layout = "NCHW") -> Gradients:
    """As :func:`batch_norm` where mean and inverse_std are constants: ``dx = weight inverse_std dy``."""
    found = _gathered(input, weight, mean, inverse_std, grad_output, layout)
    zeros = np.zeros(found.channels.depth)
    return found.gradients(zeros, zeros)


class _Gathered(NamedTuple):
    channels: normalisation.Channels
    dy: np.ndarray
    mean: np.ndarray
    inverse_std: np.ndarray
    scale: np.ndarray  # weight inverse_std
    weight: np.ndarray  # gradient, in float64
    bias: np.ndarray

    def gradients(self, offset: np.ndarray, slope: np.ndarray) -> Gradients:
        """dx = scale (dy - offset - slope (x - mean)), dweight and dbias."""
        kind = self.dy.dtype
        dx = memory.empty(self.dy.shape, kind)
        self.channels.launch(normalisation.GRADIENT, dx, self.dy, self.channels.x, self.mean, self.scale,
                             (self.scale * offset).astype(kind), (self.scale * slope).astype(kind))
        return dx, self.weight.astype(kind), self.bias.astype(kind)


def _gathered(input: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, inverse_std: np.ndarray,
              grad_output: np.ndarray, layout: Layout) -> _Gathered:
    found = normalisation.channels(input, layout)
    dy = check.array("grad_output", grad_output, None, found.x.dtype)
    check.shape("grad_output", dy, found.x.shape, "as input")
    mean, inverse_std = found.vector("mean", mean), found.vector("inverse_std", inverse_std)
    sums, products, _ = found.parts()
    found.launch(normalisation.PRODUCTS, sums, products, dy, found.x, mean)
    wide = inverse_std.astype(np.float64)
    return _Gathered(found, dy, mean, wide, found.vector("weight", weight, 1) * inverse_std,
                     products.sum(axis=0) * wide, sums.sum(axis=0))
