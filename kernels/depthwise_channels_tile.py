"""The micro-kernels of depthwise convolution with channels in the lanes, for NHWC, emitted as LLVM IR.

    forward           y[j][c]     = bias[c] + sum over (r, s) of  w[r, s][c] x[row r][pixel of (j, s)][c]
    filter gradient   dw[r, s][c] += sum over j of  dy[j][c] x[row r][pixel of (j, s)][c]

for a run of pixels j of one row, a vector of channels after the other. Which pixels a tap reads is written out: those
on padding are left out. A loop goes through the filter's rows.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .simd import (
    INT,
    LINE_BYTES,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    vector_unit,
)

# Addresses and steps in bytes; ``rows`` rows of the filter, channel vectors from ``first`` to ``last``. Of those the
# last one may begin before the one before it ends; the filter gradient's sums have it behind the others all the same.
# What lies ``ahead`` is fetched into the cache: the next row.
FORWARD = ("y", "x", "x_row", "w", "w_row", "rows", "bias", "first", "last", "ahead")
GRADIENT = ("sums", "sums_row", "x", "x_row", "dy", "rows", "first", "last", "ahead", "dy_ahead")


@dataclass(frozen=True)
class ChannelsTile:
    """A run of pixels of y, or of dy: for each the (pixel of x, filter column) pairs that it takes.

    ``channels`` are those of x and y, ``filter_columns`` those of the filter.
    """

    dtype: str
    pixels: tuple
    filter_columns: int
    channels: int

    @property
    def lanes(self):
        return vector_unit().lanes(self.dtype)

    @property
    def itemsize(self):
        return np.dtype(self.dtype).itemsize

    @property
    def name(self):
        return f"depthwise_channels_{self.dtype}_{len(self.pixels)}x{self.filter_columns}_{self.channels}"

    @property
    def products(self):
        """Vector multiply-adds for a row of the filter."""
        return sum(map(len, self.pixels))

    def readers(self):
        """For each pixel of x that is read: the (pixel of y, filter column) pairs that read it."""
        found = {}
        for j, pairs in enumerate(self.pixels):
            for pixel, s in pairs:
                found.setdefault(pixel, []).append((j, s))
        return sorted(found.items())


class ChannelsFilterTile(ChannelsTile):
    """The same for the filter gradient."""

    @property
    def name(self):
        return super().name.replace("channels", "channels_filter", 1)


def longest_run(filter_columns):
    """Pixels of a tile whose sums, or whose dy, stay in registers beside a row of taps and a vector of x."""
    return max(1, vector_unit().registers - filter_columns - 1)


class _Vectors:
    """Loads and stores of vectors at addresses, some elements further."""

    def __init__(self, builder, tile):
        self.builder, self.size = builder, tile.itemsize
        self.kind = ir.VectorType(element_type(tile.dtype), tile.lanes)

    def load(self, at, elements):
        return load_vector(self.builder, self.builder.add(at, INT(elements * self.size)), self.kind, self.size)

    def store(self, value, at, elements):
        to = pointer(self.builder, self.builder.add(at, INT(elements * self.size)), self.kind)
        self.builder.store(value, to).align = self.size

    def fetch(self, start, block, pixels):
        """A block's share of the cache lines of some pixels, which lie from ``start`` on."""
        step = pixels * self.kind.count * self.size
        at = self.builder.add(start, self.builder.mul(block, INT(step)))
        for line in range(0, step, LINE_BYTES):
            prefetch(self.builder, self.builder.add(at, INT(line)), level=2)


def _channel(builder, tile, vector):
    """Where a vector of channels begins, in bytes."""
    begin, most = builder.mul(vector, INT(tile.lanes)), INT(tile.channels - tile.lanes)
    return builder.mul(builder.select(builder.icmp_signed("<", begin, most), begin, most), INT(tile.itemsize))


def _row(builder, row, start, step):
    return builder.add(start, builder.mul(row.index, step))


def _emit_forward(builder, tile, y, x, x_row, w, w_row, rows, bias, first, last, ahead):
    vectors = _Vectors(builder, tile)
    sums = [cgutils.alloca_once(builder, vectors.kind) for _ in tile.pixels]
    with cgutils.for_range_slice(builder, first, last, INT(1), INT) as (block, _):
        at = _channel(builder, tile, block)
        vectors.fetch(ahead, block, len(tile.readers()))
        for total in sums:
            builder.store(vectors.load(builder.add(bias, at), 0), total)
        with cgutils.for_range(builder, rows) as row:
            source, taps = (builder.add(_row(builder, row, *place), at) for place in ((x, x_row), (w, w_row)))
            held = {}
            for pixel, readers in tile.readers():
                value = vectors.load(source, pixel * tile.channels)
                for j, s in readers:
                    if s not in held:
                        held[s] = vectors.load(taps, s * tile.channels)
                    builder.store(multiply_add(builder, held[s], value, builder.load(sums[j])), sums[j])
        for j, total in enumerate(sums):
            vectors.store(builder.load(total), builder.add(y, at), j * tile.channels)


def _emit_gradient(builder, tile, sums, sums_row, x, x_row, dy, rows, first, last, ahead, dy_ahead):
    vectors = _Vectors(builder, tile)
    pitch = -(-tile.channels // tile.lanes) * tile.lanes
    with cgutils.for_range_slice(builder, first, last, INT(1), INT) as (block, _):
        at = _channel(builder, tile, block)
        vectors.fetch(ahead, block, len(tile.readers()))
        vectors.fetch(dy_ahead, block, len(tile.pixels))
        errors = [vectors.load(builder.add(dy, at), j * tile.channels) for j in range(len(tile.pixels))]
        with cgutils.for_range(builder, rows) as row:
            source = builder.add(_row(builder, row, x, x_row), at)
            own = builder.add(_row(builder, row, sums, sums_row),
                              builder.mul(block, INT(tile.lanes * tile.itemsize)))
            totals = {s: vectors.load(own, s * pitch)
                      for s in sorted({s for pairs in tile.pixels for _, s in pairs})}
            for pixel, readers in tile.readers():
                value = vectors.load(source, pixel * tile.channels)
                for j, s in readers:
                    totals[s] = multiply_add(builder, errors[j], value, totals[s])
            for s, total in totals.items():
                vectors.store(total, own, s * pitch)


@functools.cache
def compile_channels_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit_forward, tile, FORWARD)


@functools.cache
def compile_channels_filter_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit_gradient, tile, GRADIENT)
