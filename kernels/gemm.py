"""Matrix product for linear layers: ``C[m, n] = sum over t of A[m, t] * B[t, n] (+ bias[n])``, any of A, B transposed.

Rows m are in the rows of the micro-kernel, columns n in its lanes. A task is a run of rows by one block of columns:
it packs its block of B as the micro-kernel reads it, a slice of the reduction at a time, so that the slice stays in
L1. OpenBLAS is not called: its thread pool and Numba's stall each other for milliseconds when they alternate.
"""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numba
import numpy as np

from . import gemm_few
from .blocking import (
    ENOUGH_TASKS,
    ceil_div,
    cover_rows,
    divide,
    fill,
    geometry_type,
    offset_table,
    reduction_block,
    round_up,
)
from .jit import device_function, kernel, launch
from .rows import add_window, clear_run, copy_block_ahead, copy_run, prefetch_rows
from .scratch import scratch
from .simd import address, call_tile, compile_tile, transpose_block
from .tasks import no_tasks_taken, take

FETCHED_AHEAD = 8  # steps of B, which may lie pages apart
ROWS_A_TASK = 56  # at least: fewer would spend a tenth of the time packing B
MULTIPLY_ADDS_A_MICROSECOND = 30_000

GEOMETRY = geometry_type(
    "m n steps a_row b_step b_column block width lanes columns rows_full rows_short tile_rows tile tile_short "
    "chunks tasks sums_start")


class Product(NamedTuple):
    """Sizes of C = A B and how A and B lie in memory, in elements."""

    m: int
    n: int
    steps: int
    a_row: int  # from A[m, t] to A[m + 1, t]
    a_step: int  # from A[m, t] to A[m, t + 1]
    b_step: int
    b_column: int
    dtype: str  # NumPy's name or letter


@dataclass(frozen=True)
class Plan:
    geometry: np.ndarray
    table: np.ndarray
    tiles: tuple
    worker_elements: int
    tasks: int
    twin: object


@functools.lru_cache(maxsize=256)
def plan(product):
    """Blocking for ``product``; every task covers the same rows of tiles."""
    dtype, size = np.dtype(product.dtype).name, np.dtype(product.dtype).itemsize
    chunks = min(max(1, product.m // ROWS_A_TASK), ENOUGH_TASKS)
    cover = cover_rows(ceil_div(product.m, chunks), product.n, product.steps, dtype, product.a_row)
    tile = cover.tile
    # Whole tiles a task: near-equal heights over all rows, then near-equal numbers of tiles.
    height, full, short = divide(product.m, tile.rows)
    tile = replace(tile, rows=height, a_step=product.a_step, b_step=tile.width)
    smaller = replace(tile, rows=height - 1) if short else None
    columns = ceil_div(product.n, tile.width)
    tasks_a_column = min(full + short, chunks, ceil_div(ENOUGH_TASKS, columns))
    block = reduction_block(1, product.steps, tile.width * size, product.a_step * size)
    geometry = np.zeros(1, GEOMETRY)
    rows = ceil_div(full + short, tasks_a_column) * height
    sums_start = round_up(block * tile.width, 16)
    values = dict(m=product.m, n=product.n, steps=product.steps, a_row=product.a_row, b_step=product.b_step,
                  b_column=product.b_column, block=block, width=tile.width, lanes=tile.lanes, columns=columns,
                  rows_full=full, rows_short=short, tile_rows=height, tile=compile_tile(tile).address,
                  tile_short=compile_tile(smaller).address if smaller else 0, chunks=tasks_a_column,
                  tasks=columns * tasks_a_column, sums_start=sums_start)
    fill(geometry[0], values)
    t = np.arange(block, dtype=np.int64) * size
    table = offset_table(t * product.a_step, t * tile.width)
    twin = multiply.twin(product.m * product.n * product.steps / MULTIPLY_ADDS_A_MICROSECOND)
    return Plan(geometry, table, (compile_tile(tile), smaller and compile_tile(smaller)),
                round_up(sums_start + rows * tile.width, 16), columns * tasks_a_column, twin)


@device_function
def _pack_block(panel, b, g, first_step, steps, first_column, valid):
    """Steps ``first_step ...`` of one block of columns as (steps, width), zero where there is no column."""
    size = b.itemsize
    flat = b.reshape(-1)
    if g.b_step == 1 and steps >= g.lanes:
        for v in range(0, g.width, g.lanes):
            count = min(g.lanes, valid - v)
            for i in range(0, steps, g.lanes):
                if count <= 0:
                    break
                step = min(i, steps - g.lanes)
                source = (first_column + v) * g.b_column + first_step + step
                transpose_block(b, (address(b) + size * source, g.b_column * size, count,
                                    address(panel) + size * (step * g.width + v), g.width * size, g.lanes,
                                    np.int64(0)))
        return
    if g.b_column == 1:
        like = b.dtype.type(0)
        source, out = address(b) + (first_step * g.b_step + first_column) * size, address(panel)
        if valid == g.width:
            copy_block_ahead(like, out, g.width * size, source, g.b_step * size, steps, g.width // g.lanes,
                             FETCHED_AHEAD * g.b_step * size)
            return
        for _ in range(steps):
            prefetch_rows(source + FETCHED_AHEAD * g.b_step * size, np.int64(64), valid * size // 64)
            copy_run(like, out, source, valid)
            clear_run(like, out + valid * size, g.width - valid)
            source += g.b_step * size
            out += g.width * size
        return
    for step in range(steps):
        source = (first_step + step) * g.b_step + first_column * g.b_column
        for lane in range(valid):
            panel[step * g.width + lane] = flat[source + lane * g.b_column]
        for lane in range(valid, g.width):
            panel[step * g.width + lane] = 0


@device_function
def _multiply_tiles(g, a, a_step, panel, table, steps, out, out_row, first_tile, last_tile, accumulate, size):
    for tile in range(first_tile, last_tile):
        short = tile >= g.rows_full
        rows = g.tile_rows - 1 if short else g.tile_rows
        call_tile(g.tile_short if short else g.tile, (a, panel, table, steps, out, out_row, accumulate))
        a += rows * g.a_row * size
        out += rows * out_row


@device_function
def _multiply_task(c, a, b, bias, g, a_step, table, buffer, start, task):
    size = c.itemsize
    column = task // g.chunks * g.width
    chunk = task % g.chunks
    tiles = g.rows_full + g.rows_short
    first_tile, last_tile = tiles * chunk // g.chunks, tiles * (chunk + 1) // g.chunks
    first_row = first_tile * g.tile_rows - max(0, first_tile - g.rows_full)
    last_row = last_tile * g.tile_rows - max(0, last_tile - g.rows_full)
    valid = min(g.width, g.n - column)
    whole = valid == g.width
    panel = buffer[start:]
    sums = start + g.sums_start
    out, out_row = address(buffer) + sums * size, g.width * size
    if whole:
        out, out_row = address(c) + (first_row * g.n + column) * size, g.n * size
    for first in range(0, g.steps, g.block):
        steps = min(g.block, g.steps - first)
        _pack_block(panel, b, g, first, steps, column, valid)
        _multiply_tiles(g, address(a) + (first_row * g.a_row + first * a_step) * size, a_step, address(panel),
                        address(table), steps, out, out_row, first_tile, last_tile, np.int64(first > 0), size)
    if whole:
        if bias.size > 0:
            add_window(c.dtype.type(0), out, out_row, address(bias) + column * size, np.int64(0), last_row - first_row,
                       valid)
        return
    for row in range(first_row, last_row):
        for lane in range(valid):
            total = buffer[sums + (row - first_row) * g.width + lane]
            c[row, column + lane] = total + bias[column + lane] if bias.size > 0 else total


@kernel
def multiply(c, a, b, bias, geometry, a_step, table, buffer, worker_elements, workers):
    """c: (M, N); a, b: contiguous matrices as the plan's strides say; bias: (N,) or empty."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), geometry[0].tasks)
        while task >= 0:
            _multiply_task(c, a, b, bias, geometry[0], a_step, table, buffer, np.int64(worker) * worker_elements,
                           task)
            task = take(taken, np.int64(worker), geometry[0].tasks)


def bound(c, a, b, bias, product, scratch_of=scratch):
    """``(kernel, arguments)`` that write A B (+ bias) into ``c``; ``bias`` is an array, empty for none.

    ``scratch_of(elements, dtype)`` gives the scratch: for a call that is kept, memory of its own.
    """
    if gemm_few.supports(product):
        return gemm_few.bound(c, a, b, bias, product, scratch_of)
    found = plan(product)
    workers = max(1, min(launch.threads, found.tasks))
    return found.twin, (c, a, b, bias, found.geometry, product.a_step, found.table,
                        scratch_of(workers * found.worker_elements, c.dtype), found.worker_elements, workers)


def run(c, a, b, bias, product):
    """Write A B (+ bias) into ``c``; ``bias`` is None or (N,)."""
    if product.steps == 0:
        c.fill(0)
        return
    twin, arguments = bound(c, a, b, np.empty(0, c.dtype) if bias is None else bias, product)
    twin(*arguments)
