"""Winograd F(4x4, 3x3) and F(2x2, 5x5), filter gradient at stride 1:

    dU[p] = sum over tiles of  V[p, tile, c] * Z[p, tile, k],    V = B^T x B,  Z = A dy A^T,    dw = G^T dU G

For each of 36 points p a matrix product over tiles: input channels in the rows of the micro-kernel, output channels
in its lanes. A task sums a *chunk* of strips for some blocks of output channels; chunks are added in their order.
"""

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    cache_bytes,
    ceil_div,
    even_chunks,
    fill,
    near_equal_tiles,
    places,
    round_up,
)
from .conv_winograd import (
    GEOMETRY,
    ahead,
    apart,
    enough_strips,
    lattices,
    packed_strip,
    pitch_of,
    prefetched,
    transform_strip,
)
from .jit import device_function, kernel
from .pack import PIECE, add_chunks, pack_vector, store_sum
from .plan import Plan
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take
from .winograd import PATCH, POINTS, TAPS, tile_of, transform_gradient, transform_sums
from .winograd_pixels import PATCH_CHANNELS, stays_in_cache, transform_gradients

TILES_A_STRIP = 64  # about: fewer, and loading and storing dU costs a share of the products
TRANSFORM_CYCLES = 250  # for one tile and one vector of channels, with packing
CHUNK_SHARE = 1 / 2  # of the tensors, at most, for all chunks' sums together


def supports(problem, layout, dtype):
    """None, or why not: another kernel or stride, or too few channels."""
    if problem.stride != (1, 1):
        return "needs stride 1"
    if problem.r not in TAPS or problem.s != problem.r or problem.dilation[0] != problem.dilation[1]:
        return "needs a 3x3 or 5x5 kernel, its dilation the same both ways"
    lanes = vector_unit().lanes(dtype)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    if min(c, k) < lanes:
        return f"needs at least {lanes} input and output channels a group"
    return None


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    lanes = vector_unit().lanes(dtype)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    count, bands, band_tiles, _ = lattices((problem.p, problem.q), problem.dilation[0], tile_of(problem.r))
    tiles = problem.n * count * bands * band_tiles
    vectors = ceil_div(c, lanes), ceil_div(k, lanes)
    return problem.groups * (POINTS * tiles * c * vectors[1] * 1.15 + tiles * TRANSFORM_CYCLES * sum(vectors)
                             + c * vectors[1] * 200)


def plan(problem, layout, dtype):
    """Blocking: two geometry records, for x with everything else, and for packing dy."""
    size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
    groups, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    side, dilation = tile_of(problem.r), problem.dilation[0]
    count, image_bands, band_tiles, _ = lattices((problem.p, problem.q), dilation, side)
    bands, vectors = problem.n * count * image_bands, 2 if k > lanes else 1
    width = vectors * lanes
    k_blocks = ceil_div(k, width)
    v_pitch = pitch_of(c, lanes, size)
    task_bands = max(1, min(bands, ceil_div(TILES_A_STRIP, band_tiles),
                            2 * cache_bytes()[1] // (POINTS * (v_pitch + width) * band_tiles * size)))
    strips = ceil_div(bands, task_bands)
    task_tiles = task_bands * band_tiles
    v_point, z_point = (apart(task_tiles * row, lanes, size) for row in (v_pitch, width))
    sum_point = apart(c * width, lanes, size)
    sum_elements = POINTS * sum_point
    chunks, chunk_strips, k_chunk = _chunks(problem, strips, k_blocks, sum_elements)
    k_chunks = ceil_div(k_blocks, k_chunk)
    tasks = chunks * groups * k_chunks
    tile_fields, tiles = near_equal_tiles(dtype, c, vectors, 1, a_step=v_pitch, b_step=width)
    columns = (side * band_tiles + PATCH - side, side * band_tiles)
    packed_bands, planes, strip = packed_strip(min(task_bands, image_bands), columns[0], lanes, size, side)
    starts, worker = places(
        lanes, planes=planes, pixels=max(strip, POINTS * PATCH_CHANNELS),
        v=POINTS * v_point, z=POINTS * z_point, filters=c * problem.r**2 * width,
        sums=k_chunk * sum_elements if chunks == 1 else 0)
    geometry = np.zeros(2, GEOMETRY)
    common = dict(nhwc=layout == "NHWC", lanes=lanes, groups=groups, pixel_pitch=lanes, side=side, r=problem.r,
                  image_bands=image_bands, band_tiles=band_tiles)
    fill(geometry[0], dict(
        common, together=1, in_place=stays_in_cache(POINTS, problem.c, dilation, size), c=c, k=k, x_rows=problem.h,
        x_columns=problem.w, first_row=-problem.padding[0][0],
        first_column=-problem.padding[1][0], strip_columns=columns[0], bands=bands,
        prefetch=prefetched(layout, dilation, packed_bands * side, (problem.h, problem.w), problem.n * problem.c, size),
        task_bands=task_bands, packed_bands=packed_bands, task_tiles=task_tiles, strips=strips, v_pitch=v_pitch,
        v_point=v_point, z_point=z_point, sum_point=sum_point, width=width, k_blocks=k_blocks,
        k_chunk=k_chunk, k_chunks=k_chunks, chunks=chunks, chunk_strips=chunk_strips, sum_elements=sum_elements,
        shared_sums=chunks > 1, taps=problem.r**2, dilation=dilation, tasks=tasks,
        **starts, **tile_fields))
    fill(geometry[1], dict(common, in_place=stays_in_cache(side * side, problem.k, dilation, size), c=k,
                           x_rows=problem.p, x_columns=problem.q, strip_columns=columns[1],
                           prefetch=prefetched(layout, dilation, side, (problem.p, problem.q), problem.n * problem.k,
                                               size)))
    steps = np.arange(task_tiles, dtype=np.int64) * size
    table = np.stack([steps * v_pitch, steps * width], axis=1).astype(np.int32)
    shared = chunks * groups * k_blocks * sum_elements if chunks > 1 else 0
    return Plan(geometry, table, np.zeros(0, np.int64), tiles, round_up(shared, 16), round_up(worker, 16), tasks)


def _chunks(problem, strips, k_blocks, sum_elements):
    """Chunks of strips, and blocks of output channels a task: enough tasks, little transformed or added twice."""
    most = int(CHUNK_SHARE * problem.tensor_elements) // (sum_elements * k_blocks * problem.groups)
    wanted = ceil_div(ENOUGH_TASKS, problem.groups)
    chunks, chunk_strips = even_chunks(strips, max(1, min(most, strips // 2, wanted)))
    k_chunk = 2 if chunks * problem.groups * k_blocks > enough_strips() else 1
    if chunks >= wanted // 2:
        k_chunk = k_blocks
    return chunks, chunk_strips, min(k_blocks, k_chunk)


@device_function
def _transform_dy(scratch, dy, g, side, start, group, block, first, last):
    """Z of a strip's bands, one block of output channels: (36 points, tiles, width)."""
    like, size = dy.dtype.type(0), dy.itemsize
    pixel = g.lanes * size
    point = g.z_point * size
    d = g.dilation
    channels = min(g.width, g.k - block * g.width)
    for band in range(first, last):
        lattice = band // g.image_bands
        image, row, column = lattice // (d * d), lattice % (d * d) // d, lattice % d
        row += d * g.side * (band % g.image_bands)
        if g.nhwc:
            transform_gradients(scratch, dy, side, start + g.pixels_start,
                                start + g.z_start + (band - first) * g.band_tiles * g.width, g.side, d, image, group,
                                row, column, block * g.width, channels, g.width, g.z_point)
            continue
        for v in range(0, channels, g.lanes):
            source = pack_vector(scratch, dy, side, start + g.planes_start, start + g.pixels_start, image, group, row,
                                 column, d, g.side, block * g.width + v,
                                 ahead(side, v, channels, band % g.image_bands, 1, size))
            out = address(scratch) + size * (start + g.z_start + (band - first) * g.band_tiles * g.width + v)
            for _ in range(g.band_tiles):
                transform_gradient(like, g.r, (source, side.strip_columns * pixel, pixel, out, PATCH * point, point))
                source += g.side * pixel
                out += g.width * size


@device_function
def _multiply_points(scratch, g, table, start, total, steps, accumulate, size):
    """dU (36 points, C, width) at ``total`` plus V^T Z."""
    row = g.width * size
    for p in range(POINTS):
        a = address(scratch) + size * (start + g.v_start + p * g.v_point)
        b = address(scratch) + size * (start + g.z_start + p * g.z_point)
        out = address(scratch) + size * (total + p * g.sum_point)
        for _ in range(g.tiles_full):
            call_tile(g.tile, (a, b, address(table), steps, out, row, accumulate))
            a += g.tile_rows * size
            out += g.tile_rows * row
        for _ in range(g.tiles_short):
            call_tile(g.tile_short, (a, b, address(table), steps, out, row, accumulate))
            a += (g.tile_rows - 1) * size
            out += (g.tile_rows - 1) * row


@device_function
def _store_block(dw, scratch, g, start, total, group, block):
    """dw = G^T dU G for one block of output channels."""
    size = dw.itemsize
    row = g.width * size
    point = g.sum_point * size
    for c in range(g.c):
        for v in range(0, g.width, g.lanes):
            transform_sums(dw.dtype.type(0), g.r, (
                address(scratch) + size * (total + c * g.width + v), PATCH * point, point,
                address(scratch) + size * (start + g.filters_start + c * g.taps * g.width + v), g.r * row, row))
    store_sum(dw, scratch, start + g.filters_start, g, group, block)


@device_function
def _sum_chunk(dw, x, dy, g, side, table, scratch, start, task):
    """One task: the sums over one chunk of strips, for one group and chunk of output channels."""
    size = x.itemsize
    chunk = task // (g.groups * g.k_chunks)
    group = task // g.k_chunks % g.groups
    first_block = task % g.k_chunks * g.k_chunk
    last_block = min(first_block + g.k_chunk, g.k_blocks)
    totals = start + g.sums_start
    if g.shared_sums:
        totals = ((chunk * g.groups + group) * g.k_blocks + first_block) * g.sum_elements
    first_strip = chunk * g.chunk_strips
    for strip in range(first_strip, min(first_strip + g.chunk_strips, g.strips)):
        first = strip * g.task_bands
        last = min(first + g.task_bands, g.bands)
        transform_strip(scratch, x, g, start, group, first, last)
        for block in range(first_block, last_block):
            _transform_dy(scratch, dy, g, side, start, group, block, first, last)
            _multiply_points(scratch, g, table, start, totals + (block - first_block) * g.sum_elements,
                             (last - first) * g.band_tiles, np.int64(strip > first_strip), size)
    if not g.shared_sums:
        for block in range(first_block, last_block):
            _store_block(dw, scratch, g, start, totals + (block - first_block) * g.sum_elements, group, block)


@device_function
def _store_panel(dw, scratch, g, start, panel):
    _store_block(dw, scratch, g, start, panel * g.sum_elements, panel // g.k_blocks, panel % g.k_blocks)


@kernel
def filter_gradient(dw, x, dy, geometry, table, unused, scratch, worker_start, worker_elements, workers):
    """dw: (K, C/G, 3, 3); x, dy: 4-D arrays in the plan's layout; scratch: the plan's size."""
    taken, stored = no_tasks_taken(workers), no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _sum_chunk(dw, x, dy, geometry[0], geometry[1], table, scratch,
                       worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
    if geometry[0].shared_sums:
        panels = geometry[0].groups * geometry[0].k_blocks
        length = panels * geometry[0].sum_elements
        for piece in numba.prange((length + PIECE - 1) // PIECE):
            add_chunks(scratch, length, geometry[0].chunks, np.int64(piece))
        for worker in numba.prange(workers):
            panel = take(stored, np.int64(worker), panels)
            while panel >= 0:
                _store_panel(dw, scratch, geometry[0], worker_start + np.int64(worker) * worker_elements, panel)
                panel = take(stored, np.int64(worker), panels)
