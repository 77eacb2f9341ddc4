"""Elementwise functions, their derivatives, softmax and dropout, on flat contiguous arrays.

An elementwise kernel is written as a scalar function, and applied in blocks of fixed length. A block is sliced
before its loop: over slices LLVM emits vector code, over offsets into the whole array it does not.
"""

import numpy as np
from numba import prange

from . import elementary
from .elementary import exp, like, log, multiply_add
from .jit import device_function, kernel
from .reductions import largest_of, sum_and_products, sum_of
from .streaming import STREAMED, fence, stream, streams

BLOCK = 1 << 12  # elements to a unit of parallel work
SHORT = 64  # a row of fewer elements wastes much of a vector loop: what can be is done for many rows at once


def elementwise(function):
    """The kernel ``(y, x, ...)`` of a scalar function: y[i] = function(x[i], further scalars...)."""
    scalar = device_function(function, **elementary.OPTIONS)

    def blocks(y, x, *scalars):
        streamed = streams(y, STREAMED)
        for block in prange((y.size + BLOCK - 1) // BLOCK):
            first, last = block * BLOCK, min(y.size, (block + 1) * BLOCK)
            if streamed:
                buffer = np.empty(STREAMED, y.dtype)
                for start in range(first, last, STREAMED):
                    a = x[start:min(last, start + STREAMED)]
                    for i in range(a.size):
                        buffer[i] = scalar(a[i], *scalars)
                    stream(y, start, buffer, a.size)
                fence()
            else:
                out, a = y[first:last], x[first:last]
                for i in range(out.size):
                    out[i] = scalar(a[i], *scalars)
    return _kernel_of(function, blocks)


def elementwise_of_two(function):
    """The kernel ``(y, x1, x2, ...)``: y[i] = function(x1[i], x2[i], further scalars...)."""
    scalar = device_function(function, **elementary.OPTIONS)

    def blocks(y, x1, x2, *scalars):
        streamed = streams(y, STREAMED)
        for block in prange((y.size + BLOCK - 1) // BLOCK):
            first, last = block * BLOCK, min(y.size, (block + 1) * BLOCK)
            if streamed:
                buffer = np.empty(STREAMED, y.dtype)
                for start in range(first, last, STREAMED):
                    stop = min(last, start + STREAMED)
                    a, b = x1[start:stop], x2[start:stop]
                    for i in range(a.size):
                        buffer[i] = scalar(a[i], b[i], *scalars)
                    stream(y, start, buffer, a.size)
                fence()
            else:
                out, a, b = y[first:last], x1[first:last], x2[first:last]
                for i in range(out.size):
                    out[i] = scalar(a[i], b[i], *scalars)
    return _kernel_of(function, blocks)


def _kernel_of(function, blocks):
    for attribute in ("__name__", "__doc__", "__module__"):
        setattr(blocks, attribute, getattr(function, attribute))
    return kernel(blocks)


@elementwise
def relu(x):
    """max(x, 0), and NaN of NaN."""
    return 0 if x <= 0 else x


@elementwise_of_two
def relu_gradient(y, dy):
    """dy where the output y is positive."""
    return 0 if y <= 0 else dy


@elementwise
def leaky_relu(x, slope):
    """x where it is positive, else slope x."""
    return x if x > 0 else slope * x


@elementwise_of_two
def leaky_relu_gradient(x, dy, slope):
    """dy where the input x is positive, else slope dy."""
    return dy if x > 0 else slope * dy


@elementwise_of_two
def add(x1, x2):
    return x1 + x2


@elementwise_of_two
def add_relu(x1, x2):
    """ReLU of the sum."""
    total = x1 + x2
    return 0 if total <= 0 else total


@elementwise
def tanh(x):
    return elementary.tanh(x)


@elementwise_of_two
def tanh_gradient(y, dy):
    """dy (1 - y^2) of the output y."""
    return dy * multiply_add(-y, y, like(y, 1))


@elementwise
def sigmoid(x):
    return elementary.sigmoid(x)


@elementwise_of_two
def sigmoid_gradient(y, dy):
    """dy y (1 - y) of the output y."""
    return dy * multiply_add(-y, y, y)


@elementwise_of_two
def kept(dy, mask, scale):
    """scale dy where the mask is set: the gradient of dropout."""
    return scale * dy if mask else 0


@kernel
def dropout(y, mask, x, key, threshold, scale):
    """y = scale x where mask is 1, else 0; mask[i] is whether the i-th number of a sequence reaches threshold.

    The sequence is SplitMix64 (Steele, Lea and Flood 2014) started at ``key``: it can be entered anywhere, so
    blocks do not depend on one another.
    """
    for block in prange((y.size + BLOCK - 1) // BLOCK):
        start = key + np.uint64(block * BLOCK) * np.uint64(0x9E3779B97F4A7C15)
        out, flags = y[block * BLOCK:(block + 1) * BLOCK], mask[block * BLOCK:(block + 1) * BLOCK]
        a = x[block * BLOCK:(block + 1) * BLOCK]
        for i in range(out.size):
            z = start + np.uint64(i + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            keep = (z ^ (z >> np.uint64(31))) >= threshold
            flags[i] = keep
            out[i] = scale * a[i] if keep else 0


@device_function
def exponentials(out, largest, x, width):
    """out = exp(x - the largest of its row), for rows of ``width`` elements; largest: one a row."""
    short = width < SHORT
    for row in range(largest.size):
        powers, values = out[row * width:(row + 1) * width], x[row * width:(row + 1) * width]
        highest = largest_of(values)
        largest[row] = highest
        if short:
            for i in range(width):
                powers[i] = values[i] - highest
        else:
            for i in range(width):
                powers[i] = exp(values[i] - highest)
    if short:
        for i in range(out.size):
            out[i] = exp(out[i])


@kernel
def softmax(y, x, width, rows_a_block):
    """y = exp(x - max x) / sum, for each row of ``width`` elements."""
    rows = x.size // width
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        first, last = block * rows_a_block, min(rows, (block + 1) * rows_a_block)
        out = y[first * width:last * width]
        exponentials(out, np.empty(last - first, x.dtype), x[first * width:last * width], width)
        for row in range(last - first):
            powers = out[row * width:(row + 1) * width]
            share = like(powers[0], 1) / sum_of(powers[0], powers)
            for i in range(width):
                powers[i] *= share


@kernel
def softmax_gradient(dx, y, dy, width, rows_a_block):
    """dx = y (dy - sum(y dy)), for each row."""
    rows = y.size // width
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        for row in range(block * rows_a_block, min(rows, (block + 1) * rows_a_block)):
            out, p = dx[row * width:(row + 1) * width], y[row * width:(row + 1) * width]
            g = dy[row * width:(row + 1) * width]
            _, mean = sum_and_products(p[0], p, g, 0.0)
            for i in range(width):
                out[i] = p[i] * (g[i] - mean)


@kernel
def log_softmax(y, x, width, rows_a_block):
    """y = x - max x - log sum exp(x - max x), for each row."""
    rows = x.size // width
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        first, last = block * rows_a_block, min(rows, (block + 1) * rows_a_block)
        largest = np.empty(last - first, x.dtype)
        out, inputs = y[first * width:last * width], x[first * width:last * width]
        exponentials(out, largest, inputs, width)
        for row in range(last - first):
            logs, values = out[row * width:(row + 1) * width], inputs[row * width:(row + 1) * width]
            highest, logarithm = largest[row], log(sum_of(logs[0], logs))
            for i in range(width):
                logs[i] = (values[i] - highest) - logarithm


@kernel
def log_softmax_gradient(dx, y, dy, width, rows_a_block):
    """dx = dy - exp(y) sum(dy), for each row."""
    rows = y.size // width
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        first, last = block * rows_a_block, min(rows, (block + 1) * rows_a_block)
        powers, logs, gradients = (
            dx[first * width:last * width], y[first * width:last * width], dy[first * width:last * width])
        for i in range(powers.size):
            powers[i] = exp(logs[i])
        for row in range(last - first):
            out, g = powers[row * width:(row + 1) * width], gradients[row * width:(row + 1) * width]
            total = sum_of(g[0], g)
            for i in range(width):
                out[i] = multiply_add(out[i], -total, g[i])
