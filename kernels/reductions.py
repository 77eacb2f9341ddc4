"""Sums and the maximum of a run of elements, emitted as vector code whose order is written out.

The compiler makes vectors of a sum only where it may choose the order, and then it chooses for each kernel, and for
each twin of one, anew. Here the order is a function of the run's length alone: a block of partial results takes in
the run block by block, then it is halved until one is left, and each half takes in what remains of that length.

Runs are contiguous arrays of one dimension. Sums have the type of the scalar ``like``, which may be wider than theirs.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .rows import in_pieces
from .simd import INT, INT32, broadcast, element_type, load_vector, multiply_add, pointer, vector_unit

VECTORS = 4  # to a block: enough to hide the latency of an addition
NOTHING = -0.0  # the sum of nothing: to add 0.0 would turn -0.0 into 0.0, so the compiler could not leave it out


@intrinsic
def sum_of(typing_context, like, run):
    """The sum of run[i]."""
    def codegen(context, builder, signature, values):
        run, count = _run(context, builder, signature, values, 1)

        def take(totals, position):
            return [builder.fadd(totals[0], run(position, totals[0].type))]
        return _reduced(builder, str(like), count, [NOTHING], take, builder.fadd)[0]
    return like(like, run), codegen


@intrinsic
def sum_where_not(typing_context, like, run, marks, none):
    """The sum of run[i] where marks[i], of the type of ``none``, is something else."""
    def codegen(context, builder, signature, values):
        (run, count), marks = _run(context, builder, signature, values, 1), _marks(context, builder, signature, values)

        def take(totals, position):
            kind = totals[0].type
            found, passed_over = marks(position, kind.count)
            taken = builder.select(builder.icmp_unsigned("!=", found, passed_over), run(position, kind),
                                   ir.Constant(kind, [NOTHING] * kind.count))
            return [builder.fadd(totals[0], taken)]
        return _reduced(builder, str(like), count, [NOTHING], take, builder.fadd)[0]
    return like(like, run, marks, marks.dtype), codegen


@intrinsic
def column_sums_where_not(typing_context, like, out, source, marks, none, rows, count):
    """out[j] = the sum over i, in their order, of source[i][j] where marks[i][j], of the type of ``none``, is not it.

    Addresses of contiguous ``rows`` x ``count``, elements of the type of the scalar ``like``.
    """
    def codegen(context, builder, signature, values):
        _, out, source, marks, none, rows, count = values
        dtype, mark = str(signature.args[0]), ir.IntType(signature.args[4].bitwidth)
        element, size, lanes = element_type(dtype), np.dtype(dtype).itemsize, vector_unit().lanes(dtype)

        def piece(width, position):
            kind = ir.VectorType(element, min(width, lanes))
            marked = ir.VectorType(mark, kind.count)
            places = [builder.add(position, INT(first)) for first in range(0, width, lanes)]
            sums = [cgutils.alloca_once(builder, kind) for _ in places]
            for total in sums:
                builder.store(ir.Constant(kind, None), total)
            with cgutils.for_range(builder, rows) as row:
                start = builder.mul(row.index, count)
                for place, total in zip(places, sums):
                    at = builder.add(start, place)
                    found = load_vector(builder, builder.add(marks, builder.mul(at, INT(mark.width // 8))), marked,
                                        mark.width // 8)
                    read = load_vector(builder, builder.add(source, builder.mul(at, INT(size))), kind, size)
                    taken = builder.select(builder.icmp_unsigned("!=", found, broadcast(builder, none, marked)), read,
                                           ir.Constant(kind, None))
                    builder.store(builder.fadd(builder.load(total), taken), total)
            for place, total in zip(places, sums):
                target = pointer(builder, builder.add(out, builder.mul(place, INT(size))), kind)
                builder.store(builder.load(total), target).align = size

        in_pieces(builder, count, VECTORS * lanes, piece)
        return context.get_dummy_value()
    return types.void(like, types.intp, types.intp, types.intp, none, types.intp, types.intp), codegen


@intrinsic
def sum_of_squares(typing_context, like, run, centre):
    """The sum of (run[i] - centre)^2, with distances in the type of the sum."""
    def codegen(context, builder, signature, values):
        run, count = _run(context, builder, signature, values, 1)

        def take(totals, position):
            kind = totals[0].type
            distance = builder.fsub(run(position, kind), broadcast(builder, values[2], kind))
            return [multiply_add(builder, distance, distance, totals[0])]
        return _reduced(builder, str(like), count, [NOTHING], take, builder.fadd)[0]
    return like(like, run, like), codegen


@intrinsic
def sum_and_products(typing_context, like, a, b, centre):
    """The sums of a[i] and of a[i] (b[i] - centre), with distances in the type of the sum."""
    def codegen(context, builder, signature, values):
        (a, count), (b, _) = (_run(context, builder, signature, values, i) for i in (1, 2))

        def take(totals, position):
            kind = totals[0].type
            distance = builder.fsub(b(position, kind), broadcast(builder, values[3], kind))
            factor = a(position, kind)
            return [builder.fadd(totals[0], factor), multiply_add(builder, factor, distance, totals[1])]
        sums = _reduced(builder, str(like), count, [NOTHING, NOTHING], take, builder.fadd)
        return context.make_tuple(builder, signature.return_type, sums)
    return types.UniTuple(like, 2)(like, a, b, like), codegen


@intrinsic
def largest_of(typing_context, run):
    """The largest of run[i]; NaN is passed over, and -inf is the largest of none."""
    def codegen(context, builder, signature, values):
        run, count = _run(context, builder, signature, values, 0)

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", b, a), b, a)

        def take(totals, position):
            return [larger(totals[0], run(position, totals[0].type))]
        return _reduced(builder, str(signature.return_type), count, [float("-inf")], take, larger)[0]
    return run.dtype(run), codegen


def _run(context, builder, signature, values, index):
    """An argument that is an array, as ``(read(position, kind of vector), length)``."""
    array = context.make_array(signature.args[index])(context, builder, values[index])
    dtype = signature.args[index].dtype
    element, size = element_type(str(dtype)), dtype.bitwidth // 8
    start = builder.ptrtoint(array.data, INT)

    def read(position, kind):
        source = builder.add(start, builder.mul(position, INT(size)))
        return _widened(builder, load_vector(builder, source, ir.VectorType(element, kind.count), size), kind)
    return read, builder.extract_value(array.shape, 0)


def _marks(context, builder, signature, values):
    """Integers beside a run and the one to pass over, as ``marks(position, lanes)``: a vector of each."""
    array = context.make_array(signature.args[2])(context, builder, values[2])
    kind, size = ir.IntType(signature.args[2].dtype.bitwidth), signature.args[2].dtype.bitwidth // 8
    start = builder.ptrtoint(array.data, INT)

    def read(position, lanes):
        vector = ir.VectorType(kind, lanes)
        source = builder.add(start, builder.mul(position, INT(size)))
        return load_vector(builder, source, vector, size), broadcast(builder, values[3], vector)
    return read


def _widened(builder, vector, kind):
    return vector if vector.type == kind else builder.fpext(vector, kind)


def _reduced(builder, dtype, count, neutral, take, merge):
    """Results of several reductions at once over ``count`` positions; ``neutral`` is what each starts from.

    ``take(totals, position)`` takes in as many positions as the vectors ``totals`` have lanes. There is a stage for
    each width of a vector; a short run enters at the widest that it fills.
    """
    element, widest = element_type(dtype), VECTORS * vector_unit().lanes(dtype)
    widths = [widest >> i for i in range(widest.bit_length())]
    slots = {width: [cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(element, width), [value] * width))
                     for value in neutral] for width in widths}
    stages = {width: builder.append_basic_block(f"stage.{width}") for width in widths}
    for width in widths[:-1]:
        shorter = builder.append_basic_block("shorter")
        builder.cbranch(builder.icmp_signed(">=", count, INT(width)), stages[width], shorter)
        builder.position_at_end(shorter)
    builder.branch(stages[1])

    def take_in(width, position):
        for slot, total in zip(slots[width], take([builder.load(slot) for slot in slots[width]], position)):
            builder.store(total, slot)

    for width in widths:
        builder.position_at_end(stages[width])
        if width == widest:
            whole = builder.and_(count, INT(-width))
            with cgutils.for_range_slice(builder, INT(0), whole, INT(width), INT) as (position, _):
                take_in(width, position)
        else:
            with builder.if_then(builder.icmp_signed("!=", builder.and_(count, INT(width)), INT(0))):
                take_in(width, builder.and_(count, INT(-2 * width)))
        if width > 1:
            for slot, half in zip(slots[width], slots[width // 2]):
                builder.store(_halved(builder, builder.load(slot), merge), half)
            builder.branch(stages[width // 2])
    return [builder.extract_element(builder.load(slot), INT32(0)) for slot in slots[1]]


def _halved(builder, total, merge):
    width = total.type.count // 2
    halves = [builder.shuffle_vector(total, total, ir.Constant(
        ir.VectorType(INT32, width), list(range(first, first + width)))) for first in (0, width)]
    return merge(*halves)
