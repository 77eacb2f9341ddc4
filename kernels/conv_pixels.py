"""Direct convolution with pixels in the lanes, for NCHW: few input channels, few channels a group, or a 1x1 kernel.

Output channels are in the rows of the micro-kernel, filters are broadcast, and the sums of neighbouring pixels go
straight into y: nothing is transposed and nothing stored twice. For that the pixels of an image must be one run, so
the input is copied once for each column of the filter (and each row within the stride), shifted as that column
reads it and padded: every tap is then the same run at another distance. A 1x1 kernel reads x itself.

A task is a run of pixels of one image and group, for some of the output channels.
"""

from typing import NamedTuple

import numba
import numpy as np

from . import conv_direct
from .blocking import (
    ENOUGH_TASKS,
    LARGEST_OFFSET,
    LAST_CACHE_BYTES,
    cache_bytes,
    ceil_div,
    divide,
    fill,
    geometry_type,
    most_rows,
    offset_table,
    round_up,
    tile_cost,
)
from .jit import device_function, kernel
from .pack import copy_plane, pack_rows_transposed
from .plan import Plan
from .simd import Tile, address, call_tile, compile_tile, fetch_add, vector_unit

COPY_CYCLES = 0.4  # an element, to copy it with neighbours
STRIDED_COPY_CYCLES = 1.0  # and without
DISTANT_CYCLES = 2.0  # an element of x that is read where it lies and comes from memory: few lines of each page
STRADDLING = 0.75  # of the vectors at any address lie on two cache lines and take two loads
LEEWAY = 1.05, 0.95  # what estimates leave out: L1 misses of channels in the lanes at 1x1; those of copies here
BUFFER_SHARE = 1 / 2  # of L2, for the copies of a task

GEOMETRY = geometry_type(
    "groups c k x_rows x_columns plane columns advance_row advance_column w_group w_k w_c copied lowest_shift "
    "extra_rows residues residues_start offsets offsets_start copy_pitch channel_pitch taps steps width lanes tile_rows "
    "tiles_full tiles_short tile tile_short tail_width tail tail_short strips strip_tiles image_tiles k_chunks "
    "panel_elements tasks")


class _Shape(NamedTuple):
    """Rows (of channels) and vectors (of pixels) of the tiles, and what an image costs with them."""

    cycles: float
    rows: int
    full: int
    short: int
    vectors: int


class _Copies(NamedTuple):
    """Which copies of a channel the taps of a phase read."""

    residues: list  # of rows, modulo the stride
    offsets: list  # of columns
    shifts: list  # a tap row's distance in rows of its copy
    needed: bool  # False where x itself will do


def supports(correlation):
    """None, or why not: layout, stride of the output, too few pixels, or that channels in the lanes cost less."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if len(correlation.phases) > 1:
        return "needs stride 1"
    lanes = vector_unit().lanes(correlation.dtype)
    pixels = _pixels(correlation)
    if pixels < lanes:
        return f"needs at least {lanes} output pixels an image"
    if _row_bytes(correlation) > cache_bytes()[1]:
        return "the copies of the rows that one output row reads do not fit into L2"
    mine, other = cycles(correlation), conv_direct.cycles(correlation)
    if mine >= LEEWAY[_copies(correlation).needed] * other:
        return f"estimated {mine / other:.2f}x the cycles of direct"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    phase, pixels = correlation.phases[0], _pixels(correlation)
    copies = _copies(correlation)
    total = _shape(correlation).cycles
    if copies.needed:
        each = COPY_CYCLES if phase.advance[1] == 1 else STRIDED_COPY_CYCLES
        total += correlation.c * len(copies.residues) * len(copies.offsets) * pixels * each
    elif correlation.batch * correlation.groups * correlation.c * pixels * 4 > LAST_CACHE_BYTES:
        total += correlation.c * pixels * DISTANT_CYCLES
    return total * correlation.batch * correlation.groups


def _pixels(correlation):
    rows, columns = correlation.phases[0].extent
    return rows * columns


def _steps(correlation):
    phase = correlation.phases[0]
    return correlation.c * len(phase.taps[0]) * len(phase.taps[1])


def _copies(correlation):
    phase = correlation.phases[0]
    advance = phase.advance[0]
    rows, offsets = ([offset for _, offset in axis] for axis in phase.taps)
    plain = phase.advance == (1, 1) and offsets == [0] and phase.extent[1] == correlation.x_size[1]
    inside = min(rows) >= 0 and max(rows) + phase.extent[0] <= correlation.x_size[0]
    small = correlation.c * correlation.x_size[0] * correlation.x_size[1] * 8 < LARGEST_OFFSET
    return _Copies(sorted({row % advance for row in rows}), offsets, [row // advance for row in rows],
                   not (plain and inside and small))


def _row_bytes(correlation):
    """Of the copies that one output row reads."""
    copies, size = _copies(correlation), np.dtype(correlation.dtype).itemsize
    if not copies.needed:
        return 0
    rows = max(copies.shifts) - min(copies.shifts) + 2
    return correlation.c * len(copies.residues) * len(copies.offsets) * rows * correlation.phases[0].extent[1] * size


def _shape(correlation):
    """The cheapest tile for k channels by the pixels of an image."""
    lanes, pixels, steps = vector_unit().lanes(correlation.dtype), _pixels(correlation), _steps(correlation)
    best = None
    for vectors in range(1, min(8, pixels // lanes) + 1):
        if most_rows(vectors) < 1:
            break
        rows, full, short = divide(correlation.k, most_rows(vectors))
        whole, rest = divmod(pixels, vectors * lanes)
        tail = ceil_div(rest, lanes)
        cost = sum(tiles * (whole * _tile_cycles(height, vectors, steps) + _tile_cycles(height, tail, steps))
                   for tiles, height in ((full, rows), (short, rows - 1)))
        if best is None or cost < best.cycles:
            best = _Shape(cost, rows, full, short, vectors)
    return best


def _tile_cycles(rows, vectors, steps):
    if rows * vectors == 0:
        return 0
    loads = rows + vectors * (1 + STRADDLING)
    return max(tile_cost(rows, vectors, steps), loads * steps)


def plan(correlation):
    """Blocking for ``correlation``."""
    phase, size = correlation.phases[0], np.dtype(correlation.dtype).itemsize
    lanes, pixels, steps = vector_unit().lanes(correlation.dtype), _pixels(correlation), _steps(correlation)
    columns, copies, shape = phase.extent[1], _copies(correlation), _shape(correlation)
    width = shape.vectors * lanes
    image_tiles = pixels // width
    tail_vectors = ceil_div(pixels % width, lanes)
    extra_rows = max(copies.shifts) - min(copies.shifts)
    k_tiles = shape.full + shape.short
    strips, k_chunks = _tasks(correlation, copies, image_tiles, width, extra_rows, k_tiles, size)
    strip_tiles = ceil_div(image_tiles, strips)
    strip_rows = (strip_tiles * width + tail_vectors * lanes - 2) // columns + 2 + extra_rows
    copy_pitch = strip_rows * columns if copies.needed else 0
    copies_a_channel = len(copies.residues) * len(copies.offsets)
    channel_pitch = copies_a_channel * copy_pitch if copies.needed else correlation.x_size[0] * correlation.x_size[1]
    tiles = {(rows, vectors): compile_tile(Tile(correlation.dtype, rows, vectors, 1))
             for rows in {shape.rows, shape.rows - bool(shape.short)} for vectors in {shape.vectors, tail_vectors}
             if vectors}
    entry = {key: tile.address for key, tile in tiles.items()}
    tap_list = [r * correlation.filter_columns + s for r, _ in phase.taps[0] for s, _ in phase.taps[1]]
    panel_elements = (steps + 1) * shape.rows + lanes  # transposed blocks spill past the last row
    tasks = correlation.batch * correlation.groups * ceil_div(image_tiles, strip_tiles) * k_chunks
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        groups=correlation.groups, c=correlation.c, k=correlation.k, x_rows=correlation.x_size[0],
        x_columns=correlation.x_size[1], plane=pixels, columns=columns, advance_row=phase.advance[0],
        advance_column=phase.advance[1], w_group=correlation.w_steps[0], w_k=correlation.w_steps[1],
        w_c=correlation.w_steps[2], copied=copies.needed, lowest_shift=min(copies.shifts), extra_rows=extra_rows,
        residues=len(copies.residues), residues_start=len(tap_list), offsets=len(copies.offsets),
        offsets_start=len(tap_list) + len(copies.residues), copy_pitch=copy_pitch, channel_pitch=channel_pitch,
        taps=len(tap_list), steps=steps, width=width, lanes=lanes, tile_rows=shape.rows, tiles_full=shape.full,
        tiles_short=shape.short, tile=entry[shape.rows, shape.vectors],
        tile_short=entry.get((shape.rows - 1, shape.vectors), 0), tail_width=tail_vectors * lanes,
        tail=entry.get((shape.rows, tail_vectors), 0), tail_short=entry.get((shape.rows - 1, tail_vectors), 0),
        strips=ceil_div(image_tiles, strip_tiles), strip_tiles=strip_tiles, image_tiles=image_tiles,
        k_chunks=k_chunks, panel_elements=panel_elements, tasks=tasks))
    buffer = correlation.c * channel_pitch + width if copies.needed else 0
    return Plan(geometry, _table(correlation, copies, copy_pitch, channel_pitch, shape.rows, size),
                np.array([*tap_list, *copies.residues, *_columns_inside(correlation, copies)], np.int64),
                tuple(tiles.values()),
                round_up(correlation.groups * k_tiles * panel_elements + lanes, 16), round_up(buffer, 16), tasks)


def _tasks(correlation, copies, image_tiles, width, extra_rows, k_tiles, size):
    """Strips an image, and chunks of output channels: the copies within their share of L2, and enough tasks."""
    images = max(1, correlation.batch * correlation.groups)
    columns = correlation.phases[0].extent[1]
    bytes_a_pixel = correlation.c * size * (len(copies.residues) * len(copies.offsets) if copies.needed else 1)
    most = int(cache_bytes()[1] * BUFFER_SHARE) // bytes_a_pixel - (extra_rows + 1) * columns * copies.needed
    strips = ceil_div(image_tiles, max(1, most // width))
    halo = 1 if copies.needed and extra_rows else 0
    # A strip copies rows that the one before it copied too: not more than an eighth again for the sake of tasks.
    spare = image_tiles * width // max(1, 8 * extra_rows * columns) if halo else image_tiles
    strips = min(image_tiles, max(strips, min(ceil_div(ENOUGH_TASKS, images), spare)))
    k_chunks = min(k_tiles, ceil_div(ENOUGH_TASKS, images * strips)) if images * strips < ENOUGH_TASKS // 2 else 1
    return max(1, strips), k_chunks


def _columns_inside(correlation, copies):
    """(offset, first, last) for each column offset: outputs from first to last read a column of x."""
    phase, found = correlation.phases[0], []
    columns, advance = phase.extent[1], phase.advance[1]
    for offset in copies.offsets:
        first = min(columns, max(0, ceil_div(-offset, advance)))
        found += [offset, first, max(first, min(columns, ceil_div(correlation.x_size[1] - offset, advance)))]
    return found


def _table(correlation, copies, copy_pitch, channel_pitch, panel_rows, size):
    """Offsets of the steps (c, r, s)."""
    phase = correlation.phases[0]
    columns = phase.extent[1]
    if copies.needed:
        row_pitch = len(copies.offsets) * copy_pitch
        rows = [copies.residues.index(offset % phase.advance[0]) * row_pitch + (shift - min(copies.shifts)) * columns
                for (_, offset), shift in zip(phase.taps[0], copies.shifts)]
        taps = np.array(rows)[:, None] + np.arange(len(copies.offsets)) * copy_pitch
    else:
        taps = np.array([offset * columns for _, offset in phase.taps[0]])[:, None]
    b = (np.arange(correlation.c)[:, None] * channel_pitch + taps.reshape(-1)).reshape(-1) * size
    return offset_table(np.arange(b.size) * panel_rows * size, b)


@device_function
def _pack_panel(scratch, w, bias, g, taps, unit):
    """One tile's filters of one group: a row of bias, then the steps (c, tap), each of ``tile_rows`` channels."""
    k_tiles = g.tiles_full + g.tiles_short
    group, tile = unit // k_tiles, unit % k_tiles
    first = tile * g.tile_rows - max(0, tile - g.tiles_full)
    valid = min(g.tile_rows, g.k - first)
    out = unit * g.panel_elements
    for i in range(valid):
        scratch[out + i] = bias[group * g.k + first + i] if bias.size > 0 else 0
    pack_rows_transposed(scratch, out + g.tile_rows, g.tile_rows, w, group * g.w_group + first * g.w_k, g.w_k, g.w_c,
                         taps[:g.taps], g.c, valid)


@device_function
def _copy_rows(scratch, start, x, g, lists, image, group, first_out, rows_out):
    """All copies of the rows that output rows ``first_out ...`` read."""
    like, size = x.dtype.type(0), x.itemsize
    begin, end = address(x), address(x) + x.size * size
    for c in range(g.c):
        plane = begin + ((image * g.groups + group) * g.c + c) * g.x_rows * g.x_columns * size
        for i in range(g.residues):
            first_row = g.advance_row * (first_out + g.lowest_shift) + lists[g.residues_start + i]
            for j in range(g.offsets):
                out = address(scratch) + size * (start + c * g.channel_pitch + (i * g.offsets + j) * g.copy_pitch)
                at = g.offsets_start + 3 * j
                copy_plane(like, size, out, plane, g.x_columns * size, g.x_rows, first_row, g.advance_row,
                           rows_out + g.extra_rows, g.columns, lists[at], g.advance_column, lists[at + 1],
                           lists[at + 2], begin, end)


@device_function
def _run_tiles(g, table, panel, b, out, pixels, has_bias, size, first_tile, last_tile):
    """All tiles of one run of pixels, for some tiles of channels."""
    plane = g.plane * size
    for tile in range(first_tile, last_tile):
        full = tile < g.tiles_full
        first = tile * g.tile_rows - max(0, tile - g.tiles_full)
        filters = panel + tile * g.panel_elements * size
        initial = filters if has_bias else np.int64(0)
        a = filters + g.tile_rows * size
        for pixel in range(0, pixels - g.width + 1, g.width):
            call_tile(g.tile if full else g.tile_short, (
                a, b + pixel * size, table, g.steps, out + first * plane + pixel * size, plane, initial))
        if pixels % g.width:
            pixel = pixels - g.tail_width
            call_tile(g.tail if full else g.tail_short, (
                a, b + pixel * size, table, g.steps, out + first * plane + pixel * size, plane, initial))


@device_function
def _correlate_task(y, x, has_bias, g, table, lists, scratch, start, task):
    size = x.itemsize
    k_tiles = g.tiles_full + g.tiles_short
    chunk = task % g.k_chunks
    strip = task // g.k_chunks % g.strips
    group = task // (g.k_chunks * g.strips) % g.groups
    image = task // (g.k_chunks * g.strips * g.groups)
    first = strip * g.strip_tiles * g.width
    last = g.plane if strip == g.strips - 1 else first + g.strip_tiles * g.width
    if g.copied:
        first_out = first // g.columns
        _copy_rows(scratch, start, x, g, lists, image, group, first_out, (last - 1) // g.columns + 1 - first_out)
        b = address(scratch) + (start + first - first_out * g.columns) * size
    else:
        b = address(x) + ((image * g.groups + group) * g.c * g.channel_pitch + first) * size
    panel = address(scratch) + group * k_tiles * g.panel_elements * size
    out = address(y) + ((image * g.groups + group) * g.k * g.plane + first) * size
    _run_tiles(g, address(table), panel, b, out, last - first, has_bias, size,
               k_tiles * chunk // g.k_chunks, k_tiles * (chunk + 1) // g.k_chunks)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    for unit in numba.prange(geometry[0].groups * (geometry[0].tiles_full + geometry[0].tiles_short)):
        _pack_panel(scratch, w, bias, geometry[0], lists, np.int64(unit))
    counter = np.zeros(1, np.int64)
    for worker in numba.prange(workers):
        task = fetch_add(counter)
        while task < geometry[0].tasks:
            _correlate_task(y, x, bias.size > 0, geometry[0], table, lists, scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = fetch_add(counter)
