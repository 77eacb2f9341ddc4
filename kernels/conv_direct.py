"""Direct convolution with output channels in the lanes: the general algorithm.

Runs any :class:`.correlation.Correlation`, so forward and input gradient, in either layout. Pixels are in the rows of
the micro-kernel, whose rows divide an image row where they can: no lane and no pixel is wasted at any size.

A task is a strip of output rows of one image, for some blocks of output channels: it packs its input strip where
padding makes that needed, runs the micro-kernel over (channel block, reduction block, tile), and stores. In NHWC the
tiles may store to y itself: (tile, channel block) then, so that memory is written in its order. And there pixels whose
lines would share sets of L1, as where channels are a power of two, are packed a little further apart.
"""

import math
from dataclasses import replace

import numba
import numpy as np

from .blocking import (
    DISTANT_CYCLES,
    LAST_CACHE_BYTES,
    PAGE_BYTES,
    SMALLEST_TASK,
    TABLE_LOADS,
    cache_bytes,
    ceil_div,
    cover_image,
    enough_tasks,
    fill,
    geometry_type,
    lines_held,
    offset_table,
    reduction_block,
    room_to_fetch,
    round_up,
    sharing,
    shortage,
)
from .correlation import span
from .jit import device_function, kernel
from .pack import pack_strip, store_strip
from .pack_filters import FILTER_CYCLES, pack_panels, packing_units
from .plan import Plan
from .simd import FROM_SUMS, FROM_ZERO, LINE_BYTES, address, call_tile, compile_tile
from .tasks import no_tasks_taken, take

TAPS_CYCLES = 1.5  # an element of filters with several taps, to pack it
STRIP_CYCLES = 0.3  # an element of the input, to pack it
SPREAD_PENALTY, NEAR_PENALTY = 1.3, 1.2  # of tiles with one tap, whose steps each read another plane's line; from L2
STORE_CYCLES = 0.5  # an element of the output, to transpose and store it
SCATTER_CYCLES = 4.0  # and to store it where its neighbours belong to another phase
TASK_CYCLES = 300  # to begin a task
AGAIN_CYCLES = 2.0  # an element of the input, to pack it for further output channels
STREAM_CYCLES, DISTANT_STREAM_CYCLES = 1 / 32, 1 / 4  # a byte of filters that come from L3, or memory, meanwhile

GEOMETRY = geometry_type(
    "batch groups c k x_rows x_columns y_rows y_columns w_group w_k w_c filter_columns nhwc packed start_row "
    "start_column step_row step_column rows columns advance_row advance_column first_row first_column pixel_pitch "
    "row_pitch channel_pitch strip_rows strip_columns strip_out strips taps taps_start reduction_block "
    "reduction_blocks table_start width lanes k_blocks k_chunk k_chunks tile_rows tile_groups tiles_full "
    "tiles_short fetched tile tile_short tile_single panel_start panel_elements tasks by_chunk acc_start in_place "
    "rows_together kept")


def supports(correlation):
    """Takes every problem."""
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    x = correlation.batch * correlation.groups * correlation.c * math.prod(correlation.x_size)
    near = x * np.dtype(correlation.dtype).itemsize <= cache_bytes()[1] // 2 and _few_pixels(correlation, 1)
    taps = sum(len(phase.taps[0]) * len(phase.taps[1]) for phase in correlation.phases)
    total, tasks = 0.0, 0
    for phase in correlation.phases:
        steps = correlation.c * len(phase.taps[0]) * len(phase.taps[1])
        rows, columns = phase.extent
        cover = cover_image(rows, columns, correlation.k, steps, correlation.dtype, 1, 1)
        store = STORE_CYCLES if phase.step == (1, 1) or correlation.layout == "NHWC" else SCATTER_CYCLES
        copied = rows * columns * (correlation.c * STRIP_CYCLES + correlation.k * store)
        spread = steps == correlation.c and correlation.layout == "NCHW"
        copied += rows * columns * correlation.c * DISTANT_CYCLES * (spread and not near)
        total += cover.cycles * ((NEAR_PENALTY if near else SPREAD_PENALTY) if spread else 1) + copied
        tasks += correlation.batch * correlation.groups * rows * ceil_div(correlation.k, cover.tile.width)
    packing = 0 if correlation.kept else FILTER_CYCLES if taps == 1 else TAPS_CYCLES * taps
    filters = correlation.c * correlation.k * packing
    return (total * correlation.batch + filters) * correlation.groups * shortage(tasks)


def _few_pixels(correlation, taps):
    """Whether x is no more than the filters: workers then share these, and each takes all of x to its own."""
    return correlation.batch * math.prod(correlation.x_size) <= taps * correlation.k


def plan(correlation, rows_together=0):
    """Blocking for ``correlation``: all phases, with their tiles compiled.

    With ``rows_together`` for a driver of its own: all output channels in one task, whose rows come by multiples of it,
    in tiles of whole groups of rows (the geometry's ``rows_together``).
    """
    geometry = np.zeros(len(correlation.phases), GEOMETRY)
    tables, taps, tiles = [], [], []
    panel_start = table_start = taps_start = worker = tasks = 0
    for record, phase in zip(geometry, correlation.phases):
        table, tap_list = _plan_phase(record, correlation, phase, tiles, rows_together)
        record["panel_start"], record["table_start"], record["taps_start"] = panel_start, table_start, taps_start
        panel_start += int(record["groups"] * record["k_blocks"] * record["panel_elements"])
        table_start += len(table)
        taps_start += len(tap_list)
        tables.append(table)
        taps.append(tap_list)
        tasks += int(record["tasks"])
        worker = max(worker, int(record["acc_start"])
                     + int(record["strip_out"] * record["columns"] * record["width"]))
    lanes = int(geometry[0]["lanes"])
    return Plan(geometry, np.concatenate(tables), np.concatenate(taps), tuple(tiles),
                round_up(panel_start, lanes), round_up(worker + lanes * lanes, 16), tasks)


def _plan_phase(record, correlation, phase, tiles, rows_together):
    size = np.dtype(correlation.dtype).itemsize
    nhwc = correlation.layout == "NHWC"
    (x_rows, x_columns), (rows, columns) = correlation.x_size, phase.extent
    spans = [span(axis) for axis in phase.taps]
    reach = [(e - 1) * a + high - low + 1 for e, a, (low, high) in zip(phase.extent, phase.advance, spans)]
    packed = any(low < 0 or low + r > limit for (low, _), r, limit in zip(spans, reach, correlation.x_size))
    taps = len(phase.taps[0]) * len(phase.taps[1])
    steps = correlation.c * taps

    cover = cover_image(rows, columns, correlation.k, steps, correlation.dtype, 1, 1)
    channels = (correlation.c if packed else correlation.c * correlation.groups) if nhwc else 1
    pitch_columns = reach[1] if packed else x_columns
    if nhwc and taps > 1 and sharing(_places(cover.tile, phase, channels * size, pitch_columns)) > lines_held():
        packed, pitch_columns = True, reach[1]
        channels = min((correlation.c + gap * LINE_BYTES // size for gap in range(4)), key=lambda channels: sharing(
            _places(cover.tile, phase, channels * size, pitch_columns)))
    pixel_pitch, row_pitch = channels, pitch_columns * channels
    width = cover.tile.width
    tile = replace(cover.tile, row_step=phase.advance[1] * pixel_pitch, b_step=width,
                   group_step=phase.advance[0] * row_pitch if cover.tile.groups > 1 else 0)
    together = math.lcm(max(1, rows_together), tile.groups)
    strip_out, k_chunks = _division(correlation, phase, tile, steps, reach, packed, size, together, not rows_together)
    strip_rows = (strip_out - 1) * phase.advance[0] + spans[0][1] - spans[0][0] + 1
    channel_pitch = 1 if nhwc else (strip_rows if packed else x_rows) * row_pitch
    block = reduction_block(max(taps, 1), correlation.c, width * size, channel_pitch * size)
    k_blocks, strips = ceil_div(correlation.k, width), ceil_div(rows, strip_out)
    k_chunk = ceil_div(k_blocks, k_chunks)
    k_chunks = ceil_div(k_blocks, k_chunk)

    panel_elements = (steps + 1) * width  # a row of bias, the filters
    in_place = (nhwc and phase.step == (1, 1) and correlation.k % width == 0 and (block >= correlation.c or taps == 1)
                and k_chunk * (block * taps + 1) * width * size <= cache_bytes()[1] // 2)
    tile, fetched = replace(tile, across=in_place), 0
    if in_place and taps == 1 and phase.advance == (1, 1) and correlation.groups == tile.groups == 1:
        fetched = ceil_div(tile.rows * correlation.c * size, block * k_chunk)  # the pixels of the next tile
        tile = replace(tile, a_step=1, ahead=fetched)
    elif steps * correlation.k * size > cache_bytes()[1] and room_to_fetch(
            tile.groups * tile.rows, tile.vectors, width * size // LINE_BYTES + TABLE_LOADS):
        tile = replace(tile, b_ahead=PAGE_BYTES)
    entries = [compile_tile(tile).address]
    short = replace(tile, rows=tile.rows - 1) if cover.short else None
    single = replace(tile, groups=1, group_step=0) if rows % tile.groups else None
    for extra in (short, single):
        entries.append(compile_tile(extra).address if extra else 0)
    tiles.extend(compile_tile(t) for t in (tile, short, single) if t)

    values = dict(
        by_chunk=_few_pixels(correlation, taps),
        in_place=in_place, rows_together=together, fetched=fetched, batch=correlation.batch, groups=correlation.groups,
        c=correlation.c, k=correlation.k,
        x_rows=x_rows, x_columns=x_columns, y_rows=correlation.y_size[0], y_columns=correlation.y_size[1],
        w_group=correlation.w_steps[0], w_k=correlation.w_steps[1], w_c=correlation.w_steps[2],
        filter_columns=correlation.filter_columns, nhwc=nhwc, packed=packed,
        start_row=phase.start[0], start_column=phase.start[1], step_row=phase.step[0],
        step_column=phase.step[1], rows=rows, columns=columns,
        advance_row=phase.advance[0], advance_column=phase.advance[1],
        first_row=spans[0][0], first_column=spans[1][0], pixel_pitch=pixel_pitch, row_pitch=row_pitch,
        channel_pitch=channel_pitch, strip_rows=strip_rows, strip_columns=reach[1], strip_out=strip_out,
        strips=strips, taps=taps, reduction_block=block, reduction_blocks=ceil_div(correlation.c, block),
        width=width, lanes=tile.lanes, k_blocks=k_blocks, k_chunk=k_chunk, k_chunks=k_chunks,
        tile_rows=tile.rows, tile_groups=tile.groups, tiles_full=cover.full, tiles_short=cover.short,
        tile=entries[0], tile_short=entries[1], tile_single=entries[2],
        panel_elements=panel_elements,
        tasks=correlation.batch * correlation.groups * strips * k_chunks,
        acc_start=round_up(strip_rows * row_pitch * (correlation.c if not nhwc else 1), 16) if packed else 0)
    fill(record, values)
    return (_offset_table(phase, spans, block, channel_pitch, row_pitch, pixel_pitch, width, size),
            np.array([r * correlation.filter_columns + s for r, _ in phase.taps[0] for s, _ in phase.taps[1]],
                     np.int64))


def _places(tile, phase, pixel_bytes, pitch_columns):
    """Where the pixels lie that a tile reads, all of them for a channel, then all for the next."""
    rows, columns = ({i * advance + offset for i in range(count) for _, offset in axis} for count, advance, axis in zip(
        (tile.groups, tile.rows), phase.advance, phase.taps))
    return [(row * pitch_columns + column) * pixel_bytes for row in rows for column in columns]


def _division(correlation, phase, tile, steps, reach, packed, size, together, by_chunks):
    """(output rows a task, chunks of output channels): enough tasks, of what is done again in each as little as can be.

    A chunk packs x again, and a strip reads the filters again, where they do not stay in L2. A strip's input and
    accumulators take half of L2 at most.
    """
    rows, columns = phase.extent
    k_blocks = ceil_div(correlation.k, tile.width)
    row_elements = reach[1] * correlation.c
    most = max(1, cache_bytes()[1] // 2 // ((row_elements * phase.advance[0] + columns * tile.width) * size))
    work = rows * columns * steps * ceil_div(correlation.k, tile.lanes)  # of one image and group
    wanted = min(ceil_div(enough_tasks(), correlation.batch * correlation.groups), max(1, work // SMALLEST_TASK))
    filters = steps * correlation.k * size
    stream = filters * (DISTANT_STREAM_CYCLES if filters > LAST_CACHE_BYTES // 2 else STREAM_CYCLES)
    halo = max(0, reach[0] - rows * phase.advance[0])

    def chunks(strips):
        return max(1, min(k_blocks, wanted // strips)) if by_chunks else 1

    def again(strips):
        pack = (reach[0] + strips * halo) * row_elements * AGAIN_CYCLES if packed else 0
        return chunks(strips) * pack + strips * (stream + chunks(strips) * TASK_CYCLES)

    def rows_of(strips):
        return min(rows, round_up(ceil_div(rows, strips), together))

    least = ceil_div(rows, most)
    possible = {ceil_div(rows, rows_of(strips)) for strips in range(least, max(least, min(wanted, rows)) + 1)}
    most_tasks = max(strips * chunks(strips) for strips in possible)
    strips = min((strips for strips in sorted(possible) if 4 * strips * chunks(strips) >= 3 * most_tasks), key=again)
    return rows_of(strips), chunks(strips)


def _offset_table(phase, spans, block, channel_pitch, row_pitch, pixel_pitch, width, size):
    """Steps in the order (c, r, s): a smaller last block is a prefix."""
    rows = np.array([offset - spans[0][0] for _, offset in phase.taps[0]], np.int64) * row_pitch
    columns = np.array([offset - spans[1][0] for _, offset in phase.taps[1]], np.int64) * pixel_pitch
    channels = np.arange(block) * channel_pitch
    a = (channels[:, None, None] + rows[:, None] + columns).reshape(-1) * size
    return offset_table(a, np.arange(a.size) * width * size)


@device_function
def _run_tiles(g, out, row_bytes, strip_address, w_address, blocks, table_address, steps, rows_out, initial, size):
    """All tiles of one strip, each for some blocks of output channels, and one of the reduction.

    ``initial`` is the address of the first block's bias, or what all begin from.
    """
    panel, width = g.panel_elements * size, g.width * size
    next_initial = panel if initial > FROM_SUMS else np.int64(0)
    whole = rows_out // g.tile_groups
    for group in range(whole):
        a = strip_address + group * g.tile_groups * g.advance_row * g.row_pitch * size
        for tile in range(g.tiles_full + g.tiles_short):
            entry, height = (g.tile, g.tile_rows) if tile < g.tiles_full else (g.tile_short, g.tile_rows - 1)
            if g.fetched:
                table_address = a + height * g.pixel_pitch * size
            for block in range(blocks):
                call_tile(entry, (a, w_address + block * panel, table_address, steps, out + block * width, row_bytes,
                                  initial + block * next_initial))
                table_address += g.fetched * steps
            a += height * g.advance_column * g.pixel_pitch * size
            out += g.tile_groups * height * row_bytes
    for row in range(whole * g.tile_groups, rows_out):
        a = strip_address + row * g.advance_row * g.row_pitch * size
        for block in range(blocks):
            call_tile(g.tile_single, (a, w_address + block * panel, table_address, steps, out + block * width,
                                      row_bytes, initial + block * next_initial))
        out += g.tile_rows * row_bytes


@device_function
def run_blocks(g, like, out, pitch, has_bias, table, scratch, source, group, rows_out, first_block, blocks):
    """Tiles that add up at ``out`` itself, pixels ``pitch`` bytes apart, each with all these channels."""
    size = like.itemsize
    panel = address(scratch) + (g.panel_start + (group * g.k_blocks + first_block) * g.panel_elements) * size
    initial = panel if has_bias else np.int64(FROM_ZERO)
    for c in range(0, g.c, g.reduction_block):
        steps = min(g.reduction_block, g.c - c) * g.taps
        _run_tiles(g, out, pitch, source + c * g.channel_pitch * size, panel + g.width * (1 + c * g.taps) * size,
                   blocks, address(table) + 8 * g.table_start, steps, rows_out, initial, size)
        initial = np.int64(FROM_SUMS)


@device_function
def strip_source(x, g, scratch, strip_start, image, group, first_out, rows_out):
    """Address of the input of some output rows: where it lies, or packed with its padding."""
    size, first_row = x.itemsize, first_out * g.advance_row + g.first_row
    if g.packed:
        pack_strip(scratch, strip_start, x, g, image, group, first_row,
                   (rows_out - 1) * g.advance_row + g.strip_rows - (g.strip_out - 1) * g.advance_row, 0, g.c)
        return address(scratch) + strip_start * size
    return address(x) + size * ((image * g.groups * g.c * g.x_rows * g.x_columns) + group * g.c * g.channel_pitch
                                + first_row * g.row_pitch + g.first_column * g.pixel_pitch)


@device_function
def _correlate_strip(y, x, has_bias, g, table, scratch, strip_start, task):
    """One task: a strip of one image and group, for one chunk of output channels."""
    size = x.itemsize
    strips = g.tasks // g.k_chunks  # of all images and groups
    if g.by_chunk:
        k_chunk, task = task // strips, task % strips
    else:
        k_chunk, task = task % g.k_chunks, task // g.k_chunks
    strip = task % g.strips
    group = task // g.strips % g.groups
    image = task // (g.strips * g.groups)
    first_out = strip * g.strip_out
    rows_out = min(g.strip_out, g.rows - first_out)
    source = strip_source(x, g, scratch, strip_start, image, group, first_out, rows_out)
    first_block, last_block = k_chunk * g.k_chunk, min((k_chunk + 1) * g.k_chunk, g.k_blocks)
    if g.in_place:
        pitch = g.groups * g.k * size
        out = address(y) + ((image * g.y_rows + first_out) * g.y_columns) * pitch + (
            group * g.k + first_block * g.width) * size
        run_blocks(g, y, out, pitch, has_bias, table, scratch, source, group, rows_out, first_block,
                   last_block - first_block)
        return
    acc = strip_start + g.acc_start
    for block in range(first_block, last_block):
        panel = g.panel_start + (group * g.k_blocks + block) * g.panel_elements
        for r in range(g.reduction_blocks):
            c = r * g.reduction_block
            steps = min(g.reduction_block, g.c - c) * g.taps
            _run_tiles(g, address(scratch) + acc * size, g.width * size, source + c * g.channel_pitch * size,
                       address(scratch) + size * (panel + g.width * (1 + c * g.taps)), 1,
                       address(table) + 8 * g.table_start, steps, rows_out, np.int64(r > 0), size)
        store_strip(y, scratch, acc, panel if has_bias else -1, g, image, group, block, first_out, rows_out)


@device_function
def pack_unit(scratch, w, bias, geometry, taps, unit):
    """One unit of packing the filters of all phases."""
    phase = 0
    while unit >= packing_units(geometry[phase], geometry[phase].k_blocks):
        unit -= packing_units(geometry[phase], geometry[phase].k_blocks)
        phase += 1
    g = geometry[phase]
    pack_panels(scratch, g.panel_start, w, bias, g, taps[g.taps_start:g.taps_start + g.taps], g.k_blocks, g.k_blocks,
                g.width, unit)


@device_function
def _correlate_task(y, x, has_bias, geometry, table, scratch, strip_start, task):
    phase = 0
    while task >= geometry[phase].tasks:
        task -= geometry[phase].tasks
        phase += 1
    _correlate_strip(y, x, has_bias, geometry[phase], table, scratch, strip_start, task)


@kernel
def correlate(y, x, w, bias, geometry, table, taps, scratch, worker_start, worker_elements, workers):
    """y, x: 4-D arrays in the plan's layout; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    units = 0
    tasks = 0
    for phase in range(len(geometry)):
        units += packing_units(geometry[phase], geometry[phase].k_blocks)
        tasks += geometry[phase].tasks
    if geometry[0].kept == 0:
        for unit in numba.prange(units):
            pack_unit(scratch, w, bias, geometry, taps, np.int64(unit))
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), tasks)
        while task >= 0:
            _correlate_task(y, x, bias.size > 0, geometry, table, scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), tasks)
