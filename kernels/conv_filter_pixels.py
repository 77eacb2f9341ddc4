"""Direct convolution, filter gradient with pixels in the lanes, for NCHW: few input channels.

    dw[k, c, tap] = sum over pixels of  dy[k, pixel] * copy[c, tap, pixel]

dy is read as it lies, where channels in the lanes would have to transpose all of it for a few taps; the input comes as
shifted copies (copies.py). A sum has a vector of partial sums, added up at the end of each chunk of units; a unit is
a strip of one image. The chunks' sums are added in their order.

Where a tile has all taps it reads dy once, which then just passes through the caches; else dy is taken in blocks that
stay in L1 for all taps. A tile goes through a *batch* of images, a block of each, before it gives its sums back.
"""

from typing import NamedTuple

import numba
import numpy as np

from . import copies, correlation
from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    STRADDLING,
    cache_bytes,
    ceil_div,
    divide,
    even_chunks,
    fill,
    geometry_type,
    places,
    round_up,
)
from .copies import copies_of, copy_strip
from .dot_tile import DotTile, compile_dot_tile, most_dot_rows
from .jit import device_function, kernel
from .pack import store_sums
from .plan import Plan
from .rows import clear_run
from .simd import address, call_tile, sum_lanes, vector_unit
from .tasks import no_tasks_taken, take

PIXELS_A_CHUNK = 4096  # at least: fewer, and adding up the lanes of every sum costs a share of the products
BUFFER_SHARE = 1 / 2  # of L2, for the copies of a unit
SHORTEST_BLOCK = 24  # vectors: fewer, and loading and storing the sums costs a share of the products
CALL_CYCLES = 40  # to enter and leave a tile, beside loading and storing its sums
BLOCK_VECTORS = 40  # of a tile that has not all taps, about
IMAGE_CYCLES = 400  # to begin an image, of each group
TILE_PENALTY = 1.23  # of what the estimate leaves out: every operand is a stream of its own
MOST_COLUMNS = 12

GEOMETRY = geometry_type(
    "groups c k x_rows x_columns plane lanes tile_rows tiles_full tiles_short columns_full columns_short tile_columns "
    "tile tile_short tile_few tile_short_few runs image_pitch strips strip_pixels block_pixels "
    "sum_row units batch chunks chunk_units copies_start sums_start tasks " + copies.FIELDS)


class _Shape(NamedTuple):
    """Rows (of output channels) and columns (of taps) of the tiles, and what a vector of pixels costs with them."""

    cycles: float
    rows: int
    full: int
    short: int
    columns: int
    columns_full: int
    columns_short: int
    runs: int  # of taps, each covered by those columns: a filter row, a filter, or all channels of a 1x1 kernel

    @property
    def all_taps(self):
        """Whether one tile has them."""
        return self.runs * (self.columns_full + self.columns_short) == 1


def supports(problem, layout, dtype):
    """None, or why not: layout, too few pixels, too many copies or sums."""
    if layout != "NCHW":
        return "needs layout NCHW"
    lanes, size = vector_unit().lanes(dtype), np.dtype(dtype).itemsize
    shifted = copies_of(correlation.forward(problem, layout, dtype))
    if shifted.pixels < lanes:
        return f"needs at least {lanes} output pixels an image"
    if problem.c // problem.groups * shifted.row_bytes(size) > cache_bytes()[1]:
        return "the copies of the rows that one output row reads do not fit into L2"
    if problem.k // problem.groups * (problem.c // problem.groups) * problem.r * problem.s * lanes * size > (
            cache_bytes()[1]):
        return "a vector of partial sums for each filter element does not fit into L2"
    return None


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    c = problem.c // problem.groups
    shifted = copies_of(correlation.forward(problem, layout, dtype))
    lanes = vector_unit().lanes(dtype)
    vectors = ceil_div(shifted.pixels, lanes)
    return problem.n * problem.groups * (
        TILE_PENALTY * vectors * _shape(problem, shifted, lanes).cycles + c * shifted.cycles + IMAGE_CYCLES)


def _shape(problem, shifted, lanes):
    """The cheapest tile for k channels by all taps."""
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, problem.r * problem.s
    best = None
    for length, parts in ((problem.s, True), (taps, problem.s == 1), (c if taps == 1 else 1, True)):
        if length == taps and len(shifted.residues) > 1:
            continue  # a filter's rows are in different copies: runs of its columns only
        runs = c * taps // length
        for most in range(1 if parts else length, min(length, MOST_COLUMNS) + 1):
            if most_dot_rows(most) < 1:
                break
            columns, columns_full, columns_short = divide(length, most)
            rows, full, short = divide(k, most_dot_rows(columns))
            tiles = [(count * wide, height, width) for count, height in ((full, rows), (short, rows - 1))
                     for wide, width in ((columns_full, columns), (columns_short, columns - 1)) if height * width]
            vectors = PIXELS_A_CHUNK // lanes if columns == c * taps else BLOCK_VECTORS
            cost = runs * sum(count * _tile_cycles(height, width, vectors) for count, height, width in tiles)
            if best is None or cost < best.cycles:
                best = _Shape(cost, rows, full, short, columns, columns_full, columns_short, runs)
    return best


def _tile_cycles(rows, columns, vectors):
    """For one vector of pixels, of those that a tile is entered for."""
    return max(rows * columns, (rows + columns) * (1 + STRADDLING)) + (CALL_CYCLES + 3 * rows * columns) / vectors


def plan(problem, layout, dtype):
    """Blocking for the filter gradient of ``problem``."""
    size, lanes, groups = np.dtype(dtype).itemsize, vector_unit().lanes(dtype), problem.groups
    c, k, taps = problem.c // groups, problem.k // groups, problem.r * problem.s
    shifted = copies_of(correlation.forward(problem, layout, dtype))
    shape, pixels = _shape(problem, shifted, lanes), shifted.pixels
    strips, strip_pixels, block_pixels = _strips(c, shifted, shape, lanes, size)
    copy_pitch = shifted.copy_pitch(strip_pixels + lanes)
    channel_pitch, tap_offsets = shifted.channel_pitch(copy_pitch), shifted.tap_offsets(copy_pitch)
    image_pitch = c * channel_pitch * (1 if shifted.needed else groups)
    every = (np.arange(c)[:, None] * channel_pitch + tap_offsets).reshape(-1)
    pattern = every[:c * taps // shape.runs]
    units = problem.n * strips
    most = max(1, min(units, problem.n * pixels // PIXELS_A_CHUNK, ceil_div(ENOUGH_TASKS, groups)))
    chunks, chunk_units = even_chunks(units, most)
    batch = _batch(c, shifted, shape, block_pixels, size) if strips == 1 else 1
    batch = ceil_div(chunk_units, ceil_div(chunk_units, batch))
    steps = dict(a_step=pixels, a_image=problem.k * pixels, b_image=image_pitch, c_row=c * taps, ahead=shape.all_taps)
    tiles = _compile(dtype, shape, pattern, steps)
    tasks = chunks * groups
    starts, worker = places(
        lanes, copies=batch * image_pitch * shifted.needed + 2 * lanes, sums=k * c * taps * lanes)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        **shifted.values(copy_pitch, len(every)), **starts, groups=groups, c=c, k=k, x_rows=problem.h,
        x_columns=problem.w, plane=pixels, lanes=lanes, tile_rows=shape.rows, tiles_full=shape.full,
        tiles_short=shape.short, tile_columns=shape.columns, columns_full=shape.columns_full,
        columns_short=shape.columns_short, runs=shape.runs, image_pitch=image_pitch, batch=batch, strips=strips,
        strip_pixels=strip_pixels, block_pixels=block_pixels, sum_row=c * taps, units=units, chunks=chunks,
        chunk_units=chunk_units, tasks=tasks, **{name: tile.address for name, tile in tiles.items()}))
    lists = np.array([*every, *shifted.listed()], np.int64)
    return Plan(geometry, NO_TABLE, lists, tuple(tiles.values()),
                round_up(chunks * groups * k * c * taps, 16), round_up(worker, 16), tasks)


def _strips(c, shifted, shape, lanes, size):
    """Strips an image and their pixels, whose copies stay in L2; pixels of a block."""
    halo = (shifted.extra_rows + 1) * shifted.columns
    most = int(cache_bytes()[1] * BUFFER_SHARE) // (c * max(1, shifted.count) * size) - halo * shifted.needed
    strips = ceil_div(shifted.pixels, max(lanes, most))
    strip_pixels = round_up(ceil_div(shifted.pixels, strips), lanes)
    strips = ceil_div(shifted.pixels, strip_pixels)
    if shifted.pixels - (strips - 1) * strip_pixels < lanes and strips > 1:  # a tail needs a whole vector before it
        strip_pixels += lanes
        strips = ceil_div(shifted.pixels, strip_pixels)
    if shape.all_taps:
        return strips, strip_pixels, strip_pixels
    block = cache_bytes()[0] // ((shape.rows + max(shape.columns, c * shifted.count)) * size) // lanes
    return strips, strip_pixels, max(SHORTEST_BLOCK, block) * lanes


def _batch(c, shifted, shape, block_pixels, size):
    """Images a call of a tile: copies within their share of L2, or blocks that stay in L1 together."""
    if shape.all_taps:
        return max(1, int(cache_bytes()[1] * BUFFER_SHARE) // (c * max(1, shifted.count) * shifted.pixels * size))
    return max(1, block_pixels // shifted.pixels)


def _compile(dtype, shape, pattern, steps):
    """The tiles by their names in the geometry: all rows or one less, all columns or one less."""
    heights = {"": shape.rows} | ({"_short": shape.rows - 1} if shape.short else {})
    widths = {"": shape.columns} | ({"_few": shape.columns - 1} if shape.columns_short else {})
    found = {}
    for row_name, rows in heights.items():
        for column_name, columns in widths.items():
            offsets = tuple(int(offset - pattern[0]) for offset in pattern[:columns])
            found[f"tile{row_name}{column_name}"] = compile_dot_tile(
                DotTile(dtype, rows, b_offsets=offsets, **steps))
    return found


@device_function
def _add_block(g, lists, dy, b, sums, pixels, images, size):
    """Products of a run of pixels, the same in each of some images, for all taps and output channels of a group."""
    row = g.sum_row * g.lanes * size
    for tile in range(g.tiles_full + g.tiles_short):  # whose rows of dy stay in L1 for all taps
        full = tile < g.tiles_full
        k = tile * g.tile_rows - max(0, tile - g.tiles_full)
        for run in range(g.runs):
            for part in range(g.columns_full + g.columns_short):
                few = part >= g.columns_full
                column = run * (g.sum_row // g.runs) + part * g.tile_columns - max(0, part - g.columns_full)
                if full:
                    entry = g.tile_few if few else g.tile
                else:
                    entry = g.tile_short_few if few else g.tile_short
                call_tile(entry, (dy + k * g.plane * size, b + lists[column] * size, pixels // g.lanes,
                                  pixels % g.lanes, images, sums + k * row + column * g.lanes * size))


@device_function
def _sum_chunk(x, dy, g, lists, scratch, start, task):
    """The sums of one chunk of units, for one group."""
    like, size, lanes = x.dtype.type(0), x.itemsize, g.lanes
    group, chunk = task % g.groups, task // g.groups
    sums = address(scratch) + (start + g.sums_start) * size
    count = g.k * g.sum_row
    clear_run(like, sums, count * lanes)
    end = min(g.units, (chunk + 1) * g.chunk_units)
    for unit in range(chunk * g.chunk_units, end, g.batch):
        image, strip, images = unit // g.strips, unit % g.strips, min(g.batch, end - unit)
        first = strip * g.strip_pixels
        last = min(g.plane, first + g.strip_pixels)
        b = np.int64(0)
        for i in range(images - 1, -1, -1):  # the first one's address counts
            b = copy_strip(scratch, start + g.copies_start + i * g.image_pitch, x, g, lists, image + i, group, first,
                           last)
        a = address(dy) + ((image * g.groups + group) * g.k * g.plane + first) * size
        position = 0
        while position < last - first:
            pixels = last - first - position
            if pixels >= g.block_pixels + lanes:
                pixels = g.block_pixels
            _add_block(g, lists, a + position * size, b + position * size, sums, pixels, images, size)
            position += pixels
    out = (chunk * g.groups + group) * count
    for i in range(count):
        scratch[out + i] = sum_lanes(like, sums + i * lanes * size)


@kernel
def filter_gradient(dw, x, dy, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """dw: (K, C/G, R, S); x, dy: NCHW; scratch: the plan's size."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _sum_chunk(x, dy, geometry[0], lists, scratch, worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
    store_sums(dw.reshape(-1), scratch, geometry[0].chunks)
