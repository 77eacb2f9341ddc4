"""Gradients of batch normalisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastconv import check, elementwise, memory, normalisation
from fastconv.check import Layout
from fastconv.kernels.norm import channel_gradient

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
    found = _checked(input, weight, mean, inverse_std, grad_output, layout)
    if found.channels.alone(3):
        return found.gradients_by_channel()
    weight_gradient, bias_gradient = sums = found.sums()
    count = max(found.channels.elements, 1)
    return found.gradients(sums, bias_gradient / count, weight_gradient * found.inverse_std / count)


def batch_norm_eval(input: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, inverse_std: np.ndarray,
                    grad_output: np.ndarray, *, layout: Layout = "NCHW") -> Gradients:
    """As :func:`batch_norm` where mean and inverse_std are constants: ``dx = weight inverse_std dy``."""
    found = _checked(input, weight, mean, inverse_std, grad_output, layout)
    zeros = np.zeros(found.channels.depth)
    return found.gradients(found.sums(), zeros, zeros)


class _Checked(NamedTuple):
    channels: normalisation.Channels
    dy: np.ndarray
    mean: np.ndarray
    inverse_std: np.ndarray  # in float64
    scale: np.ndarray  # weight inverse_std

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of weight and bias, in float64."""
        sums, products, _ = self.channels.parts()
        self.channels.launch(normalisation.PRODUCTS, sums, products, self.dy, self.channels.x, self.mean)
        return products.sum(axis=0) * self.inverse_std, sums.sum(axis=0)

    def gradients(self, sums: tuple[np.ndarray, np.ndarray], offset: np.ndarray, slope: np.ndarray) -> Gradients:
        """dx = scale (dy - offset - slope (x - mean)), and the sums in its dtype."""
        kind = self.dy.dtype
        dx = memory.empty(self.dy.shape, kind)
        self.channels.launch(normalisation.GRADIENT, dx, self.dy, self.channels.x, self.mean, self.scale,
                             (self.scale * offset).astype(kind), (self.scale * slope).astype(kind))
        weight, bias = sums
        return dx, weight.astype(kind), bias.astype(kind)

    def gradients_by_channel(self) -> Gradients:
        """Those through the batch's statistics, of one channel after another."""
        kind, depth = self.dy.dtype, self.channels.depth
        dx, sums, products = memory.empty(self.dy.shape, kind), np.empty(depth), np.empty(depth)
        channel_gradient.twin(dx.size * elementwise.MICROSECONDS)(
            dx.reshape(-1), sums, products, self.dy.reshape(-1), self.channels.x.reshape(-1), self.mean,
            self.inverse_std, self.scale, self.channels.pixels)
        return dx, (products * self.inverse_std).astype(kind), sums.astype(kind)


def _checked(input: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, inverse_std: np.ndarray,
             grad_output: np.ndarray, layout: Layout) -> _Checked:
    found = normalisation.channels(input, layout)
    dy = check.array("grad_output", grad_output, None, found.x.dtype)
    check.shape("grad_output", dy, found.x.shape, "as input")
    mean, inverse_std = found.vector("mean", mean), found.vector("inverse_std", inverse_std)
    scale = found.vector("weight", weight, 1) * inverse_std
    return _Checked(found, dy, mean, inverse_std.astype(np.float64), scale)
