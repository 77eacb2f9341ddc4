"""Rows of pixels: copied, cut out, padded, cleared and added, as emitted vector code."""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import INT, INT32, broadcast, element_type, load_vector, pointer, prefetch, vector_unit

LARGEST_ADVANCE = 4  # beyond, most of what a vector load brings is thrown away


def _emit_piece(builder, dtype, lanes, out, source):
    """Copy ``lanes`` elements to address ``out``; zeros where ``source`` is None."""
    size = np.dtype(dtype).itemsize
    vector = ir.VectorType(element_type(dtype), lanes)
    value = ir.Constant(vector, None) if source is None else load_vector(builder, source, vector, size)
    builder.store(value, pointer(builder, out, vector)).align = size


def _emit_run(builder, dtype, out, source, count):
    """Copy or clear ``count`` elements without a loop where that is up to 4 vectors.

    LLVM turns such loops into calls of memcpy and memset, which take longer than a short row itself.
    """
    size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)

    def piece(width, position):
        distance = builder.mul(position, INT(size))
        _emit_piece(builder, dtype, width, builder.add(out, distance), source and builder.add(source, distance))

    with builder.if_else(builder.icmp_signed(">=", count, INT(lanes))) as (whole, part):
        with whole:
            last = builder.sub(count, INT(lanes))  # the last vector overlaps the one before
            for i in range(4):
                reached = builder.icmp_signed("<", INT(i * lanes), last)
                piece(lanes, builder.select(reached, INT(i * lanes), last))
            with cgutils.for_range_slice(builder, INT(4 * lanes), last, INT(lanes), INT) as (position, _):
                piece(lanes, position)
            piece(lanes, last)
        with part:
            width = lanes // 2
            while width:
                with builder.if_then(builder.icmp_signed("!=", builder.and_(count, INT(width)), INT(0))):
                    piece(width, builder.and_(count, INT(-2 * width)))
                width //= 2


@intrinsic
def copy_run(typing_context, like, out, source, count):
    """Copy ``count`` elements of the type of the scalar ``like`` between addresses that do not overlap."""
    def codegen(context, builder, signature, values):
        _emit_run(builder, str(signature.args[0]), values[1], values[2], values[3])
        return context.get_dummy_value()
    return types.void(like, types.intp, types.intp, types.intp), codegen


def _emit_block(builder, dtype, out, out_pitch, source, source_pitch, rows, vectors, ahead=None):
    """Copy rows of whole vectors, or clear them where ``source`` is None; fetch what lies ``ahead`` of each."""
    step = INT(vector_unit().lanes(dtype) * np.dtype(dtype).itemsize)
    row_bytes = builder.mul(vectors, step)
    with cgutils.for_range(builder, rows) as row:
        to = builder.add(out, builder.mul(row.index, out_pitch))
        at = source and builder.add(source, builder.mul(row.index, source_pitch))
        with cgutils.for_range_slice(builder, INT(0), row_bytes, step, INT) as (place, _):
            _emit_piece(builder, dtype, vector_unit().lanes(dtype), builder.add(to, place),
                        source and builder.add(at, place))
            if ahead is not None:
                prefetch(builder, builder.add(builder.add(at, place), ahead))


def _emit_runs(builder, dtype, out, out_pitch, source, source_pitch, rows, count):
    """Copy rows of ``count`` elements, or clear them where ``source`` is None."""
    lanes = vector_unit().lanes(dtype)
    rest = builder.and_(count, INT(lanes - 1))
    with builder.if_else(builder.icmp_signed("==", rest, INT(0)), likely=True) as (whole, ragged):
        with whole:
            _emit_block(builder, dtype, out, out_pitch, source, source_pitch, rows, builder.udiv(count, INT(lanes)))
        with ragged, cgutils.for_range(builder, rows) as row:
            _emit_run(builder, dtype, builder.add(out, builder.mul(row.index, out_pitch)),
                      source and builder.add(source, builder.mul(row.index, source_pitch)), count)


@intrinsic
def copy_block(typing_context, like, out, out_pitch, source, source_pitch, rows, vectors):
    """Copy ``rows`` rows of whole vectors of the type of the scalar ``like``; addresses and pitches are in bytes."""
    def codegen(context, builder, signature, values):
        _emit_block(builder, str(signature.args[0]), *values[1:])
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 6), codegen


@intrinsic
def copy_block_ahead(typing_context, like, out, out_pitch, source, source_pitch, rows, vectors, ahead):
    """:func:`copy_block`, fetching what lies ``ahead`` bytes behind each vector."""
    def codegen(context, builder, signature, values):
        _emit_block(builder, str(signature.args[0]), *values[1:])
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 7), codegen


@intrinsic
def copy_runs(typing_context, like, out, out_pitch, source, source_pitch, rows, count):
    """:func:`copy_block` of any number of elements a row."""
    def codegen(context, builder, signature, values):
        _emit_runs(builder, str(signature.args[0]), *values[1:])
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 6), codegen


@intrinsic
def clear_run(typing_context, like, out, count):
    """Zero ``count`` elements of the type of the scalar ``like`` from an address."""
    def codegen(context, builder, signature, values):
        _emit_run(builder, str(signature.args[0]), values[1], None, values[2])
        return context.get_dummy_value()
    return types.void(like, types.intp, types.intp), codegen


@intrinsic
def clear_runs(typing_context, like, out, out_pitch, rows, count):
    """:func:`clear_run` of several rows."""
    def codegen(context, builder, signature, values):
        _, out, out_pitch, rows, count = values
        _emit_runs(builder, str(signature.args[0]), out, out_pitch, None, None, rows, count)
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 4), codegen


def _columns(builder, position, index):
    """The columns in a vector from ``position`` on, as a vector of the type ``index``."""
    return builder.add(broadcast(builder, builder.trunc(position, INT32), index),
                       ir.Constant(index, list(range(index.count))))


@functools.cache
def window(advance):
    """Intrinsic ``(like, out, source, row_pitch, rows, first, last, columns)``: rows of pixels with their padding.

    out[i][j] = source[i row_pitch + advance j] for first <= j < last, else 0, for ``columns`` rounded up to vectors,
    all of which is read and written: the rightmost vectors go first, as they spill into the row that follows.
    Addresses and ``row_pitch`` are in bytes, ``like`` is a scalar of the element type.
    """
    @intrinsic
    def copy_window(typing_context, like, out, source, row_pitch, rows, first, last, columns):
        def codegen(context, builder, signature, values):
            dtype = str(signature.args[0])
            size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
            element = element_type(dtype)
            wide, vector, index = (ir.VectorType(kind, count) for kind, count in (
                (element, lanes * advance), (element, lanes), (INT32, lanes)))
            _, out, source, row_pitch, rows, first, last, columns = values
            first, last = (broadcast(builder, builder.trunc(value, INT32), index) for value in (first, last))
            out_pitch = builder.mul(columns, INT(size))
            blocks = builder.udiv(builder.add(columns, INT(lanes - 1)), INT(lanes))
            with cgutils.for_range(builder, blocks) as block:
                position = builder.mul(builder.sub(builder.sub(blocks, INT(1)), block.index), INT(lanes))
                column = _columns(builder, position, index)
                inside = builder.and_(builder.icmp_signed(">=", column, first), builder.icmp_signed("<", column, last))
                at = builder.add(source, builder.mul(position, INT(size * advance)))
                to = builder.add(out, builder.mul(position, INT(size)))
                with cgutils.for_range(builder, rows) as row:
                    read = load_vector(builder, builder.add(at, builder.mul(row.index, row_pitch)), wide, size)
                    if advance > 1:
                        order = ir.Constant(index, list(range(0, lanes * advance, advance)))
                        read = builder.shuffle_vector(read, read, order)
                    kept = builder.select(inside, read, ir.Constant(vector, None))
                    target = pointer(builder, builder.add(to, builder.mul(row.index, out_pitch)), vector)
                    builder.store(kept, target).align = size
            return context.get_dummy_value()
        return types.void(like, *[types.intp] * 7), codegen
    return copy_window


@intrinsic
def add_window(typing_context, like, out, out_pitch, source, source_pitch, rows, columns):
    """out[i][j] += source[i][j] for j < ``columns``: addresses and pitches in bytes, whole vectors are read.

    What a vector reaches behind a row of ``out`` stays as it is, but is written.
    """
    def codegen(context, builder, signature, values):
        dtype = str(signature.args[0])
        size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
        vector, index = ir.VectorType(element_type(dtype), lanes), ir.VectorType(INT32, lanes)
        _, out, out_pitch, source, source_pitch, rows, columns = values
        last = broadcast(builder, builder.trunc(columns, INT32), index)
        with cgutils.for_range_slice(builder, INT(0), columns, INT(lanes), INT) as (position, _):
            inside = builder.icmp_signed("<", _columns(builder, position, index), last)
            to, at = (builder.add(base, builder.mul(position, INT(size))) for base in (out, source))
            with cgutils.for_range(builder, rows) as row:
                place = builder.add(to, builder.mul(row.index, out_pitch))
                read = load_vector(builder, builder.add(at, builder.mul(row.index, source_pitch)), vector, size)
                kept = builder.select(inside, read, ir.Constant(vector, None))
                total = builder.fadd(load_vector(builder, place, vector, size), kept)
                builder.store(total, pointer(builder, place, vector)).align = size
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 6), codegen


def in_pieces(builder, count, widest, piece):
    """``piece(width, position)`` for all of ``count`` elements; the last piece overlaps the one before.

    The pieces are the ``widest``, a power of two, halved until it fits.
    """
    if widest == 1:
        with cgutils.for_range(builder, count) as position:
            piece(1, position.index)
        return
    with builder.if_else(builder.icmp_signed(">=", count, INT(widest))) as (filled, short):
        with filled:
            last = builder.sub(count, INT(widest))
            with cgutils.for_range_slice(builder, INT(0), last, INT(widest), INT) as (position, _):
                piece(widest, position)
            piece(widest, last)
        with short:
            in_pieces(builder, count, widest // 2, piece)


@intrinsic
def mean_of_cells(typing_context, out, divisor, source, row_pitch, rows, pitch, columns, count):
    """out[i] = (sum of ``rows`` x ``columns`` cells of ``source``, at pitches in bytes, at i) / ``divisor``.

    For i < ``count``; ``divisor`` is of the element type.
    """
    def codegen(context, builder, signature, values):
        out, divisor, source, row_pitch, rows, pitch, columns, count = values
        dtype = str(signature.args[1])
        size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)

        def piece(width, position):
            distance = builder.mul(position, INT(size))
            vector = ir.VectorType(element_type(dtype), min(width, lanes))
            places = [builder.add(distance, INT(first * size)) for first in range(0, width, lanes)]
            sums = [cgutils.alloca_once(builder, vector) for _ in places]
            for total in sums:
                builder.store(ir.Constant(vector, None), total)
            with cgutils.for_range(builder, rows) as row:
                start = builder.add(source, builder.mul(row.index, row_pitch))
                with cgutils.for_range(builder, columns) as column:
                    cell = builder.add(start, builder.mul(column.index, pitch))
                    for place, total in zip(places, sums):
                        read = load_vector(builder, builder.add(cell, place), vector, size)
                        builder.store(builder.fadd(builder.load(total), read), total)
            for place, total in zip(places, sums):
                mean = builder.fdiv(builder.load(total), broadcast(builder, divisor, vector))
                builder.store(mean, pointer(builder, builder.add(out, place), vector)).align = size

        in_pieces(builder, count, 4 * lanes, piece)
        return context.get_dummy_value()
    return types.void(types.intp, divisor, *[types.intp] * 6), codegen


@intrinsic
def fill_run(typing_context, out, value, count):
    """Write a number ``count`` times from an address on."""
    def codegen(context, builder, signature, values):
        out, value, count = values
        dtype = str(signature.args[1])
        size = np.dtype(dtype).itemsize

        def piece(width, position):
            vector = ir.VectorType(value.type, width)
            target = pointer(builder, builder.add(out, builder.mul(position, INT(size))), vector)
            builder.store(broadcast(builder, value, vector), target).align = size
        in_pieces(builder, count, vector_unit().lanes(dtype), piece)
        return context.get_dummy_value()
    return types.void(types.intp, value, types.intp), codegen


@intrinsic
def move_run(typing_context, like, out, out_step, source, source_step, count):
    """out[out_step j] = source[source_step j], between addresses of elements of the type of the scalar ``like``."""
    def codegen(context, builder, signature, values):
        _, out, out_step, source, source_step, count = values
        size, element = np.dtype(str(signature.args[0])).itemsize, element_type(str(signature.args[0]))
        with cgutils.for_range(builder, count) as place:
            index = builder.mul(place.index, INT(size))
            read = load_vector(builder, builder.add(source, builder.mul(index, source_step)), element, size)
            target = builder.add(out, builder.mul(index, out_step))
            builder.store(read, pointer(builder, target, element)).align = size
        return context.get_dummy_value()
    return types.void(like, *[types.intp] * 5), codegen


@functools.cache
def every(advance):
    """Intrinsic ``(like, out, source, count)``: out[j] = source[advance j], reading nothing beyond the last of them."""
    @intrinsic
    def take(typing_context, like, out, source, count):
        def codegen(context, builder, signature, values):
            _, out, source, count = values
            size, lanes = np.dtype(str(signature.args[0])).itemsize, vector_unit().lanes(str(signature.args[0]))
            element = element_type(str(signature.args[0]))
            whole = builder.sub(count, INT(1))

            def piece(width, position):
                distance = builder.mul(position, INT(size))
                at = builder.add(source, builder.mul(distance, INT(advance)))
                read = load_vector(builder, at, ir.VectorType(element, width * advance), size)
                order = ir.Constant(ir.VectorType(INT32, width), list(range(0, width * advance, advance)))
                target = pointer(builder, builder.add(out, distance), ir.VectorType(element, width))
                builder.store(builder.shuffle_vector(read, read, order), target).align = size

            with cgutils.for_range_slice(builder, INT(0), builder.and_(whole, INT(-lanes)), INT(lanes), INT) as (at, _):
                piece(lanes, at)
            width = lanes // 2
            while width:
                with builder.if_then(builder.icmp_signed("!=", builder.and_(whole, INT(width)), INT(0))):
                    piece(width, builder.and_(whole, INT(-2 * width)))
                width //= 2
            distance = builder.mul(whole, INT(size))
            last = load_vector(builder, builder.add(source, builder.mul(distance, INT(advance))), element, size)
            builder.store(last, pointer(builder, builder.add(out, distance), element)).align = size
            return context.get_dummy_value()
        return types.void(like, *[types.intp] * 3), codegen
    return take


@intrinsic
def prefetch_rows(typing_context, source, row_pitch, rows):
    """Fetch the cache line at an address, and that at every ``row_pitch`` bytes further, for ``rows`` in all."""
    def codegen(context, builder, signature, values):
        source, row_pitch, rows = values
        with cgutils.for_range(builder, rows) as row:
            prefetch(builder, builder.add(source, builder.mul(row.index, row_pitch)))
        return context.get_dummy_value()
    return types.void(*[types.intp] * 3), codegen
