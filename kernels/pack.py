"""Packing and unpacking: between the user's layouts and the order the micro-kernel reads and writes."""

import numpy as np

from .jit import device_function
from .rows import LARGEST_ADVANCE, clear_run, copy_run, copy_runs, prefetch_rows, window
from .simd import address, lanes_of, transpose_block

PIECE = 2048  # elements of sums that one thread adds at a time


_window1, _window2, _window3, _window4 = (window(advance) for advance in (1, 2, 3, 4))


@device_function
def copy_rows(like, size, out, source, row_pitch, rows, columns, advance, first, last, begin, end):
    """``rows`` rows of ``columns``: out[i][j] = source[i row_pitch + advance j] for first <= j < last, else 0.

    ``out`` and ``source`` are addresses of elements of ``size`` bytes, of the type of the scalar ``like``; nothing
    outside of the addresses from ``begin`` to ``end`` is read. Up to a vector behind the last row is overwritten.
    """
    lanes = lanes_of(like)
    read = (columns + lanes - 1) // lanes * lanes * advance * size
    low, high = 0, rows  # the rows that can be read in whole vectors
    while low < rows and (source + low * row_pitch < begin or advance > LARGEST_ADVANCE):
        low += 1
    while high > low and source + (high - 1) * row_pitch + read > end:
        high -= 1
    for i in range(low):
        _copy_row(like, size, out + i * columns * size, source + i * row_pitch, columns, advance, first, last)
    if high > low:
        to, at = out + low * columns * size, source + low * row_pitch
        if advance == 1:
            _window1(like, to, at, row_pitch, high - low, first, last, columns)
        elif advance == 2:
            _window2(like, to, at, row_pitch, high - low, first, last, columns)
        elif advance == 3:
            _window3(like, to, at, row_pitch, high - low, first, last, columns)
        else:
            _window4(like, to, at, row_pitch, high - low, first, last, columns)
    for i in range(high, rows):
        _copy_row(like, size, out + i * columns * size, source + i * row_pitch, columns, advance, first, last)


@device_function
def _copy_row(like, size, out, source, columns, advance, first, last):
    """One row, reading no element more than it needs."""
    clear_run(like, out, columns)
    if advance == 1:
        copy_run(like, out + first * size, source + first * size, last - first)
    else:
        for j in range(first, last):
            copy_run(like, out + j * size, source + advance * j * size, 1)


@device_function
def copy_plane(like, size, out, plane, row_pitch, x_rows, first_row, advance_row, rows, columns, offset, advance, first,
               last, begin, end):
    """Rows ``first_row + advance_row i`` of the plane at an address, zero where there is none; see :func:`copy_rows`.

    Column j is ``offset + advance j`` of the plane.
    """
    above = min(rows, max(0, (advance_row - 1 - first_row) // advance_row))
    inside = max(above, min(rows, (x_rows - 1 - first_row) // advance_row + 1)) - above
    clear_run(like, out, above * columns)
    out += above * columns * size
    copy_rows(like, size, out, plane + (first_row + above * advance_row) * row_pitch + offset * size,
              advance_row * row_pitch, inside, columns, advance, first, last, begin, end)
    clear_run(like, out + inside * columns * size, (rows - above - inside) * columns)


@device_function
def pack_strip(scratch, start, x, g, image, group, first_row, rows, first_c, channels):
    """Input rows ``first_row ...`` of some channels of one image and group with zeros for padding.

    NCHW: (channels, rows, strip_columns); NHWC: (rows, strip_columns, channels). Negative padding crops. Up to a
    vector behind the strip is overwritten.
    """
    like, size, total = x.dtype.type(0), x.itemsize, g.groups * g.c
    begin, end = address(x), address(x) + x.size * x.itemsize
    out = address(scratch) + size * start
    first = min(g.strip_columns, max(0, -g.first_column))
    last = max(first, min(g.strip_columns, g.x_columns - g.first_column))
    if not g.nhwc:
        plane = begin + ((image * g.groups + group) * g.c + first_c) * g.x_rows * g.x_columns * size
        for c in range(channels):
            copy_plane(like, size, out + c * g.channel_pitch * size, plane + c * g.x_rows * g.x_columns * size,
                       g.x_columns * size, g.x_rows, first_row, 1, rows, g.strip_columns, g.first_column, 1, first,
                       last, begin, end)
    elif channels == g.pixel_pitch and channels == total:
        copy_plane(like, size, out, begin + image * g.x_rows * g.x_columns * total * size, g.x_columns * total * size,
                   g.x_rows, first_row, 1, rows, g.strip_columns * total, g.first_column * total, 1, first * total,
                   last * total, begin, end)
    else:
        image_start = begin + (image * g.x_rows * g.x_columns * total + group * g.c + first_c) * size
        for i in range(rows):
            row = first_row + i
            to = out + i * g.row_pitch * size
            if row < 0 or row >= g.x_rows:
                clear_run(like, to, g.row_pitch)
            else:
                source = image_start + (row * g.x_columns + max(0, g.first_column)) * total * size
                _pack_pixels_row(like, size, to, source, first, last, channels, g)


@device_function
def _pack_pixels_row(like, size, out, source, first, last, channels, g):
    """``channels`` out of all the channels of the pixels of a row, zeros outside of [first, last)."""
    pixel = g.pixel_pitch * size
    clear_run(like, out, first * g.pixel_pitch)
    copy_runs(like, out + first * pixel, pixel, source, g.groups * g.c * size, last - first, channels)
    clear_run(like, out + last * pixel, (g.strip_columns - last) * g.pixel_pitch)


@device_function
def store_strip(y, scratch, acc, bias, g, image, group, block, first_out, rows_out):
    """The accumulators (pixels, width) plus the bias row at ``bias`` (-1 for none) into ``y``."""
    store_lattice(y, scratch, acc, bias, g, image, group, block, first_out, rows_out, g.start_row, g.start_column,
                  g.columns)


@device_function
def store_lattice(y, scratch, acc, bias, g, image, group, block, first_out, rows_out, start_row, start_column, columns):
    """:func:`store_strip` from another start, and only some of the accumulators' columns."""
    first_k = block * g.width
    valid = min(g.width, g.k - first_k)
    channel = group * g.k + first_k
    pixels = rows_out * g.columns
    first_row = start_row + first_out * g.step_row
    if g.nhwc:
        _store_pixels(y.reshape(-1), scratch, acc, bias, g, image, channel, valid, first_row, rows_out, start_column,
                      columns)
    elif g.step_row == 1 and g.step_column == 1 and pixels >= g.lanes:
        plane = g.y_rows * g.y_columns
        out = (image * g.groups * g.k + channel) * plane + first_out * g.columns
        store_transposed(y, out, plane, scratch, acc, g.width, pixels, valid, g.lanes, bias)
    else:
        _store_scattered(y.reshape(-1), scratch, acc, bias, g, image, channel, valid, first_row, rows_out,
                         start_column, columns)


@device_function
def store_transposed(y, out, plane, source, start, width, pixels, channels, lanes, bias):
    """(pixels, width) from ``start`` of ``source`` into planes of ``y``; at least ``lanes`` pixels.

    The last block overlaps the one before, which stores the same numbers twice.
    """
    size = y.itemsize
    for v in range(0, channels, lanes):
        bias_address = address(source) + size * (bias + v) if bias >= 0 else np.int64(0)
        for i in range(0, pixels, lanes):
            pixel = min(i, pixels - lanes)
            transpose_block(y, (address(source) + size * (start + pixel * width + v), width * size, lanes,
                                address(y) + size * (out + v * plane + pixel), plane * size,
                                min(lanes, channels - v), bias_address))


@device_function
def _store_pixels(flat, scratch, acc, bias, g, image, channel, valid, first_row, rows_out, start_column, columns):
    total = g.groups * g.k
    for i in range(rows_out):
        row = image * g.y_rows + first_row + i * g.step_row
        for j in range(columns):
            out = (row * g.y_columns + start_column + j * g.step_column) * total + channel
            source = acc + (i * g.columns + j) * g.width
            if bias >= 0:
                for lane in range(valid):
                    flat[out + lane] = scratch[source + lane] + scratch[bias + lane]
            else:
                copy_run(flat.dtype.type(0), address(flat) + out * flat.itemsize,
                         address(scratch) + source * flat.itemsize, valid)


@device_function
def _store_scattered(flat, scratch, acc, bias, g, image, channel, valid, first_row, rows_out, start_column, columns):
    for lane in range(valid):
        addend = scratch[bias + lane] if bias >= 0 else scratch.dtype.type(0)
        plane = (image * g.groups * g.k + channel + lane) * g.y_rows
        for i in range(rows_out):
            row = (plane + first_row + i * g.step_row) * g.y_columns + start_column
            source = acc + i * g.columns * g.width + lane
            for j in range(columns):
                flat[row + j * g.step_column] = scratch[source + j * g.width] + addend


@device_function
def pack_pixels(scratch, start, dy, g, image, group, block, blocks, first_out, rows_out):
    """Output rows of dy as (pixels, width), some blocks of channels; lanes beyond K hold anything finite or not.

    NHWC: blocks ``g.block_pitch`` elements apart. NCHW: one block.
    """
    valid = min(g.width, g.k - block * g.width)
    channel = group * g.k + block * g.width
    pixels = rows_out * g.y_columns
    size = dy.itemsize
    if g.nhwc:
        pitch = g.groups * g.k * size
        source = address(dy) + ((image * g.y_rows + first_out) * g.y_columns) * pitch + channel * size
        for i in range(pixels):
            for j in range(blocks):
                copy_run(dy.dtype.type(0), address(scratch) + (start + j * g.block_pitch + i * g.width) * size,
                         source + i * pitch + j * g.width * size, min(g.width, g.k - (block + j) * g.width))
        return
    flat = dy.reshape(-1)
    plane = g.y_rows * g.y_columns
    source = (image * g.groups * g.k + channel) * plane + first_out * g.y_columns
    if pixels < g.lanes:
        for lane in range(valid):
            for i in range(pixels):
                scratch[start + i * g.width + lane] = flat[source + lane * plane + i]
        return
    for v in range(0, valid, g.lanes):
        for i in range(0, pixels, g.lanes):
            pixel = min(i, pixels - g.lanes)
            transpose_block(dy, (address(dy) + size * (source + v * plane + pixel), plane * size,
                                 min(g.lanes, valid - v),
                                 address(scratch) + size * (start + pixel * g.width + v), g.width * size,
                                 g.lanes, np.int64(0)))


@device_function
def pack_vector(scratch, x, g, planes, pixels, image, group, first_row, first_column, step, rows, first_c,
                ahead):
    """One vector of channels of every ``step``-th row and column of NCHW as (rows, strip_columns, lanes).

    Returns its address.

    ``pixels`` is its place in the scratch, with room for lanes x lanes elements more; ``planes`` has it for lanes
    rows of whole vectors. Lanes beyond the last channel hold anything. ``ahead``, where not 0, is the distance in bytes
    to what is packed next, which is fetched into the cache.
    """
    size, like, pixel = x.itemsize, x.dtype.type(0), g.lanes * x.itemsize
    channels = min(g.lanes, g.c - first_c)
    left = min(g.strip_columns, max(0, (step - 1 - first_column) // step))
    right = max(left, min(g.strip_columns, (g.x_columns - 1 - first_column) // step + 1))
    plane = g.x_rows * g.x_columns * size
    for i in range(rows):
        row = first_row + step * i
        out = address(scratch) + size * (pixels + i * g.strip_columns * g.lanes)
        column = row * g.x_columns + first_column + step * left
        if row < 0 or row >= g.x_rows:
            clear_run(like, out, g.strip_columns * g.lanes)
        else:
            source = address(x) + ((image * g.groups + group) * g.c + first_c) * plane + column * size
            _transpose_row(x, scratch, planes, out + left * pixel, source, step, plane, channels, right - left, g.lanes,
                           ahead)
            clear_run(like, out, left * g.lanes)
            clear_run(like, out + right * pixel, (g.strip_columns - right) * g.lanes)
    return address(scratch) + size * pixels


@device_function
def _transpose_row(x, scratch, planes, out, source, step, plane, channels, columns, lanes, ahead):
    """``columns`` pixels of some planes as (columns, lanes); up to lanes - 1 pixels more are written."""
    size = x.itemsize
    begin, end = address(x), address(x) + x.size * size
    if step > 1 or (columns < lanes and source + (channels - 1) * plane + lanes * size > end):
        row = (columns + lanes - 1) // lanes * lanes * size  # apart, or too near the end of x for whole vectors
        for c in range(channels):
            copy_rows(x.dtype.type(0), size, address(scratch) + planes * size + c * row, source + c * plane, plane, 1,
                      columns, step, 0, columns, begin, end)
        source, plane = address(scratch) + planes * size, row
    for i in range(0, columns, lanes):
        at = max(0, min(i, columns - lanes))
        if ahead != 0:
            prefetch_rows(source + at * size + ahead, plane, channels)
        transpose_block(x, (source + at * size, plane, channels, out + at * lanes * size, lanes * size, lanes,
                            np.int64(0)))


@device_function
def store_sum(dw, scratch, total, g, group, block, first_c, channels):
    """The sum (channels * R * S, width) into dw (width, C * R * S), from input channel ``first_c`` on."""
    flat = dw.reshape(-1)
    rows, row = channels * g.taps, g.c * g.taps
    valid = min(g.width, g.k - block * g.width)
    out = (group * g.k + block * g.width) * row + first_c * g.taps
    size = dw.itemsize
    if rows >= g.lanes:
        for v in range(0, valid, g.lanes):
            for i in range(0, rows, g.lanes):
                place = min(i, rows - g.lanes)
                transpose_block(dw, (address(scratch) + size * (total + place * g.width + v), g.width * size, g.lanes,
                                     address(dw) + size * (out + v * row + place), row * size,
                                     min(g.lanes, valid - v), np.int64(0)))
    else:
        for lane in range(valid):
            for place in range(rows):
                flat[out + lane * row + place] = scratch[total + place * g.width + lane]


@device_function
def add_chunks(scratch, length, chunks, piece):
    """Add sums of ``length`` elements, one a chunk, in the order of the chunks into the first: one piece of them."""
    start, stop = piece * PIECE, min(length, (piece + 1) * PIECE)
    total = scratch[start:stop]
    for chunk in range(1, chunks):
        other = scratch[chunk * length + start:chunk * length + stop]
        for i in range(total.size):  # over slices, so that it vectorises
            total[i] += other[i]


@device_function
def store_sums(flat, scratch, chunks):
    """The chunks' sums, added in their order: too little work for threads of its own."""
    for piece in range((flat.size + PIECE - 1) // PIECE):
        add_chunks(scratch, flat.size, chunks, piece)
    for i in range(flat.size):
        flat[i] = scratch[i]
