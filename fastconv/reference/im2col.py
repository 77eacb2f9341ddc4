"""Convolution as one matrix product an image, the way it is usually written in NumPy.

Every window becomes a column: `im2col` gives (N, C*R*S, P*Q), as torch.nn.functional.unfold, which BLAS
multiplies by the filters as (K, C*R*S). The matrix holds each pixel about R*S times; `im2col_bytes` says
how large it is. Images are worked on as (N, C, H, W); "NHWC" is a view of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .geometry import Array, Padding, Pair, Window, image_shape, pair, position_type, window


def im2col(
    input: Array,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """The matrix (N, C*R*S, P*Q) of all windows."""
    windows = _windows(_channels_first(input, layout), window(kernel_size, stride, padding, dilation), 0)
    n, c, r, s, p, q = windows.shape
    return windows.reshape(n, c * r * s, p * q)


def col2im(
    columns: Array,
    input_size: Sequence[int],
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """The adjoint of `im2col`: adds every column back to where its window read."""
    moves = window(kernel_size, stride, padding, dilation)
    n, h, w, c = image_shape(input_size, layout)
    p, q = moves.output_size((h, w))
    windows = columns.reshape(n, c, *moves.kernel, p, q)
    (top, bottom), (left, right) = moves.padding
    (u, v), (d, e) = moves.stride, moves.dilation
    padded = np.zeros((n, c, h + top + bottom, w + left + right), columns.dtype)
    for r, s in np.ndindex(*moves.kernel):
        padded[:, :, r * d : r * d + u * p : u, s * e : s * e + v * q : v] += windows[:, :, r, s]
    return _stored(padded[:, :, top : top + h, left : left + w], layout)


def im2col_bytes(
    input_size: Sequence[int],
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
    dtype: np.dtype | type = np.float32,
) -> int:
    """Size of the matrix that `im2col` makes, in bytes."""
    moves = window(kernel_size, stride, padding, dilation)
    n, h, w, c = image_shape(input_size, layout)
    r, s = moves.kernel
    p, q = moves.output_size((h, w))
    return n * c * r * s * p * q * np.dtype(dtype).itemsize


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.functional.conv2d: w (K, C*R*S) times the columns (C*R*S, P*Q)."""
    moves = window(weight.shape[2:], stride, padding, dilation)
    windows = _windows(_channels_first(input, layout), moves, 0)
    n, c, r, s, p, q = windows.shape
    y = _by_group(weight, groups) @ windows.reshape(n, groups, c // groups * r * s, p * q)
    y = y.reshape(n, len(weight), p, q)
    if bias is not None:
        y += bias[:, None, None]
    return _stored(y, layout)


def conv2d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.grad.conv2d_input: the transposed filters times dy, added back by `col2im`."""
    columns = _by_group(weight, groups).swapaxes(1, 2) @ _split(_channels_first(grad_output, layout), groups)
    return col2im(columns, input_size, weight.shape[2:], stride, padding, dilation, layout=layout)


def conv2d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.grad.conv2d_weight: dy (K, P*Q) times the transposed columns, summed over the batch."""
    columns = _split(im2col(input, weight_size[2:], stride, padding, dilation, layout=layout), groups)
    dy = _split(_channels_first(grad_output, layout), groups)
    return (dy @ columns.swapaxes(2, 3)).sum(axis=0).reshape(weight_size)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.functional.conv_transpose2d, by `conv2d_input`; output_padding must be below the stride."""
    n, h, w, _ = image_shape(input.shape, layout)
    moves = window(weight.shape[2:], stride, padding, dilation)
    rows, columns = moves.transposed_size((h, w), pair(output_padding))
    channels = weight.shape[1] * groups
    size = (n, channels, rows, columns) if layout == "NCHW" else (n, rows, columns, channels)
    y = conv2d_input(size, weight, input, stride, padding, dilation, groups, layout=layout)
    if bias is not None:
        y += bias[:, None, None] if layout == "NCHW" else bias
    return y


def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.functional.max_pool2d without ceil_mode: the maximum over each column's R*S entries."""
    moves = window(kernel_size, stride, padding, dilation)
    return _stored(_windows(_channels_first(input, layout), moves, -np.inf).max(axis=(2, 3)), layout)


def max_pool2d_with_positions(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """The same and its place r*S + s in the window (uint8 up to 256 cells), the first of equals.

    A window of which every pixel is -inf may name a place in the padding.
    """
    moves = window(kernel_size, stride, padding, dilation)
    windows = _windows(_channels_first(input, layout), moves, -np.inf)
    n, c, r, s, p, q = windows.shape
    entries = windows.reshape(n, c, r * s, p, q)
    positions = entries.argmax(axis=2)
    y = np.take_along_axis(entries, positions[:, :, None], axis=2)[:, :, 0]
    return _stored(y, layout), _stored(positions.astype(position_type(moves)), layout)


def max_pool2d_grad(
    input_size: Sequence[int],
    positions: Array,
    grad_output: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """As fastconv.grad.max_pool2d: dy set at its place in a matrix of zeros, added back by `col2im`."""
    dy, places = _channels_first(grad_output, layout), _channels_first(positions, layout)
    rows, columns = pair(kernel_size)
    windows = np.zeros((*dy.shape[:2], rows * columns, *dy.shape[2:]), dy.dtype)
    np.put_along_axis(windows, places[:, :, None], dy[:, :, None], axis=2)
    stride = kernel_size if stride is None else stride
    return col2im(windows, input_size, kernel_size, stride, padding, dilation, layout=layout)


def _windows(x: Array, moves: Window, fill: float) -> Array:
    """A contiguous (N, C, R, S, P, Q) of x (N, C, H, W) padded by `fill`."""
    if any(map(any, moves.padding)):
        x = np.pad(x, ((0, 0), (0, 0), *moves.padding), constant_values=fill)
    (d, e), (u, v) = moves.dilation, moves.stride
    reach = tuple(d * (size - 1) + 1 for size, d in zip(moves.kernel, moves.dilation))
    windows = sliding_window_view(x, reach, axis=(2, 3))[:, :, ::u, ::v, ::d, ::e]
    return np.ascontiguousarray(windows.transpose(0, 1, 4, 5, 2, 3))


def _by_group(weight: Array, groups: int) -> Array:
    """Filters (K, C/G, R, S) as (G, K/G, C*R*S/G)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _split(channels: Array, groups: int) -> Array:
    """(N, C, ...) as (N, G, C/G, everything else)."""
    n, c = channels.shape[:2]
    return channels.reshape(n, groups, c // groups, int(np.prod(channels.shape[2:])))


def _channels_first(array: Array, layout: str) -> Array:
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)


def _stored(array: Array, layout: str) -> Array:
    """From (N, C, H, W) to the user's layout."""
    return np.ascontiguousarray(array if layout == "NCHW" else array.transpose(0, 2, 3, 1))
