"""Batch normalisation, forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import normalisation
from fastconv.check import Layout


def batch_norm(input: np.ndarray, running_mean: np.ndarray | None, running_var: np.ndarray | None,
               weight: np.ndarray | None = None, bias: np.ndarray | None = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-5, *, layout: Layout = "NCHW") -> np.ndarray:
    """weight (x - mean)/sqrt(var + eps) + bias per channel, as ``torch.nn.functional.batch_norm``.

    In training mean and biased variance are the batch's, and move the running ones in place (see
    :func:`batch_norm_training`); else the running ones stand in for them.

    Args:
        input: (N, C) or (N, C, H, W), or with ``layout="NHWC"`` (N, H, W, C); float32 or float64.
        running_mean, running_var, weight, bias: (C,), of the input's dtype; weight None is 1, bias None is 0.
        momentum: how far the running statistics move.
        eps: keeps the root away from 0.
    """
    if training:
        return batch_norm_training(input, weight, bias, running_mean, running_var, momentum, eps, layout=layout)[0]
    found = normalisation.channels(input, layout)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value is None:
            raise ValueError(f"{name} must be an array of {found.depth} numbers in evaluation, got None")
    mean = found.vector("running_mean", running_mean)
    variance = found.vector("running_var", running_var)
    inverse_std = 1 / np.sqrt(variance + found.x.dtype.type(eps))
    return normalisation.normalised(found, mean, inverse_std, weight, bias)


def batch_norm_training(input: np.ndarray, weight: np.ndarray | None = None, bias: np.ndarray | None = None,
                        running_mean: np.ndarray | None = None, running_var: np.ndarray | None = None,
                        momentum: float = 0.1, eps: float = 1e-5, *,
                        layout: Layout = "NCHW") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`batch_norm` in training, with what its gradient takes.

    Sums are taken in float64 around the mean of each part of the input, so a mean far from zero costs nothing.
    Running statistics move in place: running += momentum (batch - running), by the unbiased variance.

    Returns:
        (output, mean, inverse_std), the latter two (C,), with 1/sqrt(var + eps) of the biased variance.
    """
    found = normalisation.channels(input, layout)
    if found.elements < 2:
        raise ValueError(f"input must have more than one element a channel in training, got shape {found.x.shape}")
    running = [_writable(name, value, found) for name, value in
               (("running_mean", running_mean), ("running_var", running_var)) if value is not None]
    y, wide_mean, variance = normalisation.normalised_by_batch(found, weight, bias, eps)
    mean, inverse_std = normalisation.narrowed(found, wide_mean, variance, eps)
    for array, batch in zip(running, (wide_mean, variance * (found.elements / (found.elements - 1)))):
        array += momentum * (batch - array)
    return y, mean, inverse_std


def _writable(name: str, value: Any, found: normalisation.Channels) -> np.ndarray:
    found.vector(name, value)
    if not isinstance(value, np.ndarray) or not value.flags.writeable:
        raise ValueError(f"{name} must be a writable NumPy array: it is updated in place")
    return value
