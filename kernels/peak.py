"""What the machine can do, measured: multiply-adds of the micro-kernel alone, and the triad from memory."""

import numba
import numpy as np

from .blocking import most_rows
from .jit import kernel
from .simd import Tile, address, call_tile, compile_tile, vector_unit

STEPS = 1024  # of the reduction, so that entering and leaving the tile does not count
RESIDENT = 64  # steps' worth of operands, read again and again from L1
REPEATS = 128  # tiles a call and worker: about two milliseconds


@kernel
def multiply_add(c, a, b, table, entry, repeats):
    """c: (workers, rows, width); a: (workers, rows, RESIDENT); b: (workers, RESIDENT, width); one tile each."""
    for worker in numba.prange(c.shape[0]):
        arguments = (address(a[worker]), address(b[worker]), address(table), table.shape[0], address(c[worker]),
                     c.strides[1], np.int64(0))
        for _ in range(repeats):
            call_tile(entry, arguments)


@kernel
def triad(a, b, c, scale):
    """a, b, c: (workers, elements); ``a = b + scale * c``, as the STREAM benchmark has it."""
    for worker in numba.prange(a.shape[0]):
        for i in range(a.shape[1]):
            a[worker, i] = b[worker, i] + scale * c[worker, i]


def multiply_add_call(workers, dtype):
    """``(call, multiply-adds a call)`` on ``workers`` threads, operands in registers and L1; it returns the sums."""
    tile = Tile(dtype, most_rows(2), 2, RESIDENT)
    lanes = vector_unit().lanes(dtype)
    size = np.dtype(dtype).itemsize
    a = np.full((workers, tile.rows, RESIDENT), 0.5, dtype)
    b = np.full((workers, RESIDENT, 2 * lanes), 0.5, dtype)
    c = np.zeros((workers, tile.rows, 2 * lanes), dtype)
    step = np.arange(STEPS) % RESIDENT * size
    table = np.stack([step, step * 2 * lanes], axis=1).astype(np.int32)
    compiled = compile_tile(tile)

    def call():
        multiply_add(c, a, b, table, compiled.address, REPEATS)  # the closure keeps the compiled tile alive
        return c

    return call, workers * tile.rows * 2 * lanes * STEPS * REPEATS


def triad_call(workers, bytes_an_array):
    """``(call, bytes a call)``: two arrays read and one written; the fetch of the written one does not count."""
    elements = bytes_an_array // 4 // workers
    a, b, c = (np.ones((workers, elements), np.float32) for _ in range(3))
    scale = np.float32(0.5)

    def call():
        triad(a, b, c, scale)
        return a

    return call, 3 * 4 * elements * workers
