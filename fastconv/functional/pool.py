"""Pooling, forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, memory, pooling
from fastconv.check import Layout
from fastconv.kernels import pool as kernels
from fastconv.kernels.pool_plan import index_parts


def max_pool2d(input: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False, *, relu: bool = False, layout: Layout = "NCHW",
               out: np.ndarray | None = None) -> Any:
    """The largest of each window, as ``torch.nn.functional.max_pool2d``.

    ``y[n,c,i,j] = max_rs x[n,c,i*u+r*d-p,j*u+s*d-p]``: padding never wins, NaN always does.

    Args:
        input: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float32 or float64.
        kernel_size, stride, dilation: an integer or a pair (rows, columns), in pixels; stride None is kernel_size.
        padding: an integer, a pair, or ((top, bottom), (left, right)); at most half the kernel.
        ceil_mode: also windows that hang over the end, unless they start in the padding there.
        return_indices: also return where the largest stood.
        relu: ReLU of it, in the same pass; what is not positive stood nowhere, index -1, and gets no gradient.
        out: array to write into; it must fit exactly and overlap no input.

    Returns:
        (N, C, P, Q) or (N, P, Q, C), P = floor((H + 2p - d(R-1) - 1) / u) + 1; with ``return_indices`` a pair of
        it and int64 indices h W + w of the same shape. Of equals the first wins, of several NaN the last. A window
        that lies wholly in the padding gives -inf and index -1.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it may be.
    """
    x = check.array("input", input, 4)
    found = pooling.max_pool(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    y = check.output(out, found.output_size, x.dtype, x)
    positions = memory.empty(found.output_size, found.plan.positions) if return_indices else None
    found.plan.forward_kernel(y.reshape(-1), None if positions is None else positions.reshape(-1), x.reshape(-1),
                              *(found.plan.forward_relu if relu else found.plan.forward))
    return y if positions is None else (y, _flat_indices(found, positions, layout))


def max_pool2d_with_positions(input: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0,
                              dilation: Any = 1, ceil_mode: bool = False, *, relu: bool = False,
                              layout: Layout = "NCHW") -> tuple[np.ndarray, np.ndarray]:
    """:func:`max_pool2d` with the position r S + s of each largest in its window, as its gradient takes it.

    Returns:
        (output, positions), both of the output's shape; positions are uint8 up to 255 cells, then uint16. With ``relu``
        what is not positive has position R S.
    """
    x = check.array("input", input, 4)
    found = pooling.max_pool(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    y = memory.empty(found.output_size, x.dtype)
    positions = memory.empty(found.output_size, found.plan.positions)
    found.plan.forward_kernel(y.reshape(-1), positions.reshape(-1), x.reshape(-1),
                              *(found.plan.forward_relu if relu else found.plan.forward))
    return y, positions


def _flat_indices(found: pooling.MaxPool, positions: np.ndarray, layout: str) -> np.ndarray:
    depth = positions.shape[3] if layout == "NHWC" else 1
    indices = memory.empty(positions.shape, np.int64)
    kernels.flat_indices.twin(positions.size * 1e-3)(
        indices.reshape(-1), positions.reshape(-1), *index_parts(found.rows, found.columns), depth)
    return indices


def max_unpool2d(input: np.ndarray, indices: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None, *, layout: Layout = "NCHW") -> np.ndarray:
    """Each value at its index h W + w of an image of zeros, as ``torch.nn.functional.max_unpool2d``.

    Args:
        input: (N, C, P, Q), or (N, P, Q, C) with ``layout="NHWC"``; float32 or float64.
        indices: integers of the same shape, as from :func:`max_pool2d`; of values with one index the last stays.
        kernel_size, stride, padding: those of the pool.
        output_size: (H, W) or the whole shape, less than a stride from the default (P-1)u - 2p + R.

    Returns:
        (N, C, H, W) or (N, H, W, C).
    """
    x = check.array("input", input, 4)
    sizes = pooling.images(x.shape, layout)
    kernel = check.pair("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else check.pair("stride", stride, 1)
    pads = check.pair("padding", padding, 0)
    default = [(size - 1) * u - 2 * pad + k for size, u, pad, k in zip(sizes[2:], strides, pads, kernel)]
    h, w = _unpooled_size(output_size, default, strides, layout)
    shape = sizes._replace(h=h, w=w).shape(layout)
    places = pooling.indices(indices, x.shape, h * w)
    y = memory.empty(shape, x.dtype)
    kernels.unpool.twin(y.size * 1e-3)(y.reshape(-1), x.reshape(-1), places.reshape(-1),
                                       *pooling.unpool_sizes(x.shape, h * w, layout))
    return y


def _unpooled_size(output_size: Any, default: list[int], strides: tuple[int, int],
                   layout: str) -> tuple[int, int]:
    if output_size is None:
        size = tuple(default)
    elif len(output_size) == 4:
        size = tuple(output_size[2:]) if layout == "NCHW" else tuple(output_size[1:3])
    else:
        size = check.pair("output_size", tuple(output_size), 1)
    if any(abs(got - usual) >= u for got, usual, u in zip(size, default, strides)) or min(size) < 1:
        raise ValueError(f"output_size must be positive and less than a stride from {tuple(default)}, got {size}")
    return size[0], size[1]


def avg_pool2d(input: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None, *, layout: Layout = "NCHW",
               out: np.ndarray | None = None) -> np.ndarray:
    """The mean of each window, as ``torch.nn.functional.avg_pool2d``.

    Args:
        input: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float32 or float64.
        kernel_size, stride, padding, ceil_mode: as for :func:`max_pool2d`.
        count_include_pad: whether zeros of the padding count in the mean.
        divisor_override: what every sum is divided by instead.
        out: array to write into; it must fit exactly and overlap no input.

    Returns:
        (N, C, P, Q) or (N, P, Q, C), sizes as for :func:`max_pool2d`.
    """
    x = check.array("input", input, 4)
    found = pooling.average_pool(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                 divisor_override, layout, x.dtype.char)
    y = check.output(out, found.output_size, x.dtype, x)
    found.plan.forward_kernel(y.reshape(-1), x.reshape(-1), *found.plan.forward)
    return y


def adaptive_avg_pool2d(input: np.ndarray, output_size: Any, *, layout: Layout = "NCHW") -> np.ndarray:
    """Means of a grid of regions, as ``torch.nn.functional.adaptive_avg_pool2d``.

    Region i of P covers rows floor(i H / P) up to ceil((i + 1) H / P), and so for columns.

    Args:
        input: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float32 or float64.
        output_size: P = Q, or a pair (P, Q), where None keeps the input's size.

    Returns:
        (N, C, P, Q) or (N, P, Q, C).
    """
    x = check.array("input", input, 4)
    sizes = pooling.images(x.shape, layout)
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    filled = tuple(given if size is None else size for size, given in zip(wanted, sizes[2:]))
    target = check.pair("output_size", filled if len(wanted) == 2 else output_size, 1)
    found = pooling.adaptive_average_pool(x.shape, target, layout, x.dtype.char)
    y = memory.empty(found.output_size, x.dtype)
    found.plan.forward_kernel(y.reshape(-1), x.reshape(-1), *found.plan.forward)
    return y
