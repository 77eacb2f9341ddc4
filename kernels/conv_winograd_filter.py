"""Winograd F(4x4, 3x3) and its like for 2 to 5 taps, filter gradient, of stride 1 or 2:

    dU[p] = sum over tiles of  V[p, tile, c] * Z[p, tile, k],    V = B^T x B,  Z = A dy A^T,    dw = G^T dU G

For each of 36 points p a matrix product over tiles: input channels, in all phases of x (winograd_phases.py), in the
rows of the micro-kernel, output channels in its lanes. A task sums a *chunk* of strips for some blocks of output
channels; chunks are added in their order.
"""

import numba
import numpy as np

from . import conv_winograd
from .blocking import (
    ENOUGH_TASKS,
    NO_TABLE,
    cache_bytes,
    ceil_div,
    cores,
    even_chunks,
    fill,
    most_rows,
    near_equal_tiles,
    places,
    room_to_fetch,
    round_up,
)
from .conv_winograd import GEOMETRY, ahead, run_tiles, transform_strip
from .correlation import forward
from .jit import device_function, kernel
from .pack import PIECE, add_chunks, pack_vector, store_sum
from .plan import Plan
from .rows import copy_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take
from .winograd import GRID, POINTS, compile_transforms
from .winograd_blocking import FETCH_SUMS, apart, far, lattices, packed_strip, pitch_of, prefetched
from .winograd_phases import FILTER, LIVE, phases_of
from .winograd_pixels import PATCH_CHANNELS, stays_in_cache, transform_band

TILES_A_STRIP = 64  # about: fewer, and loading and storing dU costs a share of the products
PRODUCT_CYCLES, SUM_CYCLES = 1.3, 4.2  # a multiply-add of vectors; and to load and store its sum, once a strip
TRANSFORM_CYCLES = {"NCHW": 400, "NHWC": 300}  # for one tile and one vector of channels, with packing
PHASES = 3  # times as long, and where phases of x share it, which reach further apart in memory
FILTER_CYCLES = 200  # to transform one vector of filters
CHUNK_CHANNELS = 128  # in all phases: more leave room for few tiles, fewer transform dy more often
CHUNK_SHARE = 1 / 2  # of the tensors, at most, for all chunks' sums together


def supports(problem, layout, dtype):
    """None, or why not, as for the forward convolution."""
    return conv_winograd.supports(forward(problem, layout, dtype))


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    lanes, phases = vector_unit().lanes(dtype), phases_of(forward(problem, layout, dtype))
    c, k = problem.c // problem.groups, problem.k // problem.groups
    count, bands, band_tiles = lattices((problem.p, problem.q), phases)
    tiles = problem.n * count * bands * band_tiles
    filters = phases.count * c * ceil_div(k, lanes) * FILTER_CYCLES
    products, of_x, of_dy = _tile_cycles(problem, phases, layout, lanes)
    again = ceil_div(c, _channel_chunk(c, phases.count, lanes))
    return problem.groups * (tiles * (products + of_x + again * of_dy) + filters)


def plan(problem, layout, dtype):
    """Blocking: two geometry records, for x with everything else, and for packing dy."""
    size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
    groups, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    phases = phases_of(forward(problem, layout, dtype))
    side, gather, dilation, taps = phases.side, phases.gather, phases.dilation, problem.r**2
    count, image_bands, band_tiles = lattices((problem.p, problem.q), phases)
    bands, vectors = problem.n * count * image_bands, 2 if k > lanes else 1
    width = vectors * lanes
    k_blocks = ceil_div(k, width)
    c_chunk = _channel_chunk(c, phases.count, lanes)
    c_chunks = ceil_div(c, c_chunk)
    v_pitch = pitch_of(c_chunk, lanes, size, phases.count)
    task_bands = max(1, min(bands, ceil_div(TILES_A_STRIP, band_tiles),
                            2 * cache_bytes()[1] // (POINTS * (v_pitch + width) * band_tiles * size)))
    strips = ceil_div(bands, task_bands)
    task_tiles = task_bands * band_tiles
    v_point, z_point = (apart(task_tiles * row, lanes, size) for row in (v_pitch, width))
    sum_point = apart(phases.count * c_chunk * width, lanes, size)
    sum_elements = POINTS * sum_point
    panels = groups * c_chunks
    most = int(CHUNK_SHARE * problem.tensor_elements) // (sum_elements * k_blocks * panels)
    chunks, chunk_strips = even_chunks(strips, max(1, min(most, strips // 2, ceil_div(ENOUGH_TASKS, panels))))
    k_chunk = _output_chunk(problem, phases, layout, lanes, c_chunks, k_blocks, chunks * panels)
    k_chunks = ceil_div(k_blocks, k_chunk)
    tasks = chunks * panels * k_chunks
    rows = ceil_div(c_chunk, ceil_div(c_chunk, most_rows(vectors)))
    fetched = ceil_div(rows * width * size, task_tiles) if room_to_fetch(rows, vectors) else 0
    tile_fields, tiles = near_equal_tiles(dtype, c_chunk, vectors, 1, a_step=v_pitch, b_step=width, ahead=fetched)
    columns = gather * (side * band_tiles + phases.window - 1), side * band_tiles
    packed_bands, planes, strip = packed_strip(min(task_bands, image_bands), columns[0], lanes, size, phases)
    starts, worker = places(
        lanes, planes=planes, pixels=max(strip, POINTS * PATCH_CHANNELS),
        v=POINTS * v_point, z=POINTS * z_point, filters=(c_chunk * taps + phases.window**2) * width,
        sums=k_chunk * sum_elements if chunks == 1 else 0)
    transforms, micro_kernels = compile_transforms(dtype, GRID, phases.window, to_points="input", from_points="sums")
    dy_transforms, dy_micro_kernels = compile_transforms(dtype, GRID, phases.window, to_points="gradient")
    geometry = np.zeros(2, GEOMETRY)
    common = dict(nhwc=layout == "NHWC", lanes=lanes, groups=groups, pixel_pitch=lanes, grid=GRID, side=side,
                  image_bands=image_bands, band_tiles=band_tiles, reduction_block=max(v_pitch, width))
    fill(geometry[0], dict(
        common | phases.values(), patch=GRID, together=1, c=c,
        in_place=stays_in_cache(POINTS, problem.c, dilation * gather, size), c_chunk=c_chunk, c_chunks=c_chunks, k=k,
        x_rows=problem.h, x_columns=problem.w, strip_columns=columns[0], bands=bands,
        prefetch=prefetched(layout, phases, packed_bands * side * gather, (problem.h, problem.w),
                            problem.n * problem.c, size),
        task_bands=task_bands, packed_bands=packed_bands, task_tiles=task_tiles, strips=strips, v_pitch=v_pitch,
        v_point=v_point, z_point=z_point, sum_point=sum_point, width=width, k_blocks=k_blocks,
        k_chunk=k_chunk, k_chunks=k_chunks, chunks=chunks, chunk_strips=chunk_strips, sum_elements=sum_elements,
        shared_sums=chunks > 1, taps=taps, tasks=tasks, fetches=FETCH_SUMS,
        **starts, **tile_fields, **transforms))
    fill(geometry[1], dict(common, in_place=stays_in_cache(side * side, problem.k, dilation, size), c=k,
                           x_rows=problem.p, x_columns=problem.q, strip_columns=columns[1],
                           prefetch=prefetched(layout, phases, side, (problem.p, problem.q), problem.n * problem.k,
                                               size), gather=1, **dy_transforms))
    shared = chunks * panels * k_blocks * sum_elements if chunks > 1 else 0
    return Plan(geometry, NO_TABLE, phases.lists(), tiles + micro_kernels + dy_micro_kernels,
                round_up(shared, 16), round_up(worker, 16), tasks)


def _channel_chunk(channels, phases, lanes):
    """Input channels of a task: near-equal, the last ones a vector at least."""
    size = round_up(ceil_div(channels, max(1, channels * phases // CHUNK_CHANNELS)), lanes)
    while 0 < channels % size < lanes:
        size += lanes
    return min(size, channels)


def _tile_cycles(problem, phases, layout, lanes):
    """Of one tile and group: (products, transforms of x, transforms of dy)."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    vectors = ceil_div(k, lanes)
    count, bands, band_tiles = lattices((problem.p, problem.q), phases)
    product = PRODUCT_CYCLES + SUM_CYCLES / min(TILES_A_STRIP, problem.n * count * bands * band_tiles)
    transform = TRANSFORM_CYCLES[layout] * far(layout, problem.groups) * (
        PHASES if phases.count > 1 else 1)
    return (phases.products * c * vectors * product, ceil_div(c, lanes) * phases.count * transform,
            vectors * transform)


def _output_chunk(problem, phases, layout, lanes, c_chunks, k_blocks, others):
    """Blocks of output channels a task, of ``others`` tasks for each: cores are busy, little is transformed again."""
    products, of_x, of_dy = _tile_cycles(problem, phases, layout, lanes)

    def cost(size):
        tasks = others * ceil_div(k_blocks, size)
        return (products + of_x * ceil_div(k_blocks, size) + of_dy * c_chunks) * (tasks + cores() - 1) / tasks

    return min(range(1, k_blocks + 1), key=cost)


@device_function
def _transform_dy(scratch, dy, g, side, start, group, block, first, last):
    """Z of a strip's bands, one block of output channels: (36 points, tiles, width)."""
    size = dy.itemsize
    pixel = g.lanes * size
    point = g.z_point * size
    d = g.dilation
    channels = min(g.width, g.k - block * g.width)
    for band in range(first, last):
        lattice = band // g.image_bands
        image, row, column = lattice // (d * d), lattice % (d * d) // d, lattice % d
        row += d * g.side * (band % g.image_bands)
        if g.nhwc:
            transform_band(scratch, dy, side, start + g.pixels_start,
                           start + g.z_start + (band - first) * g.band_tiles * g.width, np.int64(0), g.side, d,
                           image, group, row, column, block * g.width, channels, g.width, g.z_point)
            continue
        for v in range(0, channels, g.lanes):
            source = pack_vector(scratch, dy, side, start + g.planes_start, start + g.pixels_start, image, group, row,
                                 column, d, g.side, block * g.width + v,
                                 ahead(side, v, channels, band % g.image_bands, 1, size))
            out = address(scratch) + size * (start + g.z_start + (band - first) * g.band_tiles * g.width + v)
            call_tile(side.to_points, (source, side.strip_columns * pixel, pixel, g.side * pixel, out, g.grid * point,
                                       point, g.width * size, g.band_tiles))


@device_function
def _multiply_points(scratch, g, lists, start, total, steps, accumulate, size):
    """dU (36 points, phases, channels of the task, width) at ``total`` plus V^T Z."""
    for p in range(POINTS):
        b = address(scratch) + size * (start + g.z_start + p * g.z_point)
        for phase in range(g.phases):
            if lists[phase * g.listed + LIVE] >> p & 1:
                a = address(scratch) + size * (start + g.v_start + p * g.v_point + phase * g.c_chunk)
                out = address(scratch) + size * (total + p * g.sum_point + phase * g.c_chunk * g.width)
                run_tiles(g, a, size, b, out, steps, accumulate, size)


@device_function
def _store_phases(dw, scratch, g, lists, source, out, of_phase):
    """The filters of one input channel, a vector an element, from those of its phases. All are addresses."""
    row, point = g.width * dw.itemsize, g.sum_point * dw.itemsize
    for phase in range(g.phases):
        call_tile(g.from_points, (source + phase * g.c_chunk * row, g.grid * point, point, np.int64(0), of_phase,
                                  g.window * row, row, np.int64(0), np.int64(1)))
        for t in range(g.window * g.window):
            tap = lists[phase * g.listed + FILTER + t]
            if tap >= 0:
                copy_run(dw.dtype.type(0), out + tap * row, of_phase + t * row, g.lanes)


@device_function
def _store_block(dw, scratch, g, lists, start, total, group, c_chunk, block):
    """dw = G^T dU G for one block of output channels."""
    size = dw.itemsize
    row, point = g.width * size, g.sum_point * size
    filters, first_c = start + g.filters_start, c_chunk * g.c_chunk
    channels = min(g.c_chunk, g.c - first_c)
    of_phase = address(scratch) + size * (filters + g.c_chunk * g.taps * g.width)
    for v in range(0, g.width, g.lanes):
        source, out = address(scratch) + size * (total + v), address(scratch) + size * (filters + v)
        if g.phases == 1:
            call_tile(g.from_points, (source, g.grid * point, point, row, out, g.window * row, row, g.taps * row,
                                      channels))
        for c in range(channels if g.phases > 1 else 0):
            _store_phases(dw, scratch, g, lists, source + c * row, out + c * g.taps * row, of_phase)
    store_sum(dw, scratch, filters, g, group, block, first_c, channels)


@device_function
def _sum_chunk(dw, x, dy, g, side, lists, scratch, start, task):
    """One task: the sums over one chunk of strips, for one group and chunk of output channels."""
    size = x.itemsize
    chunk = task // (g.groups * g.c_chunks * g.k_chunks)
    group = task // (g.c_chunks * g.k_chunks) % g.groups
    c_chunk = task // g.k_chunks % g.c_chunks
    first_c, first_block = c_chunk * g.c_chunk, task % g.k_chunks * g.k_chunk
    last_block = min(first_block + g.k_chunk, g.k_blocks)
    totals = start + g.sums_start
    if g.shared_sums:
        totals = (((chunk * g.groups + group) * g.c_chunks + c_chunk) * g.k_blocks + first_block) * g.sum_elements
    first_strip = chunk * g.chunk_strips
    for strip in range(first_strip, min(first_strip + g.chunk_strips, g.strips)):
        first = strip * g.task_bands
        last = min(first + g.task_bands, g.bands)
        transform_strip(scratch, x, g, lists, start, group, first_c, min(g.c_chunk, g.c - first_c), first, last)
        for block in range(first_block, last_block):
            _transform_dy(scratch, dy, g, side, start, group, block, first, last)
            _multiply_points(scratch, g, lists, start, totals + (block - first_block) * g.sum_elements,
                             (last - first) * g.band_tiles, np.int64(strip > first_strip), size)
    if not g.shared_sums:
        for block in range(first_block, last_block):
            _store_block(dw, scratch, g, lists, start, totals + (block - first_block) * g.sum_elements, group, c_chunk,
                         block)


@device_function
def _store_panel(dw, scratch, g, lists, start, panel):
    block, c_chunk = panel % g.k_blocks, panel // g.k_blocks % g.c_chunks
    group = panel // (g.k_blocks * g.c_chunks)
    _store_block(dw, scratch, g, lists, start, panel * g.sum_elements, group, c_chunk, block)


@kernel
def filter_gradient(dw, x, dy, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """dw: (K, C/G, R, R); x, dy: 4-D arrays in the plan's layout; scratch: the plan's size."""
    taken, stored = no_tasks_taken(workers), no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _sum_chunk(dw, x, dy, geometry[0], geometry[1], lists, scratch,
                       worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
    if geometry[0].shared_sums:
        panels = geometry[0].groups * geometry[0].c_chunks * geometry[0].k_blocks
        length = panels * geometry[0].sum_elements
        for piece in numba.prange((length + PIECE - 1) // PIECE):
            add_chunks(scratch, length, geometry[0].chunks, np.int64(piece))
        for worker in numba.prange(workers):
            panel = take(stored, np.int64(worker), panels)
            while panel >= 0:
                _store_panel(dw, scratch, geometry[0], lists, worker_start + np.int64(worker) * worker_elements,
                             panel)
                panel = take(stored, np.int64(worker), panels)
