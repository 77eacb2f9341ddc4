"""Average pooling: y[p,q] = sum over the window, cut to the image, / divisor.

"planes" are for (N, C, H, W), where the rows of a window are added in vectors of columns, and then its columns;
"pixels" are for (N, H, W, C), where a vector holds channels. Arrays are flat.

Bounds of an axis are pairs: window p has image rows rows[2p] to rows[2p + 1]. Backward they are the other way round:
pixel row h lies in windows rows[2h] to rows[2h + 1]. What divides is row_counts[p] column_counts[q].

Work is cut into chunks of rows that depend on the problem alone, and every output has one writer with one order
of operations.
"""

import functools

import numpy as np
from numba import prange

from .jit import device_function, kernel
from .pool_average_tile import spread, sum_of_rows, window_means
from .reductions import sum_of
from .rows import copy_run, fill_run, mean_of_cells
from .simd import address, lanes_of

WIDE = 16  # columns of a window that are worth vectors
_sum_any_rows, _mean_any_rows = sum_of_rows(2), sum_of_rows(1, divided=True)


@functools.cache
def average_planes_regular(stride, width, height):
    """The kernel for windows of ``height`` x ``width`` pixels that begin ``stride`` columns after one another.

    Takes ``(y, x, rows, row_counts, column_counts, q, before, pitch, strip, chained, planes, h, w, chunk)``: y (planes,
    P, Q), x (planes, H, W), with ``before`` columns of padding. The pixels of ``strip`` rows of windows are added
    together; their sums lie ``pitch`` elements apart. ``chained``: their windows follow each other evenly and their
    row_counts are alike, so they are one run. column_counts are repeated for each of them.
    """
    means, add_rows = window_means(stride, width), sum_of_rows(height)

    def planes_regular(y, x, rows, row_counts, column_counts, q, before, pitch, strip, chained, planes, h, w,
                       chunk):
        p, size, like = row_counts.size, x.itemsize, x.dtype.type(0)
        for block in prange((planes * p + chunk - 1) // chunk):
            sums = np.zeros(strip * pitch + (stride + 1) * lanes_of(x) + width, x.dtype)
            row, stop = block * chunk, min(planes * p, (block + 1) * chunk)
            plane, i = divmod(row, p)
            while row < stop:
                count, first = min(strip, stop - row), i
                for place in range(count):
                    add_rows(like, address(sums) + (place * pitch + before) * size,
                             address(x) + (plane * h + rows[2 * i]) * w * size, w * size,
                             rows[2 * i + 1] - rows[2 * i], min(w, pitch - before))
                    i += 1
                    if i == p:
                        plane, i = plane + 1, 0
                for place in range(1 if chained else count):
                    means(address(y) + (row + place) * q * size, address(sums) + place * pitch * size,
                          row_counts[(first + place) % p], address(column_counts), count * q if chained else q)
                row += count
    planes_regular.__name__ = f"average_planes_{stride}_{width}x{height}"
    return kernel(planes_regular)


@kernel
def average_planes(y, x, rows, columns, row_counts, column_counts, planes, h, w, chunk):
    """y (planes, P, Q), x (planes, H, W), for any windows."""
    p, q, size, like = row_counts.size, column_counts.size, x.itemsize, x.dtype.type(0)
    for block in prange((planes * p + chunk - 1) // chunk):
        sums = np.empty(w + lanes_of(x), x.dtype)
        for row in range(block * chunk, min(planes * p, (block + 1) * chunk)):
            plane, i = divmod(row, p)
            source, met = (plane * h + rows[2 * i]) * w, rows[2 * i + 1] - rows[2 * i]
            if met != 1:
                _sum_any_rows(like, address(sums), address(x) + source * size, w * size, met, w)
            for j in range(q):
                first, last = columns[2 * j], columns[2 * j + 1]
                total = _sum_of_run(x, source + first, last - first) if met == 1 else (
                    _sum_of_run(sums, first, last - first))
                y[row * q + j] = total / (row_counts[i] * column_counts[j])


@device_function(forceinline=True)
def _sum_of_run(values, start, count):
    if count >= WIDE:
        return sum_of(values.dtype.type(0), values[start:start + count])
    total = values[start] if count else values.dtype.type(0)
    for k in range(start + 1, start + count):
        total += values[k]
    return total


@kernel
def average_pixels(y, x, rows, columns, row_counts, column_counts, images, h, w, depth, chunk):
    """y (images, P, Q, depth), x (images, H, W, depth)."""
    p, q, size = row_counts.size, column_counts.size, x.itemsize
    for block in prange((images * p + chunk - 1) // chunk):
        for row in range(block * chunk, min(images * p, (block + 1) * chunk)):
            image, i = divmod(row, p)
            for j in range(q):
                first = ((image * h + rows[2 * i]) * w + columns[2 * j]) * depth
                mean_of_cells(address(y) + (row * q + j) * depth * size, row_counts[i] * column_counts[j],
                              address(x) + first * size, w * depth * size, rows[2 * i + 1] - rows[2 * i],
                              depth * size, columns[2 * j + 1] - columns[2 * j], depth)


@functools.cache
def average_planes_regular_gradient(stride, width, most):
    """The kernel ``(dx, dy, rows, row_counts, column_counts, before, planes, w, chunk)`` for windows as forward.

    dx (planes, H, W), dy (planes, P, Q); a pixel row lies in ``most`` rows of windows at most.
    """
    spread_windows, mean_rows, reach = spread(stride, width), sum_of_rows(most, divided=True), (width - 1) // stride

    def planes_regular(dx, dy, rows, row_counts, column_counts, before, planes, w, chunk):
        h, p, q, size, like = rows.size // 2, row_counts.size, column_counts.size, dx.itemsize, dx.dtype.type(0)
        alike, lanes = _all_alike(row_counts) and _all_alike(column_counts), lanes_of(dx)
        divisor, vectors = row_counts[0] * column_counts[0], (before + w + stride * lanes - 1) // (stride * lanes)
        for block in prange((planes * h + chunk - 1) // chunk):
            sums = np.zeros(reach + max(q, vectors * lanes) + lanes, dx.dtype)
            columns = np.empty(vectors * lanes * stride, dx.dtype)
            first_row = block * chunk
            plane, i = divmod(first_row, h)
            for row in range(first_row, min(planes * h, first_row + chunk)):
                if row == first_row or i == 0 or not _same(rows, i):
                    first, last = rows[2 * i], rows[2 * i + 1]
                    if alike:
                        mean_rows(divisor, address(sums) + reach * size, address(dy) + (plane * p + first) * q * size,
                                  q * size, last - first, q)
                    else:
                        _add_quotients(sums, reach, dy, plane * p * q, first, last, row_counts, column_counts)
                    spread_windows(like, address(columns), address(sums) + reach * size, vectors)
                copy_run(like, address(dx) + row * w * size, address(columns) + before * size, w)
                i += 1
                if i == h:
                    plane, i = plane + 1, 0
    planes_regular.__name__ = f"average_planes_gradient_{stride}_{width}_{most}"
    return kernel(planes_regular)


@kernel
def average_planes_gradient(dx, dy, rows, runs, row_counts, column_counts, planes, w, chunk):
    """dx (planes, H, W), dy (planes, P, Q), for any windows.

    Columns come in runs that lie in the same windows: (first column, first window, last window),
    and behind them the number of columns.
    """
    h, p, q, size, like = rows.size // 2, row_counts.size, column_counts.size, dx.itemsize, dx.dtype.type(0)
    alike, divisor = _all_alike(row_counts) and _all_alike(column_counts), row_counts[0] * column_counts[0]
    for block in prange((planes * h + chunk - 1) // chunk):
        first_row, sums = block * chunk, np.empty(q + lanes_of(dx), dx.dtype)
        for row in range(first_row, min(planes * h, first_row + chunk)):
            plane, i = divmod(row, h)
            out = address(dx) + row * w * size
            if row > first_row and i and _same(rows, i):
                copy_run(like, out, out - w * size, w)
                continue
            first, last = rows[2 * i], rows[2 * i + 1]
            if alike:
                _mean_any_rows(divisor, address(sums), address(dy) + (plane * p + first) * q * size, q * size,
                               last - first, q)
            else:
                _add_quotients(sums, 0, dy, plane * p * q, first, last, row_counts, column_counts)
            for run in range(0, runs.size - 1, 3):
                total = like
                for window in range(runs[run + 1], runs[run + 2]):
                    total += sums[window]
                fill_run(out + runs[run] * size, total, runs[run + 3] - runs[run])


@device_function
def _add_quotients(sums, start, dy, plane, first, last, row_counts, column_counts):
    """sums[start + j] = sum of window j / its divisor over the rows from ``first`` to ``last`` of dy[plane:]."""
    q = column_counts.size
    sums[start:start + q] = 0
    for row in range(first, last):
        for j in range(q):
            sums[start + j] += dy[plane + row * q + j] / (row_counts[row] * column_counts[j])


@device_function
def _same(windows, j):
    """Whether a pixel lies in the same windows as the one before."""
    return windows[2 * j] == windows[2 * j - 2] and windows[2 * j + 1] == windows[2 * j - 1]


@kernel
def average_pixels_gradient(dx, dy, rows, columns, row_counts, column_counts, images, depth, chunk):
    """dx (images, H, W, depth) and dy (images, P, Q, depth)."""
    h, w = rows.size // 2, columns.size // 2
    p, q = row_counts.size, column_counts.size
    alike, size, like = _all_alike(row_counts) and _all_alike(column_counts), dx.itemsize, dx.dtype.type(0)
    for block in prange((images * h + chunk - 1) // chunk):
        first_row, width, pixel = block * chunk, w * depth * size, depth * size
        for row in range(first_row, min(images * h, first_row + chunk)):
            image, i = divmod(row, h)
            out = address(dx) + row * width
            if row > first_row and i and _same(rows, i):
                copy_run(like, out, out - width, w * depth)
                continue
            for j in range(w):
                if j and _same(columns, j):
                    copy_run(like, out + j * pixel, out + (j - 1) * pixel, depth)
                    continue
                first, start = rows[2 * i], columns[2 * j]
                cells = rows[2 * i + 1] - first, columns[2 * j + 1] - start
                if alike or cells[0] * cells[1] == 1:
                    divisor = row_counts[min(first, p - 1)] * column_counts[min(start, q - 1)]
                    mean_of_cells(out + j * pixel, divisor, address(dy) + ((image * p + first) * q + start) * pixel,
                                  q * pixel, cells[0], pixel, cells[1], depth)
                    continue
                sums = dx[(row * w + j) * depth:(row * w + j + 1) * depth]
                sums[:] = 0
                for window in range(first, first + cells[0]):
                    for k in range(start, start + cells[1]):
                        source = ((image * p + window) * q + k) * depth
                        _add_share(sums, dy[source:source + depth], row_counts[window] * column_counts[k])


@device_function
def _add_share(sums, values, divisor):
    for channel in range(sums.size):
        sums[channel] += values[channel] / divisor


@device_function
def _all_alike(numbers):
    alike = True
    for number in numbers:
        alike = alike and number == numbers[0]
    return alike
