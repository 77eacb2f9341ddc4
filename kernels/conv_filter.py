"""Direct convolution, filter gradient.

    dw[k, c, r, s] = sum over n, i, j of  dy[n, k, i, j] * x[n, c, stride * i + dilation * r - padding, ...]

The reduction runs over pixels. Output channels k are in the lanes (dy is packed pixel by pixel); the rows of the
micro-kernel are input channels for one tap, or, where there are few channels, the taps of one channel. In NHWC dy of
few channels is read where it lies.

Pixels are cut into units, a strip of output rows of one image or several small images, and units into *chunks* with
a sum of their own; the sums are added in the order of the chunks, so no result depends on the number of threads.
"""

import math
from dataclasses import dataclass, replace

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    cache_bytes,
    ceil_div,
    cores,
    divide,
    even_chunks,
    fill,
    geometry_type,
    most_rows,
    offset_table,
    round_up,
    table_tile_cost,
    tile_cost,
)
from .jit import device_function, kernel
from .pack import PIECE, add_chunks, pack_pixels, pack_strip, store_sum
from .plan import Plan
from .simd import Tile, address, call_tile, compile_tile, transpose_block, vector_unit
from .tasks import no_tasks_taken, take

PIXELS_A_CHUNK = 512  # at least: fewer, and adding the chunks' sums costs a share of the work
PACK_CYCLES = 0.6  # an element, to transpose it
USES_A_PACKING = 48  # multiply-adds that an element of x should see, once it is packed
PIXELS_AHEAD = 32  # that a tile fetches of x in NHWC: a line of each, which the hardware does not foresee
LONG_REDUCTION = 448  # pixels, of which a tile's sums, read and written once, cost a few hundredths of its products
LONG_SHARE, LONG_BYTES = 2, 3 << 20  # of L2, and at most, what is packed for one: it streams
CHUNK_BYTES = 5 << 20  # at most, for all chunks' sums together
IN_PLACE_BYTES = 256  # of a pixel of dy, at most: more, and the lines that a tile reads lie far apart
IN_PLACE_PASSES = 8  # of tiles over dy, at most: copied, its vectors lie in a line each

GEOMETRY = geometry_type(
    "batch images groups c k x_rows x_columns y_rows y_columns nhwc packed panelled panel_rows panel_pitch "
    "image_pitch first_row first_column advance_row pixel_pitch row_pitch channel_pitch strip_rows strip_columns "
    "strip_out strips taps fetched width b_pitch in_place lanes k_blocks k_chunk k_chunks together block_pitch units "
    "chunks chunk_units jobs by_taps sum_row_pitch sum_elements panels_start pixels_start sums_start shared_sums tasks")


@dataclass(frozen=True)
class _Rows:
    """How the micro-kernel's rows run over (c, r, s): the tiles, their calls, and where they read and write."""

    cost: float  # of an image's strip
    vectors: int
    jobs: tuple  # (tile, offset of A in elements, first row of the sum)
    sum_row_pitch: int  # distance of a tile's rows in the sum
    images: int = 1  # that a tile takes one after another
    panel_rows: int = 0  # channels of a panel, where x is repacked pixel by pixel
    pixel_pitch: int = 0
    row_pitch: int = 0
    by_taps: bool = False  # whether the sum's rows are (r, s, c) instead of (c, r, s)


def supports(problem, layout, dtype):
    """Takes every problem."""
    return None


def cycles(problem, layout, dtype):
    """Estimated cycles of one core."""
    lanes, groups = vector_unit().lanes(dtype), problem.groups
    c, k = problem.c // groups, problem.k // groups
    strip_out, reach = _strip(problem, layout, np.dtype(dtype).itemsize, lanes)
    pixels = strip_out * problem.q
    rows = _rows(problem, layout, dtype, strip_out, reach)
    packed = reach[0] * reach[1] * c + (0 if _in_place(problem, layout, dtype, rows) else pixels * k)
    return problem.n * ceil_div(problem.p, strip_out) * groups * (rows.cost + packed * PACK_CYCLES)


def plan(problem, layout, dtype, rows_together=0):
    """Blocking for the filter gradient of ``problem``.

    With ``rows_together`` strips come by multiples of it, and dy is packed always.
    """
    size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
    nhwc, groups = layout == "NHWC", problem.groups
    c, k, taps = problem.c // groups, problem.k // groups, problem.r * problem.s
    strip_out, reach = _strip(problem, layout, size, lanes, max(1, rows_together))
    packed, (channels, row_pitch, channel_pitch) = _pitches(problem, layout, lanes, reach)
    panel_pixels = reach[0] * (row_pitch // channels)
    rows = _rows(problem, layout, dtype, strip_out, reach)
    width, in_place = rows.vectors * lanes, not rows_together and _in_place(problem, layout, dtype, rows)
    b_pitch = problem.k if in_place else width
    sum_elements, k_blocks = c * taps * width, ceil_div(k, width)
    strips = ceil_div(problem.p, strip_out)
    units = ceil_div(problem.n, rows.images) * strips
    chunks, chunk_units, k_chunks, k_chunk = _tasks(problem, units, k_blocks, sum_elements * size, rows.vectors)
    planes = 1 if nhwc else rows.panel_rows or c  # panels are packed one after the other
    image_pitch = panel_pixels * rows.panel_rows
    panels_start = round_up(reach[0] * row_pitch * planes + lanes, lanes) if packed else 0
    panel_pitch = rows.images * image_pitch
    panels = len({offset // panel_pitch for _, offset, _ in rows.jobs}) if rows.panel_rows else 0
    pixels_start = panels_start + round_up(panels * panel_pitch + lanes, lanes)
    block_pitch = round_up(rows.images * strip_out * problem.q, lanes) * width
    together = max(1, min(k_chunk, cache_bytes()[1] // 2 // (block_pitch * size))) if nhwc else 1
    sums_start = pixels_start + (0 if in_place else together * block_pitch)
    distance = PIXELS_AHEAD * rows.pixel_pitch + rows.jobs[0][0].rows - 1
    values = dict(
        fetched=distance * size if rows.jobs[0][0].ahead else 0, batch=problem.n, images=rows.images, groups=groups,
        c=c, k=k, x_rows=problem.h, x_columns=problem.w,
        y_rows=problem.p, y_columns=problem.q, nhwc=nhwc, packed=packed, panelled=panels, panel_rows=rows.panel_rows,
        panel_pitch=panel_pitch, image_pitch=image_pitch, first_row=-problem.padding[0][0],
        first_column=-problem.padding[1][0], advance_row=problem.stride[0], pixel_pitch=channels,
        row_pitch=row_pitch, channel_pitch=channel_pitch, strip_rows=reach[0], strip_columns=reach[1],
        strip_out=strip_out, strips=strips, taps=taps, width=width, b_pitch=b_pitch, in_place=in_place, lanes=lanes,
        k_blocks=k_blocks, k_chunk=k_chunk, k_chunks=k_chunks, together=together, block_pitch=block_pitch, units=units,
        chunks=chunks, chunk_units=chunk_units, jobs=len(rows.jobs), by_taps=rows.by_taps,
        sum_row_pitch=rows.sum_row_pitch, sum_elements=sum_elements,
        panels_start=panels_start, pixels_start=pixels_start, sums_start=sums_start,
        shared_sums=chunks > 1, tasks=chunks * groups * k_chunks)
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], values)
    pixels = (np.arange(rows.images)[:, None, None] * image_pitch
              + np.arange(strip_out)[:, None] * problem.stride[0] * rows.row_pitch
              + np.arange(problem.q) * problem.stride[1] * rows.pixel_pitch).reshape(-1) * size
    table = offset_table(pixels, np.arange(pixels.size) * b_pitch * size)
    compiled = {tile: compile_tile(replace(tile, b_step=b_pitch)) for tile, _, _ in rows.jobs}
    jobs = np.array([(compiled[tile].address, offset * size, row * width * size) for tile, offset, row in rows.jobs])
    shared = chunks * groups * k_blocks * sum_elements if chunks > 1 else 0
    worker = sums_start + (k_chunk * sum_elements if chunks == 1 else 0)
    return Plan(geometry, table, jobs, tuple(compiled.values()), round_up(shared, 16), round_up(worker, 16),
                chunks * groups * k_chunks)


def _strip(problem, layout, size, lanes, together=1):
    """Output rows of a unit, so that what it packs of x and dy stays in L2; the rows and columns of x it reaches.

    NCHW: dy is packed block by block, of two vectors about, and long reductions are worth streaming x for.
    NHWC: all of a pixel's channels at once.
    """
    row_bytes = _row_bytes(problem, layout, size, lanes)
    strip_out = max(1, cache_bytes()[1] // 2 // row_bytes)
    if layout == "NCHW":
        strip_out = max(strip_out, min(ceil_div(LONG_REDUCTION, problem.q), _long_bytes() // row_bytes))
    strip_out = min(problem.p, strip_out)
    strip_out = min(problem.p, round_up(ceil_div(problem.p, ceil_div(problem.p, strip_out)), together))
    reach = [(e - 1) * u + d * (t - 1) + 1 for e, u, d, t in zip(
        (strip_out, problem.q), problem.stride, problem.dilation, (problem.r, problem.s))]
    return strip_out, reach


def _row_bytes(problem, layout, size, lanes):
    """What is packed of x and dy for a row of outputs."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    packed = round_up(k, lanes) if layout == "NHWC" else 2 * lanes
    return (problem.stride[0] * (problem.w + sum(problem.padding[1])) * c + problem.q * packed) * size


def _long_bytes():
    return min(LONG_SHARE * cache_bytes()[1], LONG_BYTES)


def _needs_packing(problem, layout, lanes):
    """Whether an output's tap falls on padding, padding crops, or a strip of a plane is shorter than a vector."""
    ends = [(e - 1) * u + d * (t - 1) + 1 - p[0] for e, u, d, t, p in zip(
        (problem.p, problem.q), problem.stride, problem.dilation, (problem.r, problem.s), problem.padding)]
    shortest = problem.w * (problem.dilation[0] * (problem.r - 1) + 1)
    return (any(p[0] for p in problem.padding) or ends[0] > problem.h or ends[1] > problem.w
            or (layout == "NCHW" and shortest < lanes))


def _in_one_run(problem, layout, lanes):
    """Whether the pixels that a tile reads are neighbours in memory, all channels of each: 1x1 filters in NHWC."""
    return (layout == "NHWC" and (problem.r, problem.s) == problem.stride == (1, 1) and problem.q == problem.w
            and not _needs_packing(problem, layout, lanes))


def _in_place(problem, layout, dtype, rows):
    """Whether tiles read dy where it lies: NHWC, whole tiles of the few channels of a pixel, a few times."""
    few = problem.k * np.dtype(dtype).itemsize <= IN_PLACE_BYTES and len(rows.jobs) <= IN_PLACE_PASSES
    width = rows.vectors * vector_unit().lanes(dtype)
    return layout == "NHWC" and few and problem.k // problem.groups % width == 0


def _pitches(problem, layout, lanes, reach):
    """Whether x is packed; the elements from one pixel, row and channel to the next, where the tiles read it."""
    packed, nhwc, c = _needs_packing(problem, layout, lanes), layout == "NHWC", problem.c // problem.groups
    channels = (c if packed else problem.c) if nhwc else 1
    row_pitch = (reach[1] if packed else problem.w) * channels
    return packed, (channels, row_pitch, 1 if nhwc else (reach[0] if packed else problem.h) * row_pitch)


def _rows(problem, layout, dtype, strip_out, reach):
    """The cheaper way for the micro-kernel's rows to run over (c, r, s)."""
    _, pitches = _pitches(problem, layout, vector_unit().lanes(dtype), reach)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    panel_pixels = reach[0] * (pitches[1] // pitches[0])
    candidates = _channels_in_rows, _taps_in_rows, _filter_rows_in_rows
    return min((candidate(problem, c, k, strip_out, dtype, pitches, layout == "NHWC", panel_pixels)
                for candidate in candidates), key=lambda found: found.cost)


def _tasks(problem, units, k_blocks, sum_bytes, vectors):
    """Chunks of units, then chunks of output channels, until there are enough tasks or too much is packed twice.

    But every core gets one.
    """
    groups = problem.groups
    uses = vectors * problem.r * problem.s * problem.p * problem.q / (problem.h * problem.w)  # of x, a block
    most = min(problem.n * problem.p * problem.q // PIXELS_A_CHUNK, CHUNK_BYTES // (sum_bytes * groups * k_blocks),
               units)
    chunks, chunk_units = even_chunks(units, max(1, min(most, ceil_div(ENOUGH_TASKS, groups))))
    packings = max(1, math.floor(k_blocks * uses / USES_A_PACKING))  # of x, that the products are worth
    wanted = max(packings, ceil_div(cores(), groups * chunks))
    k_chunks = min(k_blocks, wanted, ceil_div(ENOUGH_TASKS, groups * chunks))
    k_chunk = ceil_div(k_blocks, k_chunks)
    return chunks, chunk_units, ceil_div(k_blocks, k_chunk), k_chunk


def _images(problem, dtype, strip_out):
    """Images of a unit in NCHW: one, or as many small ones as make a long reduction."""
    if strip_out < problem.p:
        return 1
    row_bytes = _row_bytes(problem, "NCHW", np.dtype(dtype).itemsize, vector_unit().lanes(dtype))
    most = min(LONG_REDUCTION // (problem.p * problem.q), _long_bytes() // (problem.p * row_bytes))
    return max(1, min(problem.n, most))


def _channels_in_rows(problem, c, k, strip_out, dtype, pitches, nhwc, panel_pixels):
    """A tile a tap and run of channels, neighbours in memory: NHWC as it is, NCHW packed in panels."""
    taps, lanes = problem.r * problem.s, vector_unit().lanes(dtype)
    images = 1 if nhwc else _images(problem, dtype, strip_out)
    in_one_run = _in_one_run(problem, "NHWC" if nhwc else "NCHW", lanes)
    cost_of = tile_cost if in_one_run else table_tile_cost
    best, pixels = None, images * strip_out * problem.q
    for vectors in range(1, 4):
        height, full, short = divide(c, min(most_rows(vectors), lanes))
        heights = [height] * full + [height - 1] * short
        cost = ceil_div(k, vectors * lanes) * taps * sum(cost_of(h, vectors, pixels) for h in heights)
        if best is None or cost < best[0]:
            best = cost, vectors, heights
    cost, vectors, heights = best
    pixel_pitch, row_pitch = pitches[:2] if nhwc else (heights[0], pitches[1] * heights[0])
    jobs, first, steps = [], 0, {}
    if in_one_run:
        steps = dict(a_step=pixel_pitch, ahead=pixel_pitch * np.dtype(dtype).itemsize)
    for panel, height in enumerate(heights):
        start = first if nhwc else panel * images * panel_pixels * heights[0]
        jobs += [(Tile(dtype, height, vectors, 1, **steps),
                  start + r * problem.dilation[0] * row_pitch + s * problem.dilation[1] * pixel_pitch,
                  first * taps + r * problem.s + s) for r in range(problem.r) for s in range(problem.s)]
        first += height
    return _Rows(cost / images, vectors, tuple(jobs), taps, images, 0 if nhwc else heights[0], pixel_pitch, row_pitch)


def _taps_in_rows(problem, c, k, strip_out, dtype, pitches, nhwc, panel_pixels):
    """A tile a channel and run of filter rows: for few channels."""
    pixel_pitch, row_pitch, channel_pitch = pitches
    taps, lanes, pixels = problem.r * problem.s, vector_unit().lanes(dtype), strip_out * problem.q
    best = _Rows(float("inf"), 1, (), 1)
    for vectors in range(1, 5):
        most = min(problem.r, most_rows(vectors) // problem.s)
        if most < 1:
            continue
        size, full, short = divide(problem.r, most)
        runs = [size] * full + [size - 1] * short
        cost = ceil_div(k, vectors * lanes) * c * sum(table_tile_cost(g * problem.s, vectors, pixels) for g in runs)
        if cost >= best.cost:
            continue
        jobs = []
        for channel in range(c):
            r = 0
            for g in runs:
                tile = Tile(dtype, problem.s, vectors, problem.dilation[1] * pixel_pitch, g,
                            problem.dilation[0] * row_pitch if g > 1 else 0)
                jobs.append((tile, channel * channel_pitch + r * problem.dilation[0] * row_pitch,
                             channel * taps + r * problem.s))
                r += g
        best = _Rows(cost, vectors, tuple(jobs), 1, 1, 0, pixel_pitch, row_pitch)
    return best


def _filter_rows_in_rows(problem, c, k, strip_out, dtype, pitches, nhwc, panel_pixels):
    """A tile a run of filter rows, or part of one, each with all columns and channels, neighbours in memory: NHWC."""
    pixel_pitch, row_pitch, _ = pitches
    length, lanes, pixels = problem.s * c, vector_unit().lanes(dtype), strip_out * problem.q
    best = _Rows(float("inf"), 1, (), 1)
    if not nhwc or pixel_pitch != c or problem.dilation[1] > 1:
        return best
    for vectors in range(1, 5):
        height, full, short = divide(length, most_rows(vectors))
        heights = [height] * full + [height - 1] * short
        size, full, short = divide(problem.r, max(1, most_rows(vectors) // length))
        runs = [size] * full + [size - 1] * short
        cost = ceil_div(k, vectors * lanes) * sum(
            table_tile_cost(g * h, vectors, pixels) for g in runs for h in heights)
        if cost >= best.cost:
            continue
        jobs, r = [], 0
        for g in runs:
            step = problem.dilation[0] * row_pitch
            for part, first in zip(heights, np.cumsum([0, *heights])):
                tile = Tile(dtype, part, vectors, 1, g, step if g > 1 else 0)
                jobs.append((tile, r * step + int(first), r * length + int(first)))
            r += g
        best = _Rows(cost, vectors, tuple(jobs), 1, 1, 0, pixel_pitch, row_pitch, by_taps=True)
    return best


@device_function
def _pack_panels(scratch, x, g, worker_start, source, first_image, images, group, first_row, rows_in):
    """The unit's input as panels (images, pixels, panel_rows), one a run of channels; ``source`` is the first image's.

    Blocks are as wide as a vector, so each spills past its row; what follows overwrites it, and the buffer has room
    for the last.
    """
    size = x.itemsize
    plane = g.channel_pitch * size
    row = g.panel_rows * size
    pixels = rows_in * g.row_pitch
    full = g.c - (g.panel_rows - 1) * g.panelled  # the other panels hold one channel fewer
    first = 0
    for panel in range(g.panelled):
        height = g.panel_rows - (1 if panel >= full else 0)
        for image in range(images):
            planes = source + (image * g.groups * g.c + first) * plane
            if g.packed:
                pack_strip(scratch, worker_start, x, g, first_image + image, group, first_row, rows_in, first, height)
                planes = address(scratch) + worker_start * size
            out = address(scratch) + (worker_start + g.panels_start + panel * g.panel_pitch
                                      + image * g.image_pitch) * size
            for i in range(0, pixels, g.lanes):
                pixel = min(i, max(0, pixels - g.lanes))  # not past the end of x
                transpose_block(x, (planes + pixel * size, plane, height, out + pixel * row, row, min(g.lanes, pixels),
                                    np.int64(0)))
        first += height


@device_function
def _dense_pixels(scratch, start, dy, g, image, images, group, block, first_block, end, first_out, rows_out):
    """Address of the pixels of dy of one unit, for a block of output channels: where they lie, or packed."""
    size = scratch.itemsize
    if g.in_place:
        first_pixel = (image * g.y_rows + first_out) * g.y_columns
        return address(dy) + (first_pixel * g.b_pitch + group * g.k + block * g.width) * size
    packed = (block - first_block) % g.together
    for i in range(images if packed == 0 else 0):
        pack_pixels(scratch, start + i * rows_out * g.y_columns * g.width, dy, g, image + i, group, block,
                    min(g.together, end - block), first_out, rows_out)
    return address(scratch) + (start + packed * g.block_pitch) * size


@device_function
def _add_unit(g, x, dy, pixels_of, table, jobs, scratch, worker_start, totals, unit, group, k_chunk, accumulate):
    """Add one strip of one image to the sums of one chunk of output channels."""
    size = x.itemsize
    image = unit // g.strips * g.images
    images = min(g.images, g.batch - image)
    first_out = unit % g.strips * g.strip_out
    rows_out = min(g.strip_out, g.y_rows - first_out)
    rows_in = (rows_out - 1) * g.advance_row + g.strip_rows - (g.strip_out - 1) * g.advance_row
    first_row = first_out * g.advance_row + g.first_row
    source = address(x) + size * (image * g.groups * g.c * g.x_rows * g.x_columns
                                  + group * g.c * g.channel_pitch + first_row * g.row_pitch)
    if g.panelled:
        _pack_panels(scratch, x, g, worker_start, source, image, images, group, first_row, rows_in)
        source = address(scratch) + (worker_start + g.panels_start) * size
    elif g.packed:
        pack_strip(scratch, worker_start, x, g, image, group, first_row, rows_in, 0, g.c)
        source = address(scratch) + worker_start * size
    first_block, end = k_chunk * g.k_chunk, min((k_chunk + 1) * g.k_chunk, g.k_blocks)
    for block in range(first_block, end):
        b = pixels_of(scratch, worker_start + g.pixels_start, dy, g, image, images, group, block, first_block, end,
                      first_out, rows_out)
        total = address(scratch) + size * (totals + (block - first_block) * g.sum_elements)
        for job in range(g.jobs):
            a = source + jobs[job, 1]
            call_tile(jobs[job, 0], (a, b, a + g.fetched if g.fetched else address(table),
                                     images * rows_out * g.y_columns, total + jobs[job, 2],
                                     g.sum_row_pitch * g.width * size, accumulate))


@device_function
def _store_sum(dw, scratch, total, g, group, block):
    if not g.by_taps:
        store_sum(dw, scratch, total, g, group, block, np.int64(0), g.c)
        return
    flat, channel = dw.reshape(-1), group * g.k + block * g.width
    for lane in range(min(g.width, g.k - block * g.width)):
        out = (channel + lane) * g.c * g.taps
        for tap in range(g.taps):
            for c in range(g.c):
                flat[out + c * g.taps + tap] = scratch[total + (tap * g.c + c) * g.width + lane]


@device_function
def _sum_chunk(dw, x, dy, pixels_of, g, table, jobs, scratch, worker_start, task):
    """One task: the sum over one chunk of units, for one group and one chunk of output channels."""
    chunk = task // (g.groups * g.k_chunks)
    group = task // g.k_chunks % g.groups
    k_chunk = task % g.k_chunks
    totals = worker_start + g.sums_start
    if g.shared_sums:
        totals = ((chunk * g.groups + group) * g.k_blocks + k_chunk * g.k_chunk) * g.sum_elements
    first = chunk * g.chunk_units
    for unit in range(first, min(first + g.chunk_units, g.units)):
        _add_unit(g, x, dy, pixels_of, table, jobs, scratch, worker_start, totals, unit, group, k_chunk,
                  np.int64(unit > first))
    if not g.shared_sums:
        for block in range(k_chunk * g.k_chunk, min((k_chunk + 1) * g.k_chunk, g.k_blocks)):
            _store_sum(dw, scratch, totals + (block - k_chunk * g.k_chunk) * g.sum_elements, g, group, block)


def driver(name, pixels_of):
    """The kernel ``(dw, x, dy, ...)`` of that name; dw: (K, C/G, R, S), x: 4-D in the plan's layout.

    dy: whatever ``pixels_of`` finds the gradients of the outputs in, as :func:`_dense_pixels` does in an array.
    """
    def filter_gradient(dw, x, dy, geometry, table, jobs, scratch, worker_start, worker_elements, workers):
        taken = no_tasks_taken(workers)
        for worker in numba.prange(workers):
            task = take(taken, np.int64(worker), geometry[0].tasks)
            while task >= 0:
                _sum_chunk(dw, x, dy, pixels_of, geometry[0], table, jobs, scratch,
                           worker_start + np.int64(worker) * worker_elements, task)
                task = take(taken, np.int64(worker), geometry[0].tasks)
        if geometry[0].shared_sums:
            panels = geometry[0].groups * geometry[0].k_blocks
            length = panels * geometry[0].sum_elements
            for piece in numba.prange((length + PIECE - 1) // PIECE):
                add_chunks(scratch, length, geometry[0].chunks, np.int64(piece))
            for panel in numba.prange(panels):
                _store_sum(dw, scratch, np.int64(panel) * geometry[0].sum_elements, geometry[0],
                           np.int64(panel) // geometry[0].k_blocks, np.int64(panel) % geometry[0].k_blocks)
    filter_gradient.__name__ = name
    return kernel(filter_gradient)


filter_gradient = driver("filter_gradient", _dense_pixels)
