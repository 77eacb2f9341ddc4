"""Bias gradient: ``db[k] = sum over n, i, j of dy[n, k, i, j]``."""

import math

import numba
import numpy as np

from .jit import device_function, kernel
from .reductions import sum_of

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
    """db: (K,); dy: (rows, K); partial: (CHUNKS, K) of zeros."""
    rows = dy.shape[0]
    for chunk in numba.prange(CHUNKS):
        mine = partial[chunk]
        for row in range(rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS):
            for k in range(dy.shape[1]):
                mine[k] += dy[row, k]
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
    channels = dy.shape[-1 if channels_last else 1]
    db = np.empty(channels, dy.dtype)
    if channels_last:
        run, shape, sums = bias_gradient_nhwc, (math.prod(dy.shape[:-1]), channels), dy.dtype
    else:
        run, shape, sums = bias_gradient_nchw, (len(dy), channels, math.prod(dy.shape[2:])), np.float64
    run.twin(dy.size / 4000)(db, dy.reshape(shape), np.zeros((CHUNKS, channels), sums))
    return db
