"""Batch normalisation of (N, C), (N, C, H, W) or (N, H, W, C) inputs: statistics per channel.

xhat = (x - mean) / sqrt(var + eps) and y = weight xhat + bias.
"""

from __future__ import annotations

import numpy as np

from ..geometry import Array


def batch_norm_training(
    input: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    """Output, mean and 1/sqrt(var + eps) of the batch, with its biased variance.

    The running statistics move in place by `momentum` towards the mean and the unbiased variance, as torch's.
    """
    x, axes = input.astype(np.float64), _reduced(input, layout)
    mean, variance = x.mean(axis=axes), x.var(axis=axes)
    count = x.size // max(mean.size, 1)
    unbiased = variance * count / max(count - 1, 1)
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        if running is not None:
            running[...] = (1 - momentum) * running.astype(np.float64) + momentum * batch
    inverse_std = 1 / np.sqrt(variance + eps)
    y = _affine(x, mean, inverse_std, weight, bias, axes)
    return y.astype(input.dtype), mean.astype(input.dtype), inverse_std.astype(input.dtype)


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
) -> Array:
    """As torch.nn.functional.batch_norm: by the batch's statistics in training, else by the running ones."""
    if training:
        return batch_norm_training(
            input, weight, bias, running_mean, running_var, momentum, eps, layout=layout
        )[0]
    if running_mean is None or running_var is None:
        raise ValueError("evaluation needs running_mean and running_var")
    x, inverse_std = input.astype(np.float64), 1 / np.sqrt(running_var.astype(np.float64) + eps)
    return _affine(x, running_mean, inverse_std, weight, bias, _reduced(input, layout)).astype(input.dtype)


def batch_norm_grad(
    input: Array,
    weight: Array | None,
    mean: Array,
    inverse_std: Array,
    grad_output: Array,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    """dx, dweight and dbias through the batch's statistics.

    dx = weight inverse_std (dy - mean(dy) - xhat mean(dy xhat)), the means per channel.
    """
    dx, xhat, dweight, dbias = _constant_statistics(input, weight, mean, inverse_std, grad_output, layout)
    axes = _reduced(input, layout)
    dx -= dx.mean(axis=axes, keepdims=True) + xhat * (dx * xhat).mean(axis=axes, keepdims=True)
    return dx.astype(input.dtype), dweight.astype(input.dtype), dbias.astype(input.dtype)


def batch_norm_eval_grad(
    input: Array,
    weight: Array | None,
    mean: Array,
    inverse_std: Array,
    grad_output: Array,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    """dx, dweight and dbias where mean and inverse_std are constants."""
    dx, _, dweight, dbias = _constant_statistics(input, weight, mean, inverse_std, grad_output, layout)
    return dx.astype(input.dtype), dweight.astype(input.dtype), dbias.astype(input.dtype)


def _constant_statistics(
    input: Array, weight: Array | None, mean: Array, inverse_std: Array, grad_output: Array, layout: str
) -> tuple[Array, Array, Array, Array]:
    """dx = dy weight inverse_std, xhat, dweight and dbias, in float64."""
    x, dy, axes = input.astype(np.float64), grad_output.astype(np.float64), _reduced(input, layout)
    xhat = _affine(x, mean, inverse_std, None, None, axes)
    dx = _affine(dy, np.zeros(mean.shape), inverse_std, weight, None, axes)
    return dx, xhat, (dy * xhat).sum(axis=axes), dy.sum(axis=axes)


def _affine(
    x: Array, mean: Array, inverse_std: Array, weight: Array | None, bias: Array | None, axes: tuple[int, ...]
) -> Array:
    y = (x - np.expand_dims(mean, axes)) * np.expand_dims(inverse_std, axes)
    if weight is not None:
        y = y * np.expand_dims(weight, axes)
    return y if bias is None else y + np.expand_dims(bias, axes)


def _reduced(array: Array, layout: str) -> tuple[int, ...]:
    """Every axis but the channels'."""
    channel_axis = array.ndim - 1 if layout == "NHWC" else 1
    return tuple(axis for axis in range(array.ndim) if axis != channel_axis)
