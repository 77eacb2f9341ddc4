"""Depthwise convolution, filter gradient, for NCHW: pixels in the lanes, a sum a tap in registers.

depthwise_filter_tile.py reads x and dy where they lie and goes through a *run* of planes: the channels of an image, or
the outputs of one channel. A task is a part of a run in one chunk of units, which are images or strips of one. The
chunks' sums are added in their order.
"""

from typing import NamedTuple

import numba
import numpy as np

from . import correlation
from .blocking import ENOUGH_TASKS, NO_TABLE, ceil_div, even_chunks, fill, geometry_type, places, round_up
from .depthwise_filter_tile import SUM_CYCLES, DepthwiseFilterTile, compile_depthwise_filter_tile
from .jit import device_function, kernel
from .pack import store_sums
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

MOST_ROWS = 8  # of a tile
MOST_IMAGES = 8  # a call: each is a stream of its own

GEOMETRY = geometry_type(
    "run parts strips strip_rows x_outer x_plane x_image x_pitch x_rows dy_plane dy_image dy_pitch dy_rows sums taps "
    "advance_row low high before after dy_after columns zeros_start zeros copy_start dy_copy_start batch units "
    "chunks chunk_units tasks tile_rows width lanes")


class _Shape(NamedTuple):
    """The tiles, one for each group of columns, and their estimated cycles for a plane of an image."""

    cycles: float
    tiles: tuple
    groups: tuple  # of columns


def _axes(problem, layout, dtype):
    """Rows and columns as the forward convolution reads them."""
    forward = correlation.forward(problem, layout, dtype)
    return (Axis.of(forward, axis) for axis in (0, 1))


def supports(problem, layout, dtype):
    """None, or why not: not depthwise, layout, strides, or a large filter."""
    if problem.c != problem.groups:
        return "needs one input channel a group"
    return reason_against(layout, *_axes(problem, layout, dtype), problem.w, dtype)


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    return problem.n * problem.k * _shape(problem, layout, dtype).cycles


def _shape(problem, layout, dtype):
    """The tiles with the fewest cycles."""
    (rows, columns), lanes, best = _axes(problem, layout, dtype), vector_unit().lanes(dtype), None
    elements, vectors = problem.h * problem.w + problem.p * problem.q, ceil_div(problem.q, lanes)
    for parts in range(1, vectors + 1):
        apart = (parts - 1) * elements * APART_CYCLES
        if best and apart > best.cycles:
            break
        most = ceil_div(vectors, parts)
        groups = column_groups(columns.offsets, columns.advance, problem.q, problem.w, most, lanes, exact=True)
        for height in range(1, min(MOST_ROWS, problem.p) + 1):
            tiles = [_tile(problem, dtype, rows, columns, height, group) for group in groups]
            least = height == 1
            if height * tiles[0].products > (LARGEST if least else LARGEST_BLOCK) and not (least and most == 1):
                break
            beside = (CALL_CYCLES + len(tiles[0].taps) * SUM_CYCLES) / min(MOST_IMAGES, max(1, problem.n))
            cost = sum(tile.cycles(problem.p) + beside for tile in tiles) + apart
            if best is None or cost < best.cycles:
                best = _Shape(cost, tuple(tiles), tuple(groups))
    return best


def _tile(problem, dtype, rows, columns, height, group):
    """The tile of ``height`` rows of dy for a group of columns."""
    lanes = vector_unit().lanes(dtype)
    offsets = (tuple(offset for _, offset in axis.taps[0]) for axis in (rows, columns))
    kept = min(lanes, problem.q - group.first - (group.vectors - 1) * lanes)
    return DepthwiseFilterTile(dtype, height, problem.p % height, *offsets, rows.advance, columns.advance,
                               group.vectors, group.valid, kept)


class _Division(NamedTuple):
    """How the sums are shared out: parts of each run of planes, and chunks of units, images or strips of one."""

    run: int
    parts: int
    strips: int
    strip_rows: int
    units: int
    chunks: int
    chunk_units: int


def _division(problem, shape, total):
    """Planes apart first, then images, then rows of an image."""
    run, outer = (problem.groups, 1) if problem.k == problem.groups else (problem.k // problem.groups, problem.groups)
    wanted = max(1, min(ENOUGH_TASKS, int(total // TASK_CYCLES)))
    parts = min(run, ceil_div(wanted, outer))
    most_chunks, height = ceil_div(wanted, outer * parts), shape.tiles[0].height
    blocks = ceil_div(problem.p, height)
    strip_rows = ceil_div(blocks, min(blocks, ceil_div(most_chunks, problem.n))) * height
    strips = ceil_div(problem.p, strip_rows)
    return _Division(run, parts, strips, strip_rows, problem.n * strips,
                     *even_chunks(problem.n * strips, most_chunks))


def plan(problem, layout, dtype):
    """Blocking for the filter gradient of ``problem``."""
    rows, columns = _axes(problem, layout, dtype)
    shape, lanes = _shape(problem, layout, dtype), vector_unit().lanes(dtype)
    division = _division(problem, shape, cycles(problem, layout, dtype))
    tiles = [compile_depthwise_filter_tile(tile) for tile in shape.tiles]
    before, after = reach(columns.offsets, columns.advance, shape.groups, problem.w, lanes)
    dy_after = sum(group.vectors for group in shape.groups) * lanes - problem.q
    x_plane, dy_plane, taps = problem.h * problem.w, problem.p * problem.q, problem.r * problem.s
    copied = min(problem.h, rows.advance * (division.strip_rows - 1) + rows.reach + 1)
    zeros = before + problem.w + after
    starts, worker = places(lanes, zeros=zeros, copy=before + copied * problem.w + after,
                            dy_copy=division.strip_rows * problem.q + dy_after)
    by_groups = problem.k == problem.groups  # a run is the channels of an image, or else the outputs of one channel
    tasks = problem.k // division.run * division.parts * division.chunks
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        **division._asdict(), **starts, x_outer=x_plane * (not by_groups), x_plane=x_plane * by_groups,
        x_image=problem.c * x_plane, x_pitch=problem.w, x_rows=problem.h, dy_plane=dy_plane,
        dy_image=problem.k * dy_plane, dy_pitch=problem.q, dy_rows=problem.p, sums=problem.k * taps, taps=taps,
        advance_row=rows.advance, low=rows.offsets[0], high=rows.offsets[-1], before=before, after=after,
        dy_after=dy_after, columns=len(tiles), zeros=zeros, batch=MOST_IMAGES if division.strips == 1 else 1,
        tasks=tasks, tile_rows=shape.tiles[0].height, width=shape.tiles[0].vectors * lanes, lanes=lanes))
    size = np.dtype(dtype).itemsize
    listed = [[tile.address, group.first * columns.advance * size, group.first * size]
              for tile, group in zip(tiles, shape.groups)]
    return Plan(geometry, NO_TABLE, np.array(listed, np.int64).reshape(-1), tuple(tiles),
                round_up(division.chunks * problem.k * taps, 16), round_up(worker, 16), tasks)


@device_function
def _run_tiles(g, lists, out, x, x_plane, zeros, first_row, dy, rows, planes, images, size):
    """All groups of columns."""
    for group in range(g.columns):
        at = 3 * group
        call_tile(lists[at], (out, g.taps * size, x + lists[at + 1], x_plane * size, g.x_image * size, g.x_pitch * size,
                              g.x_rows, zeros, first_row, dy + lists[at + 2], g.dy_plane * size, g.dy_image * size,
                              g.dy_pitch * size, rows, planes, images))


@device_function
def _add_units(x, dy, g, lists, scratch, start, out, outer, first, planes, unit, images):
    """A strip of some planes, of one image or several."""
    like, size = x.dtype.type(0), x.itemsize
    begin, end = address(x), address(x) + x.size * size
    dy_begin, dy_end = address(dy), address(dy) + dy.size * size
    image, strip = unit // g.strips, unit % g.strips
    first_out, last_out = strip * g.strip_rows, min(g.dy_rows, (strip + 1) * g.strip_rows)
    first_in = first_out * g.advance_row
    top, bottom = max(0, first_in + g.low), min(g.x_rows, (last_out - 1) * g.advance_row + g.high + 1)
    own = address(scratch) + start * size
    zeros = own + (g.zeros_start + g.before) * size
    copy, dy_copy = own + g.copy_start * size, own + g.dy_copy_start * size
    source = begin + (image * g.x_image + outer * g.x_outer + first * g.x_plane) * size
    errors = dy_begin + (image * g.dy_image + (outer * g.run + first) * g.dy_plane) * size
    pitch, before, after, dy_pitch = g.x_pitch * size, g.before * size, g.after * size, g.dy_pitch * size
    last = source + ((images - 1) * g.x_image + (planes - 1) * g.x_plane) * size
    dy_last = errors + ((images - 1) * g.dy_image + (planes - 1) * g.dy_plane) * size
    if (source + top * pitch - before >= begin and last + bottom * pitch + after <= end
            and dy_last + last_out * dy_pitch + g.dy_after * size <= dy_end):
        _run_tiles(g, lists, out, source, g.x_plane, zeros, first_in, errors + first_out * dy_pitch,
                   last_out - first_out, planes, images, size)
    else:
        for i in range(planes):
            for n in range(images):
                plane = plane_or_copy(like, source + (n * g.x_image + i * g.x_plane) * size, pitch, top, bottom, before,
                                      after, begin, end, copy, size)
                dy_plane = plane_or_copy(like, errors + (n * g.dy_image + i * g.dy_plane) * size, dy_pitch, first_out,
                                         last_out, 0, g.dy_after * size, dy_begin, dy_end, dy_copy, size)
                _run_tiles(g, lists, out + i * g.taps * size, plane, 0, zeros, first_in,
                           dy_plane + first_out * dy_pitch, last_out - first_out, 1, 1, size)


@device_function
def _sum_chunk(x, dy, g, lists, scratch, start, task):
    """The sums of one chunk of units, for a part of a run of planes."""
    size = x.itemsize
    chunk, part, outer = task % g.chunks, task // g.chunks % g.parts, task // (g.chunks * g.parts)
    first, planes = g.run * part // g.parts, g.run * (part + 1) // g.parts - g.run * part // g.parts
    out = address(scratch) + (chunk * g.sums + (outer * g.run + first) * g.taps) * size
    clear_run(x.dtype.type(0), out, planes * g.taps)
    end = min(g.units, (chunk + 1) * g.chunk_units)
    for unit in range(chunk * g.chunk_units, end, g.batch):
        _add_units(x, dy, g, lists, scratch, start, out, outer, first, planes, unit, min(g.batch, end - unit))


@kernel
def filter_gradient(dw, x, dy, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """dw: (K, 1, R, S); x, dy: NCHW; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        g, start = geometry[0], worker_start + np.int64(worker) * worker_elements
        clear_run(x.dtype.type(0), address(scratch) + (start + g.zeros_start) * x.itemsize, g.zeros)
        task = take(taken, np.int64(worker), g.tasks)
        while task >= 0:
            _sum_chunk(x, dy, g, lists, scratch, start, task)
            task = take(taken, np.int64(worker), g.tasks)
    store_sums(dw.reshape(-1), scratch, geometry[0].chunks)
