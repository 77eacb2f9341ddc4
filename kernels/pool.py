"""Pooling.

    max      y[p,q] = max over r,s of x[p u - pad + r d, q u - pad + s d], and where it stood, as r S + s
             with ReLU also of 0, which stands nowhere: R S
    average  y[p,q] = sum over the window, cut to the image, / divisor

"planes" are for (N, C, H, W), where a vector holds neighbouring columns; "pixels" are for (N, H, W, C), where it
holds channels. Arrays are flat.

A row of a small image is shorter than a vector. The max-pool kernels therefore write whole vectors: rows are
done in order, so whatever a vector puts behind its row is replaced by the rows that follow. Only near the end of
a chunk, where somebody else's rows follow, elements are done one at a time.

Work is cut into chunks of rows that depend on the problem alone, and every output has one writer with one order
of operations.
"""

import functools

import numpy as np
from numba import prange

from .jit import device_function, kernel
from .pool_tile import (
    LARGEST_STRIDE,
    VECTOR_BYTES,
    lanes_of,
    largest,
    routed,
    routed_once,
    spread,
    spread_pixel,
)
from .reductions import sum_of
from .rows import clear_run, copy_run, mean_of_cells
from .simd import address

WIDE = 16  # columns of a window that are worth vectors


@functools.cache
def max_pool(layout, stride, window, vector_bytes):
    """The kernel ``(y, where, x, row_table, column_table, sweep)`` for windows of (rows, columns), or of any with None.

    y (N, C, P, Q) the largest of each window of x (N, C, H, W) and ``where`` its position, or None; or the same
    with channels last. ``stride`` is from one element of a vector to the next: that of the windows' columns, or 1
    for channels. See :class:`~fastconv.kernels.pool_tile.Sweep` for the rest.
    """
    name = f"max_pool_{layout}_{stride}_{window[0]}x{window[1]}" if window else f"max_pool_{layout}_{stride}"
    if layout == "NHWC":
        return _pixels(name, largest(1, window=window), largest(1, single=True))
    near = min(stride, LARGEST_STRIDE)
    tile = largest(near, False, window, vector_bytes, fetched=near)  # rows advance as columns do, mostly
    return _planes(f"{name}_{vector_bytes}", tile, largest(1, single=True), 1, near, stride, vector_bytes)


@functools.cache
def max_pool_gradient(layout, stride, disjoint, window):
    """The kernel ``(dx, where, dy, row_table, column_table, sweep)``: dy to where each window's largest stood.

    ``disjoint`` windows touch without overlap, in rows and in columns; ``window`` is None or the (rows, columns) of
    windows at stride 1.
    """
    name = f"max_pool_gradient_{layout}_{stride}" + (f"_{window[0]}x{window[1]}" if window else "_disjoint" * disjoint)
    near = min(stride, LARGEST_STRIDE) if layout == "NCHW" else 1
    tile = routed_once(near) if disjoint else routed(near, window=window)
    if layout == "NHWC":
        return _pixels(name, tile, routed(1, single=True))
    return _planes(name, tile, routed(1, single=True), near, 1, stride)


@functools.cache
def max_pool_gradient_planes(window, vector_bytes):
    """:func:`max_pool_gradient` for planes: disjoint windows, all inside the image, that begin with the first pixel.

    The rows of pixels of one row of windows are made together where they are short: long ones would be too many
    streams.
    """
    height, width = window
    together, alone = spread(width, height, vector_bytes), spread(width, 1, vector_bytes)
    single = routed(1, single=True)

    def planes(dx, where, dy, row_table, column_table, sweep):
        lanes, row, size, like = vector_bytes // dy.itemsize, sweep.columns, dx.itemsize, dx.dtype.type(0)
        window_rows, step = sweep.images * sweep.source_rows, max(1, sweep.chunk // height)
        below, short = (sweep.rows - sweep.source_rows * height) * row, sweep.columns <= width * lanes
        for chunk in prange((window_rows + step - 1) // step):
            stop = min(window_rows, (chunk + 1) * step)
            end = (stop // sweep.source_rows * sweep.rows + stop % sweep.source_rows * height) * row
            image, p = divmod(chunk * step, sweep.source_rows)
            for window_row in range(chunk * step, stop):
                out, source = (image * sweep.rows + p * height) * row, window_row * sweep.source_columns
                if source + sweep.columns // width + lanes > dy.size:
                    for pixel in range(height * row):
                        single(dx, where, dy, column_table, (
                            out + pixel, source, pixel // row * width, 1, pixel % row), sweep)
                elif short:
                    together(dx, where, dy, out, source, sweep.source_columns, row, np.int64(0), end)
                else:
                    for i in range(height):
                        alone(dx, where, dy, out + i * row, source, sweep.source_columns, row, np.int64(i * width), end)
                p += 1
                if p == sweep.source_rows:
                    clear_run(like, address(dx) + (out + height * row) * size, below)
                    image, p = image + 1, 0
    planes.__name__ = f"max_pool_gradient_planes_{height}x{width}_{vector_bytes}"
    return kernel(planes)


@functools.cache
def max_pool_gradient_pixels(window, vector_bytes):
    """:func:`max_pool_gradient` for pixels of a vector of channels at least: disjoint windows, all inside the image.

    They begin with the first pixel.
    """
    (height, width), spread_window = window, spread_pixel(window, vector_bytes)

    def pixels(dx, where, dy, row_table, column_table, sweep):
        depth, row, size, like = sweep.depth, sweep.columns * sweep.depth, dx.itemsize, dx.dtype.type(0)
        window_rows, step = sweep.images * sweep.source_rows, max(1, sweep.chunk // height)
        rest, rows_below = row - sweep.source_columns * width * depth, sweep.rows - sweep.source_rows * height
        for chunk in prange((window_rows + step - 1) // step):
            for window_row in range(chunk * step, min(window_rows, (chunk + 1) * step)):
                image, p = divmod(window_row, sweep.source_rows)
                out, source = (image * sweep.rows + p * height) * row, window_row * sweep.source_columns * depth
                for q in range(sweep.source_columns):
                    spread_window(dx, where, dy, out + q * width * depth, row, depth, source + q * depth, depth)
                for i in range(1, (height if rest else 0) + 1):
                    clear_run(like, address(dx) + (out + i * row - rest) * size, rest)
                if p == sweep.source_rows - 1:
                    clear_run(like, address(dx) + (out + height * row) * size, rows_below * row)
    pixels.__name__ = f"max_pool_gradient_pixels_{height}x{width}_{vector_bytes}"
    return kernel(pixels)


def _planes(name, tile, single, target_step, source_step, stride, vector_bytes=VECTOR_BYTES):
    """A sweep over planes; a tile fills ``target_step`` vectors from ``source_step`` vectors a cell."""
    usable = stride <= LARGEST_STRIDE

    def planes(target, where, source, row_table, column_table, sweep):
        lanes, rows = vector_bytes // source.itemsize, sweep.images * sweep.rows
        for chunk in prange((rows + sweep.chunk - 1) // sweep.chunk):
            start, stop = chunk * sweep.chunk, min(rows, (chunk + 1) * sweep.chunk)
            end = stop * sweep.columns - lanes * target_step
            image, image_row = divmod(start, sweep.rows)
            for row in range(start, stop):
                cell = row_table[3 * image_row] * sweep.window_columns
                met = row_table[3 * image_row + 1]
                base = (image * sweep.source_rows + row_table[3 * image_row + 2]) * sweep.source_columns
                reach = base + sweep.source_columns + (met - 1) * max(sweep.row_source_step, 0) + (
                    (sweep.window_columns - 1) * max(sweep.column_source_step, 0)) + lanes * source_step
                tiled_from = sweep.first if usable and reach <= source.size else sweep.columns
                column = 0
                while column < sweep.columns:
                    out = row * sweep.columns + column
                    place = (out, base, cell, met, column)
                    if tiled_from <= column < sweep.last and out <= end:
                        if tile(target, where, source, column_table, place, sweep):
                            column = min(column + lanes * target_step, sweep.last)
                            continue
                        tiled_from = column + lanes
                    single(target, where, source, column_table, place, sweep)
                    column += 1
                image_row += 1
                if image_row == sweep.rows:
                    image, image_row = image + 1, 0
    planes.__name__ = name
    return kernel(planes)


def _pixels(name, tile, single):
    """A sweep over pixels with all their channels."""
    def pixels(target, where, source, row_table, column_table, sweep):
        lanes, rows, depth = lanes_of(source), sweep.images * sweep.rows, sweep.depth
        for chunk in prange((rows + sweep.chunk - 1) // sweep.chunk):
            start, stop = chunk * sweep.chunk, min(rows, (chunk + 1) * sweep.chunk)
            end = stop * sweep.columns * depth - lanes
            for row in range(start, stop):
                image = row // sweep.rows
                entry = 3 * (row - image * sweep.rows)
                cell = row_table[entry] * sweep.window_columns
                met = row_table[entry + 1]
                base = (image * sweep.source_rows + row_table[entry + 2]) * sweep.source_columns * depth
                reach = (met - 1) * max(sweep.row_source_step, 0) + lanes
                for column in range(sweep.columns):
                    out = (row * sweep.columns + column) * depth
                    room = source.size - reach - base - column_table[3 * column + 2] * depth - (
                        (column_table[3 * column + 1] - 1) * max(sweep.column_source_step, 0))
                    channel = 0
                    tiled_from = 0 if column_table[3 * column + 1] else depth
                    while channel < depth:
                        place = (out + channel, base + channel, cell, met, column)
                        if tiled_from <= channel <= min(room, end - out):
                            if tile(target, where, source, column_table, place, sweep):
                                channel += lanes
                                continue
                            tiled_from = channel + lanes
                        single(target, where, source, column_table, place, sweep)
                        channel += 1
    pixels.__name__ = name
    return kernel(pixels)


@kernel
def flat_indices(indices, where, row_bases, column_bases, cells, depth):
    """Indices h W + w of positions: the sum of what row, column and cell of the window contribute.

    row_bases (P) and column_bases (Q) are large and negative for windows without a pixel, whose index is -1.
    """
    p, q = row_bases.size, column_bases.size
    for row in prange(indices.size // (q * depth)):
        for j in range(q):
            first, base = (row * q + j) * depth, row_bases[row % p] + column_bases[j]
            for i in range(first, first + depth):
                indices[i] = max(base + cells[where[i]], -1)


@kernel
def unpool(y, x, indices, places, pixels, depth):
    """y (images, pixels, depth) = zeros with each x (images, places, depth) at its index; the last one stays."""
    for image in prange(x.size // (places * depth)):
        y[image * pixels * depth:(image + 1) * pixels * depth] = 0
        for i in range(image * places * depth, (image + 1) * places * depth):
            y[(image * pixels + indices[i]) * depth + i % depth] = x[i]


@kernel
def unpool_gradient(dx, dy, indices, places, pixels, depth):
    """dx (images, places, depth) taken from dy (images, pixels, depth)."""
    for image in prange(dx.size // (places * depth)):
        for i in range(image * places * depth, (image + 1) * places * depth):
            dx[i] = dy[(image * pixels + indices[i]) * depth + i % depth]


@kernel
def average_planes(y, x, rows, columns, row_counts, column_counts, planes, h, w, chunk):
    """y (planes, P, Q), x (planes, H, W): window p has image rows rows[2p] to rows[2p + 1], and so for columns.

    Divided by row_counts[p] * column_counts[q].
    """
    p, q = row_counts.size, column_counts.size
    wide = columns[1] - columns[0] >= WIDE
    for block in prange((planes * p + chunk - 1) // chunk):
        sums = np.empty(w, x.dtype)
        for row in range(block * chunk, min(planes * p, (block + 1) * chunk)):
            plane, i = divmod(row, p)
            sums[:] = 0
            for source in range(plane * h + rows[2 * i], plane * h + rows[2 * i + 1]):
                values = x[source * w:(source + 1) * w]
                for k in range(w):
                    sums[k] += values[k]
            for j in range(q):
                first, last = columns[2 * j], columns[2 * j + 1]
                if wide:
                    total = sum_of(sums[0], sums[first:last])
                else:
                    total = sums[first] if first < last else x.dtype.type(0)
                    for k in range(first + 1, last):
                        total += sums[k]
                y[row * q + j] = total / (row_counts[i] * column_counts[j])


@kernel
def average_pixels(y, x, rows, columns, row_counts, column_counts, images, h, w, depth, chunk):
    """The same for y (images, P, Q, depth) and x (images, H, W, depth)."""
    p, q = row_counts.size, column_counts.size
    for block in prange((images * p + chunk - 1) // chunk):
        for row in range(block * chunk, min(images * p, (block + 1) * chunk)):
            image, i = divmod(row, p)
            for j in range(q):
                cells = rows[2 * i + 1] - rows[2 * i], columns[2 * j + 1] - columns[2 * j]
                _mean(y, (row * q + j) * depth, x, ((image * h + rows[2 * i]) * w + columns[2 * j]) * depth, w * depth,
                      cells, depth, row_counts[i] * column_counts[j])


@kernel
def average_planes_gradient(dx, dy, rows, columns, row_counts, column_counts, planes, chunk):
    """dx (planes, H, W), dy (planes, P, Q): pixel row h lies in windows rows[2h] to rows[2h + 1]."""
    h, w = rows.size // 2, columns.size // 2
    p, q = row_counts.size, column_counts.size
    for block in prange((planes * h + chunk - 1) // chunk):
        first_row, like = block * chunk, dx.dtype.type(0)
        sums, met = np.zeros(q + 1, dx.dtype), _single_windows(columns, q)
        for row in range(first_row, min(planes * h, first_row + chunk)):
            plane, i = divmod(row, h)
            out = address(dx) + row * w * dx.itemsize
            if row > first_row and i and _same(rows, i):
                copy_run(like, out, out - w * dx.itemsize, w)
                continue
            sums[:q] = 0
            for window in range(rows[2 * i], rows[2 * i + 1]):
                values = dy[(plane * p + window) * q:(plane * p + window + 1) * q]
                for k in range(q):
                    sums[k] += values[k] / (row_counts[window] * column_counts[k])
            if met.size:
                for j in range(w):
                    dx[row * w + j] = sums[met[j]]
                continue
            for j in range(w):
                total = like
                for k in range(columns[2 * j], columns[2 * j + 1]):
                    total += sums[k]
                dx[row * w + j] = total


@device_function
def _same(windows, j):
    """Whether a pixel lies in the same windows as the one before."""
    return windows[2 * j] == windows[2 * j - 2] and windows[2 * j + 1] == windows[2 * j - 1]


@device_function(allocates=True)
def _single_windows(windows, none):
    """The window over each pixel, ``none`` where there is none; empty where a pixel has several."""
    met = np.empty(windows.size // 2, np.int64)
    for j in range(met.size):
        first, last = windows[2 * j], windows[2 * j + 1]
        if last - first > 1:
            return met[:0]
        met[j] = first if first < last else none
    return met


@kernel
def average_pixels_gradient(dx, dy, rows, columns, row_counts, column_counts, images, depth, chunk):
    """The same for dx (images, H, W, depth) and dy (images, P, Q, depth)."""
    h, w = rows.size // 2, columns.size // 2
    p, q = row_counts.size, column_counts.size
    for block in prange((images * h + chunk - 1) // chunk):
        alike, like = _all_alike(row_counts) and _all_alike(column_counts), dx.dtype.type(0)
        first_row, width, pixel = block * chunk, w * depth * dx.itemsize, depth * dx.itemsize
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
                    _mean(dx, (row * w + j) * depth, dy, ((image * p + first) * q + start) * depth, q * depth, cells,
                          depth, divisor)
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
def _mean(out, place, source, start, row_pitch, cells, depth, divisor):
    """Mean over rows and columns of cells of ``depth`` elements, from elements ``start`` of source to ``place``."""
    if depth >= lanes_of(out):
        size = out.itemsize
        mean_of_cells(address(out) + place * size, divisor, address(source) + start * size, row_pitch * size, cells[0],
                      depth * size, cells[1], depth)
        return
    for channel in range(depth):
        total = out.dtype.type(0)
        for row in range(cells[0]):
            for column in range(cells[1]):
                total += source[start + row * row_pitch + column * depth + channel]
        out[place + channel] = total / divisor


@device_function
def _all_alike(numbers):
    alike = True
    for number in numbers:
        alike = alike and number == numbers[0]
    return alike
