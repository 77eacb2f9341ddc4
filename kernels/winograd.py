"""Winograd's minimal filtering F(4x4, 3x3) and F(2x2, 5x5): matrices, and the transforms emitted as LLVM IR.

With d a 6 x 6 patch of the input, g the filter and y the outputs (Lavin and Gray 2015, arXiv 1509.09308),

    y = A^T [(G g G^T) * (B^T d B)] A        36 products for 16 outputs of 9 taps, or for 4 of 25: a quarter, a third

    gradient:  dg = G^T [sum over tiles (A dy A^T) * (B^T d B)] G

The interpolation points are 0, +-11/16, +-11/8 and infinity. Their powers are exact in float32, and over a grid of
pairs they gave the least error: 0.8e-6 of the largest output at 256 channels, against 2.9e-6 with 0, +-1, +-2.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import device_function
from .simd import INT, element_type, load_vector, multiply_add, pointer, vector_unit

PATCH = 6  # inputs that a tile reads in each direction: its outputs plus the filter's taps less one
TAPS = 3, 5  # of the filters
POINTS = PATCH * PATCH
NEAR, FAR = 11 / 16, 11 / 8


def tile_of(taps):
    """Outputs of a tile in each direction."""
    return PATCH + 1 - taps


def _matrices(a, b, taps):
    a2, b2 = a * a, b * b
    input_rows = [[a2 * b2, 0, -(a2 + b2), 0, 1, 0],
                  [0, -a * b2, -b2, a, 1, 0],
                  [0, a * b2, -b2, -a, 1, 0],
                  [0, -b * a2, -a2, b, 1, 0],
                  [0, b * a2, -a2, -b, 1, 0],
                  [0, a2 * b2, 0, -(a2 + b2), 0, 1]]
    scales = (a2 * b2, 2 * a2 * (a2 - b2), 2 * b2 * (b2 - a2))
    filter_rows = [[p**i / scale for i in range(taps)]
                   for p, scale in zip((0, a, -a, b, -b), (scales[0], *[scales[1]] * 2, *[scales[2]] * 2))]
    tile = tile_of(taps)
    output_rows = [[p**i for p in (0, a, -a, b, -b)] + [float(i == tile - 1)] for i in range(tile)]
    last = [0] * (taps - 1) + [1]
    return np.array(input_rows), np.array([*filter_rows, last]), np.array(output_rows)


INPUT, FILTER, OUTPUT = _matrices(NEAR, FAR, 3)  # B^T (6 x 6), G (6 x 3), A^T (4 x 6)
_, FILTER5, OUTPUT5 = _matrices(NEAR, FAR, 5)  # the same B^T, G (6 x 5), A^T (2 x 6)


def _weighted_sum(builder, coefficients, values):
    """Sum of coefficient * value over the non-zero ones; None where there is none."""
    total = None
    terms = sorted(((c, v) for c, v in zip(coefficients, values) if c and v is not None), key=lambda t: abs(t[0]) != 1)
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
    signs = (-1.0) ** np.arange(len(matrix))
    return matrix.shape[1] == PATCH and all((matrix[:, j + 1] == signs * matrix[:, j]).all() for j in (1, 3))


def _apply(builder, matrix, values):
    """``matrix @ values``. Points come as +p, -p: such rows share their even and odd parts, such columns their sums."""
    if _has_paired_columns(matrix):  # A^T, B, G^T: combine the columns of +p and -p first
        sums = [values[0], None, None, None, None, values[5]]
        for j in (1, 3):
            sums[j] = builder.fadd(values[j], values[j + 1])
            sums[j + 1] = builder.fsub(values[j], values[j + 1])
        return [_weighted_sum(builder, [row[0], *(row[j] if i % 2 == (j % 2 == 0) else 0 for j in (1, 2, 3, 4)),
                                        row[5]],
                              [sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]])
                for i, row in enumerate([[r[0], r[1], r[1], r[3], r[3], r[5]] for r in matrix])]
    results = [_weighted_sum(builder, matrix[0], values)]
    for i in (1, 3):
        even, odd = _split_sum(builder, matrix[i], values)
        results += [builder.fadd(even, odd), builder.fsub(even, odd)]
    return [*results, _weighted_sum(builder, matrix[5], values)]


def _grid_transform(matrix, add=False):
    """Intrinsic ``(like, (source, source_row, source_column, out, out_row, out_column))``: ``M X M^T``.

    X is a square grid of vectors at byte distances from ``source``; the result goes to ``out`` likewise, or is added
    to what is there. ``like`` is a scalar of the element type.
    """
    size_out, size_in = matrix.shape

    @intrinsic
    def transform(typing_context, like, arguments):
        def codegen(context, builder, signature, values):
            source, source_row, source_column, out, out_row, out_column = cgutils.unpack_tuple(builder, values[1])
            dtype = str(signature.args[0])
            size = np.dtype(dtype).itemsize
            vector = ir.VectorType(element_type(dtype), vector_unit().lanes(dtype))

            def place(base, row, column, i, j):
                return builder.add(builder.add(base, builder.mul(row, INT(i))), builder.mul(column, INT(j)))

            by_column = [_apply(builder, matrix, [
                load_vector(builder, place(source, source_row, source_column, i, j), vector, size)
                for i in range(size_in)]) for j in range(size_in)]
            for i in range(size_out):
                for j, result in enumerate(_apply(builder, matrix, [column[i] for column in by_column])):
                    at = place(out, out_row, out_column, i, j)
                    if add:
                        result = builder.fadd(load_vector(builder, at, vector, size), result)
                    builder.store(result, pointer(builder, at, vector)).align = size
            return context.get_dummy_value()
        return types.void(like, types.UniTuple(types.intp, 6)), codegen

    return transform


def _for_taps(three, five):
    """The transform for filters of 3 or of 5 taps, ``(like, taps, arguments)``."""
    transform3, transform5 = _grid_transform(three), _grid_transform(five)
    alike = three is five

    @device_function(forceinline=True)
    def transform(like, taps, arguments):
        if alike or taps == 3:
            transform3(like, arguments)
        else:
            transform5(like, arguments)
    return transform


transform_input = _for_taps(INPUT, INPUT)  # 6 x 6 patch to 36 points
transform_filter = _for_taps(FILTER, FILTER5)  # taps to 36 points
transform_output = _for_taps(OUTPUT, OUTPUT5)  # 36 points to outputs
transform_gradient = _for_taps(OUTPUT.T, OUTPUT5.T)  # gradients of outputs to 36 points
transform_sums = _for_taps(FILTER.T, FILTER5.T)  # 36 points to taps
add_patch = _grid_transform(INPUT.T, add=True)  # 36 points to gradients of a 6 x 6 patch
