"""Convolution, then max-pool, in one pass: what is convolved stays in L1, and only the pooled output is stored.

For NHWC, and windows that touch each other from the first pixel on. Rows and columns behind the last window are
cropped from the problem, so that nothing of them is computed. The filter gradient takes the gradient of the pooled
output: a task spreads it over the pixels of its own strip, so that no array of all pixels is written here either.
"""

import functools
from dataclasses import replace

import numba
import numpy as np

from . import conv_direct, conv_filter, correlation
from .blocking import round_up
from .jit import device_function, kernel
from .pack_filters import packing_units
from .pool_plan import MOST_UNROLLED
from .pool_tile import largest_pixel, spread_pixel
from .simd import address, vector_unit
from .tasks import no_tasks_taken, take


def supports(problem, layout, dtype, window):
    """None, or why not: layout, groups, a large window, channels that fill no vectors."""
    if layout != "NHWC":
        return "needs layout NHWC"
    if problem.groups > 1:
        return "needs one group"
    if window[0] * window[1] > MOST_UNROLLED:
        return f"needs windows of {MOST_UNROLLED} pixels at most"
    lanes = vector_unit().lanes(dtype)
    if problem.k % lanes:
        return f"needs output channels by {lanes}"
    return None


def cropped(problem, window):
    """The problem without the outputs behind the last window."""
    padding = [(before, after - extent % size * stride) for (before, after), extent, size, stride in zip(
        problem.padding, (problem.p, problem.q), window, problem.stride)]
    return replace(problem, padding=tuple(padding))


def plan(problem, layout, dtype, window):
    """Blocking for :func:`correlate`, or None where tiles cannot store whole pixels."""
    described = correlation.forward(cropped(problem, window), layout, dtype)
    if described.x_size != (problem.h, problem.w):
        return None  # rows that are joined
    found = conv_direct.plan(described, window[0])
    g = found.geometry[0]
    if not g["in_place"]:
        return None
    buffer = int(g["acc_start"] + g["rows_together"] * g["columns"] * problem.k)
    return replace(found, worker_elements=round_up(buffer, 16))


def plan_filter_gradient(problem, layout, dtype, window):
    """Blocking for :func:`filter_gradient`."""
    return conv_filter.plan(cropped(problem, window), layout, dtype, window[0])


@functools.cache
def correlate(window):
    """The kernel ``(y, where, x, w, bias, relu, ...)`` for windows of (rows, columns).

    y (N, P, Q, K): the largest of each window; ``where``: its position, or None; x: (N, H, W, C). ``relu``: 1 for that
    of y. The rest is the plan's.
    """
    height, width = window
    largest_window = largest_pixel(window, vector_unit().bits // 8)

    @device_function
    def pool_task(y, where, x, has_bias, relu, g, table, scratch, start, task):
        """A strip of one image."""
        size, row, columns = x.itemsize, g.columns * g.k, g.columns // width
        image, strip = task // g.strips, task % g.strips
        first = strip * g.strip_out
        rows = min(g.strip_out, g.rows - first)
        source = conv_direct.strip_source(x, g, scratch, start, image, 0, first, rows)
        buffer, out = start + g.acc_start, (image * g.rows + first) // height * columns * g.k
        for i in range(0, rows, g.rows_together):
            some = min(g.rows_together, rows - i)
            conv_direct.run_blocks(g, x, address(scratch) + buffer * size, g.k * size, has_bias, table, scratch,
                                   source + i * g.advance_row * g.row_pitch * size, 0, some, 0, g.k_blocks)
            for p in range(some // height):
                for q in range(columns):
                    largest_window(y, where, scratch, out, buffer + p * height * row + q * width * g.k, row, g.k, g.k,
                                   relu)
                    out += g.k

    def pooled(y, where, x, w, bias, relu, geometry, table, taps, scratch, worker_start, worker_elements, workers):
        if geometry[0].kept == 0:
            for unit in numba.prange(packing_units(geometry[0], geometry[0].k_blocks)):
                conv_direct.pack_unit(scratch, w, bias, geometry, taps, np.int64(unit))
        taken = no_tasks_taken(workers)
        for worker in numba.prange(workers):
            task = take(taken, np.int64(worker), geometry[0].tasks)
            while task >= 0:
                pool_task(y, where, x, bias.size > 0, relu, geometry[0], table, scratch,
                          worker_start + np.int64(worker) * worker_elements, task)
                task = take(taken, np.int64(worker), geometry[0].tasks)
    pooled.__name__ = f"correlate_{height}x{width}"
    return kernel(pooled)


@functools.cache
def filter_gradient(window):
    """The kernel ``(dw, x, (dy, where), ...)`` for windows of (rows, columns).

    dw: (K, C, R, S); x: (N, H, W, C); dy: (N, P, Q, K), of the pooled output; ``where``: positions of the largest.
    The rest is the plan's.
    """
    height, width = window
    spread = spread_pixel(window, vector_unit().bits // 8)

    @device_function
    def spread_pixels(scratch, start, pooled, g, image, images, group, block, first_block, end, first_out, rows_out):
        """The pixels of a strip, for some blocks of output channels, each behind the other."""
        dy, where = pooled
        columns, row, packed = g.y_columns // width, g.y_columns * g.width, (block - first_block) % g.together
        for p in range(rows_out // height if packed == 0 else 0):
            source = ((image * g.y_rows + first_out) // height + p) * columns * g.k
            for q in range(columns):
                out = start + (p * height * g.y_columns + q * width) * g.width
                for b in range(block, min(block + g.together, end)):
                    channel = b * g.width
                    spread(scratch, where, dy, out + (b - block) * g.block_pitch, row, g.width,
                           source + q * g.k + channel, min(g.width, g.k - channel))
        return address(scratch) + (start + packed * g.block_pitch) * scratch.itemsize

    return conv_filter.driver(f"filter_gradient_{height}x{width}", spread_pixels)


PASSES = {"forward": (plan, correlate), "inference": (plan, correlate),
          "filter_gradient": (plan_filter_gradient, filter_gradient)}
