"""The micro-kernel of sums over pixels in the lanes, emitted as LLVM IR:

    C[i][j][lane] += sum over t of  A[i * a_step + t * lanes + lane] * B[b_offset[j] + t * lanes + lane]

for rows i and columns j: both operands are read as they lie, and the lanes are added up once, at the end of a chunk.
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

# addresses and strides in bytes; `steps` whole vectors, and `tail` pixels beyond them
ARGUMENTS = ("a", "b", "steps", "tail", "c", "c_row")
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


def _products(builder, tile, a, b, sums, mask=None):
    """The sums after one more vector of pixels; ``mask`` leaves out some of its lanes."""
    size = np.dtype(tile.dtype).itemsize
    vector = sums[0].type

    def read(base, offset):
        value = load_vector(builder, builder.add(base, INT(offset * size)), vector, size)
        return value if mask is None else builder.select(mask, value, ir.Constant(vector, None))

    columns = [read(b, offset) for offset in tile.b_offsets]
    updated = []
    for i in range(tile.rows):
        row = read(a, i * tile.a_step)
        updated += [multiply_add(builder, row, column, sums[i * len(columns) + j]) for j, column in enumerate(columns)]
    return updated


def _emit(builder, tile, a, b, steps, tail, c, c_row):
    size, lanes = np.dtype(tile.dtype).itemsize, tile.lanes
    vector, index = ir.VectorType(element_type(tile.dtype), lanes), ir.VectorType(INT32, lanes)
    step = lanes * size
    cells = [builder.add(builder.add(c, builder.mul(c_row, INT(i))), INT(j * step))
             for i in range(tile.rows) for j in range(len(tile.b_offsets))]
    first = [load_vector(builder, cell, vector, size) for cell in cells]
    head = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("loop", "done"))
    end = builder.mul(steps, INT(step))
    builder.cbranch(builder.icmp_signed(">", steps, INT(0)), loop, done)

    builder.position_at_end(loop)
    position = builder.phi(INT)
    sums = [builder.phi(vector) for _ in cells]
    updated = _products(builder, tile, builder.add(a, position), builder.add(b, position), sums)
    following = builder.add(position, INT(step))
    for phi, before, after in zip([position, *sums], [INT(0), *first], [following, *updated]):
        phi.add_incoming(before, head)
        phi.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, done)

    builder.position_at_end(done)
    results = [builder.phi(vector) for _ in cells]
    for result, before, after in zip(results, first, updated):
        result.add_incoming(before, head)
        result.add_incoming(after, loop)
    totals = [cgutils.alloca_once_value(builder, result) for result in results]
    with builder.if_then(builder.icmp_signed(">", tail, INT(0))):  # the last `lanes` pixels, of which `tail` are new
        back = builder.sub(end, builder.mul(builder.sub(INT(lanes), tail), INT(size)))
        known = builder.trunc(builder.sub(INT(lanes), tail), INT32)
        mask = builder.icmp_signed(">=", ir.Constant(index, list(range(lanes))), broadcast(builder, known, index))
        sums = [builder.load(slot) for slot in totals]
        for slot, value in zip(totals, _products(
                builder, tile, builder.add(a, back), builder.add(b, back), sums, mask)):
            builder.store(value, slot)
    for cell, slot in zip(cells, totals):
        builder.store(builder.load(slot), pointer(builder, cell, vector)).align = size


@functools.cache
def compile_dot_tile(tile):
    """The tile as a C callback; its ``.address`` is what drivers hand to :func:`.simd.call_tile`."""
    @intrinsic
    def emitted(typing_context, arguments):
        def codegen(context, builder, signature, values):
            _emit(builder, tile, *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()
        return types.void(arguments), codegen

    def micro_kernel(a, b, steps, tail, c, c_row):
        emitted((a, b, steps, tail, c, c_row))

    callback = CFunc(micro_kernel, (SIGNATURE.args, SIGNATURE.return_type), locals={}, options={"nopython": True})
    callback._cache = SourceCache(tile.name, repr((tile, vector_unit())))
    callback.compile()
    return callback
