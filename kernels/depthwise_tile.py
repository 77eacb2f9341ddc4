"""The micro-kernel of depthwise convolution, emitted as LLVM IR: pixels in the lanes, all taps written out.

    y[i][j] = bias + sum over taps (r, s) of  w[r, s] x[row of (i, r)][advance j + offset of s]

for a block of output rows i at a time, some vectors of columns j, and one plane after another. Each input row is read
once for all the output rows that it reaches, which is what a general tile, one row of outputs to a channel, cannot
do. Where the outputs come in phases, as those of a strided input gradient, rows have taps of their own and the phases
of columns are interleaved as they are stored.
"""

import functools
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils

from .planes import RowReader, row_address
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
    vector_unit,
)

# Addresses and steps in bytes. Input row i is ``first_row`` + i, ``zeros`` where that is not one of ``x_rows``; the
# last ``careful`` output rows, of ``planes`` with ``rows`` each, are stored without the lanes beyond the row.
ARGUMENTS = ("out", "out_plane", "out_pitch", "x", "x_plane", "x_pitch", "x_rows", "zeros", "first_row", "rows", "w",
             "w_plane", "bias", "bias_plane", "planes", "careful")
STORE_CYCLES = 2.0  # a vector of y
MASK_CYCLES = 0.5  # of a vector of x, to zero lanes
ROW_CYCLES = 3  # of an input or output row
SPILL_CYCLES = 2  # for each input row and each sum that has no register


@dataclass(frozen=True)
class DepthwiseTile(OfVectors):
    """A block of output rows by some vectors, for each phase of columns.

    ``rows`` has for each output row its (input row, filter row) pairs, ``columns`` for each phase its (offset, filter
    column) pairs. The next block's input is ``advance_rows`` further. The lanes of ``valid`` see planes.Columns; the
    last vector of a row keeps ``kept`` elements.
    """

    dtype: str
    rows: tuple
    columns: tuple
    filter_columns: int
    advance_rows: int
    advance: int
    vectors: int
    valid: tuple
    kept: int

    @property
    def taps(self):
        """Places in the filter of those that a block reads."""
        return sorted({r * self.filter_columns + s for pairs in self.rows for _, r in pairs
                       for phase in self.columns for _, s in phase})

    @property
    def height(self):
        return len(self.rows)

    @property
    def width(self):
        """Elements of an output row that the vectors have."""
        return self.vectors * self.lanes * len(self.columns)

    @property
    def name(self):
        taps = f"{max(map(len, self.rows))}x{sum(map(len, self.columns))}"
        return f"depthwise_{self.dtype}_{self.height}x{self.vectors}_{taps}"

    @property
    def offsets(self):
        """Of all phases."""
        return sorted({offset for phase in self.columns for offset, _ in phase})

    def input_rows(self):
        """For each input row of a block: its place, and the (output row, filter row) pairs that read it."""
        readers = {}
        for i, pairs in enumerate(self.rows):
            for place, r in pairs:
                readers.setdefault(place, []).append((i, r))
        return sorted(readers.items())

    @property
    def cycles(self):
        """Estimated, of a block."""
        pairs, taps = sum(map(len, self.rows)), sum(map(len, self.columns))
        crossing = (self.lanes - 1) * self.itemsize / LINE_BYTES  # of two lines, at any address
        broadcasts = 0 if self.holds_filters else pairs * taps
        masked = len(self.input_rows()) * sum(first < last for _, (first, last) in self.valid)
        beside = (masked * MASK_CYCLES + self.height * self.vectors * len(self.columns) * STORE_CYCLES
                  + (len(self.input_rows()) + self.height) * ROW_CYCLES
                  + max(0, self.registers + 1 - vector_unit().registers) * len(self.input_rows()) * SPILL_CYCLES)
        return max(self.products, self.loads * self.advance * (1 + crossing) + broadcasts) + beside

    @property
    def products(self):
        """Vector multiply-adds of a block."""
        empty = sum(len([s for o, s in phase if o == offset])
                    for (offset, _), (first, last) in self.valid if first == last for phase in self.columns)
        return sum(map(len, self.rows)) * (self.vectors * sum(map(len, self.columns)) - empty)

    @property
    def loads(self):
        """Vectors of x that a block reads."""
        empty = sum(first == last for _, (first, last) in self.valid)
        return len(self.input_rows()) * (self.vectors * len(self.offsets) - empty)

    @property
    def registers(self):
        """Vectors held at a time, without the taps: an output row is stored as soon as it is complete."""
        read = self.vectors if max((len(readers) for _, readers in self.input_rows()), default=1) > 1 else 1
        spans = [(min(pairs)[0], max(pairs)[0]) for pairs in self.rows if pairs]
        begun = max((sum(low <= place <= high for low, high in spans) for place, _ in spans), default=1)
        return begun * self.vectors * len(self.columns) + read

    @property
    def holds_filters(self):
        """Whether all taps stay in registers beside them."""
        return self.registers + len(self.taps) <= vector_unit().registers


def _emit(builder, tile, out, out_plane, out_pitch, x, x_plane, x_pitch, x_rows, zeros, first_row, rows, w, w_plane,
          bias, bias_plane, planes, careful):
    size, height, row_size = tile.itemsize, INT(tile.height), INT(tile.width * tile.itemsize)
    vector = ir.VectorType(element_type(tile.dtype), tile.lanes)
    buffer = cgutils.alloca_once(builder, ir.ArrayType(vector, tile.height * tile.width // tile.lanes))
    aside = builder.ptrtoint(buffer, INT)

    def number(at):
        return broadcast(builder, load_vector(builder, at, vector.element, size), vector)

    def least(a, b):
        return builder.select(builder.icmp_signed("<", a, b), a, b)

    blocks = builder.udiv(builder.add(rows, INT(tile.height - 1)), height)
    with cgutils.for_range(builder, planes) as plane:
        y, source, filters, addend = (builder.add(start, builder.mul(step, plane.index)) for start, step in (
            (out, out_plane), (x, x_plane), (w, w_plane), (bias, bias_plane)))
        carefree = least(rows, builder.sub(builder.mul(builder.sub(planes, plane.index), rows), careful))
        weight = _Weights(tile, lambda tap, at=filters: number(builder.add(at, INT(tap * size))))
        with cgutils.for_range(builder, blocks) as block:
            first_out = builder.mul(block.index, height)
            first_in = builder.add(first_row, builder.mul(block.index, INT(tile.advance_rows)))
            place = builder.add(y, builder.mul(first_out, out_pitch))
            with_care = builder.icmp_signed(">", builder.add(first_out, height), carefree)
            to, pitch = builder.select(with_care, aside, place), builder.select(with_care, row_size, out_pitch)
            _emit_block(
                builder, tile, weight, lambda at=addend: number(at),
                lambda i, first=first_in, source=source: row_address(
                    builder, source, builder.add(first, INT(i)), x_rows, x_pitch, zeros),
                lambda i, to=to, pitch=pitch: builder.add(to, builder.mul(pitch, INT(i))))
            careful_rows = builder.select(with_care, least(builder.sub(rows, first_out), height), INT(0))
            with cgutils.for_range(builder, careful_rows) as row:
                _copy_kept(builder, tile, builder.add(place, builder.mul(row.index, out_pitch)),
                           builder.add(aside, builder.mul(row.index, row_size)))


class _Weights:
    """The taps in all lanes: held in registers, or read again wherever they are used."""

    def __init__(self, tile, load):
        self.load = load
        self.held = {tap: load(tap) for tap in tile.taps} if tile.holds_filters else {}

    def __call__(self, tap):
        return self.held[tap] if self.held else self.load(tap)


def _emit_block(builder, tile, weight, bias, input_row, output_row):
    """All products of a block, in one basic block: a branch would make LLVM hold what it has read across it.

    ``weight(tap)`` and ``bias()`` give vectors, ``input_row(i)`` and ``output_row(i)`` addresses.
    """
    def begun():
        return [[bias()] * tile.vectors for _ in tile.columns]

    sums, stored = {}, 0
    for place, readers in tile.input_rows():
        read = RowReader(builder, tile.dtype, input_row(place), tile.offsets, tile.advance, tile.valid)
        for i, _ in readers:
            if i not in sums:
                sums[i] = begun()
        for p, phase in enumerate(tile.columns):
            for offset, s in phase:
                values = [read(offset, v) for v in range(tile.vectors)]
                for i, r in readers:
                    factor = weight(r * tile.filter_columns + s)
                    sums[i][p] = [total if value is None else multiply_add(builder, factor, value, total)
                                  for value, total in zip(values, sums[i][p])]
        while stored < tile.height and all(read_at <= place for read_at, _ in tile.rows[stored]):  # one after another
            _store_row(builder, tile, output_row(stored), sums.pop(stored, None) or begun())
            stored += 1
    for i in range(stored, tile.height):  # no tap reaches any row
        _store_row(builder, tile, output_row(i), begun())


def _store_row(builder, tile, to, phases):
    """Store the sums of an output row, all lanes; phases of columns take turns."""
    for v, values in enumerate(zip(*phases)):
        value = _interleaved(builder, values) if len(values) > 1 else values[0]
        at = builder.add(to, INT(v * len(values) * tile.lanes * tile.itemsize))
        builder.store(value, pointer(builder, at, value.type)).align = tile.itemsize


def _copy_kept(builder, tile, to, source):
    """Copy an output row without the lanes behind it, in ever smaller pieces."""
    size, done, piece = tile.itemsize, 0, tile.lanes
    kept = tile.width - len(tile.columns) * tile.lanes + tile.kept
    while done < kept:
        if done + piece <= kept:
            kind = ir.VectorType(element_type(tile.dtype), piece)
            value = load_vector(builder, builder.add(source, INT(done * size)), kind, size)
            builder.store(value, pointer(builder, builder.add(to, INT(done * size)), kind)).align = size
            done += piece
        else:
            piece //= 2


def _interleaved(builder, values):
    """The lanes of some vectors in turn, as one wide vector."""
    lanes = values[0].type.count
    joined, count = list(values), lanes
    while len(joined) > 1:  # concatenated in pairs, the last one with itself
        joined += joined[-1:] * (len(joined) % 2)
        order = ir.Constant(ir.VectorType(INT32, 2 * count), list(range(2 * count)))
        joined = [builder.shuffle_vector(joined[i], joined[i + 1], order) for i in range(0, len(joined), 2)]
        count *= 2
    turns = [p * lanes + lane for lane in range(lanes) for p in range(len(values))]
    return builder.shuffle_vector(joined[0], joined[0], ir.Constant(ir.VectorType(INT32, len(turns)), turns))


@functools.cache
def compile_depthwise_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit, tile, ARGUMENTS)
