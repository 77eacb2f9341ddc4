"""Batch normalisation: y = (x - mean) scale + shift for each channel, with scale = weight / sqrt(var + eps).

"planes" are for (N, C, pixels), "pixels" are for rows of channels (L, C). Arrays are flat, vectors of channels (C).
Sums are taken in float64 over parts of fixed size, which the caller combines in a fixed order: a part is a plane,
or ``chunk`` rows.
"""

import numpy as np
from numba import prange

from .elementary import multiply_add
from .jit import kernel
from .reductions import sum_and_products, sum_of, sum_of_squares


@kernel
def plane_moments(means, squares, x, pixels, chunk):
    """Of each plane (N C planes of ``pixels``) the mean, and the sum of squares of the distances from it."""
    planes = x.reshape(means.size, pixels)
    for block in prange((means.size + chunk - 1) // chunk):
        for plane in range(block * chunk, min(means.size, (block + 1) * chunk)):
            mean = sum_of(0.0, planes[plane]) / pixels
            means[plane] = mean
            squares[plane] = sum_of_squares(0.0, planes[plane], mean)


@kernel
def pixel_moments(means, squares, x, channels, chunk):
    """The same for each channel of each ``chunk`` of rows: means, squares (chunks, C), x (L, C)."""
    rows = x.size // channels
    for block in prange((rows + chunk - 1) // chunk):
        first, last = block * chunk, min(rows, (block + 1) * chunk)
        mean = means[block * channels:(block + 1) * channels]
        square = squares[block * channels:(block + 1) * channels]
        mean[:] = 0
        square[:] = 0
        for row in range(first, last):
            values = x[row * channels:(row + 1) * channels]
            for c in range(channels):
                mean[c] += values[c]
        for c in range(channels):
            mean[c] /= last - first
        for row in range(first, last):
            values = x[row * channels:(row + 1) * channels]
            for c in range(channels):
                distance = values[c] - mean[c]
                square[c] = multiply_add(distance, distance, square[c])


@kernel
def plane_products(sums, products, dy, x, mean, pixels, chunk):
    """Of each plane sum(dy) and sum(dy (x - mean))."""
    values, g = x.reshape(sums.size, pixels), dy.reshape(sums.size, pixels)
    for block in prange((sums.size + chunk - 1) // chunk):
        for plane in range(block * chunk, min(sums.size, (block + 1) * chunk)):
            sums[plane], products[plane] = sum_and_products(0.0, g[plane], values[plane], mean[plane % mean.size])


@kernel
def pixel_products(sums, products, dy, x, mean, channels, chunk):
    """The same for each channel of each ``chunk`` of rows: sums, products (chunks, C)."""
    rows = x.size // channels
    for block in prange((rows + chunk - 1) // chunk):
        total = sums[block * channels:(block + 1) * channels]
        product = products[block * channels:(block + 1) * channels]
        total[:] = 0
        product[:] = 0
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            values, g = x[row * channels:(row + 1) * channels], dy[row * channels:(row + 1) * channels]
            for c in range(channels):
                total[c] += g[c]
                product[c] = multiply_add(np.float64(g[c]), np.float64(values[c] - mean[c]), product[c])


@kernel
def normalise_planes(y, x, mean, scale, shift, pixels, chunk):
    """y = (x - mean) scale + shift; y, x (N, C, pixels)."""
    planes = y.size // pixels
    for block in prange((planes + chunk - 1) // chunk):
        for plane in range(block * chunk, min(planes, (block + 1) * chunk)):
            out, values = y[plane * pixels:(plane + 1) * pixels], x[plane * pixels:(plane + 1) * pixels]
            c = plane % mean.size
            for i in range(pixels):
                out[i] = multiply_add(values[i] - mean[c], scale[c], shift[c])


@kernel
def normalise_pixels(y, x, mean, scale, shift, channels, chunk):
    """The same for y, x (L, C)."""
    rows = y.size // channels
    for block in prange((rows + chunk - 1) // chunk):
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            out, values = y[row * channels:(row + 1) * channels], x[row * channels:(row + 1) * channels]
            for c in range(channels):
                out[c] = multiply_add(values[c] - mean[c], scale[c], shift[c])


@kernel
def plane_gradient(dx, dy, x, mean, scale, offset, slope, pixels, chunk):
    """dx = scale dy - offset - slope (x - mean); dx, dy, x (N, C, pixels)."""
    planes = dx.size // pixels
    for block in prange((planes + chunk - 1) // chunk):
        for plane in range(block * chunk, min(planes, (block + 1) * chunk)):
            out, values = dx[plane * pixels:(plane + 1) * pixels], x[plane * pixels:(plane + 1) * pixels]
            g = dy[plane * pixels:(plane + 1) * pixels]
            c = plane % mean.size
            for i in range(pixels):
                out[i] = multiply_add(scale[c], g[i], multiply_add(-slope[c], values[i] - mean[c], -offset[c]))


@kernel
def pixel_gradient(dx, dy, x, mean, scale, offset, slope, channels, chunk):
    """The same for dx, dy, x (L, C)."""
    rows = dx.size // channels
    for block in prange((rows + chunk - 1) // chunk):
        for row in range(block * chunk, min(rows, (block + 1) * chunk)):
            out, values = dx[row * channels:(row + 1) * channels], x[row * channels:(row + 1) * channels]
            g = dy[row * channels:(row + 1) * channels]
            for c in range(channels):
                out[c] = multiply_add(scale[c], g[c], multiply_add(-slope[c], values[c] - mean[c], -offset[c]))
