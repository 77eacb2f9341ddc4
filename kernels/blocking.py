"""Blocking: which register tile, which blocks for L1 and L2, how many tasks. All from the machine's own numbers."""

import functools
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .simd import LINE_BYTES, SPARE_LOADS, Tile, compile_tile, vector_unit

IDLE_TASKS = 0.6  # that a core waits for at the end: cores are not equally quick
ENOUGH_TASKS = 64  # independent tasks to aim for: fixed, since results must not depend on the thread count
SMALLEST_TASK = 1 << 17  # vector multiply-adds below which splitting costs more than it gains
NO_TABLE = np.zeros((0, 2), np.int32)  # for tiles whose offsets grow by a constant
LARGEST_OFFSET = np.iinfo(np.int32).max  # bytes, in a table of offsets
LAST_CACHE_BYTES = 12 << 20  # tensors of more are taken to come from memory
DISTANT_CYCLES = 2.0  # an element that a tile reads from memory where it lies, few lines of each page at a time
PAGE_BYTES = 4096  # what hardware prefetches stay within, and what the sets of L1 span
STRADDLING = 0.75  # of the vectors at any address lie on two cache lines and take two loads
FMA_LATENCY = 8  # accumulators that keep the multiply-add units busy
TABLE_LOADS, LOOP_INSTRUCTIONS = 2, 4  # of a step, for offsets, and to go on
ISSUED = 1.85  # instructions a cycle of one multiply-add unit, on a core that two threads share
LOAD_CYCLES, WIDE_LOAD_CYCLES = 1.3, 1.0  # a load in a tile's loop, beside multiply-adds, and those of 512 bits
TILE_OVERHEAD = 40  # cycles to enter and leave a tile, beside loading and storing its accumulators


@functools.cache
def cache_bytes():
    """Bytes of one core's L1 data cache and L2 cache; common sizes where the system does not tell."""
    sizes = {"1": 32 << 10, "2": 1 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind = ((index / name).read_text().strip() for name in ("level", "type"))
            if level in sizes and kind != "Instruction":
                sizes[level] = int((index / "size").read_text().strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return sizes["1"], sizes["2"]


def cores():
    """CPUs that this process may use. Plans may ask where the results do not depend on it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def enough_tasks():
    """Tasks to aim for where each repeats some work, and none changes the results: enough for this machine's cores."""
    return min(ENOUGH_TASKS, 8 * cores())


def idle_share(tasks):
    """About how much longer that many equal tasks take this machine's cores than if none ever waited for another."""
    return ceil_div(tasks, cores()) * cores() / tasks - 1 + IDLE_TASKS * (min(tasks, cores()) - 1) / tasks


def shortage(tasks):
    """How many times as long this machine's cores take for want of tasks."""
    return max(1, cores() / tasks)


def geometry_type(names):
    """Record of int64 fields: what a driver gets to know of a plan, in one argument."""
    return np.dtype([(name, np.int64) for name in names.split()])


def fill(record, values):
    """Set fields of a geometry record; the others stay zero."""
    for name, value in values.items():
        record[name] = value


def places(alignment, **sizes):
    """Where parts of the scratch begin, as ``{name_start: elements}``, and where the last one ends."""
    starts, at = {}, 0
    for name, elements in sizes.items():
        starts[f"{name}_start"] = at
        at = round_up(at + elements, alignment)
    return starts, at


def ceil_div(a, b):
    return -(-a // b)


def round_up(a, b):
    return ceil_div(a, b) * b


class Cover(NamedTuple):
    """A tile and how copies of it, and of a tile one row shorter, cover ``length`` rows."""

    tile: Tile
    full: int
    short: int
    cycles: float


def most_rows(vectors):
    """Rows of a tile that stays in registers: accumulators, a row of B, a broadcast and, without FMA, a product."""
    unit = vector_unit()
    return (unit.registers - vectors - (1 if unit.fma else 2)) // vectors


def lines_held():
    """Lines at addresses that share a set of L1, of which it holds all beside a stream."""
    return max(2, cache_bytes()[0] // PAGE_BYTES) - 1  # its sets span a page


def sharing(places):
    """The most lines at these places, in bytes, that share a set of L1."""
    lines = {place // LINE_BYTES for place in places}
    return max(Counter(line % (PAGE_BYTES // LINE_BYTES) for line in lines).values())


def rows_held(pitch):
    """Rows ``pitch`` bytes apart of which L1 can hold a line each."""
    shared = PAGE_BYTES // math.gcd(pitch, PAGE_BYTES)
    return lines_held() * shared if pitch >= LINE_BYTES else PAGE_BYTES


def divide(length, most):
    """Near-equal parts of at most ``most``: ``(size, how many of size, how many of size - 1)``."""
    parts = ceil_div(length, most)
    size = ceil_div(length, parts)
    short = parts * size - length
    return size, parts - short, short


def load_cycles():
    """What a load costs beside multiply-adds that take a cycle each."""
    return WIDE_LOAD_CYCLES if vector_unit().bits >= 512 else LOAD_CYCLES


def tile_cost(rows, vectors, steps, loads_a_vector=1):
    """Cycles for one tile over ``steps`` reduction steps, on a core with one multiply-add unit.

    A step loads a scalar a row, and vectors.
    """
    if rows * vectors == 0:
        return 0
    loads = rows + vectors * loads_a_vector
    return steps * max(rows * vectors, FMA_LATENCY, loads * load_cycles()) + 2 * rows * vectors + TILE_OVERHEAD


def room_to_fetch(rows, vectors, lines=1, loads_a_vector=1):
    """Whether a tile's loop has room to fetch so many cache lines a step."""
    loads = rows + vectors * loads_a_vector + lines
    return loads * load_cycles() < SPARE_LOADS * rows * vectors


def table_tile_cost(rows, vectors, steps):
    """The same where a table lists what each step reads: multiply-adds then load no scalars themselves."""
    loads = rows + vectors + TABLE_LOADS
    issued = steps * (rows * vectors + loads + LOOP_INSTRUCTIONS) / ISSUED if vector_unit().bits >= 512 else 0
    return max(tile_cost(rows, vectors, steps, 1 + TABLE_LOADS / vectors), issued)


def unaligned_tile_cost(rows, vectors, steps):
    """The same where vectors of B lie at any address."""
    return tile_cost(rows, vectors, steps, 1 + STRADDLING)


def reading_cycles(images, channels, pixels, dtype):
    """Of one image, beyond the multiply-adds: a tile that takes a few pixels of every channel of planes in memory."""
    size = np.dtype(dtype).itemsize
    distant = pixels * size > PAGE_BYTES and images * channels * pixels * size > LAST_CACHE_BYTES
    return channels * pixels * DISTANT_CYCLES if distant else 0


def cover_image(height, width, channels, steps, dtype, row_step, group_step):
    """The cheapest tile for an image of ``height`` x ``width`` pixels in the rows, ``channels`` in the lanes.

    A tile's rows divide an image row where they can, so that no pixel is computed twice; where image rows are
    short a tile takes several.
    """
    best = None
    lanes = vector_unit().lanes(dtype)
    for vectors in range(1, 5):
        blocks = ceil_div(channels, vectors * lanes)
        if vectors > 1 and (blocks - 1) * vectors * lanes + lanes * (vectors - 1) >= channels:
            continue  # its last vector would hold nothing but padding
        most = most_rows(vectors)
        rows, full, short = divide(width, most)
        groups = min(most // width, height) if width <= most else 1
        groups = max(1, groups)
        cost = blocks * (height / groups) * (full * table_tile_cost(groups * rows, vectors, steps)
                                             + short * table_tile_cost(groups * (rows - 1), vectors, steps))
        tile = Tile(dtype, rows, vectors, row_step, groups, group_step if groups > 1 else 0)
        if best is None or cost < best.cycles:
            best = Cover(tile, full, short, cost)
    return best


def cover_rows(length, channels, steps, dtype, row_step):
    """The cheapest tile for ``length`` independent rows ``row_step`` elements apart, ``channels`` in the lanes.

    Its rows stay in L1 together until a cache line of each is used up.
    """
    best = None
    lanes = vector_unit().lanes(dtype)
    held = rows_held(row_step * np.dtype(dtype).itemsize)
    for vectors in range(1, 5):
        blocks = ceil_div(channels, vectors * lanes)
        rows, full, short = divide(length, min(most_rows(vectors), held))
        cost = blocks * (full * tile_cost(rows, vectors, steps) + short * tile_cost(rows - 1, vectors, steps))
        if best is None or cost < best.cycles:
            best = Cover(Tile(dtype, rows, vectors, row_step), full, short, cost)
    return best


def even_chunks(units, most):
    """(chunks, units of each but the last): about ``most``, and so that two workers get nearly the same."""
    least = max(1, ceil_div(units, max(1, most)))
    size = min(range(least, least + least // 2 + 1), key=lambda n: ceil_div(ceil_div(units, n), 2) * n)
    return max(1, ceil_div(units, size)), size


def near_equal_tiles(dtype, rows, vectors, row_step, **steps):
    """Near-equal tiles that cover ``rows``: their geometry fields, and the compiled micro-kernels."""
    height, full, short = divide(rows, most_rows(vectors))
    tiles = {high: compile_tile(Tile(dtype, high, vectors, row_step, **steps))
             for high in (height, height - bool(short))}
    fields = dict(tile_rows=height, tiles_full=full, tiles_short=short, tile=tiles[height].address,
                  tile_short=tiles[height - bool(short)].address)
    return fields, tuple(tiles.values())


class PixelShape(NamedTuple):
    """Tiles with output channels in the rows and pixels in the lanes: their size, and how many cover the channels."""

    cycles: float  # of all of them, and of what comes beside
    rows: int
    full: int
    short: int  # a row shorter
    vectors: int


def pixel_shape(dtype, channels, pixels, most_vectors, costs, held=math.inf):
    """The cheapest tiles for output channels by a run of pixels, of ``held`` rows at most.

    ``costs(vectors)`` gives for tiles that wide the cycles of one, as a function of rows and vectors, and those beside.
    """
    best, lanes = None, vector_unit().lanes(dtype)
    for vectors in range(1, min(most_vectors, pixels // lanes) + 1):
        if most_rows(vectors) < 1:
            break
        rows, full, short = divide(channels, min(most_rows(vectors), held))
        whole, rest = divmod(pixels, vectors * lanes)
        tile_cycles, beside = costs(vectors)
        cost = beside + sum(
            tiles * (whole * tile_cycles(height, vectors) + tile_cycles(height, ceil_div(rest, lanes)))
            for tiles, height in ((full, rows), (short, rows - 1)))
        if best is None or cost < best.cycles:
            best = PixelShape(cost, rows, full, short, vectors)
    return best


def pixel_tiles(dtype, shape, pixels, b_step=0, filters=None):
    """The four tiles, full or a row shorter, for whole vectors or the tail of an image: fields and what is compiled.

    ``b_step`` is that of the tiles, 0 where the table lists what they read: then they fetch what the next tile of
    pixels reads, where there is room. ``filters`` are the tiles' ``row_step`` and ``a_step`` where they are not packed.
    """
    row_step, a_step = filters or (1, shape.rows)
    lanes = vector_unit().lanes(dtype)
    width_bytes = shape.vectors * lanes * np.dtype(dtype).itemsize
    fetches = not b_step and room_to_fetch(shape.rows, shape.vectors, width_bytes // LINE_BYTES, 1 + STRADDLING)
    tail = ceil_div(pixels % (shape.vectors * lanes), lanes)
    heights = {"": shape.rows} | ({"_short": shape.rows - 1} if shape.short else {})
    tiles = {name + which: compile_tile(Tile(dtype, rows, vectors, row_step, a_step=a_step, b_step=b_step,
                                             b_ahead=width_bytes * fetches))
             for which, rows in heights.items()
             for name, vectors in (("tile", shape.vectors), ("tail", tail)) if vectors}
    fields = {name: tile.address for name, tile in tiles.items()}
    return dict(fields, width=shape.vectors * lanes, tail_width=tail * lanes, lanes=lanes, tile_rows=shape.rows,
                tiles_full=shape.full, tiles_short=shape.short), tuple(tiles.values())


def reduction_block(steps_a_unit, units, width_bytes, unit_bytes=1):
    """Units of the reduction (channels, say) whose slice of B stays in L1, all blocks nearly equal.

    ``unit_bytes`` is the distance of two units in A, which the offsets of a block must bridge.
    """
    most = max(1, min(int(0.9 * cache_bytes()[0]) // (steps_a_unit * width_bytes), LARGEST_OFFSET // unit_bytes))
    return ceil_div(units, ceil_div(units, most))


def offset_table(a, b):
    """The micro-kernel's table: an int32 (a_offset, b_offset) in bytes for each reduction step."""
    table = np.stack([a, b], axis=1)
    if table.max(initial=0) > LARGEST_OFFSET:
        raise ValueError("the image is too large: the pixels that one output or filter tap reads lie more than "
                         f"{LARGEST_OFFSET} bytes apart")
    return table.astype(np.int32)
