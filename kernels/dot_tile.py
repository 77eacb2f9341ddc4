"""The micro-kernel of sums over pixels in the lanes, emitted as LLVM IR:

    C[i][j][lane] += sum over t of  A[i * a_step + t * lanes + lane] * B[b_offset[j] + t * lanes + lane]

for rows i and columns j: both operands are read as they lie, and the lanes are added up once, at the end of a chunk.
The same run of several images is taken in one call, since loading and storing the sums costs as much as many steps.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from .jit import SourceCache
from .simd import INT, INT32, broadcast, element_type, load_vector, multiply_add, pointer, vector_unit

ARGUMENTS = ("a", "b", "steps", "tail", "images", "a_image", "b_image", "c", "c_row")  # strides in bytes
SIGNATURE = types.void(*[types.intp] * len(ARGUMENTS))


@dataclass(frozen=True)
class DotTile:
    """``rows`` rows, ``a_step`` elements apart, by a column for each of ``b_offsets`` (in elements)."""

    dtype: str
    rows: int
    a_step: int
    b_offsets: tuple

    @property
    def lanes(self):
        return vector_unit().lanes(self.dtype)

    @property
    def name(self):
        return f"dots_{self.dtype}_{self.rows}x{len(self.b_offsets)}"


def most_dot_rows(columns):
    """Rows of a tile of that many columns that stays in registers: sums, a row's operand, all columns' operands."""
    unit = vector_unit()
    return (unit.registers - columns - (1 if unit.fma else 2)) // columns


def _add_products(builder, tile, a, b, sums, mask=None):
    """Add one more vector of pixels to the sums; ``mask`` leaves out some of its lanes."""
    size = np.dtype(tile.dtype).itemsize
    vector = sums[0].type.pointee

    def read(base, offset):
        value = load_vector(builder, builder.add(base, INT(offset * size)), vector, size)
        return value if mask is None else builder.select(mask, value, ir.Constant(vector, None))

    columns = [read(b, offset) for offset in tile.b_offsets]
    for i in range(tile.rows):
        row = read(a, i * tile.a_step)
        for column, slot in zip(columns, sums[i * len(columns):]):
            builder.store(multiply_add(builder, row, column, builder.load(slot)), slot)


def _emit(builder, tile, a, b, steps, tail, images, a_image, b_image, c, c_row):
    size, lanes = np.dtype(tile.dtype).itemsize, tile.lanes
    vector, index = ir.VectorType(element_type(tile.dtype), lanes), ir.VectorType(INT32, lanes)
    step = lanes * size
    cells = [builder.add(builder.add(c, builder.mul(c_row, INT(i))), INT(j * step))
             for i in range(tile.rows) for j in range(len(tile.b_offsets))]
    sums = [cgutils.alloca_once_value(builder, load_vector(builder, cell, vector, size)) for cell in cells]
    end = builder.mul(steps, INT(step))
    known = builder.trunc(builder.sub(INT(lanes), tail), INT32)
    mask = builder.icmp_signed(">=", ir.Constant(index, list(range(lanes))), broadcast(builder, known, index))
    last = builder.sub(end, builder.mul(builder.sub(INT(lanes), tail), INT(size)))
    with cgutils.for_range(builder, images) as image:
        a_start = builder.add(a, builder.mul(image.index, a_image))
        b_start = builder.add(b, builder.mul(image.index, b_image))
        with cgutils.for_range_slice(builder, INT(0), end, INT(step), INT) as (position, _):
            _add_products(builder, tile, builder.add(a_start, position), builder.add(b_start, position), sums)
        with builder.if_then(builder.icmp_signed(">", tail, INT(0))):  # the last vector, of which `tail` lanes are new
            _add_products(builder, tile, builder.add(a_start, last), builder.add(b_start, last), sums, mask)
    for cell, slot in zip(cells, sums):
        builder.store(builder.load(slot), pointer(builder, cell, vector)).align = size


@functools.cache
def compile_dot_tile(tile):
    """The tile as a C callback; its ``.address`` is what drivers hand to :func:`call_dot_tile`."""
    @intrinsic
    def emitted(typing_context, arguments):
        def codegen(context, builder, signature, values):
            _emit(builder, tile, *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()
        return types.void(arguments), codegen

    def micro_kernel(a, b, steps, tail, images, a_image, b_image, c, c_row):
        emitted((a, b, steps, tail, images, a_image, b_image, c, c_row))

    callback = CFunc(micro_kernel, (SIGNATURE.args, SIGNATURE.return_type), locals={}, options={"nopython": True})
    callback._cache = SourceCache(tile.name, repr((tile, vector_unit())))
    callback.compile()
    return callback


@intrinsic
def call_dot_tile(typing_context, entry, arguments):
    """Call the micro-kernel at address ``entry`` with the tuple ``arguments``, in the order of ARGUMENTS.

    ``steps`` is the number of whole vectors, ``tail`` that of pixels beyond them.
    """
    def codegen(context, builder, signature, values):
        callee = builder.inttoptr(values[0], ir.FunctionType(ir.VoidType(), [INT] * len(ARGUMENTS)).as_pointer())
        builder.call(callee, cgutils.unpack_tuple(builder, values[1]))
        return context.get_dummy_value()
    return types.void(types.intp, types.UniTuple(types.intp, len(ARGUMENTS))), codegen
