"""Winograd's patches and tiles in NHWC: read and written where they lie, each with all of its channels.

Only what reaches over an edge of the image is copied, as is what would not stay in L1 together. What runs once a tile
takes addresses.
"""

from .blocking import rows_held
from .jit import device_function
from .rows import clear_runs, copy_runs
from .simd import address, call_tile

PATCH_CHANNELS = 64  # of a patch that are read together: with all of its pixels a share of L1


def stays_in_cache(pixels, channels, step, size):
    """Whether L1 holds that many pixels, each ``step``-th of an image, until every vector of a line was read."""
    return pixels <= rows_held(channels * step * size)


@device_function
def v_place(g, index):
    """Where V has an index of the reduction: each block of it by itself, so that what a tile reads is one run."""
    return index // g.reduction_block * g.v_block + index % g.reduction_block


@device_function
def _patch(like, size, begin, end, buffer, g, side, step, image, group, row, column, first_c, channels):
    """Every ``step``-th of side x side pixels from (row, column), zero beyond the image, some channels of each.

    Returns the address, the bytes from row to row, and from pixel to pixel; vectors that begin with one of the
    ``channels`` can be read. The array is from address ``begin`` to ``end``, of elements of ``size`` bytes, the type
    of the scalar ``like``; ``buffer`` has room for side x side x PATCH_CHANNELS elements.
    """
    pixel = g.groups * g.c * size
    reach = (side - 1) * step
    source = begin + ((image * g.x_rows + row) * g.x_columns + column) * pixel + (group * g.c + first_c) * size
    last = source + reach * (g.x_columns + 1) * pixel + (channels + g.lanes - 1) // g.lanes * g.lanes * size
    if (g.in_place and row >= 0 and column >= 0 and row + reach < g.x_rows and column + reach < g.x_columns
            and last <= end):
        return source, step * g.x_columns * pixel, step * pixel
    width = PATCH_CHANNELS * size
    first = min(side, max(0, (step - 1 - column) // step))
    last = max(first, min(side, (g.x_columns - column + step - 1) // step))
    for i in range(side):
        out, known = buffer + i * side * width, row + i * step >= 0 and row + i * step < g.x_rows
        left, right = (first, last) if known else (0, 0)
        clear_runs(like, out, width, left, channels)
        copy_runs(like, out + left * width, width, source + (i * g.x_columns + left) * step * pixel, step * pixel,
                  right - left, channels)
        clear_runs(like, out + right * width, width, side - right, channels)
    return buffer, side * width, width


@device_function
def transform_band(scratch, x, g, buffer, out, index, side, step, image, group, row, column, first_c, channels,
                   tile_pitch, point):
    """A band's points: patches of ``channels`` from ``first_c`` on, each ``g.side`` pixels further right.

    ``buffer`` and ``out`` are places in the scratch: for a patch, and for the first tile's first point, whose channels
    are those from ``index`` of the reduction on. From tile to tile it is ``tile_pitch`` elements, from point to point
    ``point``.
    """
    like, size, vector = x.dtype.type(0), x.itemsize, g.lanes * x.itemsize
    begin, end = address(x), address(x) + x.size * size
    to, buffer_address, pitch = address(scratch) + out * size, address(scratch) + buffer * size, point * size
    for tile in range(g.band_tiles):
        for piece in range(0, channels, PATCH_CHANNELS):
            count = min(PATCH_CHANNELS, channels - piece)
            source, source_row, pixel = _patch(like, size, begin, end, buffer_address, g, side, step, image, group, row,
                                               column + tile * g.side * step, first_c + piece, count)
            call_tile(g.to_points, (source, source_row, pixel, vector, to + v_place(g, index + piece) * size,
                                    g.grid * pitch, pitch, vector, (count + g.lanes - 1) // g.lanes))
        to += tile_pitch * size


@device_function
def store_tile(like, size, begin, buffer, g, source, point, bias, image, row, column, channel, channels):
    """M of one tile, its points from ``source`` on, transformed back into pixels from (row, column) on.

    ``channels`` of all groups' from ``channel`` on; ``bias`` is the address of theirs, or 0. The array is from address
    ``begin`` on, of elements of ``size`` bytes, the type of the scalar ``like``; ``buffer`` has room for a tile.
    """
    d, vector = g.dilation * g.spread, g.lanes * size
    pixel = g.groups * g.k * size
    y = begin + ((image * g.y_rows + row) * g.y_columns + column) * pixel + channel * size
    rows = min(g.side, (g.y_rows - row + d - 1) // d)
    columns = min(g.side, (g.y_columns - column + d - 1) // d)
    out, out_row, out_pixel = y, d * g.y_columns * pixel, d * pixel
    in_place = rows == g.side and columns == g.side and channels % g.lanes == 0
    if not in_place:
        out, out_row, out_pixel = buffer, g.side * g.width * size, g.width * size
    call_tile(g.from_points, (source, g.grid * point, point, vector, out, out_row, out_pixel, vector,
                              (channels + g.lanes - 1) // g.lanes, bias, vector))
    if not in_place:
        for i in range(rows):
            copy_runs(like, y + i * d * g.y_columns * pixel, d * pixel, out + i * out_row, out_pixel, columns, channels)
