"""Winograd's transformed filters U, for a block of output channels (phases of y, points, phases of x, C, width)."""

import numpy as np

from .jit import device_function
from .pack_filters import transpose_taps
from .rows import clear_run, copy_run
from .simd import address, call_tile, transpose_block
from .tasks import take
from .winograd_phases import FILTER


def filter_elements(taps, window, lanes):
    """Room for the filters of ``lanes`` input channels, and of one filter of a phase, a vector an element."""
    return lanes * (lanes * (taps + 1) + window**2)


@device_function
def _load_run(w, g, source, count, buffer, start):
    """The taps of ``lanes`` input channels, a run of w, for ``count`` output channels as (channels, taps, lanes)."""
    size, row = w.itemsize, g.lanes * w.itemsize
    for t in range(0, g.lanes * g.taps, g.lanes):
        transpose_block(w, (address(w) + size * (source + t), g.w_k * size, count,
                            address(buffer) + size * (start + t * g.lanes), row, g.lanes, np.int64(0)))


@device_function
def _filter_of_phase(w, g, lists, phase, source, out):
    """One filter of a phase, out of all taps of an input channel, vectors at address ``source``."""
    row = g.lanes * w.itemsize
    for t in range(g.window * g.window):
        tap = lists[phase * g.listed + FILTER + t]
        if tap >= 0:
            copy_run(w.dtype.type(0), out + t * row, source + tap * row, g.lanes)
        else:
            clear_run(w.dtype.type(0), out + t * row, g.lanes)


@device_function
def _transform_filters(scratch, w, g, lists, out, buffer, group, block, phase, first_c, channels):
    """U of one phase and block of output channels, some input channels, (points, channels, width), at ``out``.

    ``buffer`` has room for :func:`filter_elements`.
    """
    size = w.itemsize
    row = g.lanes * size
    point = g.u_point * size
    in_runs = g.w_c == g.taps and not g.flip and channels >= g.lanes
    step = g.lanes if in_runs else 1
    of_phase = address(scratch) + (buffer + g.lanes * g.lanes * (g.taps + 1)) * size
    for v in range(0, g.width, g.lanes):
        first_k = block * g.width + v
        count = min(g.lanes, g.k - first_k)
        for i in range(0, channels, step):
            c = min(i, channels - step)  # some channels again, with the same results
            source = group * g.w_group + first_k * g.w_k + (first_c + c) * g.w_c
            if count > 0 and in_runs:
                _load_run(w, g, source, count, scratch, buffer)
            elif count > 0:
                first = buffer + (g.taps - 1) * g.lanes if g.flip else buffer
                transpose_taps(w, source, g.w_k, count, g.taps, address(scratch) + size * first,
                               -row if g.flip else row)
            taps, to = address(scratch) + buffer * size, address(scratch) + size * (out + c * g.width + v)
            if g.phases == 1:
                call_tile(g.filter_points, (taps, g.window * row, row, g.taps * row, to, g.grid * point, point,
                                            g.width * size, step))
            for j in range(step if g.phases > 1 else 0):
                _filter_of_phase(w, g, lists, phase, taps + j * g.taps * row, of_phase)
                call_tile(g.filter_points, (of_phase, g.window * row, row, np.int64(0), to + j * g.width * size,
                                            g.grid * point, point, np.int64(0), np.int64(1)))


@device_function
def transform_span(scratch, w, g, lists, out, buffer, group, block, first, channels):
    """U of one block of output channels in all phases of y, for a span of the reduction."""
    for phase in range(g.y_phases):
        done = 0
        while done < channels:
            x_phase, c = (first + done) // g.c, (first + done) % g.c
            count = min(channels - done, g.c - c)
            _transform_filters(scratch, w, g, lists, out + done * g.width, buffer, group, block, phase + x_phase, c,
                               count)
            done += count
        out += g.points * g.u_point


@device_function
def _prepare_block(scratch, w, bias, g, lists, start, unit):
    """Shared filters and bias of one block of output channels of one group."""
    group, block = unit // g.k_blocks, unit % g.k_blocks
    first_k = block * g.width
    out = g.bias_start + unit * g.width
    for lane in range(g.width):
        known = first_k + lane < g.k and bias.size > 0
        scratch[out + lane] = bias[group * g.k + first_k + lane] if known else 0
    if g.shared:
        transform_span(scratch, w, g, lists, unit * g.y_phases * g.points * g.u_point, start, group, block, np.int64(0),
                       g.reduction)


@device_function
def prepare_blocks(scratch, w, bias, g, lists, start, taken, worker):
    """A worker's share of the shared filters and of the bias of all blocks."""
    units = g.groups * g.k_blocks
    unit = take(taken, worker, units)
    while unit >= 0:
        _prepare_block(scratch, w, bias, g, lists, start, unit)
        unit = take(taken, worker, units)
