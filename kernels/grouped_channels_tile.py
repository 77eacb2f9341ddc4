"""The micro-kernels of convolution by small groups with channels in the lanes, for NHWC, emitted as LLVM IR.

    forward           y[j][k]        = bias[k] + sum over (r, s, i) of  w[r, s, i][k] x[row r][pixel of (j, s)][k: i]
    filter gradient   dw[r, s, i][k] += sum over j of  dy[j][k] x[row r][pixel of (j, s)][k: i]

for a run of pixels j of one row, a vector of channels after the other; k: i is channel i of k's group, in each lane by
a shuffle; a depthwise convolution has one channel a group and needs none. Which pixels a tap reads is written out:
those on padding are left out. A loop goes through the filter's rows.
"""

import functools
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils

from .blocking import divide
from .simd import (
    INT,
    INT32,
    LINE_BYTES,
    OfVectors,
    broadcast,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    unknown,
    vector_unit,
)

SHUFFLED_BYTES = 16  # within which a shuffle is one instruction, without a register for the places

# Addresses and steps in bytes; ``rows`` rows of the filter, channel vectors from ``first`` to ``last``. Of those the
# last one may begin before the one before it ends; filters and sums have blocks (r, s, i, lanes) for each all the same.
# What lies ``ahead`` is fetched into the cache: the next row.
FORWARD = ("y", "x", "x_row", "w", "w_row", "w_block", "rows", "bias", "first", "last", "ahead")
GRADIENT = ("sums", "sums_row", "sums_block", "x", "x_row", "dy", "rows", "first", "last", "ahead", "dy_ahead")


@dataclass(frozen=True)
class ChannelsTile(OfVectors):
    """A run of pixels of y, or of dy: for each the (pixel of x, filter column) pairs that it takes.

    ``channels`` are those of x and y, ``group`` those of a group, ``filter_columns`` those of the filter.
    """

    dtype: str
    pixels: tuple
    filter_columns: int
    channels: int
    group: int

    @property
    def name(self):
        return (f"grouped_channels_{self.dtype}_{len(self.pixels)}x{self.filter_columns}"
                f"_{self.channels}by{self.group}")

    @property
    def products(self):
        """Vector multiply-adds for a row of the filter."""
        return sum(map(len, self.pixels)) * self.group

    @property
    def loads_channels(self):
        """Whether it loads each channel of x into all lanes of its group, of which a vector has one or two."""
        return self.group * self.itemsize > SHUFFLED_BYTES

    @property
    def shuffles(self):
        """Or blends, of vectors of x."""
        return len(self.readers()) * self.group * (1 < self.group < self.lanes)

    @property
    def loads(self):
        """Of x and of a row of the filter."""
        return len(self.readers()) * (self.group if self.loads_channels else 1) + self.filter_columns * self.group

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


def longest_run(filter_columns, group):
    """Pixels of a tile whose sums, or whose dy, stay in registers beside a row of taps and what is spread of x."""
    return max(1, vector_unit().registers - filter_columns - (1 if group == 1 else 3))


def _together(tile):
    """Channels of a group whose sums for a row of taps stay in registers beside a window of dy and two vectors of x."""
    return divide(tile.group, max(1, (vector_unit().registers - 2) // tile.filter_columns - 1))[0]


class _Vectors:
    """Loads and stores of vectors at addresses, some elements further."""

    def __init__(self, builder, tile):
        self.builder, self.size = builder, tile.itemsize
        self.tile, self.kind = tile, ir.VectorType(element_type(tile.dtype), tile.lanes)
        if tile.loads_channels and tile.group < tile.lanes:
            bits = ir.IntType(tile.lanes)((1 << tile.lanes) - (1 << tile.group))
            mask = unknown(builder, bits)  # or LLVM makes a shuffle of what takes a masked load
            self.upper = builder.bitcast(mask, ir.VectorType(ir.IntType(1), tile.lanes))

    def load(self, at, elements):
        return load_vector(self.builder, self.builder.add(at, INT(elements * self.size)), self.kind, self.size)

    def store(self, value, at, elements):
        to = pointer(self.builder, self.builder.add(at, INT(elements * self.size)), self.kind)
        self.builder.store(value, to).align = self.size

    def spread(self, at, elements, i):
        """Of the vector there: channel i of its group in each lane."""
        group, lanes = self.tile.group, self.tile.lanes
        if not self.tile.loads_channels:
            places = ir.Constant(ir.VectorType(INT32, lanes), [lane // group * group + i for lane in range(lanes)])
            vector = self.load(at, elements)
            return self.builder.shuffle_vector(vector, vector, places)
        first = self._everywhere(at, elements + i)
        if group == lanes:
            return first
        return self.builder.select(self.upper, self._everywhere(at, elements + group + i), first)

    def _everywhere(self, at, elements):
        place = self.builder.add(at, INT(elements * self.size))
        return broadcast(self.builder, load_vector(self.builder, place, self.kind.element, self.size), self.kind)

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


def _emit_forward(builder, tile, y, x, x_row, w, w_row, w_block, rows, bias, first, last, ahead):
    vectors = _Vectors(builder, tile)
    sums = [cgutils.alloca_once(builder, vectors.kind) for _ in tile.pixels]
    with cgutils.for_range_slice(builder, first, last, INT(1), INT) as (block, _):
        at = _channel(builder, tile, block)
        vectors.fetch(ahead, block, len(tile.readers()))
        for total in sums:
            builder.store(vectors.load(builder.add(bias, at), 0), total)
        with cgutils.for_range(builder, rows) as row:
            source = builder.add(_row(builder, row, x, x_row), at)
            taps = builder.add(_row(builder, row, w, w_row), builder.mul(block, w_block))
            for i in range(tile.group):
                if i:  # or LLVM keeps x from one to the next, in memory
                    source = unknown(builder, source)
                held = {}
                for pixel, readers in tile.readers():
                    one = vectors.spread(source, pixel * tile.channels, i)
                    for j, s in readers:
                        if s not in held:
                            held[s] = vectors.load(taps, (s * tile.group + i) * tile.lanes)
                        builder.store(multiply_add(builder, held[s], one, builder.load(sums[j])), sums[j])
        for j, total in enumerate(sums):
            vectors.store(builder.load(total), builder.add(y, at), j * tile.channels)


def _emit_gradient(builder, tile, sums, sums_row, sums_block, x, x_row, dy, rows, first, last, ahead, dy_ahead):
    vectors, together = _Vectors(builder, tile), _together(tile)
    columns = sorted({s for pairs in tile.pixels for _, s in pairs})
    with cgutils.for_range_slice(builder, first, last, INT(1), INT) as (block, _):
        at = _channel(builder, tile, block)
        vectors.fetch(ahead, block, len(tile.readers()))
        vectors.fetch(dy_ahead, block, len(tile.pixels))
        errors, dy_block = {}, builder.add(dy, at)
        if tile.group == 1:
            errors = {j: vectors.load(dy_block, j * tile.channels) for j in range(len(tile.pixels))}
        with cgutils.for_range(builder, rows) as row:
            source = builder.add(_row(builder, row, x, x_row), at)
            own = builder.add(_row(builder, row, sums, sums_row), builder.mul(block, sums_block))
            for begin in range(0, tile.group, together):
                some = range(begin, min(begin + together, tile.group))
                totals = {(s, i): vectors.load(own, (s * tile.group + i) * tile.lanes) for s in columns for i in some}
                near = dict(errors)
                for pixel, readers in tile.readers():
                    for j, _ in readers:
                        if j not in near:
                            near[j] = vectors.load(dy_block, j * tile.channels)
                    for i in some:
                        one = vectors.spread(source, pixel * tile.channels, i)
                        for j, s in readers:
                            totals[s, i] = multiply_add(builder, near[j], one, totals[s, i])
                for (s, i), total in totals.items():
                    vectors.store(total, own, (s * tile.group + i) * tile.lanes)


@functools.cache
def compile_channels_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit_forward, tile, FORWARD)


@functools.cache
def compile_channels_filter_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit_gradient, tile, GRADIENT)
