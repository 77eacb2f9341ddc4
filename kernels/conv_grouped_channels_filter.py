"""Convolution by groups of few channels for NHWC: filter gradient, channels in the lanes.

grouped_channels_tile.py takes a run of pixels of one row of dy and passes once through its memory. A task takes some
rows of the batch, a *chunk* with sums of its own, and all channels or some; the chunks' sums are added in their order.
"""

import numba
import numpy as np

from . import conv_grouped_channels, correlation
from .blocking import ENOUGH_TASKS, NO_TABLE, ceil_div, even_chunks, fill, geometry_type, round_up
from .conv_grouped_channels import (
    ROW_FIELDS,
    RUN_FIELDS,
    VECTORS_A_PART,
    channel_vectors,
    pixel_runs,
    plan_lists,
    shared_fields,
    taps_inside,
)
from .grouped_channels_tile import ChannelsFilterTile, compile_channels_filter_tile
from .jit import device_function, kernel
from .pack import PIECE, add_chunks
from .plan import Plan
from .planes import TASK_CYCLES
from .rows import clear_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

SUMS_SHARE = 1 / 8  # of the tensors, for all chunks' sums together

GEOMETRY = geometry_type(
    "channels group lanes x_rows x_columns y_rows y_columns taps filter_columns row_phases advance_row runs vectors "
    "parts sums units chunks chunk_units tasks tile_rows width")


def supports(problem, layout, dtype):
    """None, or why not: layout, channels of a group, few channels, or a wide filter."""
    return conv_grouped_channels.supports(correlation.forward(problem, layout, dtype))


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    forward = correlation.forward(problem, layout, dtype)
    return problem.n * forward.y_size[0] * channel_vectors(forward) * pixel_runs(forward, ChannelsFilterTile).cycles


def plan(problem, layout, dtype):
    """Blocking for the filter gradient of ``problem``."""
    forward, lanes = correlation.forward(problem, layout, dtype), vector_unit().lanes(dtype)
    runs, vectors = pixel_runs(forward, ChannelsFilterTile), channel_vectors(forward)
    tiles = [compile_channels_filter_tile(tile) for tile in runs.tiles]
    wanted = max(1, min(ENOUGH_TASKS, int(cycles(problem, layout, dtype) // TASK_CYCLES)))
    sums = problem.r * problem.s * forward.c * vectors * lanes
    most = max(1, min(wanted, int(SUMS_SHARE * problem.tensor_elements) // sums))
    units = problem.n * forward.y_size[0]
    chunks, chunk_units = even_chunks(units, most)
    parts = min(ceil_div(vectors, VECTORS_A_PART), ceil_div(wanted, chunks))
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(**shared_fields(forward, runs), taps=problem.r * problem.s, parts=parts, sums=sums,
                           units=units, chunks=chunks, chunk_units=chunk_units, tasks=chunks * parts))
    return Plan(geometry, NO_TABLE, plan_lists(forward, runs, tiles), tuple(tiles), round_up(chunks * sums, 16), 0,
                chunks * parts)


@device_function
def _sum_chunk(x, dy, g, lists, scratch, task):
    """The sums of one chunk of rows, for a part of the channels."""
    size, like = x.itemsize, x.dtype.type(0)
    part, chunk = task % g.parts, task // g.parts
    first, last = g.vectors * part // g.parts, g.vectors * (part + 1) // g.parts
    pitch, dy_pitch = g.x_columns * g.channels * size, g.y_columns * g.channels * size
    sums, tap_pitch = address(scratch) + chunk * g.sums * size, g.group * g.lanes * size
    block = g.taps * tap_pitch
    clear_run(like, sums + first * block, (last - first) * block // size)
    for unit in range(chunk * g.chunk_units, min(g.units, (chunk + 1) * g.chunk_units)):
        image, row = unit // g.y_rows, unit % g.y_rows
        tap, count, first_row = taps_inside(g, lists, row)
        from_row = address(x) + (image * g.x_rows + first_row) * pitch
        for run in range(g.runs):
            entry = ROW_FIELDS + run * RUN_FIELDS
            source, errors = from_row + lists[entry + 1], address(dy) + unit * dy_pitch + lists[entry + 2]
            call_tile(lists[entry], (sums + tap * g.filter_columns * tap_pitch, g.filter_columns * tap_pitch, block,
                                     source, lists[3] * pitch, errors, count, first, last,
                                     source + (lists[0] - tap) * pitch, errors + dy_pitch))


@device_function
def _store_filters(dw, scratch, g):
    """The sums as (channels, those of a group, taps); the last vector's channels are counted from the end."""
    flat = dw.reshape(-1)
    for vector in range(g.vectors):
        first, block = min(vector * g.lanes, g.channels - g.lanes), vector * g.taps * g.group
        for lane in range(g.lanes):
            out = (first + lane) * g.group * g.taps
            for i in range(g.group):
                for tap in range(g.taps):
                    flat[out + i * g.taps + tap] = scratch[(block + tap * g.group + i) * g.lanes + lane]


@kernel
def filter_gradient(dw, x, dy, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """dw: (K, C / groups, R, S); x, dy: NHWC; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _sum_chunk(x, dy, geometry[0], lists, scratch, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
    length = geometry[0].sums
    for piece in numba.prange((length + PIECE - 1) // PIECE):
        add_chunks(scratch, length, geometry[0].chunks, np.int64(piece))
    _store_filters(dw, scratch, geometry[0])
