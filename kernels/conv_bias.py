"""Bias gradient: ``db[k] = sum over n, i, j of dy[n, k, i, j]``.

Without fast-math: the serial and the parallel twin are compiled apart, and only a written order gives the same bits.
"""

import math

import numba
import numpy as np

from .jit import kernel
from .simd import address, sum_run

CHUNKS = 32  # of NHWC rows, each with sums of its own: fixed, so that the order of addition is


@kernel(fastmath=False)
def bias_gradient_nchw(db, dy):
    """db: (K,); dy: (N, K, pixels). Planes are added in float64, in order."""
    pixels = dy.shape[2]
    for k in numba.prange(dy.shape[1]):
        total = 0.0
        for n in range(dy.shape[0]):
            plane = address(dy) + dy.itemsize * pixels * (n * dy.shape[1] + k)
            total += sum_run(dy.dtype.type(0), plane, pixels)
        db[k] = total


@kernel(fastmath=False)
def bias_gradient_nhwc(db, dy, partial):
    """db: (K,); dy: (rows, K); partial: (CHUNKS, K)."""
    rows = dy.shape[0]
    for chunk in numba.prange(CHUNKS):
        mine = partial[chunk]
        mine[:] = 0
        for row in range(rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS):
            for k in range(dy.shape[1]):
                mine[k] += dy[row, k]
    for k in range(dy.shape[1]):
        total = 0.0
        for chunk in range(CHUNKS):
            total += partial[chunk, k]
        db[k] = total


def bias_gradient(dy, channels_last):
    """db (K,) of ``dy``, whose channels are axis 1, or the last one; a matrix is (N, K)."""
    microseconds = dy.size / 4000
    channels = dy.shape[-1 if channels_last else 1]
    db = np.empty(channels, dy.dtype)
    if channels_last:
        rows = dy.reshape(math.prod(dy.shape[:-1]), channels)
        bias_gradient_nhwc.twin(microseconds)(db, rows, np.empty((CHUNKS, channels), dy.dtype))
    else:
        planes = dy.reshape(len(dy), channels, math.prod(dy.shape[2:]))
        bias_gradient_nchw.twin(microseconds)(db, planes)
    return db
