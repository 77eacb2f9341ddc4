"""Convolution by groups of few channels for NHWC: channels in the lanes, whole groups in each vector.

Forward and the input gradient, with any stride. grouped_channels_tile.py takes a run of pixels of one row and passes
once through their memory. A task is a strip of rows of an image, of all channels or of some.
"""

from typing import NamedTuple

import numba
import numpy as np

from .blocking import ENOUGH_TASKS, NO_TABLE, ceil_div, divide, fill, geometry_type, places, round_up
from .grouped_channels_tile import ChannelsTile, compile_channels_tile, longest_run
from .jit import device_function, kernel
from .plan import Plan
from .planes import TASK_CYCLES, Axis
from .rows import clear_run, copy_run, move_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

LARGEST = 400  # multiply-adds of a tile for a row of the filter, all written out
ROW_CYCLES = 10  # of a tile, for a row of the filter
CALL_CYCLES = 60  # to enter and leave a tile
VECTORS_A_PART = 8  # channels that a task takes of a pixel, at least: memory is read by longer runs

GEOMETRY = geometry_type(
    "channels group lanes x_rows x_columns y_rows y_columns taps filter_columns row_phases advance_row runs vectors "
    "parts strips w_group w_k w_c weights_start bias_start tasks tile_rows width kept")
ROW_FIELDS = 5  # of a phase of rows, in the lists: taps, the first one's row in x and in the filter, and their steps
RUN_FIELDS = 3  # of a run of pixels: its tile, and where it begins in x and y


class _Runs(NamedTuple):
    """Runs of pixels that cover a row of outputs, and the estimated cycles for a row and a vector of channels."""

    cycles: float
    tiles: tuple
    starts: tuple  # of each run: pixel of x, pixel of y


def supports(correlation):
    """None, or why not: layout, channels of a group, few channels, or a wide filter."""
    lanes, columns = vector_unit().lanes(correlation.dtype), Axis.of(correlation, 1)
    if correlation.layout != "NHWC":
        return "needs layout NHWC"
    if correlation.c != correlation.k or lanes % correlation.c:
        return f"needs as many input as output channels a group, of which {lanes} are whole groups"
    if channels_of(correlation) < lanes:
        return f"needs at least {lanes} channels"
    if max(map(len, columns.taps)) + columns.phases + 1 > vector_unit().registers:
        return "a row of the filter does not fit into the registers"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    rows, vectors = correlation.batch * correlation.y_size[0], channel_vectors(correlation)
    return rows * vectors * pixel_runs(correlation, ChannelsTile).cycles


def channels_of(correlation):
    """Of all groups."""
    return correlation.groups * correlation.c


def channel_vectors(correlation):
    """Of all channels."""
    return ceil_div(channels_of(correlation), vector_unit().lanes(correlation.dtype))


def pixel_runs(correlation, kind):
    """Near-equal runs of pixels, of whole phases."""
    rows, columns = (Axis.of(correlation, axis) for axis in (0, 1))
    phases, extent = columns.phases, correlation.y_size[1]
    taps = sum(map(len, columns.taps)) * correlation.c
    most = min(longest_run(max(map(len, columns.taps)), correlation.c), max(phases, LARGEST * phases // max(1, taps)))
    size, full, short = divide(ceil_div(extent, phases), max(1, most // phases))
    tiles, starts, first, total = [], [], 0, 0.0
    for length in [size] * full + [size - 1] * short:
        begin = columns.advance * first
        pixels = tuple(
            tuple((columns.advance * (j // phases) + offset, s) for s, offset in columns.taps[j % phases]
                  if 0 <= begin + columns.advance * (j // phases) + offset < correlation.x_size[1])
            for j in range(min(length * phases, extent - first * phases)))
        tile = kind(correlation.dtype, pixels, correlation.filter_columns, channels_of(correlation), correlation.c)
        tiles.append(tile)
        starts.append((begin, first * phases))
        filter_rows = sum(map(len, rows.taps)) / rows.phases
        total += filter_rows * (max(tile.products + tile.shuffles, tile.loads) + ROW_CYCLES) + (
            2 * len(pixels) + CALL_CYCLES / channel_vectors(correlation))
        first += length
    return _Runs(total, tuple(tiles), tuple(starts))


def shared_fields(correlation, runs):
    """What both drivers' geometries share."""
    rows = Axis.of(correlation, 0)
    return dict(
        channels=channels_of(correlation), group=correlation.c, lanes=vector_unit().lanes(correlation.dtype),
        x_rows=correlation.x_size[0], x_columns=correlation.x_size[1], y_rows=correlation.y_size[0],
        y_columns=correlation.y_size[1],
        filter_columns=correlation.filter_columns, row_phases=rows.phases, advance_row=rows.advance,
        runs=len(runs.tiles), vectors=channel_vectors(correlation), tile_rows=len(runs.tiles[0].pixels),
        width=vector_unit().lanes(correlation.dtype))


def plan_lists(correlation, runs, tiles):
    """The phases of rows, whose taps go down x, then the runs of pixels."""
    listed = []
    for phase in Axis.of(correlation, 0).taps:
        taps = sorted(phase, key=lambda tap: tap[1])
        (r, offset), (next_r, next_offset) = (taps[0], taps[min(1, len(taps) - 1)]) if taps else ((0, 0), (0, 0))
        listed += [len(taps), offset, r, next_offset - offset, next_r - r]
    pitch = channels_of(correlation) * np.dtype(correlation.dtype).itemsize
    for tile, (x_pixel, y_pixel) in zip(tiles, runs.starts):
        listed += [tile.address, x_pixel * pitch, y_pixel * pitch]
    return np.array(listed, np.int64)


def plan(correlation):
    """Blocking for ``correlation``."""
    runs, lanes = pixel_runs(correlation, ChannelsTile), vector_unit().lanes(correlation.dtype)
    tiles = [compile_channels_tile(tile) for tile in runs.tiles]
    wanted = max(1, min(ENOUGH_TASKS, int(cycles(correlation) // TASK_CYCLES)))
    strips = min(correlation.y_size[0], ceil_div(wanted, correlation.batch))
    parts = min(ceil_div(channel_vectors(correlation), VECTORS_A_PART), ceil_div(wanted, correlation.batch * strips))
    taps, channels = min(correlation.w_steps[1:]), channels_of(correlation)
    starts, shared = places(lanes, weights=channel_vectors(correlation) * lanes * taps * correlation.c, bias=channels)
    geometry = np.zeros(1, GEOMETRY)
    w_group, w_k, w_c = correlation.w_steps
    fill(geometry[0], dict(**shared_fields(correlation, runs), **starts, taps=taps, parts=parts, strips=strips,
                           w_group=w_group, w_k=w_k, w_c=w_c, tasks=correlation.batch * strips * parts))
    return Plan(geometry, NO_TABLE, plan_lists(correlation, runs, tiles), tuple(tiles), round_up(shared, 16), 0,
                int(geometry["tasks"][0]))


@device_function
def taps_inside(g, lists, row):
    """Of an output row: the first tap whose row x has, how many there are, and that row."""
    at = row % g.row_phases * ROW_FIELDS
    count, step = lists[at], lists[at + 3]
    source = row // g.row_phases * g.advance_row + lists[at + 1]
    first = 0
    while first < count and (source < 0 or source >= g.x_rows):
        source += step
        first += 1
    last = first
    while last < count and 0 <= source + (last - first) * step < g.x_rows:
        last += 1
    return first, last - first, source


@device_function
def _pack_filters(scratch, w, bias, g):
    """Filters as (vectors, taps, channels of a group, lanes), and the bias."""
    like, size = w.dtype.type(0), w.itemsize
    out = address(scratch) + g.weights_start * size
    run = g.lanes if g.w_group == g.w_k * g.group else g.group  # output channels that lie evenly
    parts = g.lanes // run
    for vector in range(g.vectors):
        first = address(w) + min(vector * g.lanes, g.channels - g.lanes) // g.group * g.w_group * size
        for tap in range(g.taps):
            for i in range(g.group):
                source = first + (i * g.w_c + tap) * size
                for _ in range(parts):
                    move_run(like, out, 1, source, g.w_k, run)
                    source += g.w_group * size
                    out += run * size
    if bias.size > 0:
        copy_run(like, address(scratch) + g.bias_start * size, address(bias), g.channels)
    else:
        clear_run(like, address(scratch) + g.bias_start * size, g.channels)


@device_function
def _correlate_strip(y, x, g, lists, scratch, task):
    """A strip of rows of one image, for a part of the channels."""
    size = x.itemsize
    part, strip, image = task % g.parts, task // g.parts % g.strips, task // (g.parts * g.strips)
    first, last = g.vectors * part // g.parts, g.vectors * (part + 1) // g.parts
    pitch, y_pitch = g.x_columns * g.channels * size, g.y_columns * g.channels * size
    tap_pitch = g.group * g.lanes * size
    w_row, w_block = g.filter_columns * tap_pitch, g.taps * tap_pitch
    weights, bias = address(scratch) + g.weights_start * size, address(scratch) + g.bias_start * size
    for row in range(g.y_rows * strip // g.strips, g.y_rows * (strip + 1) // g.strips):
        tap, count, first_row = taps_inside(g, lists, row)
        at = row % g.row_phases * ROW_FIELDS
        r, r_step = lists[at + 2] + tap * lists[at + 4], lists[at + 4]
        from_row = address(x) + (image * g.x_rows + first_row) * pitch
        to_row = address(y) + (image * g.y_rows + row) * y_pitch
        for run in range(g.runs):
            entry = g.row_phases * ROW_FIELDS + run * RUN_FIELDS
            source = from_row + lists[entry + 1]
            call_tile(lists[entry], (to_row + lists[entry + 2], source, lists[at + 3] * pitch, weights + r * w_row,
                                     r_step * w_row, w_block, count, bias, first, last,
                                     source + (lists[at] - tap) * pitch))


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NHWC; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    if geometry[0].kept == 0:
        _pack_filters(scratch, w, bias, geometry[0])
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _correlate_strip(y, x, geometry[0], lists, scratch, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
