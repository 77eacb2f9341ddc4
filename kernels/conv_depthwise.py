"""Depthwise convolution, one input channel a group, for NCHW: pixels in the lanes, rows of outputs in registers.

Forward, and the input gradient at stride 1. A strip of one channel is copied once, with its padding, small enough
for L1; with a stride its columns come apart into planes. depthwise_tile.py then reads each row of it once for all the
output rows that it reaches.

A task is a strip of some channels of the batch.
"""

from typing import NamedTuple

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    STRADDLING,
    cache_bytes,
    ceil_div,
    divide,
    fill,
    geometry_type,
    load_cycles,
    round_up,
)
from .correlation import span
from .depthwise_tile import DepthwiseTile, compile_depthwise_tile, holds_filters
from .jit import device_function, kernel
from .pack import copy_plane
from .plan import Plan
from .rows import LARGEST_ADVANCE, copy_run
from .simd import LINE_BYTES, address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

STRIP_SHARE = 3 / 4  # of L1
MOST_PRODUCTS = 800  # multiply-adds of a tile, all written out
MOST_ROWS = 8  # of a tile
COPY_CYCLES = 0.4  # an element of x, to copy it
ROW_CYCLES = 15  # of a row of x, to copy it, beside its elements
STORE_CYCLES = 2.0  # a vector of y
ASIDE_CYCLES = 12  # of a row that is shorter than a vector, to store and copy it, where masks have no registers
TILE_CYCLES = 60  # to enter and leave a tile
TASK_CYCLES = 20_000  # about, of a task: taking one costs some hundred

GEOMETRY = geometry_type(
    "channels k x_rows x_columns y_rows y_columns w_group w_k taps lanes tile_rows width vectors full short tile "
    "tile_short advance_row advance_column first_row reach strips pitch planes plane aside_start filters_start aside "
    "units_a_task units tasks")


class _Shape(NamedTuple):
    """Rows of a tile, its vectors, and how many of that and of one vector less cover a row of outputs."""

    cycles: float  # of all tiles of an output plane
    rows: int
    vectors: int
    full: int
    short: int
    masked: bool  # whether they are wider than the row, and leave out what is behind it
    aside: bool  # or write into the scratch


def supports(correlation):
    """None, or why not: not depthwise, layout, strides, or a large filter."""
    if correlation.c != 1:
        return "needs one input channel a group"
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if len(correlation.phases) > 1:
        return "needs stride 1"
    (phase,) = correlation.phases
    if phase.advance[1] > LARGEST_ADVANCE:
        return f"needs strides of at most {LARGEST_ADVANCE} columns"
    if len(phase.taps[0]) * len(phase.taps[1]) > MOST_PRODUCTS:
        return "the filter is too large to write all its products out"
    copied = _Strips.of(correlation, 1)
    if copied.bytes > cache_bytes()[1]:
        return "the rows that one output row reads do not fit into L2"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    images, shape = correlation.batch * correlation.groups, _shape(correlation)
    copied = _Strips.of(correlation, shape.rows)
    copy = copied.count * copied.rows * copied.planes * (copied.pitch * COPY_CYCLES + ROW_CYCLES)
    return images * (copy + correlation.k * shape.cycles)


def _shape(correlation):
    """The tile with the fewest cycles for a plane of outputs."""
    (phase,), unit = correlation.phases, vector_unit()
    (rows, columns), taps = phase.extent, len(phase.taps[0]) * len(phase.taps[1])
    column_vectors, offsets = ceil_div(columns, unit.lanes(correlation.dtype)), [o for _, o in phase.taps[0]]
    best = None
    for most in range(1, column_vectors + 1):
        vectors, full, short = divide(column_vectors, most)
        wide = vectors * unit.lanes(correlation.dtype) > columns
        aside = wide and unit.bits < 512  # a masked store would take some 40 cycles
        for height in range(1, min(rows, MOST_ROWS, (unit.registers - 2 - vectors) // vectors) + 1):
            if height * vectors * taps > MOST_PRODUCTS and height * vectors > 1:
                break
            read = len({phase.advance[0] * i + offset for i in range(height) for offset in offsets})
            loads = read * len(phase.taps[1]) * (1 + STRADDLING)
            held = holds_filters(height, vectors, taps)
            cost = 0.0
            for count, width in ((full, vectors), (short, vectors - 1)):
                loaded = (loads * width + (0 if held else height * taps)) * load_cycles()
                block = max(height * taps * width, loaded) + height * (width * STORE_CYCLES + aside * ASIDE_CYCLES)
                cost += count * (ceil_div(rows, height) * block + TILE_CYCLES)
            if best is None or cost < best.cycles:
                best = _Shape(cost, height, vectors, full, short, wide and not aside, aside)
    return best


class _Strips(NamedTuple):
    """Strips of output rows, and the copy of what one reads."""

    count: int
    rows: int  # of the copy
    pitch: int  # elements of its rows
    residues: list  # of columns within the stride, a plane of the copy each
    lowest: int  # column of x that the first of them begins with
    bytes: int

    @property
    def planes(self):
        return len(self.residues)

    @classmethod
    def of(cls, correlation, least_rows):
        """As many as keep a copy in its share of L1, none of fewer output rows than a tile has."""
        (phase,), size = correlation.phases, np.dtype(correlation.dtype).itemsize
        lanes, (rows, columns) = vector_unit().lanes(correlation.dtype), phase.extent
        lowest, highest = span(phase.taps[1])
        advance = phase.advance[1]
        residues = sorted({(offset - lowest) % advance for _, offset in phase.taps[1]})
        pitch = round_up(columns + (highest - lowest) // advance, lanes)
        low, high = span(phase.taps[0])
        fitting = int(cache_bytes()[0] * STRIP_SHARE) // (pitch * len(residues) * size)
        most = max(least_rows, (fitting - (high - low) - 1) // phase.advance[0] + 1)
        count = max(1, min(rows // least_rows, ceil_div(rows, most)))
        copied = phase.advance[0] * (ceil_div(rows, count) - 1) + high - low + 1
        return cls(count, copied, pitch, residues, lowest, copied * pitch * len(residues) * size)


def plan(correlation):
    """Blocking for ``correlation``."""
    (phase,), lanes = correlation.phases, vector_unit().lanes(correlation.dtype)
    shape = _shape(correlation)
    strips = _Strips.of(correlation, shape.rows)
    advance = phase.advance[1]
    offsets = [offset - strips.lowest for _, offset in phase.taps[1]]
    columns = tuple((strips.residues.index(offset % advance), offset // advance) for offset in offsets)
    low, high = span(phase.taps[0])
    rows = tuple(offset - low for _, offset in phase.taps[0])
    tiles = [compile_depthwise_tile(DepthwiseTile(correlation.dtype, shape.rows, vectors, rows, columns,
                                                  phase.advance[0], shape.masked))
             for vectors in (shape.vectors, shape.vectors - bool(shape.short))]
    taps = [r * correlation.filter_columns + s for r, _ in phase.taps[0] for s, _ in phase.taps[1]]
    plane = strips.rows * strips.pitch
    units = correlation.batch * correlation.groups * strips.count
    units_a_task = max(1, min(int(TASK_CYCLES * units // cycles(correlation)), units // ENOUGH_TASKS))
    copy = strips.planes * plane + shape.vectors * lanes  # tiles read past the last row
    width = shape.vectors * lanes
    beside = ceil_div(phase.extent[0], strips.count) * width * shape.aside
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        channels=correlation.groups, k=correlation.k, x_rows=correlation.x_size[0], x_columns=correlation.x_size[1],
        y_rows=phase.extent[0], y_columns=phase.extent[1], w_group=correlation.w_steps[0], w_k=correlation.w_steps[1],
        taps=len(taps), lanes=lanes, tile_rows=shape.rows, width=width, vectors=shape.vectors,
        full=shape.full, short=shape.short, tile=tiles[0].address, tile_short=tiles[1].address,
        advance_row=phase.advance[0], advance_column=advance, first_row=low, reach=high - low + 1,
        strips=strips.count, pitch=strips.pitch, planes=strips.planes,
        plane=plane, aside_start=copy, aside=shape.aside, filters_start=copy + beside, units_a_task=units_a_task,
        units=units, tasks=ceil_div(units, units_a_task)))
    listed = list(taps)
    for residue in strips.residues:  # a plane's first column in x, and which of its columns x has
        offset = strips.lowest + residue
        first = min(strips.pitch, max(0, ceil_div(-offset, advance)))
        last = max(first, min(strips.pitch, ceil_div(correlation.x_size[1] - offset, advance)))
        listed += [offset, first, last]
    filters = round_up(len(taps) + 1, lanes)
    return Plan(geometry, NO_TABLE, np.array(listed, np.int64), tuple(tiles), 0,
                round_up(copy + beside + filters, 16), int(geometry["tasks"][0]))


@device_function
def _copy_strip(scratch, start, x, g, lists, channel, first_row, rows):
    """The input rows from ``first_row`` on of one channel of the batch, padded, a plane for each column residue."""
    like, size = x.dtype.type(0), x.itemsize
    begin, end = address(x), address(x) + x.size * size
    image = begin + channel * g.x_rows * g.x_columns * size
    for plane in range(g.planes):
        at = g.taps + 3 * plane
        copy_plane(like, size, address(scratch) + (start + plane * g.plane) * size, image, g.x_columns * size, g.x_rows,
                   first_row, 1, rows, g.pitch, lists[at], g.advance_column, lists[at + 1], lists[at + 2], begin, end)


@device_function
def _pack_filter(scratch, out, w, bias, g, lists, group, k):
    """One channel's taps, and its bias behind them."""
    flat = w.reshape(-1)
    source = group * g.w_group + k * g.w_k
    for tap in range(g.taps):
        scratch[out + tap] = flat[source + lists[tap]]
    scratch[out + g.taps] = bias[group * g.k + k] if bias.size > 0 else 0


@device_function
def _run_tiles(g, out, pitch, source, filters, rows, size, ahead):
    """All tiles of a strip of one output channel; rows left over are computed again with those before them."""
    source_pitch = g.pitch * size
    lines = g.tile_rows * g.advance_row * g.x_columns * size // LINE_BYTES + 1
    blocks, rest = rows // g.tile_rows, rows % g.tile_rows
    back = rows - g.tile_rows
    first = 0
    for tile in range(g.full + g.short):
        entry, vectors = (g.tile, g.vectors) if tile < g.full else (g.tile_short, g.vectors - 1)
        last = min(g.lanes, g.y_columns - (vectors - 1) * g.lanes)
        first = max(0, min(first, g.y_columns - vectors * g.lanes))  # the last one again computes what others did
        to, at = out + first * size, source + first * size
        call_tile(entry, (to, pitch, at, source_pitch, g.plane * size, filters, blocks, last,
                          ahead, lines if tile == 0 else 0))
        if rest:
            call_tile(entry, (to + back * pitch, pitch, at + back * g.advance_row * source_pitch, source_pitch,
                              g.plane * size, filters, np.int64(1), last, ahead, np.int64(0)))
        first += vectors * g.lanes


@device_function
def _correlate_unit(y, x, w, bias, g, lists, scratch, start, unit):
    """A strip of one channel of one image."""
    size = x.itemsize
    channel, strip = unit // g.strips, unit % g.strips
    first_out, last_out = g.y_rows * strip // g.strips, g.y_rows * (strip + 1) // g.strips
    _copy_strip(scratch, start, x, g, lists, channel, first_out * g.advance_row + g.first_row,
                (last_out - first_out - 1) * g.advance_row + g.reach)
    rows, beside = last_out - first_out, address(scratch) + (start + g.aside_start) * size
    filters = start + g.filters_start
    ahead = address(x) + (channel * g.x_rows + last_out * g.advance_row) * g.x_columns * size
    for k in range(g.k):
        _pack_filter(scratch, filters, w, bias, g, lists, channel % g.channels, k)
        out, row = address(y) + ((channel * g.k + k) * g.y_rows + first_out) * g.y_columns * size, g.y_columns * size
        _run_tiles(g, beside if g.aside else out, g.width * size if g.aside else row,
                   address(scratch) + start * size, address(scratch) + filters * size, rows, size, ahead)
        if g.aside:
            for i in range(rows):
                copy_run(x.dtype.type(0), out + i * row, beside + i * g.width * size, g.y_columns)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        g, start = geometry[0], worker_start + np.int64(worker) * worker_elements
        task = take(taken, np.int64(worker), g.tasks)
        while task >= 0:
            for unit in range(task * g.units_a_task, min(g.units, (task + 1) * g.units_a_task)):
                _correlate_unit(y, x, w, bias, g, lists, scratch, start, unit)
            task = take(taken, np.int64(worker), g.tasks)
