"""Max-pooling: y[p,q] = max over r,s of x[p u - pad + r d, q u - pad + s d], and where it stood, as r S + s.

With ReLU also of 0, which stands nowhere: R S.

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

from .blocking import geometry_type
from .jit import kernel
from .pool_tile import (
    LARGEST_STRIDE,
    VECTOR_BYTES,
    lanes_of,
    largest,
    largest_pixel,
    routed,
    routed_once,
    spread,
    spread_pixel,
)
from .rows import clear_run
from .simd import address

PIXELS = geometry_type("images depth rows columns source_rows source_columns row_stride column_stride chunk floor")


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
def max_pool_planes(stride, window, vector_bytes):
    """:func:`max_pool` for planes: windows all inside the image, that begin with the first pixel.

    They need no tables, which takes short rows half the time.
    """
    tile, single = largest(stride, False, window, vector_bytes, stride, inside=True), largest(1, single=True)
    height, width = window

    def planes(y, where, x, row_table, column_table, sweep):
        lanes, rows, step = vector_bytes // x.itemsize, sweep.images * sweep.rows, row_table[5] * sweep.source_columns
        plane = sweep.source_rows * sweep.source_columns
        last = x.size - (height - 1) * sweep.row_source_step - (width - 1) * sweep.column_source_step - lanes * stride
        for chunk in prange((rows + sweep.chunk - 1) // sweep.chunk):
            start, stop = chunk * sweep.chunk, min(rows, (chunk + 1) * sweep.chunk)
            image, i = divmod(start, sweep.rows)
            end = stop * sweep.columns - lanes
            for row in range(start, stop):
                base, out = image * plane + i * step, row * sweep.columns
                for column in range(0, sweep.columns, lanes):
                    if out + column <= end and base + column * stride <= last and tile(
                            y, where, x, column_table, (out + column, base, 0, height, column), sweep):
                        continue
                    for j in range(column, min(column + lanes, sweep.columns)):
                        single(y, where, x, column_table, (out + j, base, 0, height, j), sweep)
                i += 1
                if i == sweep.rows:
                    image, i = image + 1, 0
    planes.__name__ = f"max_pool_planes_{stride}_{height}x{width}_{vector_bytes}"
    return kernel(planes)


@functools.cache
def max_pool_pixels(window, vector_bytes):
    """:func:`max_pool` for pixels of a vector of channels at least: ``(y, where, x, sizes)``, windows as for planes.

    ``sizes`` are :data:`PIXELS` of int64.
    """
    height, width = window
    largest_window = largest_pixel(window, vector_bytes)

    def pixels(y, where, x, sizes):
        for chunk in prange((sizes[0].images * sizes[0].rows + sizes[0].chunk - 1) // sizes[0].chunk):
            g = sizes[0]
            row = g.source_columns * g.depth
            for window_row in range(chunk * g.chunk, min(g.images * g.rows, (chunk + 1) * g.chunk)):
                image, p = divmod(window_row, g.rows)
                source, out = (image * g.source_rows + p * g.row_stride) * row, window_row * g.columns * g.depth
                for q in range(g.columns):
                    largest_window(y, where, x, out + q * g.depth, source + q * g.column_stride * g.depth, row, g.depth,
                                   g.depth, g.floor)
    pixels.__name__ = f"max_pool_pixels_{height}x{width}_{vector_bytes}"
    return kernel(pixels)


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
