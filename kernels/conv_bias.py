"""Bias gradient: ``db[k] = sum over n, i, j of dy[n, k, i, j]``.

Where the bias is added before a max-pool, dy is the pool's gradient, each of whose numbers comes from one window or is
0: the same sum is taken over the windows, which are fewer, but for those that gave their gradient to no pixel.
"""

import math

import numba
import numpy as np

from .jit import device_function, kernel
from .reductions import column_sums_where_not, sum_of, sum_where_not
from .rows import mean_of_cells
from .simd import address

CHUNKS = 32  # of images or NHWC rows, each with sums of its own: fixed, so that the order of addition is


@kernel
def bias_gradient_nchw(db, dy, partial):
    """db: (K,); dy: (N, K, pixels), read as it lies; partial: (CHUNKS, K) of zeros, in float64 as planes are many."""
    images, channels = dy.shape[:2]
    chunks = min(images, CHUNKS)
    parts = CHUNKS // max(1, chunks)  # of the channels, where there are few images
    for task in numba.prange(chunks * parts):
        chunk, part = task // parts, task % parts
        for n in range(images * chunk // chunks, images * (chunk + 1) // chunks):
            for k in range(channels * part // parts, channels * (part + 1) // parts):
                partial[chunk, k] += sum_of(dy.dtype.type(0), dy[n, k])
    _add_chunks(db, partial)


@kernel
def bias_gradient_nhwc(db, dy, partial):
    """db: (K,); dy: (rows, K); partial: (CHUNKS, K)."""
    rows, pitch = dy.shape[0], dy.shape[1] * dy.itemsize
    for chunk in numba.prange(CHUNKS):
        first, last = rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS
        mean_of_cells(address(partial) + chunk * pitch, dy.dtype.type(1), address(dy) + first * pitch, np.int64(0),
                      np.int64(1), pitch, last - first, dy.shape[1])
    _add_chunks(db, partial)


@kernel
def pooled_bias_gradient_nchw(db, dy, where, nowhere, partial):
    """:func:`bias_gradient_nchw` of windows; where: (N, K, windows), ``nowhere`` for those that are passed over."""
    images, channels = dy.shape[:2]
    for chunk in numba.prange(CHUNKS):
        for n in range(images * chunk // CHUNKS, images * (chunk + 1) // CHUNKS):
            for k in range(channels):
                partial[chunk, k] += sum_where_not(dy.dtype.type(0), dy[n, k], where[n, k], nowhere)
    _add_chunks(db, partial)


@kernel
def pooled_bias_gradient_nhwc(db, dy, where, nowhere, partial):
    """:func:`bias_gradient_nhwc` of windows; where: (rows, K), ``nowhere`` for those that are passed over."""
    rows, pitch = dy.shape[0], dy.shape[1] * dy.itemsize
    for chunk in numba.prange(CHUNKS):
        first, last = rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS
        column_sums_where_not(dy.dtype.type(0), address(partial) + chunk * pitch, address(dy) + first * pitch,
                              address(where) + first * dy.shape[1] * where.itemsize, nowhere, last - first, dy.shape[1])
    _add_chunks(db, partial)


@device_function
def _add_chunks(db, partial):
    for k in range(db.size):
        total = 0.0
        for chunk in range(CHUNKS):
            total += partial[chunk, k]
        db[k] = total


def bias_gradient(dy, channels_last):
    """db (K,) of ``dy``, whose channels are axis 1, or the last one; a matrix is (N, K)."""
    run = bias_gradient_nhwc if channels_last else bias_gradient_nchw
    return _summed(run, dy, channels_last)


def pooled_bias_gradient(dy, where, nowhere, channels_last):
    """db (K,) of what a max-pool gives ``dy`` to, (N, K, P, Q) or (N, P, Q, K), all but where ``where`` is ``nowhere``.
    """
    run = pooled_bias_gradient_nhwc if channels_last else pooled_bias_gradient_nchw
    return _summed(run, dy, channels_last, where, where.dtype.type(nowhere))


def _summed(run, dy, channels_last, where=None, *nowhere):
    channels = dy.shape[-1 if channels_last else 1]
    db = np.empty(channels, dy.dtype)
    if channels_last:
        shape, sums = (math.prod(dy.shape[:-1]), channels), dy.dtype
    else:
        shape, sums = (len(dy), channels, math.prod(dy.shape[2:])), np.float64
    marks = () if where is None else (where.reshape(shape), *nowhere)
    run.twin(dy.size / 4000)(db, dy.reshape(shape), *marks, np.zeros((CHUNKS, channels), sums))
    return db
