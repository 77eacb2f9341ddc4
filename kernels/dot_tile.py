"""The micro-kernel of sums over pixels in the lanes, emitted as LLVM IR:

    C[i][j][lane] += sum over t of  A[i * a_step + t * lanes + lane] * B[b_offset[j] + t * lanes + lane]

for rows i and columns j, over one image or several: both operands are read as they lie, and the lanes are added up
once, at the end of a chunk.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .simd import (
    INT,
    INT32,
    OfVectors,
    broadcast,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    vector_unit,
)

# addresses in bytes; of each image `steps` whole vectors, and `tail` pixels beyond them
ARGUMENTS = ("a", "b", "steps", "tail", "images", "c")


@dataclass(frozen=True)
class DotTile(OfVectors):
    """``rows`` rows, ``a_step`` elements apart, by a column for each of ``b_offsets`` (in elements).

    Images of A and B are ``a_image`` and ``b_image`` elements apart, rows of C ``c_row`` vectors. ``ahead`` fetches the
    next image of A into the cache: for tiles that pass A once.
    """

    dtype: str
    rows: int
    a_step: int
    b_offsets: tuple
    a_image: int
    b_image: int
    c_row: int
    ahead: bool

    @property
    def name(self):
        return f"dots_{self.dtype}_{self.rows}x{len(self.b_offsets)}"


def most_dot_rows(columns):
    """Rows of a tile of that many columns that stays in registers: sums, all of the shorter side, one of the longer."""
    free = vector_unit().registers - (1 if vector_unit().fma else 2)
    return max((free - columns) // columns, min(free // (columns + 1), columns))


def _add_products(builder, tile, a, b, sums, mask=None):
    """One more vector of pixels for the variables ``sums``; ``mask`` leaves out some of its lanes."""
    size, width = np.dtype(tile.dtype).itemsize, len(tile.b_offsets)
    vector = ir.VectorType(element_type(tile.dtype), tile.lanes)

    def read(base, offset):
        value = load_vector(builder, builder.add(base, INT(offset * size)), vector, size)
        return value if mask is None else builder.select(mask, value, ir.Constant(vector, None))

    rows = [(a, i * tile.a_step) for i in range(tile.rows)]
    columns = [(b, offset) for offset in tile.b_offsets]
    by_row = tile.rows >= width
    held = [read(*place) for place in (columns if by_row else rows)]
    for i, place in enumerate(rows if by_row else columns):
        passing = read(*place)
        for j, value in enumerate(held):
            total = sums[i * width + j if by_row else j * width + i]
            builder.store(multiply_add(builder, passing, value, builder.load(total)), total)


def _emit(builder, tile, a, b, steps, tail, images, c):
    size, lanes = np.dtype(tile.dtype).itemsize, tile.lanes
    vector, index = ir.VectorType(element_type(tile.dtype), lanes), ir.VectorType(INT32, lanes)
    cells = [builder.add(c, INT((i * tile.c_row + j) * lanes * size))
             for i in range(tile.rows) for j in range(len(tile.b_offsets))]
    sums = [cgutils.alloca_once_value(builder, load_vector(builder, cell, vector, size)) for cell in cells]
    end = builder.mul(steps, INT(lanes * size))
    missing = builder.sub(INT(lanes), tail)  # of the last vector, whose other lanes are counted already
    back = builder.sub(end, builder.mul(missing, INT(size)))
    mask = builder.icmp_signed(">=", ir.Constant(index, list(range(lanes))),
                               broadcast(builder, builder.trunc(missing, INT32), index))
    with cgutils.for_range(builder, images) as image:
        a_first = builder.add(a, builder.mul(image.index, INT(tile.a_image * size)))
        b_first = builder.add(b, builder.mul(image.index, INT(tile.b_image * size)))
        with cgutils.for_range_slice(builder, INT(0), end, INT(lanes * size), INT) as (position, _):
            _add_products(builder, tile, builder.add(a_first, position), builder.add(b_first, position), sums)
            for i in range(tile.rows if tile.ahead else 0):
                prefetch(builder, builder.add(builder.add(a_first, position),
                                              INT((tile.a_image + i * tile.a_step) * size)))
        with builder.if_then(builder.icmp_signed(">", tail, INT(0))):
            _add_products(builder, tile, builder.add(a_first, back), builder.add(b_first, back), sums, mask)
    for cell, total in zip(cells, sums):
        builder.store(builder.load(total), pointer(builder, cell, vector)).align = size


@functools.cache
def compile_dot_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit, tile, ARGUMENTS)
