"""Winograd convolution, F(4x4, 3x3), F(2x2, 3x3) and their like, of stride 1 or 2: forward and input gradient.

With a dilation, every d-th row and column of the image is a *lattice* with a convolution of its own; a stride of two
divides x or y into four *phases* (winograd_phases.py), which share their lattice's tiles.

A task is a strip of *bands* (a row of tiles of one lattice) by some blocks of output channels:

1. transform the input patches of its tiles, channels in the lanes: V (points, tiles, phases of x, C), or that for each
   block of the reduction. A worker that goes on with the same strip keeps V;
2. for each phase of y and point a matrix product on the micro-kernel, M = V U, over C in all phases of x;
3. transform M back, band by band, and store.

The transformed filters U (blocks, phases of y, points, phases of x, C, width) are made once a call, or, where they
are large and strips few, by the task that needs them, as much of them at a time as stays in L2: up to four times the
filters' bytes would stream from memory otherwise. Tiles of 4 x 4 points, of which there are more, need less than half
of that: which tiles is a matter of estimated cycles.
"""

import math

import numba
import numpy as np

from .blocking import NO_TABLE, ceil_div, fill, geometry_type, near_equal_tiles, places, round_up
from .jit import device_function, kernel
from .pack import pack_vector, store_lattice
from .plan import Plan
from .rows import clear_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take
from .winograd import compile_transforms
from .winograd_blocking import (
    FETCH_ROWS,
    FETCH_SUMS,
    all_phases,
    apart,
    best_strips,
    enough_strips,
    fetched_by_tiles,
    fits,
    fitting_grids,
    lattices,
    packed_strip,
    prefetched,
    reduction_of,
)
from .winograd_filters import filter_elements, prepare_blocks, transform_span
from .winograd_phases import FIELDS, LIVE, X_COLUMN, X_ROW, Y_COLUMN, Y_ROW, phases_of
from .winograd_pixels import PATCH_CHANNELS, stays_in_cache, store_tile, transform_band, v_place

GEOMETRY = geometry_type(
    f"{FIELDS} patch groups c c_chunk k reduction x_rows x_columns y_rows y_columns columns taps w_group w_k w_c nhwc "
    "pixel_pitch strip_columns step_row step_column bands image_bands band_tiles task_bands packed_bands task_tiles "
    "v_pitch v_point v_block m_point u_point width lanes k_blocks k_chunk k_chunks reduction_block reduction_blocks "
    "held_blocks tile_rows tiles_full tiles_short tile tile_short to_points filter_points from_points rectified_points "
    "shared fetches fetched bias_start planes_start pixels_start v_start m_start filters_start acc_start prefetch "
    "in_place together tasks kept "
    "crop_row crop_column "  # of the adjoint, and what follows of filter gradients
    "c_chunks strips z_point sum_point chunks chunk_strips sum_elements shared_sums z_start sums_start")


def supports(correlation):
    """None, or why not: another kernel or stride, too few channels, too short rows."""
    if not all_phases(correlation):
        return "needs a square kernel of 2 to 5 taps, or of 3 to 9 with stride 2 and no dilation"
    lanes = vector_unit().lanes(correlation.dtype)
    if min(correlation.c, correlation.k) < lanes:
        return f"needs at least {lanes} input and output channels a group"
    if not any(fits(correlation, phases) for phases in all_phases(correlation)):
        return f"needs rows of at least {min(p.spread * p.side for p in all_phases(correlation))} pixels"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    return min(fitting_grids(correlation))[0]


def plan(correlation, grid=None):
    """Blocking for ``correlation``, in tiles of ``grid`` x ``grid`` points or those of the fewest cycles."""
    phases = phases_of(correlation, grid or min(fitting_grids(correlation))[1])
    c, k, groups = correlation.c, correlation.k, correlation.groups
    size, lanes = np.dtype(correlation.dtype).itemsize, vector_unit().lanes(correlation.dtype)
    side, gather, spread = phases.side, phases.gather, phases.spread
    count, image_bands, band_tiles = lattices(correlation.phases[0].extent, phases)
    bands = correlation.batch * count * image_bands
    alone = correlation.layout == "NCHW" or phases.count > 1
    together = 1 if alone else math.gcd(groups, max(1, PATCH_CHANNELS // c))
    vectors = 2 if k > lanes else 1
    width = vectors * lanes
    k_blocks, reduction = ceil_div(k, width), gather**2 * c
    block, v_blocks, v_pitch = reduction_of(correlation, phases, together)
    *_, shared, task_bands = best_strips(correlation, phases, together)
    task_tiles, strips = task_bands * band_tiles, groups * ceil_div(bands, task_bands)
    # Tasks of one strip on several workers transform its input several times: only where there are few strips.
    k_chunk = ceil_div(k_blocks, min(k_blocks, ceil_div(enough_strips(), strips)))
    k_chunks = ceil_div(k_blocks, k_chunk)
    tasks = strips * k_chunks
    fetches, fetched = fetched_by_tiles(correlation, phases, shared, task_tiles, vectors, v_pitch, v_blocks,
                                min(reduction, block))
    tile_fields, tiles = near_equal_tiles(correlation.dtype, task_tiles, vectors, v_pitch, a_step=1, b_step=width,
                                          ahead=fetched)
    purposes = dict(to_points="input", filter_points="filter", from_points="output")
    if correlation.kept:
        purposes["rectified_points"] = "rectified"
    transforms, micro_kernels = compile_transforms(correlation.dtype, phases.grid, phases.window, **purposes)
    v_point, m_point = (apart(task_tiles * row, lanes, size) for row in (v_pitch, width))
    held_blocks = ceil_div(reduction, block) if shared else 1  # of the reduction whose transformed filters are held
    u_point = apart(min(reduction, held_blocks * block) * width, lanes, size)
    filters = spread**2 * phases.points * u_point
    taps, columns, strip_columns = correlation.filter_columns**2, correlation.y_size[1], gather * (
        side * band_tiles + phases.window - 1)
    packed_bands, planes, strip = packed_strip(min(task_bands, image_bands), strip_columns, lanes, size, phases)
    starts, worker = places(
        lanes, planes=max(planes, filter_elements(taps, phases.window, lanes)),
        pixels=max(strip, phases.points * PATCH_CHANNELS),
        v=v_blocks * phases.points * v_point, m=spread**2 * phases.points * m_point, filters=0 if shared else filters,
        acc=(spread * side + 1) * (columns + spread * side) * width)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        phases.values(), patch=phases.grid, groups=groups, c=c, c_chunk=c, k=k, reduction=reduction,
        x_rows=correlation.x_size[0], x_columns=correlation.x_size[1], y_rows=correlation.y_size[0],
        y_columns=correlation.y_size[1], columns=ceil_div(columns, phases.dilation), taps=taps,
        w_group=correlation.w_steps[0], w_k=correlation.w_steps[1], w_c=correlation.w_steps[2],
        nhwc=correlation.layout == "NHWC", pixel_pitch=lanes, strip_columns=strip_columns,
        step_row=phases.dilation, step_column=phases.dilation, bands=bands,
        image_bands=image_bands, band_tiles=band_tiles, task_bands=task_bands, packed_bands=packed_bands,
        task_tiles=task_tiles, v_pitch=v_pitch, v_point=v_point,
        v_block=phases.points * v_point if v_blocks > 1 else block, m_point=m_point, u_point=u_point, width=width,
        lanes=lanes, k_blocks=k_blocks, k_chunk=k_chunk, k_chunks=k_chunks, reduction_block=block,
        reduction_blocks=ceil_div(reduction, block), held_blocks=held_blocks, shared=shared,
        fetches=fetches, fetched=fetched, together=together,
        in_place=stays_in_cache(phases.points, c * groups, phases.dilation * gather, size),
        bias_start=groups * k_blocks * filters * shared, tasks=tasks,
        prefetch=prefetched(correlation.layout, phases, packed_bands * side * gather, correlation.x_size,
                            correlation.batch * groups * c, size), **starts, **tile_fields, **transforms))
    return Plan(geometry, NO_TABLE, phases.lists(), tiles + micro_kernels,
                round_up(groups * k_blocks * (filters * shared + width), 16), round_up(worker, 16), tasks)


@device_function
def ahead(g, c, channels, band, bands, size):
    """Bytes from the vector at channel ``c`` of some bands to the one packed next; 0 where the hardware prefetches it.

    Next are the bands' other ``channels``, then the bands below, then those of the next image.
    """
    if not g.prefetch:
        return np.int64(0)
    row = g.x_columns * size
    if c + g.lanes < channels:
        return g.lanes * g.x_rows * row
    if band + bands < g.image_bands:
        return (g.gather * g.side * bands - c * g.x_rows) * row
    return ((g.groups * g.c - c) * g.x_rows - g.gather * g.side * band) * row


@device_function
def _transform_bands(scratch, x, g, lists, start, lattice, group, first_c, channels, band, bands, first_tile):
    """V of neighbouring bands of one lattice: its tiles from ``first_tile`` of the task."""
    size, d, gather = x.itemsize, g.dilation, g.gather
    pixel, point, side = g.lanes * size, g.v_point * size, g.gather * g.side
    image, place = lattice // (d * d), lattice % (d * d)
    first_row, first_column = g.first_row + place // d + d * side * band, g.first_column + place % d
    v = start + g.v_start + first_tile * g.v_pitch
    if g.nhwc:
        for i in range(bands):
            for phase in range(g.x_phases):
                row = first_row + i * side * d + lists[phase * g.listed + X_ROW]
                transform_band(scratch, x, g, start + g.pixels_start, v + i * g.band_tiles * g.v_pitch,
                               phase * g.c_chunk, g.patch, d * gather, image, group, row,
                               first_column + lists[phase * g.listed + X_COLUMN], first_c, channels, g.v_pitch,
                               g.v_point)
        return
    for i in range(0, channels, g.lanes):
        c = min(i, channels - g.lanes)  # some channels again, with the same results
        rows = pack_vector(scratch, x, g, start + g.planes_start, start + g.pixels_start, image, group, first_row,
                           first_column, d, side * bands + gather * (g.patch - g.side), first_c + c,
                           ahead(g, c, channels, band, bands, size))
        for phase in range(g.x_phases):
            first = lists[phase * g.listed + X_ROW] * g.strip_columns + lists[phase * g.listed + X_COLUMN]
            out = address(scratch) + size * (v + v_place(g, phase * g.c_chunk + c))
            for j in range(bands):
                source = rows + (first + j * side * g.strip_columns) * pixel
                call_tile(g.to_points, (source, gather * g.strip_columns * pixel, gather * pixel, side * pixel,
                                        out + j * g.band_tiles * g.v_pitch * size, g.grid * point, point,
                                        g.v_pitch * size, g.band_tiles))


@device_function
def transform_strip(scratch, x, g, lists, start, group, first_c, channels, first, last):
    """V of the bands from ``first`` to ``last``, as many at a time as ``packed_bands``, each time of one lattice.

    Of some channels: in V those of the phases lie ``c_chunk`` apart.
    """
    band = first
    while band < last:
        count = min(min(last - band, g.packed_bands), g.image_bands - band % g.image_bands)
        _transform_bands(scratch, x, g, lists, start, band // g.image_bands, group, first_c, channels,
                         band % g.image_bands, count, (band - first) * g.band_tiles)
        band += count


@device_function
def run_tiles(g, a, a_row, b, out, steps, accumulate, size):
    """C = A B, or C += A B, for one point and a part of the reduction; addresses, ``a_row`` bytes from row to row.

    Tiles that were compiled so fetch a share each of what lies behind B, or behind their own A or C.
    """
    row = g.width * size
    following, share = b + steps * row, steps * g.fetched
    if g.fetches == FETCH_ROWS:
        following, share = a + g.tile_rows * a_row, g.tile_rows * a_row
    elif g.fetches == FETCH_SUMS:
        following, share = out + g.tile_rows * row, g.tile_rows * row
    for _ in range(g.tiles_full):
        call_tile(g.tile, (a, b, following, steps, out, row, accumulate))
        a += g.tile_rows * a_row
        out += g.tile_rows * row
        following += share
    for _ in range(g.tiles_short):
        call_tile(g.tile_short, (a, b, following, steps, out, row, accumulate))
        a += (g.tile_rows - 1) * a_row
        out += (g.tile_rows - 1) * row
        following += share


@device_function
def multiply_points(scratch, g, lists, v, filters, m, first_block, size):
    """M = V U, or M += V U, for all points of one block of output channels, from a block of the reduction on.

    ``v``, ``filters`` and ``m`` are places in the scratch. The phases of x that a point has are neighbours.
    """
    first = first_block * g.reduction_block
    stop = min(g.reduction, first + g.held_blocks * g.reduction_block)
    a, b, out = (address(scratch) + size * v, address(scratch) + size * filters, address(scratch) + size * m)
    for y_phase in range(g.y_phases):
        for p in range(g.points):
            begin = 0
            while begin < g.x_phases and not lists[(y_phase + begin) * g.listed + LIVE] >> p & 1:
                begin += 1
            end = begin
            while end < g.x_phases and lists[(y_phase + end) * g.listed + LIVE] >> p & 1:
                end += 1
            c, last = max(first, begin * g.c), min(stop, end * g.c)
            while c < last:
                steps = min(last - c, g.reduction_block - c % g.reduction_block)
                run_tiles(g, a + (p * g.v_point + v_place(g, c)) * size, g.v_pitch * size,
                          b + (p * g.u_point + (c - first) * g.width) * size, out + p * g.m_point * size, steps,
                          np.int64(c > begin * g.c), size)
                c += steps
            if begin == end:
                clear_run(scratch.dtype.type(0), out + p * g.m_point * size, g.task_tiles * g.width)
        b += g.points * g.u_point * size
        out += g.points * g.m_point * size


@device_function
def _store_band(y, scratch, g, lists, start, bias, lattice, band, group, block, first_tile):
    """Transform M of one band back and store its rows.

    Tiles go from right to left, in all phases: what a tile computes beyond the image's right edge lands on the first
    pixels of the next row, which the leftmost tile then overwrites.
    """
    size, spread = y.itemsize, g.spread
    point, pixel, side = g.m_point * size, g.width * size, g.spread * g.side
    acc = start + g.acc_start
    run = g.band_tiles if g.y_phases == 1 else np.int64(1)
    for v in range(0, min(g.width, g.k - block * g.width), g.lanes):
        for column in range(g.band_tiles - 1, -1, -run):
            for phase in range(g.y_phases):
                source = start + g.m_start + phase * g.points * g.m_point + (first_tile + column) * g.width + v
                first = (lists[phase * g.listed + Y_ROW] * g.columns + lists[phase * g.listed + Y_COLUMN]
                         + side * column)
                call_tile(g.from_points, (address(scratch) + size * source, g.grid * point, point, -pixel,
                                          address(scratch) + size * (acc + v) + first * pixel,
                                          spread * g.columns * pixel, spread * pixel, -side * pixel, run,
                                          bias + v * size if bias != 0 else np.int64(0), np.int64(0)))
    d = g.dilation
    row, column = lattice % (d * d) // d, lattice % d
    rows, columns = (g.y_rows - row + d - 1) // d, (g.y_columns - column + d - 1) // d
    first_out = spread * g.side * band
    store_lattice(y, scratch, acc, np.int64(-1), g, lattice // (d * d), group, block, first_out,
                  max(0, min(spread * g.side, rows - first_out)), row, column, columns)


@device_function
def _store_tiles(y, scratch, g, lists, start, bias, lattice, band, group, block, first_tile):
    """:func:`_store_band` for NHWC: tile by tile."""
    size, d = y.itemsize, g.dilation
    place, channel, side = lattice % (d * d), block * g.width, d * g.spread * g.side
    for tile in range(g.band_tiles):
        for phase in range(g.y_phases):
            row = place // d + side * band + lists[phase * g.listed + Y_ROW]
            column = place % d + side * tile + lists[phase * g.listed + Y_COLUMN]
            source = start + g.m_start + phase * g.points * g.m_point + (first_tile + tile) * g.width
            if row < g.y_rows and column < g.y_columns:
                store_tile(y.dtype.type(0), size, address(y), address(scratch) + (start + g.acc_start) * size, g,
                           address(scratch) + size * source, g.m_point * size,
                           bias, lattice // (d * d), row, column, group * g.k + channel, min(g.width, g.k - channel))


@device_function
def _run_block(y, w, has_bias, g, lists, scratch, start, group, block, first, last):
    """One block of output channels for the strip whose V the worker holds."""
    unit = group * g.k_blocks + block
    v = start + g.v_start + group % g.together * g.c
    for r in range(0, g.reduction_blocks, g.held_blocks):
        filters = unit * g.y_phases * g.points * g.u_point
        if not g.shared:
            filters, c = start + g.filters_start, r * g.reduction_block
            transform_span(scratch, w, g, lists, filters, start, group, block, c,
                           min(g.reduction_block, g.reduction - c))
        multiply_points(scratch, g, lists, v, filters, start + g.m_start, r, w.itemsize)
    bias = address(scratch) + (g.bias_start + unit * g.width) * w.itemsize if has_bias else np.int64(0)
    for band in range(first, last):
        lattice, place, first_tile = band // g.image_bands, band % g.image_bands, (band - first) * g.band_tiles
        if g.nhwc:
            _store_tiles(y, scratch, g, lists, start, bias, lattice, place, group, block, first_tile)
        else:
            _store_band(y, scratch, g, lists, start, bias, lattice, place, group, block, first_tile)


@device_function
def _work(y, x, w, has_bias, g, lists, scratch, start, taken, worker):
    """Take tasks until none is left; neighbouring ones share their strip."""
    held = np.int64(-1)
    task = take(taken, worker, g.tasks)
    while task >= 0:
        strip, chunk = task // g.k_chunks, task % g.k_chunks
        group = strip % g.groups
        first = strip // g.groups * g.task_bands
        last = min(first + g.task_bands, g.bands)
        if strip // g.together != held:
            transform_strip(scratch, x, g, lists, start, group - group % g.together, np.int64(0), g.together * g.c,
                            first, last)
            held = strip // g.together
        for block in range(chunk * g.k_chunk, min((chunk + 1) * g.k_chunk, g.k_blocks)):
            _run_block(y, w, has_bias, g, lists, scratch, start, group, block, first, last)
        task = take(taken, worker, g.tasks)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: 4-D arrays in the plan's layout; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    prepared, taken = no_tasks_taken(workers), no_tasks_taken(workers)
    if geometry[0].kept == 0:
        for worker in numba.prange(workers):
            prepare_blocks(scratch, w, bias, geometry[0], lists, worker_start + np.int64(worker) * worker_elements,
                           prepared, np.int64(worker))
    for worker in numba.prange(workers):
        _work(y, x, w, bias.size > 0, geometry[0], lists, scratch,
              worker_start + np.int64(worker) * worker_elements, taken, np.int64(worker))
