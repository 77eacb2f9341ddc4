"""Gradients of pooling with respect to its input."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, memory, pooling
from fastconv.check import Layout
from fastconv.convolution import size4
from fastconv.kernels import pool as kernels
from fastconv.kernels.conv_bias import pooled_bias_gradient


def max_pool2d(input_size: Any, positions: np.ndarray, grad_output: np.ndarray, kernel_size: Any,
               stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, *,
               layout: Layout = "NCHW") -> np.ndarray:
    """Each gradient goes to where the largest of its window stood, and nowhere else.

    Args:
        input_size: shape of the input, (N, C, H, W) or (N, H, W, C).
        positions: from :func:`fastconv.functional.max_pool2d_with_positions`.
        grad_output: (N, C, P, Q) or (N, P, Q, C); float32 or float64.
        kernel_size, stride, padding, dilation, ceil_mode, layout: those of the pool.

    Returns:
        Gradient of ``input_size``: the sum of what the windows over a pixel send there, in a fixed order.
    """
    dy = check.array("grad_output", grad_output, 4)
    found = pooling.max_pool(size4("input_size", input_size), kernel_size, stride, padding, dilation, ceil_mode,
                             layout)
    check.shape("grad_output", dy, found.output_size, f"for input_size {found.input_size}")
    where = check_positions(positions, dy, found.plan.positions)
    dx = memory.empty(found.input_size, dy.dtype)
    found.plan.backward_kernel(dx.reshape(-1), where.reshape(-1), dy.reshape(-1),
                               *found.plan.backward)
    return dx


def max_pool2d_bias(positions: np.ndarray, grad_output: np.ndarray, kernel_size: Any, *,
                    layout: Layout = "NCHW") -> np.ndarray:
    """Gradient of a bias that is added before a max-pool: the sum of :func:`max_pool2d` over images and pixels.

    It is taken over the windows, a fraction of the pixels.

    Args:
        positions, grad_output, kernel_size: those of :func:`max_pool2d`.

    Returns:
        (C,)
    """
    dy = check.array("grad_output", grad_output, 4)
    check.layout(layout)
    rows, columns = check.pair("kernel_size", kernel_size, 1)
    where = check_positions(positions, dy, np.min_scalar_type(rows * columns))
    return pooled_bias_gradient(dy, where, rows * columns, layout == "NHWC")


def check_positions(positions: np.ndarray, dy: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Positions of the windows whose gradients are ``dy``, contiguous."""
    where = np.asarray(positions)
    if where.dtype != dtype:
        raise TypeError(f"positions must be {dtype}, as max_pool2d_with_positions returns them, got {where.dtype}")
    check.shape("positions", where, dy.shape, "as grad_output")
    return np.ascontiguousarray(where)


def max_unpool2d(indices: np.ndarray, grad_output: np.ndarray, *, layout: Layout = "NCHW") -> np.ndarray:
    """Each input takes the gradient of the pixel it was put in.

    Args:
        indices: integers (N, C, P, Q) or (N, P, Q, C), as given to :func:`fastconv.functional.max_unpool2d`.
        grad_output: (N, C, H, W) or (N, H, W, C); float32 or float64.

    Returns:
        Gradient with respect to the input, of the shape of ``indices``.
    """
    dy = check.array("grad_output", grad_output, 4)
    sizes = pooling.images(dy.shape, layout)
    shape = np.shape(indices)
    if len(shape) != 4 or pooling.images(shape, layout)[:2] != sizes[:2]:
        raise ValueError(f"indices must have the images and channels of grad_output {dy.shape} ({layout}), got shape "
                         f"{shape}")
    places = pooling.indices(indices, shape, sizes.h * sizes.w)
    dx = memory.empty(shape, dy.dtype)
    kernels.unpool_gradient.twin(dx.size * 1e-3)(
        dx.reshape(-1), dy.reshape(-1), places.reshape(-1),
        *pooling.unpool_sizes(shape, sizes.h * sizes.w, layout))
    return dx


def avg_pool2d(input_size: Any, grad_output: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None, *,
               layout: Layout = "NCHW") -> np.ndarray:
    """Spreads each gradient evenly over its window, by the pool's divisor.

    Args:
        input_size: shape of the input, (N, C, H, W) or (N, H, W, C).
        grad_output: (N, C, P, Q) or (N, P, Q, C); float32 or float64.
        Others: those of the pool.

    Returns:
        Gradient of ``input_size``.
    """
    dy = check.array("grad_output", grad_output, 4)
    found = pooling.average_pool(size4("input_size", input_size), kernel_size, stride, padding, ceil_mode,
                                 count_include_pad, divisor_override, layout, dy.dtype.char)
    return _spread(found, dy)


def adaptive_avg_pool2d(input_size: Any, grad_output: np.ndarray, *, layout: Layout = "NCHW") -> np.ndarray:
    """Spreads each gradient evenly over its region; arguments as for :func:`avg_pool2d`."""
    dy = check.array("grad_output", grad_output, 4)
    size = size4("input_size", input_size)
    target = pooling.images(dy.shape, layout)
    return _spread(pooling.adaptive_average_pool(size, (target.h, target.w), layout, dy.dtype.char), dy)


def _spread(found: pooling.AveragePool, dy: np.ndarray) -> np.ndarray:
    check.shape("grad_output", dy, found.output_size, f"for input_size {found.input_size}")
    dx = memory.empty(found.input_size, dy.dtype)
    found.plan.backward_kernel(dx.reshape(-1), dy.reshape(-1), *found.plan.backward)
    return dx
