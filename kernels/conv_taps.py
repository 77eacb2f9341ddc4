"""Direct convolution with taps in the rows: for few output channels, and for input gradients with a stride.

    T[k, t] = sum over c of  w[k, c, t] x[c]        one matrix product over all pixels of x as they lie,
    y[k, start + step * i] = sum over t of  T[k, t] at pixel i + offset[t]

so x is neither copied nor padded, every vector of it meets all (k, t), and what falls on padding is never computed.
The second sum costs one addition where the first costs C multiply-adds.

A task is a strip of output rows of one image and group, for some of the output channels. It makes T for a band of x
rows at a time, adds that to the sums of its strip, and stores them at the end.
"""

import numba
import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    cache_bytes,
    ceil_div,
    divide,
    fill,
    geometry_type,
    most_rows,
    near_equal_tiles,
    offset_table,
    places,
    reading_cycles,
    round_up,
    unaligned_tile_cost,
)
from .correlation import span
from .jit import device_function, kernel
from .pack_filters import CHANNELS_A_UNIT, tile_start
from .plan import Plan
from .rows import add_window, clear_run, copy_run, fill_run, move_run
from .simd import address, call_tile, vector_unit
from .tasks import no_tasks_taken, take

ROWS_A_CHUNK = 144  # of (k, t), about: enough to use each vector of x often, few enough for T to be tall
T_SHARE = SUMS_SHARE = 1 / 4  # of L2
ADD_CYCLES = 0.6  # an element of T, to store it and add it to its sum
STORE_CYCLES = 0.5  # an element of y

GEOMETRY = geometry_type(
    "groups c k x_rows x_columns y_rows y_columns w_group w_k w_c taps k_chunk k_chunks strips strip_rows lowest "
    "highest band_rows width lanes tile_rows tiles_full tiles_short tile tile_short panel_elements t_pitch t_start "
    "sums_start tasks start_row start_column step_row step_column rows columns phase_taps taps_start phase_start "
    "phase_elements kept")
TAP_FIELDS = 5  # of a tap in the plan's list: place in the filter, row and column offset, first and last output column


def supports(correlation):
    """None, or why not: layout, a stride of the input, or tiny images."""
    if correlation.layout != "NCHW":
        return "needs layout NCHW"
    if any(phase.advance != (1, 1) for phase in correlation.phases):
        return "needs stride 1 of the input"
    if _taps(correlation) == 1:
        return "needs more than one tap"
    lanes = vector_unit().lanes(correlation.dtype)
    if correlation.x_size[0] * correlation.x_size[1] < lanes:
        return f"needs at least {lanes} input pixels an image"
    return None


def cycles(correlation):
    """Estimated cycles of one core."""
    pixels = correlation.x_size[0] * correlation.x_size[1]
    rows = correlation.k * _taps(correlation)
    _, height, full, short, vectors = _shape(correlation, rows)
    lanes = vector_unit().lanes(correlation.dtype)
    products = ceil_div(pixels, vectors * lanes) * sum(
        count * unaligned_tile_cost(size, vectors, correlation.c)
        for count, size in ((full, height), (short, height - 1)))
    stored = correlation.k * correlation.y_size[0] * correlation.y_size[1] * STORE_CYCLES
    images = correlation.batch * correlation.groups
    read = reading_cycles(images, correlation.c, pixels, correlation.dtype)
    return images * (products + rows * pixels * ADD_CYCLES + stored + read)


def _taps(correlation):
    return sum(len(phase.taps[0]) * len(phase.taps[1]) for phase in correlation.phases)


def _shape(correlation, rows):
    """(cycles, rows, full, short, vectors) of the cheapest tile for that many (k, t)."""
    lanes = vector_unit().lanes(correlation.dtype)
    most, best = correlation.x_size[0] * correlation.x_size[1] // lanes, None
    for vectors in range(1, min(8, most) + 1):
        if most_rows(vectors) < 1:
            break
        height, full, short = divide(rows, most_rows(vectors))
        cost = (full * unaligned_tile_cost(height, vectors, correlation.c)
                + short * unaligned_tile_cost(height - 1, vectors, correlation.c)) / vectors
        if best is None or cost < best[0]:
            best = cost, height, full, short, vectors
    return best


def plan(correlation):
    """Blocking for ``correlation``: a record for each phase, the first with all that they share."""
    size, lanes = np.dtype(correlation.dtype).itemsize, vector_unit().lanes(correlation.dtype)
    x_rows, x_columns = correlation.x_size
    taps = _taps(correlation)
    k_chunks = max(1, round(correlation.k * taps / ROWS_A_CHUNK))
    k_chunk = ceil_div(correlation.k, k_chunks)
    k_chunks = ceil_div(correlation.k, k_chunk)
    vectors = _shape(correlation, k_chunk * taps)[-1]
    height, width = divide(k_chunk * taps, most_rows(vectors))[0], vectors * lanes
    tile_fields, tiles = near_equal_tiles(correlation.dtype, k_chunk * taps, vectors, 1, a_step=height,
                                          b_step=x_rows * x_columns)
    spans = [span(phase.taps[0]) for phase in correlation.phases if phase.taps[0] and phase.taps[1]] or [(0, 0)]
    lowest, highest = min(low for low, _ in spans), max(high for _, high in spans)
    phase_rows = max(phase.extent[0] for phase in correlation.phases)
    strips = _strips(correlation, k_chunk, k_chunks, phase_rows, highest - lowest, size)
    strip_rows = ceil_div(phase_rows, strips)
    strips = ceil_div(phase_rows, strip_rows)
    band_rows = max(1, int(cache_bytes()[1] * T_SHARE) // (k_chunk * taps * x_columns * size))
    band_rows = ceil_div(x_rows, ceil_div(x_rows, band_rows))
    t_pitch = round_up(band_rows * x_columns, lanes) + 2 * width
    panel_elements = correlation.c * (tile_fields["tiles_full"] + tile_fields["tiles_short"]) * height
    elements = [strip_rows * phase.extent[1] for phase in correlation.phases]
    starts, worker = places(lanes, t=k_chunk * taps * t_pitch + width, sums=k_chunk * sum(elements) + lanes)
    tasks = correlation.batch * correlation.groups * strips * k_chunks
    shared = dict(
        groups=correlation.groups, c=correlation.c, k=correlation.k, x_rows=x_rows, x_columns=x_columns,
        y_rows=correlation.y_size[0], y_columns=correlation.y_size[1], w_group=correlation.w_steps[0],
        w_k=correlation.w_steps[1], w_c=correlation.w_steps[2], taps=taps, k_chunk=k_chunk, k_chunks=k_chunks,
        strips=strips, strip_rows=strip_rows, lowest=lowest, highest=highest, band_rows=band_rows, width=width,
        lanes=lanes, panel_elements=panel_elements, t_pitch=t_pitch, **starts, **tile_fields)
    geometry = np.zeros(len(correlation.phases), GEOMETRY)
    lists, at = [], 0
    for record, phase, place in zip(geometry, correlation.phases, np.cumsum([0, *elements])):
        found = _tap_list(correlation, phase)
        fill(record, dict(
            shared, start_row=phase.start[0], start_column=phase.start[1], step_row=phase.step[0],
            step_column=phase.step[1], rows=phase.extent[0], columns=phase.extent[1], phase_taps=len(found),
            taps_start=at, phase_start=k_chunk * place, phase_elements=strip_rows * phase.extent[1]))
        lists += found
        at += len(found)
    geometry["tasks"][0] = tasks
    table = offset_table(np.arange(correlation.c, dtype=np.int64) * height * size,
                         np.arange(correlation.c, dtype=np.int64) * x_rows * x_columns * size)
    return Plan(geometry, table, np.array(lists, np.int64).reshape(-1, TAP_FIELDS), tiles,
                round_up(correlation.groups * k_chunks * panel_elements, 16), round_up(worker, 16), tasks)


def _strips(correlation, k_chunk, k_chunks, phase_rows, halo, size):
    """Strips of output rows: their sums within a share of L2, and enough tasks where the halo allows it."""
    row_bytes = k_chunk * sum(phase.extent[1] for phase in correlation.phases) * size
    strips = ceil_div(phase_rows, max(1, int(cache_bytes()[1] * SUMS_SHARE) // row_bytes))
    wanted = ceil_div(ENOUGH_TASKS, max(1, correlation.batch * correlation.groups * k_chunks))
    return min(phase_rows, max(strips, min(wanted, ceil_div(phase_rows, 8 * halo + 1))))


def _tap_list(correlation, phase):
    found = []
    for r, row in phase.taps[0]:
        for s, column in phase.taps[1]:
            first = min(phase.extent[1], max(0, -column))
            last = max(first, min(phase.extent[1], correlation.x_size[1] - column))
            found.append((r * correlation.filter_columns + s, row, column, first, last))
    return found


@device_function
def _pack_channels(scratch, w, g, lists, unit):
    """Filters of some input channels of one group: for each tile their steps, each of ``tile_rows`` (k, t)."""
    like, size = w.dtype.type(0), w.itemsize
    group, first_c = unit % g.groups, unit // g.groups * CHANNELS_A_UNIT
    channels = min(CHANNELS_A_UNIT, g.c - first_c)
    for chunk in range(g.k_chunks):
        first_k = chunk * g.k_chunk
        rows = min(g.k_chunk, g.k - first_k) * g.taps
        panel = address(scratch) + (group * g.k_chunks + chunk) * g.panel_elements * size
        for tile in range(g.tiles_full + g.tiles_short):
            first = tile_start(g, tile)
            k, t = first_k + first // g.taps, first % g.taps
            for i in range(g.tile_rows):
                out = panel + ((tile * g.c + first_c) * g.tile_rows + i) * size
                if first + i < rows:
                    source = address(w) + (group * g.w_group + k * g.w_k + first_c * g.w_c + lists[t, 0]) * size
                    move_run(like, out, g.tile_rows, source, g.w_c, channels)
                else:
                    move_run(like, out, g.tile_rows, panel, 0, channels)  # of a row that is not used: any number
                t += 1
                if t == g.taps:
                    k, t = k + 1, 0


@device_function
def _multiply_band(g, panel, table, plane, t, first_row, rows, size):
    """T of some rows of x, from address ``t`` on."""
    pixels = rows * g.x_columns
    row = g.t_pitch * size
    before = first_row * g.x_columns
    for tile in range(g.tiles_full + g.tiles_short):
        full = tile < g.tiles_full
        a = panel + tile * g.c * g.tile_rows * size
        out = t + tile_start(g, tile) * row
        for i in range(0, pixels, g.width):
            pixel = min(i, pixels - g.width)  # not past the last pixel of x, nor before the first
            pixel = max(pixel, -before)
            call_tile(g.tile if full else g.tile_short, (
                a, plane + (before + pixel) * size, table, g.c, out + pixel * size, row, np.int64(0)))


@device_function
def _add_band(like, size, g, phase, lists, t, sums, count, first_out, last_out, first_row, rows):
    """Adds a band of T to the sums of one phase, rows ``first_out`` to ``last_out``."""
    for tap in range(phase.taps_start, phase.taps_start + phase.phase_taps):
        low = max(first_out, first_row - lists[tap, 1])
        high = min(min(last_out, phase.rows), first_row + rows - lists[tap, 1])
        if high > low:
            source = t + ((low + lists[tap, 1] - first_row) * g.x_columns + lists[tap, 2] + lists[tap, 3]) * size
            out = sums + (phase.phase_start + (low - first_out) * phase.columns + lists[tap, 3]) * size
            for k in range(count):
                add_window(like, out + k * phase.phase_elements * size, phase.columns * size,
                           source + (k * g.taps + tap) * g.t_pitch * size, g.x_columns * size, high - low,
                           lists[tap, 4] - lists[tap, 3])


@device_function
def _store_phase(like, size, y, phase, sums, plane, first_out, last_out, count):
    """Sums of one phase into ``count`` planes of y."""
    for k in range(count):
        for i in range(first_out, min(last_out, phase.rows)):
            source = sums + (phase.phase_start + k * phase.phase_elements + (i - first_out) * phase.columns) * size
            row = plane + k * phase.y_rows + phase.start_row + i * phase.step_row
            out = address(y) + (row * phase.y_columns + phase.start_column) * size
            if phase.step_column == 1:
                copy_run(like, out, source, phase.columns)
            else:
                move_run(like, out, phase.step_column, source, 1, phase.columns)


@device_function
def _correlate_task(y, x, bias, geometry, table, lists, scratch, start, task):
    g = geometry[0]
    like, size = x.dtype.type(0), x.itemsize
    chunk = task % g.k_chunks
    strip = task // g.k_chunks % g.strips
    group = task // (g.k_chunks * g.strips) % g.groups
    image = task // (g.k_chunks * g.strips * g.groups)
    first_k = chunk * g.k_chunk
    count = min(g.k_chunk, g.k - first_k)
    first_out = strip * g.strip_rows
    last_out = first_out + g.strip_rows
    t = address(scratch) + (start + g.t_start + g.width) * size
    sums = address(scratch) + (start + g.sums_start) * size
    for phase in range(len(geometry)):
        place, elements = sums + geometry[phase].phase_start * size, geometry[phase].phase_elements
        if bias.size > 0:
            for k in range(count):
                fill_run(place + k * elements * size, bias[group * g.k + first_k + k], elements)
        else:
            clear_run(like, place, count * elements)
    first_row, last_row = max(0, first_out + g.lowest), min(g.x_rows, last_out + g.highest)
    plane = address(x) + (image * g.groups + group) * g.c * g.x_rows * g.x_columns * size
    panel = address(scratch) + (group * g.k_chunks + chunk) * g.panel_elements * size
    for row in range(first_row, last_row, g.band_rows):
        rows = min(g.band_rows, last_row - row)
        _multiply_band(g, panel, address(table), plane, t, row, rows, size)
        for phase in range(len(geometry)):
            _add_band(like, size, g, geometry[phase], lists, t, sums, count, first_out, last_out, row, rows)
    for phase in range(len(geometry)):
        _store_phase(like, size, y, geometry[phase], sums,
                     ((image * g.groups + group) * g.k + first_k) * g.y_rows, first_out, last_out, count)


@kernel
def correlate(y, x, w, bias, geometry, table, lists, scratch, worker_start, worker_elements, workers):
    """y, x: NCHW; w: filters; bias: (K,) or empty; scratch: the plan's size."""
    if geometry[0].kept == 0:
        for unit in numba.prange(geometry[0].groups * ((geometry[0].c + CHANNELS_A_UNIT - 1) // CHANNELS_A_UNIT)):
            _pack_channels(scratch, w, geometry[0], lists, np.int64(unit))
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _correlate_task(y, x, bias, geometry, table, lists, scratch,
                            worker_start + np.int64(worker) * worker_elements, task)
            task = take(taken, np.int64(worker), geometry[0].tasks)
