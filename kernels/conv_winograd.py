"""Winograd convolution, F(4x4, 3x3) and F(2x2, 5x5): forward, and the input gradient at stride 1, which is one too.

With a dilation, every d-th row and column of the image is a *lattice* with a convolution of its own.

A task is a strip of *bands* (a row of tiles of one lattice) by some blocks of output channels:

1. transform the input patches of its tiles, channels in the lanes: V (36 points, tiles, C). A worker that goes on
   with the same strip keeps V;
2. for each point a matrix product on the micro-kernel: M = V U;
3. transform M back, band by band, and store.

The transformed filters U (blocks, 36 points, C, width) are made once a call, or, where they are large and strips
few, by the task that needs them, as much of them at a time as stays in L2: four times the filters' bytes would stream
from memory otherwise.
"""

import itertools
import math

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    LAST_CACHE_BYTES,
    PAGE_BYTES,
    cache_bytes,
    ceil_div,
    cores,
    even_chunks,
    fill,
    geometry_type,
    near_equal_tiles,
    places,
    reduction_block,
    round_up,
)
from .jit import device_function, kernel
from .pack import pack_vector, store_lattice
from .pack_filters import transpose_taps
from .plan import Plan
from .simd import address, call_tile, transpose_block, vector_unit
from .tasks import no_tasks_taken, take
from .winograd import PATCH, POINTS, TAPS, tile_of, transform_filter, transform_input, transform_output
from .winograd_pixels import PATCH_CHANNELS, stays_in_cache, store_tile, transform_inputs

SHARED_V = 1 / 4, 1 / 2  # of L2, for the transformed input of a worker where filters are shared
OWN_V = 8  # and where each strip transforms them itself
FILTER_CYCLES = 350  # to load and transform one vector of filters
STREAM_CYCLES = 1 / 16  # a byte, to stream shared filters from L3 while products run
PACKED_SHARE = 1 / 16  # of L2, for a packed strip
TRANSFORM_CYCLES = 400  # for one tile and one vector of channels, in or out, with packing
STRIPS_A_CORE = 2  # to share among workers whole, and 8 at least
LEAST_TILES = 64  # of a strip with filters of its own, or transforming these takes longer than the products
SCATTER_CYCLES = 4  # for an output whose neighbours belong to other lattices
SAME_SET_BYTES = 1024  # what lies at multiples of this distance shares few sets of L1

GEOMETRY = geometry_type(
    "groups c k x_rows x_columns y_rows y_columns columns side r taps dilation w_group w_k w_c flip nhwc "
    "first_row first_column pixel_pitch strip_columns step_row step_column bands image_bands "
    "band_tiles task_bands packed_bands task_tiles v_pitch v_point m_point u_point width lanes k_blocks k_chunk "
    "k_chunks reduction_block reduction_blocks held_blocks tile_rows tiles_full tiles_short tile tile_short shared "
    "bias_start planes_start pixels_start v_start m_start filters_start acc_start prefetch "
    "in_place together tasks kept "
    "strips z_point sum_point chunks chunk_strips sum_elements shared_sums z_start sums_start")  # of filter gradients


def supports(correlation):
    """None, or why not: another kernel or stride, or too few channels."""
    if len(correlation.phases) > 1 or correlation.phases[0].advance != (1, 1):
        return "needs stride 1"
    if dilation_of(correlation) is None:
        return "needs a 3x3 or 5x5 kernel, its dilation the same both ways"
    lanes = vector_unit().lanes(correlation.dtype)
    if min(correlation.c, correlation.k) < lanes:
        return f"needs at least {lanes} input and output channels a group"
    return None


def dilation_of(correlation):
    """The distance of taps, None where they are not a square of 3 or 5 at one distance."""
    axes = [[offset for _, offset in axis] for axis in correlation.phases[0].taps]
    distances = {b - a for axis in axes for a, b in itertools.pairwise(axis)}
    square = len(axes[0]) == len(axes[1]) and len(axes[0]) in TAPS
    return abs(distances.pop()) if square and len(distances) == 1 else None


def lattices(extent, dilation, side):
    """(lattices of an image, bands of each, tiles of a band, columns), all as large as the largest."""
    rows, columns = (ceil_div(e, dilation) for e in extent)
    return dilation**2, ceil_div(rows, side), ceil_div(columns, side), columns


def cycles(correlation):
    """Estimated cycles of one core."""
    lanes, phase = vector_unit().lanes(correlation.dtype), correlation.phases[0]
    dilation, side = dilation_of(correlation), tile_of(len(phase.taps[0]))
    count, bands, band_tiles, _ = lattices(phase.extent, dilation, side)
    tiles = count * bands * band_tiles
    vectors = ceil_div(correlation.c, lanes), ceil_div(correlation.k, lanes)
    products = POINTS * correlation.c * vectors[1] * tiles * 1.1
    filters = min(_transform_cycles(correlation), _shared_cycles(correlation, 1))
    per_image = products + tiles * TRANSFORM_CYCLES * sum(vectors)
    if dilation > 1:
        per_image += correlation.k * phase.extent[0] * phase.extent[1] * SCATTER_CYCLES
    return correlation.groups * (correlation.batch * per_image + filters)


def _transform_cycles(correlation):
    """To transform the filters of a group."""
    return correlation.c * ceil_div(correlation.k, vector_unit().lanes(correlation.dtype)) * FILTER_CYCLES


def _shared_cycles(correlation, strips):
    """To transform filters once, unless they are kept, and to stream them into each strip."""
    filters = POINTS * correlation.c * correlation.k * np.dtype(correlation.dtype).itemsize
    distant = correlation.kept or filters > LAST_CACHE_BYTES // 2  # kept ones make room for other layers' in between
    stream = filters * STREAM_CYCLES * (4 if distant else 1) if filters > cache_bytes()[1] else 0
    return strips * stream + (0 if correlation.kept else _transform_cycles(correlation))


def enough_strips():
    """Tasks for all cores of the machine; where they end does not change a sum."""
    return max(8, STRIPS_A_CORE * cores())


def pitch_of(channels, lanes, size):
    """Distance of tiles in V, in whole vectors."""
    return apart(round_up(channels, lanes), lanes, size)


def apart(elements, lanes, size):
    """A distance of about ``elements`` for rows read, or points written, together: not all in the same sets of L1."""
    return elements + lanes if elements * size % SAME_SET_BYTES == 0 else elements


def plan(correlation):
    """Blocking for ``correlation``."""
    phase, c, k, groups = correlation.phases[0], correlation.c, correlation.k, correlation.groups
    size, lanes = np.dtype(correlation.dtype).itemsize, vector_unit().lanes(correlation.dtype)
    dilation, r = dilation_of(correlation), len(phase.taps[0])
    side = tile_of(r)
    count, image_bands, band_tiles, columns = lattices(phase.extent, dilation, side)
    bands = correlation.batch * count * image_bands
    together = math.gcd(groups, max(1, PATCH_CHANNELS // c)) if correlation.layout == "NHWC" else 1
    v_pitch = pitch_of(together * c, lanes, size)
    vectors = 2 if k > lanes else 1
    width = vectors * lanes
    k_blocks = ceil_div(k, width)
    shared, task_bands = _strips(correlation, bands, band_tiles, POINTS * v_pitch * size)
    task_tiles, strips = task_bands * band_tiles, groups * ceil_div(bands, task_bands)
    # Tasks of one strip on several workers transform its input several times: only where there are few strips.
    k_chunk = ceil_div(k_blocks, min(k_blocks, ceil_div(enough_strips(), strips)))
    k_chunks = ceil_div(k_blocks, k_chunk)
    tasks = strips * k_chunks
    tile_fields, tiles = near_equal_tiles(correlation.dtype, task_tiles, vectors, v_pitch, a_step=1, b_step=width)
    v_point, m_point = (apart(task_tiles * row, lanes, size) for row in (v_pitch, width))
    block = reduction_block(1, c, width * size)
    held_blocks = ceil_div(c, block) if shared else 1  # of the reduction whose transformed filters are held
    u_point = apart(min(c, held_blocks * block) * width, lanes, size)
    filters = POINTS * u_point
    packing = _packing(correlation.layout, phase, side * band_tiles + PATCH - side, lanes)
    packed_bands, planes, strip = packed_strip(
        min(task_bands, image_bands), packing["strip_columns"], lanes, size, side)
    starts, worker = places(
        lanes, planes=max(planes, lanes * (lanes * r * r + lanes)), pixels=max(strip, POINTS * PATCH_CHANNELS),
        v=POINTS * v_point, m=POINTS * m_point, filters=0 if shared else filters,
        acc=((side + 1) * columns + side * (side + 1)) * width)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(
        groups=groups, c=c, k=k, x_rows=correlation.x_size[0], x_columns=correlation.x_size[1],
        y_rows=phase.extent[0], y_columns=phase.extent[1], columns=columns, side=side, r=r, taps=r * r,
        dilation=dilation, w_group=correlation.w_steps[0], w_k=correlation.w_steps[1],
        w_c=correlation.w_steps[2], step_row=dilation, step_column=dilation, bands=bands, image_bands=image_bands,
        band_tiles=band_tiles, task_bands=task_bands, packed_bands=packed_bands, task_tiles=task_tiles, v_pitch=v_pitch,
        v_point=v_point, m_point=m_point, u_point=u_point, width=width, lanes=lanes, k_blocks=k_blocks, k_chunk=k_chunk,
        k_chunks=k_chunks, reduction_block=block, reduction_blocks=ceil_div(c, block), held_blocks=held_blocks,
        shared=shared, together=together, in_place=stays_in_cache(POINTS, c * groups, dilation, size),
        bias_start=groups * k_blocks * filters * shared, tasks=tasks,
        prefetch=prefetched(correlation.layout, dilation, packed_bands * side, correlation.x_size,
                            correlation.batch * groups * c, size), **packing, **starts, **tile_fields))
    steps = np.arange(block, dtype=np.int64) * size
    table = np.stack([steps, steps * width], axis=1).astype(np.int32)
    return Plan(geometry, table, np.zeros(0, np.int64), tiles,
                round_up(groups * k_blocks * (filters * shared + width), 16), round_up(worker, 16), tasks)


def prefetched(layout, dilation, rows, x_size, planes, size):
    """Whether packing fetches ahead: the hardware does it along a plane, but not where there is little of each."""
    piece, whole = rows * x_size[1] * size, planes * x_size[0] * x_size[1] * size
    return layout == "NCHW" and dilation == 1 and piece < PAGE_BYTES and whole > cache_bytes()[1]


def packed_strip(bands, columns, lanes, size, side):
    """(bands packed together, as neighbours share rows; elements of a row of planes; of the strip)."""
    row = columns * lanes
    most = max(1, (int(PACKED_SHARE * cache_bytes()[1]) // (row * size) - (PATCH - side)) // side)
    packed = min(bands, most)
    return packed, (round_up(columns, lanes) + 1) * lanes, (side * packed + PATCH - side) * row + lanes * lanes


def _packing(layout, phase, strip_columns, lanes):
    """How one vector of channels of a band's input is packed, and whether the filters are flipped."""
    offsets = [[offset for _, offset in axis] for axis in phase.taps]
    nhwc = layout == "NHWC"
    return dict(nhwc=nhwc, first_row=min(offsets[0]), first_column=min(offsets[1]), strip_columns=strip_columns,
                pixel_pitch=lanes, flip=offsets[0][1] < offsets[0][0])


def _strips(correlation, bands, band_tiles, tile_bytes):
    """Whether all tasks share the transformed filters, and the bands of a strip."""
    l2, band_bytes = cache_bytes()[1], band_tiles * tile_bytes
    blocks = ceil_div(correlation.k, 2 * vector_unit().lanes(correlation.dtype))
    wanted = min(bands, ceil_div(ENOUGH_TASKS // 4, correlation.groups * blocks))

    def choice(shared, most, least):
        size = even_chunks(bands, max(ceil_div(bands, max(1, most)), least))[1]
        strips = ceil_div(bands, size)
        filters = _shared_cycles(correlation, strips) if shared else strips * _transform_cycles(correlation)
        again = bands * band_bytes * blocks * max(0, 1 - l2 / (size * band_bytes))  # V, for each block from L3
        return filters + again * STREAM_CYCLES, shared, size

    choices = [choice(True, int(share * l2) // band_bytes, wanted) for share in SHARED_V]
    choices.append(choice(False, OWN_V * l2 // band_bytes, min(wanted, bands * band_tiles // LEAST_TILES)))
    if correlation.kept:
        choices.append(choice(True, bands, 1))  # the whole as one strip
    return min(choices)[1:]


@device_function
def _load_run(w, g, source, count, buffer, start):
    """The taps of ``lanes`` input channels, a run of w, for ``count`` output channels as (channels, taps, lanes)."""
    size, row = w.itemsize, g.lanes * w.itemsize
    for t in range(0, g.lanes * g.taps, g.lanes):
        transpose_block(w, (address(w) + size * (source + t), g.w_k * size, count,
                            address(buffer) + size * (start + t * g.lanes), row, g.lanes, np.int64(0)))


@device_function
def _transform_filters(scratch, w, g, out, buffer, group, block, first_c, channels):
    """U of one block of output channels and some input channels, (36 points, channels, width), at ``out``.

    ``buffer`` has room for the taps of ``lanes`` input channels.
    """
    size = w.itemsize
    row = g.lanes * size
    point = g.u_point * size
    in_runs = g.w_c == g.taps and not g.flip and channels >= g.lanes
    step = g.lanes if in_runs else 1
    for v in range(0, g.width, g.lanes):
        first_k = block * g.width + v
        count = min(g.lanes, g.k - first_k)
        for i in range(0, channels, step):
            c = min(i, channels - step)  # some channels again, with the same results
            source = group * g.w_group + first_k * g.w_k + (first_c + c) * g.w_c
            if count > 0 and in_runs:
                _load_run(w, g, source, count, scratch, buffer)
            elif count > 0:
                first = buffer + (g.taps - 1) * g.lanes if g.flip else buffer
                transpose_taps(w, source, g.w_k, count, g.taps, address(scratch) + size * first,
                               -row if g.flip else row)
            for j in range(step):
                transform_filter(w.dtype.type(0), g.r, (
                    address(scratch) + (buffer + j * g.taps * g.lanes) * size, g.r * row, row,
                    address(scratch) + size * (out + (c + j) * g.width + v), PATCH * point, point))


@device_function
def _prepare_block(scratch, w, bias, g, start, unit):
    """Shared filters and bias of one block of output channels of one group."""
    group, block = unit // g.k_blocks, unit % g.k_blocks
    first_k = block * g.width
    out = g.bias_start + unit * g.width
    for lane in range(g.width):
        known = first_k + lane < g.k and bias.size > 0
        scratch[out + lane] = bias[group * g.k + first_k + lane] if known else 0
    if g.shared:
        _transform_filters(scratch, w, g, unit * POINTS * g.u_point, start, group, block, np.int64(0), g.c)


@device_function
def prepare_blocks(scratch, w, bias, g, start, taken, worker):
    """A worker's share of the shared filters and of the bias of all blocks."""
    units = g.groups * g.k_blocks
    unit = take(taken, worker, units)
    while unit >= 0:
        _prepare_block(scratch, w, bias, g, start, unit)
        unit = take(taken, worker, units)


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
        return (g.side * bands - c * g.x_rows) * row
    return ((g.groups * g.c - c) * g.x_rows - g.side * band) * row


@device_function
def _transform_bands(scratch, x, g, start, lattice, group, band, bands, first_tile):
    """V of neighbouring bands of one lattice: its tiles from ``first_tile`` of the task."""
    like, size, d = x.dtype.type(0), x.itemsize, g.dilation
    pixel = g.lanes * size
    point = g.v_point * size
    image, place = lattice // (d * d), lattice % (d * d)
    first_row, first_column = g.first_row + place // d + d * g.side * band, g.first_column + place % d
    if g.nhwc:
        for i in range(bands):
            transform_inputs(scratch, x, g, start + g.pixels_start,
                             start + g.v_start + (first_tile + i * g.band_tiles) * g.v_pitch, PATCH, d, image, group,
                             first_row + i * g.side * d, first_column, np.int64(0), g.together * g.c, g.v_pitch,
                             g.v_point)
        return
    for c in range(0, g.c, g.lanes):
        rows = pack_vector(scratch, x, g, start + g.planes_start, start + g.pixels_start, image, group, first_row,
                           first_column, d, g.side * bands + PATCH - g.side, c, ahead(g, c, g.c, band, bands, size))
        out = address(scratch) + size * (start + g.v_start + first_tile * g.v_pitch + c)
        for i in range(bands):
            source = rows + i * g.side * g.strip_columns * pixel
            for _ in range(g.band_tiles):
                transform_input(like, g.r, (source, g.strip_columns * pixel, pixel, out, PATCH * point, point))
                source += g.side * pixel
                out += g.v_pitch * size


@device_function
def transform_strip(scratch, x, g, start, group, first, last):
    """V of the bands from ``first`` to ``last``, as many at a time as ``packed_bands``, each time of one lattice."""
    band = first
    while band < last:
        count = min(min(last - band, g.packed_bands), g.image_bands - band % g.image_bands)
        _transform_bands(scratch, x, g, start, band // g.image_bands, group, band % g.image_bands, count,
                         (band - first) * g.band_tiles)
        band += count


@device_function
def multiply_points(scratch, g, table, v, filters, m, first_block, size):
    """M = V U, or M += V U, for all points of one block of output channels, from a block of the reduction on.

    ``v``, ``filters`` and ``m`` are places in the scratch.
    """
    row = g.width * size
    for p in range(POINTS):
        for r in range(first_block, min(first_block + g.held_blocks, g.reduction_blocks)):
            c = r * g.reduction_block
            steps = min(g.reduction_block, g.c - c)
            a = address(scratch) + size * (v + p * g.v_point + c)
            b = address(scratch) + size * (filters + p * g.u_point + (r - first_block) * g.reduction_block * g.width)
            out = address(scratch) + size * (m + p * g.m_point)
            for _ in range(g.tiles_full):
                call_tile(g.tile, (a, b, address(table), steps, out, row, np.int64(r > 0)))
                a += g.tile_rows * g.v_pitch * size
                out += g.tile_rows * row
            for _ in range(g.tiles_short):
                call_tile(g.tile_short, (a, b, address(table), steps, out, row, np.int64(r > 0)))
                a += (g.tile_rows - 1) * g.v_pitch * size
                out += (g.tile_rows - 1) * row


@device_function
def _store_band(y, scratch, g, start, bias, lattice, band, group, block, first_tile):
    """Transform M of one band back and store its rows.

    Tiles go from right to left: what a tile computes beyond the image's right edge lands on the first pixels of the
    next row, which the leftmost tile then overwrites.
    """
    size = y.itemsize
    point = g.m_point * size
    row = g.columns * g.width * size
    acc = start + g.acc_start
    for v in range(0, min(g.width, g.k - block * g.width), g.lanes):
        for column in range(g.band_tiles - 1, -1, -1):
            source = address(scratch) + size * (start + g.m_start + (first_tile + column) * g.width + v)
            out = address(scratch) + size * (acc + g.side * column * g.width + v)
            transform_output(y.dtype.type(0), g.r, (source, PATCH * point, point, out, row, g.width * size))
    d = g.dilation
    row, column = lattice % (d * d) // d, lattice % d
    rows, columns = (g.y_rows - row + d - 1) // d, (g.y_columns - column + d - 1) // d
    store_lattice(y, scratch, acc, bias, g, lattice // (d * d), group, block, g.side * band,
                  max(0, min(g.side, rows - g.side * band)), row, column, columns)


@device_function
def _store_tiles(y, scratch, g, start, bias, lattice, band, group, block, first_tile):
    """:func:`_store_band` for NHWC: tile by tile."""
    size, d = y.itemsize, g.dilation
    place, channel = lattice % (d * d), block * g.width
    row = place // d + d * g.side * band
    for tile in range(g.band_tiles if row < g.y_rows else 0):
        column = place % d + d * g.side * tile
        if column < g.y_columns:
            store_tile(y.dtype.type(0), size, address(y), address(scratch) + (start + g.acc_start) * size, g,
                       address(scratch) + size * (start + g.m_start + (first_tile + tile) * g.width),
                       g.m_point * size, address(scratch) + bias * size if bias >= 0 else np.int64(0),
                       lattice // (d * d), row, column, group * g.k + channel, min(g.width, g.k - channel))


@device_function
def _run_block(y, w, has_bias, g, table, scratch, start, group, block, first, last):
    """One block of output channels for the strip whose V the worker holds."""
    unit = group * g.k_blocks + block
    v = start + g.v_start + group % g.together * g.c
    for r in range(0, g.reduction_blocks, g.held_blocks):
        filters = unit * POINTS * g.u_point
        if not g.shared:
            filters, c = start + g.filters_start, r * g.reduction_block
            _transform_filters(scratch, w, g, filters, start, group, block, c, min(g.reduction_block, g.c - c))
        multiply_points(scratch, g, table, v, filters, start + g.m_start, r, w.itemsize)
    bias = g.bias_start + unit * g.width if has_bias else np.int64(-1)
    for band in range(first, last):
        lattice, place, first_tile = band // g.image_bands, band % g.image_bands, (band - first) * g.band_tiles
        if g.nhwc:
            _store_tiles(y, scratch, g, start, bias, lattice, place, group, block, first_tile)
        else:
            _store_band(y, scratch, g, start, bias, lattice, place, group, block, first_tile)


@device_function
def _work(y, x, w, has_bias, g, table, scratch, start, taken, worker):
    """Take tasks until none is left; neighbouring ones share their strip."""
    held = np.int64(-1)
    task = take(taken, worker, g.tasks)
    while task >= 0:
        strip, chunk = task // g.k_chunks, task % g.k_chunks
        group = strip % g.groups
        first = strip // g.groups * g.task_bands
        last = min(first + g.task_bands, g.bands)
        if strip // g.together != held:
            transform_strip(scratch, x, g, start, group - group % g.together, first, last)
            held = strip // g.together
        for block in range(chunk * g.k_chunk, min((chunk + 1) * g.k_chunk, g.k_blocks)):
            _run_block(y, w, has_bias, g, table, scratch, start, group, block, first, last)
        task = take(taken, worker, g.tasks)


@kernel
def correlate(y, x, w, bias, geometry, table, taps, scratch, worker_start, worker_elements, workers):
    """y, x: 4-D arrays in the plan's layout; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    prepared, taken = no_tasks_taken(workers), no_tasks_taken(workers)
    if geometry[0].kept == 0:
        for worker in numba.prange(workers):
            prepare_blocks(scratch, w, bias, geometry[0], worker_start + np.int64(worker) * worker_elements, prepared,
                           np.int64(worker))
    for worker in numba.prange(workers):
        _work(y, x, w, bias.size > 0, geometry[0], table, scratch, worker_start + np.int64(worker) * worker_elements,
              taken, np.int64(worker))
