"""Direct convolution with pixels in the lanes, for NCHW: few input channels, or few channels a group.

Output channels are in the rows of the micro-kernel, filters are broadcast, and the sums of neighbouring pixels go
straight into y: nothing is transposed and nothing stored twice. The input comes as shifted copies (copies.py), in
which every tap of a run of outputs is a run; a kernel of one column may read x itself.

A task is a run of pixels of one image and group, for some of the output channels.
"""

import numba
import numpy as np

from . import conv_pointwise, copies
from .blocking import (
    ENOUGH_TASKS,
    STRADDLING,
    cache_bytes,
    ceil_div,
    fill,
    geometry_type,
    offset_table,
    pixel_shape,
    pixel_tiles,
    reading_cycles,
    round_up,
    unaligned_tile_cost,
)
from .copies import copies_of, copy_strip
from .jit import device_function, kernel
from .pack_filters import pack_panels, packing_units, tile_start
from .plan import Plan
from .simd import LINE_BYTES, address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

COPIES_PENALTY = 1.07  # of tiles that read copies: every tap comes from another place of L2
STORE_CYCLES = 18  # a line of results: many planes at a time, which the sums of few taps do not hide
TASK_CYCLES = 300  # of an image and group, to begin a task
BUFFER_SHARE = 1 / 2  # of L2, for the copies of a task

GEOMETRY = geometry_type(
    "groups c k x_rows x_columns plane w_group w_k w_c taps steps width lanes tile_rows tiles_full tiles_short tile "
    "tile_short tail_width tail tail_short strips strip_tiles k_chunks panel_elements tasks kept " + copies.FIELDS)


def supports(correlation):
    """None, or why not: layout, stride of the output, too few pixels, or too many copies."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if len(correlation.phases) > 1:
        return "needs stride 1"
    if conv_pointwise.supports(correlation) is None:
        return "direct_pointwise has this tile, and smaller blocks"
    lanes, shifted = vector_unit().lanes(correlation.dtype), copies_of(correlation)
    if shifted.pixels < lanes:
        return f"needs at least {lanes} output pixels an image"
    if correlation.c * shifted.row_bytes(np.dtype(correlation.dtype).itemsize) > cache_bytes()[1]:
        return "the copies of the rows that one output row reads do not fit into L2"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    shifted, images = copies_of(correlation), correlation.batch * correlation.groups
    products = _shape(correlation, shifted.pixels).cycles * (COPIES_PENALTY if shifted.needed else 1)
    reading = reading_cycles(images, correlation.c, shifted.pixels, correlation.dtype) * max(1, shifted.count)
    return images * (products + correlation.c * shifted.cycles + reading + TASK_CYCLES)


def _steps(correlation):
    (phase,) = correlation.phases
    return correlation.c * len(phase.taps[0]) * len(phase.taps[1])


def _shape(correlation, pixels):
    """The cheapest tile for k channels by the pixels of an image."""
    steps, size = _steps(correlation), np.dtype(correlation.dtype).itemsize
    straddling = STRADDLING if pixels * size % LINE_BYTES else 0
    store = vector_unit().bits // 8 / LINE_BYTES * STORE_CYCLES * (1 + straddling / 2)
    return pixel_shape(correlation.dtype, correlation.k, pixels, 8, lambda _: (
        lambda rows, vectors: max(unaligned_tile_cost(rows, vectors, steps), rows * vectors * store), 0))


def plan(correlation):
    """Blocking for ``correlation``."""
    (phase,), size = correlation.phases, np.dtype(correlation.dtype).itemsize
    shifted, steps = copies_of(correlation), _steps(correlation)
    shape = _shape(correlation, shifted.pixels)
    tile_fields, tiles = pixel_tiles(correlation.dtype, shape, shifted.pixels)
    width, tail_width = tile_fields["width"], tile_fields["tail_width"]
    image_tiles, k_tiles = shifted.pixels // width, shape.full + shape.short
    strips, k_chunks = _tasks(correlation, shifted, image_tiles, width, k_tiles, size)
    strip_tiles = ceil_div(image_tiles, strips)
    strips = ceil_div(image_tiles, strip_tiles)
    copy_pitch = shifted.copy_pitch(strip_tiles * width + tail_width)
    taps = [r * correlation.filter_columns + s for r, _ in phase.taps[0] for s, _ in phase.taps[1]]
    panel_elements = (steps + 1) * shape.rows + tile_fields["lanes"]  # transposed blocks spill past the last row
    tasks = correlation.batch * correlation.groups * strips * k_chunks
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        tile_fields, **shifted.values(copy_pitch, len(taps)), groups=correlation.groups, c=correlation.c,
        k=correlation.k, x_rows=correlation.x_size[0], x_columns=correlation.x_size[1], plane=shifted.pixels,
        w_group=correlation.w_steps[0], w_k=correlation.w_steps[1], w_c=correlation.w_steps[2], taps=len(taps),
        steps=steps, strips=strips, strip_tiles=strip_tiles, k_chunks=k_chunks, panel_elements=panel_elements,
        tasks=tasks))
    channel_pitch = shifted.channel_pitch(copy_pitch)
    buffer = correlation.c * channel_pitch + width if shifted.needed else 0
    b = (np.arange(correlation.c)[:, None] * channel_pitch + shifted.tap_offsets(copy_pitch)).reshape(-1) * size
    return Plan(geometry, offset_table(np.arange(steps) * shape.rows * size, b),
                np.array([*taps, *shifted.listed()], np.int64), tiles,
                round_up(correlation.groups * k_tiles * panel_elements, 16), round_up(buffer, 16), tasks)


def _tasks(correlation, shifted, image_tiles, width, k_tiles, size):
    """Strips an image, and chunks of output channels: the copies within their share of L2, and enough tasks."""
    images, halo = max(1, correlation.batch * correlation.groups), shifted.extra_rows * shifted.columns
    share = int(cache_bytes()[1] * BUFFER_SHARE) // (correlation.c * max(1, shifted.count) * size)
    most = share - (halo + shifted.columns) * shifted.needed
    strips = ceil_div(image_tiles, max(1, most // width))
    # A strip copies rows that the one before it copied too: not more than an eighth again for the sake of tasks.
    spare = image_tiles * width // (8 * halo) if shifted.needed and halo else image_tiles
    strips = max(1, min(image_tiles, max(strips, min(ceil_div(ENOUGH_TASKS, images), spare))))
    few = images * strips < ENOUGH_TASKS // 2
    return strips, min(k_tiles, ceil_div(ENOUGH_TASKS, images * strips)) if few else 1


@device_function
def _run_tiles(g, table, panel, b, out, pixels, has_bias, size, first_tile, last_tile):
    """All tiles of one run of pixels, for some tiles of channels."""
    plane = g.plane * size
    for tile in range(first_tile, last_tile):
        full = tile < g.tiles_full
        first = tile_start(g, tile)
        filters = panel + tile * g.panel_elements * size
        initial = filters if has_bias else np.int64(0)
        a = filters + g.tile_rows * size
        for pixel in range(0, pixels - g.width + 1, g.width):
            call_tile(g.tile if full else g.tile_short, (
                a, b + pixel * size, table, g.steps, out + first * plane + pixel * size, plane, initial))
        if pixels % g.width:
            pixel = pixels - g.tail_width  # some pixels again, with the same sums
            call_tile(g.tail if full else g.tail_short, (
                a, b + pixel * size, table, g.steps, out + first * plane + pixel * size, plane, initial))


@device_function
def _correlate_task(y, x, has_bias, g, table, lists, scratch, start, task):
    size = x.itemsize
    k_tiles = g.tiles_full + g.tiles_short
    chunk = task * g.k_chunks // g.tasks  # a worker's first tasks are of filters that it has packed itself
    strip = task % g.strips
    group = task // g.strips % g.groups
    image = task % (g.tasks // g.k_chunks) // (g.strips * g.groups)
    first = strip * g.strip_tiles * g.width
    last = g.plane if strip == g.strips - 1 else first + g.strip_tiles * g.width
    b = copy_strip(scratch, start, x, g, lists, image, group, first, last)
    panel = address(scratch) + group * k_tiles * g.panel_elements * size
    out = address(y) + ((image * g.groups + group) * g.k * g.plane + first) * size
    _run_tiles(g, address(table), panel, b, out, last - first, has_bias, size,
               k_tiles * chunk // g.k_chunks, k_tiles * (chunk + 1) // g.k_chunks)


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
            _correlate_task(y, x, bias.size > 0, geometry[0], table, lists, scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
