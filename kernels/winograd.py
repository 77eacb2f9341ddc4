"""Winograd's minimal filtering F(4x4, 3x3), F(2x2, 3x3) and their like: matrices, and transforms emitted as LLVM IR.

With d a patch of the input of 6 x 6 or 4 x 4, g the filter and y the outputs (Lavin and Gray 2015, arXiv 1509.09308),

    y = A^T [(G g G^T) * (B^T d B)] A        a product for each point of the patch: of 6 x 6, 36 products for 16
                                             outputs of 9 taps (4 of 25, 25 of 4), a quarter of the direct sum's
    gradient:  dg = G^T [sum over tiles (A dy A^T) * (B^T d B)] G

Small patches need more products, but less memory for transformed filters: 16 / 9 of the filters', for 36 / 9.

The interpolation points of 6 x 6 are 0, +-11/16, +-11/8 and infinity. Their powers are exact in float32, and over a
grid of pairs they gave the least error: 0.8e-6 of the largest output at 256 channels, against 2.9e-6 with 0, +-1, +-2.
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .simd import (
    INT,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    unknown,
    vector_unit,
)

# Inputs that a tile reads in each direction, its outputs plus the filter's taps less one: their positive points.
GRIDS = {6: (11 / 16, 11 / 8), 4: (1,)}
GRID = 6  # of the filter gradient and of the adjoint, whatever the image
POINTS = GRID * GRID


def taps_of(grid=GRID):
    """Sizes of filters that tiles take: two outputs in each direction, at least."""
    return range(2, grid)


def tile_of(taps, grid=GRID):
    """Outputs of a tile in each direction."""
    return grid + 1 - taps


def _matrices(grid, taps):
    """B^T (grid x grid), G (grid x taps), A^T (outputs x grid)."""
    finite = [0, *(sign * point for point in GRIDS[grid] for sign in (1, -1))]
    others = [[q for q in finite if q != p] for p in finite]
    input_rows = [[*np.poly(roots)[::-1], 0] for roots in others] + [np.poly(finite)[::-1]]
    filter_rows = [[p**i / np.prod(np.subtract(p, roots)) for i in range(taps)] for p, roots in zip(finite, others)]
    tile = tile_of(taps, grid)
    output_rows = [[p**i for p in finite] + [float(i == tile - 1)] for i in range(tile)]
    last = [0] * (taps - 1) + [1]
    return np.array(input_rows), np.array([*filter_rows, last]), np.array(output_rows)


def points_of(taps, grid=GRID):
    """The points that a filter reaches, in their order; ``taps`` is a square of booleans: which are not zero."""
    matrix = np.abs(_matrices(grid, len(taps))[1])
    return np.flatnonzero(matrix @ taps @ matrix.T)


def _weighted_sum(builder, coefficients, values):
    """Sum of coefficient * value over the non-zero ones; None where there is none."""
    total = None
    terms = sorted(((c, v) for c, v in zip(coefficients, values) if c), key=lambda t: (t[0] != 1, abs(t[0]) != 1))
    for coefficient, value in terms:
        vector = value.type
        scale = ir.Constant(vector, [float(coefficient)] * vector.count)
        if total is None:
            total = value if coefficient == 1 else builder.fmul(scale, value)
        elif abs(coefficient) == 1:
            total = builder.fadd(total, value) if coefficient == 1 else builder.fsub(total, value)
        else:
            total = multiply_add(builder, scale, value, total)
    return total


def _split_sum(builder, row, values):
    even = _weighted_sum(builder, [c if j % 2 == 0 else 0 for j, c in enumerate(row)], values)
    odd = _weighted_sum(builder, [c if j % 2 else 0 for j, c in enumerate(row)], values)
    return even, odd


def _has_paired_columns(matrix):
    """Whether the columns of -p are those of +p with the sign of every second row turned."""
    signs, columns = (-1.0) ** np.arange(len(matrix)), matrix.shape[1]
    return columns in GRIDS and all((matrix[:, j + 1] == signs * matrix[:, j]).all() for j in range(1, columns - 1, 2))


def _apply(builder, matrix, values):
    """``matrix @ values``. Points come as +p, -p: such rows share their even and odd parts, such columns their sums."""
    last = len(values) - 1
    if _has_paired_columns(matrix):  # A^T, B, G^T: combine the columns of +p and -p first
        sums = list(values)
        for j in range(1, last, 2):
            sums[j:j + 2] = builder.fadd(*values[j:j + 2]), builder.fsub(*values[j:j + 2])
        rows = matrix.copy()
        for j in range(1, last, 2):
            rows[1::2, j] = rows[::2, j + 1] = 0  # even rows have the sum of a pair, odd rows the difference,
            rows[1::2, j + 1] = matrix[1::2, j]  # as often as its first
        return [_weighted_sum(builder, row, sums) for row in rows]
    results = [_weighted_sum(builder, matrix[0], values)]
    for i in range(1, len(matrix) - 1, 2):
        even, odd = _split_sum(builder, matrix[i], values)
        results += [builder.fadd(even, odd), builder.fsub(even, odd)]
    return [*results, _weighted_sum(builder, matrix[-1], values)]


PURPOSES = {  # of transforms: which of the matrices M, and whether transposed
    "input": (0, False),  # points of a patch
    "filter": (1, False),  # points of taps
    "output": (2, False),  # outputs of points
    "rectified": (2, False),  # and their ReLU
    "gradient": (2, True),  # points of gradients of outputs
    "sums": (1, True),  # taps of points
    "patch": (0, True),  # gradients of a patch of points, added to it
}


@dataclass(frozen=True)
class Transform:
    """``M X M^T`` of square grids of vectors."""

    dtype: str
    purpose: str
    grid: int
    taps: int

    @property
    def matrix(self):
        which, transposed = PURPOSES[self.purpose]
        matrix = _matrices(self.grid, self.taps)[which]
        return matrix.T if transposed else matrix

    @property
    def name(self):
        return f"transform_{self.purpose}_{self.grid}_{self.taps}_{self.dtype}"

    @property
    def arguments(self):
        return ARGUMENTS + ADDEND * (self.purpose in ("output", "rectified"))


ARGUMENTS = (
    "source", "source_row", "source_column", "source_step", "out", "out_row", "out_column", "out_step", "count")
ADDEND = ("addend", "addend_step")  # a vector for each grid's outputs, such as a bias; address 0 is none


def _emit_transform(builder, transform, source, source_row, source_column, source_step, out, out_row, out_column,
                    out_step, count, addend=None, addend_step=None):
    """``count`` grids X, ``source_step`` bytes apart, each at byte distances from its address; results go likewise.

    Rows are written in their order. Addresses are added up: LLVM would keep one for each element, more than there are
    registers.
    """
    size_out, size_in = transform.matrix.shape
    size = np.dtype(transform.dtype).itemsize
    vector = ir.VectorType(element_type(transform.dtype), vector_unit().lanes(transform.dtype))

    def line(start, step, length):
        return [builder.add(start, builder.mul(step, INT(i))) for i in range(length)]

    blank = ir.Constant(vector, None)
    with cgutils.for_range(builder, count) as grid:
        numbers = cgutils.alloca_once_value(builder, blank)
        if addend is not None:
            with builder.if_then(builder.icmp_signed("!=", addend, INT(0))):
                at = builder.add(addend, builder.mul(addend_step, grid.index))
                builder.store(load_vector(builder, at, vector, size), numbers)
        by_column, at = [], builder.add(source, builder.mul(source_step, grid.index))
        for _ in range(size_in):
            at = builder.add(unknown(builder, at), source_column if by_column else INT(0))
            by_column.append(_apply(builder, transform.matrix, [
                load_vector(builder, place, vector, size) for place in line(at, source_row, size_in)]))
        at = builder.add(out, builder.mul(out_step, grid.index))
        for i in range(size_out):
            at = builder.add(unknown(builder, at), out_row if i else INT(0))
            results = _apply(builder, transform.matrix, [column[i] for column in by_column])
            for place, result in zip(line(at, out_column, size_out), results):
                if transform.purpose == "patch":
                    result = builder.fadd(load_vector(builder, place, vector, size), result)
                if addend is not None:
                    result = builder.fadd(result, builder.load(numbers))
                if transform.purpose == "rectified":
                    result = builder.select(builder.fcmp_ordered("<=", result, blank), blank, result)
                builder.store(result, pointer(builder, place, vector)).align = size


@functools.cache
def compile_transform(transform):
    """The transform as machine code, which :func:`.simd.call_tile` calls."""
    return compile_micro_kernel(_emit_transform, transform, transform.arguments)


def compile_transforms(dtype, grid, taps, **purposes):
    """Fields of a geometry record with the entries of transforms, and what is compiled."""
    compiled = {field: compile_transform(Transform(dtype, purpose, grid, taps)) for field, purpose in purposes.items()}
    return {field: micro_kernel.address for field, micro_kernel in compiled.items()}, tuple(compiled.values())
