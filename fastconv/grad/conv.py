"""Gradients of convolution and transposed convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, memory
from fastconv.check import Layout
from fastconv.convolution import prepared, prepared_transpose, size4
from fastconv.grad.pool import check_positions, max_pool2d
from fastconv.kernels.conv_bias import bias_gradient
from fastconv.pooling import pooled_convolution


def conv2d_input(input_size: tuple[int, ...], weight: np.ndarray, grad_output: np.ndarray, stride: Any = 1,
                 padding: Any = 0, dilation: Any = 1, groups: int = 1, *, layout: Layout = "NCHW",
                 out: np.ndarray | None = None, algorithm: str = "auto") -> np.ndarray:
    """Gradient of :func:`fastconv.functional.conv2d` with respect to its input.

    The full convolution of dy with the flipped filters,
    ``dx[n,c,h,w] = sum_krs dy[n,k,i,j] w[k,c,r,s]`` over all i, j with i*u + r*d - p = h, j*u + s*d - p = w.

    Args:
        input_size: shape of the input, (N, C, H, W) or (N, H, W, C).
        weight: (K, C/groups, R, S).
        grad_output: shape of the output.

    Returns:
        Array of shape ``input_size``.
    """
    dy = check.array("grad_output", grad_output, 4)
    w = check.array("weight", weight, 4, dy.dtype)
    found, run = prepared("input_gradient", size4("input_size", input_size), w.shape, stride, padding,
                          dilation, groups, layout, dy.dtype.char, algorithm)
    check.shape("grad_output", dy, found.output_shape(layout), "(that of the output)")
    dx = check.output(out, found.input_shape(layout), dy.dtype, dy, w)
    if run is not None:
        run(dx, dy, w)
    return dx


def conv2d_weight(input: np.ndarray, weight_size: tuple[int, ...], grad_output: np.ndarray, stride: Any = 1,
                  padding: Any = 0, dilation: Any = 1, groups: int = 1, *, layout: Layout = "NCHW",
                  out: np.ndarray | None = None, algorithm: str = "auto") -> np.ndarray:
    """Gradient of :func:`fastconv.functional.conv2d` with respect to its filters.

    ``dw[k,c,r,s] = sum_nij dy[n,k,i,j] x[n,c,i*u+r*d-p,j*u+s*d-p]``

    Args:
        input: (N, C, H, W) or (N, H, W, C).
        weight_size: (K, C/groups, R, S).
        grad_output: shape of the output.

    Returns:
        Array of shape ``weight_size``.
    """
    x = check.array("input", input, 4)
    dy = check.array("grad_output", grad_output, 4, x.dtype)
    found, run = prepared("filter_gradient", x.shape, size4("weight_size", weight_size), stride, padding,
                          dilation, groups, layout, x.dtype.char, algorithm)
    check.shape("grad_output", dy, found.output_shape(layout), "(that of the output)")
    dw = check.output(out, found.weight_shape, x.dtype, x, dy)
    if run is None:
        dw.fill(0)
    else:
        run(dw, x, dy)
    return dw


def conv2d_max_pool2d_weight(input: np.ndarray, weight_size: tuple[int, ...], positions: np.ndarray,
                             grad_output: np.ndarray, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                             groups: int = 1, *, kernel_size: Any, layout: Layout = "NCHW") -> np.ndarray:
    """Gradient of :func:`fastconv.functional.conv2d_max_pool2d` with respect to its filters.

    As :func:`conv2d_weight` of :func:`max_pool2d`; in NHWC most direct convolutions make no array of the pixels.

    Args:
        positions: from :func:`fastconv.functional.conv2d_max_pool2d`.
        grad_output: of the same shape.
        kernel_size: of the pool.
        Others: those of the convolution.

    Returns:
        Array of shape ``weight_size``.
    """
    x = check.array("input", input, 4)
    dy = check.array("grad_output", grad_output, 4, x.dtype)
    size, geometry = size4("weight_size", weight_size), (stride, padding, dilation, groups)
    found, pool, run = pooled_convolution("filter_gradient", x.shape, size, *geometry, kernel_size, layout,
                                          x.dtype.char)
    if run is None:
        pixels = max_pool2d(found.output_shape(layout), positions, dy, kernel_size, layout=layout)
        return conv2d_weight(x, size, pixels, *geometry, layout=layout)
    check.shape("grad_output", dy, pool.output_size, "(that of the output)")
    where = check_positions(positions, dy, pool.plan.positions)
    dw = memory.empty(found.weight_shape, x.dtype)
    run(dw, x, (dy.reshape(-1), where.reshape(-1)))
    return dw


def conv2d_bias(grad_output: np.ndarray, *, layout: Layout = "NCHW") -> np.ndarray:
    """Gradient with respect to the bias, ``db[k] = sum_nij dy[n,k,i,j]``: (K,)."""
    dy = check.array("grad_output", grad_output, 4)
    check.layout(layout)
    return bias_gradient(dy, layout == "NHWC")


def conv_transpose2d_input(input_size: tuple[int, ...], weight: np.ndarray, grad_output: np.ndarray,
                           stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
                           dilation: Any = 1, *, layout: Layout = "NCHW") -> np.ndarray:
    """Gradient of :func:`fastconv.functional.conv_transpose2d` with respect to its input: a convolution."""
    dy = check.array("grad_output", grad_output, 4)
    w = check.array("weight", weight, 4, dy.dtype)
    found, run = prepared_transpose("forward", size4("input_size", input_size), w.shape, stride, padding,
                                    output_padding, groups, dilation, layout, dy.dtype.char)
    check.shape("grad_output", dy, found.input_shape(layout), "(that of the output)")
    dx = check.output(None, found.output_shape(layout), dy.dtype)
    if run is not None:
        run(dx, dy, w)
    return dx


def conv_transpose2d_weight(input: np.ndarray, weight_size: tuple[int, ...], grad_output: np.ndarray,
                            stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
                            dilation: Any = 1, *, layout: Layout = "NCHW") -> np.ndarray:
    """Gradient of :func:`fastconv.functional.conv_transpose2d` with respect to its filters: (K, C/groups, R, S)."""
    x = check.array("input", input, 4)
    dy = check.array("grad_output", grad_output, 4, x.dtype)
    found, run = prepared_transpose("filter_gradient", x.shape, size4("weight_size", weight_size), stride,
                                    padding, output_padding, groups, dilation, layout, x.dtype.char)
    check.shape("grad_output", dy, found.input_shape(layout), "(that of the output)")
    dw = check.output(None, found.weight_shape, x.dtype)
    if run is None:
        dw.fill(0)
    else:
        run(dw, dy, x)
    return dw
