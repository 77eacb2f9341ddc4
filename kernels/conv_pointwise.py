"""Direct convolution by 1x1 filters without padding, for NCHW: a matrix product for each image.

Output channels are in the rows of the micro-kernel and pixels in the lanes, as in conv_pixels.py, whose packed filters
these are. What a tile of pixels reads of a block of input channels is packed as a panel, small enough for L1, which all
tiles of output channels then share; a stride is taken out on the way. Sums of further blocks are added in y.

A task is a run of pixels of one image and group, for some of the output channels.
"""

from typing import NamedTuple

import numba
import numpy as np

from .blocking import (
    cache_bytes,
    ceil_div,
    divide,
    enough_tasks,
    fill,
    geometry_type,
    most_rows,
    offset_table,
    round_up,
    tile_cost,
)
from .conv_pixels import tiles_of
from .jit import device_function, kernel
from .pack_filters import pack_panels, packing_units, tile_start
from .plan import Plan
from .rows import copy_run, move_run, prefetch_rows
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

PANEL_SHARE = 1 / 2  # of L1
FILTERS_SHARE = 1 / 2  # of L2
PACK_CYCLES, STRIDED_PACK_CYCLES = 1.0, 2.0  # an element of x, few lines of each page at a time
STREAM_CYCLES = 1 / 8  # a byte of filters that come from beyond L2
TASK_CYCLES = 300  # to begin a task

GEOMETRY = geometry_type(
    "groups c k plane columns x_rows x_columns advance_row advance_column w_group w_k w_c taps block blocks width "
    "lanes tile_rows tiles_full tiles_short tile tile_short tail_width tail tail_short strips strip_tiles k_chunks "
    "panel_elements sums tasks kept")


class _Shape(NamedTuple):
    """Rows (of channels) and vectors (of pixels) of the tiles, blocks of the reduction, and what an image costs."""

    cycles: float
    rows: int
    full: int
    short: int
    vectors: int
    block: int


def supports(correlation):
    """None, or why not: layout, more than one tap, padding, too few pixels."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if len(correlation.phases) > 1:
        return "needs stride 1"
    (phase,) = correlation.phases
    if any(len(axis) != 1 or axis[0][1] != 0 for axis in phase.taps):
        return "needs a 1x1 kernel without padding"
    if any((out - 1) * step >= size for out, step, size in zip(phase.extent, phase.advance, correlation.x_size)):
        return "needs a 1x1 kernel without padding"
    lanes = vector_unit().lanes(correlation.dtype)
    if phase.extent[0] * phase.extent[1] < lanes:
        return f"needs at least {lanes} output pixels an image"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    return correlation.batch * correlation.groups * (_shape(correlation).cycles + _tasks(correlation)[0])


def _pixels(correlation):
    (phase,) = correlation.phases
    return phase.extent[0] * phase.extent[1]


def _shape(correlation):
    """The cheapest tile for k channels by the pixels of an image."""
    unit, size, pixels = vector_unit(), np.dtype(correlation.dtype).itemsize, _pixels(correlation)
    lanes = unit.lanes(correlation.dtype)
    best = None
    for vectors in range(1, min(4, pixels // lanes) + 1):
        most = max(1, int(PANEL_SHARE * cache_bytes()[0]) // (vectors * lanes * size))
        blocks = ceil_div(correlation.c, most)
        block = ceil_div(correlation.c, blocks)
        rows, full, short = divide(correlation.k, most_rows(vectors))
        whole, rest = divmod(pixels, vectors * lanes)
        cost = blocks * sum(tiles * (whole * tile_cost(height, vectors, block)
                                     + tile_cost(height, ceil_div(rest, lanes), block))
                            for tiles, height in ((full, rows), (short, rows - 1)))
        if best is None or cost < best.cycles:
            best = _Shape(cost, rows, full, short, vectors, block)
    return best


def _tasks(correlation):
    """(cycles, strips of an image, chunks of output channels): enough tasks, the rest as little as can be.

    Each chunk packs x again, and each strip reads the filters again, where they do not stay in L2.
    """
    (phase,), size, pixels = correlation.phases, np.dtype(correlation.dtype).itemsize, _pixels(correlation)
    shape, images = _shape(correlation), max(1, correlation.batch * correlation.groups)
    image_tiles = max(1, pixels // (shape.vectors * vector_unit().lanes(correlation.dtype)))
    pack = correlation.c * pixels * (PACK_CYCLES if phase.advance == (1, 1) else STRIDED_PACK_CYCLES)
    filters = correlation.c * correlation.k * size
    choices = []
    for strips in range(1, min(image_tiles, enough_tasks()) + 1):
        chunks = min(shape.full + shape.short, ceil_div(enough_tasks(), images * strips))
        stays = filters / chunks <= FILTERS_SHARE * cache_bytes()[1]
        stream = 0 if stays else strips * filters * STREAM_CYCLES
        choices.append((chunks * (pack + strips * TASK_CYCLES) + stream, strips, chunks))
    return min(choices)


def plan(correlation):
    """Blocking for ``correlation``."""
    (phase,), size = correlation.phases, np.dtype(correlation.dtype).itemsize
    shape, pixels, lanes = _shape(correlation), _pixels(correlation), vector_unit().lanes(correlation.dtype)
    tile_fields, tiles = tiles_of(correlation.dtype, shape, pixels, shape.vectors * lanes)
    width = tile_fields["width"]
    _, strips, k_chunks = _tasks(correlation)
    strip_tiles = ceil_div(pixels // width, strips)
    strips = ceil_div(pixels // width, strip_tiles)
    k_tiles = shape.full + shape.short
    panel_elements = (correlation.c + 1) * shape.rows + tile_fields["lanes"]  # transposed blocks spill over
    tasks = correlation.batch * correlation.groups * strips * k_chunks
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        tile_fields, groups=correlation.groups, c=correlation.c, k=correlation.k, plane=pixels,
        columns=phase.extent[1], x_rows=correlation.x_size[0], x_columns=correlation.x_size[1],
        advance_row=phase.advance[0], advance_column=phase.advance[1], w_group=correlation.w_steps[0],
        w_k=correlation.w_steps[1], w_c=correlation.w_steps[2], taps=1, block=shape.block,
        blocks=ceil_div(correlation.c, shape.block), strips=strips, strip_tiles=strip_tiles, k_chunks=k_chunks,
        panel_elements=panel_elements, tasks=tasks))
    sums = round_up(shape.block * width, 16)
    geometry["sums"] = sums
    steps = np.arange(shape.block) * size
    return Plan(geometry, offset_table(steps * shape.rows, steps * width), np.zeros(1, np.int64), tiles,
                round_up(correlation.groups * k_tiles * panel_elements, 16),
                round_up(sums + correlation.k * tile_fields["tail_width"], 16), tasks)


@device_function
def _pack_pixels(like, size, out, planes, g, channels, first, count):
    """Pixels from ``first`` on of some channels as (channels, width)."""
    pitch = g.x_rows * g.x_columns * size
    if g.advance_row == 1 and g.advance_column == 1 and g.columns == g.x_columns:
        source, ahead = planes + first * size, count * size
        for _ in range(channels):
            copy_run(like, out, source, count)
            prefetch_rows(source + ahead, np.int64(0), np.int64(1))
            source += pitch
            out += g.width * size
        return
    while count > 0:
        i, j = first // g.columns, first % g.columns
        run = min(count, g.columns - j)
        source = planes + (i * g.advance_row * g.x_columns + j * g.advance_column) * size
        for c in range(channels):
            move_run(like, out + c * g.width * size, 1, source + c * pitch, g.advance_column, run)
        first += run
        count -= run
        out += run * size


@device_function
def _run_tiles(g, filters, panel, table, channels, out, pitch, size, first_tile, last_tile, from_sums, bias, whole):
    """One panel of pixels by the tiles of channels; ``filters`` are those of the first tile's block."""
    for tile in range(first_tile, last_tile):
        full = tile < g.tiles_full
        a = filters + tile * g.panel_elements * size
        initial = bias + tile * g.panel_elements * size if bias != 0 else from_sums
        entry = (g.tile if full else g.tile_short) if whole else (g.tail if full else g.tail_short)
        call_tile(entry, (a, panel, table, channels, out + tile_start(g, tile) * pitch, pitch, initial))


@device_function
def _correlate_task(y, x, has_bias, g, table, scratch, start, task):
    like, size = x.dtype.type(0), x.itemsize
    k_tiles = g.tiles_full + g.tiles_short
    chunk = task * g.k_chunks // g.tasks  # a worker's first tasks are of filters that it has packed itself
    strip = task % g.strips
    group = task // g.strips % g.groups
    image = task % (g.tasks // g.k_chunks) // (g.strips * g.groups)
    first = strip * g.strip_tiles * g.width
    last = g.plane if strip == g.strips - 1 else first + g.strip_tiles * g.width
    first_tile, last_tile = k_tiles * chunk // g.k_chunks, k_tiles * (chunk + 1) // g.k_chunks
    planes = address(x) + (image * g.groups + group) * g.c * g.x_rows * g.x_columns * size
    out, pitch = address(y) + (image * g.groups + group) * g.k * g.plane * size, g.plane * size
    panel, sums = address(scratch) + start * size, address(scratch) + (start + g.sums) * size
    numbers = address(scratch) + group * k_tiles * g.panel_elements * size
    rest = (last - first) % g.width
    for r in range(g.blocks):
        c = r * g.block
        channels = min(g.block, g.c - c)
        filters, source = numbers + (1 + c) * g.tile_rows * size, planes + c * g.x_rows * g.x_columns * size
        from_sums, bias = np.int64(r > 0), numbers if r == 0 and has_bias else np.int64(0)
        for pixel in range(first, last - rest, g.width):
            _pack_pixels(like, size, panel, source, g, channels, pixel, g.width)
            _run_tiles(g, filters, panel, address(table), channels, out + pixel * size, pitch, size, first_tile,
                       last_tile, from_sums, bias, True)
        if rest:
            _pack_pixels(like, size, panel, source, g, channels, last - rest, rest)
            _run_tiles(g, filters, panel, address(table), channels, sums, g.tail_width * size, size, first_tile,
                       last_tile, from_sums, bias, False)
    if rest:
        for row in range(tile_start(g, first_tile), tile_start(g, last_tile)):
            copy_run(like, out + row * pitch + (last - rest) * size, sums + row * g.tail_width * size, rest)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    if geometry[0].kept == 0:
        k_tiles = geometry[0].tiles_full + geometry[0].tiles_short
        for unit in numba.prange(packing_units(geometry[0], k_tiles)):
            pack_panels(scratch, 0, w, bias, geometry[0], lists[:geometry[0].taps], k_tiles, geometry[0].tiles_full,
                        geometry[0].tile_rows, np.int64(unit))
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _correlate_task(y, x, bias.size > 0, geometry[0], table, scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
