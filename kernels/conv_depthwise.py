"""Depthwise convolution, one input channel a group, for NCHW: pixels in the lanes, rows of outputs in registers.

Forward and the input gradient, with any stride. depthwise_tile.py reads x where it lies, and goes through a *run* of
planes: the channels of an image, or the outputs of one channel. A unit is a part of a run, or a strip of a plane.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    cache_bytes,
    ceil_div,
    fill,
    geometry_type,
    places,
    round_up,
)
from .depthwise_tile import DepthwiseTile, compile_depthwise_tile
from .jit import device_function, kernel
from .plan import Plan
from .planes import (
    APART_CYCLES,
    CALL_CYCLES,
    LARGEST,
    LARGEST_BLOCK,
    TASK_CYCLES,
    Axis,
    column_groups,
    plane_or_copy,
    reach,
    reason_against,
)
from .rows import clear_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

STRIP_SHARE = 1 / 2  # of L1, for the rows of x that groups of columns read one after another
MOST_ROWS = 16  # of a tile

GEOMETRY = geometry_type(
    "run parts strips outer_period x_outer x_plane x_pitch x_rows y_plane y_pitch y_rows w_outer w_plane tile_rows "
    "row_phases advance_row low high before after groups zeros_start zeros copy_start units_a_task units tasks "
    "width lanes")


class _Shape(NamedTuple):
    """The tiles, one for each group of columns from left to right, and their estimated cycles for a plane."""

    cycles: float
    tiles: tuple
    groups: tuple  # of columns


def supports(correlation):
    """None, or why not: not depthwise, layout, strides, or a large filter."""
    if correlation.c != 1:
        return "needs one input channel a group"
    rows, columns = (Axis.of(correlation, axis) for axis in (0, 1))
    return reason_against(correlation.layout, rows, columns, correlation.x_size[1], correlation.dtype)


def cycles(correlation):
    """Estimated cycles of one core."""
    return correlation.batch * correlation.groups * correlation.k * _shape(correlation).cycles


def _shape(correlation):
    """The tiles with the fewest cycles for a plane of outputs."""
    rows, columns = (Axis.of(correlation, axis) for axis in (0, 1))
    lanes, extent, best = vector_unit().lanes(correlation.dtype), ceil_div(correlation.y_size[1], columns.phases), None
    elements = math.prod(correlation.x_size) / correlation.k + math.prod(correlation.y_size)  # a plane of y
    for parts in range(1, ceil_div(extent, lanes) + 1):
        apart = (parts - 1) * elements * APART_CYCLES
        if best and apart > best.cycles:
            break
        most = ceil_div(ceil_div(extent, lanes), parts)
        groups = column_groups(columns.offsets, columns.advance, extent, correlation.x_size[1], most, lanes)
        for height in range(rows.phases, min(MOST_ROWS, round_up(correlation.y_size[0], rows.phases)) + 1, rows.phases):
            tiles = [_tile(correlation, rows, columns, height, group) for group in groups]
            products, least = tiles[0].products, height == rows.phases
            if products > (LARGEST if least else LARGEST_BLOCK) and not (least and most == 1):
                break
            blocks = ceil_div(correlation.y_size[0], height)
            cost = sum(blocks * tile.cycles + CALL_CYCLES for tile in tiles) + apart
            if best is None or cost < best.cycles:
                best = _Shape(cost, tuple(tiles), tuple(groups))
    return best


def _tile(correlation, rows, columns, height, group):
    """The tile of ``height`` output rows for a group of columns."""
    lanes = vector_unit().lanes(correlation.dtype)
    row_taps = tuple(tuple((rows.advance * (i // rows.phases) + offset, r)
                           for r, offset in rows.taps[i % rows.phases]) for i in range(height))
    column_taps = tuple(tuple((offset, s) for s, offset in taps) for taps in columns.taps)
    width = lanes * columns.phases
    kept = min(width, correlation.y_size[1] - (group.first + (group.vectors - 1) * lanes) * columns.phases)
    return DepthwiseTile(correlation.dtype, row_taps, column_taps, correlation.filter_columns,
                         rows.advance * (height // rows.phases), columns.advance, group.vectors, group.valid, kept)


class _Division(NamedTuple):
    """How the planes of y are shared out: parts of runs or strips of planes, and how many of those a task has."""

    run: int
    parts: int
    strips: int
    units: int
    units_a_task: int


def _division(correlation, shape, rows):
    """Strips where planes are few, or where their rows would not stay in L1 for all groups of columns."""
    tile, planes = shape.tiles[0], correlation.batch * correlation.groups * correlation.k
    blocks = ceil_div(correlation.y_size[0], tile.height)
    strips = min(ceil_div(ENOUGH_TASKS, planes), int(shape.cycles // TASK_CYCLES))
    if len(shape.groups) > 1:
        held = int(cache_bytes()[0] * STRIP_SHARE) // (correlation.x_size[1] * tile.itemsize)
        strips = max(strips, ceil_div(blocks, max(1, (held - rows.reach) // tile.advance_rows)))
    strips = max(1, min(blocks, strips))
    run = correlation.groups if correlation.k == 1 else correlation.k
    together = max(1, min(int(TASK_CYCLES // shape.cycles), planes // ENOUGH_TASKS)) if strips == 1 else 1
    parts = ceil_div(run, together)
    units = planes // run * parts * strips
    return _Division(run, parts, strips, units,
                     max(1, min(int(TASK_CYCLES * units // cycles(correlation)), units // ENOUGH_TASKS)))


def _listed(correlation, shape, tiles, columns):
    """For each group of columns: its tile, where it begins in x and y, and the rows that it must store with care."""
    listed = []
    for tile, compiled, group in zip(shape.tiles, tiles, shape.groups):
        beyond = group.first * columns.phases + tile.width - correlation.y_size[1]
        listed += [compiled.address, group.first * columns.advance * tile.itemsize,
                   group.first * columns.phases * tile.itemsize, max(0, ceil_div(beyond, correlation.y_size[1]))]
    return np.array(listed, np.int64)


def plan(correlation):
    """Blocking for ``correlation``."""
    rows, columns = (Axis.of(correlation, axis) for axis in (0, 1))
    shape, lanes = _shape(correlation), vector_unit().lanes(correlation.dtype)
    division, tile = _division(correlation, shape, rows), shape.tiles[0]
    tiles = [compile_depthwise_tile(tile) for tile in shape.tiles]
    (x_rows, x_columns), (y_rows, y_columns) = correlation.x_size, correlation.y_size
    before, after = reach(columns.offsets, columns.advance, shape.groups, x_columns, lanes)
    copied = min(x_rows, ceil_div(ceil_div(y_rows, tile.height), division.strips) * tile.advance_rows + rows.reach)
    zeros = before + x_columns + after
    starts, worker = places(lanes, zeros=zeros, copy=before + copied * x_columns + after)
    # a run is the channels of an image, or else the outputs of one channel
    steps = (dict(outer_period=1, x_outer=division.run * x_rows * x_columns, x_plane=x_rows * x_columns,
                  w_plane=correlation.w_steps[0]) if correlation.k == 1 else
             dict(outer_period=correlation.groups, x_outer=x_rows * x_columns, x_plane=0,
                  w_plane=correlation.w_steps[1]))
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        **division._asdict(), **starts, **steps, x_pitch=x_columns, x_rows=x_rows, y_plane=y_rows * y_columns,
        y_pitch=y_columns, y_rows=y_rows, w_outer=correlation.w_steps[0], tile_rows=tile.height, row_phases=rows.phases,
        advance_row=rows.advance, low=rows.offsets[0], high=rows.offsets[-1], before=before, after=after,
        groups=len(tiles), zeros=zeros, width=tile.width, lanes=lanes,
        tasks=ceil_div(division.units, division.units_a_task)))
    return Plan(geometry, NO_TABLE, _listed(correlation, shape, tiles, columns), tuple(tiles), 0, round_up(worker, 16),
                int(geometry["tasks"][0]))


@device_function
def _run_tiles(g, lists, y, x, x_plane, zeros, first_row, rows, w, bias, bias_plane, planes, size):
    """All groups of columns, right to left: what one stores behind its rows the leftmost stores again."""
    for group in range(g.groups - 1, -1, -1):
        at = 4 * group
        call_tile(lists[at], (y + lists[at + 2], g.y_plane * size, g.y_pitch * size, x + lists[at + 1], x_plane * size,
                              g.x_pitch * size, g.x_rows, zeros, first_row, rows, w, g.w_plane * size, bias, bias_plane,
                              planes, lists[at + 3]))


@device_function
def _correlate_unit(y, x, w, bias, g, lists, scratch, start, unit):
    """A part of a run of planes, or a strip of one of them."""
    size, begin, end = x.itemsize, address(x), address(x) + x.size * x.itemsize
    strip, part, outer = unit % g.strips, unit // g.strips % g.parts, unit // (g.strips * g.parts)
    first, planes = g.run * part // g.parts, g.run * (part + 1) // g.parts - g.run * part // g.parts
    blocks = (g.y_rows + g.tile_rows - 1) // g.tile_rows
    first_out = blocks * strip // g.strips * g.tile_rows
    last_out = min(g.y_rows, blocks * (strip + 1) // g.strips * g.tile_rows)
    first_in = first_out // g.row_phases * g.advance_row
    top = max(0, first_in + g.low)
    bottom = min(g.x_rows, (last_out - 1) // g.row_phases * g.advance_row + g.high + 1)
    zeros = address(scratch) + (start + g.zeros_start + g.before) * size
    copy = address(scratch) + (start + g.copy_start) * size
    inner = outer % g.outer_period
    out = address(y) + ((outer * g.run + first) * g.y_plane + first_out * g.y_pitch) * size
    source = begin + (outer * g.x_outer + first * g.x_plane) * size
    filters = address(w) + (inner * g.w_outer + first * g.w_plane) * size
    addend, addend_plane = (address(bias) + (inner * g.run + first) * size, size) if bias.size > 0 else (zeros, 0)
    pitch, before, after = g.x_pitch * size, g.before * size, g.after * size
    if (source + top * pitch - before >= begin
            and source + (planes - 1) * g.x_plane * size + bottom * pitch + after <= end):
        _run_tiles(g, lists, out, source, g.x_plane, zeros, first_in, last_out - first_out, filters, addend,
                   addend_plane, planes, size)
    else:
        for i in range(planes):
            plane = plane_or_copy(x.dtype.type(0), source + i * g.x_plane * size, pitch, top, bottom, before, after,
                                  begin, end, copy, size)
            _run_tiles(g, lists, out + i * g.y_plane * size, plane, 0, zeros, first_in, last_out - first_out,
                       filters + i * g.w_plane * size, addend + i * addend_plane, addend_plane, 1, size)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        g, start = geometry[0], worker_start + np.int64(worker) * worker_elements
        clear_run(x.dtype.type(0), address(scratch) + (start + g.zeros_start) * x.itemsize, g.zeros)
        task = take(taken, np.int64(worker), g.tasks)
        while task >= 0:
            for unit in range(task * g.units_a_task, min(g.units, (task + 1) * g.units_a_task)):
                _correlate_unit(y, x, w, bias, g, lists, scratch, start, unit)
            task = take(taken, np.int64(worker), g.tasks)
