"""Packing filters in the order in which the micro-kernels read them."""

import numpy as np

from .jit import device_function
from .rows import copy_run, move_run
from .simd import address, lanes_of, transpose_block

CHANNELS_A_UNIT = 16  # input channels, whose filters stay in L1 while they are packed


@device_function
def transpose_taps(w, source, w_k, count, taps, out, row):
    """A run of ``taps`` elements from ``source`` on, for each of ``count`` output channels, as rows of vectors.

    ``out`` is the address of the first row, ``row`` the bytes to the next one, negative to flip the taps.
    """
    size, lanes = w.itemsize, lanes_of(w)
    if source + (count - 1) * w_k + taps + lanes <= w.size:
        for t in range(0, taps, lanes):
            transpose_block(w, (address(w) + size * (source + t), w_k * size, count, out + t * row, row,
                                min(lanes, taps - t), np.int64(0)))
        return
    for t in range(taps):  # too near the end of w to read whole vectors
        for lane in range(count):
            copy_run(w.dtype.type(0), out + t * row + lane * size, address(w) + (source + lane * w_k + t) * size, 1)


@device_function
def pack_filters(scratch, out, width, w, start, w_k, w_c, taps, channels, valid):
    """Filters of ``valid`` output channels as rows (c, tap) of ``width`` channels; ``out`` has room for a vector more.

    Up to a vector behind each row is overwritten, so rows are written in their order. Lanes of a row beyond the last
    channel hold anything.
    """
    size, lanes, count = w.itemsize, lanes_of(w), taps.size
    steps = channels * count
    in_order = count > 0 and taps[0] == 0 and taps[count - 1] == count - 1
    to, row = address(scratch) + size * out, width * size
    if in_order and w_c == count and steps >= lanes:
        # A channel's filters are a run. What spills into other channels' lanes is replaced, as those come later.
        for v in range((valid - 1) // lanes * lanes, -1, -lanes):
            for i in range(0, steps, lanes):
                step = min(i, steps - lanes)
                transpose_block(w, (address(w) + size * (start + v * w_k + step), w_k * size, min(lanes, valid - v),
                                    to + step * row + v * size, row, lanes, np.int64(0)))
    elif in_order and w_k == count == 1:  # those of an input channel are a run
        for c in range(channels):
            copy_run(w.dtype.type(0), to + c * row, address(w) + (start + c * w_c) * size, valid)
    elif in_order and w_k == count and width % lanes == 0:
        for c in range(channels):
            for v in range(0, valid, lanes):
                transpose_taps(w, start + c * w_c + v * w_k, w_k, min(lanes, valid - v), count,
                               to + c * count * row + v * size, row)
    else:
        for c in range(channels):
            for t in range(count):
                move_run(w.dtype.type(0), to, 1, address(w) + size * (start + c * w_c + taps[t]), w_k, valid)
                to += row


@device_function
def tile_start(g, tile):
    """The row that a tile begins with, of near-equal tiles, the full ones first."""
    return tile * g.tile_rows - max(0, tile - g.tiles_full)


@device_function
def packing_units(g, panels):
    """Independent parts of packing ``panels`` panels a group: memory is read in runs, of input or output channels."""
    return g.groups * ((g.c + CHANNELS_A_UNIT - 1) // CHANNELS_A_UNIT if g.w_k < g.w_c else panels)


@device_function
def pack_panels(scratch, start, w, bias, g, taps, panels, full, rows, unit):
    """A part of the panels from element ``start`` on: of ``rows`` output channels, those from ``full`` on of one less.

    A panel is a row of bias, then the filters as rows (c, tap). Panels are ``g.panel_elements`` apart.
    """
    units = packing_units(g, panels) // g.groups
    group, part = unit // units, unit % units
    first_c, channels, first_panel, last_panel = 0, g.c, part, part + 1
    if g.w_k < g.w_c:
        first_c, first_panel, last_panel = part * CHANNELS_A_UNIT, 0, panels
        channels = min(CHANNELS_A_UNIT, g.c - first_c)
    for panel in range(first_panel, last_panel):
        first = panel * rows - max(0, panel - full)
        valid = min(rows, g.k - first)
        out = start + (group * panels + panel) * g.panel_elements
        if first_c == 0:
            for i in range(valid):
                scratch[out + i] = bias[group * g.k + first + i] if bias.size > 0 else 0
        pack_filters(scratch, out + (1 + first_c * g.taps) * rows, rows, w,
                     group * g.w_group + first * g.w_k + first_c * g.w_c, g.w_k, g.w_c, taps, channels, valid)
