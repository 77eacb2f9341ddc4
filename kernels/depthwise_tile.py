"""The micro-kernel of depthwise convolution, emitted as LLVM IR: pixels in the lanes, output rows in registers.

    y[i][j] = bias + sum over taps (r, s) of  w[r, s] x[advance i + r_offset[r], j + shift[s]]

for ``rows`` output rows i at a time and ``vectors`` vectors of columns j. Every input row is read once for all the
output rows that it reaches, which is what a general tile, one row of outputs to a channel, cannot do. A stride of
columns is taken out beforehand: x then lies in planes, one for each column within the stride.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import (
    INT,
    INT32,
    LINE_BYTES,
    broadcast,
    compile_callback,
    element_type,
    emitted_by,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    store_where,
    vector_unit,
)

# addresses and pitches in bytes; ``blocks`` of rows follow one another; of a masked tile's last vector ``last`` lanes
# are stored; each block fetches ``lines`` cache lines from ``ahead`` on, which another strip will read
ARGUMENTS = ("out", "out_pitch", "source", "source_pitch", "plane", "filters", "blocks", "last", "ahead", "lines")
SIGNATURE = types.void(*[types.intp] * len(ARGUMENTS))


def holds_filters(rows, vectors, taps):
    """Whether all taps stay in registers, beside the sums and a row of x."""
    return rows * vectors + vectors + taps < vector_unit().registers


@dataclass(frozen=True)
class DepthwiseTile:
    """``rows`` output rows by ``vectors`` vectors; ``columns`` are the (plane, shift) of a filter's columns.

    A ``masked`` one may reach beyond the end of its rows.
    """

    dtype: str
    rows: int
    vectors: int
    row_offsets: tuple
    columns: tuple
    advance: int
    masked: bool

    @property
    def lanes(self):
        return vector_unit().lanes(self.dtype)

    @property
    def name(self):
        return f"depthwise_{self.dtype}_{self.rows}x{self.vectors}_{len(self.row_offsets)}x{len(self.columns)}"

    @property
    def taps(self):
        return len(self.row_offsets) * len(self.columns)

    def input_rows(self):
        """For each input row of a block: its place, and the (output row, filter row) pairs that read it."""
        readers = {}
        for i in range(self.rows):
            for r, offset in enumerate(self.row_offsets):
                readers.setdefault(self.advance * i + offset, []).append((i, r))
        return sorted(readers.items())


def _emit(builder, tile, out, out_pitch, source, source_pitch, plane, filters, blocks, last, ahead, lines):
    size, lanes = np.dtype(tile.dtype).itemsize, tile.lanes
    element = element_type(tile.dtype)
    vector, index = ir.VectorType(element, lanes), ir.VectorType(INT32, lanes)
    width = len(tile.columns)

    def weight(place):
        """A tap, or behind them the bias, in all lanes."""
        return broadcast(builder, load_vector(builder, builder.add(filters, INT(place * size)), element, size), vector)

    held = [weight(place) for place in range(tile.taps)] if holds_filters(tile.rows, tile.vectors, tile.taps) else None
    bias = weight(tile.taps)
    mask = builder.icmp_signed("<", ir.Constant(index, list(range(lanes))),
                               broadcast(builder, builder.trunc(last, INT32), index))
    planes = [builder.mul(plane, INT(p)) for p in range(1 + max(p for p, _ in tile.columns))]
    with cgutils.for_range(builder, blocks) as block:
        first = builder.add(source, builder.mul(block.index, builder.mul(source_pitch, INT(tile.rows * tile.advance))))
        with cgutils.for_range(builder, lines) as line:
            passed = builder.add(builder.mul(block.index, lines), line.index)
            prefetch(builder, builder.add(ahead, builder.mul(passed, INT(LINE_BYTES))), level=2)
        sums = [[bias] * tile.vectors for _ in range(tile.rows)]
        for row, readers in tile.input_rows():
            at = builder.add(first, builder.mul(source_pitch, INT(row)))
            for s, (p, shift) in enumerate(tile.columns):
                start = builder.add(at, planes[p])
                read = [load_vector(builder, builder.add(start, INT((shift + v * lanes) * size)), vector, size)
                        for v in range(tile.vectors)]
                for i, r in readers:
                    tap = held[r * width + s] if held else weight(r * width + s)
                    sums[i] = [multiply_add(builder, tap, x, total) for x, total in zip(read, sums[i])]
        to = builder.add(out, builder.mul(block.index, builder.mul(out_pitch, INT(tile.rows))))
        for i, row in enumerate(sums):
            for v, total in enumerate(row):
                at = builder.add(builder.add(to, builder.mul(out_pitch, INT(i))), INT(v * lanes * size))
                place = pointer(builder, at, vector)
                if v < tile.vectors - 1 or not tile.masked:
                    builder.store(total, place).align = size
                else:
                    store_where(builder, total, place, mask, size)


@functools.cache
def compile_depthwise_tile(tile):
    """The tile as a C callback."""
    emitted = emitted_by(_emit, tile)

    def micro_kernel(out, out_pitch, source, source_pitch, plane, filters, blocks, last, ahead, lines):
        emitted((out, out_pitch, source, source_pitch, plane, filters, blocks, last, ahead, lines))

    return compile_callback(micro_kernel, SIGNATURE, tile)
