"""Batch normalisation: y = (x - mean) scale + shift for each channel, with scale = weight / sqrt(var + eps).

"planes" are for (N, C, pixels), "pixels" for rows of the channels of one pixel or of several, in which case vectors of
channels come once for each of those. Arrays are flat.
Sums are taken in float64 over parts of fixed size, which the caller combines in a fixed order: a part is a plane,
or ``chunk`` rows.
"""

import numpy as np
from numba import prange

from .elementary import multiply_add
from .jit import device_function, kernel
from .reductions import sum_and_products, sum_of, sum_of_squares
from .streaming import STREAMED, fence, stream, streams


@kernel
def plane_moments(means, squares, x, pixels, chunk):
    """Of each plane (N C planes of ``pixels``) the mean, and the sum of squares of the distances from it."""
    planes = x.reshape(means.size, pixels)
    for block in prange((means.size + chunk - 1) // chunk):
        for plane in range(block * chunk, min(means.size, (block + 1) * chunk)):
            mean = sum_of(0.0, planes[plane]) / pixels
            means[plane] = mean
            squares[plane] = sum_of_squares(0.0, planes[plane], mean)


@device_function
def _fold(wide, channels):
    """Add up what belongs to the same channel, into the first of them."""
    for start in range(channels, wide.size, channels):
        for c in range(channels):
            wide[c] += wide[start + c]


@kernel
def pixel_moments(means, squares, x, width, chunk):
    """The same for each channel of each ``chunk`` of rows of ``width`` elements: means, squares (chunks, C)."""
    rows = x.size // width
    chunks = (rows + chunk - 1) // chunk
    channels = means.size // chunks
    for block in prange(chunks):
        first, last = block * chunk, min(rows, (block + 1) * chunk)
        mean, square = np.zeros(width), np.zeros(width)
        for row in range(first, last):
            values = x[row * width:(row + 1) * width]
            for i in range(width):
                mean[i] += values[i]
        _fold(mean, channels)
        for i in range(channels):
            mean[i] /= (last - first) * (width // channels)
        for i in range(channels, width):
            mean[i] = mean[i - channels]
        for row in range(first, last):
            values = x[row * width:(row + 1) * width]
            for i in range(width):
                distance = values[i] - mean[i]
                square[i] = multiply_add(distance, distance, square[i])
        _fold(square, channels)
        means[block * channels:(block + 1) * channels] = mean[:channels]
        squares[block * channels:(block + 1) * channels] = square[:channels]


@kernel
def plane_products(sums, products, dy, x, mean, pixels, chunk):
    """Of each plane sum(dy) and sum(dy (x - mean))."""
    values, g = x.reshape(sums.size, pixels), dy.reshape(sums.size, pixels)
    for block in prange((sums.size + chunk - 1) // chunk):
        for plane in range(block * chunk, min(sums.size, (block + 1) * chunk)):
            sums[plane], products[plane] = sum_and_products(0.0, g[plane], values[plane], mean[plane % mean.size])


@kernel
def pixel_products(sums, products, dy, x, mean, width, chunk):
    """The same for each channel of each ``chunk`` of rows: sums, products (chunks, C); mean (width)."""
    rows = x.size // width
    chunks = (rows + chunk - 1) // chunk
    channels = sums.size // chunks
    for block in prange(chunks):
        total, product = np.zeros(width), np.zeros(width)
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            values, g = x[row * width:(row + 1) * width], dy[row * width:(row + 1) * width]
            for i in range(width):
                total[i] += g[i]
                product[i] = multiply_add(np.float64(g[i]), np.float64(values[i] - mean[i]), product[i])
        _fold(total, channels)
        _fold(product, channels)
        sums[block * channels:(block + 1) * channels] = total[:channels]
        products[block * channels:(block + 1) * channels] = product[:channels]


@kernel
def normalise_planes(y, x, mean, scale, shift, pixels, chunk):
    """y = (x - mean) scale + shift; y, x (N, C, pixels)."""
    planes, streamed = y.size // pixels, streams(y, pixels)
    for block in prange((planes + chunk - 1) // chunk):
        buffer = np.empty(STREAMED if streamed else 0, y.dtype)
        for plane in range(block * chunk, min(planes, (block + 1) * chunk)):
            c = plane % mean.size
            if streamed:
                for start in range(plane * pixels, (plane + 1) * pixels, STREAMED):
                    values = x[start:min(start + STREAMED, (plane + 1) * pixels)]
                    for i in range(values.size):
                        buffer[i] = multiply_add(values[i] - mean[c], scale[c], shift[c])
                    stream(y, start, buffer, values.size)
                continue
            out, values = y[plane * pixels:(plane + 1) * pixels], x[plane * pixels:(plane + 1) * pixels]
            for i in range(pixels):
                out[i] = multiply_add(values[i] - mean[c], scale[c], shift[c])
        if streamed:
            fence()


@kernel
def normalise_pixels(y, x, mean, scale, shift, width, chunk):
    """The same for rows of ``width``."""
    rows, streamed = y.size // width, streams(y, width)
    for block in prange((rows + chunk - 1) // chunk):
        buffer = np.empty(width if streamed else 0, y.dtype)
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            values = x[row * width:(row + 1) * width]
            if streamed:
                for i in range(width):
                    buffer[i] = multiply_add(values[i] - mean[i], scale[i], shift[i])
                stream(y, row * width, buffer, width)
                continue
            out = y[row * width:(row + 1) * width]
            for i in range(width):
                out[i] = multiply_add(values[i] - mean[i], scale[i], shift[i])
        if streamed:
            fence()


@kernel
def plane_gradient(dx, dy, x, mean, scale, offset, slope, pixels, chunk):
    """dx = scale dy - offset - slope (x - mean); dx, dy, x (N, C, pixels)."""
    planes, streamed = dx.size // pixels, streams(dx, pixels)
    for block in prange((planes + chunk - 1) // chunk):
        buffer = np.empty(STREAMED if streamed else 0, dx.dtype)
        for plane in range(block * chunk, min(planes, (block + 1) * chunk)):
            c = plane % mean.size
            if streamed:
                for start in range(plane * pixels, (plane + 1) * pixels, STREAMED):
                    stop = min(start + STREAMED, (plane + 1) * pixels)
                    values, g = x[start:stop], dy[start:stop]
                    for i in range(values.size):
                        buffer[i] = multiply_add(scale[c], g[i],
                                                 multiply_add(-slope[c], values[i] - mean[c], -offset[c]))
                    stream(dx, start, buffer, values.size)
                continue
            out, values = dx[plane * pixels:(plane + 1) * pixels], x[plane * pixels:(plane + 1) * pixels]
            g = dy[plane * pixels:(plane + 1) * pixels]
            for i in range(pixels):
                out[i] = multiply_add(scale[c], g[i], multiply_add(-slope[c], values[i] - mean[c], -offset[c]))
        if streamed:
            fence()


@kernel
def channel_norm(y, means, squares, mean, variance, x, weight, bias, eps, pixels):
    """:func:`plane_moments`, what follows from them, and :func:`normalise_planes` for one channel after another.

    L2 holds a channel meanwhile. The planes' moments (N, C) become mean and biased variance (C,), in float64.
    """
    channels = mean.size
    images = means.size // channels
    for c in prange(channels):
        total, square = 0.0, 0.0
        for image in range(images):
            plane = image * channels + c
            values = x[plane * pixels:(plane + 1) * pixels]
            means[plane] = sum_of(0.0, values) / pixels
            squares[plane] = sum_of_squares(0.0, values, means[plane])
            total += pixels * means[plane]
        mean[c] = total / (images * pixels)
        for plane in range(c, means.size, channels):
            square += squares[plane] + pixels * (means[plane] - mean[c])**2
        variance[c] = square / (images * pixels)
        centre, scale = y.dtype.type(mean[c]), weight[c] * y.dtype.type(1 / np.sqrt(variance[c] + eps))
        for plane in range(c, means.size, channels):
            out, values = y[plane * pixels:(plane + 1) * pixels], x[plane * pixels:(plane + 1) * pixels]
            for i in range(pixels):
                out[i] = multiply_add(values[i] - centre, scale, bias[c])


@kernel
def channel_gradient(dx, sums, products, dy, x, mean, inverse_std, scale, pixels):
    """:func:`plane_products` and :func:`plane_gradient` of one channel after another, which L2 holds meanwhile.

    Sums (C,) of all planes of a channel, in float64; ``inverse_std`` (C,) in float64. Through the batch's statistics:
    offset and slope follow from the sums.
    """
    channels = mean.size
    images = x.size // (channels * pixels)
    for c in prange(channels):
        total, product = 0.0, 0.0
        for image in range(images):
            first = (image * channels + c) * pixels
            parts = sum_and_products(0.0, dy[first:first + pixels], x[first:first + pixels], mean[c])
            total += parts[0]
            product += parts[1]
        sums[c], products[c] = total, product
        offset = mean.dtype.type(scale[c] * (total / (images * pixels)))
        slope = mean.dtype.type(scale[c] * (product * inverse_std[c] * inverse_std[c] / (images * pixels)))
        for image in range(images):
            first = (image * channels + c) * pixels
            out, values, g = dx[first:first + pixels], x[first:first + pixels], dy[first:first + pixels]
            for i in range(pixels):
                out[i] = multiply_add(scale[c], g[i], multiply_add(-slope, values[i] - mean[c], -offset))


@kernel
def pixel_gradient(dx, dy, x, mean, scale, offset, slope, width, chunk):
    """The same for rows of ``width``."""
    rows, streamed = dx.size // width, streams(dx, width)
    for block in prange((rows + chunk - 1) // chunk):
        buffer = np.empty(width if streamed else 0, dx.dtype)
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            values, g = x[row * width:(row + 1) * width], dy[row * width:(row + 1) * width]
            if streamed:
                for i in range(width):
                    buffer[i] = multiply_add(scale[i], g[i], multiply_add(-slope[i], values[i] - mean[i], -offset[i]))
                stream(dx, row * width, buffer, width)
                continue
            out = dx[row * width:(row + 1) * width]
            for i in range(width):
                out[i] = multiply_add(scale[i], g[i], multiply_add(-slope[i], values[i] - mean[i], -offset[i]))
        if streamed:
            fence()
