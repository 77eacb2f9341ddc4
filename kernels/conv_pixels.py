"""Direct convolution with pixels in the lanes: for few output channels, depthwise, and short reductions in NCHW.

Output channels are in the rows of the micro-kernel, filters are broadcast. An image row ends with its padding, so a
strip of rows is one run of pixels; what falls on the padding columns is computed and dropped. Needs neighbouring
outputs to read neighbouring inputs (stride 1; every phase of an input gradient).
"""

from typing import NamedTuple

import numba
import numpy as np

from . import conv_direct
from .blocking import (
    ENOUGH_TASKS,
    cache_bytes,
    ceil_div,
    divide,
    fill,
    geometry_type,
    most_rows,
    offset_table,
    reduction_block,
    round_up,
    tile_cost,
)
from .correlation import span
from .jit import device_function, kernel
from .pack import pack_strip
from .plan import Plan
from .simd import Tile, address, call_tile, compile_tile, fetch_add, vector_unit

COPY_CYCLES = 0.5  # an element, to pack a strip or store its result

GEOMETRY = geometry_type(
    "batch groups c k x_rows x_columns y_rows y_columns w_group w_k w_c nhwc start_row start_column step_row "
    "step_column rows columns first_row first_column pixel_pitch row_pitch channel_pitch strip_rows strip_columns "
    "strip_out strips taps taps_start reduction_block reduction_blocks table_start width lanes tile_rows tiles_full "
    "tiles_short tile tile_short filters_start acc_pitch acc_start tasks")


class _Shape(NamedTuple):
    """Rows (of channels) and vectors (of pixels) of the tiles, and what one strip costs with them."""

    cycles: float
    rows: int
    full: int
    short: int
    vectors: int


def supports(correlation):
    """None, or why not: layout, stride, or that output channels in the lanes cost less."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if any(phase.advance != (1, 1) for phase in correlation.phases):
        return "needs stride 1"
    mine, other = cycles(correlation), conv_direct.cycles(correlation)
    if mine >= other:
        return f"estimated {mine / other:.1f}x the cycles of direct"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    total = 0.0
    for phase in correlation.phases:
        pixels = phase.extent[0] * _pitch(phase)
        taps = len(phase.taps[0]) * len(phase.taps[1])
        total += _shape(correlation, pixels, correlation.c * taps).cycles
        total += COPY_CYCLES * pixels * (correlation.c + correlation.k)
    return total * correlation.batch * correlation.groups


def _pitch(phase):
    low, high = span(phase.taps[1])
    return phase.extent[1] + high - low


def _shape(correlation, pixels, steps):
    """The cheapest tile for k channels by ``pixels`` pixels."""
    lanes = vector_unit().lanes(correlation.dtype)
    best = None
    for vectors in range(1, 9):
        if most_rows(vectors) < 1:
            break
        rows, full, short = divide(correlation.k, most_rows(vectors))
        # A vector at any address mostly straddles two cache lines and so costs two loads.
        cost = ceil_div(pixels, vectors * lanes) * sum(
            count * max(tile_cost(height, vectors, steps), 2 * vectors * steps)
            for count, height in ((full, rows), (short, rows - 1)))
        if best is None or cost < best.cycles:
            best = _Shape(cost, rows, full, short, vectors)
    return best


def plan(correlation):
    """Blocking for ``correlation``: all phases, with their tiles compiled."""
    geometry = np.zeros(len(correlation.phases), GEOMETRY)
    tables, taps, tiles = [], [], []
    filters_start = table_start = taps_start = worker = 0
    for record, phase in zip(geometry, correlation.phases):
        table, tap_list, elements = _plan_phase(record, correlation, phase, tiles)
        record["filters_start"], record["table_start"], record["taps_start"] = filters_start, table_start, taps_start
        filters_start += correlation.groups * correlation.c * len(tap_list) * correlation.k
        table_start += len(table)
        taps_start += len(tap_list)
        tables.append(table)
        taps.append(tap_list)
        worker = max(worker, elements)
    return Plan(geometry, np.concatenate(tables), np.concatenate(taps), tuple(tiles), round_up(filters_start + 16, 16),
                round_up(worker, 16), int(geometry["tasks"].sum()))


def _plan_phase(record, correlation, phase, tiles):
    size = np.dtype(correlation.dtype).itemsize
    spans = [span(axis) for axis in phase.taps]
    rows, columns = phase.extent
    pitch = _pitch(phase)
    taps = len(phase.taps[0]) * len(phase.taps[1])
    most = max(1, cache_bytes()[1] // 2 // ((correlation.c + correlation.k) * pitch * size))
    wanted = min(ceil_div(ENOUGH_TASKS, max(1, correlation.batch * correlation.groups)), ceil_div(rows, 4))
    strips = max(ceil_div(rows, most), wanted)
    strip_out = ceil_div(rows, strips)
    shape = _shape(correlation, strip_out * pitch, correlation.c * taps)
    tile = Tile(correlation.dtype, shape.rows, shape.vectors, 1)
    short = Tile(correlation.dtype, shape.rows - 1, shape.vectors, 1) if shape.short else None
    tiles.extend(compile_tile(t) for t in (tile, short) if t)
    strip_rows = strip_out + spans[0][1] - spans[0][0]
    channel_pitch = strip_rows * pitch
    # The filters of a block stay in L1; what remains of it is for the pixels.
    block = reduction_block(max(1, taps), correlation.c, correlation.k * size, channel_pitch * size)
    acc_pitch = round_up(strip_out * pitch, tile.width)
    acc_start = round_up(correlation.c * channel_pitch + tile.width + pitch, 16)
    values = dict(
        batch=correlation.batch, groups=correlation.groups, c=correlation.c, k=correlation.k,
        x_rows=correlation.x_size[0], x_columns=correlation.x_size[1], y_rows=correlation.y_size[0],
        y_columns=correlation.y_size[1], w_group=correlation.w_steps[0], w_k=correlation.w_steps[1],
        w_c=correlation.w_steps[2], nhwc=0, start_row=phase.start[0], start_column=phase.start[1],
        step_row=phase.step[0], step_column=phase.step[1], rows=rows, columns=columns, first_row=spans[0][0],
        first_column=spans[1][0], pixel_pitch=1, row_pitch=pitch, channel_pitch=channel_pitch, strip_rows=strip_rows,
        strip_columns=pitch, strip_out=strip_out, strips=ceil_div(rows, strip_out), taps=taps,
        reduction_block=block, reduction_blocks=ceil_div(correlation.c, block), width=tile.width, lanes=tile.lanes,
        tile_rows=shape.rows, tiles_full=shape.full, tiles_short=shape.short, tile=compile_tile(tile).address,
        tile_short=compile_tile(short).address if short else 0, acc_pitch=acc_pitch, acc_start=acc_start,
        tasks=correlation.batch * correlation.groups * ceil_div(rows, strip_out))
    fill(record, values)
    row_offsets = np.array([offset - spans[0][0] for _, offset in phase.taps[0]], np.int64) * pitch
    column_offsets = np.array([offset - spans[1][0] for _, offset in phase.taps[1]], np.int64)
    b = (np.arange(block)[:, None, None] * channel_pitch + row_offsets[:, None] + column_offsets).reshape(-1) * size
    table = offset_table(np.arange(b.size) * correlation.k * size, b)
    tap_list = np.array([r * correlation.filter_columns + s for r, _ in phase.taps[0] for s, _ in phase.taps[1]],
                        np.int64)
    return table, tap_list, acc_start + correlation.k * acc_pitch


@device_function
def _pack_filters(scratch, w, g, taps, group):
    """Filters of one group as (c, tap, k)."""
    flat = w.reshape(-1)
    out = g.filters_start + group * g.c * g.taps * g.k
    for c in range(g.c):
        for t in range(g.taps):
            source = group * g.w_group + c * g.w_c + taps[g.taps_start + t]
            for k in range(g.k):
                scratch[out + k] = flat[source + k * g.w_k]
            out += g.k


@device_function
def _run_strip(scratch, g, table, strip, filters, pixels, size):
    """All tiles of one packed strip into its accumulators (k, pixels)."""
    acc_row = g.acc_pitch * size
    for r in range(g.reduction_blocks):
        c = r * g.reduction_block
        steps = min(g.reduction_block, g.c - c) * g.taps
        a = filters + c * g.taps * g.k * size
        for tile in range(g.tiles_full + g.tiles_short):
            entry = g.tile if tile < g.tiles_full else g.tile_short
            k = tile * g.tile_rows - max(0, tile - g.tiles_full)
            for pixel in range(0, pixels, g.width):
                call_tile(entry, (a + k * size, strip + (c * g.channel_pitch + pixel) * size,
                                  address(table) + 8 * g.table_start, steps,
                                  strip + (g.acc_start + k * g.acc_pitch + pixel) * size, acc_row, np.int64(r > 0)))


@device_function
def _store(y, scratch, acc, bias, g, image, group, first_out, rows_out):
    flat = y.reshape(-1)
    for k in range(g.k):
        channel = group * g.k + k
        addend = bias[channel] if bias.size > 0 else y.dtype.type(0)
        for i in range(rows_out):
            row = ((image * g.groups * g.k + channel) * g.y_rows + g.start_row + (first_out + i) * g.step_row)
            out = row * g.y_columns + g.start_column
            source = acc + k * g.acc_pitch + i * g.row_pitch
            if g.step_column == 1:
                for j in range(g.columns):
                    flat[out + j] = scratch[source + j] + addend
            else:
                for j in range(g.columns):
                    flat[out + j * g.step_column] = scratch[source + j] + addend


@device_function
def _correlate_task(y, x, bias, geometry, table, scratch, start, task):
    phase = 0
    while task >= geometry[phase].tasks:
        task -= geometry[phase].tasks
        phase += 1
    g = geometry[phase]
    size = x.itemsize
    first_out = task % g.strips * g.strip_out
    group = task // g.strips % g.groups
    image = task // (g.strips * g.groups)
    rows_out = min(g.strip_out, g.rows - first_out)
    pack_strip(scratch, start, x, g, image, group, first_out + g.first_row,
               rows_out + g.strip_rows - g.strip_out, 0, g.c)
    filters = address(scratch) + (g.filters_start + group * g.c * g.taps * g.k) * size
    _run_strip(scratch, g, table, address(scratch) + start * size, filters, rows_out * g.row_pitch, size)
    _store(y, scratch, start + g.acc_start, bias, g, image, group, first_out, rows_out)


@kernel
def correlate(y, x, w, bias, geometry, table, taps, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    tasks = 0
    for phase in range(len(geometry)):
        tasks += geometry[phase].tasks
        for group in range(geometry[phase].groups):
            _pack_filters(scratch, w, geometry[phase], taps, group)
    counter = np.zeros(1, np.int64)
    for worker in numba.prange(workers):
        task = fetch_add(counter)
        while task < tasks:
            _correlate_task(y, x, bias, geometry, table, scratch, worker_start + np.int64(worker) * worker_elements,
                            task)
            task = fetch_add(counter)
