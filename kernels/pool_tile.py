"""The register tiles of max-pooling, emitted as LLVM IR.

A tile takes a vector of neighbouring windows (or neighbouring channels of one window) through all cells of the
window with everything in registers. Vectors are 64 bytes on every machine; where the machine's own are shorter,
LLVM splits them. A tile reads and writes whole vectors: the drivers in pool.py see to it that there is memory to
read, and that what is written past the end of a row is replaced by the rows that follow.

Both directions visit pairs (window, pixel) in the same way, described by a :class:`Sweep`.
"""

import contextlib
import functools
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import LINE_BYTES, prefetch, store_where

VECTOR_BYTES = 64  # of most tiles
AHEAD_BYTES = 2048  # in a plane, whose rows follow each other: two rows at a time are too much for the hardware
LARGEST_STRIDE = 4  # beyond, most of what a vector load brings is thrown away
INT = ir.IntType(64)
INT32 = ir.IntType(32)


class Sweep(NamedTuple):
    """Over the elements of a target, each with the elements of a source that share a cell of a window with it.

    Forward the target are the windows (P x Q) and the source the pixels (H x W), backward it is the other way
    round. A table for each axis has an entry (cell, count, place) for each target row (column): it meets
    ``count`` source rows, the first of them ``place`` through row ``cell`` of the window. The following ones are
    ``source_step`` elements of the source further, and ``cell_step`` positions r S + s.
    """

    images: int  # N C, or N where channels are last
    depth: int  # 1, or C where channels are last
    rows: int  # of the target
    columns: int
    source_rows: int
    source_columns: int
    row_source_step: int
    row_cell_step: int
    column_source_step: int
    column_cell_step: int
    window_columns: int  # S
    first: int  # target columns from `first` to `last` have neighbours with as many source columns
    last: int
    chunk: int  # target rows to a unit of parallel work
    floor: int = 0  # forward: 1 where 0 is the largest of all that is not positive, and stands
    nowhere: int = 0  # at this position, which no cell has


def lanes(dtype, vector_bytes=VECTOR_BYTES):
    """Elements of a Numba type to a vector."""
    return vector_bytes * 8 // dtype.bitwidth


@intrinsic
def lanes_of(typing_context, array):
    """Elements of this array to a vector."""
    count = lanes(array.dtype)
    return types.intp(array), lambda context, builder, signature, values: INT(count)


def _shuffle(builder, first, second, order):
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(order)), list(order)))


def _fill(builder, scalar, vector):
    """A vector of this integer, narrowed to the vector's elements."""
    if scalar.type != vector.element:
        scalar = builder.trunc(scalar, vector.element)
    undefined = ir.Constant(vector, ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, scalar, INT32(0)), undefined, [0] * vector.count)


def _vector_at(builder, data, index, count):
    """Pointer to ``count`` elements from data[index] on, and their alignment."""
    element = data.type.pointee
    size = element.width // 8 if isinstance(element, ir.IntType) else 4 if element == ir.FloatType() else 8
    vector = ir.VectorType(element, count)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer()), size


def _load(builder, data, index, count, stride=1):
    """``count`` elements, ``stride`` apart."""
    pointer, align = _vector_at(builder, data, index, count * stride)
    loaded = builder.load(pointer)
    loaded.align = align
    return loaded if stride == 1 else _shuffle(builder, loaded, loaded, range(0, count * stride, stride))


def woven(builder, vectors):
    """The first elements of all vectors, then the second ones..."""
    count, stride = vectors[0].type.count, len(vectors)
    order = [(j % stride) * count + j // stride for j in range(count * stride)]
    while len(vectors) > 2:  # a shuffle has two operands
        pairs = zip(vectors[::2], [*vectors[1::2], vectors[-1]])
        vectors = [_shuffle(builder, a, b, range(2 * a.type.count)) for a, b in pairs]
    return vectors[0] if stride == 1 else _shuffle(builder, vectors[0], vectors[1], order)


def _store(builder, data, index, vectors):
    """The vectors woven together."""
    together = woven(builder, vectors)
    pointer, align = _vector_at(builder, data, index, together.type.count)
    builder.store(together, pointer).align = align


@contextlib.contextmanager
def rolled(builder, count):
    """A loop that LLVM leaves rolled: windows are small, unrolled loops spend their time in remainders."""
    module, before = builder.module, builder.block
    head, body, done = (builder.append_basic_block(f"cells.{name}") for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INT)
    index.add_incoming(INT(0), before)
    builder.cbranch(builder.icmp_signed("<", index, count), body, done)
    builder.position_at_end(body)
    yield index
    index.add_incoming(builder.add(index, INT(1)), builder.block)
    rolled = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    identity = ir.MDValue(module, (), name=str(len(module.metadata)))
    identity.operands = (identity, rolled)  # a loop's metadata names itself first
    builder.branch(head).set_metadata("llvm.loop", identity)
    builder.position_at_end(done)


def _variable(builder, initial):
    slot = cgutils.alloca_once(builder, initial.type)
    builder.store(initial, slot)
    return slot


@contextlib.contextmanager
def _cells(builder, entry, base, cell, rows, sweep):
    """Loop over the source elements of one target: yields (index in the source, position in the window)."""
    first_cell, count, place = entry
    start = builder.add(base, builder.mul(place, sweep.depth))
    position = builder.add(cell, first_cell)
    with rolled(builder, rows) as i:
        row_start = builder.add(start, builder.mul(i, sweep.row_source_step))
        row_position = builder.add(position, builder.mul(i, sweep.row_cell_step))
        with rolled(builder, count) as j:
            yield (builder.add(row_start, builder.mul(j, sweep.column_source_step)),
                   builder.add(row_position, builder.mul(j, sweep.column_cell_step)))


def _visit(builder, visit, entry, base, cell, rows, sweep, window, fetch=None, fetched=0):
    """``visit(index, position)`` of all source elements of one target: without loops where all cells of a window meet.

    Of the last rows, ``fetched`` of them, ``fetch(index)`` comes first.
    """
    def in_loops():
        with _cells(builder, entry, base, cell, rows, sweep) as (index, position):
            visit(index, position)

    if window is None:
        in_loops()
        return
    _, columns, place = entry
    whole = builder.and_(*(builder.icmp_signed("==", met, INT(size)) for met, size in zip((rows, columns), window)))
    with builder.if_else(whole, likely=True) as (unrolled, cut):
        with unrolled:
            row = builder.add(base, builder.mul(place, sweep.depth))
            for i in range(window[0]):
                index = row
                if i >= window[0] - fetched:
                    fetch(row)
                for j in range(window[1]):
                    visit(index, INT(i * window[1] + j))
                    index = builder.add(index, sweep.column_source_step)
                row = builder.add(row, sweep.row_source_step)
        with cut:
            in_loops()


def _fetch_ahead(builder, data, index, count):
    """Have memory fetch ``count`` elements some lines behind data[index]."""
    place, size = _vector_at(builder, data, index, count)
    first = builder.add(builder.ptrtoint(place, INT), INT(AHEAD_BYTES))
    for line in range(0, count * size, LINE_BYTES):
        prefetch(builder, builder.add(first, INT(line)))


def _emit_largest(builder, y, where, x, entries, out, base, cell, rows, sweep, count, stride, window=None, fetched=0):
    numbers = ir.VectorType(x.type.pointee, count)
    # Positions are counted in lanes as wide as the numbers, which is what masks fit.
    positions = ir.VectorType(INT if x.type.pointee == ir.DoubleType() else INT32, count)
    first_cell, columns, _ = entries(0)
    nothing = builder.icmp_signed("==", builder.mul(rows, columns), INT(0))
    first = builder.select(nothing, INT(0), builder.add(cell, first_cell))
    floored = builder.icmp_signed("!=", sweep.floor, INT(0))
    first = builder.select(floored, sweep.nowhere, first)
    best = _variable(builder, builder.select(floored, *(
        ir.Constant(numbers, [lowest] * count) for lowest in (0.0, float("-inf")))))
    winner = _variable(builder, _fill(builder, first, positions))
    total = _variable(builder, ir.Constant(numbers, [0.0] * count))

    def visit(index, position):
        value, largest = _load(builder, x, index, count, stride), builder.load(best)
        better = builder.fcmp_ordered(">", value, largest)
        if count == 1:
            better = builder.or_(better, builder.fcmp_unordered("uno", value, value))
        builder.store(builder.select(better, value, largest), best)
        here = _fill(builder, position, positions)
        builder.store(builder.select(better, here, builder.load(winner)), winner)
        builder.store(builder.fadd(builder.load(total), value), total)

    def fetch(row):
        _fetch_ahead(builder, x, row, count * stride)

    _visit(builder, visit, entries(0), base, cell, rows, sweep, window, fetch, fetched)
    _store(builder, y, out, [builder.load(best)])
    if where is not None:
        narrow = ir.VectorType(where.type.pointee, count)
        won = builder.load(winner)
        _store(builder, where, out, [won if won.type == narrow else builder.trunc(won, narrow)])
    if count == 1:
        return cgutils.true_bit
    total = builder.load(total)  # a NaN in the sum betrays one in a window, for one addition a cell
    suspects = builder.bitcast(builder.fcmp_unordered("uno", total, total), ir.IntType(count))
    return builder.icmp_unsigned("==", suspects, ir.IntType(count)(0))


def _emit_routed(builder, dx, where, dy, entries, out, base, cell, rows, sweep, count, stride, window=None):
    zeros = ir.Constant(ir.VectorType(dy.type.pointee, count), [0.0] * count)
    sums = []
    for phase in range(stride):
        total = _variable(builder, zeros)

        def visit(index, position, total=total):
            winner = _load(builder, where, index, count)
            won = builder.icmp_unsigned("==", winner, _fill(builder, position, winner.type))
            share = builder.select(won, _load(builder, dy, index, count), zeros)
            builder.store(builder.fadd(builder.load(total), share), total)

        _visit(builder, visit, entries(phase), base, cell, rows, sweep, window)
        sums.append(builder.load(total))
    _store(builder, dx, out, sums)
    return cgutils.true_bit


def _emit_routed_once(builder, dx, where, dy, entries, out, base, cell, rows, sweep, count, stride):
    zeros = ir.Constant(ir.VectorType(dy.type.pointee, count), [0.0] * count)
    met = _fill(builder, builder.icmp_signed(">", rows, INT(0)), ir.VectorType(ir.IntType(1), count))
    shares = []
    for phase in range(stride):
        first_cell, _, place = entries(phase)
        index = builder.add(base, builder.mul(place, sweep.depth))
        winner = _load(builder, where, index, count)
        won = builder.icmp_unsigned("==", winner, _fill(builder, builder.add(cell, first_cell), winner.type))
        won = builder.and_(won, met)
        shares.append(builder.select(won, _load(builder, dy, index, count), zeros))
    _store(builder, dx, out, shares)
    return cgutils.true_bit


def _tile(emit, stride, single, vector_bytes=VECTOR_BYTES, inside=None):
    """The intrinsic ``tile(target, where, source, table, (out, base, cell, rows, column), sweep)``.

    It fills target[out:]. ``column`` is the target's column, ``table`` the flat table of columns, ``rows`` the
    number of source rows, of which the first begins at source[base] and meets the cells from ``cell`` on.
    ``stride`` is that of the windows' columns, where a vector's elements are neighbouring columns; ``single``
    makes a tile of one element. Windows ``inside``, (rows, columns), which none is cut from, need no table.
    """
    def codegen(context, builder, signature, values):
        kinds = signature.args
        target, where, source, table = (
            None if isinstance(kind, types.NoneType) else context.make_array(kind)(context, builder, value).data
            for kind, value in zip(kinds, values[:4]))
        out, base, cell, rows, column = cgutils.unpack_tuple(builder, values[4])
        sweep = Sweep(*cgutils.unpack_tuple(builder, values[5]))

        def entries(phase):
            if inside:
                return [INT(0), INT(inside[1]), builder.mul(column, INT(stride))]
            entry = builder.mul(builder.add(column, INT(phase)), INT(3))
            return [builder.load(builder.gep(table, [builder.add(entry, INT(i))])) for i in range(3)]
        if inside:
            cell, rows = INT(0), INT(inside[0])
        return emit(builder, target, where, source, entries, out, base, cell, rows, sweep,
                    1 if single else lanes(kinds[2].dtype, vector_bytes), stride)

    @intrinsic
    def tile(typing_context, target, where, source, table, place, sweep):
        return types.boolean(target, where, source, table, place, sweep), codegen
    return tile


@functools.cache
def spread(stride, rows, vector_bytes):
    """Intrinsic ``(dx, where, dy, out, source, windows, columns, cell, end)``: rows of pixels from a row of windows.

    Windows of ``stride`` columns touch each other from the first pixel on. Pixel j of row i, in
    dx[out + i columns:], gets what its window j // stride has in dy[source:], if that window's ``where`` is the pixel's
    cell, ``cell`` + i stride + j % stride; pixels behind the last of the ``windows`` get 0. Vectors of ``where`` and dy
    are read whole, and those of dx written so up to dx[end]: what lies behind a row is to be replaced by the rows that
    follow. Several rows are of at most ``stride`` vectors each.
    """
    def codegen(context, builder, signature, values):
        dx, where, dy = (context.make_array(kind)(context, builder, value).data
                         for kind, value in zip(signature.args, values[:3]))
        out, source, windows, columns, cell, end = values[3:]
        count = lanes(signature.args[2].dtype, vector_bytes)
        positions = ir.VectorType(INT if dy.type.pointee == ir.DoubleType() else INT32, count)
        lane = ir.Constant(positions, list(range(count)))
        zeros = ir.Constant(ir.VectorType(dy.type.pointee, count), [0.0] * count)

        def before(number, first):
            """The lanes of which ``first`` + lane is below a number."""
            return builder.icmp_signed("<", lane, _fill(builder, builder.sub(number, first), positions))

        def store(share, first, row):
            index = builder.add(builder.add(out, builder.mul(columns, INT(row))), first)
            place, size = _vector_at(builder, dx, index, count)
            with builder.if_then(builder.icmp_signed("<", first, columns), likely=True):
                room = builder.icmp_signed("<=", builder.add(index, INT(count)), end)
                with builder.if_else(room, likely=True) as (whole, part_of_it):
                    with whole:
                        builder.store(share, place).align = size
                    with part_of_it:
                        store_where(builder, share, place, before(columns, first), size)

        with cgutils.for_range_slice(builder, INT(0), columns, INT(count * stride), INT) as (column, _):
            window = builder.sdiv(column, INT(stride))
            index = builder.add(source, window)
            sent = builder.select(before(windows, window), _load(builder, dy, index, count), zeros)
            won = builder.zext(_load(builder, where, index, count), positions)
            won = builder.sub(won, _fill(builder, cell, positions))
            firsts = [builder.add(column, INT(part * count)) for part in range(stride)]
            shares = []
            for part in range(stride):
                pixels = range(part * count, (part + 1) * count)
                owners = [pixel // stride for pixel in pixels]
                here, value = _shuffle(builder, won, won, owners), _shuffle(builder, sent, sent, owners)
                shares.append([builder.select(builder.icmp_signed("==", here, ir.Constant(
                    positions, [row * stride + pixel % stride for pixel in pixels])), value, zeros)
                    for row in range(rows)])
            for row in range(rows):
                for first, share in zip(firsts, shares):
                    store(share[row], first, row)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context, dx, where, dy, out, source, windows, columns, cell, end):
        return types.void(dx, where, dy, *[types.intp] * 6), codegen
    return tile


@functools.cache
def spread_pixel(window, vector_bytes):
    """Intrinsic ``(dx, where, dy, out, row, pixel, source, depth)``: all pixels of a window of ``depth`` channels.

    Pixel (i, j) of the window, (rows, columns), in dx[out + i row + j pixel:], gets what dy[source:] has where
    ``where`` is the pixel's cell; a vector's channels at least.
    """
    def codegen(context, builder, signature, values):
        dx, where, dy = (context.make_array(kind)(context, builder, value).data
                         for kind, value in zip(signature.args, values[:3]))
        out, row, pixel, source, depth = values[3:]
        count = lanes(signature.args[2].dtype, vector_bytes)
        positions = ir.VectorType(INT if dy.type.pointee == ir.DoubleType() else INT32, count)
        zeros = ir.Constant(ir.VectorType(dy.type.pointee, count), [0.0] * count)
        last = builder.sub(depth, INT(count))

        def piece(channel):
            index = builder.add(source, channel)
            value, won = _load(builder, dy, index, count), builder.zext(_load(builder, where, index, count), positions)
            for i in range(window[0]):
                for j in range(window[1]):
                    cell = ir.Constant(positions, [i * window[1] + j] * count)
                    share = builder.select(builder.icmp_signed("==", won, cell), value, zeros)
                    place = builder.add(out, builder.add(builder.mul(row, INT(i)), builder.mul(pixel, INT(j))))
                    _store(builder, dx, builder.add(place, channel), [share])

        with cgutils.for_range_slice(builder, INT(0), depth, INT(count), INT) as (channel, _):
            piece(builder.select(builder.icmp_signed("<", channel, last), channel, last))
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context, dx, where, dy, out, row, pixel, source, depth):
        return types.void(dx, where, dy, *[types.intp] * 5), codegen
    return tile


@functools.cache
def largest_pixel(window, vector_bytes):
    """Intrinsic ``(y, where, x, out, source, row, pixel, depth, floor)``: the largest of each channel of a window.

    Of its pixels (i, j), in x[source + i row + j pixel:], into y[out:], and positions into where[out:] unless that is
    None. A vector's channels at least; ``floor`` as in :class:`Sweep`. NaN is as :func:`largest` has it.
    """
    height, width = window

    def codegen(context, builder, signature, values):
        y, where, x = (None if isinstance(kind, types.NoneType) else context.make_array(kind)(
            context, builder, value).data for kind, value in zip(signature.args, values[:3]))
        out, source, row, pixel, depth, floor = values[3:]
        count = lanes(signature.args[2].dtype, vector_bytes)
        sweep = dict.fromkeys(Sweep._fields, INT(0)) | dict(
            row_source_step=row, column_source_step=pixel, floor=floor, nowhere=INT(height * width))
        last = builder.sub(depth, INT(count))

        def emit(channel, count):
            return _emit_largest(builder, y, where, x, lambda phase: (INT(0), INT(width), INT(0)),
                                 builder.add(out, channel), builder.add(source, channel), INT(0), INT(height),
                                 Sweep(**sweep), count, 1, window)

        with cgutils.for_range_slice(builder, INT(0), depth, INT(count), INT) as (channel, _):
            first = builder.select(builder.icmp_signed("<", channel, last), channel, last)
            fine = emit(first, count)
            with builder.if_then(builder.not_(fine), likely=False), rolled(builder, INT(count)) as lane:
                emit(builder.add(first, lane), 1)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context, y, where, x, out, source, row, pixel, depth, floor):
        return types.void(y, where, x, *[types.intp] * 6), codegen
    return tile


@functools.cache
def largest(stride, single=False, window=None, vector_bytes=VECTOR_BYTES, fetched=0, inside=False):
    """The forward tile: y (target) the largest of each window of x (source), ``where`` (or None) its position.

    The first of equals wins; NaN wins over all, and the last of several. Returns False where a window may hold
    a NaN (infinities of both signs look the same): then what it stored is to be replaced by single tiles.

    Windows that are ``window``, (rows, columns), wholly inside the image are done without loops; meanwhile memory
    fetches what further ones will read in their last rows, ``fetched`` of them. ``inside``: all windows are.
    """
    emit = functools.partial(_emit_largest, window=window, fetched=fetched)
    return _tile(emit, stride, single, vector_bytes, window if inside else None)


@functools.cache
def routed(stride, single=False, window=None):
    """The backward tile: dx (target) the sum of dy (source) over the windows that this pixel won.

    Without loops where these are as many as a ``window``, (rows, columns), has cells.

    It fills ``stride`` vectors of dx, woven together: neighbouring columns are in other cells of their windows.
    """
    return _tile(functools.partial(_emit_routed, window=window), stride, single)


@functools.cache
def routed_once(stride):
    """:func:`routed` for columns that all lie in one window, and rows in one or none: without loops.

    More than twice as fast.
    """
    return _tile(_emit_routed_once, stride, False)
