"""Convolution and its gradients as loops over n, k, p, q, r, s with a dot product over the channels.

    y[n,k,p,q] = b[k] + sum_c,r,s x[n,c,h,v] w[k,c,r,s],  h = p u + r d - top,  v = q u + s d - left

Images are (N, C, H, W) or (N, H, W, C) by `layout`, filters (K, C/G, R, S) in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..geometry import Array, Padding, Pair, Tap, Window, image_shape, images, pair, stored, window


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
    """Cross-correlation, as torch.nn.functional.conv2d: (N, K, P, Q)."""
    x, w, moves = images(input, layout), _filters(weight), window(weight.shape[2:], stride, padding, dilation)
    y = _forward(x, w, moves, moves.output_size(x.shape[1:3]), groups)
    return stored(y if bias is None else y + bias, layout, input.dtype)


def convolve2d(
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
    """The mathematician's convolution: the same with the kernel turned by half a turn."""
    return conv2d(input, weight[:, :, ::-1, ::-1], bias, stride, padding, dilation, groups, layout=layout)


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
    """dx[n,c,h,v] = sum of dy[n,k,p,q] w[k,c,r,s] over the taps that read pixel (h, v)."""
    moves = window(weight.shape[2:], stride, padding, dilation)
    size, dy = image_shape(input_size, layout), images(grad_output, layout)
    dx = _input_gradient(size, _filters(weight), dy, moves, groups)
    return stored(dx, layout, grad_output.dtype)


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
    """dw[k,c,r,s] = sum_n,p,q dy[n,k,p,q] x[n,c,h,v]."""
    moves = window(weight_size[2:], stride, padding, dilation)
    dw = _weight_gradient(images(input, layout), weight_size, images(grad_output, layout), moves, groups)
    return np.ascontiguousarray(dw, input.dtype)


def conv2d_bias(grad_output: Array, *, layout: str = "NCHW") -> Array:
    """db[k] = sum_n,p,q dy[n,k,p,q]."""
    return images(grad_output, layout).sum(axis=(0, 1, 2)).astype(grad_output.dtype)


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
    """The input gradient of a convolution, used forward: weight is (C, K/G, R, S), giving (N, K, P, Q)."""
    x, moves = images(input, layout), window(weight.shape[2:], stride, padding, dilation)
    rows_columns = moves.transposed_size(x.shape[1:3], pair(output_padding))
    size = (len(x), *rows_columns, weight.shape[1] * groups)
    y = _input_gradient(size, _filters(weight), x, moves, groups)
    return stored(y if bias is None else y + bias, layout, input.dtype)


def conv_transpose2d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """The plain convolution of grad_output with the same filters, in the shape of the input."""
    moves = window(weight.shape[2:], stride, padding, dilation)
    _, rows, columns, _ = image_shape(input_size, layout)
    dx = _forward(images(grad_output, layout), _filters(weight), moves, (rows, columns), groups)
    return stored(dx, layout, grad_output.dtype)


def conv_transpose2d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: str = "NCHW",
) -> Array:
    """The filter gradient of the convolution that it transposes: input and grad_output change places."""
    return conv2d_weight(grad_output, weight_size, input, stride, padding, dilation, groups, layout=layout)


def _filters(weight: Array) -> Array:
    """(K, R, S, C/G) in float64."""
    return np.moveaxis(weight, 1, -1).astype(np.float64)


def _products(
    x: Sequence[int], w: Sequence[int], y: Sequence[int], moves: Window, groups: int
) -> Iterator[tuple[int, int, slice, Tap]]:
    """Every product of a convolution, from the shapes: image n, filter k, its input channels, and the tap."""
    taps = [tap for p, q in np.ndindex(*y[1:3]) for tap in moves.taps(p, q, (x[1], x[2]))]
    for n, k in np.ndindex(x[0], w[0]):
        first = k // (w[0] // groups) * w[-1]
        for tap in taps:
            yield n, k, slice(first, first + w[-1]), tap


def _forward(x: Array, w: Array, moves: Window, output: tuple[int, int], groups: int) -> Array:
    y = np.zeros((len(x), *output, len(w)))
    for n, k, c, (p, q, r, s, h, v) in _products(x.shape, w.shape, y.shape, moves, groups):
        y[n, p, q, k] += x[n, h, v, c] @ w[k, r, s]
    return y


def _input_gradient(size: Sequence[int], w: Array, dy: Array, moves: Window, groups: int) -> Array:
    dx = np.zeros(size)
    for n, k, c, (p, q, r, s, h, v) in _products(size, w.shape, dy.shape, moves, groups):
        dx[n, h, v, c] += dy[n, p, q, k] * w[k, r, s]
    return dx


def _weight_gradient(x: Array, size: Sequence[int], dy: Array, moves: Window, groups: int) -> Array:
    dw = np.zeros((size[0], *size[2:], size[1]))
    for n, k, c, (p, q, r, s, h, v) in _products(x.shape, dw.shape, dy.shape, moves, groups):
        dw[k, r, s] += dy[n, p, q, k] * x[n, h, v, c]
    return np.moveaxis(dw, -1, 1)
