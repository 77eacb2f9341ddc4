"""Pooling and its gradients, window by window.

Images are (N, C, H, W) or (N, H, W, C) by `layout`; padding never wins a maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..geometry import (
    Array,
    Padding,
    Pair,
    Window,
    channels_last,
    image_shape,
    images,
    pair,
    position_type,
    stored,
    window,
)
from .conv import conv2d, conv2d_weight


def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
) -> Array | tuple[Array, Array]:
    """The largest of each window, and with `return_indices` also where it stood, as h*W + w (int64)."""
    y, _, indices = _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return (y, indices) if return_indices else y


def max_pool2d_with_positions(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """The largest of each window, and its place r*S + s in the window (uint8 up to 256 cells)."""
    y, positions, _ = _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return y, positions


def _max_pool(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
) -> tuple[Array, Array, Array]:
    """Output, positions and flat indices.

    torch's rules: the first of equals wins, and of several NaN the last. A window that lies wholly in the
    padding gives -inf, position 0, index -1 and no gradient.
    """
    x, moves = images(input, layout), window(kernel_size, stride, padding, dilation)
    batch, height, width, channels = x.shape
    shape = (batch, *moves.output_size((height, width), ceil_mode), channels)
    y, positions, indices = np.full(shape, -np.inf), np.zeros(shape, int), np.full(shape, -1)
    for p, q in np.ndindex(*shape[1:3]):
        for _, _, r, s, h, w in moves.taps(p, q, (height, width)):
            value = x[:, h, w]
            wins = (value > y[:, p, q]) | np.isnan(value) | (indices[:, p, q] < 0)
            y[:, p, q][wins] = value[wins]
            positions[:, p, q][wins] = r * moves.kernel[1] + s
            indices[:, p, q][wins] = h * width + w
    results = (y, input.dtype), (positions, position_type(moves)), (indices, np.int64)
    y, positions, indices = (stored(array, layout, dtype) for array, dtype in results)
    return y, positions, indices


def max_pool2d_grad(
    input_size: Sequence[int],
    positions: Array,
    grad_output: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    *,
    layout: str = "NCHW",
) -> Array:
    """Each gradient goes to the winner of its window and nowhere else."""
    moves, size = window(kernel_size, stride, padding, dilation), image_shape(input_size, layout)
    winners, dy, dx = channels_last(positions, layout), images(grad_output, layout), np.zeros(size)
    for p, q in np.ndindex(*dy.shape[1:3]):
        for _, _, r, s, h, w in moves.taps(p, q, size[1:3]):
            dx[:, h, w] += np.where(winners[:, p, q] == r * moves.kernel[1] + s, dy[:, p, q], 0)
    return stored(dx, layout, grad_output.dtype)


def max_pool2d_bias(positions: Array, grad_output: Array, kernel_size: Pair, *, layout: str = "NCHW") -> Array:
    """All gradients of a channel but those that have no winner, whose position is behind the last cell."""
    winners, dy = channels_last(positions, layout), images(grad_output, layout)
    nobody = math.prod(pair(kernel_size))
    return np.where(winners == nobody, 0, dy).sum((0, 1, 2)).astype(grad_output.dtype)


def conv2d_max_pool2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    kernel_size: Pair,
    relu: bool = False,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """A max-pool of a convolution: with `relu` what is not positive is 0, and has the place behind the last cell."""
    y = conv2d(input, weight, bias, stride, padding, dilation, groups, layout=layout)
    y, positions = max_pool2d_with_positions(y, kernel_size, layout=layout)
    if relu:
        positions[y <= 0] = math.prod(pair(kernel_size))
        y[y <= 0] = 0
    return y, positions


def conv2d_max_pool2d_weight(
    input: Array,
    weight_size: Sequence[int],
    positions: Array,
    grad_output: Array,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    kernel_size: Pair,
    layout: str = "NCHW",
) -> Array:
    """The filters' gradient by that of the convolution's output."""
    moves, (rows, columns) = window(weight_size[2:], stride, padding, dilation), images(input, layout).shape[1:3]
    n, _, _, k = images(grad_output, layout).shape
    p, q = moves.output_size((rows, columns), False)
    dy = max_pool2d_grad((n, k, p, q) if layout == "NCHW" else (n, p, q, k), positions, grad_output, kernel_size,
                         layout=layout)
    return conv2d_weight(input, weight_size, dy, stride, padding, dilation, groups, layout=layout)


def max_unpool2d(
    input: Array,
    indices: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    output_size: Sequence[int] | None = None,
    *,
    layout: str = "NCHW",
) -> Array:
    """Every value at its index h*W + w of an image of zeros, by default of (H-1) u - 2 padding + R rows.

    `output_size` is (rows, columns) or the whole shape; of values with one index the last stays.
    """
    x, places, moves = images(input, layout), channels_last(indices, layout), window(kernel_size, stride)
    if output_size is None:
        output_size = [
            (size - 1) * u - 2 * pad + r
            for size, u, pad, r in zip(x.shape[1:3], moves.stride, pair(padding), moves.kernel)
        ]
    rows, columns = image_shape(output_size, layout)[1:3] if len(output_size) == 4 else pair(output_size)
    y = np.zeros((len(x), rows, columns, x.shape[-1]))
    for n, p, q, c in np.ndindex(*x.shape):
        y[(n, *divmod(places[n, p, q, c], columns), c)] = x[n, p, q, c]
    return stored(y, layout, input.dtype)


def max_unpool2d_grad(indices: Array, grad_output: Array, *, layout: str = "NCHW") -> Array:
    """Each input takes the gradient of the pixel it was put in."""
    places, dy = channels_last(indices, layout), images(grad_output, layout)
    dx = np.zeros(places.shape)
    for n, p, q, c in np.ndindex(*dx.shape):
        dx[n, p, q, c] = dy[(n, *divmod(places[n, p, q, c], dy.shape[2]), c)]
    return stored(dx, layout, grad_output.dtype)


def avg_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCHW",
) -> Array:
    """The sum of each window over its divisor: its cells in the padded image or in the image, or as given."""
    x, moves = images(input, layout), window(kernel_size, stride, padding)
    size = moves.output_size(x.shape[1:3], ceil_mode)
    regions = _windows(x.shape[1:3], size, moves, count_include_pad, divisor_override)
    return stored(_means(x, size, regions), layout, input.dtype)


def avg_pool2d_grad(
    input_size: Sequence[int],
    grad_output: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCHW",
) -> Array:
    """Spreads each gradient evenly over its window, by the same divisor."""
    size, dy = image_shape(input_size, layout), images(grad_output, layout)
    moves = window(kernel_size, stride, padding)
    regions = _windows(size[1:3], dy.shape[1:3], moves, count_include_pad, divisor_override)
    return stored(_spread(size, dy, regions), layout, grad_output.dtype)


def adaptive_avg_pool2d(
    input: Array, output_size: int | Sequence[int | None] | None, *, layout: str = "NCHW"
) -> Array:
    """Means of P x Q regions that cover the image: rows floor(p H/P) to ceil((p+1) H/P), columns alike.

    None in `output_size` keeps the input's size.
    """
    x = images(input, layout)
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    rows, columns = (given if size is None else size for size, given in zip(wanted, x.shape[1:3]))
    regions = _adaptive_regions(x.shape[1:3], (rows, columns))
    return stored(_means(x, (rows, columns), regions), layout, input.dtype)


def adaptive_avg_pool2d_grad(input_size: Sequence[int], grad_output: Array, *, layout: str = "NCHW") -> Array:
    """Spreads each gradient evenly over its region."""
    size, dy = image_shape(input_size, layout), images(grad_output, layout)
    return stored(_spread(size, dy, _adaptive_regions(size[1:3], dy.shape[1:3])), layout, grad_output.dtype)


Region = tuple[int, int, slice, slice, int]  # p, q, rows, columns, divisor


def _windows(
    image: tuple[int, int],
    output: tuple[int, int],
    moves: Window,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Iterator[Region]:
    """The windows of an average pool, cut to the image, each with what its sum is divided by."""
    for p, q in np.ndindex(*output):
        slices, padded_cells, cells = [], 1, 1
        for i, size, kernel, stride, (before, after), _ in zip((p, q), image, *moves):
            start = i * stride - before
            stop = min(start + kernel, size + after)
            padded_cells *= stop - start
            slices.append(slice(max(start, 0), min(stop, size)))
            cells *= max(slices[-1].stop - slices[-1].start, 0)
        divisor = divisor_override or (padded_cells if count_include_pad else max(cells, 1))
        yield p, q, slices[0], slices[1], divisor


def _adaptive_regions(image: tuple[int, int], output: tuple[int, int]) -> Iterator[Region]:
    for p, q in np.ndindex(*output):
        rows, columns = (
            slice(i * size // count, -(-(i + 1) * size // count))
            for i, size, count in zip((p, q), image, output)
        )
        yield p, q, rows, columns, (rows.stop - rows.start) * (columns.stop - columns.start)


def _means(x: Array, output: tuple[int, int], regions: Iterator[Region]) -> Array:
    y = np.zeros((len(x), *output, x.shape[-1]))
    for p, q, rows, columns, divisor in regions:
        y[:, p, q] = x[:, rows, columns].sum(axis=(1, 2)) / divisor
    return y


def _spread(size: tuple[int, int, int, int], dy: Array, regions: Iterator[Region]) -> Array:
    dx = np.zeros(size)
    for p, q, rows, columns, divisor in regions:
        dx[:, rows, columns] += dy[:, p, q][:, None, None] / divisor
    return dx
