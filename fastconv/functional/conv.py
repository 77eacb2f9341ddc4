"""Convolution and transposed convolution, forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, memory
from fastconv.check import Layout
from fastconv.convolution import bias_vector, prepared, prepared_transpose
from fastconv.functional.pool import max_pool2d_with_positions
from fastconv.pooling import pooled_convolution


def conv2d(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1, *, layout: Layout = "NCHW", out: np.ndarray | None = None,
           algorithm: str = "auto") -> np.ndarray:
    """Two-dimensional convolution layer (cross-correlation), as ``torch.nn.functional.conv2d``.

    ``y[n,k,i,j] = b[k] + sum_crs x[n,c,i*u+r*d-p,j*u+s*d-p] w[k,c,r,s]``

    Args:
        input: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float32 or float64.
        weight: (K, C/groups, R, S) in either layout.
        bias: (K,) or None.
        stride, dilation: an integer or a pair (rows, columns), in pixels.
        padding: an integer, a pair, ((top, bottom), (left, right)), "valid", or "same" (stride 1 only).
        groups: divides C and K; input channels of one group reach output channels of that group only.
        out: array to write into; it must fit exactly and overlap no input.
        algorithm: "auto", or one that ``fastconv explain`` lists.

    Returns:
        (N, K, P, Q) or (N, P, Q, K), P = floor((H + 2p - d(R-1) - 1) / u) + 1.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it may be.
    """
    x = check.array("input", input, 4)
    w = check.array("weight", weight, 4, x.dtype)
    found, run = prepared("forward", x.shape, w.shape, stride, padding, dilation, groups, layout, x.dtype.char,
                          algorithm)
    b = bias_vector(bias, x.dtype, found.k)
    y = check.output(out, found.output_shape(layout), x.dtype, x, w, b)
    if run is not None:
        run(y, x, w, b)
    return y


def conv2d_max_pool2d(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1,
                      padding: Any = 0, dilation: Any = 1, groups: int = 1, *, kernel_size: Any, relu: bool = False,
                      layout: Layout = "NCHW") -> tuple[np.ndarray, np.ndarray]:
    """:func:`conv2d`, then :func:`max_pool2d_with_positions`, to the same bits.

    In NHWC most direct convolutions pool in the same pass: what is convolved never leaves the cache.

    Args:
        kernel_size: of the pool, an integer or a pair (rows, columns); its stride is the same.
        relu: ReLU of the largest, as for the pool.
        Others: those of the convolution.

    Returns:
        (output, positions) of the pool, both (N, K, P // rows, Q // columns), or channels last.
    """
    x = check.array("input", input, 4)
    w = check.array("weight", weight, 4, x.dtype)
    geometry = stride, padding, dilation, groups
    found, pool, run = pooled_convolution("forward", x.shape, w.shape, *geometry, kernel_size, layout, x.dtype.char)
    if run is None:
        y = conv2d(x, w, bias, *geometry, layout=layout)
        return max_pool2d_with_positions(y, kernel_size, relu=relu, layout=layout)
    b = bias_vector(bias, x.dtype, found.k)
    y, positions = (memory.empty(pool.output_size, dtype) for dtype in (x.dtype, pool.plan.positions))
    run(y.reshape(-1), positions.reshape(-1), x, w, np.empty(0, x.dtype) if b is None else b, int(relu))
    return y, positions


def convolve2d(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1,
               padding: Any = 0, dilation: Any = 1, groups: int = 1, *, layout: Layout = "NCHW",
               out: np.ndarray | None = None, algorithm: str = "auto") -> np.ndarray:
    """The mathematician's convolution: as :func:`conv2d` with the kernel flipped in rows and columns."""
    w = check.array("weight", weight, 4)
    return conv2d(input, np.ascontiguousarray(w[:, :, ::-1, ::-1]), bias, stride, padding, dilation, groups,
                  layout=layout, out=out, algorithm=algorithm)


def conv_transpose2d(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1,
                     padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *,
                     layout: Layout = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
    """Transposed convolution, as ``torch.nn.functional.conv_transpose2d``: the input gradient of a convolution.

    Args:
        input: (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``.
        weight: (K, C/groups, R, S).
        bias: (C,) or None.
        output_padding: rows and columns added at the bottom and right, less than stride or dilation.

    Returns:
        (N, C, H, W) or (N, H, W, C), H = (P-1)u - 2p + d(R-1) + output_padding + 1.
    """
    x = check.array("input", input, 4)
    w = check.array("weight", weight, 4, x.dtype)
    found, run = prepared_transpose("input_gradient", x.shape, w.shape, stride, padding, output_padding,
                                    groups, dilation, layout, x.dtype.char)
    b = bias_vector(bias, x.dtype, found.c)
    y = check.output(out, found.input_shape(layout), x.dtype, x, w, b)
    if run is not None:
        run(y, x, w, b)
    return y
