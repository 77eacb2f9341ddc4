"""Sums over the windows of a row of pixels, and back, emitted as vector code.

Window j covers the columns from ``stride`` j on, ``width`` of them: the row has zeros where windows reach over the
image's edges. Rows are short and lie in scratch memory: whole vectors of them are read, and in :func:`spread` written.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .pool_tile import rolled, woven
from .simd import INT, INT32, broadcast, element_type, load_vector, load_where, pointer, store_where, vector_unit


def _in_vectors(builder, count, lanes, piece):
    """``piece(position, inside)`` for all of ``count`` elements; ``inside`` masks those of the last vector, or is None.
    """
    filled, index = builder.and_(count, INT(-lanes)), ir.VectorType(INT32, lanes)
    with cgutils.for_range_slice(builder, INT(0), filled, INT(lanes), INT) as (position, _):
        piece(position, None)
    rest = builder.sub(count, filled)
    with builder.if_then(builder.icmp_signed(">", rest, INT(0))):
        last = broadcast(builder, builder.trunc(rest, INT32), index)
        piece(filled, builder.icmp_signed("<", ir.Constant(index, list(range(lanes))), last))


def _emit_rows(builder, dtype, most, out, divisor, source, pitch, rows, count):
    size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
    vector = ir.VectorType(element_type(dtype), lanes)

    def piece(position, inside):
        def add(row):
            place = builder.add(first, builder.mul(row, pitch))
            read = load_vector(builder, place, vector, size) if inside is None else (
                load_where(builder, pointer(builder, place, vector), inside, size))
            builder.store(builder.fadd(builder.load(total), read), total)

        distance = builder.mul(position, INT(size))
        first, total = builder.add(source, distance), cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, None), total)
        with builder.if_else(builder.icmp_signed("==", rows, INT(most)), likely=True) as (all_rows, fewer):
            with all_rows:
                for row in range(most):
                    add(INT(row))
            with fewer, rolled(builder, rows) as row:
                add(row)
        result = builder.load(total)
        if divisor is not None:
            result = builder.fdiv(result, broadcast(builder, divisor, vector))
        builder.store(result, pointer(builder, builder.add(out, distance), vector)).align = size

    _in_vectors(builder, count, lanes, piece)


@functools.cache
def sum_of_rows(most, divided=False):
    """Intrinsic ``(like, out, source, pitch, rows, count)``: out[j] = sum of ``rows`` rows of ``source``, at a pitch.

    For j < ``count``, and 0 up to whole vectors. Pitches in bytes, elements of the type of the scalar ``like``, which
    the sums are ``divided`` by; ``most`` rows take no loop.
    """
    @intrinsic
    def add_rows(typing_context, like, out, source, pitch, rows, count):
        def codegen(context, builder, signature, values):
            like, out, *rest = values
            _emit_rows(builder, str(signature.args[0]), most, out, like if divided else None, *rest)
            return context.get_dummy_value()
        return types.void(like, *[types.intp] * 5), codegen
    return add_rows


@functools.cache
def window_means(stride, width):
    """Intrinsic ``(out, source, row_divisor, divisors, count)``: out[j] = sum of window j / its divisor.

    Which is ``row_divisor`` divisors[j], of the element type as they are; the others are addresses. Of ``out`` nothing
    is written but ``count`` elements.
    """
    @intrinsic
    def means(typing_context, out, source, row_divisor, divisors, count):
        def codegen(context, builder, signature, values):
            out, source, row_divisor, divisors, count = values
            dtype = str(signature.args[2])
            size, lanes, element = np.dtype(dtype).itemsize, vector_unit().lanes(dtype), element_type(dtype)

            def piece(position, inside):
                distance = builder.mul(position, INT(size))
                first = builder.add(source, builder.mul(distance, INT(stride)))
                order = ir.Constant(ir.VectorType(INT32, lanes), list(range(0, lanes * stride, stride)))
                vector, total = ir.VectorType(element, lanes), None
                for column in range(width):
                    read = load_vector(builder, builder.add(first, INT(column * size)),
                                       ir.VectorType(element, lanes * stride), size)
                    cells = builder.shuffle_vector(read, read, order)
                    total = builder.fadd(total, cells) if total else cells
                divisor = builder.fmul(broadcast(builder, row_divisor, vector),
                                       load_vector(builder, builder.add(divisors, distance), vector, size))
                mean, target = builder.fdiv(total, divisor), pointer(builder, builder.add(out, distance), vector)
                if inside is None:
                    builder.store(mean, target).align = size
                else:
                    store_where(builder, mean, target, inside, size)
            _in_vectors(builder, count, lanes, piece)
            return context.get_dummy_value()
        return types.void(types.intp, types.intp, row_divisor, types.intp, types.intp), codegen
    return means


@functools.cache
def spread(stride, width):
    """Intrinsic ``(like, out, source, vectors)``: out[i] = sum of source[j] over the windows j that cover column i.

    For the columns of ``vectors`` vectors of windows; addresses, of elements of the type of the scalar ``like``. There
    are zeros in ``source`` wherever there is no window, on both sides.
    """
    @intrinsic
    def spread_windows(typing_context, like, out, source, vectors):
        def codegen(context, builder, signature, values):
            _, out, source, vectors = values
            dtype = str(signature.args[0])
            size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
            vector = ir.VectorType(element_type(dtype), lanes)
            with cgutils.for_range(builder, vectors) as index:
                distance = builder.mul(index.index, INT(lanes * size))
                first = builder.add(source, distance)
                # source[j - i] covers column stride j + phase with its cell stride i + phase
                shares = [load_vector(builder, builder.sub(first, INT(i * size)), vector, size)
                          for i in range(-(-width // stride))]
                met = [shares[:len(range(phase, width, stride))] for phase in range(stride)]
                columns = woven(builder, [functools.reduce(builder.fadd, found) if found else ir.Constant(vector, None)
                                          for found in met])
                target = builder.add(out, builder.mul(distance, INT(stride)))
                builder.store(columns, pointer(builder, target, columns.type)).align = size
            return context.get_dummy_value()
        return types.void(like, *[types.intp] * 3), codegen
    return spread_windows
