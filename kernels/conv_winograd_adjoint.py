"""Winograd's input gradient as the transpose of its forward pass, at stride 1:

    patches of dx = B [ sum over k of (A dy A^T) * (G g G^T) ] B^T        added up where patches overlap

Its tiles cover dy, those of conv_winograd.py cover dx: without padding dx is the larger (13x13 of 11x11 takes 9 tiles
instead of 16). A task is some whole images of one group, since patches overlap, for all their channels.
"""

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    cache_bytes,
    ceil_div,
    even_chunks,
    fill,
    idle_share,
    near_equal_tiles,
    places,
    reduction_block,
    round_up,
)
from .conv_winograd import GEOMETRY, multiply_points, transform_strip
from .correlation import forward
from .jit import device_function, kernel
from .pack import store_lattice
from .plan import Plan
from .rows import clear_run, copy_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take
from .winograd import GRID, POINTS, compile_transforms, taps_of, tile_of
from .winograd_blocking import (
    FILTER_CYCLES,
    PRODUCT_CYCLES,
    TRANSFORM_CYCLES,
    apart,
    far,
    packed_strip,
    pitch_of,
    prefetched,
)
from .winograd_filters import filter_elements, prepare_blocks
from .winograd_phases import phases_of
from .winograd_pixels import PATCH_CHANNELS, stays_in_cache

STREAM_CYCLES = 1 / 4  # a byte of filters that come from beyond L2, while products run: nothing fetches them ahead
V_SHARE = 1 / 4  # of L2, for the transformed dy of a worker
LARGEST_SHARE = 2  # of L2, for that of one image


def supports(problem, layout, dtype):
    """None, or why not: another kernel, stride or dilation, too few channels, too large an image."""
    if problem.stride != (1, 1) or problem.dilation != (1, 1):
        return "needs stride 1 and no dilation"
    if problem.r not in taps_of() or problem.s != problem.r:
        return "needs a square kernel of 2 to 5 taps"
    lanes, size = vector_unit().lanes(dtype), np.dtype(dtype).itemsize
    c, k = problem.c // problem.groups, problem.k // problem.groups
    if min(c, k) < lanes:
        return f"needs at least {lanes} input and output channels a group"
    bands, band_tiles = _tiles(problem)
    if POINTS * bands * band_tiles * pitch_of(k, lanes, size) * size > LARGEST_SHARE * cache_bytes()[1]:
        return "an image is too large to be one task"
    return None


def _tiles(problem):
    """Bands of an image, tiles of a band."""
    side = tile_of(problem.r)
    return ceil_div(problem.p, side), ceil_div(problem.q, side)


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    lanes, groups, (bands, band_tiles) = vector_unit().lanes(dtype), problem.groups, _tiles(problem)
    c, k = problem.c // groups, problem.k // groups
    vectors = ceil_div(c, lanes), ceil_div(k, lanes)
    transforms = TRANSFORM_CYCLES[layout] * far(layout, groups) * sum(vectors)
    per_image = bands * band_tiles * POINTS * (k * vectors[0] * PRODUCT_CYCLES + transforms)
    chunks, filters = _chunks(problem, dtype)[0], POINTS * c * k * np.dtype(dtype).itemsize
    stream = chunks * filters * STREAM_CYCLES if filters > cache_bytes()[1] else 0
    total = groups * (problem.n * per_image + vectors[0] * k * POINTS * FILTER_CYCLES + stream)
    return total * (1 + idle_share(groups * chunks))


def _chunks(problem, dtype):
    """(Tasks a group, images of each)."""
    size, lanes, (bands, band_tiles) = np.dtype(dtype).itemsize, vector_unit().lanes(dtype), _tiles(problem)
    image = POINTS * pitch_of(problem.k // problem.groups, lanes, size) * size * bands * band_tiles  # bytes of V
    most = max(1, int(V_SHARE * cache_bytes()[1]) // image)
    wanted = min(problem.n, ceil_div(ENOUGH_TASKS // 4, problem.groups))
    return even_chunks(problem.n, max(wanted, ceil_div(problem.n, most)))


def plan(problem, layout, dtype):
    """Blocking for ``problem``: the reduction, c, runs over its output channels, and k over its input channels."""
    size, lanes, groups = np.dtype(dtype).itemsize, vector_unit().lanes(dtype), problem.groups
    phases = phases_of(forward(problem, layout, dtype))
    c, k, taps, side = problem.k // groups, problem.c // groups, problem.r**2, phases.side
    image_bands, band_tiles = _tiles(problem)
    tiles, v_pitch = image_bands * band_tiles, pitch_of(c, lanes, size)
    chunks, images = _chunks(problem, dtype)
    task_tiles, vectors = images * tiles, 2 if k > lanes else 1
    width = vectors * lanes
    k_blocks = ceil_div(k, width)
    tile_fields, compiled = near_equal_tiles(dtype, task_tiles, vectors, v_pitch, a_step=1, b_step=width)
    v_point, m_point, u_point = (apart(elements, lanes, size) for elements in (
        task_tiles * v_pitch, task_tiles * width, c * width))
    block, filters = reduction_block(1, c, width * size), POINTS * u_point
    strip_columns, patch_columns = side * band_tiles, side * band_tiles + problem.r - 1
    packed_bands, planes, strip = packed_strip(image_bands, strip_columns, lanes, size, phases)
    patches = (side * image_bands + problem.r - 1) * patch_columns * width
    starts, worker = places(
        lanes, planes=max(planes, filter_elements(taps, problem.r, lanes)), pixels=max(strip, POINTS * PATCH_CHANNELS),
        v=POINTS * v_point, m=POINTS * m_point, acc=patches + problem.h * problem.w * width)
    transforms, micro_kernels = compile_transforms(dtype, GRID, problem.r, to_points="gradient", filter_points="filter",
                                               from_points="patch")
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        phases.values(), patch=side, groups=groups, c=c, c_chunk=c, k=k, reduction=c, x_rows=problem.p,
        x_columns=problem.q, y_rows=problem.h, y_columns=problem.w, columns=problem.w, taps=taps,
        w_group=c * k * taps, w_k=taps, w_c=k * taps, nhwc=layout == "NHWC",
        in_place=stays_in_cache(side * side, problem.k, 1, size), first_row=0, first_column=0,
        crop_row=problem.padding[0][0], crop_column=problem.padding[1][0],
        pixel_pitch=lanes, strip_columns=strip_columns, step_row=1, step_column=1, bands=problem.n * image_bands,
        image_bands=image_bands, band_tiles=band_tiles, task_bands=images * image_bands, packed_bands=packed_bands,
        task_tiles=task_tiles, v_pitch=v_pitch, v_point=v_point, v_block=block, m_point=m_point, u_point=u_point,
        width=width, lanes=lanes, k_blocks=k_blocks, k_chunk=k_blocks, k_chunks=1, reduction_block=block,
        reduction_blocks=ceil_div(c, block), held_blocks=ceil_div(c, block), shared=1,
        bias_start=groups * k_blocks * filters, tasks=groups * chunks,
        prefetch=prefetched(layout, phases, packed_bands * side, (problem.p, problem.q), problem.n * problem.k, size),
        **starts, **tile_fields, **transforms))
    return Plan(geometry, NO_TABLE, phases.lists(), compiled + micro_kernels,
                round_up(groups * k_blocks * (filters + width), 16), round_up(worker, 16), groups * chunks)


@device_function
def _store_image(dx, scratch, g, start, bias, image, group, block, first_tile):
    """One block of channels of one image: its patches added up, and their pixels without the padding stored."""
    like, size = dx.dtype.type(0), dx.itemsize
    point, pixel = g.m_point * size, g.width * size
    row = (g.strip_columns + g.window - 1) * pixel
    acc = start + g.acc_start
    patches = acc + g.y_rows * g.y_columns * g.width
    rows = g.side * g.image_bands + g.window - 1
    clear_run(like, address(scratch) + patches * size, rows * row // size)
    for v in range(0, min(g.width, g.k - block * g.width), g.lanes):
        source = address(scratch) + size * (start + g.m_start + first_tile * g.width + v)
        for band in range(g.image_bands):
            call_tile(g.from_points, (source + band * g.band_tiles * pixel, g.grid * point, point, pixel,
                                      address(scratch) + size * (patches + v) + g.side * band * row, row, pixel,
                                      g.side * pixel, g.band_tiles))
    inside = min(g.y_columns, g.strip_columns + g.window - 1 - g.crop_column)
    for i in range(g.y_rows):
        out = address(scratch) + (acc + i * g.y_columns * g.width) * size
        reached = inside if g.crop_row + i < rows else np.int64(0)
        copy_run(like, out, address(scratch) + (patches + g.crop_column * g.width) * size + (g.crop_row + i) * row,
                 reached * g.width)
        clear_run(like, out + reached * g.width * size, (g.y_columns - reached) * g.width)
    store_lattice(dx, scratch, acc, bias, g, image, group, block, np.int64(0), g.y_rows, np.int64(0), np.int64(0),
                  g.columns)


@device_function
def _correlate_task(dx, dy, has_bias, g, lists, scratch, start, task):
    size = dy.itemsize
    group = task % g.groups
    first = task // g.groups * g.task_bands
    last = min(first + g.task_bands, g.bands)
    transform_strip(scratch, dy, g, lists, start, group, np.int64(0), g.c, first, last)
    for block in range(g.k_blocks):
        unit = group * g.k_blocks + block
        multiply_points(scratch, g, lists, start + g.v_start, unit * POINTS * g.u_point, start + g.m_start,
                        np.int64(0), size)
        bias = g.bias_start + unit * g.width if has_bias else np.int64(-1)
        for image in range(first // g.image_bands, last // g.image_bands):
            _store_image(dx, scratch, g, start, bias, image, group, block,
                         (image * g.image_bands - first) * g.band_tiles)


@kernel
def correlate(dx, dy, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """dx, dy: 4-D arrays in the plan's layout; w: filters; bias: (C,) or empty; scratch: the plan's size."""
    prepared, taken = no_tasks_taken(workers), no_tasks_taken(workers)
    for worker in numba.prange(workers):
        prepare_blocks(scratch, w, bias, geometry[0], lists, worker_start + np.int64(worker) * worker_elements,
                       prepared, np.int64(worker))
    for worker in numba.prange(workers):
        start = worker_start + np.int64(worker) * worker_elements
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _correlate_task(dx, dy, bias.size > 0, geometry[0], lists, scratch, start, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
