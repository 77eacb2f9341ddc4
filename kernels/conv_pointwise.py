"""Direct convolution by 1x1 filters without padding, for NCHW: one matrix product for all images.

Output channels are in the rows of the micro-kernel and pixels in the lanes. Filters are read where they lie if the
channels of each are neighbours, and do not share sets of L1 with those of the next rows, or else packed as in
conv_pixels.py. What a tile of pixels reads of a block of input channels is packed as a panel, small enough for L1,
which all tiles of output channels then share; a stride is taken out on the way. Meanwhile memory fetches what the next
panel reads and the next tile writes: few lines of many pages, which the hardware does not foresee. Sums of further
blocks are added in y.

The pixels of all images are one run, so that small images leave no tile half empty. The sums of a panel that ends in
another image than it begins are made aside, and copied in pieces.

A task is a part of that run in one group, for some of the output channels.
"""

import math
import operator

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    cache_bytes,
    ceil_div,
    enough_tasks,
    fill,
    geometry_type,
    idle_share,
    most_rows,
    pixel_shape,
    pixel_tiles,
    round_up,
    rows_held,
    tile_cost,
)
from .jit import device_function, kernel
from .pack_filters import FILTER_CYCLES, pack_panels, packing_units, tile_start
from .plan import Plan
from .rows import copy_run, copy_runs, every, fill_run, move_run, prefetch_rows
from .simd import FROM_SUMS, FROM_ZERO, LINE_BYTES, address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

PANEL_SHARE = 1 / 2  # of L1
FILTERS_SHARE = 1 / 2  # of L2
PACK_CYCLES, STRIDED_PACK_CYCLES = 2.0, 6.0  # an element of x, few lines of each page at a time
PACK_AGAIN = 2  # times as much, for further chunks: they ask for more room in the caches, too
STREAM_CYCLES = 1 / 8  # a byte of filters or sums that come from beyond L2
SCATTER_CYCLES = 8.0  # an output that is stored where its neighbours are of other phases
TASK_CYCLES = 20_000  # of a task, until its filters and pixels come at full speed
CLASH = 1.1  # times as long, for tiles whose filters share sets of L1, as few as it holds
JOINT_CYCLES = 30  # an output channel, for sums that are moved where an image ends within a panel

GEOMETRY = geometry_type(
    "groups c k plane columns x_rows x_columns y_plane y_columns spread start step_row step_column advance_row "
    "advance_column w_group w_k w_c taps block width lanes tile_rows tiles_full tiles_short tile tile_short tail_width "
    "tail tail_short pixels strips strip_tiles k_chunks panel_elements in_place sums tasks kept")


_every2 = every(2)


def _working(correlation):
    """The only phase with a tap, whose outputs are the product; the others have but the bias."""
    (phase,) = [p for p in correlation.phases if p.taps[0] and p.taps[1]]
    return phase


def supports(correlation):
    """None, or why not: layout, more than one tap, padding, too few pixels."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    taps = [[offset for _, offset in axis] for p in correlation.phases if all(p.taps) for axis in p.taps]
    if taps != [[0], [0]]:
        return "needs a 1x1 kernel without padding"
    phase = _working(correlation)
    if any((out - 1) * step >= size for out, step, size in zip(phase.extent, phase.advance, correlation.x_size)):
        return "needs a 1x1 kernel without padding"
    lanes = vector_unit().lanes(correlation.dtype)
    if _pixels(correlation) < lanes:
        return f"needs at least {lanes} output pixels"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    tiles, shape, _ = _tiles(correlation)
    return correlation.groups * (tiles + _tasks(correlation, shape)[0])


def _tiles(correlation):
    """(cycles of all tiles, and to pack filters; the tiles' shape; whether filters are read where they lie).

    They may be where the input channels of each are neighbours; tiles have no more rows then than L1 holds a line of.
    """
    w_k, w_c = correlation.w_steps[1:]
    held, choices = rows_held(w_k * np.dtype(correlation.dtype).itemsize), []
    if w_c == 1:
        shape = _shape(correlation, held)
        choices.append((shape.cycles * (CLASH if held < most_rows(1) else 1), shape, True))
    shape, packing = _shape(correlation), 0 if correlation.kept else correlation.c * correlation.k * FILTER_CYCLES
    choices.append((shape.cycles + packing, shape, False))
    return min(choices, key=operator.itemgetter(0))


def _plane(correlation):
    phase = _working(correlation)
    return phase.extent[0] * phase.extent[1]


def _pixels(correlation):
    return correlation.batch * _plane(correlation)


def _block(correlation, vectors):
    """Input channels of a panel of that many vectors."""
    size = np.dtype(correlation.dtype).itemsize * vector_unit().lanes(correlation.dtype)
    most = max(1, int(PANEL_SHARE * cache_bytes()[0]) // (vectors * size))
    return ceil_div(correlation.c, ceil_div(correlation.c, most))


def _blocks(correlation, vectors):
    return ceil_div(correlation.c, _block(correlation, vectors))


def _shape(correlation, held=math.inf):
    """The cheapest tile for k channels by the pixels of all images, of ``held`` rows at most."""
    lanes = vector_unit().lanes(correlation.dtype)

    def costs(widest):
        block, blocks = _block(correlation, widest), _blocks(correlation, widest)
        moved = correlation.batch * correlation.k if _plane(correlation) % (widest * lanes) else 0
        return lambda rows, vectors: blocks * tile_cost(rows, vectors, block), blocks * moved * JOINT_CYCLES
    return pixel_shape(correlation.dtype, correlation.k, _pixels(correlation), 4, costs, held)


def _tasks(correlation, shape):
    """(cycles beside the products, strips of pixels, chunks of output channels) that take the cores the least time.

    Each chunk packs x again, and each strip reads the filters again, where they do not stay in L2; so do the sums of
    a strip for each further block.
    """
    phase, size, pixels = _working(correlation), np.dtype(correlation.dtype).itemsize, _pixels(correlation)
    share = FILTERS_SHARE * cache_bytes()[1]
    tiles = max(1, pixels // (shape.vectors * vector_unit().lanes(correlation.dtype)))
    pack = correlation.c * pixels * (PACK_CYCLES if phase.advance == (1, 1) else STRIDED_PACK_CYCLES)
    filters = correlation.c * correlation.k * size
    blocks = _blocks(correlation, shape.vectors)
    again = 2 * pixels * correlation.k * size * (blocks - 1)
    scatter = correlation.k * pixels * blocks * SCATTER_CYCLES if len(correlation.phases) > 1 else 0
    choices, sizes = [], {ceil_div(tiles, strips) for strips in range(1, min(tiles, 4 * ENOUGH_TASKS) + 1)}
    for strips in (ceil_div(tiles, of_each) for of_each in sizes):
        most = min(shape.full + shape.short, ceil_div(enough_tasks(), correlation.groups * strips))
        for chunks in range(1, most + 1):
            stream = strips * filters if filters / chunks > share else 0
            if pixels * correlation.k * size / (strips * chunks) > share:
                stream += again
            beside = scatter + pack * (1 + PACK_AGAIN * (chunks - 1)) + (
                chunks * strips * TASK_CYCLES + stream * STREAM_CYCLES)
            idle = idle_share(correlation.groups * strips * chunks)
            choices.append(((shape.cycles + beside) * (1 + idle), beside, strips, chunks))
    return min(choices)[1:]


def plan(correlation):
    """Blocking for ``correlation``."""
    phase, pixels, lanes = _working(correlation), _pixels(correlation), vector_unit().lanes(correlation.dtype)
    _, shape, in_place = _tiles(correlation)
    w_group, w_k, w_c = correlation.w_steps
    tile_fields, tiles = pixel_tiles(correlation.dtype, shape, pixels, shape.vectors * lanes,
                                     (w_k, w_c) if in_place else None)
    width, block = tile_fields["width"], _block(correlation, shape.vectors)
    _, strips, k_chunks = _tasks(correlation, shape)
    strip_tiles = ceil_div(max(1, pixels // width), strips)
    strips = ceil_div(max(1, pixels // width), strip_tiles)
    panel_elements = 0 if in_place else (correlation.c + 1) * shape.rows + lanes  # transposed blocks spill over
    tasks = correlation.groups * strips * k_chunks
    sums = round_up(block * width, 16)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        tile_fields, in_place=in_place, groups=correlation.groups, c=correlation.c, k=correlation.k,
        plane=_plane(correlation), columns=phase.extent[1], x_rows=correlation.x_size[0],
        x_columns=correlation.x_size[1], y_plane=correlation.y_size[0] * correlation.y_size[1],
        y_columns=correlation.y_size[1], spread=len(correlation.phases) > 1,
        start=phase.start[0] * correlation.y_size[1] + phase.start[1], step_row=phase.step[0],
        step_column=phase.step[1], advance_row=phase.advance[0], advance_column=phase.advance[1], w_group=w_group,
        w_k=w_k, w_c=w_c, taps=1, block=block, pixels=pixels, strips=strips, strip_tiles=strip_tiles,
        k_chunks=k_chunks, panel_elements=panel_elements, sums=sums, tasks=tasks))
    return Plan(geometry, NO_TABLE, np.zeros(1, np.int64), tiles,
                round_up(correlation.groups * (shape.full + shape.short) * panel_elements, 16),
                round_up(sums + correlation.k * width, 16), tasks)


@device_function
def _pack_pixels(like, size, out, planes, g, channels, first, count):
    """Pixels from ``first`` on of some channels as (channels, width)."""
    pitch = g.x_rows * g.x_columns * size
    if g.advance_row == 1 and g.advance_column == 1 and g.columns == g.x_columns:
        source = planes + first * size
        copy_runs(like, out, g.width * size, source, pitch, channels, count)
        return
    while count > 0:
        i, j = first // g.columns, first % g.columns
        run = min(count, g.columns - j)
        source = planes + (i * g.advance_row * g.x_columns + j * g.advance_column) * size
        for c in range(channels):
            if g.advance_column == 2:
                _every2(like, out + c * g.width * size, source + c * pitch, run)
            else:
                move_run(like, out + c * g.width * size, 1, source + c * pitch, g.advance_column, run)
        first += run
        count -= run
        out += run * size


@device_function
def _pack_panel(like, size, out, x, image_pitch, g, channels, first, count):
    """:func:`_pack_pixels` of the run over all images; ``x`` is the address of the first image's channels."""
    while count > 0:
        image, at = first // g.plane, first % g.plane
        run = min(count, g.plane - at)
        _pack_pixels(like, size, out, x + image * image_pitch, g, channels, at, run)
        first += run
        count -= run
        out += run * size


@device_function
def _move_sums(like, size, y, image_pitch, g, sums, first_row, last_row, first, count, into_y):
    """The pixels from ``first`` on of some output channels, as rows of ``width`` sums: from y, or into it."""
    while count > 0:
        image, at = first // g.plane, first % g.plane
        run, place = min(count, g.plane - at), at
        if g.spread:
            i, j = at // g.columns, at % g.columns
            run, place = min(count, g.columns - j), g.start + i * g.step_row * g.y_columns + j * g.step_column
        place = y + image * image_pitch + (first_row * g.y_plane + place) * size
        for row in range(first_row, last_row):
            beside = sums + row * g.width * size
            if g.spread and into_y:
                move_run(like, place, g.step_column, beside, 1, run)
            elif g.spread:
                move_run(like, beside, 1, place, g.step_column, run)
            elif into_y:
                copy_run(like, place, beside, run)
            else:
                copy_run(like, beside, place, run)
            place += g.y_plane * size
        first += run
        count -= run
        sums += run * size


@device_function
def _fill_plane(y, bias, g, plane):
    """What a plane of y has between the outputs of the phase with a tap."""
    like, out, channel = y.dtype.type(0), address(y) + plane * g.y_plane * y.itemsize, plane % (g.groups * g.k)
    fill_run(out, bias[channel] if bias.size > 0 else like, g.y_plane)


@device_function
def _last_read(g, images, images_pitch, size, pixel):
    """Address of the last pixel that the panel from ``pixel`` on takes of its first image."""
    at = min(pixel % g.plane + g.width, g.plane) - 1
    row, column = at // g.columns * g.advance_row, at % g.columns * g.advance_column
    return images + pixel // g.plane * images_pitch + (row * g.x_columns + column) * size


@device_function
def _fetch(g, size, pixels, channels, out, pitch):
    """What a tile's share of the next panel reads of each channel, up to ``pixels``, and what the next tile writes."""
    for line in range(0, g.width * g.advance_column * size, LINE_BYTES):
        prefetch_rows(pixels - line, g.x_rows * g.x_columns * size, channels)
    if out != 0:
        for line in range(0, g.width * size, LINE_BYTES):
            prefetch_rows(out + line, pitch, g.tile_rows)
        prefetch_rows(out + g.width * size - 1, pitch, g.tile_rows)


@device_function
def _run_tiles(g, size, filters, panel, channels, out, pitch, first_tile, last_tile, initial, whole, ahead):
    """One panel of pixels by the tiles of channels; ``filters`` are those of the first tile's block.

    ``initial`` is the address of the first tile's bias, or what all begin from; ``ahead`` is where the next panel ends
    in the first of its channels.
    """
    share = (channels + last_tile - first_tile - 1) // (last_tile - first_tile)
    in_y = pitch != g.width * size
    for tile in range(first_tile, last_tile):
        following = out + tile_start(g, tile + 1) * pitch if in_y and tile + 1 < last_tile else np.int64(0)
        _fetch(g, size, ahead + (tile - first_tile) * share * g.x_rows * g.x_columns * size, share, following, pitch)
        full, panels, row = tile < g.tiles_full, tile * g.panel_elements, tile_start(g, tile) * g.in_place
        a = filters + (panels + row * g.w_k) * size
        bias = (panels + row) * size if initial > FROM_SUMS else np.int64(0)
        entry = (g.tile if full else g.tile_short) if whole else (g.tail if full else g.tail_short)
        call_tile(entry, (a, panel, 0, channels, out + tile_start(g, tile) * pitch, pitch, initial + bias))


@device_function
def _correlate_task(y, x, w, bias, g, scratch, start, task):
    like, size = x.dtype.type(0), x.itemsize
    k_tiles = g.tiles_full + g.tiles_short
    chunk = task * g.k_chunks // g.tasks  # a worker's first tasks are of filters that it has packed itself
    strip, group = task % g.strips, task // g.strips % g.groups
    first = strip * g.strip_tiles * g.width
    last = g.pixels if strip == g.strips - 1 else first + g.strip_tiles * g.width
    first_tile, last_tile = k_tiles * chunk // g.k_chunks, k_tiles * (chunk + 1) // g.k_chunks
    first_row, last_row = tile_start(g, first_tile), tile_start(g, last_tile)
    plane = g.x_rows * g.x_columns * size
    images, images_pitch = address(x) + group * g.c * plane, g.groups * g.c * plane
    out, out_pitch = address(y) + group * g.k * g.y_plane * size, g.groups * g.k * g.y_plane * size
    panel, sums = address(scratch) + start * size, address(scratch) + (start + g.sums) * size
    filters = address(scratch) + (group * k_tiles * g.panel_elements + g.tile_rows) * size
    numbers = filters - g.tile_rows * size
    if g.in_place:
        filters, numbers = address(w) + group * g.w_group * size, address(bias) + group * g.k * size
    for c in range(0, g.c, g.block):
        channels = min(g.block, g.c - c)
        initial = np.int64(FROM_SUMS) if c > 0 else numbers if bias.size > 0 else np.int64(FROM_ZERO)
        for pixel in range(first, last, g.width):
            count, at = min(g.width, last - pixel), pixel % g.plane
            _pack_panel(like, size, panel, images + c * plane, images_pitch, g, channels, pixel, count)
            ahead = _last_read(g, images + c * plane, images_pitch, size, pixel + g.width)
            if at + g.width <= g.plane and count == g.width and not g.spread:
                _run_tiles(g, size, filters, panel, channels, out + pixel // g.plane * out_pitch + at * size,
                           g.plane * size, first_tile, last_tile, initial, True, ahead)
                continue
            if c > 0:
                _move_sums(like, size, out, out_pitch, g, sums, first_row, last_row, pixel, count, False)
            _run_tiles(g, size, filters, panel, channels, sums, g.width * size, first_tile, last_tile, initial,
                       count == g.width, ahead)
            _move_sums(like, size, out, out_pitch, g, sums, first_row, last_row, pixel, count, True)
        filters += channels * (1 if g.in_place else g.tile_rows) * size


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    if geometry[0].kept == 0 and geometry[0].in_place == 0:
        k_tiles = geometry[0].tiles_full + geometry[0].tiles_short
        for unit in numba.prange(packing_units(geometry[0], k_tiles)):
            pack_panels(scratch, 0, w, bias, geometry[0], lists[:geometry[0].taps], k_tiles, geometry[0].tiles_full,
                        geometry[0].tile_rows, np.int64(unit))
    if geometry[0].spread:
        for plane in numba.prange(y.shape[0] * y.shape[1]):
            _fill_plane(y, bias, geometry[0], np.int64(plane))
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _correlate_task(y, x, w, bias, geometry[0], scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
