"""Bias gradient: ``db[k] = sum over n, i, j of dy[n, k, i, j]``."""

import math

import numba
import numpy as np

from .jit import kernel
from .reductions import sum_of

CHUNKS = 32  # of NHWC rows, each with sums of its own: fixed, so that the order of addition is


@kernel
def bias_gradient_nchw(db, dy):
    """db: (K,); dy: (N, K, pixels). Planes are added in float64, in order."""
    for k in numba.prange(dy.shape[1]):
        total = 0.0
        for n in range(dy.shape[0]):
            total += sum_of(dy.dtype.type(0), dy[n, k])
        db[k] = total


@kernel
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
