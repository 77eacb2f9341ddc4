"""Winograd F(4x4, 3x3) convolution: forward, and the input gradient at stride 1, which is one too.

A task is a run of *bands* (a row of 4 x 4 tiles of one image) by some blocks of output channels:

1. transform the input patches of its tiles, 16 channels in the lanes: V (36 points, tiles, C);
2. for each block of output channels and each point, a matrix product on the micro-kernel: M = V U;
3. transform M back, band by band, and store.

The filters are transformed once a call: U (blocks, 36 points, C, width).
"""

from dataclasses import dataclass

import numba
import numpy as np

from . import conv_direct
from .blocking import (
    ENOUGH_TASKS,
    ceil_div,
    divide,
    fill,
    geometry_type,
    most_rows,
    reduction_block,
    round_up,
)
from .jit import device_function, kernel
from .pack import pack_strip, store_strip
from .simd import Tile, address, call_tile, compile_tile, fetch_add, transpose_block, vector_unit
from .winograd import PATCH, POINTS, TILE, transform_filter, transform_input, transform_output

TAPS = 9
V_BYTES = 3 << 20  # of transformed input a task: beyond L2, the micro-kernel streams it
TRANSFORM_CYCLES = 400  # for one tile and one vector of channels, in or out, with packing
SAME_SET_BYTES = 1024  # rows of A at a multiple of this distance share few sets of L1

GEOMETRY = geometry_type(
    "batch groups c k x_rows x_columns y_rows y_columns w_group w_k w_c flip nhwc columns first_row first_column "
    "pixel_pitch row_pitch channel_pitch strip_columns start_row start_column step_row step_column bands "
    "image_bands band_tiles task_bands task_tiles v_pitch width lanes k_blocks k_chunk k_chunks reduction_block "
    "reduction_blocks tile_rows tiles_full tiles_short tile tile_short filters_elements bias_start v_start m_start "
    "pixels_start acc_start taps_start tasks")


@dataclass(frozen=True)
class Plan:
    """What the driver needs: the geometry record, the offset table, the sizes of the scratch."""

    geometry: np.ndarray
    table: np.ndarray
    taps: np.ndarray
    tiles: tuple
    packed_elements: int
    worker_elements: int
    tasks: int

    def scratch_elements(self, workers):
        return self.packed_elements + workers * self.worker_elements


def supports(correlation):
    """None, or why not: another kernel or stride, too few channels, or that direct costs less."""
    phase = correlation.phases[0]
    if len(correlation.phases) > 1 or phase.advance != (1, 1):
        return "needs stride 1"
    for axis in phase.taps:
        offsets = [offset for _, offset in axis]
        if len(axis) != 3 or {b - a for a, b in zip(offsets, offsets[1:])} not in ({1}, {-1}):
            return "needs a 3x3 kernel without dilation"
    lanes = vector_unit().lanes(correlation.dtype)
    if min(correlation.c, correlation.k) < lanes:
        return f"needs at least {lanes} input and output channels a group"
    mine, other = cycles(correlation), conv_direct.cycles(correlation)
    if mine >= other:
        return f"estimated {mine / other:.1f}x the cycles of direct"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    lanes = vector_unit().lanes(correlation.dtype)
    rows, columns = correlation.phases[0].extent
    tiles = ceil_div(rows, TILE) * ceil_div(columns, TILE)
    vectors = ceil_div(correlation.c, lanes), ceil_div(correlation.k, lanes)
    products = POINTS * correlation.c * vectors[1] * tiles * 1.1
    filters = vectors[1] * correlation.c * 250
    per_image = products + tiles * TRANSFORM_CYCLES * sum(vectors)
    return correlation.groups * (correlation.batch * per_image + filters)


def plan(correlation):
    """Blocking for ``correlation``."""
    phase = correlation.phases[0]
    size, lanes = np.dtype(correlation.dtype).itemsize, vector_unit().lanes(correlation.dtype)
    nhwc = correlation.layout == "NHWC"
    rows, columns = phase.extent
    image_bands, band_tiles = ceil_div(rows, TILE), ceil_div(columns, TILE)
    bands = correlation.batch * image_bands
    v_pitch = round_up(correlation.c, lanes)
    v_pitch += lanes if v_pitch * size % SAME_SET_BYTES == 0 else 0
    vectors = 2 if correlation.k > lanes else 1
    width = vectors * lanes
    k_blocks = ceil_div(correlation.k, width)
    task_bands = max(1, min(bands, V_BYTES // (POINTS * v_pitch * band_tiles * size)))
    wanted = min(ceil_div(ENOUGH_TASKS, correlation.groups), ceil_div(bands * band_tiles, 2 * most_rows(vectors)))
    task_bands = ceil_div(bands, max(ceil_div(bands, task_bands), min(wanted, bands)))
    strips = ceil_div(bands, task_bands)
    k_chunks = min(k_blocks, ceil_div(ENOUGH_TASKS // 4, correlation.groups * strips))
    k_chunk = ceil_div(k_blocks, k_chunks)
    k_chunks = ceil_div(k_blocks, k_chunk)
    task_tiles = task_bands * band_tiles
    height, full, short = divide(task_tiles, most_rows(vectors))
    tile = Tile(correlation.dtype, height, vectors, v_pitch)
    smaller = Tile(correlation.dtype, height - 1, vectors, v_pitch) if short else None
    block = reduction_block(1, correlation.c, width * size)
    strip_columns = TILE * band_tiles + PATCH - TILE
    offsets = [[offset for _, offset in axis] for axis in phase.taps]
    flip = tuple(o[1] < o[0] for o in offsets)
    filters_elements = k_blocks * POINTS * correlation.c * width
    m_elements = POINTS * task_tiles * width
    packed_elements = PATCH * strip_columns * lanes
    v_start = round_up(packed_elements * 2 + lanes, lanes)
    m_start = round_up(v_start + POINTS * task_tiles * v_pitch, lanes)
    acc_start = round_up(m_start + m_elements, lanes)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        batch=correlation.batch, groups=correlation.groups, c=correlation.c, k=correlation.k,
        x_rows=correlation.x_size[0], x_columns=correlation.x_size[1], y_rows=rows, y_columns=columns,
        w_group=correlation.w_steps[0], w_k=correlation.w_steps[1], w_c=correlation.w_steps[2], flip=flip[0],
        nhwc=nhwc, columns=columns, first_row=min(offsets[0]), first_column=min(offsets[1]),
        pixel_pitch=lanes if nhwc else 1, row_pitch=strip_columns * (lanes if nhwc else 1),
        channel_pitch=1 if nhwc else PATCH * strip_columns, strip_columns=strip_columns, step_row=1, step_column=1,
        bands=bands, image_bands=image_bands, band_tiles=band_tiles, task_bands=task_bands, task_tiles=task_tiles,
        v_pitch=v_pitch, width=width, lanes=lanes, k_blocks=k_blocks, k_chunk=k_chunk, k_chunks=k_chunks,
        reduction_block=block, reduction_blocks=ceil_div(correlation.c, block), tile_rows=height, tiles_full=full,
        tiles_short=short, tile=compile_tile(tile).address, tile_short=compile_tile(smaller).address if smaller else 0,
        filters_elements=filters_elements, bias_start=correlation.groups * filters_elements, v_start=v_start,
        m_start=m_start, pixels_start=packed_elements, acc_start=acc_start,
        tasks=correlation.groups * strips * k_chunks))
    steps = np.arange(block, dtype=np.int64) * size
    table = np.stack([steps, steps * width], axis=1).astype(np.int32)
    packed = correlation.groups * (filters_elements + k_blocks * width)
    worker = acc_start + ((TILE + 1) * columns + TILE * (TILE + 1)) * width + TAPS * lanes
    return Plan(geometry, table, np.zeros(0, np.int64), (compile_tile(tile), smaller and compile_tile(smaller)),
                round_up(packed, 16), round_up(worker, 16), correlation.groups * strips * k_chunks)


@device_function
def _load_taps(w, g, source, count, buffer, start):
    """The 9 taps of one input channel for ``count`` output channels as (taps, lanes), flipped where g says so."""
    size = w.itemsize
    if source + (count - 1) * g.w_k + (TAPS + g.lanes) <= w.size:
        row = g.lanes * size
        first = start + (TAPS - 1) * g.lanes if g.flip else start
        for t in range(0, TAPS, g.lanes):
            out = first + (-t if g.flip else t) * g.lanes
            transpose_block(w, (address(w) + size * (source + t), g.w_k * size, count, address(buffer) + size * out,
                                -row if g.flip else row, min(g.lanes, TAPS - t), np.int64(0)))
    else:  # too near the end of w to read whole vectors
        flat = w.reshape(-1)
        for t in range(TAPS):
            out = start + (TAPS - 1 - t if g.flip else t) * g.lanes
            for lane in range(count):
                buffer[out + lane] = flat[source + lane * g.w_k + t]


@device_function
def _transform_filters(scratch, w, bias, g, buffer, start, unit):
    """U of one vector of output channels of one group, and its bias."""
    size = w.itemsize
    vectors = g.width // g.lanes
    group = unit // (g.k_blocks * vectors)
    block = unit // vectors % g.k_blocks
    v = unit % vectors
    first_k = block * g.width + v * g.lanes
    count = min(g.lanes, g.k - first_k)
    bias_out = g.bias_start + (group * g.k_blocks + block) * g.width + v * g.lanes
    for lane in range(g.lanes):
        known = lane < count and bias.size > 0
        scratch[bias_out + lane] = bias[group * g.k + first_k + lane] if known else 0
    out = group * g.filters_elements + block * POINTS * g.c * g.width + v * g.lanes
    point = g.c * g.width * size
    for c in range(g.c):
        if count > 0:
            _load_taps(w, g, group * g.w_group + first_k * g.w_k + c * g.w_c, count, buffer, start)
        row = g.lanes * size
        transform_filter(w, (address(buffer) + start * size, 3 * row, row,
                             address(scratch) + size * (out + c * g.width), PATCH * point, point))


@device_function
def _transform_band(scratch, x, g, start, image, band, group, first_tile):
    """V of one band: its tiles from ``first_tile`` of the task."""
    size = x.itemsize
    planes, pixels = start, start + g.pixels_start
    pixel = g.lanes * size
    row = g.strip_columns * pixel
    point = g.task_tiles * g.v_pitch * size
    count = PATCH * g.strip_columns
    for c in range(0, g.c, g.lanes):
        channels = min(g.lanes, g.c - c)
        if g.nhwc:
            pack_strip(scratch, pixels, x, g, image, group, TILE * band + g.first_row, PATCH, c, channels)
        else:
            pack_strip(scratch, planes, x, g, image, group, TILE * band + g.first_row, PATCH, c, channels)
            for i in range(0, count, g.lanes):
                at = min(i, count - g.lanes)
                transpose_block(x, (address(scratch) + size * (planes + at), g.channel_pitch * size, channels,
                                    address(scratch) + size * (pixels + at * g.lanes), pixel, g.lanes, np.int64(0)))
        source = address(scratch) + size * pixels
        out = address(scratch) + size * (start + g.v_start + first_tile * g.v_pitch + c)
        for _ in range(g.band_tiles):
            transform_input(x, (source, row, pixel, out, PATCH * point, point))
            source += TILE * pixel
            out += g.v_pitch * size


@device_function
def _multiply_points(scratch, g, table, start, filters, size):
    """M = V U for all points of one block of output channels."""
    row = g.width * size
    for p in range(POINTS):
        for r in range(g.reduction_blocks):
            c = r * g.reduction_block
            steps = min(g.reduction_block, g.c - c)
            a = address(scratch) + size * (start + g.v_start + p * g.task_tiles * g.v_pitch + c)
            b = address(scratch) + size * (filters + (p * g.c + c) * g.width)
            out = address(scratch) + size * (start + g.m_start + p * g.task_tiles * g.width)
            for _ in range(g.tiles_full):
                call_tile(g.tile, (a, b, address(table), steps, out, row, np.int64(r > 0)))
                a += g.tile_rows * g.v_pitch * size
                out += g.tile_rows * row
            for _ in range(g.tiles_short):
                call_tile(g.tile_short, (a, b, address(table), steps, out, row, np.int64(r > 0)))
                a += (g.tile_rows - 1) * g.v_pitch * size
                out += (g.tile_rows - 1) * row


@device_function
def _store_band(y, scratch, g, start, bias, image, band, group, block, first_tile):
    """Transform M of one band back and store its rows.

    Tiles go from right to left: what a tile computes beyond the image's right edge lands on the first pixels of the
    next row, which the leftmost tile then overwrites.
    """
    size = y.itemsize
    point = g.task_tiles * g.width * size
    row = g.columns * g.width * size
    acc = start + g.acc_start
    for v in range(0, min(g.width, g.k - block * g.width), g.lanes):
        for column in range(g.band_tiles - 1, -1, -1):
            source = address(scratch) + size * (start + g.m_start + (first_tile + column) * g.width + v)
            out = address(scratch) + size * (acc + TILE * column * g.width + v)
            transform_output(y, (source, PATCH * point, point, out, row, g.width * size))
    store_strip(y, scratch, acc, bias, g, image, group, block, TILE * band, min(TILE, g.y_rows - TILE * band))


@device_function
def _winograd_task(y, x, has_bias, g, table, scratch, start, task):
    k_chunk = task % g.k_chunks
    group = task // g.k_chunks % g.groups
    first = task // (g.k_chunks * g.groups) * g.task_bands
    last = min(first + g.task_bands, g.bands)
    for unit in range(first, last):
        _transform_band(scratch, x, g, start, unit // g.image_bands, unit % g.image_bands, group,
                        (unit - first) * g.band_tiles)
    for block in range(k_chunk * g.k_chunk, min((k_chunk + 1) * g.k_chunk, g.k_blocks)):
        filters = group * g.filters_elements + block * POINTS * g.c * g.width
        _multiply_points(scratch, g, table, start, filters, x.itemsize)
        bias = g.bias_start + (group * g.k_blocks + block) * g.width if has_bias else np.int64(-1)
        for unit in range(first, last):
            _store_band(y, scratch, g, start, bias, unit // g.image_bands, unit % g.image_bands, group, block,
                        (unit - first) * g.band_tiles)


@kernel
def correlate(y, x, w, bias, geometry, table, taps, scratch, worker_start, worker_elements, workers):
    """y, x: 4-D arrays in the plan's layout; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    units = geometry[0].groups * geometry[0].k_blocks * (geometry[0].width // geometry[0].lanes)
    counter = np.zeros(2, np.int64)
    for worker in numba.prange(workers):
        start = worker_start + np.int64(worker) * worker_elements
        unit = fetch_add(counter[:1])
        while unit < units:
            _transform_filters(scratch, w, bias, geometry[0], scratch, start, unit)
            unit = fetch_add(counter[:1])
    for worker in numba.prange(workers):
        start = worker_start + np.int64(worker) * worker_elements
        task = fetch_add(counter[1:])
        while task < geometry[0].tasks:
            _winograd_task(y, x, bias.size > 0, geometry[0], table, scratch, start, task)
            task = fetch_add(counter[1:])
