"""Packing filters in the order in which the micro-kernels read them."""

import numpy as np

from .jit import device_function
from .rows import copy_block, copy_run, move_run, prefetch_rows
from .simd import LINE_BYTES, address, lanes_of, transpose_block

CHANNELS_A_UNIT = 16  # input channels, whose filters stay in L1 while they are packed
PANELS_A_UNIT = 8  # where those of an input channel are a run: a few whole lines of it, and few places to write
LEAST_UNITS = 4  # of fewer panels each, so that the cores share them
FILTER_CYCLES = 4.0  # an element of 1x1 filters, to pack it, by runs or not
ROWS_AHEAD = 8  # of such runs, which lie too far apart for the hardware to fetch them


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
def _first_row(part, full, rows):
    """The row that a part begins with: ``full`` parts of ``rows`` come first, then those of one less."""
    return part * rows - max(0, part - full)


@device_function
def tile_start(g, tile):
    """The row that a tile begins with, of near-equal tiles, the full ones first."""
    return _first_row(tile, g.tiles_full, g.tile_rows)


@device_function
def _in_runs(g):
    """Whether the filters of an input channel are a run, as in the input gradient of 1x1 filters."""
    return g.taps == 1 and g.w_k == 1 and g.w_c > 1


@device_function
def _panels_a_unit(panels):
    return max(1, min(PANELS_A_UNIT, panels // LEAST_UNITS))


@device_function
def packing_units(g, panels):
    """Independent parts of packing ``panels`` panels a group: memory is read in runs, of input or output channels."""
    if _in_runs(g):
        return g.groups * ((panels + _panels_a_unit(panels) - 1) // _panels_a_unit(panels))
    return g.groups * ((g.c + CHANNELS_A_UNIT - 1) // CHANNELS_A_UNIT if g.w_k < g.w_c else panels)


@device_function
def _pack_runs(scratch, out, w, source, g, full, short, rows, channels):
    """Neighbouring panels, ``full`` of ``rows`` output channels and ``short`` of one less, without their bias.

    Of ``channels`` in all, from ``source`` in w to ``out`` in the scratch. What is copied beyond a panel's channels its
    next row replaces.
    """
    like, size, lanes = w.dtype.type(0), w.itemsize, lanes_of(w)
    pitch, run = g.panel_elements * size, channels * size
    whole = (rows + lanes - 1) // lanes
    spilling = g.c - 1 if g.w_c >= whole * lanes else 0  # rows behind which there is enough of w to read whole vectors
    for c in range(g.c):
        to, at = address(scratch) + (out + c * rows) * size, address(w) + (source + c * g.w_c) * size
        if c < spilling:
            prefetch_rows(at + ROWS_AHEAD * g.w_c * size, np.int64(LINE_BYTES), run // LINE_BYTES + 1)
            copy_block(like, to, pitch, at, rows * size, full, whole)
            copy_block(like, to + full * pitch, pitch, at + full * rows * size, (rows - 1) * size, short,
                       (rows + lanes - 2) // lanes)
        else:
            done = 0
            for panel in range(full + short):
                valid = min(rows if panel < full else rows - 1, channels - done)
                copy_run(like, to + panel * pitch, at + done * size, valid)
                done += valid


@device_function
def pack_panels(scratch, start, w, bias, g, taps, panels, full, rows, unit):
    """A part of the panels from element ``start`` on: of ``rows`` output channels, those from ``full`` on of one less.

    A panel is a row of bias, then the filters as rows (c, tap). Panels are ``g.panel_elements`` apart.
    """
    units = packing_units(g, panels) // g.groups
    group, part = unit // units, unit % units
    first_c, channels, first_panel, last_panel = 0, g.c, part, part + 1
    if _in_runs(g):
        first_panel = part * _panels_a_unit(panels)
        last_panel = min(panels, first_panel + _panels_a_unit(panels))
    elif g.w_k < g.w_c:
        first_c, first_panel, last_panel = part * CHANNELS_A_UNIT, 0, panels
        channels = min(CHANNELS_A_UNIT, g.c - first_c)
    for panel in range(first_panel, last_panel):
        first = _first_row(panel, full, rows)
        valid = min(rows, g.k - first)
        out = start + (group * panels + panel) * g.panel_elements
        if first_c == 0:
            for i in range(valid):
                scratch[out + i] = bias[group * g.k + first + i] if bias.size > 0 else 0
        if not _in_runs(g):
            pack_filters(scratch, out + (1 + first_c * g.taps) * rows, rows, w,
                         group * g.w_group + first * g.w_k + first_c * g.w_c, g.w_k, g.w_c, taps, channels, valid)
    if _in_runs(g):
        first, last = _first_row(first_panel, full, rows), min(g.k, _first_row(last_panel, full, rows))
        of_full = max(0, min(last_panel, full) - first_panel)
        _pack_runs(scratch, start + (group * panels + first_panel) * g.panel_elements + rows, w,
                   group * g.w_group + first, g, of_full, last_panel - first_panel - of_full, rows,
                   last - first)
