"""Matrix product for a linear layer on few samples: ``C[m, n] = sum over t of A[m, t] * B[n, t] (+ bias[n])``.

The features are in the lanes, so that B is read once, as it lies; to pack it would take longer than the product.
A task is a tile: a few rows of B by all rows of A.
"""

import functools

import numba
import numpy as np

from .blocking import divide, fill, geometry_type, rows_held
from .dot_tile import DotTile, compile_dot_tile, most_dot_rows
from .jit import device_function, kernel, launch
from .rows import clear_run
from .simd import address, call_tile, sum_lanes, vector_unit
from .tasks import no_tasks_taken, take

MOST_SAMPLES = 4
MOST_ROWS = 8  # of B in a tile: streams that the hardware follows
BYTES_A_MICROSECOND = 20_000  # that one core reads of B

GEOMETRY = geometry_type("m n steps lanes rows full tile tile_short tasks worker_elements")


def supports(product):
    """Whether there are few rows of A, and both operands lie along the reduction, at least a vector long."""
    contiguous = product.a_step == 1 and product.b_step == 1
    return product.m <= MOST_SAMPLES and contiguous and product.steps >= vector_unit().lanes(product.dtype)


@functools.lru_cache(maxsize=256)
def plan(product):
    """(geometry, tiles, twin) for ``product``."""
    dtype, size = np.dtype(product.dtype).name, np.dtype(product.dtype).itemsize
    lanes = vector_unit().lanes(dtype)
    most = min(MOST_ROWS, most_dot_rows(product.m), rows_held(product.b_column * size))
    height, full, short = divide(product.n, most)
    offsets = tuple(m * product.a_row for m in range(product.m))
    tiles = [compile_dot_tile(DotTile(dtype, rows, product.b_column, offsets, 0, 0, product.m, False))
             for rows in (height, height - bool(short))]
    geometry = np.zeros(1, GEOMETRY)
    fill(geometry[0], dict(m=product.m, n=product.n, steps=product.steps, lanes=lanes, rows=height, full=full,
                           tile=tiles[0].address, tile_short=tiles[1].address, tasks=full + short,
                           worker_elements=height * product.m * lanes))
    return geometry, tiles, multiply.twin(product.n * product.steps * size / BYTES_A_MICROSECOND)


@device_function
def _multiply_task(c, a, b, bias, g, buffer, start, task):
    like, size = c.dtype.type(0), c.itemsize
    first = task * g.rows - max(0, task - g.full)
    rows = g.rows if task < g.full else g.rows - 1
    sums = address(buffer) + start * size
    clear_run(like, sums, rows * g.m * g.lanes)
    call_tile(g.tile if task < g.full else g.tile_short, (
        address(b) + first * g.steps * size, address(a), g.steps // g.lanes, g.steps % g.lanes, np.int64(1), sums))
    for i in range(rows):
        addend = bias[first + i] if bias.size > 0 else like
        for m in range(g.m):
            c[m, first + i] = sum_lanes(like, sums + (i * g.m + m) * g.lanes * size) + addend


@kernel
def multiply(c, a, b, bias, geometry, buffer, workers):
    """c: (M, N); a: (M, T); b: (N, T); all contiguous; bias: (N,) or empty."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        g = geometry[0]
        task = take(taken, np.int64(worker), g.tasks)
        while task >= 0:
            _multiply_task(c, a, b, bias, g, buffer, np.int64(worker) * g.worker_elements, task)
            task = take(taken, np.int64(worker), g.tasks)


def bound(c, a, b, bias, product, scratch_of):
    """``(kernel, arguments)`` as :func:`.gemm.bound` gives them."""
    geometry, _, twin = plan(product)
    workers = max(1, min(launch.threads, int(geometry["tasks"][0])))
    return twin, (c, a, b, bias, geometry, scratch_of(workers * int(geometry["worker_elements"][0]), c.dtype), workers)
