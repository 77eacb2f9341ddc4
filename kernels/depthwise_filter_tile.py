"""The micro-kernel of the depthwise filter gradient, emitted as LLVM IR: pixels in the lanes, a sum a tap in registers.

    dw[r, s] += sum over images and pixels (i, j) of  dy[i][j] x[row of (i, r)][advance j + offset of s]

for one plane after another. Taps that do not fit into registers together are summed in several *passes*.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .planes import RowReader, keep_lanes, row_address
from .simd import (
    INT,
    LINE_BYTES,
    OfVectors,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    sum_of_lanes,
    vector_unit,
)

# Addresses and steps in bytes. Input row i is ``first_row`` + i, ``zeros`` where that is not one of ``x_rows``.
ARGUMENTS = ("out", "out_plane", "x", "x_plane", "x_image", "x_pitch", "x_rows", "zeros", "first_row", "dy", "dy_plane",
             "dy_image", "dy_pitch", "rows", "planes", "images")
MASK_CYCLES = 0.5  # of a vector, to zero lanes
ROW_CYCLES = 3  # of an input or output row
SUM_CYCLES = 10  # to add up the lanes of a sum


@dataclass(frozen=True)
class DepthwiseFilterTile(OfVectors):
    """Blocks of ``height`` rows of dy, and one of the ``rest``, by some vectors of columns, ``kept`` lanes of the last.

    A filter row reads x at each of ``row_offsets``, a filter column at each of ``offsets``. The lanes of ``valid`` see
    planes.Columns.
    """

    dtype: str
    height: int
    rest: int
    row_offsets: tuple
    offsets: tuple
    advance_row: int
    advance: int
    vectors: int
    valid: tuple
    kept: int

    @property
    def name(self):
        return (f"depthwise_filter_{self.dtype}_{self.height}x{self.vectors}_"
                f"{len(self.row_offsets)}x{len(self.offsets)}")

    @property
    def taps(self):
        """The (filter row, filter column) pairs."""
        return [(r, s) for r in range(len(self.row_offsets)) for s in range(len(self.offsets))]

    def passes(self):
        """The taps of each pass, whose sums stay in registers beside some rows of dy and a vector of x."""
        taps = self.taps
        count = -(-len(taps) // (vector_unit().registers - 5))
        return [taps[len(taps) * i // count:len(taps) * (i + 1) // count] for i in range(count)]

    def readers(self, taps, height):
        """For each input row of a block: its place, and the (row of dy, filter row) pairs that read it."""
        found = {}
        for i in range(height):
            for r in sorted({r for r, _ in taps}):
                found.setdefault(self.advance_row * i + self.row_offsets[r], []).append((i, r))
        return sorted(found.items())

    @property
    def products(self):
        """Vector multiply-adds of a row of dy."""
        empty = sum(first == last for _, (first, last) in self.valid)
        return len(self.row_offsets) * (self.vectors * len(self.offsets) - empty)

    def cycles(self, rows):
        """Estimated, for one image of a plane of ``rows``."""
        crossing = (self.lanes - 1) * self.itemsize / LINE_BYTES  # of two lines, at any address
        total = 0.0
        for height, count in ((self.height, rows // self.height), (self.rest, 1)):
            for taps in self.passes() if height else ():
                read = self.readers(taps, height)
                loads = len({(place, s) for place, pairs in read for _, r in pairs for r_, s in taps if r == r_})
                vectors = self.vectors * (loads * self.advance + height) * (1 + crossing)
                masks = loads * len(self.valid) / len(self.offsets) * MASK_CYCLES
                total += count * (max(height * self.vectors * len(taps), vectors) + masks
                                  + (len(read) + height) * ROW_CYCLES)
        return total


def _emit(builder, tile, out, out_plane, x, x_plane, x_image, x_pitch, x_rows, zeros, first_row, dy, dy_plane, dy_image,
          dy_pitch, rows, planes, images):
    size = np.dtype(tile.dtype).itemsize
    vector = ir.VectorType(element_type(tile.dtype), tile.lanes)
    blocks = builder.udiv(rows, INT(tile.height))

    def place(start, *steps):
        for index, step in steps:
            start = builder.add(start, builder.mul(index, step))
        return start

    def add_block(taps, sums, height, source, first_in, errors):
        """Products of some rows of dy, from the address ``errors`` on."""
        readers = {}
        for v in range(tile.vectors):
            held = []
            for i in range(height):
                at = place(errors, (dy_pitch, INT(i)))
                value = load_vector(builder, builder.add(at, INT(v * tile.lanes * size)), vector, size)
                whole = v < tile.vectors - 1 or tile.kept == tile.lanes
                held.append(value if whole else keep_lanes(builder, value, 0, tile.kept))
            for row, pairs in tile.readers(taps, height):
                if row not in readers:
                    at = row_address(builder, source, builder.add(first_in, INT(row)), x_rows, x_pitch, zeros)
                    readers[row] = RowReader(builder, tile.dtype, at, tile.offsets, tile.advance, tile.valid)
                for i, r in pairs:
                    for s in [s for r_, s in taps if r_ == r]:
                        value = readers[row](tile.offsets[s], v)
                        if value is not None:
                            total = sums[r, s]
                            builder.store(multiply_add(builder, value, held[i], builder.load(total)), total)

    with cgutils.for_range(builder, planes) as plane:
        for taps in tile.passes():
            sums = {tap: cgutils.alloca_once(builder, vector) for tap in taps}
            for total in sums.values():
                builder.store(ir.Constant(vector, None), total)
            with cgutils.for_range(builder, images) as image:
                source = place(x, (plane.index, x_plane), (image.index, x_image))
                errors = place(dy, (plane.index, dy_plane), (image.index, dy_image))
                with cgutils.for_range(builder, blocks) as block:
                    add_block(taps, sums, tile.height, source,
                              place(first_row, (block.index, INT(tile.height * tile.advance_row))),
                              place(errors, (block.index, builder.mul(dy_pitch, INT(tile.height)))))
                if tile.rest:
                    done = builder.mul(blocks, INT(tile.height))
                    with builder.if_then(builder.icmp_signed("<", done, rows)):
                        add_block(taps, sums, tile.rest, source, place(first_row, (done, INT(tile.advance_row))),
                                  place(errors, (done, dy_pitch)))
            for (r, s), total in sums.items():
                to = place(builder.add(out, INT((r * len(tile.offsets) + s) * size)), (plane.index, out_plane))
                before = load_vector(builder, to, vector.element, size)
                after = builder.fadd(before, sum_of_lanes(builder, builder.load(total)))
                builder.store(after, pointer(builder, to, vector.element)).align = size


@functools.cache
def compile_depthwise_filter_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit, tile, ARGUMENTS)
